//! New connections: names looked up, addresses checked, TLS begun.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use forkvm::{FetchError, Reach};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::names::Names;
use crate::own::Own;
use crate::target::{Origin, Place, Target};
use crate::tls::Tls;

/// Most bytes of a response's head, and of what is read ahead of its body.
const MOST_HEAD: usize = 64 << 10;
/// Most headers of a response.
const MOST_HEADERS: usize = 128;

/// A connection that takes requests.
pub type Connection = SendRequest<Full<Bytes>>;

/// Makes a client's connections.
pub struct Connector {
    pub reach: Reach,
    pub names: Names,
    pub tls: Tls,
}

/// How a connection is to be made.
#[derive(Debug, Clone)]
pub struct How {
    /// Whatever name a certificate has.
    pub unverified: bool,
    /// To the program's own Varnish.
    pub own: Option<Arc<Own>>,
}

impl Connector {
    /// Looks whether a target may be asked, as far as can be seen before its name is looked up.
    pub fn check(&self, target: &Target) -> Result<(), FetchError> {
        let Origin { place, port, .. } = &target.origin;
        let allowed = match place {
            Place::Address(ip) => self.reach.allows(SocketAddr::new(*ip, *port), None),
            Place::Name(name) => self.reach.has_name(name),
        };
        match allowed {
            true => Ok(()),
            false => Err(FetchError::NotAllowed(format!(
                "{place}:{port} may not be reached (allow_net does not name it{})",
                match place {
                    Place::Address(_) => ", as it has to by its address where that is not public",
                    Place::Name(_) => "",
                }
            ))),
        }
    }

    /// Connects, before this time.
    pub async fn connect(
        &self,
        origin: &Origin,
        how: &How,
        deadline: Instant,
    ) -> Result<Connection, FetchError> {
        if let Some(socket) = how.own.as_ref().and_then(|own| own.socket()) {
            let stream = UnixStream::connect(socket).await;
            return begin(stream.map_err(|error| unreachable(&socket.display(), &error))?).await;
        }
        let stream = self.stream(origin, how, deadline).await?;
        if !origin.tls {
            return begin(stream).await;
        }
        let name = match &origin.place {
            Place::Address(ip) => ServerName::from(*ip),
            Place::Name(name) => ServerName::try_from(name.clone())
                .map_err(|error| FetchError::Tls(error.to_string()))?,
        };
        let tls = TlsConnector::from(self.tls.config(how.unverified)?);
        let stream = tls.connect(name, stream).await;
        begin(stream.map_err(|error| FetchError::Tls(error.to_string()))?).await
    }

    /// Connects to the first that can be of the addresses that may be.
    async fn stream(
        &self,
        origin: &Origin,
        how: &How,
        deadline: Instant,
    ) -> Result<TcpStream, FetchError> {
        let addresses = self.addresses(origin, how).await?;
        let mut failed = None;
        for (index, address) in addresses.iter().enumerate() {
            // Each has its part of the time, so that one that says nothing is not all.
            let left = deadline.saturating_duration_since(Instant::now());
            let part = left / (addresses.len() - index) as u32;
            let to = SocketAddr::new(*address, origin.port);
            match timeout_at(Instant::now() + part, TcpStream::connect(to)).await {
                Ok(Ok(stream)) => {
                    // What is small need not wait for more.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => failed = Some(unreachable(&to, &error)),
                Err(_) => failed = Some(FetchError::Timeout),
            }
        }
        Err(failed.unwrap_or_else(|| FetchError::NoAddress(origin.place.to_string())))
    }

    /// The addresses that may be connected to; the program's own Varnish is where its operator says.
    async fn addresses(&self, origin: &Origin, how: &How) -> Result<Vec<IpAddr>, FetchError> {
        let name = match &origin.place {
            Place::Address(ip) => return Ok(vec![*ip]),
            Place::Name(name) => name,
        };
        let found = self.names.addresses(name).await?;
        if how.own.is_some() {
            return Ok(found);
        }
        let may = |ip: &&IpAddr| {
            self.reach
                .allows(SocketAddr::new(**ip, origin.port), Some(name))
        };
        let allowed: Vec<IpAddr> = found.iter().filter(may).copied().collect();
        match (allowed.is_empty(), found.first()) {
            (true, Some(first)) => Err(FetchError::NotAllowed(format!(
                "{name} has the address {first}, and port {} of that may not be reached (what is not public, allow_net has to \
                 name by its address)",
                origin.port
            ))),
            _ => Ok(allowed),
        }
    }
}

fn unreachable(to: &dyn std::fmt::Display, error: &std::io::Error) -> FetchError {
    FetchError::Unreachable(format!("{to}: {error}"))
}

/// Has HTTP begin on a connection.
async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Connection, FetchError> {
    let begun = http1::Builder::new()
        .max_buf_size(MOST_HEAD)
        .max_headers(MOST_HEADERS)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = begun.map_err(|error| FetchError::Protocol(error.to_string()))?;
    // It ends with its sender. What goes wrong is told whoever waits for an answer.
    tokio::spawn(async {
        let _ = connection.await;
    });
    Ok(sender)
}
