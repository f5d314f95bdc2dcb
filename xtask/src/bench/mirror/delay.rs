//! A relay that makes a loopback connection as slow as a far one: every byte arrives half a round trip later.
//!
//! `tc netem` would do it in the kernel; where the kernel has it not (`sch_netem`), this does. Bandwidth is not
//! limited, and a connection that is opened pays one round trip.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// Listens on a port of its own; what connects there reaches `to` with this round trip.
pub fn relay(to: SocketAddr, round_trip: Duration) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    spawn(move || {
        for client in listener.incoming().flatten() {
            spawn(move || {
                // The handshake of a far connection.
                sleep(round_trip);
                let Ok(server) = TcpStream::connect(to) else { return };
                let (Ok(client_again), Ok(server_again)) = (client.try_clone(), server.try_clone()) else { return };
                spawn(move || carry(client_again, server_again, round_trip / 2));
                carry(server, client, round_trip / 2);
            });
        }
    });
    Ok(address)
}

/// Carries bytes one way until the end of them, each `late`.
fn carry(mut from: TcpStream, mut to: TcpStream, late: Duration) {
    let _ = to.set_nodelay(true);
    // As much as a window of the network holds; the sender waits when it is full.
    let (sender, receiver) = sync_channel::<(Instant, Vec<u8>)>(1024);
    let writer = spawn(move || {
        for (due, bytes) in receiver {
            sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if sender.send((Instant::now() + late, buffer[..n].to_vec())).is_err() {
            break;
        }
    }
    drop(sender);
    let _ = writer.join();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_comes_late_and_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let echo = spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            peer.read_to_end(&mut bytes).unwrap();
            peer.write_all(&bytes).unwrap();
        });
        let start = Instant::now();
        let mut client = TcpStream::connect(relay(to, Duration::from_millis(40)).unwrap()).unwrap();
        let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        echo.join().unwrap();
        assert!(back == sent);
        // One round trip to connect, one there and back: never less.
        assert!(start.elapsed() >= Duration::from_millis(80));
    }
}
