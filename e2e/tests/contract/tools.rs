//! What people work with still works inside: a line for each tool, with what it must print. A tool that this machine
//! has not got is skipped, and counted.
//!
//! Where a setting of the wall was in the way of one of these, the finer one and its reason are in the record
//! `docs/decisions/real-work.md`.

use crate::Subject;
use sandbox_testkit::{State, is_root, which};
use std::path::PathBuf;

over_drivers! {
    what_is_always_there,
    what_may_be_there,
    the_rust_toolchain,
}

mod namespace_at_length {
    #[test]
    #[ignore = "heavy: `cargo xtask test --all`"]
    fn what_is_large() {
        super::what_is_large(&crate::Subject::new("namespace"));
    }

    #[test]
    #[ignore = "heavy: `cargo xtask test --all`"]
    fn a_browsers_own_sandbox() {
        super::a_browsers_own_sandbox(&crate::Subject::new("namespace"));
    }
}

struct Tool {
    name: &'static str,
    /// Programs that it needs.
    needs: &'static [&'static str],
    /// Run by `sh -e` in a directory of its own below the work tree.
    script: &'static str,
    /// What it prints.
    prints: &'static str,
}

const fn tool(name: &'static str, needs: &'static [&'static str], script: &'static str, prints: &'static str) -> Tool {
    Tool { name, needs, script, prints }
}

/// What is on each machine that runs the suite: without one of these it fails.
const ALWAYS: &[Tool] = &[
    tool("perl", &[], "perl -e 'print 6*7, \"\\n\"'", "42"),
    tool("pipes and jobs", &[], "seq 1000 | sort -rn | head -1; (sleep 0 & wait) && echo waited", "1000\nwaited"),
    tool("a FIFO", &[], "mkfifo p; (echo through >p &) ; cat p", "through"),
    tool(
        "git with everything",
        &[],
        r#"git init -q r; cd r; git config user.email a@b; git config user.name n
           for n in 1 2 3; do echo $n >f$n; git add .; git commit -qm c$n; done
           git checkout -qb side HEAD~1; echo s >s; git add .; git commit -qm side; git rebase -q main || git rebase -q master
           git stash -q -u 2>/dev/null || true; git worktree add -q ../wt; git -C ../wt log --oneline | wc -l
           git gc -q; git fsck --no-progress 2>&1 | grep -c error || true
           git bisect start HEAD HEAD~2 >/dev/null 2>&1; git bisect run true >/dev/null 2>&1; git bisect reset >/dev/null 2>&1
           git clone -q . ../clone; git -C ../clone rev-list --count HEAD; git archive HEAD | tar t | wc -l
           git format-patch -q -1 --stdout | git apply --stat | tail -1"#,
        "4\n0\n4\n4\n 1 file changed, 1 insertion(+)",
    ),
    tool(
        "a terminal",
        &["script"],
        "script -qec 'tty; stty size' /dev/null </dev/null | head -1 | cut -c1-9",
        "/dev/pts/",
    ),
];

/// What may be missing.
const MAYBE: &[Tool] = &[
    tool(
        "a C compiler",
        &["gcc"],
        "printf '#include <stdio.h>\\nint main(void){puts(\"compiled\");return 0;}\\n' >a.c; gcc -O2 -g -pthread -o a a.c; ./a",
        "compiled",
    ),
    tool("make, in parallel", &["make"], "printf 'all: x y z\\n%%:\\n\\t@echo $@ >$@\\n' >Makefile; make -s -j4; cat x y z", "x\ny\nz"),
    tool(
        "CMake",
        &["cmake", "make", "gcc"],
        "printf 'cmake_minimum_required(VERSION 3.10)\\nproject(p C)\\nadd_executable(p p.c)\\n' >CMakeLists.txt
         printf 'int main(void){return 0;}\\n' >p.c; cmake -S . -B b >/dev/null; cmake --build b -j2 >/dev/null; b/p; echo built",
        "built",
    ),
    tool(
        "python: processes, asyncio, files in memory",
        &["/usr/bin/python3"],
        r#"cat >p.py <<'P'
import asyncio, multiprocessing, os, sqlite3, subprocess, tempfile, threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory
def f(n): return n * n
async def main():
    async def echo(r, w): w.write(await r.readline()); await w.drain(); w.close()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    r, w = await asyncio.open_connection(*server.sockets[0].getsockname())
    w.write(b"hi\n"); line = await r.readline(); server.close()
    p = await asyncio.create_subprocess_exec("true"); await p.wait()
    return line
if __name__ == "__main__":
    with multiprocessing.Pool(4) as pool: print(sum(pool.map(f, range(10))))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as e: print(sum(e.map(f, range(4))))
    m = shared_memory.SharedMemory(create=True, size=64); m.buf[0] = 7; print(m.buf[0]); m.close(); m.unlink()
    q = multiprocessing.Queue(); q.put(1); print(q.get()); multiprocessing.Semaphore(1).acquire()
    print(asyncio.run(main()))
    d = sqlite3.connect("x.db"); d.execute("pragma journal_mode=wal"); d.execute("create table t(a)"); d.commit(); print(d.execute("select count(*) from t").fetchone())
    fd = os.memfd_create("m"); os.write(fd, b"x"); print(os.pidfd_open(os.getpid()) > 0)
P
           /usr/bin/python3 p.py"#,
        "285\n14\n7\n1\nb'hi\\n'\n(0,)\nTrue",
    ),
    tool(
        "python: a virtual environment",
        &["/usr/bin/python3"],
        r#"/usr/bin/python3 -m venv --without-pip v; v/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)'"#,
        "True",
    ),
    tool(
        "node",
        &["node"],
        r#"cat >n.mjs <<'N'
import { Worker, isMainThread, parentPort } from "node:worker_threads";
import { execFileSync } from "node:child_process";
import http from "node:http"; import fs from "node:fs"; import { fileURLToPath } from "node:url";
if (isMainThread) {
  const w = new Worker(fileURLToPath(import.meta.url));
  w.on("message", (m) => {
    console.log(m, execFileSync("echo", ["child"]).toString().trim());
    const watched = fs.watch(".", () => { watched.close(); });
    fs.writeFileSync("seen", "");
    const s = http.createServer((_, r) => r.end("served")).listen(0, "127.0.0.1", async () => {
      console.log(await (await fetch(`http://127.0.0.1:${s.address().port}`)).text()); process.exit(0);
    });
  });
} else parentPort.postMessage("worker");
N
           node n.mjs"#,
        "worker child\nserved",
    ),
    tool(
        "npm",
        &["node", "npm"],
        r#"mkdir -p dep app; echo '{"name":"dep","version":"1.0.0","main":"i.js","scripts":{"install":"echo ran >ran"}}' >dep/package.json; echo 'module.exports=5' >dep/i.js
           cd app; echo '{"name":"app","version":"1.0.0","scripts":{"go":"node go.js"}}' >package.json; echo 'console.log(require("dep"))' >go.js
           npm install --silent --no-audit --no-fund --offline ../dep >/dev/null; npm run --silent go"#,
        "5",
    ),
    tool(
        "a JVM",
        &["java", "javac"],
        r#"cat >A.java <<'J'
public class A { public static void main(String[] a) throws Exception {
  var t = new Thread(() -> System.out.println("thread")); t.start(); t.join();
  System.out.println(new String(new ProcessBuilder("echo", "child").start().getInputStream().readAllBytes()).trim());
  System.out.println(Runtime.getRuntime().availableProcessors() > 0);
} }
J
           javac A.java; java -Xmx64m A"#,
        "thread\nchild\ntrue",
    ),
    tool(
        "go",
        &["go"],
        r#"cat >m.go <<'G'
package main
import ("fmt"; "os/exec"; "sync")
func main() { var w sync.WaitGroup; n := make(chan int, 100)
  for i := 0; i < 100; i++ { w.Add(1); go func() { n <- 1; w.Done() }() }
  w.Wait(); o, _ := exec.Command("echo", "child").Output(); fmt.Print(len(n), " ", string(o)) }
G
           GO111MODULE=off GOFLAGS= GOCACHE=$PWD/c go run m.go"#,
        "100 child",
    ),
    tool(
        "gdb on a process of its own",
        &["gdb", "gcc"],
        r#"printf 'int f(int n){return n+1;}\nint main(void){return f(41)-42;}\n' >a.c; gcc -g -O0 -o a a.c
           gdb -q -batch -ex 'break f' -ex run -ex 'print n' -ex finish -ex kill ./a 2>&1 | grep -E '^\$1 = |Value returned'"#,
        "$1 = 41\nValue returned is $2 = 42",
    ),
    tool(
        "gdb on a running process",
        &["gdb"],
        r#"sleep 30 & p=$!; gdb -q -batch -p $p -ex 'info inferiors' -ex detach 2>&1 | grep -q "process $p" && echo attached; kill $p"#,
        "attached",
    ),
    tool(
        "strace",
        &["strace"],
        r#"strace -f -o t sh -c 'cat /dev/null; true'; grep -c 'exited with 0' t; mkdir d; strace -o u mv d e; test -d e; grep -c rename u"#,
        "2\n1",
    ),
    tool("sqlite", &["sqlite3"], "sqlite3 x.db 'pragma journal_mode=wal; create table t(a); insert into t values(1),(2); select sum(a) from t'", "wal\n3"),
    tool(
        "tmux",
        &["tmux"],
        r#"tmux -S $PWD/s -f /dev/null new-session -d 'echo in tmux >out; sleep 5'; i=0; while [ ! -s out ] && [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done; cat out; tmux -S $PWD/s kill-server"#,
        "in tmux",
    ),
    tool(
        "Redis on the loopback device",
        &["redis-server", "redis-cli"],
        r#"redis-server --port 6399 --bind 127.0.0.1 --dir $PWD --daemonize no >log 2>&1 & p=$!
           i=0; until redis-cli -p 6399 ping >/dev/null 2>&1 || [ $i -gt 100 ]; do sleep 0.05; i=$((i+1)); done
           redis-cli -p 6399 set a 1; redis-cli -p 6399 bgsave >/dev/null; redis-cli -p 6399 incr a; redis-cli -p 6399 shutdown nosave; wait $p || true"#,
        "OK\n2",
    ),
    tool(
        "PostgreSQL on the loopback device",
        &["initdb", "pg_ctl", "psql"],
        r#"initdb -D db -A trust -U me >/dev/null
           pg_ctl -D db -w -o "-h 127.0.0.1 -p 5499 -k $HOME" -l log start >/dev/null
           psql -h 127.0.0.1 -p 5499 -U me -Atc 'select 6*7' postgres; pg_ctl -D db -m fast stop >/dev/null"#,
        "42",
    ),
];

/// What takes long to start.
const LARGE: &[Tool] = &[tool(
    "headless Chromium",
    &["chromium"],
    r#"echo '<p id=x>old</p><script>x.textContent="rendered " + 6*7</script>' >p.html
           timeout 90 chromium --headless --no-sandbox --disable-gpu --user-data-dir=$PWD/u --dump-dom file://$PWD/p.html 2>/dev/null | grep -o 'rendered 42'"#,
    "rendered 42",
)];

/// Runs them all in one sandbox; what is not what it must be is told together.
fn run(subject: &Subject, tools: &[Tool], must: bool, args: &[&str]) {
    let (there, missing): (Vec<&Tool>, Vec<&Tool>) =
        tools.iter().partition(|tool| must || tool.needs.iter().all(|program| which(program).is_some()));
    for tool in missing {
        println!("SKIP: {}: this machine has not all of {}", tool.name, tool.needs.join(", "));
    }
    if there.is_empty() {
        return;
    }
    let repo = subject.repo(State::Plain);
    let mut script = String::new();
    for (n, tool) in there.iter().enumerate() {
        let inner = tool.script.replace('\'', "'\\''");
        script.push_str(&format!(
            "mkdir tool-{n}; out=$(cd tool-{n} && timeout 110 sh -ec '{inner}' 2>err); echo \"= {n} $?\"; printf '%s\\n' \"$out\"; tail -n 5 tool-{n}/err\n"
        ));
    }
    let seen = subject.spawn(&repo, &[args, &["tools"]].concat(), &script);
    let mut wrong = String::new();
    for (n, tool) in there.iter().enumerate() {
        let from = seen.stdout.find(&format!("= {n} 0\n{}\n", tool.prints));
        if from.is_none() {
            wrong.push_str(&format!("{n}: {}\n", tool.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong}{seen}");
}

fn what_is_always_there(subject: &Subject) {
    run(subject, ALWAYS, true, &[]);
}

fn what_may_be_there(subject: &Subject) {
    run(subject, MAYBE, false, &[]);
}

fn what_is_large(subject: &Subject) {
    run(subject, LARGE, false, &["--memory", "4g"]);
}

/// With `--nested` a browser has its own sandbox, which it does not start without.
fn a_browsers_own_sandbox(subject: &Subject) {
    let own = Tool { script: LARGE[0].script, ..LARGE[0] };
    let script: String = own.script.replace("--no-sandbox ", "");
    let own = [Tool { name: "Chromium in its own sandbox", script: Box::leak(script.into_boxed_str()), ..own }];
    run(subject, &own, false, &["--nested"]);
}

/// Cargo and rustc of the machine: not in a place that every user may read.
fn the_rust_toolchain(subject: &Subject) {
    let Some(bin) = sysroot().map(|root| root.join("bin")) else {
        sandbox_testkit::skip!("no Rust toolchain that this user may read");
    };
    let repo = subject.repo(State::Plain);
    let root = bin.parent().unwrap().display().to_string();
    subject.set(&format!("toolchain = {root}"));
    let script = format!(
        "export PATH={}:$PATH; cargo init -q --lib --vcs none --name inside c && cd c &&
         echo '#[test] fn t() {{ assert_eq!(6 * 7, 42) }}' >>src/lib.rs &&
         cargo build -q --offline && cargo test -q --offline 2>&1 | grep -m1 'test result' && rustc --version | cut -d' ' -f1",
        bin.display()
    );
    let seen = subject.spawn(&repo, &["rust"], &script);
    assert!(seen.stdout.contains("test result: ok") && seen.stdout.contains("rustc\n"), "{seen}");
}

fn sysroot() -> Option<PathBuf> {
    let homes = [Some(PathBuf::from("/usr/local/rustup")), is_root().then(|| PathBuf::from("/root/.rustup"))];
    let toolchains = homes.into_iter().flatten().map(|home| home.join("toolchains"));
    let mut all: Vec<PathBuf> = toolchains
        .filter_map(|dir| std::fs::read_dir(dir).ok())
        .flat_map(|dir| dir.flatten().map(|entry| entry.path()))
        .filter(|root| root.join("bin/cargo").is_file() && root.join("lib").is_dir())
        .collect();
    all.sort();
    // The newest stable one comes last.
    all.into_iter().rev().find(|root| !root.to_string_lossy().contains("nightly"))
}
