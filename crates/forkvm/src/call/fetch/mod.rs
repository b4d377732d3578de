//! Hypercalls by which programs have something fetched: in one call as the first KVM VMOD has it (`whole`), and in parts, several
//! at a time (`parts`). What they give is read here, and what they get is written here; who fetches it is the host's
//! [`Fetcher`](crate::fetch::Fetcher).

mod asked;
mod failed;
mod kept;
mod parts;
mod whole;

use crate::call::fetch::asked::MOST_URL;
use crate::call::fetch::failed::Failed;
use crate::call::http::Exchange;
use crate::failure::Cause;
use crate::machine::Machine;
use crate::request::{Host, Stream};

const FETCH: u32 = 0x20000;
const SELF_REQUEST: u32 = 0x20001;
const FETCH_BEGIN: u32 = 0x20010;
const FETCH_HEAD: u32 = 0x20011;
const FETCH_READ: u32 = 0x20012;
const FETCH_CLOSE: u32 = 0x20013;

/// How much of where something is fetched from is shown.
const MOST_SHOWN: usize = 100;

/// Carries out a call of a request's. `None` if it is not about fetching.
pub fn during_request(
    number: u32,
    machine: &mut Machine,
    exchange: &mut Exchange<'_>,
    host: &mut dyn Host,
) -> Option<Result<i64, Cause>> {
    let result = match number {
        FETCH_BEGIN => {
            let loops = exchange.loops();
            parts::begin(machine, &mut exchange.fetches, loops, host)
        }
        FETCH_HEAD => parts::head(machine, &mut exchange.fetches, host),
        FETCH_READ => parts::read(machine, &mut exchange.fetches, host),
        FETCH_CLOSE => parts::close(machine, &mut exchange.fetches),
        FETCH | SELF_REQUEST => return anywhere(number, machine, exchange.loops(), host),
        _ => return None,
    };
    Some(finish(number, machine, host, None, result))
}

/// The same where there is no request; `None` as well for what only a request can do.
pub fn anywhere(
    number: u32,
    machine: &mut Machine,
    loops: usize,
    host: &mut dyn Host,
) -> Option<Result<i64, Cause>> {
    let result = match number {
        FETCH => whole::fetch(machine, None, host),
        SELF_REQUEST => whole::fetch(machine, Some(loops), host),
        FETCH_BEGIN..=FETCH_CLOSE => Err(Failed::NoRequest),
        _ => return None,
    };
    let shown = match number {
        FETCH if result.is_err() => {
            let regs = machine.vcpu().regs();
            let url = machine.memory.read_vec(regs.rdi, regs.rsi.min(MOST_URL));
            url.ok()
        }
        _ => None,
    };
    Some(finish(number, machine, host, shown.as_deref(), result))
}

/// The result for the program. What is its author's or the operator's to mend is logged.
fn finish(
    number: u32,
    machine: &mut Machine,
    host: &mut dyn Host,
    url: Option<&[u8]>,
    result: Result<i64, Failed>,
) -> Result<i64, Cause> {
    match result {
        Ok(result) => Ok(result),
        Err(Failed::Over(cause)) => {
            // Who goes on though its caller's time is over, as storage does, finds that this has come to nothing.
            machine.vcpu().set_result(-i64::from(libc::EINTR) as u64);
            Err(cause)
        }
        // The next look at that ends the request, and says so.
        Err(_) if machine.over_memory_limit() => Ok(-i64::from(libc::ENOMEM)),
        Err(failed) => {
            let what = match url {
                Some(url) => format!("fetch of {}", origin(url)),
                None => format!("{}()", name_of(number)),
            };
            host.output(Stream::Log, format!("{what} failed: {failed}").as_bytes());
            Ok(-i64::from(failed.errno()))
        }
    }
}

fn name_of(number: u32) -> &'static str {
    match number {
        FETCH => "fetch",
        SELF_REQUEST => "self_request",
        FETCH_BEGIN => "fetch_begin",
        FETCH_HEAD => "fetch_head",
        FETCH_READ => "fetch_read",
        _ => "fetch_close",
    }
}

/// Of a URL what can be shown: no name or password of a user's, no path, no query.
fn origin(url: &[u8]) -> String {
    let start = url.windows(3).position(|three| three == b"://");
    let (scheme, rest) = url.split_at(start.map_or(0, |start| start + 3));
    let end = rest.iter().position(|byte| b"/?#".contains(byte));
    let authority = &rest[..end.unwrap_or(rest.len())];
    let at = authority.iter().rposition(|&byte| byte == b'@');
    let host = &authority[at.map_or(0, |at| at + 1)..];
    let shown = [scheme, host].concat();
    let shown = shown.get(..MOST_SHOWN).unwrap_or(&shown);
    shown.escape_ascii().to_string()
}
