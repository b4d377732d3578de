//! The hypercalls for regular expressions (docs/guest-abi.md).

use crate::call::failed::failed;
use crate::machine::Machine;
use crate::regexes::{LONGEST_PATTERN, LONGEST_SUBJECT, NotCompiled};
use crate::request::Host;

const COMPILE: u32 = 0x10030;
const FREE: u32 = 0x10031;
const MATCH: u32 = 0x10032;

const EFAULT: i64 = -(libc::EFAULT as i64);
const EINVAL: i64 = -(libc::EINVAL as i64);
const E2BIG: i64 = -(libc::E2BIG as i64);
const ENOSPC: i64 = -(libc::ENOSPC as i64);

/// Carries one out. `None` if it is another call.
pub fn hypercall(number: u32, machine: &mut Machine, host: &mut dyn Host) -> Option<i64> {
    let regs = machine.vcpu().regs();
    Some(match number {
        COMPILE => compile(machine, (regs.rdi, regs.rsi), host),
        FREE if machine.regexes.free(regs.rdi) => 0,
        FREE => no_such(machine, host, "regex_free", regs.rdi),
        MATCH => is_match(machine, regs.rdi, (regs.rsi, regs.rdx), host),
        _ => return None,
    })
}

/// (pattern, len): its number, from 1 on. Why there is none goes to the log.
fn compile(machine: &mut Machine, (address, len): (u64, u64), host: &mut dyn Host) -> i64 {
    const NAME: &str = "regex_compile";
    if len > LONGEST_PATTERN {
        return too_long(machine, host, NAME, len, LONGEST_PATTERN);
    }
    let pattern = match machine.memory.read_vec(address, len) {
        Ok(pattern) => pattern,
        Err(bad) => return failed(machine, host, NAME, &bad, EFAULT),
    };
    match machine.regexes.compile(&pattern) {
        Ok(number) => number as i64,
        Err(refused) => {
            let errno = match refused {
                NotCompiled::TooMany => ENOSPC,
                NotCompiled::TooBig => E2BIG,
                NotCompiled::Invalid(_) => EINVAL,
            };
            failed(machine, host, NAME, &refused, errno)
        }
    }
}

/// (number, subject, len): 1 or 0.
fn is_match(
    machine: &Machine,
    number: u64,
    (address, len): (u64, u64),
    host: &mut dyn Host,
) -> i64 {
    const NAME: &str = "regex_match";
    if len > LONGEST_SUBJECT {
        return too_long(machine, host, NAME, len, LONGEST_SUBJECT);
    }
    match machine.memory.read_vec(address, len) {
        Ok(subject) => match machine.regexes.is_match(number, &subject) {
            Some(matches) => matches.into(),
            None => no_such(machine, host, NAME, number),
        },
        Err(bad) => failed(machine, host, NAME, &bad, EFAULT),
    }
}

fn too_long(machine: &Machine, host: &mut dyn Host, name: &str, len: u64, most: u64) -> i64 {
    let why = format!("{len} bytes, more than {most}");
    failed(machine, host, name, &why, E2BIG)
}

fn no_such(machine: &Machine, host: &mut dyn Host, name: &str, number: u64) -> i64 {
    let why = format!("there is no expression {}", number as i64);
    failed(machine, host, name, &why, EINVAL)
}
