//! The hypercalls a program makes while it answers a request or registers its handlers: numbers, layouts and
//! meaning as in docs/guest-abi.md.

use crate::arch::stubs::HANDLER_RETURNED;
use crate::call::copied::Copied;
use crate::call::failed::failed;
use crate::call::fetch;
use crate::call::http::{self, Exchange};
use crate::call::regex;
use crate::call::storage::{self, STORAGE_ALLOW};
use crate::call::stored::{Access, Stored};
use crate::call::stream::Stream;
use crate::failure::Cause;
use crate::machine::Machine;
use crate::memory::user::UserMemory;
use crate::request::{CachePolicy, Header, Host, Stream as Output};

pub const REGISTER_FUNC: u32 = 0x10000;
pub const WAIT_FOR_REQUESTS: u32 = 0x10001;
pub const WAIT_FOR_REQUESTS_PAUSED: u32 = 0x10002;
const SET_CACHEABLE: u32 = 0x10005;
const BACKEND_RESPONSE: u32 = 0x10010;
pub const STORAGE_RETURN: u32 = 0x10011;
const BEGIN_STREAMING_RESPONSE: u32 = 0x10012;
pub const STORAGE_NORETURN: u32 = 0x10013;
const HTTP_APPEND: u32 = 0x10020;
const HTTP_SET: u32 = 0x10021;
const HTTP_FIND: u32 = 0x10022;
const HTTP_METHOD: u32 = 0x10023;
const SHARED_MEMORY_AREA: u32 = 0x10700;
pub const MAKE_EPHEMERAL: u32 = 0x10703;
const IS_STORAGE: u32 = 0x10706;
const GET_MEMINFO: u32 = 0x10A00;
const LOG: u32 = 0x7F000;
pub const IS_DEBUG: u32 = 0x7FDEB;
pub const BREAKPOINT: u32 = 0x7F7F7;
/// The first interface's response, with two meanings in its time.
const OLD_BACKEND_RESPONSE: u32 = 0xFFFF;

/// Longest content type, one more than allowed.
const CONTENT_TYPE_LIMIT: u64 = 4096;
/// Bytes of a response's `extra`, and most headers in it.
const EXTRA_LEN: usize = 56;
const EXTRA_HEADERS: u16 = 64;
/// Longest header line from a guest.
const HEADER_LIMIT: u64 = 8192;
/// How much of a header that is refused is shown.
const MOST_SHOWN: usize = 100;
/// Longest log record.
const LOG_LIMIT: u64 = 4096;

const EFAULT: i64 = -(libc::EFAULT as i64);
const EPERM: i64 = -(libc::EPERM as i64);
const ENOSYS: i64 = -(libc::ENOSYS as i64);

/// Everything but the body of a guest's response; the body stays in guest memory, or is not made yet.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub content_type: Vec<u8>,
    pub headers: Vec<Header<'static>>,
    pub cache: Option<CachePolicy>,
    pub body: Body,
}

/// A response's body.
#[derive(Debug)]
pub enum Body {
    /// It is there: user address and length, checked to be readable.
    Whole(u64, u64),
    /// The program makes it part by part.
    Streamed(Box<Stream>),
}

impl Body {
    /// How long it will be, if that is known.
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::Whole(_, len) => Some(*len),
            Self::Streamed(stream) => stream.len(),
        }
    }
}

/// What comes of a hypercall.
#[derive(Debug)]
pub enum Outcome {
    /// Resume with this in RAX.
    Return(i64),
    /// The request is answered.
    Respond(Response),
}

/// Carries out a hypercall of a request.
pub fn during_request(
    number: u32,
    machine: &mut Machine,
    exchange: &mut Exchange<'_>,
    storage: Option<&dyn Stored>,
    host: &mut dyn Host,
) -> Result<Outcome, Cause> {
    if let Some(result) = fetch::during_request(number, machine, exchange, host) {
        return result.map(Outcome::Return);
    }
    let regs = machine.vcpu().regs();
    let result = match number {
        BACKEND_RESPONSE | BEGIN_STREAMING_RESPONSE => {
            let response = response(number, machine, exchange)?;
            return Ok(Outcome::Respond(response));
        }
        SET_CACHEABLE | HTTP_APPEND | HTTP_SET if is_too_late(number, regs.rdi, exchange) => {
            failed(
                machine,
                host,
                name_of(number),
                &"its response has begun",
                EPERM,
            )
        }
        regex::COPYTO => regex::copyto(machine, exchange, host)?,
        HANDLER_RETURNED => return Err(Cause::NoResponse),
        SET_CACHEABLE => {
            let seconds = |milliseconds: u64| (milliseconds as i64).max(0) as f32 / 1000.0;
            exchange.cache = is_true(regs.rdi).then(|| CachePolicy {
                ttl: seconds(regs.rsi),
                grace: seconds(regs.rdx),
                keep: seconds(regs.rcx),
            });
            0
        }
        HTTP_APPEND | HTTP_SET => {
            let index = change_header(machine, exchange, number == HTTP_APPEND);
            index.map_err(Cause::BadHeader)? as i64
        }
        HTTP_FIND | HTTP_METHOD => {
            let found = match number {
                HTTP_FIND => find_header(machine, exchange),
                _ => copy_out(machine, (regs.rdi, regs.rsi), exchange.method().as_bytes()),
            };
            found.unwrap_or_else(|bad| failed(machine, host, name_of(number), &bad, EFAULT))
        }
        _ => {
            let storage = storage.filter(|_| storage::is_call(number));
            let access = storage.map(|storage| Access {
                storage,
                loops: exchange.loops(),
            });
            common(number, machine, access, host)?
        }
    };
    Ok(Outcome::Return(result))
}

/// Carries out a hypercall that means the same in `main()` and in a request. Those that never return can't be, and end
/// the program's run: its author has written nothing that could follow.
pub fn common(
    number: u32,
    machine: &mut Machine,
    access: Option<Access<'_>>,
    host: &mut dyn Host,
) -> Result<i64, Cause> {
    const AGAIN: &str = "again, instead of ending what it was called for";
    const ONLY_IN_MAIN: &str = "only main() can say that";
    if let Some(result) = storage::hypercall(number, machine, access, host) {
        return Ok(result);
    }
    let loops = access.map_or(0, |access| access.loops);
    if let Some(result) = fetch::anywhere(number, machine, loops, host) {
        return result;
    }
    let regs = machine.vcpu().regs();
    Ok(match number {
        LOG => match machine.memory.read_vec(regs.rdi, regs.rsi.min(LOG_LIMIT)) {
            Ok(text) => {
                host.output(Output::Log, &text);
                0
            }
            Err(bad) => failed(machine, host, name_of(number), &bad, EFAULT),
        },
        GET_MEMINFO => {
            let info = machine.memory_info();
            let bytes: Vec<u8> = info.iter().flat_map(|value| value.to_le_bytes()).collect();
            match machine.memory.write(regs.rdi, &bytes) {
                Ok(()) => 0,
                Err(bad) => failed(machine, host, name_of(number), &bad, EFAULT),
            }
        }
        SHARED_MEMORY_AREA => {
            let area = machine.memory.shared_window();
            // A structure of two pointers is returned in RAX and RDX.
            machine.vcpu().set_second_result(area.end);
            area.start as i64
        }
        // A request may have its fork put back, but says nothing of other requests.
        MAKE_EPHEMERAL if is_true(regs.rdi) => {
            machine.keeps_state = false;
            0
        }
        MAKE_EPHEMERAL => failed(machine, host, name_of(number), &ONLY_IN_MAIN, EPERM),
        IS_STORAGE => machine.is_storage.into(),
        IS_DEBUG | BREAKPOINT => 0,
        // It is too late for these.
        STORAGE_ALLOW => failed(machine, host, name_of(number), &ONLY_IN_MAIN, EPERM),
        REGISTER_FUNC => failed(machine, host, name_of(number), &ONLY_IN_MAIN, EPERM),
        // There is no response yet.
        SET_CACHEABLE => failed(
            machine,
            host,
            name_of(number),
            &"there is no request",
            EPERM,
        ),
        WAIT_FOR_REQUESTS => return Err(Cause::BadCall("wait_for_requests", AGAIN)),
        WAIT_FOR_REQUESTS_PAUSED => {
            return Err(Cause::BadCall("wait_for_requests_paused", AGAIN));
        }
        BACKEND_RESPONSE | BEGIN_STREAMING_RESPONSE => {
            return Err(Cause::BadCall(name_of(number), "outside of a request"));
        }
        STORAGE_NORETURN => {
            let why = "outside of a storage call and of a live update's handlers";
            return Err(Cause::BadCall("storage_noreturn", why));
        }
        OLD_BACKEND_RESPONSE => return Err(Cause::OldApi),
        _ => regex::hypercall(number, machine, host).unwrap_or_else(|| {
            let line = format!("hypercall {number:#x} failed: there is no such call here");
            host.output(Output::Log, line.as_bytes());
            ENOSYS
        }),
    })
}

/// Reads the registers and structures of `backend_response` (status, type, its length, content, its length, extra), or of
/// `begin_streaming_response` (status, type, its length, the content's length or 0, callback, its argument).
fn response(
    number: u32,
    machine: &mut Machine,
    exchange: &mut Exchange<'_>,
) -> Result<Response, Cause> {
    if exchange.is_answered {
        let why = "again, in the callback of a response that has begun";
        return Err(Cause::BadCall(name_of(number), why));
    }
    let regs = machine.vcpu().regs();
    let (status, content_type) = head(machine).map_err(Cause::BadResponse)?;
    let body = if number == BACKEND_RESPONSE {
        let (body, len, extra) = (regs.rcx, regs.r8, regs.r9);
        let memory = &machine.memory;
        memory
            .check_readable(body, len)
            .map_err(|bad| Cause::BadResponse(format!("content of {len} bytes at {bad}")))?;
        if extra != 0 {
            extra_fields(machine, exchange, extra).map_err(Cause::BadResponse)?;
        }
        Body::Whole(body, len)
    } else {
        let length = Some(regs.rcx).filter(|&length| length > 0);
        Body::Streamed(Box::new(Stream::begin(exchange, &regs, length)))
    };
    Ok(Response {
        status,
        content_type,
        headers: std::mem::take(&mut exchange.response_headers),
        cache: exchange.cache,
        body,
    })
}

/// Whether an argument of C's type bool is true: its upper bits may be anything.
pub fn is_true(argument: u64) -> bool {
    argument & 0xff != 0
}

fn name_of(number: u32) -> &'static str {
    match number {
        REGISTER_FUNC => "register_func",
        SET_CACHEABLE => "set_cacheable",
        BACKEND_RESPONSE => "backend_response",
        BEGIN_STREAMING_RESPONSE => "begin_streaming_response",
        HTTP_APPEND => "http_append",
        HTTP_SET => "http_set",
        HTTP_FIND => "http_find",
        HTTP_METHOD => "http_method",
        STORAGE_ALLOW => "storage_allow",
        MAKE_EPHEMERAL => "make_ephemeral",
        GET_MEMINFO => "get_meminfo",
        LOG => "log",
        _ => "a call",
    }
}

/// Whether a call would change the head of a response that is on its way.
fn is_too_late(number: u32, message: u64, exchange: &Exchange<'_>) -> bool {
    exchange.is_answered && (number == SET_CACHEABLE || !http::is_request(message))
}

/// Reads a response's status and content type.
fn head(machine: &mut Machine) -> Result<(u16, Vec<u8>), String> {
    let regs = machine.vcpu().regs();
    let status = regs.rdi as i16;
    if !(200..=599).contains(&status) {
        return Err(format!("status {status} is not between 200 and 599"));
    }
    let (address, len) = (regs.rsi, regs.rdx);
    if len >= CONTENT_TYPE_LIMIT {
        return Err(format!("a content type of {len} bytes"));
    }
    let content_type = machine
        .memory
        .read_vec(address, len)
        .map_err(|bad| format!("content type at {bad}"))?;
    if !http::is_field_value(&content_type) {
        return Err("the content type has control characters".into());
    }
    Ok((status as u16, content_type))
}

/// Reads the optional 56-byte structure of a response: headers@0, u16 count@8, bool cached@10, floats ttl@12,
/// grace@16, keep@20.
fn extra_fields(
    machine: &Machine,
    exchange: &mut Exchange<'_>,
    address: u64,
) -> Result<(), String> {
    let extra = Copied::<EXTRA_LEN>::read(&machine.memory, address)
        .map_err(|bad| format!("extra at {bad}"))?;
    let (headers, count) = (extra.u64(0), extra.u16(8));
    if count > EXTRA_HEADERS {
        return Err(format!("{count} headers, more than {EXTRA_HEADERS}"));
    }
    let mut new = Vec::with_capacity(count.into());
    for index in 0..u64::from(count) {
        let entry = headers.wrapping_add(index * 16);
        let header = machine
            .memory
            .read_u64(entry)
            .and_then(|field| Ok((field, machine.memory.read_u64(entry.wrapping_add(8))?)))
            .map_err(|bad| format!("header entry {index} at {bad}"))?;
        let line = read_header(machine, header.0, header.1)
            .map_err(|what| format!("header {index}: {what}"))?;
        new.push(http::parse_header(&line).map_err(|what| format!("header {index}: {what}"))?);
    }
    exchange
        .replace(new)
        .map_err(|what| format!("its headers: {what}"))?;
    if extra.flag(10) {
        let (ttl, grace, keep) = (extra.f32(12), extra.f32(16), extra.f32(20));
        if ![ttl, grace, keep].iter().all(|time| time.is_finite()) {
            return Err("a cache time that is no number".into());
        }
        exchange.cache = Some(CachePolicy {
            ttl: ttl.max(0.0),
            grace: grace.max(0.0),
            keep: keep.max(0.0),
        });
    }
    Ok(())
}

fn read_header(machine: &Machine, address: u64, len: u64) -> Result<Vec<u8>, String> {
    if len > HEADER_LIMIT {
        return Err(format!("{len} bytes, more than {HEADER_LIMIT}"));
    }
    machine
        .memory
        .read_vec(address, len)
        .map_err(|bad| bad.to_string())
}

/// `http_append` and `http_set`: (where, field, len). Returns the header's place, or what is wrong with it.
fn change_header(
    machine: &mut Machine,
    exchange: &mut Exchange<'_>,
    append: bool,
) -> Result<usize, String> {
    let regs = machine.vcpu().regs();
    let line = read_header(machine, regs.rsi, regs.rdx)?;
    exchange.change(regs.rdi, &line, append).map_err(|bad| {
        let shown = line.get(..MOST_SHOWN).unwrap_or(&line).escape_ascii();
        format!("\"{shown}\": {bad}")
    })
}

/// `http_find`: (where, key, klen, out, outlen). Returns the length of the whole line, 0 if absent.
fn find_header(machine: &mut Machine, exchange: &Exchange<'_>) -> Result<i64, String> {
    let regs = machine.vcpu().regs();
    let key = read_header(machine, regs.rsi, regs.rdx)?;
    match exchange.find(regs.rdi, &key) {
        Some(line) => copy_out(machine, (regs.rcx, regs.r8), &line),
        None => Ok(0),
    }
}

/// Copies a text to the guest, with a NUL behind it where there is room. Returns its length, 0 if it does not fit. With a
/// NULL for its place it only returns the length.
fn copy_out(
    machine: &mut Machine,
    (address, room): (u64, u64),
    text: &[u8],
) -> Result<i64, String> {
    let len = text.len() as u64;
    if address == 0 {
        return Ok(len as i64);
    }
    if len > room {
        return Ok(0);
    }
    let mut bytes = text.to_vec();
    if len < room {
        bytes.push(0);
    }
    let copied = machine.memory.write(address, &bytes);
    copied.map_or_else(|bad| Err(bad.to_string()), |()| Ok(len as i64))
}
