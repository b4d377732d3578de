//! Sending and receiving: send(2), recv(2) and their relatives; read(2) and write(2) of sockets.
//!
//! A call that waits is made again from its start. What it has done of its work by then is kept with its task, so
//! that a write of a megabyte is one, whatever fits into the other end's buffer.

use rustix::io::Errno;

use crate::linux::abi::{CHUNK, Guest, Layout, Reply, field_u32, field_u64, flags, int, length};
use crate::linux::call::Outcome;
use crate::linux::files::fds::{Files, O_NONBLOCK};
use crate::linux::files::pieces::Pieces;
use crate::linux::files::pipe_calls;
use crate::linux::files::resolve::Shared;
use crate::linux::kept::Kept;
use crate::linux::net::address::Address;
use crate::linux::net::ancillary::{self, Control, Sender};
use crate::linux::net::calls::{socket_of, wait};
use crate::linux::net::packet::{Beside, Packet};
use crate::linux::net::socket::{CAPACITY, Family, Id, Incoming, Style};
use crate::linux::net::unix_names;
use crate::linux::tasks::task::Tasks;

const MSG_OOB: u32 = 1;
const MSG_PEEK: u32 = 2;
const MSG_TRUNC: u32 = 0x20;
const MSG_DONTWAIT: u32 = 0x40;
const MSG_WAITALL: u32 = 0x100;
const MSG_ERRQUEUE: u32 = 0x2000;
const MSG_NOSIGNAL: u32 = 0x4000;
const MSG_CMSG_CLOEXEC: u32 = 0x4000_0000;

const SOL_SOCKET: i32 = 1;
const SO_PASSCRED: i32 = 16;
/// `struct msghdr`; an entry of sendmmsg(2) and recvmmsg(2); and `UIO_MAXIOV`.
const HEADER_LEN: u64 = 56;
const ENTRY_LEN: u64 = 64;
const MAX_PIECES: u64 = 1024;

/// What a call on a socket works with.
pub struct Party<'a, 'b> {
    /// What files there are.
    pub shared: &'a Shared,
    /// The descriptors.
    pub files: &'a mut Files,
    /// The tasks.
    pub tasks: &'a mut Kept<Tasks>,
    /// The machine.
    pub guest: &'a mut Guest<'b>,
}

/// What has been received.
struct Received {
    len: u64,
    from: Option<Address>,
    flags: u32,
    /// Open files that came with it.
    rights: Vec<usize>,
    /// What it says besides, if it came by UDP.
    packet: Option<Packet>,
}

impl Received {
    /// The end, of sockets that have one.
    fn nothing() -> Self {
        Self {
            len: 0,
            from: None,
            flags: 0,
            rights: Vec::new(),
            packet: None,
        }
    }
}

/// What a `struct msghdr` says of what is told beside the message.
fn control(header: &[u8; HEADER_LEN as usize]) -> Control {
    Control {
        address: field_u64(header, 32),
        len: match field_u64(header, 32) {
            0 => 0,
            _ => field_u64(header, 40),
        },
    }
}

/// What comes of a try to receive.
enum Got {
    Data(Received),
    Wait(Outcome),
}

impl Party<'_, '_> {
    fn progress(&self) -> u64 {
        self.tasks.progress()
    }

    fn sender(&self) -> Sender {
        let task = self.tasks.iter().nth(self.tasks.current_place());
        let ids = task.map(|task| (task.ids.user.real, task.ids.group.real));
        let (uid, gid) = ids.unwrap_or_default();
        Sender {
            pid: self.tasks.pid().unsigned_abs(),
            uid,
            gid,
        }
    }

    /// The call waits, with so much done.
    fn wait_with(&mut self, done: u64, time: Option<std::time::Duration>) -> Outcome {
        if self.progress() != done {
            self.tasks.current().progress = done;
        }
        wait(time)
    }

    /// Sends, with what goes beside it; a stream that nobody reads any more sends SIGPIPE, as pipes do.
    pub fn send(
        &mut self,
        fd: u64,
        pieces: &Pieces,
        how: u32,
        (to, beside): (Option<Address>, &Beside),
    ) -> Reply {
        let id = socket_of(self.files, fd)?;
        if how & MSG_OOB != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let nature = self.files.sockets.get(id)?.nature;
        let connected = self.files.sockets.get(id)?.peer().is_some();
        let blocks = self.files.get(fd)?.flags & O_NONBLOCK == 0 && how & MSG_DONTWAIT == 0;
        let reply = match nature.style {
            Style::Stream if to.is_some() && !nature.is_inet() => Err(match connected {
                true => Errno::ISCONN,
                false => Errno::OPNOTSUPP,
            }),
            Style::Stream => self.send_stream(id, pieces, blocks, &beside.rights),
            Style::Datagram => self.send_message(id, pieces, blocks, (to.as_ref(), beside)),
            Style::SeqPacket => self.send_message(id, pieces, blocks, (None, beside)),
        };
        if reply == Err(Errno::PIPE) && how & MSG_NOSIGNAL == 0 && nature.style == Style::Stream {
            pipe_calls::broken(self.tasks);
        }
        reply
    }

    fn send_stream(&mut self, id: Id, pieces: &Pieces, blocks: bool, rights: &[usize]) -> Reply {
        let total = pieces.total();
        let mut done = self.progress();
        let so_far = |done: u64| Ok(Outcome::Return(done.cast_signed()));
        loop {
            if done > 0 && done >= total {
                return so_far(done);
            }
            let room = match self.files.sockets.room(id) {
                Ok(room) => room,
                Err(errno) if done > 0 => {
                    // The next call is told.
                    if errno != Errno::PIPE && errno != Errno::NOBUFS {
                        self.files.sockets.get_mut(id)?.error = Some(errno);
                    }
                    return so_far(done);
                }
                Err(errno) => return Err(errno),
            };
            if total == 0 {
                return so_far(0);
            }
            if room == 0 && !blocks {
                return if done > 0 {
                    so_far(done)
                } else {
                    Err(Errno::AGAIN)
                };
            }
            if room == 0 {
                let time = self.files.sockets.get(id)?.send_time;
                return Ok(self.wait_with(done, time));
            }
            let part = length(room.min(CHUNK)).min(total - done);
            let bytes = match pieces.gather(self.guest, done, part) {
                Ok(bytes) => bytes,
                Err(_) if done > 0 => return so_far(done),
                Err(errno) => return Err(errno),
            };
            // They go with the first of them.
            let with_rights = done == 0 && !rights.is_empty();
            if with_rights && self.files.sockets.send_rights(id, bytes.len(), rights) {
                rights.iter().for_each(|&place| self.files.hold(place));
            }
            self.files.sockets.send_bytes(id, &bytes);
            done = done.saturating_add(part);
        }
    }

    fn send_message(
        &mut self,
        id: Id,
        pieces: &Pieces,
        blocks: bool,
        (to, beside): (Option<&Address>, &Beside),
    ) -> Reply {
        let total = pieces.total();
        if total > length(CAPACITY) {
            return Err(Errno::MSGSIZE);
        }
        if self.files.sockets.is_netlink(id) {
            let bytes = pieces.gather(self.guest, 0, total)?;
            self.files.sockets.ask_netlink(id, to, &bytes)?;
            return Ok(Outcome::Return(total.cast_signed()));
        }
        let name = match to {
            Some(address) => Some(self.target(id, address)?),
            None => None,
        };
        let bytes = pieces.gather(self.guest, 0, total)?;
        let sent = self
            .files
            .sockets
            .send_message(id, name.as_ref(), &bytes, beside);
        if sent == Ok(true) {
            beside
                .rights
                .iter()
                .for_each(|&place| self.files.hold(place));
        }
        match sent? {
            true => Ok(Outcome::Return(total.cast_signed())),
            false if !blocks => Err(Errno::AGAIN),
            false => Ok(wait(self.files.sockets.get(id)?.send_time)),
        }
    }

    fn target(&self, id: Id, address: &Address) -> Result<crate::linux::net::socket::Name, Errno> {
        let inet = self.files.sockets.get(id)?.nature.is_inet();
        if inet != matches!(address, Address::Inet(_)) {
            return Err(if inet {
                Errno::AFNOSUPPORT
            } else {
                Errno::INVAL
            });
        }
        unix_names::find(self.shared, self.files, address)
    }

    /// Receives what read(2) does.
    pub fn read(&mut self, fd: u64, pieces: &Pieces) -> Reply {
        // A read of nothing does not look, unlike a receive.
        if pieces.total() == 0 {
            socket_of(self.files, fd)?;
            return Ok(Outcome::Return(0));
        }
        self.receive(fd, pieces, 0).map(|got| match got {
            Got::Data(received) => Outcome::Return(received.len.cast_signed()),
            Got::Wait(outcome) => outcome,
        })
    }

    fn receive(&mut self, fd: u64, pieces: &Pieces, how: u32) -> Result<Got, Errno> {
        let id = socket_of(self.files, fd)?;
        if how & MSG_OOB != 0 {
            return Err(Errno::INVAL);
        }
        if how & MSG_ERRQUEUE != 0 {
            return Err(Errno::AGAIN);
        }
        let blocks = self.files.get(fd)?.flags & O_NONBLOCK == 0 && how & MSG_DONTWAIT == 0;
        match self.files.sockets.get(id)?.nature.style {
            Style::Stream => self.receive_stream(id, pieces, how, blocks),
            _ => self.receive_message(id, pieces, how, blocks),
        }
    }

    fn receive_stream(
        &mut self,
        id: Id,
        pieces: &Pieces,
        how: u32,
        blocks: bool,
    ) -> Result<Got, Errno> {
        let total = pieces.total();
        let peek = how & MSG_PEEK != 0;
        let whole = how & MSG_WAITALL != 0 && !peek && blocks;
        let inet = self.files.sockets.get(id)?.nature.is_inet();
        let from = match inet {
            true => None,
            false => self.files.sockets.get(id)?.remote.clone(),
        };
        let mut done = self.progress();
        let received = |done: u64, rights: Vec<usize>| {
            Ok(Got::Data(Received {
                len: done,
                from: from.clone(),
                flags: 0,
                rights,
                packet: None,
            }))
        };
        let so_far = |done: u64| received(done, Vec::new());
        loop {
            let incoming = match self.files.sockets.get_mut(id)?.incoming() {
                Ok(incoming) => incoming,
                Err(errno) if done > 0 => {
                    self.files.sockets.get_mut(id)?.error = Some(errno);
                    return so_far(done);
                }
                Err(errno) => return Err(errno),
            };
            match incoming {
                Incoming::Something => {
                    let most = usize::try_from(total - done).unwrap_or(usize::MAX);
                    let socket = self.files.sockets.get(id)?;
                    let bytes = socket.peek_bytes(most.min(socket.reach()));
                    let rights = socket.rights_within(bytes.len()).to_vec();
                    // Of TCP, what is to be cut is thrown away (tcp(7)).
                    if !(inet && how & MSG_TRUNC != 0) {
                        match pieces.scatter(self.guest, done, &bytes) {
                            Err(_) if done > 0 => return so_far(done),
                            written => written?,
                        }
                    }
                    if !peek {
                        self.files.sockets.drop_bytes(id, bytes.len());
                    }
                    done = done.saturating_add(length(bytes.len()));
                    if !whole || done >= total || !rights.is_empty() {
                        return received(done, rights);
                    }
                }
                Incoming::End => return so_far(done),
                Incoming::Nothing if !blocks => {
                    return if done > 0 {
                        so_far(done)
                    } else {
                        Err(Errno::AGAIN)
                    };
                }
                Incoming::Nothing => {
                    let time = self.files.sockets.get(id)?.receive_time;
                    return Ok(Got::Wait(self.wait_with(done, time)));
                }
            }
        }
    }

    fn receive_message(
        &mut self,
        id: Id,
        pieces: &Pieces,
        how: u32,
        blocks: bool,
    ) -> Result<Got, Errno> {
        match self.files.sockets.get_mut(id)?.incoming()? {
            Incoming::Something => {}
            Incoming::End => return Ok(Got::Data(Received::nothing())),
            Incoming::Nothing if !blocks => return Err(Errno::AGAIN),
            Incoming::Nothing => {
                return Ok(Got::Wait(wait(self.files.sockets.get(id)?.receive_time)));
            }
        }
        let Some(message) = self.files.sockets.get(id)?.peek_message().cloned() else {
            return Ok(Got::Data(Received::nothing()));
        };
        let whole = length(message.bytes.len());
        let len = whole.min(pieces.total());
        let part = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = message.bytes.get(..part).unwrap_or_default();
        pieces.scatter(self.guest, 0, bytes)?;
        if how & MSG_PEEK == 0 {
            self.files.sockets.drop_message(id);
        }
        Ok(Got::Data(Received {
            len: if how & MSG_TRUNC != 0 { whole } else { len },
            from: Some(message.from),
            flags: if len < whole { MSG_TRUNC } else { 0 },
            rights: message.rights,
            packet: message.packet,
        }))
    }

    /// sendto(2)
    pub fn sendto(&mut self, args: [u64; 6]) -> Reply {
        let [fd, buffer, len, how, address, address_len] = args;
        let to = match address {
            0 => None,
            _ => Some(Address::read(self.guest, address, address_len)?),
        };
        self.send(
            fd,
            &Pieces::one(buffer, len),
            flags(how),
            (to, &Beside::default()),
        )
    }

    /// recvfrom(2)
    pub fn recvfrom(&mut self, args: [u64; 6]) -> Reply {
        let [fd, buffer, len, how, address, address_len] = args;
        let received = match self.receive(fd, &Pieces::one(buffer, len), flags(how))? {
            Got::Data(received) => received,
            Got::Wait(outcome) => return Ok(outcome),
        };
        if address != 0 {
            match received.from {
                Some(from) if from != Address::Unnamed => {
                    from.write(self.guest, address, address_len)?;
                }
                _ => self.guest.write(address_len, &0u32.to_le_bytes())?,
            }
        }
        Ok(Outcome::Return(received.len.cast_signed()))
    }

    /// sendmsg(2): a `struct msghdr`.
    pub fn sendmsg(&mut self, fd: u64, header: u64, how: u64) -> Reply {
        socket_of(self.files, fd)?;
        let bytes: [u8; HEADER_LEN as usize] = self.guest.read(header)?;
        let field = |at| field_u64(&bytes, at);
        let to = match (field(0), field_u32(&bytes, 8)) {
            (0, _) | (_, 0) => None,
            (name, len) => Some(Address::read(self.guest, name, len.into())?),
        };
        let pieces = self.pieces(field(16), field(24))?;
        let id = socket_of(self.files, fd)?;
        let of = (self.files.sockets.get(id)?.nature, self.sender());
        let beside = ancillary::read(self.files, self.guest, control(&bytes), of)?;
        self.send(fd, &pieces, flags(how), (to, &beside))
    }

    fn pieces(&self, address: u64, number: u64) -> Result<Pieces, Errno> {
        if number > MAX_PIECES {
            return Err(Errno::MSGSIZE);
        }
        Pieces::vector(self.guest, address, number)
    }

    /// recvmsg(2)
    pub fn recvmsg(&mut self, fd: u64, header: u64, how: u64) -> Reply {
        socket_of(self.files, fd)?;
        let how = flags(how);
        let bytes: [u8; HEADER_LEN as usize] = self.guest.read(header)?;
        let field = |at| field_u64(&bytes, at);
        let (name, room) = (field(0), field_u32(&bytes, 8).cast_signed());
        let room = usize::try_from(room).map_err(|_| Errno::INVAL)?;
        let pieces = self.pieces(field(16), field(24))?;
        let received = match self.receive(fd, &pieces, how)? {
            Got::Data(received) => received,
            Got::Wait(outcome) => return Ok(outcome),
        };
        let place = |offset: u64| header.checked_add(offset).ok_or(Errno::FAULT);
        let from = received.from.filter(|from| *from != Address::Unnamed);
        let from = from.map_or(Vec::new(), |from| from.bytes());
        if name != 0 {
            let part = from.get(..room.min(from.len())).unwrap_or_default();
            self.guest.write(name, part)?;
            let len = u32::try_from(from.len()).unwrap_or(0);
            self.guest.write(place(8)?, &len.to_le_bytes())?;
        }
        let id = socket_of(self.files, fd)?;
        let socket = self.files.sockets.get(id)?;
        let v6 = socket.nature.family == Family::V6;
        let packet = received.packet.iter();
        let mut told: Vec<_> = packet
            .flat_map(|packet| packet.told(v6, &socket.options))
            .collect();
        if socket.has(SOL_SOCKET, SO_PASSCRED) {
            told.push(self.sender().told());
        }
        let rights = (&received.rights[..], how & MSG_CMSG_CLOEXEC != 0);
        let (used, cut) = ancillary::write(self.files, self.guest, control(&bytes), &told, rights)?;
        let told = received.flags | cut | how & MSG_CMSG_CLOEXEC;
        let rest = Layout::<12>::new().u64(0, used).u32(8, told);
        self.guest.write(place(40)?, rest.done())?;
        Ok(Outcome::Return(received.len.cast_signed()))
    }

    /// sendmmsg(2), recvmmsg(2): after the first message they do not wait.
    pub fn many(&mut self, args: [u64; 6], send: bool) -> Reply {
        let [fd, vector, number, how, ..] = args;
        let number = flags(number).min(1024);
        socket_of(self.files, fd)?;
        let mut done: i64 = 0;
        for i in 0..u64::from(number) {
            let at = vector.checked_add(i * ENTRY_LEN).ok_or(Errno::FAULT)?;
            let how = how | if i > 0 { u64::from(MSG_DONTWAIT) } else { 0 };
            let reply = match send {
                true => self.sendmsg(fd, at, how),
                false => self.recvmsg(fd, at, how),
            };
            match reply {
                Ok(Outcome::Return(len)) => {
                    let len_at = at.checked_add(HEADER_LEN).ok_or(Errno::FAULT)?;
                    self.guest
                        .write(len_at, &int(len.cast_unsigned()).to_le_bytes())?;
                    done += 1;
                }
                Ok(outcome) => return Ok(outcome),
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
            // What was done of this one is not the next one's.
            if self.progress() != 0 {
                self.tasks.current().progress = 0;
            }
        }
        Ok(Outcome::Return(done))
    }
}
