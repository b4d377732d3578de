//! The hypercalls for regular expressions (docs/guest-abi.md).

use std::sync::Arc;
use std::time::Instant;

use crate::call::copied::Copied;
use crate::call::failed::failed;
use crate::call::http::{self, Exchange, HeaderError};
use crate::failure::Cause;
use crate::machine::Machine;
use crate::memory::guest::NotRead;
use crate::memory::user::{BadAddress, UserMemory};
use crate::regexes::{Compiled, LONGEST_PATTERN, NotCompiled};
use crate::request::Host;
use crate::substitution::{LONGEST_RESULT, NotSubstituted, substitute};

const COMPILE: u32 = 0x10030;
const FREE: u32 = 0x10031;
const MATCH: u32 = 0x10032;
const SUBST: u32 = 0x10033;
pub const COPYTO: u32 = 0x10035;

/// Of `regex_subst`'s and `regex_copyto`'s flags: not only the first match.
const ALL: u64 = 1;
/// Bytes of `kvm_regex_subst` and `kvm_regex_copyto`, which their first field says as well.
const SUBST_LEN: usize = 56;
const COPYTO_LEN: usize = 64;
/// Longest name of a header, and what takes the place of a match.
const LONGEST_NAME: u64 = 8 << 10;
const LONGEST_WITH: u64 = 64 << 10;

/// Why a call is not carried out.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("there is no expression {}", *.0 as i64)]
    NoSuch(u64),
    #[error("{0} bytes, more than {1}")]
    TooLong(u64, u64),
    #[error(transparent)]
    Pointer(#[from] NotRead),
    #[error(transparent)]
    NotCompiled(#[from] NotCompiled),
    #[error("its structure says {0} bytes and not {1}: it is of another header")]
    Layout(u64, usize),
    #[error("flags {0:#x}, which are none")]
    Flags(u64),
    #[error("a result of {0} bytes, more than the {1} of its buffer")]
    Room(usize, u64),
    #[error("a result of more than {LONGEST_RESULT} bytes")]
    Result,
    #[error("the time is over")]
    Late,
    #[error("its response has begun")]
    Begun,
    #[error("there is no request")]
    NoRequest,
}

impl From<BadAddress> for Refused {
    fn from(bad: BadAddress) -> Self {
        Self::Pointer(bad.into())
    }
}

impl From<NotSubstituted> for Refused {
    fn from(why: NotSubstituted) -> Self {
        match why {
            NotSubstituted::TooLong => Self::Result,
            NotSubstituted::Late => Self::Late,
        }
    }
}

impl Refused {
    /// Of Linux's.
    fn errno(&self) -> i64 {
        let errno = match self {
            Self::NoSuch(_) | Self::Layout(..) | Self::Flags(_) => libc::EINVAL,
            Self::TooLong(..) | Self::Result => libc::E2BIG,
            Self::Pointer(_) => libc::EFAULT,
            Self::NotCompiled(NotCompiled::TooMany) => libc::ENOSPC,
            Self::NotCompiled(NotCompiled::TooBig | NotCompiled::TooManyGroups) => libc::E2BIG,
            Self::NotCompiled(NotCompiled::Invalid(_)) => libc::EINVAL,
            Self::Room(..) => libc::EMSGSIZE,
            Self::Late => libc::EINTR,
            Self::Begun | Self::NoRequest => libc::EPERM,
        };
        -i64::from(errno)
    }
}

/// Carries one out. `None` if it is another call.
pub fn hypercall(number: u32, machine: &mut Machine, host: &mut dyn Host) -> Option<i64> {
    let regs = machine.vcpu().regs();
    let (name, result) = match number {
        COMPILE => ("regex_compile", compile(machine, (regs.rdi, regs.rsi))),
        FREE => ("regex_free", free(machine, regs.rdi)),
        MATCH => {
            let subject = (regs.rsi, regs.rdx);
            ("regex_match", is_match(machine, regs.rdi, subject))
        }
        SUBST => {
            let result = subst(machine, regs.rdi, regs.rsi, regs.rdx);
            ("regex_subst", result)
        }
        COPYTO => ("regex_copyto", Err(Refused::NoRequest)),
        _ => return None,
    };
    Some(result.unwrap_or_else(|why| failed(machine, host, name, &why, why.errno())))
}

/// (pattern, len): its number, from 1 on.
fn compile(machine: &mut Machine, pattern: (u64, u64)) -> Result<i64, Refused> {
    let pattern = read(machine, pattern, LONGEST_PATTERN)?;
    Ok(machine.regexes.compile(&pattern)? as i64)
}

/// (number): 0.
fn free(machine: &mut Machine, number: u64) -> Result<i64, Refused> {
    match machine.regexes.free(number) {
        true => Ok(0),
        false => Err(Refused::NoSuch(number)),
    }
}

/// (number, subject, len): 1 or 0.
fn is_match(machine: &Machine, number: u64, subject: (u64, u64)) -> Result<i64, Refused> {
    let regex = regex(machine, number)?;
    let subject = read(machine, subject, regex.longest() as u64)?;
    Ok(regex.is_match(&subject).into())
}

/// (number, `kvm_regex_subst`, flags): the result's length, which is the subject where nothing matches.
fn subst(machine: &mut Machine, number: u64, at: u64, flags: u64) -> Result<i64, Refused> {
    let what = structure::<SUBST_LEN>(machine, at, flags)?;
    let regex = regex(machine, number)?;
    let subject = read(machine, what.piece(8), regex.longest() as u64)?;
    let with = read(machine, what.piece(24), LONGEST_WITH)?;
    let (out, room) = what.piece(40);
    if out != 0 {
        let most = room.min(LONGEST_RESULT as u64);
        machine.memory.check_writable(out, most)?;
    }
    let result = result(machine, &regex, &subject, &with, flags)?.unwrap_or(subject);
    if out != 0 {
        if result.len() as u64 > room {
            return Err(Refused::Room(result.len(), room));
        }
        machine.memory.write(out, &result)?;
    }
    Ok(result.len() as i64)
}

/// (number, `kvm_regex_copyto`, flags): finds a header, and where its value matches sets another one, to the value with the
/// substitution made. Its place; 0 if nothing matches.
pub fn copyto(
    machine: &mut Machine,
    exchange: &mut Exchange<'_>,
    host: &mut dyn Host,
) -> Result<i64, Cause> {
    let regs = machine.vcpu().regs();
    let refuse = |machine: &Machine, host: &mut dyn Host, why: Refused| {
        failed(machine, host, "regex_copyto", &why, why.errno())
    };
    let asked = match CopyTo::read(machine, regs.rdi, regs.rsi, regs.rdx) {
        Ok(asked) => asked,
        Err(why) => return Ok(refuse(machine, host, why)),
    };
    let invalid = |why: HeaderError| Cause::BadHeader(format!("regex_copyto: {why}"));
    if !http::is_field_name(&asked.to_name) {
        return Err(invalid(HeaderError::BadName));
    }
    if exchange.is_answered && !http::is_request(asked.to) {
        return Ok(refuse(machine, host, Refused::Begun));
    }
    let value = match asked.value(machine, exchange) {
        Ok(Some(value)) => value,
        Ok(None) => return Ok(0),
        Err(why) => return Ok(refuse(machine, host, why)),
    };
    let line = [&asked.to_name[..], b": ", &value].concat();
    let place = exchange.change(asked.to, &line, false).map_err(invalid)?;
    Ok(place as i64)
}

/// What is asked of `regex_copyto`.
struct CopyTo {
    regex: Arc<Compiled>,
    from: u64,
    name: Vec<u8>,
    with: Vec<u8>,
    flags: u64,
    to: u64,
    to_name: Vec<u8>,
}

impl CopyTo {
    fn read(machine: &Machine, number: u64, at: u64, flags: u64) -> Result<Self, Refused> {
        let what = structure::<COPYTO_LEN>(machine, at, flags)?;
        Ok(Self {
            regex: regex(machine, number)?,
            from: what.u32(8).into(),
            to: what.u32(12).into(),
            name: read(machine, what.piece(16), LONGEST_NAME)?,
            to_name: read(machine, what.piece(32), LONGEST_NAME)?,
            with: read(machine, what.piece(48), LONGEST_WITH)?,
            flags,
        })
    }

    /// The other header's, if there is something for it: headers have a value.
    fn value(
        &self,
        machine: &Machine,
        exchange: &Exchange<'_>,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let Some(subject) = exchange.value(self.from, &self.name) else {
            return Ok(None);
        };
        let (len, most) = (subject.len(), self.regex.longest());
        if len > most {
            return Err(Refused::TooLong(len as u64, most as u64));
        }
        let value = result(machine, &self.regex, subject, &self.with, self.flags)?;
        Ok(value.filter(|value| !value.trim_ascii().is_empty()))
    }
}

fn result(
    machine: &Machine,
    regex: &Compiled,
    subject: &[u8],
    with: &[u8],
    flags: u64,
) -> Result<Option<Vec<u8>>, Refused> {
    let deadline = machine.deadline();
    let is_late = || Instant::now() >= deadline;
    let result = substitute(regex, subject, with, flags & ALL != 0, is_late)?;
    Ok(result)
}

/// The regular expression of this number.
fn regex(machine: &Machine, number: u64) -> Result<Arc<Compiled>, Refused> {
    let regex = machine.regexes.get(number).cloned();
    regex.ok_or(Refused::NoSuch(number))
}

/// A structure whose first field is its length: who has another one in mind, since the numbers of these calls are older than their
/// arguments here, is refused.
fn structure<const LEN: usize>(
    machine: &Machine,
    at: u64,
    flags: u64,
) -> Result<Copied<LEN>, Refused> {
    let what = Copied::<LEN>::read(&machine.memory, at)?;
    if what.u64(0) != LEN as u64 {
        return Err(Refused::Layout(what.u64(0), LEN));
    }
    if flags & !ALL != 0 {
        return Err(Refused::Flags(flags));
    }
    Ok(what)
}

fn read(machine: &Machine, (address, len): (u64, u64), most: u64) -> Result<Vec<u8>, Refused> {
    if len > most {
        return Err(Refused::TooLong(len, most));
    }
    Ok(machine.memory.read_vec(address, len)?)
}
