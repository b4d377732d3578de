//! HTTP for `forkvm dev`: a request becomes the program's, and its answer the response.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkvm::{Answer, Failure, Header, Request};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::load::Loaded;
use super::streamed;

/// Most connections at once; others wait.
pub const MOST_CONNECTIONS: usize = 32;
/// Longest time for a request's headers.
const HEADERS: Duration = Duration::from_secs(30);

/// Header fields that are about the connection, which is ours.
const OF_CONNECTION: [&str; 6] = [
    "connection",
    "content-length",
    "keep-alive",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// A response's body: all there, or still being made.
type Body = Either<Full<Bytes>, Channel<Bytes, Failure>>;

/// A request as a blocking thread gets it.
struct Asked {
    head: Parts,
    body: Bytes,
    arg: Arc<str>,
}

/// What requests get beside the program's settings.
#[derive(Clone)]
pub struct Given {
    /// The free argument.
    pub arg: Arc<str>,
    /// Longest time for a request's body.
    pub max_body_time: Duration,
}

/// Answers requests until the process ends.
pub async fn serve(listener: TcpListener, loaded: Arc<Loaded>, given: Given) {
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        // It is never closed.
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                err!("forkvm: {error}");
                // No descriptors, say: it may pass.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (loaded, given) = (loaded.clone(), given.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (loaded, given) = (loaded.clone(), given.clone());
                async move { Ok::<_, Infallible>(respond(&loaded, request, given).await) }
            });
            // A client that leaves is no news.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .title_case_headers(true)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}

async fn respond(
    loaded: &Arc<Loaded>,
    request: hyper::Request<Incoming>,
    given: Given,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let what = format!("{} {}", head.method, head.uri);
    let most = loaded.config().limits.max_request_memory as usize;
    let body = tokio::time::timeout(given.max_body_time, Limited::new(body, most).collect());
    let response = match body.await {
        Ok(Ok(body)) => {
            let body = body.to_bytes();
            let arg = given.arg;
            let asked = Asked { head, body, arg };
            let loaded = loaded.clone();
            let answered = tokio::task::spawn_blocking(move || ask(&loaded, &asked));
            answered
                .await
                .unwrap_or_else(|error| Err(Refused::failed(format!("internal error: {error}"))))
        }
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Refused {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            client: "The request body is too large.\n",
            why: format!("its body is larger than --max-request-memory ({most} bytes)"),
        }),
        Ok(Err(error)) => Err(Refused::busy(format!("request body: {error}"))),
        Err(_) => Err(Refused {
            status: StatusCode::REQUEST_TIMEOUT,
            client: "The request body came too slowly.\n",
            why: "its body took longer than --max-body-time".into(),
        }),
    };
    match response {
        Ok(response) => {
            err!("{what} {}", response.status().as_u16());
            response
        }
        Err(refused) => {
            err!("{what} {}: {}", refused.status.as_u16(), refused.why);
            refused.response()
        }
    }
}

/// Why there is no answer of the program's.
struct Refused {
    status: StatusCode,
    /// For the client.
    client: &'static str,
    /// For the terminal.
    why: String,
}

impl Refused {
    fn failed(why: String) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            client: "The service failed.\n",
            why,
        }
    }

    fn busy(why: String) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            client: "The service is busy, try again.\n",
            why,
        }
    }

    fn response(self) -> Response<Body> {
        let mut response = Response::new(Either::Left(Full::from(self.client)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(CONTENT_TYPE, text);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        let why = failure.to_string();
        match failure.is_busy() {
            true => Self::busy(why),
            false => Self::failed(why),
        }
    }
}

/// Has the program answer. Blocks.
fn ask(loaded: &Arc<Loaded>, asked: &Asked) -> Result<Response<Body>, Refused> {
    let not_ready = || Refused::busy("the program has not started, see above".into());
    let program = loaded.program().ok_or_else(not_ready)?;
    let url = asked.head.uri.path_and_query();
    let headers: Vec<_> = asked.head.headers.iter().map(header).collect();
    let request = Request {
        method: asked.head.method.as_str(),
        url: url.map_or("/", |url| url.as_str()).as_bytes(),
        arg: asked.arg.as_bytes(),
        headers: &headers,
        body: &asked.body,
    };
    let deadline = Instant::now() + loaded.config().limits.max_request_time;
    let mut terminal = loaded.terminal();
    let answer = program.answer(&request, deadline, &mut terminal)?;
    if let Some(failure) = answer.failure() {
        err!("forkvm: answered by on_error: {failure}");
    }
    response(loaded, answer, &asked.head)
}

/// A header as the program sees it. Names have the usual spelling: which one the client used is lost by now.
fn header<'a>((name, value): (&HeaderName, &'a HeaderValue)) -> Header<'a> {
    let words = name.as_str().split('-').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_ascii_uppercase() + rest
    });
    Header::new(words.collect::<Vec<_>>().join("-"), value.as_bytes())
}

/// The program's answer as a response; without its body to HEAD.
fn response(
    loaded: &Arc<Loaded>,
    mut answer: Answer,
    asked: &Parts,
) -> Result<Response<Body>, Refused> {
    let unsendable = |what: &dyn std::fmt::Display| {
        Refused::failed(format!("its response can't be sent: {what}"))
    };
    let status = StatusCode::from_u16(answer.status()).map_err(|error| unsendable(&error))?;
    let has_body = !matches!(answer.status(), 204 | 304);
    let is_sent = has_body && asked.method != Method::HEAD;
    let streaming = answer.take_streaming().filter(|_| is_sent);
    let mut body = Vec::new();
    if is_sent {
        let len = usize::try_from(answer.body_len()).map_err(|error| unsendable(&error))?;
        body.try_reserve_exact(len)
            .map_err(|error| Refused::busy(error.to_string()))?;
        body.resize(len, 0);
        let mut filled = 0;
        while filled < len {
            match answer.read_body(&mut body[filled..]) {
                0 => return Err(unsendable(&"its body ended too early")),
                n => filled += n,
            }
        }
    }
    let body = match streaming {
        Some(streaming) => {
            let what = format!("{} {}", asked.method, asked.uri);
            Either::Right(streamed::send(streaming, loaded.clone(), what))
        }
        None => Either::Left(Full::from(body)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(len) = answer.announced_len().filter(|_| has_body) {
        headers.insert(CONTENT_LENGTH, len.into());
    }
    if !answer.content_type().is_empty() {
        let value = HeaderValue::from_bytes(answer.content_type());
        headers.insert(CONTENT_TYPE, value.map_err(|error| unsendable(&error))?);
    }
    for header in answer.headers() {
        let name = HeaderName::try_from(&*header.name).map_err(|error| unsendable(&error))?;
        let ours = OF_CONNECTION.contains(&name.as_str())
            || name == CONTENT_TYPE && !answer.content_type().is_empty();
        if !ours {
            let value = HeaderValue::from_bytes(&header.value);
            headers.append(name, value.map_err(|error| unsendable(&error))?);
        }
    }
    Ok(response)
}
