//! A fetch as whoever asked for it sees it, on a thread of their own: they wait for what comes.

use std::sync::Arc;
use std::time::Instant;

use forkvm::{FetchError, FetchHead, Fetching};
use hyper::body::{Buf, Bytes};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::AbortHandle;
use tokio::time::timeout_at;

use crate::exchange::{Come, Exchange};
use crate::own::Entered;
use crate::shared::Shared;

/// Most pieces that wait for it.
const PIECES: usize = 4;

/// One.
pub struct Waiting {
    runtime: &'static Handle,
    shared: Arc<Shared>,
    task: AbortHandle,
    come: Receiver<Result<Come, FetchError>>,
    state: State,
    /// A part of the body that was longer than it was read.
    rest: Bytes,
    /// Its place among the tenant's.
    _place: OwnedSemaphorePermit,
    /// The one among those that ask their own Varnish.
    own: Option<Entered>,
}

/// How far it is.
enum State {
    /// Its head has not come.
    Begun,
    /// It has.
    Body,
    /// So has all.
    Ended,
    /// It has failed.
    Failed(FetchError),
}

impl Waiting {
    /// Has it done before this time.
    pub fn begin(
        runtime: &'static Handle,
        shared: Arc<Shared>,
        exchange: Exchange,
        deadline: Instant,
        place: OwnedSemaphorePermit,
        own: Option<Entered>,
    ) -> Self {
        let (sender, come) = channel(PIECES);
        let deadline = tokio::time::Instant::from_std(deadline);
        let of_task = (shared.clone(), own.clone());
        let task = runtime.spawn(async move {
            let (shared, own) = of_task;
            let done = timeout_at(deadline, exchange.run(&shared, deadline, &sender)).await;
            // What has come from there is waited for by nobody there.
            leave(own.as_ref());
            if let Err(error) = done.unwrap_or(Err(FetchError::Timeout)) {
                // It waits as long as they are there who are to be told.
                let _ = sender.send(Err(error)).await;
            }
        });
        Self {
            runtime,
            shared,
            task: task.abort_handle(),
            come,
            state: State::Begun,
            rest: Bytes::new(),
            _place: place,
            own,
        }
    }

    /// Waits for what comes next.
    fn next(&mut self, until: Instant) -> Result<Option<Come>, FetchError> {
        if let State::Failed(error) = &self.state {
            return Err(error.clone());
        }
        let until = tokio::time::Instant::from_std(until);
        let come = &mut self.come;
        let next = self
            .runtime
            .block_on(async { timeout_at(until, come.recv()).await });
        let error = match next {
            Err(_) => return Ok(None),
            Ok(Some(Ok(part))) => return Ok(Some(part)),
            Ok(Some(Err(error))) => error,
            Ok(None) => FetchError::Unreachable("an internal error of the client's".into()),
        };
        self.shared.failed();
        self.state = State::Failed(error.clone());
        Err(error)
    }
}

impl Fetching for Waiting {
    fn head(&mut self, until: Instant) -> Result<Option<FetchHead>, FetchError> {
        match self.next(until)? {
            Some(Come::Head(head)) => {
                self.state = State::Body;
                Ok(Some(head))
            }
            // It is the first thing that comes.
            Some(_) => Err(FetchError::Protocol("a response without a head".into())),
            None => Ok(None),
        }
    }

    fn read(&mut self, buf: &mut [u8], until: Instant) -> Result<Option<usize>, FetchError> {
        if matches!(self.state, State::Ended) {
            return Ok(Some(0));
        }
        if self.rest.is_empty() {
            match self.next(until)? {
                Some(Come::Data(data)) => self.rest = data,
                Some(Come::End) => {
                    self.state = State::Ended;
                    return Ok(Some(0));
                }
                Some(Come::Head(_)) => {
                    return Err(FetchError::Protocol("a second head".into()));
                }
                None => return Ok(None),
            }
        }
        let n = self.rest.len().min(buf.len());
        self.rest.copy_to_slice(&mut buf[..n]);
        Ok(Some(n))
    }
}

/// Leaves the place that a fetch has in its own Varnish.
fn leave(own: Option<&Entered>) {
    if let Some(own) = own {
        own.place.leave();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.task.abort();
        // The task is dropped some time later.
        leave(self.own.as_ref());
        // Whoever asked has run out of time, or patience. What they have the head of they may have enough of.
        if matches!(self.state, State::Begun) {
            self.shared.failed();
        }
    }
}
