//! What is noted of a request while it goes on. When it is over, however that came, it is a line of the access log.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::{Request, StatusCode};
use tokio::sync::oneshot;

use super::link::Link;
use super::observed::record::{Begun, End, Http, LONGEST_METHOD, LONGEST_PATH, Record, Served};

/// An open request.
pub struct Ledger {
    begun: Begun,
    link: Arc<Link>,
    http: Http,
    /// Bytes of the answer that the client was given.
    bytes: u64,
    /// The fork's part.
    served: Option<oneshot::Receiver<Served>>,
    known: Option<Served>,
}

impl Ledger {
    /// Of a request whose head has come. When this is dropped, the connection is idle again.
    pub fn open(request: &Request<Incoming>, link: Arc<Link>) -> Self {
        let path = request.uri().path_and_query();
        let mut path = path.map_or("", |path| path.as_str()).to_owned();
        path.truncate(path.floor_char_boundary(LONGEST_PATH));
        let mut method = request.method().to_string();
        method.truncate(method.floor_char_boundary(LONGEST_METHOD));
        Self {
            begun: Begun::now(),
            link,
            http: Http {
                method,
                path,
                status: None,
            },
            bytes: 0,
            served: None,
            known: None,
        }
    }

    /// The answer's status.
    pub fn set_status(&mut self, status: StatusCode) {
        self.http.status = Some(status.as_u16());
    }

    /// The client was given so many bytes more.
    pub fn add_bytes(&mut self, n: u64) {
        self.bytes += n;
    }

    /// What the fork is to call when it is done.
    pub fn expect_served(&mut self) -> impl FnOnce(Served) + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        self.served = Some(receiver);
        move |served| {
            // Nobody wants it any more if the command ends.
            let _ = sender.send(served);
        }
    }

    /// How the fork's connection has ended, once it has.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Option<End>> {
        if let Some(receiver) = &mut self.served {
            self.known = ready!(Pin::new(receiver).poll(context)).ok();
            self.served = None;
        }
        Poll::Ready(self.known.map(|served| served.end))
    }

    /// How the fork's connection has ended, if that is so in this time.
    pub async fn end(&mut self, patience: Duration) -> Option<End> {
        let served = self.served.take()?;
        self.known = tokio::time::timeout(patience, served).await.ok()?.ok();
        self.known.map(|served| served.end)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.link.seat.set_idle();
        let (link, receiver, known) = (self.link.clone(), self.served.take(), self.known);
        let nothing = Served::not_at_all(Duration::ZERO, End::Client);
        let mut record = Record::new(self.begun, link.peer, nothing);
        record.http = Some(self.http.clone());
        let bytes = self.bytes;
        let finish = async move {
            let served = match (known, receiver) {
                (Some(served), _) => served,
                // The fork is done with it at about the same time.
                (None, Some(receiver)) => receiver.await.unwrap_or(nothing),
                (None, None) => nothing,
            };
            record.wait = served.wait;
            record.exits = served.exits;
            record.pages = served.pages;
            record.end = served.end;
            record.bytes = bytes;
            link.inside.observer.record(record);
        };
        // There is no runtime any more if the command ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(finish);
        }
    }
}

/// An answer's body, with the request's ledger.
pub struct Body {
    inner: BoxBody<Bytes, hyper::Error>,
    ledger: Option<Ledger>,
    /// Nothing but the connection's end tells the body's.
    until_close: bool,
}

/// Why a body has no end.
#[derive(Debug, thiserror::Error)]
pub enum NoEnd {
    /// The program's answer breaks off.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// Its connection ended otherwise than by its own will.
    #[error("the program did not come to the answer's end")]
    CutOff,
}

impl Body {
    /// The ledger is closed with the body's end. `until_close`: only the end of the program's connection tells that.
    pub fn new(
        inner: BoxBody<Bytes, hyper::Error>,
        ledger: Option<Ledger>,
        until_close: bool,
    ) -> Self {
        Self {
            inner,
            ledger,
            until_close,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = NoEnd;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, NoEnd>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        if let Some(ledger) = &mut this.ledger {
            if let Some(Ok(frame)) = &frame {
                ledger.add_bytes(frame.data_ref().map_or(0, Bytes::len) as u64);
            }
            let is_cut = frame.is_none()
                && this.until_close
                && ready!(ledger.poll_end(context)) != Some(End::Server);
            if is_cut {
                return Poll::Ready(Some(Err(NoEnd::CutOff)));
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(NoEnd::Http)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
