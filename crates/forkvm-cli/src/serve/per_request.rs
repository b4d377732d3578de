//! `--per-request`: we speak HTTP/1.1 with the client, whose connection stays open, and each of its requests goes to a fork
//! of its own on a fresh connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri, Version, client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::forks::Forks;
use super::stream::Client;

/// Longest time for a request's headers.
const HEADERS: Duration = Duration::from_secs(30);
/// How much longer than the fork's own limit an answer is waited for, which ends it first.
const GRACE: Duration = Duration::from_secs(1);

/// Headers that are about one connection (RFC 9110, 7.6.1), beside those that `Connection` names.
const OF_CONNECTION: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

type Body = BoxBody<Bytes, hyper::Error>;

/// Where requests go, and how long they may take.
#[derive(Clone)]
pub struct Way {
    pub forks: Forks,
    pub max_request_time: Duration,
    pub max_idle_time: Duration,
}

/// Serves a client's connection until it ends.
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Option<SocketAddr>,
    way: Arc<Way>,
) {
    let service = service_fn(move |request| {
        let way = way.clone();
        async move { Ok::<_, Infallible>(answer(request, peer, &way).await) }
    });
    // A client that leaves, or does not speak HTTP, is no news.
    let _ = server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

async fn answer(request: Request<Incoming>, peer: Option<SocketAddr>, way: &Way) -> Response<Body> {
    match forward(request, peer, way).await {
        Ok(response) => response,
        Err(failed) => failed.response(),
    }
}

/// Why there is no answer of the program's.
enum Failed {
    /// Too many requests wait.
    Full,
    /// The program has ended the connection without one, or sent something else.
    NoAnswer,
    /// It took too long.
    TooLate,
    /// The host could not make a connection.
    Host,
}

impl Failed {
    fn response(&self) -> Response<Body> {
        let (status, text) = match self {
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, "all forks are busy\n"),
            Self::NoAnswer => (StatusCode::BAD_GATEWAY, "the program gave no answer\n"),
            Self::TooLate => (StatusCode::GATEWAY_TIMEOUT, "the program took too long\n"),
            Self::Host => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "no connection could be made\n",
            ),
        };
        let body = Full::new(Bytes::from_static(text.as_bytes()));
        let mut response = Response::new(body.map_err(|never| match never {}).boxed());
        *response.status_mut() = status;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let soon = HeaderValue::from_static("1");
            response.headers_mut().insert(RETRY_AFTER, soon);
        }
        response
    }
}

async fn forward(
    mut request: Request<Incoming>,
    peer: Option<SocketAddr>,
    way: &Way,
) -> Result<Response<Body>, Failed> {
    let ours = connect(peer, &way.forks)?;
    let upgrade = wants_upgrade(request.headers());
    let ours_upgraded = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    prepare(&mut request, upgrade);
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(ours))
        .await
        .map_err(|_| Failed::NoAnswer)?;
    tokio::spawn(connection.with_upgrades());
    let answer = tokio::time::timeout(way.max_request_time + GRACE, sender.send_request(request));
    let mut response = answer
        .await
        .map_err(|_| Failed::TooLate)?
        .map_err(|_| Failed::NoAnswer)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(ours) = ours_upgraded
    {
        let theirs = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) {
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                // Until either leaves.
                let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
            }
        });
    } else {
        strip(response.headers_mut());
    }
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(BodyExt::boxed))
}

/// A connection to a fork.
fn connect(peer: Option<SocketAddr>, forks: &Forks) -> Result<UnixStream, Failed> {
    let pair = || -> io::Result<_> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs))
    };
    let (ours, theirs) = pair().map_err(|_| Failed::Host)?;
    if forks.hand_over(Client::forwarded(theirs, peer)) {
        Ok(ours)
    } else {
        Err(Failed::Full)
    }
}

/// The protocol that a client wants to go over to.
fn wants_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| named).cloned()
}

/// Makes a request one for a connection of its own.
fn prepare(request: &mut Request<Incoming>, upgrade: Option<HeaderValue>) {
    let authority = request.uri().authority().cloned();
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip(headers);
    // What stands in the URL counts (RFC 9112, 3.2.2).
    if let Some(host) = authority.and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        headers.insert(HOST, host);
    }
    let connection = if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        "upgrade"
    } else {
        "close"
    };
    headers.insert(CONNECTION, HeaderValue::from_static(connection));
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_CONNECTION) {
        headers.remove(name);
    }
}
