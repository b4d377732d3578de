//! What is sent beside a message (cmsg(3)): open files, who sends it (unix(7)), and what is said of a packet.

use rustix::io::Errno;

use crate::linux::abi::{Guest, Layout, field_u32, field_u64, length};
use crate::linux::files::fds::Files;
use crate::linux::net::packet::{Beside, Item, Wishes};
use crate::linux::net::socket::{Family, Nature, Style};

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
/// Some of it had no room.
const MSG_CTRUNC: u32 = 8;
/// `struct cmsghdr`: length, level, type.
const HEAD: u64 = 16;
/// What may be told beside a message (`net.core.optmem_max`).
const MAX_CONTROL: u64 = 20480;
/// Most open files beside one message (`SCM_MAX_FD`).
const MAX_RIGHTS: usize = 253;
/// Most open files on their way, all together.
const MOST_UNDER_WAY: usize = 1024;
/// `struct ucred`: process, user, group.
const CREDENTIALS: usize = 12;

/// Who sends: there is one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// Its id.
    pub pid: u32,
    /// Its real user.
    pub uid: u32,
    /// Its real group.
    pub gid: u32,
}

impl Sender {
    /// As it is told.
    pub fn told(&self) -> Item {
        let numbers = [self.pid, self.uid, self.gid].map(u32::to_le_bytes);
        Item {
            level: SOL_SOCKET,
            kind: SCM_CREDENTIALS,
            bytes: numbers.concat(),
        }
    }
}

/// Where it is, or is to go.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// Its address.
    pub address: u64,
    /// Its length.
    pub len: u64,
}

/// Reads what is to be sent beside a message.
pub fn read(
    files: &Files,
    guest: &Guest<'_>,
    control: Control,
    (nature, sender): (Nature, Sender),
) -> Result<Beside, Errno> {
    let Control { address, len } = control;
    let mut beside = Beside::default();
    let rights = &mut beside.rights;
    if address == 0 || len == 0 {
        return Ok(beside);
    }
    if len > MAX_CONTROL {
        return Err(Errno::NOBUFS);
    }
    let mut at = 0u64;
    while at.saturating_add(HEAD) <= len {
        let place = address.checked_add(at).ok_or(Errno::FAULT)?;
        let head: [u8; HEAD as usize] = guest.read(place)?;
        let size = field_u64(&head, 0);
        if size < HEAD || size > len.saturating_sub(at) {
            return Err(Errno::INVAL);
        }
        let content = place.checked_add(HEAD).ok_or(Errno::FAULT)?;
        let field = |at| field_u32(&head, at).cast_signed();
        match (field(8), field(12)) {
            (SOL_SOCKET, SCM_RIGHTS | SCM_CREDENTIALS) if nature.family != Family::Unix => {}
            (SOL_SOCKET, SCM_RIGHTS) => {
                for i in 0..(size - HEAD) / 4 {
                    if rights.len() >= MAX_RIGHTS {
                        return Err(Errno::INVAL);
                    }
                    let fd = guest.read_u32(content.checked_add(i * 4).ok_or(Errno::FAULT)?)?;
                    rights.push(files.descriptor(fd.into())?.file);
                }
            }
            (SOL_SOCKET, SCM_CREDENTIALS) => {
                if size != HEAD.saturating_add(length(CREDENTIALS)) {
                    return Err(Errno::INVAL);
                }
                let told: [u8; CREDENTIALS] = guest.read(content)?;
                let field = |at| field_u32(&told, at);
                if (Sender {
                    pid: field(0),
                    uid: field(4),
                    gid: field(8),
                }) != sender
                {
                    return Err(Errno::PERM);
                }
            }
            (SOL_SOCKET, _) => return Err(Errno::INVAL),
            (level, kind) if nature.is_inet() && nature.style == Style::Datagram => {
                let mut bytes = [0; Wishes::LONGEST + 1];
                // One that is longer is none that is known.
                let len = usize::try_from(size - HEAD).unwrap_or(usize::MAX);
                let len = len.min(bytes.len());
                let bytes = bytes.get_mut(..len).unwrap_or_default();
                guest.memory.read(content, bytes)?;
                let v6 = nature.family == Family::V6;
                beside.wishes.take(v6, (level, kind), bytes)?;
            }
            _ => {}
        }
        at = at.saturating_add(size.next_multiple_of(8));
    }
    if rights
        .len()
        .saturating_add(files.sockets.rights_under_way())
        > MOST_UNDER_WAY
    {
        return Err(Errno::TOOMANYREFS);
    }
    Ok(beside)
}

/// Writes what came beside a message: what is told of it, and open files as descriptors. Gives how long it is, and flags for the
/// message.
pub fn write(
    files: &mut Files,
    guest: &mut Guest<'_>,
    control: Control,
    told: &[Item],
    (rights, close_on_exec): (&[usize], bool),
) -> Result<(u64, u32), Errno> {
    let Control { address, len } = control;
    let (mut used, mut flags) = (0, 0);
    for item in told {
        let place = address.checked_add(used).ok_or(Errno::FAULT)?;
        let room = len.saturating_sub(used);
        let size = HEAD.saturating_add(length(item.bytes.len()));
        if room < size {
            flags |= MSG_CTRUNC;
        }
        // Without room for its head there is nothing.
        if room < HEAD {
            continue;
        }
        let head = Layout::<{ HEAD as usize }>::new()
            .u64(0, size.min(room))
            .u32(8, item.level.cast_unsigned())
            .u32(12, item.kind.cast_unsigned());
        let whole = [head.done(), &item.bytes].concat();
        let part = usize::try_from(room).unwrap_or(usize::MAX);
        guest.write(place, whole.get(..part).unwrap_or(&whole))?;
        used = used.saturating_add(size.next_multiple_of(8).min(room));
    }
    if rights.is_empty() {
        return Ok((used, flags));
    }
    let room = len.saturating_sub(used);
    let most = usize::try_from(room.saturating_sub(HEAD) / 4).unwrap_or(usize::MAX);
    let start = address.checked_add(used).ok_or(Errno::FAULT)?;
    let mut done = 0u64;
    for &place in rights.iter().take(most) {
        let Ok(fd) = files.receive(place, close_on_exec) else {
            break;
        };
        let at = HEAD.saturating_add(done.saturating_mul(4));
        let number = u32::try_from(fd).unwrap_or(u32::MAX);
        guest.write(
            start.checked_add(at).ok_or(Errno::FAULT)?,
            &number.to_le_bytes(),
        )?;
        done = done.saturating_add(1);
    }
    if done < length(rights.len()) {
        flags |= MSG_CTRUNC;
    }
    if done > 0 {
        let size = HEAD.saturating_add(done.saturating_mul(4));
        let head = Layout::<{ HEAD as usize }>::new()
            .u64(0, size)
            .u32(8, SOL_SOCKET.cast_unsigned())
            .u32(12, SCM_RIGHTS.cast_unsigned());
        guest.write(start, head.done())?;
        used = used.saturating_add(size.next_multiple_of(8).min(room));
    }
    Ok((used, flags))
}
