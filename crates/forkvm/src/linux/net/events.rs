//! eventfd(2), timerfd_create(2), signalfd(2), epoll(7).

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::linux::abi::{
    Guest, Layout, MOST_BYTES, Reply, Value, count, field_u32, field_u64, flags, int, length,
};
use crate::linux::call::{Outcome, Wait, WaitOn};
use crate::linux::files::fds::{Files, Kind, O_CLOEXEC, O_NONBLOCK, O_PATH, OpenFile};
use crate::linux::files::pieces::Pieces;
use crate::linux::files::ready::{Look, can_wait};
use crate::linux::kept::Kept;
use crate::linux::net::calls::wait;
use crate::linux::net::counters::{EventFd, TimerFd};
use crate::linux::net::epoll::{EPOLLET, EPOLLEXCLUSIVE, EPOLLWAKEUP, Epoll, MOST_NESTED, Watch};
use crate::linux::net::readiness::{ERR, HUP, IN, OUT, Readiness};
use crate::linux::tasks::pending::{Awaited, INFO_LEN, Signal, bit};
use crate::linux::tasks::signals::{self, Signals};
use crate::linux::tasks::task::Tasks;
use crate::linux::tasks::task_signals::{SIGKILL, SIGSTOP};
use crate::linux::time::{Clocks, read_deadline, read_duration};

/// `struct epoll_event`, which is packed on x86-64: events, data.
const EVENT_LEN: u64 = 12;

fn add(files: &mut Files, kind: Kind, how: u32) -> Value {
    let file = OpenFile::new(kind, 2 | how & O_NONBLOCK);
    files.add(file, how & O_CLOEXEC != 0).map(u64::cast_signed)
}

fn check_flags(how: u32, known: u32) -> Result<(), Errno> {
    match how & !known {
        0 => Ok(()),
        _ => Err(Errno::INVAL),
    }
}

fn blocks(files: &Files, fd: u64) -> Result<bool, Errno> {
    Ok(files.get(fd)?.flags & O_NONBLOCK == 0)
}

fn wait_or_again(blocks: bool) -> Reply {
    match blocks {
        true => Ok(wait(None)),
        false => Err(Errno::AGAIN),
    }
}

/// eventfd2(2)
pub fn eventfd2(files: &mut Files, initial: u64, how: u64) -> Value {
    const EFD_SEMAPHORE: u32 = 1;
    let how = flags(how);
    check_flags(how, EFD_SEMAPHORE | O_NONBLOCK | O_CLOEXEC)?;
    let counter = EventFd::new(flags(initial).into(), how & EFD_SEMAPHORE != 0);
    add(files, Kind::EventFd(counter), how)
}

/// read(2) of a counter: its value.
pub fn read_eventfd(files: &mut Files, guest: &mut Guest<'_>, fd: u64, pieces: &Pieces) -> Reply {
    if pieces.total() < 8 {
        return Err(Errno::INVAL);
    }
    let blocks = blocks(files, fd)?;
    let Kind::EventFd(counter) = &mut files.get_mut(fd)?.kind else {
        return Err(Errno::BADF);
    };
    let Some(value) = counter.peek() else {
        return wait_or_again(blocks);
    };
    counter.take(value);
    pieces.scatter(guest, 0, &value.to_le_bytes())?;
    Ok(Outcome::Return(8))
}

/// write(2) to a counter: what is added.
pub fn write_eventfd(files: &mut Files, guest: &Guest<'_>, fd: u64, pieces: &Pieces) -> Reply {
    if pieces.total() < 8 {
        return Err(Errno::INVAL);
    }
    let value = field_u64(&pieces.gather(guest, 0, 8)?, 0);
    if value == u64::MAX {
        return Err(Errno::INVAL);
    }
    let blocks = blocks(files, fd)?;
    let Kind::EventFd(counter) = &mut files.get_mut(fd)?.kind else {
        return Err(Errno::BADF);
    };
    match counter.add(value) {
        true => Ok(Outcome::Return(8)),
        false => wait_or_again(blocks),
    }
}

/// timerfd_create(2)
pub fn timerfd_create(files: &mut Files, clock: u64, how: u64) -> Value {
    let how = flags(how);
    check_flags(how, O_NONBLOCK | O_CLOEXEC)?;
    match int(clock) {
        libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME => {}
        libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM => return Err(Errno::PERM),
        _ => return Err(Errno::INVAL),
    }
    add(files, Kind::TimerFd(TimerFd::new(int(clock))), how)
}

fn timer(files: &Files, fd: u64) -> Result<TimerFd, Errno> {
    match files.get(fd)?.kind {
        Kind::TimerFd(timer) => Ok(timer),
        _ => Err(Errno::INVAL),
    }
}

fn set_timer(files: &mut Files, fd: u64, new: TimerFd) -> Result<(), Errno> {
    if let Kind::TimerFd(timer) = &mut files.get_mut(fd)?.kind {
        *timer = new;
    }
    Ok(())
}

/// `struct itimerspec`: interval, value.
fn timer_bytes((left, interval): (Duration, Duration)) -> Layout<32> {
    Layout::new()
        .u64(0, interval.as_secs())
        .u64(8, interval.subsec_nanos().into())
        .u64(16, left.as_secs())
        .u64(24, left.subsec_nanos().into())
}

/// timerfd_settime(2). A clock that is set meanwhile moves no timer.
pub fn timerfd_settime(
    files: &mut Files,
    clocks: &Clocks,
    guest: &mut Guest<'_>,
    args: [u64; 6],
) -> Value {
    const ABSOLUTE: u32 = 1;
    const CANCEL_ON_SET: u32 = 2;
    let [fd, how, new, old, ..] = args;
    let how = flags(how);
    let value = new.checked_add(16).ok_or(Errno::FAULT)?;
    let (interval, time) = (read_duration(guest, new)?, read_duration(guest, value)?);
    check_flags(how, ABSOLUTE | CANCEL_ON_SET)?;
    let mut timer = timer(files, fd)?;
    let now = Instant::now();
    guest.write_unless_null(old, timer_bytes(timer.left(now)).done())?;
    let left = match how & ABSOLUTE {
        0 => time,
        _ => {
            let clock = u64::try_from(timer.clock).map_err(|_| Errno::INVAL)?;
            read_deadline(clocks, guest, clock, value)?
        }
    };
    // One that is never reached is one that is off.
    let at = (!time.is_zero()).then(|| now.checked_add(left)).flatten();
    timer.set(at, interval);
    set_timer(files, fd, timer)?;
    Ok(0)
}

/// timerfd_gettime(2)
pub fn timerfd_gettime(files: &Files, guest: &mut Guest<'_>, fd: u64, address: u64) -> Value {
    let left = timer(files, fd)?.left(Instant::now());
    guest.write(address, timer_bytes(left).done())?;
    Ok(0)
}

/// read(2) of a timer: how often it went off.
pub fn read_timerfd(files: &mut Files, guest: &mut Guest<'_>, fd: u64, pieces: &Pieces) -> Reply {
    if pieces.total() < 8 {
        return Err(Errno::INVAL);
    }
    let mut timer = timer(files, fd)?;
    let now = Instant::now();
    let expirations = timer.expirations(now);
    if expirations == 0 {
        return wait_or_again(blocks(files, fd)?);
    }
    timer.take(now);
    set_timer(files, fd, timer)?;
    pieces.scatter(guest, 0, &expirations.to_le_bytes())?;
    Ok(Outcome::Return(8))
}

/// signalfd4(2)
pub fn signalfd4(files: &mut Files, guest: &Guest<'_>, args: [u64; 6], how: u64) -> Value {
    let [fd, set, size, ..] = args;
    let how = flags(how);
    check_flags(how, O_NONBLOCK | O_CLOEXEC)?;
    if size != 8 {
        return Err(Errno::INVAL);
    }
    let mask = guest.read_u64(set)? & !(bit(SIGKILL) | bit(SIGSTOP));
    if int(fd) == -1 {
        return add(files, Kind::SignalFd(mask), how);
    }
    match &mut files.get_mut(fd)?.kind {
        Kind::SignalFd(old) => *old = mask,
        _ => return Err(Errno::INVAL),
    }
    Ok(i64::from(int(fd)))
}

/// read(2) of a signalfd(2): as many signals as there are and fit.
pub fn read_signalfd(
    (files, signals, tasks): (&Files, &mut Signals, &mut Kept<Tasks>),
    guest: &mut Guest<'_>,
    (fd, mask): (u64, u64),
    pieces: &Pieces,
) -> Reply {
    let len = length(INFO_LEN);
    let most = pieces.total().min(MOST_BYTES) / len;
    if most == 0 {
        return Err(Errno::INVAL);
    }
    let mut done = 0;
    while done < most
        && let Some(signal) = signals::take(signals, tasks, mask)
    {
        pieces.scatter(guest, done * len, &siginfo(&signal))?;
        done += 1;
    }
    match done {
        0 => wait_or_again(blocks(files, fd)?),
        done => Ok(Outcome::Return((done * len).cast_signed())),
    }
}

/// `struct signalfd_siginfo` of a `siginfo_t`.
fn siginfo(signal: &Signal) -> [u8; INFO_LEN] {
    let info = |at| field_u32(&signal.info, at);
    let of_timer = signal.info.get(8..12) == Some(&libc::SI_TIMER.to_le_bytes());
    let layout = Layout::<INFO_LEN>::new()
        .u32(0, info(0))
        .u32(4, info(4))
        .u32(8, info(8));
    match signal.number {
        // What a fault tells: the address.
        libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGTRAP
            if info(8).cast_signed() > 0 =>
        {
            layout.u64(72, field_u64(&signal.info, 16))
        }
        _ if of_timer => layout
            .u32(24, info(16))
            .u32(32, info(20))
            .u32(44, info(24))
            .u64(48, field_u64(&signal.info, 24)),
        _ => layout
            .u32(12, info(16))
            .u32(16, info(20))
            .u32(44, info(24))
            .u64(48, field_u64(&signal.info, 24)),
    }
    .array()
}

/// epoll_create(2), whose size no longer matters but must not be zero; epoll_create1(2).
pub fn epoll_create(files: &mut Files, size: Option<u64>, how: u64) -> Value {
    let how = flags(how);
    if size.is_some_and(|size| int(size) <= 0) {
        return Err(Errno::INVAL);
    }
    check_flags(how, O_CLOEXEC)?;
    if !files.has_room_for(1) {
        return Err(Errno::MFILE);
    }
    let id = files.epolls.open().ok_or(Errno::MFILE)?;
    add(files, Kind::Epoll(id), how)
}

fn epoll_of(files: &Files, fd: u64) -> Result<usize, Errno> {
    match files.get(fd)?.kind {
        Kind::Epoll(id) => Ok(id),
        _ => Err(Errno::INVAL),
    }
}

/// epoll_ctl(2)
pub fn epoll_ctl(files: &mut Files, guest: &Guest<'_>, args: [u64; 6]) -> Value {
    const ADD: i32 = 1;
    const DELETE: i32 = 2;
    const MODIFY: i32 = 3;
    let [epoll, operation, fd, event, ..] = args;
    let operation = int(operation);
    let event: [u8; EVENT_LEN as usize] = match operation {
        DELETE => [0; EVENT_LEN as usize],
        _ => guest.read(event)?,
    };
    let (events, data) = (field_u32(&event, 0) & !EPOLLWAKEUP, field_u64(&event, 4));
    files.get(epoll)?;
    let watched = files.descriptor(fd)?.file;
    let file = files.get(fd)?;
    if file.flags & O_PATH != 0 {
        return Err(Errno::BADF);
    }
    let kind = file.kind.clone();
    if !can_wait(&kind) {
        return Err(Errno::PERM);
    }
    let id = epoll_of(files, epoll)?;
    if files.descriptor(epoll)?.file == watched {
        return Err(Errno::INVAL);
    }
    let nested = match kind {
        Kind::Epoll(nested) => Some(nested),
        _ => None,
    };
    if events & EPOLLEXCLUSIVE != 0 && operation != DELETE {
        let known = u32::from(IN | OUT | ERR | HUP) | EPOLLET | EPOLLEXCLUSIVE;
        if operation == MODIFY || nested.is_some() || events & !known != 0 {
            return Err(Errno::INVAL);
        }
    }
    if operation == ADD
        && let Some(nested) = nested
    {
        let depth = depth_below(files, nested, id, 0).ok_or(Errno::LOOP)?;
        if depth + depth_above(files, id) > MOST_NESTED {
            return Err(Errno::LOOP);
        }
    }
    let watch = Watch::new(int(fd), watched, events, data);
    match operation {
        ADD => files.epolls.add(id, watch)?,
        MODIFY => files.epolls.modify(id, watch)?,
        DELETE => files.epolls.remove(id, int(fd), watched)?,
        _ => return Err(Errno::INVAL),
    }
    Ok(0)
}

fn nested(files: &Files, id: usize) -> impl Iterator<Item = usize> {
    let watches = files.epolls.get(id).map(|epoll| epoll.watches.as_slice());
    let kinds = watches
        .unwrap_or_default()
        .iter()
        .map(|watch| files.open_at(watch.file));
    kinds.filter_map(|file| match file?.kind {
        Kind::Epoll(nested) => Some(nested),
        _ => None,
    })
}

/// How many levels of others `from` watches; `None` if `to` is among them, or they are too many.
fn depth_below(files: &Files, from: usize, to: usize, level: usize) -> Option<usize> {
    if from == to || level > MOST_NESTED {
        return None;
    }
    // Each at its deepest, level by level, so that many ways to one make it no longer.
    let mut depth = 0;
    let mut level: Vec<usize> = vec![from];
    while !level.is_empty() {
        let mut next: Vec<usize> = level.iter().flat_map(|&id| nested(files, id)).collect();
        next.sort_unstable();
        next.dedup();
        if next.contains(&to) || depth > MOST_NESTED {
            return None;
        }
        depth += 1;
        level = next;
    }
    Some(depth)
}

/// How many levels of others watch this one.
fn depth_above(files: &Files, of: usize) -> usize {
    let all: Vec<usize> = files
        .all_open()
        .filter_map(|file| match file.kind {
            Kind::Epoll(id) => Some(id),
            _ => None,
        })
        .collect();
    let mut depth = 0;
    let mut level = vec![of];
    while !level.is_empty() && depth <= MOST_NESTED {
        let watches = |id: &usize| nested(files, *id).any(|nested| level.contains(&nested));
        level = all.iter().copied().filter(watches).collect();
        depth += usize::from(!level.is_empty());
    }
    depth
}

/// epoll_wait(2) and its relatives but for their signal masks. No time is no end.
pub fn epoll_wait(
    files: &mut Kept<Files>,
    awaited: Awaited,
    guest: &mut Guest<'_>,
    args: [u64; 6],
    time: Option<Duration>,
) -> Reply {
    let [fd, events, most, ..] = args;
    let most = usize::try_from(int(most)).map_err(|_| Errno::INVAL)?;
    if most == 0 || length(most) > u64::from(i32::MAX.cast_unsigned()) / EVENT_LEN {
        return Err(Errno::INVAL);
    }
    let id = epoll_of(files, fd)?;
    let due = due(files, awaited, id, most);
    for ((place, found, _), i) in due.iter().zip(0u64..) {
        let watch = files
            .epolls
            .get(id)
            .and_then(|epoll| epoll.watches.get(*place));
        let data = watch.map_or(0, |watch| watch.data);
        let at = events
            .checked_add(i.saturating_mul(EVENT_LEN))
            .ok_or(Errno::FAULT)?;
        let event = Layout::<12>::new().u32(0, (*found).into()).u64(4, data);
        guest.write(at, event.done())?;
    }
    let Some(&(last, ..)) = due.last() else {
        return Ok(match time {
            Some(Duration::ZERO) => Outcome::Return(0),
            time => Outcome::Block(Wait {
                on: WaitOn::Descriptor,
                time,
                result: 0,
            }),
        });
    };
    tell(files, id, &due, (last, most));
    Ok(Outcome::Return(count(due.len())))
}

/// What is to be told of whom: its place, the events, and the counts by which that was found.
fn due(files: &Files, awaited: Awaited, id: usize, most: usize) -> Vec<(usize, u16, Readiness)> {
    let mut look = Look::new(files, awaited);
    let none = Epoll::default();
    let watches = &files.epolls.get(id).unwrap_or(&none).watches;
    let found = watches.iter().enumerate().filter_map(|(place, watch)| {
        let now = look.open_file(watch.file);
        let due = watch.due(now);
        (due != 0).then_some((place, due, now))
    });
    found.take(most).collect()
}

/// Keeps what was told. Where there was more than was asked for, the next call begins with the rest.
fn tell(
    files: &mut Kept<Files>,
    id: usize,
    due: &[(usize, u16, Readiness)],
    (last, most): (usize, usize),
) {
    let plain = EPOLLET | crate::linux::net::epoll::EPOLLONESHOT;
    let turn = due.len() == most;
    // A look that changes nothing is no change to put back.
    let Some(epoll) = files.epolls.get(id) else {
        return;
    };
    let special = due.iter().any(|(place, ..)| {
        let watch = epoll.watches.get(*place);
        watch.is_some_and(|watch| watch.events & plain != 0)
    });
    if !special && (!turn || epoll.watches.len() <= most) {
        return;
    }
    if let Some(epoll) = files.epolls.get_mut(id) {
        for (place, _, now) in due {
            if let Some(watch) = epoll.watches.get_mut(*place) {
                watch.told(*now);
            }
        }
        if turn && last < epoll.watches.len() {
            epoll.watches.rotate_left(last + 1);
        }
    }
}
