//! A client's connection as a server's machine needs it, and what goes on between the two.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::failure::Cause;
use crate::linux::{Address, ConnectionId, ListenerId};
use crate::machine::{Event, Machine};
use crate::request::{Host, Stream};

/// How often a program that computes is interrupted, to look whether its client is there, or has other things to do.
const LOOK: Duration = Duration::from_millis(10);
/// How long it may go on without a client: it may be about to close the connection itself, which leaves a fork that can be reset.
const ALONE: Duration = Duration::from_millis(100);
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

    /// The same, where the server has reset the connection: what was sent may not be all.
    ///
    /// # Errors
    /// The client is gone.
    fn break_off(&mut self) -> io::Result<()> {
        self.finish()
    }

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

    /// Whether whoever serves it is to leave the program where it is for now, and go on later. The program is `idle`, or in the
    /// middle of something.
    fn pauses(&mut self, idle: bool) -> bool {
        let _ = idle;
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

/// A connection between a client and a machine, and what is on its way.
#[derive(Debug)]
pub struct Dialogue {
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
    /// The program was left in the middle of something.
    is_amid: bool,
}

impl Dialogue {
    /// Begins one from this address. The machine is [`Event::Idle`].
    pub fn new(
        machine: &mut Machine,
        listener: ListenerId,
        peer: Option<SocketAddr>,
    ) -> Result<Self, Cause> {
        let now = Instant::now();
        let peer = peer.map_or(Address::Unnamed, Address::Inet);
        let Some(id) = machine.linux.connect_from_outside(listener, peer) else {
            return Err(Cause::Machine("its listener takes no connection".into()));
        };
        machine.memory.start_request();
        machine.set_serving(id);
        Ok(Self {
            id,
            to_server: Vec::new(),
            to_client: Vec::new(),
            client_ended: false,
            finished: false,
            last_input: now,
            answered: false,
            last_byte: now,
            gone_since: None,
            is_amid: false,
        })
    }

    /// Goes on with it until one of the two closes it, or [`Connection::pauses`]: then it is `None`. The machine is [`Event::Idle`]
    /// after it, but for errors, and unless it [is amid](Self::is_amid) something.
    pub fn go_on(
        &mut self,
        machine: &mut Machine,
        connection: &mut dyn Connection,
        times: Times,
        host: &mut dyn Host,
    ) -> Result<Option<Closed>, Cause> {
        let before = machine.set_slice(Some(LOOK));
        let mut between = Between {
            connection,
            state: self,
        };
        let deadline = between.deadline(times);
        let served = machine.watched_on(deadline, |machine| between.serve(machine, times, host));
        machine.set_slice(before);
        served
    }

    /// Whether the program was left in the middle of something.
    pub fn is_amid(&self) -> bool {
        self.is_amid
    }
}

/// Serves a connection until one of the two closes it. The machine is [`Event::Idle`] before and, but for errors, after it.
pub fn serve(
    machine: &mut Machine,
    listener: ListenerId,
    connection: &mut dyn Connection,
    times: Times,
    host: &mut dyn Host,
) -> Result<Closed, Cause> {
    let mut dialogue = Dialogue::new(machine, listener, connection.peer())?;
    loop {
        if let Some(closed) = dialogue.go_on(machine, connection, times, host)? {
            return Ok(closed);
        }
    }
}

/// Both ends of it.
struct Between<'a> {
    connection: &'a mut dyn Connection,
    state: &'a mut Dialogue,
}

/// A host that has the program end when its client is gone, and lets others have the processor where it boots.
struct WithClient<'a> {
    host: &'a mut dyn Host,
    connection: &'a mut dyn Connection,
    gone_since: &'a mut Option<Instant>,
    /// The program is left where it is.
    is_amid: &'a mut bool,
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
            if since.elapsed() >= ALONE {
                return ControlFlow::Break(());
            }
        }
        if self.connection.pauses(false) {
            *self.is_amid = true;
            return ControlFlow::Break(());
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
    ) -> Result<Option<Closed>, Cause> {
        // What has come already is there when the server accepts the connection, and spares it a wait. A call that is being answered
        // has what there was.
        let is_answering = self.state.is_amid && machine.is_answering();
        if !is_answering && self.receive(machine).is_err() {
            machine.linux.sockets_mut().reset(self.state.id);
            return Ok(Some(Closed::ByClient));
        }
        loop {
            let (deadline, amid) = (self.deadline(times), mem::take(&mut self.state.is_amid));
            let mut event = match amid {
                true => machine.go_on_amid(deadline, &mut self.with_client(host)),
                false => machine.go_on(deadline, &mut self.with_client(host)),
            };
            // What it has sent is on its way before it is done, and gives it time for more.
            while event == Ok(Event::Sent) {
                // A client that is gone is found to be so below, when the program waits.
                let _ = self.send(machine);
                if self.connection.pauses(false) {
                    self.state.is_amid = true;
                    return Ok(None);
                }
                event = machine.run(self.deadline(times), &mut self.with_client(host));
            }
            let (deadline, over) = (self.deadline(times), self.connection.deadline());
            let until = match event {
                Err(Cause::Exit(_)) if machine.linux.tasks().is_child() => {
                    return self.after_exit(machine, deadline).map(Some);
                }
                Err(Cause::Stopped) if self.state.is_amid => return Ok(None),
                Err(cause) => {
                    // What it has sent before it failed.
                    let _ = self.send(machine);
                    return Err(cause);
                }
                Ok(Event::Idle(until)) => until,
                Ok(Event::Hypercall(_) | Event::SystemCall | Event::Sent) => {
                    return Err(Cause::Killed(libc::SIGSEGV));
                }
            };
            let Ok(moved) = self.pump(machine) else {
                machine.linux.sockets_mut().reset(self.state.id);
                return Ok(Some(Closed::ByClient));
            };
            if machine.linux.sockets().is_closed(self.state.id) && self.state.to_client.is_empty() {
                machine.linux.sockets_mut().hang_up(self.state.id);
                return Ok(Some(Closed::ByServer));
            }
            if moved {
                continue;
            }
            if self.connection.pauses(true) {
                return Ok(None);
            }
            let end = if self.state.answered {
                let silence = self.connection.max_silence(times.idle);
                let end = self.state.last_byte + silence;
                over.map_or(end, |over| over.min(end))
            } else {
                deadline
            };
            let until = until.map_or(end, |until| until.min(end));
            let awaited = Awaited {
                receive: !self.state.client_ended && self.state.to_server.is_empty(),
                send: !self.state.to_client.is_empty(),
                other: machine.linux.outside_event(),
            };
            if self.connection.wait(awaited, until).is_err() {
                machine.linux.sockets_mut().reset(self.state.id);
                return Ok(Some(Closed::ByClient));
            }
            if self.state.to_server.is_empty() && self.connection.is_gone() {
                return Ok(Some(self.without_client(machine)));
            }
            let now = Instant::now();
            if over.is_some_and(|over| now >= over) {
                machine.linux.sockets_mut().reset(self.state.id);
                return Ok(Some(Closed::OutOfTime));
            }
            if now >= end {
                if !self.state.answered {
                    return Err(Cause::Timeout);
                }
                machine.linux.sockets_mut().hang_up(self.state.id);
                return Ok(Some(Closed::Idle));
            }
        }
    }

    /// Nobody is there any more. Who has said before that nothing more comes, has closed it in order.
    fn without_client(&self, machine: &mut Machine) -> Closed {
        let sockets = machine.linux.sockets_mut();
        match self.state.client_ended {
            true => sockets.hang_up(self.state.id),
            false => sockets.reset(self.state.id),
        }
        match self.state.finished {
            true => Closed::ByServer,
            false => Closed::ByClient,
        }
    }

    fn with_client<'a>(&'a mut self, host: &'a mut dyn Host) -> WithClient<'a> {
        WithClient {
            host,
            connection: &mut *self.connection,
            gone_since: &mut self.state.gone_since,
            is_amid: &mut self.state.is_amid,
        }
    }

    /// When the program is stopped if nothing is received or sent meanwhile.
    fn deadline(&self, times: Times) -> Instant {
        let usual = self.state.last_input.max(self.state.last_byte) + times.request;
        let over = self.connection.deadline();
        over.map_or(usual, |over| over.min(usual))
    }

    /// The child that was forked for the connection is done: the client gets the rest.
    fn after_exit(&mut self, machine: &mut Machine, deadline: Instant) -> Result<Closed, Cause> {
        loop {
            match self.send(machine) {
                Err(_) => return Ok(Closed::ByClient),
                Ok(_) if self.state.to_client.is_empty() => return Ok(Closed::ByServer),
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
            if self.state.to_client.is_empty() {
                self.state.to_client = machine.linux.sockets_mut().take(self.state.id, PIECE);
            }
            if self.state.to_client.is_empty() {
                break;
            }
            self.state.answered = true;
            let Some(n) = self.connection.send(&self.state.to_client)? else {
                return Ok(moved);
            };
            self.state
                .to_client
                .drain(..n.min(self.state.to_client.len()));
            self.state.last_byte = Instant::now();
            moved = true;
        }
        if machine.linux.sockets().sent_end(self.state.id) && !self.state.finished {
            self.state.finished = true;
            match machine.linux.sockets().is_reset(self.state.id) {
                true => self.connection.break_off()?,
                false => self.connection.finish()?,
            }
        }
        Ok(moved)
    }

    fn receive(&mut self, machine: &mut Machine) -> io::Result<bool> {
        let mut moved = false;
        let mut buf = [0; 16 << 10];
        loop {
            if !self.state.to_server.is_empty() {
                let n = machine
                    .linux
                    .sockets_mut()
                    .feed(self.state.id, &self.state.to_server);
                self.state
                    .to_server
                    .drain(..n.min(self.state.to_server.len()));
                moved |= n > 0;
                if !self.state.to_server.is_empty() {
                    return Ok(moved);
                }
            }
            if self.state.client_ended {
                return Ok(moved);
            }
            match self.connection.receive(&mut buf)? {
                None => return Ok(moved),
                Some(0) => {
                    self.state.client_ended = true;
                    machine.linux.sockets_mut().finish(self.state.id);
                    return Ok(true);
                }
                Some(n) => {
                    self.state
                        .to_server
                        .extend_from_slice(&buf[..n.min(buf.len())]);
                    let now = Instant::now();
                    (self.state.last_input, self.state.last_byte) = (now, now);
                    self.state.answered = false;
                }
            }
        }
    }
}
