//! `--metrics`: what a Prometheus server asks for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::metrics::Now;
use super::observer::Observer;
use crate::serve::seats::{Seat, Seats};

/// Most connections that ask at once. One more takes the place of the oldest.
const MOST: u32 = 16;
/// How long one may take, as one that sends nothing.
const LONGEST: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const HEAD: usize = 16 << 10;

/// Answers connections.
#[derive(Clone)]
pub struct Scrapes {
    observer: Arc<Observer>,
    now: Arc<dyn Fn() -> Now + Send + Sync>,
    seats: Arc<Seats>,
}

impl Scrapes {
    /// `now` looks.
    pub fn new(observer: Arc<Observer>, now: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self {
            observer,
            now: Arc::new(now),
            seats: Seats::new(MOST),
        }
    }

    /// A place for a connection.
    pub async fn seat(&self) -> Seat {
        self.seats.take().await
    }

    /// Answers on a connection, unless it loses its place.
    pub async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin, seat: Seat) {
        let service = service_fn(|request| {
            let response = self.answer(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(false)
            .half_close(true)
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            // Who is too slow or leaves is no news.
            _ = tokio::time::timeout(LONGEST, connection) => {}
            () = seat.lost() => {}
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, content_type, text) = if request.uri().path() != "/metrics" {
            let text = b"metrics are at /metrics\n".to_vec();
            (StatusCode::NOT_FOUND, "text/plain", text)
        } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", Vec::new())
        } else {
            (
                StatusCode::OK,
                prometheus::TEXT_FORMAT,
                self.observer.metrics_text((self.now)()),
            )
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}
