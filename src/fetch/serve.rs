//! A request to a tenant's unmodified server, or to a program that takes bodies by segments: its body goes in while it comes, and no fork waits for one that is short.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkvm::{Answer, Exchange, Failure, Host, Later, Program, Request, Upload};
use parking_lot::Mutex;
use varnish::vcl::LogTag;

use crate::fetch::answer;
use crate::fetch::body::{self, BadBody, Body, Discard};
use crate::fetch::due::{Due, Holder};
use crate::fetch::pace::{Pace, Slow};
use crate::fetch::request::Asked;
use crate::fetch::unanswered::Unanswered;
use crate::tenants::figures;
use crate::tenants::room::Taken;
use crate::tenants::tenant::Tenant;
use crate::varnish::fetch::Fetch;
use crate::varnish::logging::Output;

/// How much of a body has to be there before a fork is taken for it; or all of it.
const FIRST: usize = 64 << 10;

/// How much of a response there has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Its head, if the rest takes its time.
    Begun,
}

/// Has a server answer in this time, for which waits for the client do not count: all of its response, or what there is once
/// its head is there and the rest takes its time. Gives the deadline with it. Failures are logged.
pub fn ask(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    program: &Arc<Program>,
    asked: &Asked<'_>,
    time: Duration,
    extent: Extent,
) -> Result<(Answer, Instant), Unanswered> {
    let values = &tenant.settings.values;
    let announced = fetch.content_length();
    if announced.is_some_and(|announced| announced > values.max_body_size) {
        body::discard(fetch);
        return Err(BadBody::TooLarge(OF_SERVERS).into());
    }
    let is_there = body::is_there(fetch)?;
    let mut records = Vec::new();
    let mut output = Output::of_request(tenant.name(), values.stdout, |record| {
        records.push(record.to_owned());
    })
    .with_fetcher(tenant.fetches.clone());
    let mut sending = Sending {
        tenant,
        program,
        request: asked.request(),
        announced,
        host: &mut output,
        len: 0,
        start: Instant::now(),
        pace: Pace::new(values.max_body_time, Instant::now()),
        time,
        took: Duration::ZERO,
        extent,
        stage: Stage::First(Body::of_tenant(tenant)),
        stopped: None,
    };
    let read = match is_there {
        true => fetch.read_body(&mut sending).map(drop),
        false => Ok(()),
    };
    let result = sending.answer(read.map_err(|error| error.to_string()));
    let written = output.finish();
    for record in records {
        fetch.log(LogTag::VclLog, &record);
    }
    let failure = match &result {
        Ok((answer, _)) => answer.failure(),
        Err(Unanswered::Failed(failure)) => Some(failure),
        _ => None,
    };
    answer::conclude(fetch, tenant, &written, failure);
    result
}

/// What limits a server's request bodies.
pub const OF_SERVERS: &str = "max_body_size";

/// A request on its way to a server. Varnish writes its body.
struct Sending<'a> {
    tenant: &'a Tenant,
    program: &'a Arc<Program>,
    request: Request<'a>,
    /// How long its body is.
    announced: Option<u64>,
    host: &'a mut dyn Host,
    /// How much of that has come.
    len: u64,
    start: Instant,
    pace: Pace,
    /// How long the server may take, and how long it took by now.
    time: Duration,
    took: Duration,
    /// How much of the response is waited for.
    extent: Extent,
    stage: Stage,
    /// Why no more of the body is wanted.
    stopped: Option<Unanswered>,
}

enum Stage {
    /// What has come of the body is with us.
    First(Body),
    /// It goes to the server, whose fork has to be back when the client has had its time.
    Sent { held: Arc<Uploading>, _due: Due },
    /// The server has answered without waiting for the rest, and does not get it. The answer has its room meanwhile, and its fork for its
    /// own time if the program makes it as it is read.
    Answered {
        answer: Arc<Early>,
        _due: Option<Due>,
        _room: Taken,
        discard: Discard,
    },
    /// It has failed, and the rest is dropped so that the client hears of it.
    Failed(Discard),
    /// None of these: it failed.
    Over,
}

/// A server that waits for more of a body. Nothing while it runs.
struct Uploading(Mutex<Option<Exchange>>);

impl Holder for Uploading {
    fn give_back(&self) {
        let held = self.0.lock().take();
        drop(held);
    }
}

/// An answer whose client still sends.
struct Early(Mutex<Option<Answer>>);

impl Holder for Early {
    fn give_back(&self) {
        let answer = self.0.lock().take();
        drop(answer);
    }
}

impl Sending<'_> {
    /// Takes a piece of the body.
    fn take(&mut self, piece: &[u8]) -> Result<(), Unanswered> {
        if let Stage::Answered { discard, .. } | Stage::Failed(discard) = &mut self.stage {
            let discarded = discard.write(piece).map(drop);
            return discarded.map_err(|error| BadBody::Unreadable(error.to_string()).into());
        }
        self.len = self.len.saturating_add(piece.len() as u64);
        figures::add(&self.tenant.figures.received, piece.len() as u64);
        if self.len > self.tenant.settings.values.max_body_size {
            return Err(BadBody::TooLarge(OF_SERVERS).into());
        }
        if self.announced.is_some_and(|announced| self.len > announced) {
            return Err(not_as_announced());
        }
        // The server's time is none of the client's.
        let now = Instant::now();
        let pace = &mut self.pace;
        pace.arrived(piece.len(), now.checked_sub(self.took).unwrap_or(now))
            .map_err(BadBody::from)?;
        if let Stage::First(body) = &mut self.stage {
            if body.bytes().len() + piece.len() <= FIRST {
                return Ok(body.push(piece, FIRST)?);
            }
            self.begin()?;
        }
        self.feed(piece)
    }

    /// Takes a fork, and sends it what has come of the body.
    fn begin(&mut self) -> Result<(), Unanswered> {
        let Stage::First(body) = mem::replace(&mut self.stage, Stage::Over) else {
            return Ok(());
        };
        let upload = match self.announced {
            Some(len) => Upload::Length(len),
            None => Upload::Chunked,
        };
        let exchange = self.exchange(&[], upload)?;
        self.go_on(exchange, body.bytes())
    }

    fn exchange(&mut self, body: &[u8], upload: Upload) -> Result<Exchange, Failure> {
        answer::count_request(self.tenant);
        let request = Request {
            body,
            ..self.request
        };
        let (start, deadline) = (Instant::now(), self.deadline());
        let begun = self.program.exchange(&request, upload, deadline, self.host);
        self.took += start.elapsed();
        begun
    }

    /// Sends it a piece more, unless it has answered.
    fn feed(&mut self, piece: &[u8]) -> Result<(), Unanswered> {
        match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Sent { held, .. } => {
                let exchange = held.0.lock().take().ok_or_else(|| self.is_slow())?;
                self.go_on(exchange, piece)
            }
            other => {
                self.stage = other;
                Ok(())
            }
        }
    }

    fn go_on(&mut self, mut exchange: Exchange, piece: &[u8]) -> Result<(), Unanswered> {
        let (start, deadline) = (Instant::now(), self.deadline());
        let wants_more = exchange.feed(piece, deadline, self.host);
        self.took += start.elapsed();
        self.stage = if wants_more? {
            let held = Arc::new(Uploading(Mutex::new(Some(exchange))));
            let time = self.tenant.settings.values.max_body_time;
            let _due = Due::at(self.start + time + self.took, &held);
            Stage::Sent { held, _due }
        } else {
            let mut answer = exchange.answer(deadline, self.later(), self.host)?;
            let mut room = Taken::nothing(&self.tenant.responses);
            let len = answer.body_len();
            if !room.take(len) {
                return Err(Failure::NoRoom { len }.into());
            }
            answer.release();
            let due = answer.due();
            let answer = Arc::new(Early(Mutex::new(Some(answer))));
            Stage::Answered {
                _due: due.map(|time| Due::at(time, &answer)),
                answer,
                _room: room,
                discard: Discard::new(),
            }
        };
        Ok(())
    }

    /// The body is over, or could not be read: the answer, and until when its fork may be kept.
    fn answer(mut self, read: Result<(), String>) -> Result<(Answer, Instant), Unanswered> {
        let stage = mem::replace(&mut self.stage, Stage::Over);
        let deadline = self.deadline();
        if let Stage::Answered { answer, .. } = stage {
            let answer = answer.0.lock().take();
            return Ok((answer.ok_or_else(|| self.is_slow())?, deadline));
        }
        if let Some(stopped) = self.stopped {
            return Err(stopped);
        }
        read.map_err(BadBody::Unreadable)?;
        let exchange = match stage {
            Stage::First(body) => self.exchange(body.bytes(), Upload::Whole)?,
            Stage::Sent { held, .. } => {
                let exchange = held.0.lock().take();
                exchange.ok_or_else(|| self.is_slow())?
            }
            Stage::Answered { .. } | Stage::Failed(_) | Stage::Over => {
                return Err(not_as_announced());
            }
        };
        if self
            .announced
            .is_some_and(|announced| announced != self.len)
            && self.len > 0
        {
            return Err(not_as_announced());
        }
        let deadline = self.deadline();
        let answer = exchange.answer(deadline, self.later(), self.host)?;
        Ok((answer, deadline))
    }

    /// What there is for a response whose head is out.
    fn later(&self) -> Option<Later> {
        let mut room = Taken::nothing(&self.tenant.responses);
        (self.extent == Extent::Begun).then(|| Later {
            host: Box::new(self.tenant.late_output()),
            // Others are to have some, too.
            room: Box::new(move |more| room.take_fair(more)),
        })
    }

    fn is_slow(&self) -> Unanswered {
        BadBody::from(Slow::Late(self.tenant.settings.values.max_body_time)).into()
    }

    /// When the server's time is over, if it goes on now.
    fn deadline(&self) -> Instant {
        Instant::now() + self.time.saturating_sub(self.took)
    }
}

fn not_as_announced() -> Unanswered {
    BadBody::Unreadable("it is not as long as its Content-Length says".into()).into()
}

impl Write for Sending<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self.take(piece) {
            Ok(()) => {}
            Err(stopped @ Unanswered::Failed(_)) => {
                self.stopped = Some(stopped);
                self.stage = Stage::Failed(Discard::new());
            }
            Err(stopped) => {
                let error = io::Error::other(stopped.to_string());
                self.stopped.get_or_insert(stopped);
                return Err(error);
            }
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
