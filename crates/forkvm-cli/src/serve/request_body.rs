//! A request's body on its way to a fork. Its beginning is waited for before there is one: a client that is slow with a form holds
//! none meanwhile.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

/// How much of a body is waited for. The rest is passed on as it comes.
const BEGINNING: usize = 64 << 10;
/// Most bodies whose beginnings are kept at once. Those beyond are passed on as they come.
const MOST: usize = 1024;

/// What is kept of bodies.
#[derive(Debug, Clone)]
pub struct Beginnings(Arc<Semaphore>);

/// A body, with its beginning if that was waited for.
#[derive(Debug)]
pub struct RequestBody {
    beginning: Bytes,
    /// `None` if that was all.
    rest: Option<Incoming>,
    /// Given back when it is passed on.
    place: Option<OwnedSemaphorePermit>,
}

/// Why a body has no beginning.
#[derive(Debug)]
pub enum NoBody {
    /// It came too slowly.
    TooSlow,
    /// The client is gone, or has sent something else.
    Broken,
}

impl Beginnings {
    /// None is kept.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }

    /// Waits for a body's beginning, at most until then.
    pub async fn of(&self, mut rest: Incoming, until: Instant) -> Result<RequestBody, NoBody> {
        let mut all_is_here = rest.is_end_stream();
        let place = match all_is_here {
            true => None,
            false => self.0.clone().try_acquire_owned().ok(),
        };
        let mut beginning = Vec::new();
        while place.is_some() && beginning.len() < BEGINNING && !all_is_here {
            match timeout_at(until.into(), rest.frame()).await {
                // Fields after the body are left out: their announcement is, too.
                Ok(Some(Ok(frame))) => {
                    beginning.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                }
                Ok(Some(Err(_))) => return Err(NoBody::Broken),
                Ok(None) => all_is_here = true,
                Err(_) => return Err(NoBody::TooSlow),
            }
        }
        Ok(RequestBody {
            beginning: beginning.into(),
            rest: (!all_is_here).then_some(rest),
            place,
        })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if !self.beginning.is_empty() {
            let beginning = std::mem::take(&mut self.beginning);
            return Poll::Ready(Some(Ok(Frame::data(beginning))));
        }
        self.place = None;
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.beginning.is_empty() && self.rest.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map(Incoming::size_hint);
        let rest = rest.unwrap_or_else(|| SizeHint::with_exact(0));
        let beginning = self.beginning.len() as u64;
        let mut all = SizeHint::new();
        all.set_lower(rest.lower().saturating_add(beginning));
        if let Some(upper) = rest.upper() {
            all.set_upper(upper.saturating_add(beginning));
        }
        all
    }
}
