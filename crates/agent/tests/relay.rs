//! Tools inside, honest and hostile, at the agent's socket. The test is the supervisor.

mod common;

use common::{Agent, Home};
use sandbox_protocol::*;

/// A client of the protocol in a few lines, so that it can also lie.
const TOOL: &str = r#"
import socket, struct, json, sys, os
def connect(hello=True):
    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect("/run/git-sandbox/agent.sock")
    if hello: control(s, 0, op="hello", min=1, max=1)
    return s
def send(s, kind, stream, data):
    try: s.sendall(struct.pack("<IBI", len(data) + 5, kind, stream) + data)
    except BrokenPipeError: pass
def control(s, stream, **m): send(s, 0, stream, json.dumps(m).encode())
def exactly(s, n):
    b = b""
    while len(b) < n:
        c = s.recv(n - len(b))
        if not c: return None
        b += c
    return b
def recv(s):
    try: h = exactly(s, 9)
    except ConnectionResetError: h = None
    if h is None: return None
    n, kind, stream = struct.unpack("<IBI", h)
    data = exactly(s, n - 5) if n > 5 else b""
    return kind, stream, (json.loads(data) if kind == 0 else data)
def closed(s):
    while True:
        f = recv(s)
        if f is None: return True
"#;

fn tool(agent: &mut Agent, script: &str) -> u32 {
    let exec = agent.command(&["python3", "-c", &format!("{TOOL}\n{script}")]);
    agent.client.open(&Message::Exec(exec))
}

/// The next frame of a stream that the agent opened.
fn request(agent: &mut Agent) -> (u32, Message) {
    loop {
        let frame = agent.client.try_frame().expect("the agent is there");
        if frame.stream % 2 == 1 {
            return (frame.stream, frame.message().unwrap());
        }
    }
}

fn stdout(agent: &mut Agent, tool: u32) -> String {
    let ran = agent.client.finish(tool, b"");
    assert_eq!(ran.status, Ok(ExitStatus::Code(0)), "{}", String::from_utf8_lossy(&ran.err));
    ran.stdout()
}

#[test]
fn a_commit_back_is_passed_on_and_answered() {
    let home = Home::new();
    let mut agent = home.start();
    assert!(agent.hello.features.iter().any(|name| name == "agent-socket"));
    let script = "s = connect(); control(s, 2, op='commit-back')\nfor _ in range(3): print(*recv(s))";
    let tool = tool(&mut agent, script);
    let (stream, message) = request(&mut agent);
    assert_eq!(message, Message::CommitBack);
    agent.client.send_data_as(FrameType::Stdout, stream, b"ok refs/heads/x\n");
    agent.client.send(stream, &Message::Done);
    let out = stdout(&mut agent, tool);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("0 0 {'op': 'hello'"), "{out}");
    assert_eq!(lines[1..], ["2 2 b'ok refs/heads/x\\n'", "0 2 {'op': 'done'}"]);
}

#[test]
fn a_served_repository_flows_both_ways() {
    let home = Home::new();
    let mut agent = home.start();
    let script = r#"
s = connect(); recv(s); control(s, 2, op="serve-host", repo=1, protocol="version=2")
left, window, got = 1000000, 262144, 0
while got < 1000000:
    n = min(left, window, 60000)
    if n: send(s, 1, 2, b"q" * n); left -= n; window -= n; continue
    if left == 0: control(s, 2, op="close-stdin"); left = -1
    kind, stream, m = recv(s)
    if kind == 0 and m["op"] == "credit": window += m["bytes"]
    if kind == 2: got += len(m); control(s, 2, op="credit", channel="stdout", bytes=len(m))
    if left < 0: left = 0; window = 0
print(got, recv(s))
"#;
    let tool = tool(&mut agent, script);
    let (stream, message) = request(&mut agent);
    assert_eq!(message, Message::ServeHost { repo: 1, protocol: Some("version=2".into()) });
    let (mut echoed, mut window) = (0u64, WINDOW);
    let mut pending = 0u64;
    while echoed < 1_000_000 {
        let n = pending.min(window).min(MAX_PAYLOAD as u64);
        if n > 0 {
            agent.client.send_data_as(FrameType::Stdout, stream, &vec![b'a'; n as usize]);
            (pending, window, echoed) = (pending - n, window - n, echoed + n);
            continue;
        }
        let frame = agent.client.frame_of(stream);
        match frame.kind {
            FrameType::Stdin => {
                pending += frame.payload.len() as u64;
                let bytes = frame.payload.len() as u64;
                agent.client.send(stream, &Message::Credit { channel: Channel::Stdin, bytes });
            }
            _ => {
                if let Message::Credit { channel: Channel::Stdout, bytes } = frame.message().unwrap() {
                    window += bytes;
                }
            }
        }
    }
    agent.client.until(stream, |message| *message == Message::CloseStdin);
    agent.client.send(stream, &Message::Done);
    assert_eq!(stdout(&mut agent, tool), "1000000 (0, 2, {'op': 'done'})\n");
}

#[test]
fn many_tools_at_once() {
    let home = Home::new();
    let mut agent = home.start();
    let script = "ss = [connect() for _ in range(20)]\n\
                  for s in ss: recv(s); control(s, 6, op='commit-back')\n\
                  print([recv(s)[2]['message'] for s in ss] == ['no'] * 20)";
    let tool = tool(&mut agent, script);
    let mut streams = Vec::new();
    for _ in 0..20 {
        let (stream, message) = request(&mut agent);
        assert_eq!(message, Message::CommitBack);
        streams.push(stream);
    }
    streams.sort_unstable();
    streams.dedup();
    assert_eq!(streams.len(), 20, "each has a stream of its own");
    for stream in streams {
        let failure = Failure { kind: FailureKind::Other, message: "no".into() };
        agent.client.send(stream, &Message::Error(failure));
    }
    assert_eq!(stdout(&mut agent, tool), "True\n");
}

#[test]
fn a_tool_that_vanishes_holds_nobody() {
    let home = Home::new();
    let mut agent = home.start();
    let script = "s = connect(); recv(s); control(s, 2, op='serve-host', repo=0); \
                  print(len(recv(s)[2]), flush=True); os.kill(os.getpid(), 9)";
    let tool = tool(&mut agent, script);
    let (stream, _) = request(&mut agent);
    agent.client.send_data_as(FrameType::Stdout, stream, b"12345");
    let ran = agent.client.finish(tool, b"");
    assert_eq!((ran.stdout().as_str(), ran.status), ("5\n", Ok(ExitStatus::Signal(9))));
    assert_eq!(agent.client.message_of(stream), Message::CloseStdin);
    assert_eq!(agent.client.message_of(stream), Message::Credit { channel: Channel::Stdout, bytes: 5 });
    // What still comes for it is granted at once.
    agent.client.send_data_as(FrameType::Stdout, stream, &[0; 1000]);
    assert_eq!(agent.client.message_of(stream), Message::Credit { channel: Channel::Stdout, bytes: 1000 });
    agent.client.send(stream, &Message::Done);
    agent.ok("true");
}

#[test]
fn lies_end_the_connection_and_nothing_else() {
    let home = Home::new();
    let mut agent = home.start();
    // Each line must end in a closed connection; what reaches the supervisor is told below.
    let script = r#"
s = connect(); s.sendall(b"\xff" * 9); print("length", closed(s))
s = connect(); s.sendall(struct.pack("<IBI", 5, 77, 2)); print("type", closed(s))
s = connect(); send(s, 0, 2, b"{no json"); print("json", closed(s))
s = connect(); send(s, 2, 2, b"x"); print("direction", closed(s))
s = connect(False); control(s, 0, op="hello", min=7, max=9); print("version", closed(s))
s = connect(); control(s, 2, op="serve-host", repo=0); control(s, 2, op="credit", channel="stdout", bytes=1); print("credit", closed(s))
s = connect(); control(s, 2, op="serve-host", repo=0)
for _ in range(6): send(s, 1, 2, b"x" * 60000)
print("window", closed(s))
s = connect(); recv(s); control(s, 2, op="exec", argv=["true"], cwd="/"); print(recv(s)[2]["kind"])
s = connect(); recv(s); control(s, 3, op="shutdown", grace_ms=0); print(recv(s)[2]["kind"])
s = connect(False); recv(s); control(s, 2, op="commit-back"); print(recv(s)[2]["message"])
s = connect(); recv(s)
for n in range(5): control(s, 2 + 2 * n, op="serve-host", repo=n)
print(recv(s)[1:])
ss = [connect() for _ in range(100)]; print(len(ss))
"#;
    let tool = tool(&mut agent, script);
    let out = stdout(&mut agent, tool);
    let expected = "length True\ntype True\njson True\ndirection True\nversion True\ncredit True\nwindow True\n\
                    unsupported\nunsupported\na request comes after the hello\n\
                    (10, {'op': 'error', 'kind': 'limit', 'message': 'too many requests at once'})\n100\n";
    assert_eq!(out, expected);
    agent.ok("true");
}
