//! The hypercalls for regular expressions (docs/guest-abi.md).

use crate::machine::Machine;
use crate::regexes::{LONGEST_PATTERN, LONGEST_SUBJECT, NotCompiled};
use crate::request::{Host, Stream};

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
        FREE => EINVAL,
        MATCH => is_match(machine, regs.rdi, (regs.rsi, regs.rdx)),
        _ => return None,
    })
}

/// (pattern, len): its number, from 1 on. Why there is none goes to the log.
fn compile(machine: &mut Machine, (address, len): (u64, u64), host: &mut dyn Host) -> i64 {
    if len > LONGEST_PATTERN {
        return E2BIG;
    }
    let Ok(pattern) = machine.memory.read_vec(address, len) else {
        return EFAULT;
    };
    match machine.regexes.compile(&pattern) {
        Ok(number) => number as i64,
        Err(refused) => {
            host.output(Stream::Log, format!("regex_compile: {refused}").as_bytes());
            match refused {
                NotCompiled::TooMany => ENOSPC,
                NotCompiled::TooBig => E2BIG,
                NotCompiled::Invalid(_) => EINVAL,
            }
        }
    }
}

/// (number, subject, len): 1 or 0.
fn is_match(machine: &Machine, number: u64, (address, len): (u64, u64)) -> i64 {
    if len > LONGEST_SUBJECT {
        return E2BIG;
    }
    match machine.memory.read_vec(address, len) {
        Ok(subject) => match machine.regexes.is_match(number, &subject) {
            Some(matches) => matches.into(),
            None => EINVAL,
        },
        Err(_) => EFAULT,
    }
}
