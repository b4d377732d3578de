//! Where clients come in. A connection waits here, without a fork, until its first bytes are there.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};

use super::per_request::{self, Way};
use super::stream::Client;

/// Most connections that wait for their first bytes. Others wait in the kernel's queue.
const MOST_WAITING: usize = 16 << 10;
/// After a failed accept, as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `ADDRESS:PORT`
    Tcp(String),
    /// A Unix socket's path.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if text.parse::<u16>().is_ok() {
            return Ok(Self::Tcp(format!("127.0.0.1:{text}")));
        }
        let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) => Ok(Self::Tcp(text.into())),
            _ => Err("neither ADDRESS:PORT nor PORT nor unix:PATH".into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

enum Door {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

impl Door {
    /// The same, to wait at.
    fn listening(&self) -> io::Result<Listening> {
        Ok(match self {
            Self::Tcp(listener) => Listening::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Self::Unix(listener, _) => {
                Listening::Unix(UnixListener::from_std(listener.try_clone()?)?)
            }
        })
    }
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    async fn accept(&self) -> io::Result<Fresh> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Fresh::Tcp(stream, peer)
            }
            Self::Unix(listener) => Fresh::Unix(listener.accept().await?.0),
        })
    }
}

/// All of them.
pub struct Doors {
    list: Vec<Door>,
    names: Vec<String>,
}

impl Doors {
    /// Listens.
    pub fn open(addresses: &[Address]) -> Result<Self, String> {
        let mut doors = Self {
            list: Vec::new(),
            names: Vec::new(),
        };
        for address in addresses {
            let failed = |error: io::Error| format!("cannot listen on {address}: {error}");
            match address {
                Address::Tcp(text) => {
                    let listener = std::net::TcpListener::bind(text).map_err(failed)?;
                    listener.set_nonblocking(true).map_err(failed)?;
                    let bound = listener.local_addr().map_err(failed)?;
                    doors.names.push(bound.to_string());
                    doors.list.push(Door::Tcp(listener));
                }
                Address::Unix(path) => {
                    remove_stale(path);
                    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
                    listener.set_nonblocking(true).map_err(failed)?;
                    doors.names.push(address.to_string());
                    doors.list.push(Door::Unix(listener, path.clone()));
                }
            }
        }
        Ok(doors)
    }

    /// Their addresses.
    pub fn names(&self) -> String {
        self.names.join(", ")
    }

    /// Lets clients in until SIGTERM or SIGINT.
    pub async fn admit(&self, way: &Arc<Way>, per_request: bool) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let waiting = Arc::new(Semaphore::new(MOST_WAITING));
        for door in &self.list {
            let (way, waiting) = (way.clone(), waiting.clone());
            let door = door.listening().map_err(text)?;
            tokio::spawn(async move { admit_all(&door, waiting, way, per_request).await });
        }
        let enough = Arc::new(Notify::new());
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let (mut told, enough) = (signal(kind).map_err(text)?, enough.clone());
            tokio::spawn(async move {
                told.recv().await;
                enough.notify_one();
            });
        }
        enough.notified().await;
        Ok(())
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        for door in &self.list {
            if let Door::Unix(_, path) = door {
                // It is ours, and nobody can connect to it any more.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Removes a socket that nobody listens on any more, as one that was killed leaves it.
fn remove_stale(path: &Path) {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}

/// A connection that has just been accepted.
enum Fresh {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Fresh {
    /// Waits for the first bytes. False if there will be none.
    async fn first_bytes(&self) -> io::Result<bool> {
        /// Looks at the first one. A socket that is said to be ready need not be.
        fn peek(socket: impl AsFd) -> io::Result<bool> {
            let mut byte = [0; 1];
            let (_, len) = recv(socket, &mut byte, RecvFlags::PEEK)?;
            Ok(len > 0)
        }
        match self {
            Self::Tcp(stream, _) => stream.async_io(Interest::READABLE, || peek(stream)).await,
            Self::Unix(stream) => stream.async_io(Interest::READABLE, || peek(stream)).await,
        }
    }

    fn into_client(self) -> io::Result<Client> {
        match self {
            Self::Tcp(stream, _) => Client::tcp(stream.into_std()?),
            Self::Unix(stream) => Ok(Client::unix(stream.into_std()?)),
        }
    }
}

async fn admit_all(door: &Listening, waiting: Arc<Semaphore>, way: Arc<Way>, per_request: bool) {
    loop {
        // It is never closed.
        let Ok(place) = waiting.clone().acquire_owned().await else {
            return;
        };
        let fresh = match door.accept().await {
            Ok(fresh) => fresh,
            Err(error) => {
                err!("forkvm: accepting a connection: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let way = way.clone();
        tokio::spawn(async move {
            let _place = place;
            let first_bytes = tokio::time::timeout(way.max_idle_time, fresh.first_bytes());
            if !matches!(first_bytes.await, Ok(Ok(true))) {
                return;
            }
            match fresh {
                Fresh::Tcp(stream, peer) if per_request => {
                    per_request::serve(stream, Some(peer), way).await;
                }
                Fresh::Unix(stream) if per_request => per_request::serve(stream, None, way).await,
                fresh => {
                    // A client that is refused finds its connection closed.
                    let _ = fresh
                        .into_client()
                        .map(|client| way.forks.hand_over(client));
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("8000"), Ok(Address::Tcp("127.0.0.1:8000".into())));
        assert_eq!(parse("[::1]:80"), Ok(Address::Tcp("[::1]:80".into())));
        assert_eq!(parse("unix:/x y"), Ok(Address::Unix("/x y".into())));
        for bad in ["", "localhost", "localhost:", "1.2.3.4:99999", "99999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
