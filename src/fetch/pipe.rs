//! A client's connection that is piped to a server: a WebSocket, or whatever else the two speak.
#![forbid(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use forkvm::{Awaited, Closed, Connection, Failure, piped_head};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use varnish::vcl::LogTag;

use crate::fetch::answer;
use crate::fetch::plain::{BAD_REQUEST, BUSY, FAILED};
use crate::fetch::request::{Asked, Input};
use crate::order::Target;
use crate::tenants::tenant::Tenant;
use crate::varnish::counters::count;
use crate::varnish::fetch::Fetch;
use crate::varnish::logging;

/// What poll(2) says of a socket whose other end is gone.
const GONE: PollFlags = PollFlags::HUP.union(PollFlags::ERR);
/// Between two looks at one that is.
const PAUSE: Duration = Duration::from_millis(10);

/// Statuses that a client is told (RFC 9110, 15.6.4, 15.6.2 and 15.6.1).
const UNAVAILABLE: &str = "503 Service Unavailable";
const NOT_IMPLEMENTED: &str = "501 Not Implemented";
const ERROR: &str = "500 Internal Server Error";

/// A client whose request is piped.
pub struct Client<'a> {
    /// Its connection.
    pub fd: BorrowedFd<'a>,
    /// What came after the request's head.
    pub begun: Vec<u8>,
}

/// Serves the client of a request that is piped to a tenant, until one of the two leaves. An error is one that the client was told
/// nothing of.
pub fn serve(fetch: &mut Fetch<'_, '_>, tenant: &Tenant, client: Client<'_>) -> Result<(), String> {
    let settings = &tenant.settings;
    let fd = client.fd;
    if !settings.server {
        tell(fd, NOT_IMPLEMENTED, "Only servers can be piped to.\n");
        return Err(format!(
            "tenant {}: only servers can be piped to",
            tenant.name()
        ));
    }
    let target = Target::of(fetch);
    if target
        .as_ref()
        .is_some_and(|target| !target.chain.0.is_empty())
    {
        tell(fd, NOT_IMPLEMENTED, "A chain can't be piped to.\n");
        return Err(format!(
            "tenant {}: a chain (kvm.chain()) can't be piped to",
            tenant.name()
        ));
    }
    let Some(_place) = tenant.pipes.enter() else {
        let most = tenant.pipes.limit();
        let text = format!("{most} connections are piped to it already (max_pipes)");
        answer::log_busy(fetch, tenant, &text);
        tell(fd, UNAVAILABLE, BUSY);
        return Ok(());
    };
    let limit = settings.config.limits.max_request_time;
    let release = match tenant.program(Instant::now() + limit) {
        Ok(release) => release,
        Err(not_ready) => {
            tell(fd, UNAVAILABLE, "The service is not ready.\n");
            return Err(format!("tenant {}: {not_ready}", tenant.name()));
        }
    };
    let url = target.and_then(|target| target.url.clone());
    let url = url.unwrap_or_else(|| fetch.url());
    let asked = Asked::new(fetch, (url, Vec::new()), Input::Request);
    // Varnish has taken it out.
    let upgrade = fetch.client_header("upgrade");
    let mut head = match piped_head(&asked.request(), upgrade.as_deref()) {
        Ok(head) => head,
        Err(bad) => {
            tell(fd, "400 Bad Request", BAD_REQUEST);
            return Err(format!("tenant {}: {bad}", tenant.name()));
        }
    };
    head.extend(client.begun);
    answer::count_request(tenant);
    let now = Instant::now();
    let mut piped = Piped {
        fd,
        begun: head,
        received: 0,
        sent: 0,
        first_until: now + limit,
        until: now + settings.values.max_pipe_time,
    };
    let mut host = tenant.late_output();
    let idle = settings.values.max_pipe_idle;
    let served = release.program.pipe(&mut piped, idle, &mut host);
    drop(host);
    let acct = format!("0 0 {} {}", piped.received, piped.sent);
    fetch.log(LogTag::PipeAcct, &acct);
    conclude(fetch, tenant, &piped, served);
    Ok(())
}

fn conclude(
    fetch: &mut Fetch<'_, '_>,
    tenant: &Tenant,
    piped: &Piped<'_>,
    served: Result<Closed, Failure>,
) {
    let is_silent = piped.sent == 0;
    match served {
        Err(failure) => {
            answer::log_failure(fetch, tenant, &failure);
            if is_silent && failure.is_busy() {
                tell(piped.fd, UNAVAILABLE, BUSY);
            } else if is_silent {
                tell(piped.fd, ERROR, FAILED);
            }
        }
        Ok(Closed::OutOfTime | Closed::Idle) if is_silent => {
            count(|counters| &counters.timeouts);
            answer::log_failed(
                fetch,
                tenant,
                "it did not answer in time (max_request_time)",
            );
            tell(piped.fd, ERROR, FAILED);
        }
        Ok(Closed::OutOfTime) => {
            let text = "a piped connection was over its time (max_pipe_time)";
            logging::log_in(fetch, LogTag::VclLog, tenant.name(), text);
        }
        Ok(_) => {}
    }
}

/// Tells a client why nothing comes, as far as it listens.
fn tell(fd: BorrowedFd<'_>, status: &str, text: &str) {
    let len = text.len();
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{text}"
    );
    let _ = send(
        fd,
        response.as_bytes(),
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    );
}

/// Its connection as the engine needs it. Varnish's sockets block.
struct Piped<'a> {
    fd: BorrowedFd<'a>,
    /// What is there already for the server.
    begun: Vec<u8>,
    received: u64,
    sent: u64,
    /// When the server has to have said something, and when all is over.
    first_until: Instant,
    until: Instant,
}

/// What can't be done now is `None`.
fn now(result: Result<usize, Errno>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Piped<'_> {
    fn has_left(&self) -> bool {
        let mut asked = [PollFd::from_borrowed_fd(self.fd, PollFlags::empty())];
        let now = Timespec::default();
        poll(&mut asked, Some(&now)).is_ok() && asked[0].revents().intersects(GONE)
    }
}

impl Connection for Piped<'_> {
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.begun.is_empty() {
            let len = buf.len().min(self.begun.len());
            buf[..len].copy_from_slice(&self.begun[..len]);
            self.begun.drain(..len);
            return Ok(Some(len));
        }
        let received = recv(self.fd, buf, RecvFlags::DONTWAIT).map(|(len, _)| len);
        let received = now(received)?;
        self.received += received.unwrap_or(0) as u64;
        Ok(received)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let sent = now(send(
            self.fd,
            bytes,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ))?;
        self.sent += sent.unwrap_or(0) as u64;
        Ok(sent)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(shutdown(self.fd, Shutdown::Write)?)
    }

    fn wait(&mut self, what: Awaited<'_>, until: Instant) -> io::Result<()> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, what.receive);
        flags.set(PollFlags::OUT, what.send);
        let left = until.saturating_duration_since(Instant::now());
        // One that is too long is without end; whoever waits looks again.
        let time = Timespec::try_from(left).ok();
        let mut waited = vec![PollFd::from_borrowed_fd(self.fd, flags)];
        waited.extend(
            what.other
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        match poll(&mut waited, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if flags.is_empty() && waited[0].revents().intersects(GONE) {
            // It is told so at once, again and again, as long as there is something that nobody has room for.
            thread::sleep(left.min(PAUSE));
        }
        Ok(())
    }

    fn is_gone(&mut self) -> bool {
        let unread = || {
            let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            matches!(recv(self.fd, &mut [0; 1], peek), Ok((1.., _)))
        };
        self.has_left() && !unread()
    }

    fn peer(&self) -> Option<SocketAddr> {
        Some((Ipv4Addr::LOCALHOST, 1).into())
    }

    fn deadline(&self) -> Option<Instant> {
        Some(match self.sent {
            0 => self.first_until.min(self.until),
            _ => self.until,
        })
    }
}
