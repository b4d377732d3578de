//! A request to an unmodified server on its way: its body goes in as it comes, its response comes out as it is made.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use crate::failure::{Cause, Failure};
use crate::program::answer::Answer;
use crate::program::coming::{self, Coming, Streamed, Writer};
use crate::program::counters::Counters;
use crate::program::lease::Lease;
use crate::request::{Host, Request};
use crate::server::http_client::{HttpClient, Pause, Upload};
use crate::server::{Closed, Connection as _, Dialogue, Server};

/// What a response that takes its time has for what is still to come, after [`Exchange::answer`](super::Exchange::answer).
pub struct Later {
    /// What the program prints then.
    pub host: Box<dyn Host + Send>,
    /// Asks for so many bytes more of memory, for what is made before anybody takes it. A response always has 64 KiB; it gives all back
    /// when it is dropped.
    pub room: Box<dyn FnMut(u64) -> bool + Send>,
}

/// A request that a fork of a server has begun to answer. Dropping it ends that.
#[derive(Debug)]
pub struct Conversation {
    counters: Arc<Counters>,
    lease: Lease<Server>,
    client: HttpClient,
    to_head: bool,
    dialogue: Dialogue,
    /// How it ended before the request was over.
    ended: Option<Result<Closed, Cause>>,
    /// The program, whose files the fork reads however long its response takes.
    _program: Arc<dyn Any + Send + Sync>,
}

impl Conversation {
    /// Begins one, whose response has a body of `most` bytes at most. What of the request's body is there already is in the request.
    pub(super) fn begin(
        (program, counters): (Arc<dyn Any + Send + Sync>, Arc<Counters>),
        mut lease: Lease<Server>,
        (request, upload): (&Request<'_>, Upload),
        deadline: Instant,
        most: u64,
    ) -> Result<Self, Failure> {
        let client = match HttpClient::new(request, upload, deadline, most) {
            Ok(client) => client,
            Err(bad) => return Err(Failure::BadRequest(bad.to_string())),
        };
        counters.requests.fetch_add(1, Ordering::Relaxed);
        match lease.fork()?.begin(client.peer()) {
            Ok(dialogue) => Ok(Self {
                counters,
                lease,
                client,
                to_head: request.method == "HEAD",
                dialogue,
                ended: None,
                _program: program,
            }),
            Err(cause) => {
                let what = lease.pool().origin().describe(&cause);
                Err(counters.failed(cause, what))
            }
        }
    }

    /// Sends the server a piece of the request's body, and has it go on until it waits for more, or `deadline`. False: it wants no
    /// more, since it has answered or closed the connection.
    ///
    /// # Errors
    /// The server failed.
    pub fn feed(
        &mut self,
        piece: &[u8],
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<bool, Failure> {
        if !piece.is_empty() {
            self.client.push(piece);
        }
        self.client.deadline = deadline;
        self.client.pause = Pause::ForBody;
        self.go_on(host)?;
        match &self.ended {
            None => Ok(true),
            Some(_) => self.outcome().map(|()| false),
        }
    }

    /// The request is over: waits for the response until `deadline`. With `later` only for its head, and for the body only if that
    /// follows soon.
    ///
    /// # Errors
    /// The server failed, or there is no room for what it has made already.
    pub fn answer(
        mut self,
        deadline: Instant,
        later: Option<Later>,
        host: &mut dyn Host,
    ) -> Result<Answer, Failure> {
        self.client.finish_request();
        self.client.deadline = deadline;
        self.client.pause = match later {
            Some(_) => Pause::AfterHead,
            None => Pause::Never,
        };
        self.go_on(host)?;
        let is_whole = self.ended.is_some();
        if is_whole {
            self.outcome()?;
        }
        let response = self.client.response();
        let (Some(head), body) = (response.head().cloned(), response.drain_body()) else {
            return Err(self.failed(Cause::NoResponse));
        };
        let to_head = self.to_head;
        match later {
            Some(later) if !is_whole => {
                let usage = self.lease.usage();
                let coming = self.stream(body, later)?;
                Ok(Answer::of_server_in_pieces(head, coming, usage))
            }
            _ => Ok(Answer::of_server(self.lease, head, body, to_head)),
        }
    }

    /// Has the server go on until it is over, or the client pauses.
    fn go_on(&mut self, host: &mut dyn Host) -> Result<(), Failure> {
        if self.ended.is_none() {
            let fork = self.lease.fork()?;
            let times = fork.times();
            self.ended = fork
                .go_on(&mut self.dialogue, &mut self.client, times, host)
                .transpose();
        }
        Ok(())
    }

    /// Has a thread of its own take the rest of the response, so that the server goes on whoever reads it how fast.
    fn stream(self, begun: Vec<u8>, later: Later) -> Result<Coming, Failure> {
        let Later { mut host, room } = later;
        let (coming, writer) = coming::pair(begun, room)?;
        thread::Builder::new()
            .name("forkvm-stream".into())
            .spawn(move || self.take_rest(writer, &mut *host))
            .map_err(|error| coming::lacks("thread", &error))?;
        Ok(coming)
    }

    fn take_rest(mut self, writer: Writer, host: &mut dyn Host) {
        self.client.pause = Pause::Never;
        let mut streamed = Streamed::new(&mut self.client, &writer);
        let ended = loop {
            let fork = match self.lease.fork() {
                Ok(fork) => fork,
                Err(failure) => return writer.end(Err(failure)),
            };
            let times = fork.times();
            let ended = fork.go_on(&mut self.dialogue, &mut streamed, times, host);
            if let Some(ended) = ended.transpose() {
                break ended;
            }
        };
        // Whoever does not want it any more is told nothing, and it is nobody's failure.
        if writer.is_wanted() {
            self.ended = Some(ended);
            writer.end(match self.is_unread(&writer) {
                true => Err(Failure::NotRead),
                false => self.outcome(),
            });
        }
    }

    /// Whether its time was over while it had to wait for its reader.
    fn is_unread(&self, writer: &Writer) -> bool {
        self.ended == Some(Ok(Closed::OutOfTime)) && !self.client.is_done() && writer.waits()
    }

    /// Whether the response is whole, now that the connection is closed.
    fn outcome(&mut self) -> Result<(), Failure> {
        let closed = match self.ended.clone() {
            // Had it nothing more to say, it has answered, whatever becomes of it afterwards: the fork is thrown away then. What it has
            // said may be wrong, which is what has failed, then.
            Some(Err(_)) if self.client.is_done() => Closed::ByServer,
            Some(Err(cause)) => return Err(self.failed(cause)),
            Some(Ok(closed)) => closed,
            None => return Ok(()),
        };
        // A body that goes on to the end of the connection ends where the server closes it, not where its time is over.
        if matches!(closed, Closed::OutOfTime | Closed::Idle) && !self.client.is_done() {
            return Err(self.failed(Cause::Timeout));
        }
        let checked = self.client.check();
        checked.map_err(|bad| self.failed(Cause::BadResponse(bad.to_string())))
    }

    fn failed(&self, cause: Cause) -> Failure {
        let what = self.lease.pool().origin().describe(&cause);
        self.counters.failed(cause, what)
    }
}
