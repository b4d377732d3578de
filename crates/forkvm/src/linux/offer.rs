//! What the dispatcher in the guest may answer: derived from the state at each entry, and only where the answer is simple and
//! certain. What it has answered is carried out here afterwards, by the functions of any other call.

use std::time::Instant;

use syscalls::Sysno;

use crate::arch::dispatcher::{
    ACCEPTABLE, FUTEXES_KNOWN, INET, INPUT_LEN, MOST_ALIKE, NEVER_BLOCKS, NO_SIGNALS, NONE_WAITS,
    OTHERS_QUIET, OUTPUT_LEN, Offer, UNTOLD, WATCHED, Way,
};
use crate::linux::abi::length;
use crate::linux::call::{Call, Outcome, WaitOn};
use crate::linux::files::fds::{Files, Kind, O_NONBLOCK};
use crate::linux::files::ready::Look;
use crate::linux::net::address::Address;
use crate::linux::net::epoll::{EPOLLEXCLUSIVE, Epoll, MAX_WATCHES, Watch};
use crate::linux::net::outside::ConnectionId;
use crate::linux::net::readiness::{IN, RDNORM, Readiness};
use crate::linux::net::socket::{CAPACITY, Id, Socket, State, Style};
use crate::linux::state::Linux;
use crate::linux::tasks::signals;
use crate::linux::tasks::task::Task;
use crate::memory::user::UserMemory;
use crate::random::Random;
use crate::request::Host;

/// The calls about the connection.
const OF_CONNECTION: [(Sysno, Way); 15] = [
    (Sysno::accept, Way::Accept),
    (Sysno::accept4, Way::Accept4),
    (Sysno::read, Way::Read),
    (Sysno::recvfrom, Way::Receive),
    (Sysno::readv, Way::ReadVector),
    (Sysno::write, Way::Write),
    (Sysno::sendto, Way::Send),
    (Sysno::writev, Way::WriteVector),
    (Sysno::sendmsg, Way::SendMessage),
    (Sysno::setsockopt, Way::SetOption),
    (Sysno::epoll_ctl, Way::EpollControl),
    (Sysno::epoll_wait, Way::EpollWait),
    (Sysno::epoll_pwait, Way::EpollPwait),
    (Sysno::shutdown, Way::Shutdown),
    (Sysno::getsockname, Way::LocalName),
];
/// The others whose answers are not the same each time.
const OF_TASKS: [(Sysno, Way); 4] = [
    (Sysno::getpeername, Way::PeerName),
    (Sysno::futex, Way::Futex),
    (Sysno::rt_sigprocmask, Way::SignalMask),
    (Sysno::set_robust_list, Way::RobustList),
];
/// Those of files.
const OF_FILES: [(Sysno, Way); 3] = [
    (Sysno::close, Way::Close),
    (Sysno::fstat, Way::Status),
    (Sysno::newfstatat, Way::StatusAt),
];
/// Those whose answers are.
const CONSTANT: [Sysno; 8] = [
    Sysno::gettid,
    Sysno::getpid,
    Sysno::getppid,
    Sysno::getuid,
    Sysno::geteuid,
    Sysno::getgid,
    Sysno::getegid,
    Sysno::sched_yield,
];
/// `AT_EMPTY_PATH`
const EMPTY_PATH: u32 = 0x1000;
/// What may be in the queue: all of them change something, and none ever waits that was answered.
const QUEUED: [Sysno; 11] = [
    Sysno::close,
    Sysno::accept4,
    Sysno::read,
    Sysno::write,
    Sysno::setsockopt,
    Sysno::epoll_ctl,
    Sysno::epoll_wait,
    Sysno::shutdown,
    Sysno::futex,
    Sysno::rt_sigprocmask,
    Sysno::set_robust_list,
];

impl Linux {
    /// Whether such a call may be answered in the guest, if all else allows it.
    pub fn is_answered(&self, call: &Call) -> bool {
        let Some(number) = usize::try_from(call.number).ok().and_then(Sysno::new) else {
            return false;
        };
        let kind = || self.files.get(call.args[0]).map(|file| &file.kind);
        match number {
            Sysno::close | Sysno::fstat => kind().is_ok_and(is_file),
            Sysno::newfstatat => call.args[3] == u64::from(EMPTY_PATH),
            Sysno::write => matches!(kind(), Ok(Kind::Socket(_) | Kind::EventFd(_))),
            Sysno::read | Sysno::readv | Sysno::writev => matches!(kind(), Ok(Kind::Socket(_))),
            _ => {
                let mut listed = OF_CONNECTION.iter().chain(&OF_TASKS).map(|(of, _)| of);
                listed.any(|of| *of == number) || CONSTANT.contains(&number)
            }
        }
    }

    /// Writes the `struct stat` of a descriptor there, which has just been opened. `None` if it is not to be told of.
    pub fn write_status(
        &mut self,
        opened: u64,
        at: u64,
        memory: &mut dyn UserMemory,
        host: &mut dyn Host,
        random: &mut Random,
    ) -> Option<i32> {
        let call = Call {
            number: Sysno::fstat as u64,
            args: [opened, at, 0, 0, 0, 0],
            rsp: 0,
        };
        let written = self.call_again(call, memory, host, random);
        (written == Outcome::Return(0)).then(|| opened.try_into().ok())?
    }

    /// What may be answered now to the current task, and the bytes that have come on the connection that is served.
    pub fn offer(&self, serving: Option<ConnectionId>) -> (Offer, Vec<u8>) {
        let mut offer = Offer::new();
        self.offer_constants(&mut offer);
        if let Some(task) = self.tasks.iter().nth(self.tasks.current_place()) {
            self.offer_signals(&mut offer, task);
        }
        self.offer_futexes(&mut offer);
        if !self.files.has_sockets() {
            return (offer, Vec::new());
        }
        for (number, way) in OF_FILES {
            offer.way(number as usize, way);
        }
        let serving = serving.and_then(|id| Serving::find(&self.files, id));
        let descriptors = Descriptors::look(&self.files, serving.as_ref());
        offer.way(Sysno::write as usize, Way::Write);
        offer.counters(&descriptors.counters);
        if self.files.locks.is_empty() {
            offer.closable(&descriptors.closable);
        }
        let Some(serving) = serving else {
            return (offer, Vec::new());
        };
        let input = self.offer_connection(&mut offer, &serving, &descriptors);
        (offer, input)
    }

    fn offer_constants(&self, offer: &mut Offer) {
        let ids = self.tasks.ids();
        let mut answer = |number: Sysno, value: i64| offer.constant(number as usize, value);
        answer(Sysno::gettid, self.tasks.tid().into());
        if self.tasks.has_one_pid() {
            answer(Sysno::getpid, self.tasks.pid().into());
        }
        answer(Sysno::getppid, self.tasks.parent().into());
        answer(Sysno::getuid, ids.user.real.into());
        answer(Sysno::geteuid, ids.user.effective.into());
        answer(Sysno::getgid, ids.group.real.into());
        answer(Sysno::getegid, ids.group.effective.into());
        if self.tasks.len() == 1 {
            answer(Sysno::sched_yield, 0);
        }
    }

    fn offer_signals(&self, offer: &mut Offer, task: &Task) {
        offer.way(Sysno::set_robust_list as usize, Way::RobustList);
        let of = &task.signals;
        let pending = signals::awaited(&self.signals, &self.tasks).set;
        if pending == 0 && of.after_call.is_none() && of.interrupted.is_none() {
            offer.facts(NO_SIGNALS);
            offer.way(Sysno::rt_sigprocmask as usize, Way::SignalMask);
            offer.mask(of.mask);
        }
    }

    fn offer_futexes(&self, offer: &mut Offer) {
        let mut awaited = Vec::new();
        for blocked in self.tasks.iter().filter_map(Task::blocked) {
            match blocked.wait.on {
                WaitOn::Futex { address, .. } if blocked.woken.is_none() => awaited.push(address),
                WaitOn::Futexes => return,
                _ => {}
            }
        }
        if offer.futexes(&awaited) {
            offer.facts(FUTEXES_KNOWN);
            offer.way(Sysno::futex as usize, Way::Futex);
        }
    }

    /// Gives the bytes that have come on it.
    fn offer_connection(
        &self,
        offer: &mut Offer,
        serving: &Serving<'_>,
        descriptors: &Descriptors,
    ) -> Vec<u8> {
        let Some(next) = self.files.lowest_free() else {
            return Vec::new();
        };
        for (number, way) in OF_CONNECTION.into_iter().chain([OF_TASKS[0]]) {
            offer.way(number as usize, way);
        }
        offer.listeners(&descriptors.listeners, next);
        if descriptors.never_block {
            offer.facts(NEVER_BLOCKS);
        }
        offer.facts(match serving.waits_at {
            Some(_) => ACCEPTABLE,
            None => NONE_WAITS,
        });
        let watched = match (serving.waits_at, descriptors.connection.as_slice()) {
            (Some(_), []) => None,
            (None, &[(fd, file)]) if self.files.references(file) == 1 => {
                offer.connection(fd);
                Some((fd, file))
            }
            // There is no other descriptor of it, or it is left alone.
            _ => return Vec::new(),
        };
        let socket = serving.socket;
        if socket.nature.is_inet() {
            offer.facts(INET);
        }
        let bytes = |address: &Option<_>| address.as_ref().map_or(Vec::new(), Address::bytes);
        let over = socket.read_shut && socket.write_shut;
        let peer = if over {
            Vec::new()
        } else {
            bytes(&socket.remote)
        };
        offer.addresses(&bytes(&socket.local), &peer);
        let input = serving.input();
        let now = self.files.sockets.readiness(serving.id);
        // Bytes that are not offered stay where they are.
        let stays = socket.read_shut || input.len() != socket.available();
        let others = if stays { 0 } else { IN | RDNORM };
        let may_send = serving.may_send(&self.files);
        offer.state_of_connection(now.events & !others, length32(input.len()), may_send);
        self.offer_epoll(offer, (now, watched), serving, descriptors);
        input
    }

    fn offer_epoll(
        &self,
        offer: &mut Offer,
        (now, connection): (Readiness, Option<(i32, usize)>),
        serving: &Serving<'_>,
        descriptors: &Descriptors,
    ) {
        let is_listener = |watch: &Watch| descriptors.listening.contains(&watch.file);
        let is_connection = |watch: &Watch| connection.is_some_and(|(_, file)| file == watch.file);
        let concerns = |epoll: &Epoll| {
            let mut watches = epoll.watches.iter();
            watches.any(|watch| is_listener(watch) || is_connection(watch))
        };
        let all = || descriptors.epolls.iter().map(|&(_, id)| id);
        let of = |id| self.files.epolls.get(id);
        let Some(id) = all().find(|&id| of(id).is_some_and(concerns)) else {
            return;
        };
        let several = all().any(|other| other != id && of(other).is_some_and(concerns));
        let Some(epoll) = of(id).filter(|epoll| !several && epoll.watches.len() < MAX_WATCHES / 64)
        else {
            return;
        };
        let mut own = epoll.watches.iter().filter(|watch| is_connection(watch));
        let watch = own.next();
        let by_this = |watch: &Watch| connection.is_some_and(|(fd, _)| fd == watch.fd);
        let is_plain = |watch: &Watch| by_this(watch) && watch.events & EPOLLEXCLUSIVE == 0;
        if own.next().is_some() || !watch.is_none_or(is_plain) {
            return;
        }
        let same = descriptors.epolls.iter().filter(|&&(_, other)| other == id);
        let same: Vec<i32> = same.map(|&(fd, _)| fd).take(MOST_ALIKE).collect();
        offer.epolls(&same);
        if let Some(watch) = watch {
            offer.watch(watch.events, watch.data);
            offer.facts(WATCHED);
            if watch.due(now) != 0 {
                offer.facts(UNTOLD);
            }
        }
        let awaited = signals::awaited(&self.signals, &self.tasks);
        let mut look = Look::new(&self.files, awaited);
        // The listener's connection has been taken by the time that this matters.
        let accepted = |watch: &Watch| serving.waits_at.is_some() && is_listener(watch);
        let quiet = epoll.watches.iter().all(|watch| {
            is_connection(watch)
                || accepted(watch)
                || self.stays_as_it_is(watch) && watch.due(look.open_file(watch.file)) == 0
        });
        if quiet {
            offer.facts(OTHERS_QUIET);
        }
    }

    /// Whether what is watched does not become ready by time alone.
    fn stays_as_it_is(&self, watch: &Watch) -> bool {
        match self.files.open_at(watch.file).map(|file| &file.kind) {
            Some(Kind::TimerFd(timer)) => timer.next_ready(Instant::now()).is_none(),
            Some(Kind::Epoll(_)) => false,
            _ => true,
        }
    }

    /// Carries out a call that the guest has answered already, before anything else is done to the state. False if it may not be
    /// answered there, or its answer is another one.
    pub fn carry_out(
        &mut self,
        call: Call,
        answer: i64,
        memory: &mut dyn UserMemory,
        host: &mut dyn Host,
        random: &mut Random,
    ) -> bool {
        let number = usize::try_from(call.number).ok().and_then(Sysno::new);
        // No more than the dispatcher has room for: all of a queue is to be over as soon as a call is that exits.
        let fits = match number {
            Some(Sysno::read | Sysno::write) => call.args[2] <= OUTPUT_LEN,
            _ => true,
        };
        fits && number.is_some_and(|number| QUEUED.contains(&number))
            && self.call_again(call, memory, host, random) == Outcome::Return(answer)
    }
}

/// The program's end of the connection that is served.
struct Serving<'a> {
    id: Id,
    socket: &'a Socket,
    /// The only listener where a connection waits, if it waits there alone.
    waits_at: Option<Id>,
}

impl<'a> Serving<'a> {
    /// `None` where it is not as connections mostly are.
    fn find(files: &'a Files, connection: ConnectionId) -> Option<Self> {
        let sockets = &files.sockets;
        let id = sockets.program_end(connection)?;
        let socket = sockets.get(id).ok()?;
        let mut waiting = sockets
            .iter()
            .filter_map(|(at, socket)| match &socket.state {
                State::Listening { waiting, .. } if !waiting.is_empty() => Some((at, waiting)),
                _ => None,
            });
        let waits_at = match (waiting.next(), waiting.next()) {
            (None, _) => None,
            (Some((at, waiting)), None) if waiting.len() == 1 && waiting.contains(&id) => Some(at),
            _ => return None,
        };
        let simple = socket.nature.style == Style::Stream
            && socket.error.is_none()
            && socket.all_rights().next().is_none();
        simple.then_some(Self {
            id,
            socket,
            waits_at,
        })
    }

    /// What has come, if that is not too much: else larger reads are better.
    fn input(&self) -> Vec<u8> {
        let most = usize::try_from(INPUT_LEN).unwrap_or(usize::MAX);
        match self.socket.available() {
            len if len <= most => self.socket.peek_bytes(len),
            _ => Vec::new(),
        }
    }

    /// How much may be sent that leaves its other end ready for more.
    fn may_send(&self, files: &Files) -> u32 {
        let Some(room) = files.sockets.room_of_other_end(self.id) else {
            return 0;
        };
        let most = length(room.saturating_sub(CAPACITY / 3 + 1)).min(OUTPUT_LEN);
        match self.socket.write_shut {
            true => 0,
            false => u32::try_from(most).unwrap_or(0),
        }
    }
}

/// What descriptors there are that matter.
#[derive(Default)]
struct Descriptors {
    /// Of listening sockets that are answered for, and their open files.
    listeners: Vec<i32>,
    listening: Vec<usize>,
    never_block: bool,
    /// Of the connection, with its open file.
    connection: Vec<(i32, usize)>,
    /// Of epoll_create(2), with which it is.
    epolls: Vec<(i32, usize)>,
    /// Of eventfd(2).
    counters: Vec<i32>,
    /// Of files.
    closable: Vec<i32>,
}

impl Descriptors {
    fn look(files: &Files, serving: Option<&Serving<'_>>) -> Self {
        let mut found = Self {
            never_block: true,
            ..Self::default()
        };
        for (fd, descriptor) in files.pointed() {
            let Some(file) = files.open_at(descriptor.file) else {
                continue;
            };
            match (&file.kind, serving) {
                (Kind::EventFd(counter), _) if counter.is_far_from_full() => {
                    found.counters.push(fd);
                }
                (kind, _) if is_file(kind) => found.closable.push(fd),
                (Kind::Epoll(id), _) => found.epolls.push((fd, *id)),
                (Kind::Socket(id), Some(serving)) if *id == serving.id => {
                    found.connection.push((fd, descriptor.file));
                }
                (Kind::Socket(id), Some(serving)) => {
                    let socket = files.sockets.get(*id);
                    let listens = socket.is_ok_and(|socket| {
                        let listens = matches!(socket.state, State::Listening { .. });
                        listens && socket.nature.style == Style::Stream
                    });
                    if listens && serving.waits_at.is_none_or(|at| at == *id) {
                        found.listeners.push(fd);
                        found.listening.push(descriptor.file);
                        found.never_block &= file.flags & O_NONBLOCK != 0;
                    }
                }
                _ => {}
            }
        }
        found
    }
}

/// Whether it is a file, which nobody waits for.
fn is_file(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::File(_) | Kind::Node(..) | Kind::Folder(..) | Kind::Text(_) | Kind::Device(_)
    )
}

fn length32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
