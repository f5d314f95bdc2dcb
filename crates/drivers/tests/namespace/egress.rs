//! The one way out of a sandbox whose network is `allow`: a socket that listens inside and is
//! owned outside.

use crate::kit::Kit;
use sandbox_core::launch::{Network, PROXY_PORT};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

pub fn connections_arrive_outside() -> Result<(), String> {
    let mut kit = Kit::new();
    kit.spec.network = Network::Allow;
    // Something of the host's at the same port is not in the way, and is not reached.
    let hosts = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let hosts_port = hosts.local_addr().unwrap().port();
    let mut sandbox = kit.launch();
    let listener = TcpListener::from(sandbox.machine.take_egress().expect("a listening socket"));
    assert!(sandbox.machine.take_egress().is_none(), "it is handed out once");
    assert_eq!(listener.local_addr().unwrap().port(), PROXY_PORT);
    let proxy = std::thread::spawn(move || {
        for answer in ["first", "second"] {
            let (mut stream, peer) = listener.accept().unwrap();
            assert!(peer.ip().is_loopback(), "{peer}");
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut asked = [0u8; 4];
            stream.read_exact(&mut asked).unwrap();
            assert_eq!(&asked, b"ask\n");
            writeln!(stream, "{answer}").unwrap();
        }
    });
    let ask = format!("exec 3<>/dev/tcp/127.0.0.1/{PROXY_PORT}; echo ask >&3; cat <&3");
    let ask = format!("bash -c '{ask}'");
    assert_eq!(sandbox.out(&ask), "first\n");
    assert_eq!(sandbox.out(&ask), "second\n");
    // The thread had the only descriptor of it: with the proxy goes the network.
    proxy.join().unwrap();
    sandbox.contained("G09", &format!("! {ask} 2>/dev/null"));
    sandbox.contained("G01", "test $(grep -c : /proc/net/dev) = 1");
    let direct = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{hosts_port}' 2>/dev/null");
    sandbox.contained("the host's loopback", &format!("! {direct}"));
    assert!(TcpStream::connect(("127.0.0.1", hosts_port)).is_ok(), "the control: the port is open on the host");
    Ok(())
}

pub fn without_a_policy_nothing_listens() -> Result<(), String> {
    let kit = Kit::new();
    let mut sandbox = kit.launch();
    assert!(sandbox.machine.take_egress().is_none());
    sandbox.contained("no proxy", &format!("! bash -c 'exec 3<>/dev/tcp/127.0.0.1/{PROXY_PORT}' 2>/dev/null"));
    Ok(())
}
