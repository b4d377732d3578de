//! `--per-request`: we speak HTTP/1.1 with the client, whose connection stays open, and each of its requests goes to a fork
//! of its own on a fresh connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, Version, client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::time::sleep_until;

use super::inside::Inside;
use super::ledger::{Body, Ledger};
use super::link::{GRACE, Link};
use super::observed::record::{Begun, End};
use super::request_body::{NoBody, RequestBody};
use super::seats::Seat;
use super::stream::{Client, Facts, Socket};
use super::upgraded;
use super::watched::Watched;

/// Most bytes of a request's headers, and what is kept of a body that nobody takes.
const BUFFER: usize = 64 << 10;

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

/// Serves a client's connection until it ends.
pub async fn serve(stream: Watched, peer: Option<SocketAddr>, seat: Seat, inside: Arc<Inside>) {
    let max_idle_time = inside.current.get().max_idle_time;
    let link = Arc::new(Link::new(peer, seat, inside));
    let of_service = link.clone();
    let service = service_fn(move |request| {
        let link = of_service.clone();
        async move { Ok::<_, Infallible>(answer(request, link).await) }
    });
    let connection = server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // From a request's end to the end of the next one's head.
        .header_read_timeout(max_idle_time)
        .max_buf_size(BUFFER)
        .half_close(true)
        .serve_connection(TokioIo::new(stream.clone()), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut left = pin!(link.left(&stream));
    let mut goes_on = true;
    let mut look = Instant::now() + link.longest();
    loop {
        tokio::select! {
            // A client that leaves, or does not speak HTTP, is no news.
            _ = &mut connection => return,
            () = link.inside.ending.begins(), if goes_on => {
                goes_on = false;
                connection.as_mut().graceful_shutdown();
            }
            () = link.seat.lost() => return,
            // Nobody is there to take the answer: the fork is told so.
            () = &mut left => return,
            () = sleep_until(look.into()) => {
                // It does not take what the program has answered long ago.
                let due = link.seat.busy_since().unwrap_or(Instant::now()) + link.longest();
                if due <= look {
                    return;
                }
                look = due;
            }
        }
    }
}

async fn answer(request: Request<Incoming>, link: Arc<Link>) -> Response<Body> {
    let mut ledger = Ledger::open(&request, link.clone());
    match forward(request, &mut ledger, &link).await {
        Ok(Answer::Plain(mut response)) => {
            ledger.set_status(response.status());
            let headers = response.headers_mut();
            if headers.contains_key(TRANSFER_ENCODING) {
                // It does not count beside this (RFC 9112, 6.3), which is taken away.
                headers.remove(CONTENT_LENGTH);
            }
            let until_close = !headers.contains_key(CONTENT_LENGTH) && !is_chunked(headers);
            strip(headers);
            response.map(|body| Body::new(body.boxed(), Some(ledger), until_close))
        }
        Ok(Answer::Upgrade(response, both)) => {
            ledger.set_status(response.status());
            tokio::spawn(upgraded::serve(both, ledger));
            response.map(|()| {
                Body::new(
                    Empty::new().map_err(|never| match never {}).boxed(),
                    None,
                    false,
                )
            })
        }
        Err(failed) => {
            ledger.set_status(failed.status());
            failed.response(ledger)
        }
    }
}

/// What the program has answered.
enum Answer {
    Plain(Response<Incoming>),
    /// Both go over to another protocol.
    Upgrade(Response<()>, upgraded::Both),
}

/// Why there is no answer of the program's.
enum Failed {
    /// Too many requests wait, or this one did for too long.
    Full,
    /// The program has ended the connection without one, or sent something else.
    NoAnswer,
    /// It took too long.
    TooLate,
    /// The host could not make a connection.
    Host,
    /// The request's body did not come.
    Body(NoBody),
    /// It is not for a program to answer.
    Request(Unfit),
}

/// Why a request is not passed on.
enum Unfit {
    /// CONNECT: its answer would be a tunnel's beginning.
    Tunnel,
    /// Who is before us and the program could each take another one for it.
    Hosts,
}

impl From<NoBody> for Failed {
    fn from(why: NoBody) -> Self {
        Self::Body(why)
    }
}

impl Failed {
    fn of(end: Option<End>) -> Self {
        match end {
            Some(End::Refused | End::NoFork) => Self::Full,
            Some(End::TimedOut) => Self::TooLate,
            _ => Self::NoAnswer,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Full => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoAnswer => StatusCode::BAD_GATEWAY,
            Self::TooLate => StatusCode::GATEWAY_TIMEOUT,
            Self::Host => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Body(NoBody::TooSlow) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(NoBody::Broken) | Self::Request(Unfit::Hosts) => StatusCode::BAD_REQUEST,
            Self::Request(Unfit::Tunnel) => StatusCode::NOT_IMPLEMENTED,
        }
    }

    fn response(&self, ledger: Ledger) -> Response<Body> {
        let text = match self {
            Self::Full => "all forks are busy\n",
            Self::NoAnswer => "the program gave no answer\n",
            Self::TooLate => "the program took too long\n",
            Self::Host => "no connection could be made\n",
            Self::Body(NoBody::TooSlow) => "the request's body came too slowly\n",
            Self::Body(NoBody::Broken) => "the request's body is broken\n",
            Self::Request(Unfit::Tunnel) => "no tunnels are made\n",
            Self::Request(Unfit::Hosts) => "the request has more than one Host\n",
        };
        let body = Full::new(Bytes::from_static(text.as_bytes()));
        let body = Body::new(
            body.map_err(|never| match never {}).boxed(),
            Some(ledger),
            false,
        );
        let mut response = Response::new(body);
        *response.status_mut() = self.status();
        if let Self::Full = self {
            let soon = HeaderValue::from_static("1");
            response.headers_mut().insert(RETRY_AFTER, soon);
        }
        response
    }
}

async fn forward(
    mut request: Request<Incoming>,
    ledger: &mut Ledger,
    link: &Link,
) -> Result<Answer, Failed> {
    check(&request).map_err(Failed::Request)?;
    let upgrade = wants_upgrade(&request);
    let generation = link.inside.current.get();
    let now = Instant::now();
    // Nothing goes over to another protocol before its body is there.
    let body_until = now + generation.max_time;
    let deadline = match upgrade {
        Some(_) => now + generation.max_upgraded_time,
        None => body_until,
    };
    drop(generation);
    let ours_upgraded = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    prepare(&mut request, upgrade);
    let (head, body) = request.into_parts();
    let body = link.inside.beginnings.of(body, body_until).await?;
    let request = Request::from_parts(head, body);
    // Until now it gives way to others.
    if !link.begin() {
        return Err(Failed::Full);
    }
    let ours = connect(ledger, link, deadline)?;
    let sent = send(ours, request);
    let mut response = match tokio::time::timeout_at((deadline + GRACE).into(), sent).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => return Err(Failed::of(ledger.end(GRACE).await)),
        Err(_) => return Err(Failed::TooLate),
    };
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // What follows would be for a client that has not asked for it.
        let client = ours_upgraded.ok_or(Failed::NoAnswer)?;
        let program = hyper::upgrade::on(&mut response);
        let both = upgraded::Both {
            client,
            program,
            deadline: deadline + GRACE,
        };
        return Ok(Answer::Upgrade(response.map(drop), both));
    }
    Ok(Answer::Plain(response))
}

/// Sends a request and waits for the head of its answer.
async fn send(
    stream: UnixStream,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, connection): (SendRequest<RequestBody>, _) =
        client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await
}

/// A connection to a fork.
fn connect(ledger: &mut Ledger, link: &Link, deadline: Instant) -> Result<UnixStream, Failed> {
    let pair = || -> io::Result<_> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs))
    };
    let (ours, theirs) = pair().map_err(|_| Failed::Host)?;
    let facts = Facts {
        peer: link.peer,
        begun: Begun::now(),
        deadline,
        ending: link.inside.ending.clone(),
    };
    let client = Client::new(Socket::Pair(theirs), facts, ledger.expect_served());
    link.inside.current.get().forks.hand_over(client);
    Ok(ours)
}

/// Whether a request can be passed on.
fn check(request: &Request<Incoming>) -> Result<(), Unfit> {
    if request.method() == Method::CONNECT {
        return Err(Unfit::Tunnel);
    }
    // RFC 9112, 3.2.
    if request.headers().get_all(HOST).iter().nth(1).is_some() {
        return Err(Unfit::Hosts);
    }
    Ok(())
}

/// The protocol that a client wants to go over to. In HTTP/1.0 there is no such wish (RFC 9110, 7.8).
fn wants_upgrade(request: &Request<Incoming>) -> Option<HeaderValue> {
    if request.version() != Version::HTTP_11 {
        return None;
    }
    let headers = request.headers();
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

/// Whether a body tells its end by itself: its last coding says so.
fn is_chunked(headers: &HeaderMap) -> bool {
    let last = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    last.and_then(|value| value.to_str().ok())
        .and_then(|value| value.rsplit(',').next())
        .is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"))
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
