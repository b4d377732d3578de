//! A client's connection as a server's machine needs it, and what goes on between the two.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::failure::Cause;
use crate::linux::{Address, ConnectionId, ListenerId};
use crate::machine::{Event, Machine};
use crate::request::{Host, Stream};

/// How often it is looked whether the client of a program that computes is there, and how long it may go on without one: it may be
/// about to close the connection itself, which leaves a fork that can be reset.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes that are moved at once.
const PIECE: usize = 64 << 10;

/// A stream of bytes to and from a client. None of its functions waits but [`Connection::wait`].
pub trait Connection {
    /// Receives what has come: so many bytes, 0 if the client sends no more, `None` if there is nothing yet.
    ///
    /// # Errors
    /// The client is gone.
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>>;

    /// Sends what can be sent now: so many bytes, `None` if that is none.
    ///
    /// # Errors
    /// The client is gone.
    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>>;

    /// Tells the client that nothing more is sent.
    ///
    /// # Errors
    /// The client is gone.
    fn finish(&mut self) -> io::Result<()>;

    /// Waits for one of these, at most until this time.
    ///
    /// # Errors
    /// The client is gone.
    fn wait(&mut self, what: Awaited<'_>, until: Instant) -> io::Result<()>;

    /// Whether nobody is there any more who could take an answer, and nothing is left to be received. A client that only sends no
    /// more is there.
    fn is_gone(&mut self) -> bool {
        false
    }

    /// The client's address. `None` for a Unix socket's.
    fn peer(&self) -> Option<SocketAddr>;

    /// When it has to be over, whatever goes on. `None`, as it is unless overridden: there is no such time.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// How long it may be silent after an answer, of the usual time. Asked before each [`Connection::wait`], which returns
    /// early when this changes.
    fn max_silence(&self, usual: Duration) -> Duration {
        usual
    }
}

/// What a connection's thread waits for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Awaited<'a> {
    /// Something can be received.
    pub receive: bool,
    /// Something can be sent.
    pub send: bool,
    /// This is readable: something else that the server waits for has come.
    pub other: Option<BorrowedFd<'a>>,
}

/// How long a connection may take.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From the last bytes of the client to the first ones of the server.
    pub request: Duration,
    /// From the last bytes of either to the next ones of the client.
    pub idle: Duration,
}

/// How a connection ended that the server was there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The server has closed it.
    ByServer,
    /// The client has, or it is gone.
    ByClient,
    /// Nothing came for too long.
    Idle,
    /// [`Connection::deadline`] came first.
    OutOfTime,
}

/// What is on its way between a client and a machine.
struct Between<'a> {
    connection: &'a mut dyn Connection,
    id: ConnectionId,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    /// The client sends no more.
    client_ended: bool,
    /// It was told that the server sends no more.
    finished: bool,
    /// When bytes came from the client, and whether the server has answered since.
    last_input: Instant,
    answered: bool,
    last_byte: Instant,
    /// When nobody was found to be there any more.
    gone_since: Option<Instant>,
}

/// Serves a connection until one of the two closes it. The machine is [`Event::Idle`] before and, but for errors, after it.
pub fn serve(
    machine: &mut Machine,
    listener: ListenerId,
    connection: &mut dyn Connection,
    times: Times,
    host: &mut dyn Host,
) -> Result<Closed, Cause> {
    let now = Instant::now();
    let peer = connection.peer().map_or(Address::Unnamed, Address::Inet);
    let Some(id) = machine.linux.connect_from_outside(listener, peer) else {
        return Err(Cause::Machine("its listener takes no connection".into()));
    };
    let mut between = Between {
        connection,
        id,
        to_server: Vec::new(),
        to_client: Vec::new(),
        client_ended: false,
        finished: false,
        last_input: now,
        answered: false,
        last_byte: now,
        gone_since: None,
    };
    machine.set_serving(id);
    let before = machine.set_slice(Some(LOOK));
    let served = machine.watched(now + times.request, |machine| {
        between.serve(machine, times, host)
    });
    machine.set_slice(before);
    served
}

/// A host that has the program end when its client is gone, and lets others have the processor where it boots.
struct WithClient<'a> {
    host: &'a mut dyn Host,
    connection: &'a mut dyn Connection,
    gone_since: &'a mut Option<Instant>,
}

impl Host for WithClient<'_> {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        self.host.output(stream, bytes);
    }

    fn note(&mut self, line: &str) {
        self.host.note(line);
    }

    fn input(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.host.input(buf)
    }

    fn traces(&self) -> bool {
        self.host.traces()
    }

    fn trace(&mut self, line: &str) {
        self.host.trace(line);
    }

    fn give_way(&mut self, time: Duration) -> ControlFlow<()> {
        if self.connection.is_gone() {
            let since = *self.gone_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= LOOK {
                return ControlFlow::Break(());
            }
        }
        match self.host.slice() {
            Some(_) => self.host.give_way(time),
            None => ControlFlow::Continue(()),
        }
    }
}

impl Between<'_> {
    fn serve(
        &mut self,
        machine: &mut Machine,
        times: Times,
        host: &mut dyn Host,
    ) -> Result<Closed, Cause> {
        // What has come already is there when the server accepts the connection, and spares it a wait.
        if self.receive(machine).is_err() {
            machine.linux.sockets_mut().reset(self.id);
            return Ok(Closed::ByClient);
        }
        loop {
            // What it has sent is on its way before it is done, and gives it time for more.
            let mut event = machine.go_on(self.deadline(times), &mut self.with_client(host));
            while event == Ok(Event::Sent) {
                // A client that is gone is found to be so below, when the program waits.
                let _ = self.send(machine);
                event = machine.run(self.deadline(times), &mut self.with_client(host));
            }
            let (deadline, over) = (self.deadline(times), self.connection.deadline());
            let until = match event {
                Err(Cause::Exit(_)) if machine.linux.tasks().is_child() => {
                    return self.after_exit(machine, deadline);
                }
                Err(cause) => return Err(cause),
                Ok(Event::Idle(until)) => until,
                Ok(Event::Hypercall(_) | Event::SystemCall | Event::Sent) => {
                    return Err(Cause::Killed(libc::SIGSEGV));
                }
            };
            let Ok(moved) = self.pump(machine) else {
                machine.linux.sockets_mut().reset(self.id);
                return Ok(Closed::ByClient);
            };
            if machine.linux.sockets().is_closed(self.id) && self.to_client.is_empty() {
                machine.linux.sockets_mut().hang_up(self.id);
                return Ok(Closed::ByServer);
            }
            if moved {
                continue;
            }
            let end = if self.answered {
                let silence = self.connection.max_silence(times.idle);
                let end = self.last_byte + silence;
                over.map_or(end, |over| over.min(end))
            } else {
                deadline
            };
            let until = until.map_or(end, |until| until.min(end));
            let awaited = Awaited {
                receive: !self.client_ended && self.to_server.is_empty(),
                send: !self.to_client.is_empty(),
                other: machine.linux.outside_event(),
            };
            if self.connection.wait(awaited, until).is_err() {
                machine.linux.sockets_mut().reset(self.id);
                return Ok(Closed::ByClient);
            }
            if self.to_server.is_empty() && self.connection.is_gone() {
                return Ok(self.without_client(machine));
            }
            let now = Instant::now();
            if over.is_some_and(|over| now >= over) {
                machine.linux.sockets_mut().reset(self.id);
                return Ok(Closed::OutOfTime);
            }
            if now >= end {
                if !self.answered {
                    return Err(Cause::Timeout);
                }
                machine.linux.sockets_mut().hang_up(self.id);
                return Ok(Closed::Idle);
            }
        }
    }

    /// Nobody is there any more. Who has said before that nothing more comes, has closed it in order.
    fn without_client(&self, machine: &mut Machine) -> Closed {
        let sockets = machine.linux.sockets_mut();
        match self.client_ended {
            true => sockets.hang_up(self.id),
            false => sockets.reset(self.id),
        }
        match self.finished {
            true => Closed::ByServer,
            false => Closed::ByClient,
        }
    }

    fn with_client<'a>(&'a mut self, host: &'a mut dyn Host) -> WithClient<'a> {
        WithClient {
            host,
            connection: &mut *self.connection,
            gone_since: &mut self.gone_since,
        }
    }

    /// When the program is stopped if nothing is received or sent meanwhile.
    fn deadline(&self, times: Times) -> Instant {
        let usual = self.last_input.max(self.last_byte) + times.request;
        let over = self.connection.deadline();
        over.map_or(usual, |over| over.min(usual))
    }

    /// The child that was forked for the connection is done: the client gets the rest.
    fn after_exit(&mut self, machine: &mut Machine, deadline: Instant) -> Result<Closed, Cause> {
        loop {
            match self.send(machine) {
                Err(_) => return Ok(Closed::ByClient),
                Ok(_) if self.to_client.is_empty() => return Ok(Closed::ByServer),
                Ok(_) => {}
            }
            let awaited = Awaited {
                send: true,
                ..Awaited::default()
            };
            if self.connection.wait(awaited, deadline).is_err() {
                return Ok(Closed::ByClient);
            }
            if Instant::now() >= deadline {
                return Err(Cause::Timeout);
            }
        }
    }

    /// Moves what can be moved both ways. True if that was anything.
    fn pump(&mut self, machine: &mut Machine) -> io::Result<bool> {
        let sent = self.send(machine)?;
        let received = self.receive(machine)?;
        Ok(sent || received)
    }

    fn send(&mut self, machine: &mut Machine) -> io::Result<bool> {
        let mut moved = false;
        loop {
            if self.to_client.is_empty() {
                self.to_client = machine.linux.sockets_mut().take(self.id, PIECE);
            }
            if self.to_client.is_empty() {
                break;
            }
            self.answered = true;
            let Some(n) = self.connection.send(&self.to_client)? else {
                return Ok(moved);
            };
            self.to_client.drain(..n.min(self.to_client.len()));
            self.last_byte = Instant::now();
            moved = true;
        }
        if machine.linux.sockets().sent_end(self.id) && !self.finished {
            self.finished = true;
            self.connection.finish()?;
        }
        Ok(moved)
    }

    fn receive(&mut self, machine: &mut Machine) -> io::Result<bool> {
        let mut moved = false;
        let mut buf = [0; 16 << 10];
        loop {
            if !self.to_server.is_empty() {
                let n = machine.linux.sockets_mut().feed(self.id, &self.to_server);
                self.to_server.drain(..n.min(self.to_server.len()));
                moved |= n > 0;
                if !self.to_server.is_empty() {
                    return Ok(moved);
                }
            }
            if self.client_ended {
                return Ok(moved);
            }
            match self.connection.receive(&mut buf)? {
                None => return Ok(moved),
                Some(0) => {
                    self.client_ended = true;
                    machine.linux.sockets_mut().finish(self.id);
                    return Ok(true);
                }
                Some(n) => {
                    self.to_server.extend_from_slice(&buf[..n.min(buf.len())]);
                    let now = Instant::now();
                    (self.last_input, self.last_byte) = (now, now);
                    self.answered = false;
                }
            }
        }
    }
}
