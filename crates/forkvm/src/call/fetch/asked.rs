//! What the calls about fetching have in common: how what a program asks for is read, and how it waits.

use std::sync::Arc;
use std::time::Instant;

use crate::call::fetch::failed::Failed;
use crate::call::http;
use crate::failure::Cause;
use crate::fetch::{FetchError, FetchHead, FetchTarget, Fetcher};
use crate::header::Header;
use crate::machine::Machine;
use crate::request::Host;

/// Longest URL, or path.
pub const MOST_URL: u64 = 8 << 10;
/// Longest header line.
const MOST_LINE: u64 = 8 << 10;
/// Bytes of a body that the host has at a time on the way to a guest.
pub const PIECE: usize = 64 << 10;

/// Who fetches, if somebody does.
pub fn fetcher(host: &dyn Host) -> Result<Arc<dyn Fetcher>, Failed> {
    host.fetcher().ok_or(FetchError::NotThere.into())
}

/// Where the program wants something from; from its own Varnish, and how often in a row that was so by now.
pub fn target(
    machine: &Machine,
    (address, len): (u64, u64),
    own: Option<usize>,
) -> Result<FetchTarget, Failed> {
    if len > MOST_URL {
        let what = format!("a URL of {len} bytes, more than {MOST_URL}");
        return Err(FetchError::Bad(what).into());
    }
    let bytes = machine.memory.read_vec(address, len)?;
    let no_text = |_| FetchError::Bad("a URL that is not in ASCII".into());
    let url = String::from_utf8(bytes).map_err(no_text)?;
    Ok(match own {
        None => FetchTarget::Url(url),
        Some(depth) => FetchTarget::Own { path: url, depth },
    })
}

/// A header line of the program's. `None` for what is not the program's to say.
pub fn header(
    machine: &Machine,
    address: u64,
    len: u64,
) -> Result<Option<Header<'static>>, Failed> {
    if len > MOST_LINE {
        let what = format!("a header of {len} bytes, more than {MOST_LINE}");
        return Err(FetchError::Bad(what).into());
    }
    let line = machine.memory.read_vec(address, len)?;
    let header = http::parse_header(&line)?;
    if header.name.eq_ignore_ascii_case("host") {
        let what = "a header Host: which it is the URL says";
        return Err(FetchError::Bad(what.into()).into());
    }
    let is_clients =
        http::is_connections(&header.name) || header.name.eq_ignore_ascii_case("expect");
    Ok((!is_clients).then_some(header))
}

/// The body of the program's request.
pub fn body(machine: &Machine, fetcher: &dyn Fetcher, at: (u64, u64)) -> Result<Vec<u8>, Failed> {
    let (address, len) = at;
    if len > fetcher.max_size() {
        return Err(FetchError::TooLong(fetcher.max_size()).into());
    }
    Ok(machine.memory.read_vec(address, len)?)
}

/// Has a fetch's next part come, by `next`, before the request's deadline.
pub fn wait<T>(
    machine: &mut Machine,
    host: &mut dyn Host,
    next: impl FnMut(Instant) -> Result<Option<T>, FetchError>,
) -> Result<T, Failed> {
    match machine.await_host(host, next).map_err(Failed::Over)? {
        Ok(Some(come)) => Ok(come),
        // The rest of its time is not enough to say something of it.
        Ok(None) | Err(FetchError::Timeout) if Instant::now() >= machine.deadline() => {
            Err(Failed::Over(Cause::Timeout))
        }
        Ok(None) => Err(FetchError::Timeout.into()),
        Err(error) => Err(error.into()),
    }
}

/// A response's headers as text: `Name: value` lines, each with its line end.
pub fn lines(head: &FetchHead) -> impl Iterator<Item = Vec<u8>> {
    head.headers
        .iter()
        .map(|header| [header.name.as_bytes(), b": ", &header.value, b"\r\n"].concat())
}
