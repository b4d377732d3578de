//! One fetch on its way: the request, redirects, the response.

use std::io::ErrorKind;
use std::time::Duration;

use forkvm::{FetchError, FetchHead, FetchRequest, Header, LOOP_HEADER, LOOP_NAME};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION,
    CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, timeout_at};

use crate::connect::{Connection, How};
use crate::own::Entered;
use crate::pool::Kind;
use crate::shared::Shared;
use crate::target::Target;

/// Most redirects that are followed.
const MOST_REDIRECTS: usize = 10;
/// Longest body of a redirect that is read so that the connection can be used again.
const MOST_OF_REDIRECT: usize = 16 << 10;

/// What is only for the next request's good may take so long.
const SOON: Duration = Duration::from_millis(100);

/// Something of a response.
#[derive(Debug)]
pub enum Come {
    /// Its head.
    Head(FetchHead),
    /// More of its body.
    Data(Bytes),
    /// That is all of it.
    End,
}

/// A fetch.
pub struct Exchange {
    target: Target,
    how: How,
    method: Method,
    headers: HeaderMap,
    body: Option<Bytes>,
    follow: bool,
    most: u64,
}

impl Exchange {
    /// What is to be asked, checked.
    pub fn new(
        request: FetchRequest,
        target: Target,
        own: Option<&Entered>,
        most: u64,
    ) -> Result<Self, FetchError> {
        let bad = |what: &str| FetchError::Bad(what.into());
        let method = Method::from_bytes(request.method.as_bytes())
            .map_err(|_| bad("a method that is none"))?;
        // The one is for proxies, the other gives headers back.
        let usual = [Method::GET, Method::HEAD, Method::POST];
        if matches!(method, Method::CONNECT | Method::TRACE)
            || own.is_some() && !usual.contains(&method)
        {
            return Err(bad("a method that can't be had fetched"));
        }
        let mut headers = headers(&request.headers)?;
        let mut usual = |name, value| {
            if !headers.contains_key(&name) {
                headers.insert(name, HeaderValue::from_static(value));
            }
        };
        usual(USER_AGENT, concat!("vmod-kvm/", env!("CARGO_PKG_VERSION")));
        usual(ACCEPT, "*/*");
        if let Some(own) = own {
            let entries = vec![LOOP_NAME; own.depth].join(", ");
            let value = HeaderValue::try_from(entries).map_err(|_| bad("a depth"))?;
            headers.append(
                HeaderName::from_bytes(LOOP_HEADER.as_bytes()).map_err(|_| bad("a header"))?,
                value,
            );
        }
        Ok(Self {
            target,
            how: How {
                unverified: request.unverified,
                own: own.map(|own| own.own.clone()),
            },
            method,
            headers,
            body: request.body.map(Bytes::from),
            follow: request.follow,
            most,
        })
    }

    /// Does it before this time, and tells what comes.
    pub async fn run(
        mut self,
        shared: &Shared,
        deadline: Instant,
        come: &Sender<Result<Come, FetchError>>,
    ) -> Result<(), FetchError> {
        for _ in 0..=MOST_REDIRECTS {
            let (connection, response) = self.ask(shared, deadline).await?;
            let Some(location) = self.redirect(&response) else {
                return self.pass_on(shared, connection, response, come).await;
            };
            let status = response.status();
            self.drain(shared, connection, response).await;
            self.go_to(shared, status, location.as_bytes())?;
        }
        Err(FetchError::Loop("too many redirects"))
    }

    fn kind(&self) -> Kind {
        Kind {
            origin: self.target.origin.clone(),
            unverified: self.how.unverified,
            own: self.how.own.as_ref().map(|own| own.number),
        }
    }

    /// Sends the request, and waits for the response's head.
    async fn ask(
        &self,
        shared: &Shared,
        deadline: Instant,
    ) -> Result<(Connection, Response<Incoming>), FetchError> {
        if let Some(mut connection) = shared.pool.take(&self.kind()) {
            let mut error = match connection.try_send_request(self.request()?).await {
                Ok(response) => return Ok((connection, response)),
                Err(error) => error,
            };
            // It was ended while nobody used it. What was not sent, or may be sent twice, is.
            let unsent = error.take_message().is_some();
            let harmless = matches!(self.method, Method::GET | Method::HEAD);
            if !unsent && (!harmless || error.error().is_parse()) {
                return Err(failed(error.error()));
            }
        }
        let connector = &shared.connector;
        let connected = connector.connect(&self.target.origin, &self.how, deadline);
        let mut connection = connected.await?;
        match connection.send_request(self.request()?).await {
            Ok(response) => Ok((connection, response)),
            Err(error) => Err(failed(&error)),
        }
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, FetchError> {
        let text = |error: &dyn std::fmt::Display| FetchError::Bad(error.to_string());
        let host =
            HeaderValue::try_from(self.target.origin.host()).map_err(|error| text(&error))?;
        let body = Full::new(self.body.clone().unwrap_or_default());
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.path.parse().map_err(|error| text(&error))?;
        request.headers_mut().clone_from(&self.headers);
        request.headers_mut().insert(HOST, host);
        // Of others it says so itself.
        if self.body.as_ref().is_some_and(Bytes::is_empty) {
            let none = HeaderValue::from_static("0");
            request.headers_mut().insert(CONTENT_LENGTH, none);
        }
        Ok(request)
    }

    /// Where the response leads to, if that is followed.
    fn redirect(&self, response: &Response<Incoming>) -> Option<HeaderValue> {
        let leads = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
        let location = response.headers().get(LOCATION)?;
        (leads && self.follow).then(|| location.clone())
    }

    /// Goes on there, if that may be reached.
    fn go_to(
        &mut self,
        shared: &Shared,
        status: StatusCode,
        location: &[u8],
    ) -> Result<(), FetchError> {
        let target = self.target.redirected(location)?;
        let elsewhere = target.origin != self.target.origin;
        if elsewhere {
            // Not by the way to the own Varnish either.
            self.how.own = None;
            // What is meant for one is nobody else's, least of all without TLS.
            for secret in [AUTHORIZATION, COOKIE] {
                self.headers.remove(secret);
            }
        }
        if self.how.own.is_none() {
            shared.connector.check(&target)?;
        }
        // As browsers do (RFC 9110, 15.4).
        let keeps = matches!(
            status,
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
        ) || matches!(self.method, Method::GET | Method::HEAD);
        if !keeps {
            self.method = Method::GET;
            self.body = None;
            for about in [
                CONTENT_TYPE,
                CONTENT_ENCODING,
                CONTENT_LANGUAGE,
                CONTENT_LOCATION,
            ] {
                self.headers.remove(about);
            }
        }
        self.target = target;
        Ok(())
    }

    /// Reads a redirect's body, if that is short and comes soon.
    async fn drain(&self, shared: &Shared, connection: Connection, response: Response<Incoming>) {
        let mut body = response.into_body();
        let read = async {
            let mut len = 0;
            while let Some(Ok(frame)) = body.frame().await {
                len += frame.data_ref().map_or(0, Bytes::len);
                if len > MOST_OF_REDIRECT {
                    break;
                }
            }
        };
        let read = timeout_at(Instant::now() + SOON, read).await;
        if read.is_ok() && body.is_end_stream() {
            self.keep(shared, connection).await;
        }
    }

    /// Tells the response.
    async fn pass_on(
        &self,
        shared: &Shared,
        connection: Connection,
        response: Response<Incoming>,
        come: &Sender<Result<Come, FetchError>>,
    ) -> Result<(), FetchError> {
        let (head, mut body) = response.into_parts();
        let length = body.size_hint().exact();
        let mut left = self.most;
        let too_long = FetchError::TooLong(self.most);
        if length.is_some_and(|length| length > left) {
            return Err(too_long);
        }
        let headers = head
            .headers
            .iter()
            .map(|(name, value)| Header::new(name.as_str().to_owned(), value.as_bytes().to_vec()));
        let head = FetchHead {
            status: head.status.as_u16(),
            headers: headers.collect(),
            length,
        };
        // Whoever asked has gone, and this ends with that.
        let tell = async |part| come.send(Ok(part)).await.map_err(|_| FetchError::Timeout);
        tell(Come::Head(head)).await?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failed(&error))?;
            // What else there is are trailers.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let rest = left.checked_sub(data.len() as u64);
            left = rest.ok_or_else(|| too_long.clone())?;
            if !data.is_empty() {
                tell(Come::Data(data)).await?;
            }
        }
        // Before its end is told: the next fetch may come at once.
        self.keep(shared, connection).await;
        tell(Come::End).await
    }

    /// Keeps a connection whose response has been read, if it can be used again.
    async fn keep(&self, shared: &Shared, mut connection: Connection) {
        if let Ok(Ok(())) = timeout_at(Instant::now() + SOON, connection.ready()).await {
            shared.pool.give(self.kind(), connection);
        }
    }
}

fn headers(given: &[Header<'_>]) -> Result<HeaderMap, FetchError> {
    let mut headers = HeaderMap::new();
    for Header { name, value } in given {
        let name = HeaderName::from_bytes(name.as_bytes());
        let value = HeaderValue::from_bytes(value);
        match (name, value) {
            (Ok(name), Ok(value)) => headers.append(name, value),
            _ => return Err(FetchError::Bad("a header that can't be sent".into())),
        };
    }
    Ok(headers)
}

/// What has gone wrong with a connection.
fn failed(error: &hyper::Error) -> FetchError {
    let source = std::error::Error::source(error);
    let text = match source {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    // Those of what was read are of these kinds, too.
    let of_content = [
        ErrorKind::InvalidData,
        ErrorKind::InvalidInput,
        ErrorKind::UnexpectedEof,
    ];
    match source.and_then(|source| source.downcast_ref::<std::io::Error>()) {
        Some(error) if !of_content.contains(&error.kind()) => FetchError::Unreachable(text),
        _ => FetchError::Protocol(text),
    }
}
