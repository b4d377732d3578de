//! Where clients come in: the listening sockets, ours and those that a service manager has opened.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::address::Address;

/// A listening socket.
#[derive(Debug)]
enum Door {
    Tcp(std::net::TcpListener),
    /// With its path if it is ours to remove.
    Unix(std::os::unix::net::UnixListener, Option<PathBuf>),
}

/// Listening sockets.
#[derive(Debug)]
pub struct Doors {
    list: Vec<Door>,
    names: Vec<String>,
}

/// A connection that has just been accepted.
pub enum Fresh {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// A door that somebody waits at.
pub enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    /// Waits for a connection.
    pub async fn accept(&self) -> io::Result<Fresh> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Fresh::Tcp(stream, peer)
            }
            Self::Unix(listener) => Fresh::Unix(listener.accept().await?.0),
        })
    }
}

impl Doors {
    /// None.
    pub fn none() -> Self {
        Self {
            list: Vec::new(),
            names: Vec::new(),
        }
    }

    /// The sockets that a service manager has opened for us (sd_listen_fds(3)).
    pub fn inherited() -> Result<Self, String> {
        let mut doors = Self::none();
        let mut given = ListenFd::from_env();
        for number in 0..given.len() {
            let door = match given.take_tcp_listener(number) {
                Ok(Some(listener)) => Door::Tcp(listener),
                Ok(None) => continue,
                Err(_) => match given.take_unix_listener(number) {
                    Ok(Some(listener)) => Door::Unix(listener, None),
                    Ok(None) => continue,
                    Err(error) => {
                        return Err(format!(
                            "the service manager's socket {number} is no listening stream of TCP or Unix: {error}"
                        ));
                    }
                },
            };
            let failed =
                |error: io::Error| format!("the service manager's socket {number}: {error}");
            doors.names.push(door.name().map_err(failed)?);
            door.set_nonblocking().map_err(failed)?;
            doors.list.push(door);
        }
        Ok(doors)
    }

    /// Listens on these, too.
    pub fn open(&mut self, addresses: &[Address]) -> Result<(), String> {
        for address in addresses {
            let failed = |error: io::Error| format!("cannot listen on {address}: {error}");
            let door = match address {
                Address::Tcp(text) => Door::Tcp(std::net::TcpListener::bind(text).map_err(failed)?),
                Address::Unix(path) => {
                    remove_stale(path);
                    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
                    Door::Unix(listener, Some(path.clone()))
                }
            };
            door.set_nonblocking().map_err(failed)?;
            self.names.push(door.name().map_err(failed)?);
            self.list.push(door);
        }
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Their addresses.
    pub fn names(&self) -> String {
        self.names.join(", ")
    }

    /// The same, to wait at.
    pub fn listening(&self) -> Result<Vec<Listening>, String> {
        let all = self.list.iter().map(Door::listening);
        all.collect::<io::Result<_>>()
            .map_err(|error| error.to_string())
    }
}

impl Door {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener, _) => listener.set_nonblocking(true),
        }
    }

    fn name(&self) -> io::Result<String> {
        Ok(match self {
            Self::Tcp(listener) => listener.local_addr()?.to_string(),
            Self::Unix(listener, _) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new("(no path)"));
                format!("unix:{}", path.display())
            }
        })
    }

    fn listening(&self) -> io::Result<Listening> {
        Ok(match self {
            Self::Tcp(listener) => Listening::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Self::Unix(listener, _) => {
                Listening::Unix(UnixListener::from_std(listener.try_clone()?)?)
            }
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Self::Unix(_, Some(path)) = self {
            // It is ours, and nobody can connect to it any more.
            let _ = std::fs::remove_file(path);
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
