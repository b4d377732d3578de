//! Fetches in parts, of which a request may have several at a time: begun, the head, the body as it comes. They are this project's own
//! calls (docs/guest-abi.md). They belong to the request, and end with it.

use crate::call::copied::Copied;
use crate::call::fetch::asked::{PIECE, body, fetcher, header, lines, target, wait};
use crate::call::fetch::failed::Failed;
use crate::call::fetches::{Fetches, MOST, Open};
use crate::fetch::{FetchError, FetchHead, FetchRequest};
use crate::machine::Machine;
use crate::memory::user::UserMemory;
use crate::request::Host;

/// `kvm_fetch`.
const FETCH_LEN: usize = 64;
/// Most headers of one.
const MOST_HEADERS: u16 = 64;
/// Longest method.
const MOST_METHOD: u64 = 32;

/// The one of this number.
fn of(fetches: &mut Fetches, number: u64) -> Result<&mut Open, Failed> {
    fetches.get_mut(number).ok_or(Failed::NoHandle)
}

/// Waits for the head, if it is not there.
fn head_of<'o>(
    open: &'o mut Open,
    machine: &mut Machine,
    host: &mut dyn Host,
) -> Result<&'o FetchHead, Failed> {
    let head = match open.head.take() {
        Some(head) => head,
        None => wait(machine, host, |until| open.begun.head(until))?,
    };
    Ok(open.head.insert(head))
}

/// `fetch_begin(const struct kvm_fetch *)`, 64 bytes: url@0, u32 url_len@8, u32 method_len@12, method@16, headers@24, u16
/// num_headers@32, u8 follow@34, u8 unverified@35, u8 own@36, body@40, u64 body_len@48. Gives its number.
pub fn begin(
    machine: &mut Machine,
    fetches: &mut Fetches,
    loops: usize,
    host: &mut dyn Host,
) -> Result<i64, Failed> {
    let at = machine.vcpu().regs().rdi;
    let fetcher = fetcher(host)?;
    let full = Failed::Open(MOST);
    if fetches.is_full() {
        return Err(full);
    }
    let what = Copied::<FETCH_LEN>::read(&machine.memory, at)?;
    let own = what.flag(36).then_some(loops);
    let target = target(machine, (what.u64(0), what.u32(8).into()), own)?;
    let sends = what.u64(40) != 0;
    let method = match (what.u64(16), sends) {
        (0, false) => "GET".into(),
        (0, true) => "POST".into(),
        (method, _) => text(machine, method, what.u32(12).into())?,
    };
    let (headers, count) = (what.u64(24), what.u16(32));
    if count > MOST_HEADERS {
        let what = format!("{count} headers, more than {MOST_HEADERS}");
        return Err(FetchError::Bad(what).into());
    }
    let mut fields = Vec::new();
    for entry in (0..u64::from(count)).map(|index| headers.wrapping_add(index * 16)) {
        let line = machine.memory.read_u64(entry)?;
        let len = machine.memory.read_u64(entry.wrapping_add(8))?;
        fields.extend(header(machine, line, len)?);
    }
    let body = match sends {
        true => Some(body(machine, &*fetcher, what.piece(40))?),
        false => None,
    };
    let begun = fetcher.begin(FetchRequest {
        target,
        method,
        headers: fields,
        body,
        follow: what.flag(34),
        unverified: what.flag(35),
        deadline: machine.deadline(),
    })?;
    let number = fetches.add(Open { begun, head: None });
    number.map(|number| number as i64).ok_or(full)
}

/// The method.
fn text(machine: &Machine, address: u64, len: u64) -> Result<String, Failed> {
    let bad = || FetchError::Bad("a method that is none".into());
    if len > MOST_METHOD {
        return Err(bad().into());
    }
    let bytes = machine.memory.read_vec(address, len)?;
    Ok(String::from_utf8(bytes).map_err(|_| bad())?)
}

/// `fetch_head(number, struct kvm_fetch_head *out, char *headers, room)`: waits for the head. `out`: u32 status@0, u32
/// headers_len@4, i64 content_len@8, -1 if that is not said. The header lines are copied if `headers` is not NULL, all of them.
pub fn head(
    machine: &mut Machine,
    fetches: &mut Fetches,
    host: &mut dyn Host,
) -> Result<i64, Failed> {
    let regs = machine.vcpu().regs();
    machine.memory.check_writable(regs.rsi, 16)?;
    let head = head_of(of(fetches, regs.rdi)?, machine, host)?;
    let text: Vec<u8> = lines(head).flatten().collect();
    if regs.rdx != 0 {
        if text.len() as u64 > regs.rcx {
            return Err(Failed::Buffer(regs.rcx));
        }
        machine.memory.write(regs.rdx, &text)?;
    }
    let length = head.length.and_then(|len| i64::try_from(len).ok());
    let mut out = Vec::with_capacity(16);
    out.extend(u32::from(head.status).to_le_bytes());
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(length.unwrap_or(-1).to_le_bytes());
    machine.memory.write(regs.rsi, &out)?;
    Ok(0)
}

/// `fetch_read(number, buf, len)`: waits for more of the body, and gives how much of it is in the buffer now; 0 at its end.
pub fn read(
    machine: &mut Machine,
    fetches: &mut Fetches,
    host: &mut dyn Host,
) -> Result<i64, Failed> {
    let regs = machine.vcpu().regs();
    let room = regs.rdx.min(PIECE as u64);
    machine.memory.check_writable(regs.rsi, room)?;
    let open = of(fetches, regs.rdi)?;
    head_of(open, machine, host)?;
    if room == 0 {
        return Ok(0);
    }
    let mut piece = vec![0; room as usize];
    let n = wait(machine, host, |until| open.begun.read(&mut piece, until))?;
    machine.memory.write(regs.rsi, &piece[..n])?;
    Ok(n as i64)
}

/// `fetch_close(number)`: the rest is not wanted.
pub fn close(machine: &mut Machine, fetches: &mut Fetches) -> Result<i64, Failed> {
    let number = machine.vcpu().regs().rdi;
    fetches.take(number).map(|_| 0).ok_or(Failed::NoHandle)
}
