//! A request whose body a program takes segment by segment.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::call::post::{Post, SEGMENT};
use crate::failure::Failure;
use crate::master::Master;
use crate::program::answer::Answer;
use crate::program::conclusion::{Owner, conclude};
use crate::program::counters::Counters;
use crate::program::lease::Lease;
use crate::program::stay::{Stay, stored};
use crate::request::{Header, Host, Request};

/// One on its way. Dropping it ends that.
#[derive(Debug)]
pub struct Posting {
    counters: Arc<Counters>,
    stay: Option<Stay>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Its body is coming.
    Open(Box<Open>),
    Answered(Box<Answer>),
    /// It failed.
    Over,
}

#[derive(Debug)]
struct Open {
    lease: Lease<Master>,
    post: Post,
    asked: Asked,
}

/// What `on_error` is to know of the request.
#[derive(Debug)]
struct Asked {
    method: String,
    url: Vec<u8>,
    arg: Vec<u8>,
    headers: Vec<Header<'static>>,
}

impl Asked {
    fn of(request: &Request<'_>) -> Self {
        let own = |header: &Header<'_>| {
            Header::new(header.name.clone().into_owned(), header.value.to_vec())
        };
        Self {
            method: request.method.to_owned(),
            url: request.url.to_vec(),
            arg: request.arg.to_vec(),
            headers: request.headers.iter().map(own).collect(),
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            url: &self.url,
            arg: &self.arg,
            headers: &self.headers,
            body: &[],
        }
    }
}

impl Posting {
    /// Begins one with what of its body is there.
    ///
    /// # Errors
    /// The program failed, and has no `on_error`.
    pub fn begin(
        owner: Owner<'_>,
        mut lease: Lease<Master>,
        request: &Request<'_>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Self, Failure> {
        let (counters, mut stay) = owner;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let stage = match lease.fork()?.begin_post(request, deadline) {
            Ok(post) => Stage::Open(Box::new(Open {
                lease,
                post,
                asked: Asked::of(request),
            })),
            Err(cause) => {
                let owner = (counters, stay.take());
                let answer = conclude(owner, lease, Err(cause), request, deadline, host)?;
                Stage::Answered(Box::new(answer))
            }
        };
        let mut posting = Self {
            counters: counters.clone(),
            stay,
            stage,
        };
        posting.feed(request.body, deadline, host)?;
        Ok(posting)
    }

    /// Has the program take a piece more of the body. False: it wants no more, since it has answered, or failed and answered by
    /// `on_error`.
    ///
    /// # Errors
    /// The program failed, and has no `on_error`.
    pub fn feed(
        &mut self,
        piece: &[u8],
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<bool, Failure> {
        for segment in piece.chunks(SEGMENT) {
            if !self.pass_on(segment, deadline, host)? {
                return Ok(false);
            }
        }
        Ok(matches!(self.stage, Stage::Open(_)))
    }

    /// The body is over: the program's answer.
    ///
    /// # Errors
    /// As [`Posting::feed`].
    pub fn answer(mut self, deadline: Instant, host: &mut dyn Host) -> Result<Answer, Failure> {
        self.pass_on(&[], deadline, host)?;
        match self.stage {
            Stage::Answered(answer) => Ok(*answer),
            Stage::Open(_) | Stage::Over => Err(Failure::NoFork {
                reason: "it has failed before".into(),
            }),
        }
    }

    fn pass_on(
        &mut self,
        segment: &[u8],
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<bool, Failure> {
        let mut open = match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Open(open) => open,
            other => {
                self.stage = other;
                return Ok(false);
            }
        };
        let fork = open.lease.fork()?;
        let storage = stored(self.stay.as_ref());
        let result = fork.post(&mut open.post, segment, storage, deadline, host);
        let result = match result.transpose() {
            None => {
                self.stage = Stage::Open(open);
                return Ok(true);
            }
            Some(result) => result,
        };
        let Open { lease, asked, .. } = *open;
        let request = asked.request();
        let owner = (&self.counters, self.stay.take());
        let answer = conclude(owner, lease, result, &request, deadline, host)?;
        self.stage = Stage::Answered(Box::new(answer));
        Ok(false)
    }
}
