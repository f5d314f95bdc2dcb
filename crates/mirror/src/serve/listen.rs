//! Sockets that are listened on: TCP, Unix, vsock; also handed over by who started us.

use crate::identity::Gate;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{set_tcp_quickack, socket_domain};
use sandbox_sys::vsock;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// Smart HTTP, and the endpoints.
    Http,
    /// `git://`.
    Git,
}

/// A socket that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The kernel refused.
    #[error("cannot listen on {what}")]
    Refused {
        /// Which address.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else is where the socket should be.
    #[error("cannot listen on '{}': it exists and is not a socket that nobody listens on", .0.display())]
    InTheWay(PathBuf),
    /// This kernel has no vsock.
    #[error("cannot listen on vsock port {port}: this kernel has no vsock (module `vsock`)")]
    NoVsock {
        /// Which port.
        port: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A socket that is listened on.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// Unix; removed when it is closed, if we made it.
    Unix(UnixListener, Option<PathBuf>),
    /// vsock.
    Vsock(AsyncFd<OwnedFd>),
}

/// A socket, what is spoken on it, and who is there.
pub struct Listener {
    /// The socket.
    pub socket: Socket,
    /// What is spoken.
    pub speaks: Speaks,
    /// Who is there.
    pub gate: Gate,
    /// With TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Listener");
        shown.field("socket", &self.socket).field("speaks", &self.speaks).field("gate", &self.gate);
        shown.field("tls", &self.tls.is_some()).finish()
    }
}

impl Socket {
    /// Listens on a TCP address; port 0 takes any.
    pub async fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        let refused = |source| ListenError::Refused { what: address.to_string(), source };
        Ok(Self::Tcp(TcpListener::bind(address).await.map_err(refused)?))
    }

    /// Listens on a Unix socket that `mode` says who may use. What an ended service left there goes.
    pub fn unix(path: &Path, mode: u32) -> Result<Self, ListenError> {
        let refused = |source| ListenError::Refused { what: format!("'{}'", path.display()), source };
        if let Ok(found) = std::fs::symlink_metadata(path) {
            let dead = || std::os::unix::net::UnixStream::connect(path).is_err();
            if !found.file_type().is_socket() || !dead() {
                return Err(ListenError::InTheWay(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(refused)?;
        }
        let listener = UnixListener::bind(path).map_err(refused)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(refused)?;
        Ok(Self::Unix(listener, Some(path.to_owned())))
    }

    /// Listens on a vsock port, for guests of this machine and itself.
    pub fn vsock(port: u32) -> Result<Self, ListenError> {
        match vsock::listen(port) {
            Ok(fd) => registered(fd)
                .map(Self::Vsock)
                .map_err(|source| ListenError::Refused { what: format!("vsock port {port}"), source }),
            Err(source) if vsock::is_missing(&source) => Err(ListenError::NoVsock { port, source }),
            Err(source) => Err(ListenError::Refused { what: format!("vsock port {port}"), source }),
        }
    }

    /// Takes over a socket that is listening already.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        match socket_domain(&fd)? {
            AddressFamily::INET | AddressFamily::INET6 => Ok(Self::Tcp(TcpListener::from_std(fd.into())?)),
            AddressFamily::UNIX => Ok(Self::Unix(UnixListener::from_std(fd.into())?, None)),
            AddressFamily::VSOCK => Ok(Self::Vsock(registered(fd)?)),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The address, on TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            _ => None,
        }
    }

    /// Waits for a client.
    pub async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Tiny exchanges would wait for one another's acknowledgement.
                let _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Some(peer)))
            }
            Self::Unix(listener, _) => Ok((Stream::Unix(listener.accept().await?.0), None)),
            Self::Vsock(listener) => loop {
                let mut ready = listener.readable().await?;
                match ready.try_io(|fd| vsock::accept(fd.get_ref())) {
                    Ok(accepted) => return Ok((Stream::Vsock(registered(accepted?)?), None)),
                    Err(_) => continue,
                }
            },
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, Some(path)) = self {
            // A socket that another service has put there since answers; ours does not any more.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
    /// vsock.
    Vsock(AsyncFd<OwnedFd>),
}

impl Stream {
    /// Has the kernel acknowledge at once what comes next. It forgets after a while, so this is said
    /// again after every read.
    pub fn quickack(&self) {
        if let Self::Tcp(stream) = self {
            let _ = set_tcp_quickack(stream.as_fd(), true);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => {
                let polled = Pin::new(&mut *stream).poll_read(cx, buffer);
                let _ = set_tcp_quickack(stream.as_fd(), true);
                polled
            }
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Vsock(fd) => loop {
                let mut ready = std::task::ready!(fd.poll_read_ready(cx))?;
                let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), buffer.initialize_unfilled())?));
                if let Ok(read) = read {
                    return Poll::Ready(read.map(|n| buffer.advance(n)));
                }
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Vsock(fd) => loop {
                let mut ready = std::task::ready!(fd.poll_write_ready(cx))?;
                let send = |fd: &AsyncFd<OwnedFd>| {
                    Ok(rustix::net::send(fd.get_ref(), bytes, rustix::net::SendFlags::NOSIGNAL)?)
                };
                if let Ok(written) = ready.try_io(send) {
                    return Poll::Ready(written);
                }
            },
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            vsock @ Self::Vsock(_) => {
                let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
                Pin::new(vsock).poll_write(cx, first)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        !matches!(self, Self::Vsock(_))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Vsock(fd) => {
                let _ = rustix::net::shutdown(fd.get_ref(), rustix::net::Shutdown::Write);
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// Has the runtime watch a socket. (`register` asks for a descriptor that stays what it is; an
/// `OwnedFd` that nobody else has does, and this crate has no `unsafe`.)
#[allow(deprecated, reason = "the other constructor is unsafe")]
fn registered(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn echoes(socket: Socket, mut client: impl AsyncRead + AsyncWrite + Unpin) {
        let (mut server, _) = socket.accept().await.unwrap();
        client.write_all(b"there").await.unwrap();
        let mut buffer = [0; 5];
        server.read_exact(&mut buffer).await.unwrap();
        server.write_all(&buffer).await.unwrap();
        server.shutdown().await.unwrap();
        let mut back = String::new();
        client.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "there");
    }

    #[tokio::test]
    async fn tcp() {
        let socket = Socket::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let client = TcpStream::connect(socket.address().unwrap()).await.unwrap();
        echoes(socket, client).await;
    }

    #[tokio::test]
    async fn a_unix_socket_replaces_a_dead_one_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::unix(&path, 0o600).unwrap();
        let said = Socket::unix(&path, 0o600).unwrap_err().to_string();
        let shown = path.display();
        assert_eq!(said, format!("cannot listen on '{shown}': it exists and is not a socket that nobody listens on"));
        // Who looked whether it is alive is a client too.
        drop(socket.accept().await.unwrap());
        let client = UnixStream::connect(&path).await.unwrap();
        echoes(socket, client).await;
        assert!(!path.exists());
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(Socket::unix(&path, 0o600), Err(ListenError::InTheWay(_))));
        let said = Socket::unix(&dir.path().join("no/s"), 0o600).unwrap_err().to_string();
        assert_eq!(said, format!("cannot listen on '{}'", dir.path().join("no/s").display()));
    }

    /// Both ends on this machine, where the kernel can do that; else the refusal that a user would see.
    #[tokio::test]
    async fn vsock_or_its_refusal() {
        let socket = match Socket::vsock(vsock::ANY_PORT) {
            Ok(socket) => socket,
            Err(error) => {
                assert!(error.to_string().starts_with("cannot listen on vsock port"), "{error}");
                eprintln!("skipped: {error}");
                return;
            }
        };
        let Socket::Vsock(fd) = &socket else { unreachable!() };
        let port = vsock::port(fd.get_ref()).unwrap();
        match vsock::connect_local(port) {
            Ok(client) => echoes(socket, Stream::Vsock(registered(client).unwrap())).await,
            Err(error) => eprintln!("skipped: no vsock loopback on this kernel: {error}"),
        }
    }
}
