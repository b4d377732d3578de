//! What is sent beside a message (cmsg(3)): open files, and who sends it (unix(7)).

use rustix::io::Errno;

use crate::linux::abi::{Guest, Layout, field_u32, field_u64, length};
use crate::linux::files::fds::Files;
use crate::linux::net::socket::Nature;

const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;
const SCM_CREDENTIALS: u32 = 2;
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

/// Where it is, or is to go.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// Its address.
    pub address: u64,
    /// Its length.
    pub len: u64,
}

/// Reads what is to be sent beside a message, and gives the open files among it.
pub fn read(
    files: &Files,
    guest: &Guest<'_>,
    control: Control,
    (nature, sender): (Nature, Sender),
) -> Result<Vec<usize>, Errno> {
    let Control { address, len } = control;
    let mut rights = Vec::new();
    if address == 0 || len == 0 {
        return Ok(rights);
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
        match (field_u32(&head, 8), field_u32(&head, 12)) {
            (SOL_SOCKET, SCM_RIGHTS | SCM_CREDENTIALS) if nature.is_inet() => {}
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
    Ok(rights)
}

/// Writes what came beside a message: who sends it, if that is asked for, and open files as descriptors. Gives how long it is,
/// and flags for the message.
pub fn write(
    files: &mut Files,
    guest: &mut Guest<'_>,
    control: Control,
    sender: Option<Sender>,
    (rights, close_on_exec): (&[usize], bool),
) -> Result<(u64, u32), Errno> {
    let Control { address, len } = control;
    let (mut used, mut flags) = (0, 0);
    if let Some(sender) = sender {
        let size = HEAD.saturating_add(length(CREDENTIALS));
        let layout = Layout::<{ HEAD as usize + CREDENTIALS }>::new()
            .u64(0, size.min(len))
            .u32(8, SOL_SOCKET)
            .u32(12, SCM_CREDENTIALS)
            .u32(16, sender.pid)
            .u32(20, sender.uid)
            .u32(24, sender.gid);
        if len < size {
            flags |= MSG_CTRUNC;
        }
        // Without room for its head there is nothing.
        if len >= HEAD {
            let part = usize::try_from(len)
                .unwrap_or(usize::MAX)
                .min(layout.done().len());
            guest.write(address, layout.done().get(..part).unwrap_or_default())?;
            used = size.next_multiple_of(8).min(len);
        }
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
            .u32(8, SOL_SOCKET)
            .u32(12, SCM_RIGHTS);
        guest.write(start, head.done())?;
        used = used.saturating_add(size.next_multiple_of(8).min(room));
    }
    Ok((used, flags))
}
