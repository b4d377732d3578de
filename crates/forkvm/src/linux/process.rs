//! The process as it sees itself: ids, limits, names, CPUs, random bytes, its end.

use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use syscalls::Sysno;

use crate::image::exec::Loaded;
use crate::linux::abi::{
    CHUNK, Guest, Layout, MOST_BYTES, PAGE, Reply, USER_END, Value, count, flags, int,
};
use crate::linux::call::Outcome;
use crate::linux::memory::heap::Heap;
use crate::linux::tasks::ids::{self, Ids};
use crate::linux::tasks::task::Tasks;
use crate::linux::time::{Clocks, timeval_bytes};
use crate::memory::user::UserMemory;
use crate::random::Random;

const RLIM_INFINITY: u64 = u64::MAX;
const PR_SET_NAME: u64 = 15;
const PR_GET_NAME: u64 = 16;
const PR_GET_DUMPABLE: u64 = 3;
const PR_SET_DUMPABLE: u64 = 4;
const PR_SET_VMA: u64 = 0x5356_4d41;
const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// What a process may set about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    name: [u8; 16],
    umask: u32,
    dumpable: bool,
    /// The path of its executable.
    pub executable: Arc<[u8]>,
    /// Its arguments and its environment at its start, each text with a NUL.
    pub texts: [Arc<[u8]>; 2],
    /// The stack's addresses.
    pub stack: Range<u64>,
    /// Where AT_RANDOM points to, and what was there at the start.
    at_random: (u64, [u8; 16]),
}

impl Process {
    /// A process that runs this executable and has its stack there.
    pub fn new(executable: &[u8], stack: Range<u64>) -> Self {
        let file_name = executable.rsplit(|&byte| byte == b'/').next();
        let mut name = [0; 16];
        // The last byte stays NUL (TASK_COMM_LEN).
        for (place, byte) in name.iter_mut().take(15).zip(file_name.unwrap_or_default()) {
            *place = *byte;
        }
        Self {
            name,
            umask: 0o022,
            dumpable: true,
            executable: executable.into(),
            texts: Default::default(),
            stack,
            at_random: (0, [0; 16]),
        }
    }

    /// Its name, as PR_SET_NAME sets it.
    pub fn name(&self) -> &[u8] {
        let end = self.name.iter().position(|&byte| byte == 0);
        self.name.get(..end.unwrap_or(16)).unwrap_or_default()
    }

    /// Permission bits that new files do not get.
    pub fn umask(&self) -> u32 {
        self.umask
    }

    /// The same process with another executable, as after execve(2).
    pub fn exec(&mut self, loaded: &Loaded, at_random: [u8; 16], texts: &[Vec<Vec<u8>>; 2]) {
        let joined = |texts: &Vec<Vec<u8>>| -> Arc<[u8]> {
            let ended = texts.iter().map(|text| [text, &b"\0"[..]].concat());
            ended.collect::<Vec<_>>().concat().into()
        };
        *self = Self {
            umask: self.umask,
            texts: texts.each_ref().map(joined),
            at_random: (loaded.at_random, at_random),
            ..Self::new(&loaded.executable, loaded.stack.clone())
        };
    }

    /// Gives a fork bytes of its own at AT_RANDOM, unless the program has something else there by now.
    pub fn renew_at_random(&self, memory: &mut dyn UserMemory, random: &mut Random) {
        let (address, old) = self.at_random;
        let (mut now, mut new) = ([0; 16], [0; 16]);
        if memory.read(address, &mut now).is_ok() && now == old {
            random.fill(&mut new);
            // It was readable, and is the stack's; else it is the program's own trouble.
            let _ = memory.write(address, &new);
        }
    }
}

/// uname(2), `struct new_utsname`: six fields of 65 bytes.
pub fn uname(guest: &mut Guest<'_>, address: u64) -> Value {
    let fields: [&[u8]; 6] = [
        b"Linux",
        b"localhost",
        b"6.1.0",
        b"#1 SMP",
        b"x86_64",
        b"(none)",
    ];
    let layout = fields
        .iter()
        .enumerate()
        .fold(Layout::<390>::new(), |layout, (i, text)| {
            layout.bytes(i * 65, text)
        });
    guest.write(address, layout.done())?;
    Ok(0)
}

/// sysinfo(2), `struct sysinfo`.
pub fn sysinfo(clocks: &Clocks, heap: &Heap, guest: &mut Guest<'_>, address: u64) -> Value {
    let (all, free) = match guest.memory.space() {
        Some(space) => {
            let (used, all) = space.memory();
            (all, all.saturating_sub(used))
        }
        None => (
            heap.pages().saturating_mul(PAGE),
            heap.free_pages().saturating_mul(PAGE),
        ),
    };
    let layout = Layout::<112>::new()
        .u64(0, clocks.running().as_secs())
        .u64(32, all)
        .u64(40, free)
        .u16(80, 1) // processes
        .u32(104, 1); // bytes in a unit of memory
    guest.write(address, layout.done())?;
    Ok(0)
}

/// prlimit64(2) and getrlimit(2): the limits are what they are, and a wish to change one within them is granted
/// without effect.
pub fn rlimit(
    guest: &mut Guest<'_>,
    (stack, descriptors): (&Range<u64>, usize),
    resource: u64,
    new: u64,
    old: u64,
) -> Value {
    let limit = match int(resource) {
        // RLIMIT_STACK, RLIMIT_CORE, RLIMIT_NPROC, RLIMIT_NOFILE.
        3 => stack.end.saturating_sub(stack.start),
        4 => 0,
        6 => 1,
        7 => crate::linux::abi::length(descriptors),
        0..=15 => RLIM_INFINITY,
        _ => return Err(Errno::INVAL),
    };
    if new != 0 {
        let wanted: [u8; 16] = guest.read(new)?;
        let (soft, hard) = (
            crate::linux::abi::field_u64(&wanted, 0),
            crate::linux::abi::field_u64(&wanted, 8),
        );
        if soft > hard {
            return Err(Errno::INVAL);
        }
        if hard > limit {
            return Err(Errno::PERM);
        }
    }
    guest.write_unless_null(old, Layout::<16>::new().u64(0, limit).u64(8, limit).done())?;
    Ok(0)
}

/// getrusage(2), `struct rusage`: the user time comes first.
pub fn getrusage(clocks: &Clocks, guest: &mut Guest<'_>, who: u64, address: u64) -> Value {
    let user = match int(who) {
        // RUSAGE_SELF, RUSAGE_THREAD; RUSAGE_CHILDREN has none.
        0 | 1 => clocks.now(2)?,
        -1 => rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        _ => return Err(Errno::INVAL),
    };
    guest.write(
        address,
        Layout::<144>::new()
            .bytes(0, timeval_bytes(user).done())
            .done(),
    )?;
    Ok(0)
}

/// sched_getaffinity(2): one CPU. The kernel gives the size of what it wrote.
pub fn sched_getaffinity(guest: &mut Guest<'_>, size: u64, address: u64) -> Value {
    if size < 8 || !size.is_multiple_of(8) {
        return Err(Errno::INVAL);
    }
    guest.write(address, &1u64.to_le_bytes())?;
    Ok(8)
}

/// getcpu(2)
pub fn getcpu(guest: &mut Guest<'_>, cpu: u64, node: u64) -> Value {
    guest.write_unless_null(cpu, &[0; 4])?;
    guest.write_unless_null(node, &[0; 4])?;
    Ok(0)
}

/// prctl(2): the process's name, and settings that are true anyway.
pub fn prctl(process: &mut Process, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [what, argument, ..] = args;
    match what & 0xffff_ffff {
        PR_SET_NAME => {
            let text = match guest.read_string(argument, 16, Errno::NAMETOOLONG) {
                // A longer name is cut.
                Err(Errno::NAMETOOLONG) => guest.read::<15>(argument)?.to_vec(),
                other => other?,
            };
            process.name = [0; 16];
            for (place, byte) in process.name.iter_mut().take(15).zip(text) {
                *place = byte;
            }
            Ok(0)
        }
        PR_GET_NAME => {
            guest.write(argument, &process.name)?;
            Ok(0)
        }
        PR_GET_DUMPABLE => Ok(process.dumpable.into()),
        PR_SET_DUMPABLE if argument <= 1 => {
            process.dumpable = argument == 1;
            Ok(0)
        }
        // PR_SET_VMA_ANON_NAME labels a mapping, which only /proc would show.
        PR_SET_VMA => Ok(0),
        _ => Err(Errno::INVAL),
    }
}

/// arch_prctl(2). Shadow stacks and other CET features are not there, which EINVAL says.
pub fn arch_prctl(code: u64, address: u64) -> Reply {
    // A base outside the user half would be accepted by the CPU and mean kernel memory, or nothing.
    let checked = if address < USER_END {
        Ok(address)
    } else {
        Err(Errno::PERM)
    };
    Ok(match code {
        0x1001 => Outcome::SetGsBase(checked?),
        0x1002 => Outcome::SetFsBase(checked?),
        0x1003 => Outcome::GetFsBase(address),
        0x1004 => Outcome::GetGsBase(address),
        _ => return Err(Errno::INVAL),
    })
}

/// umask(2)
pub fn umask(process: &mut Process, mask: u64) -> i64 {
    i64::from(std::mem::replace(&mut process.umask, flags(mask) & 0o777))
}

/// capget(2), `struct __user_cap_data_struct` twice: none.
pub fn capget(guest: &mut Guest<'_>, header: u64, data: u64) -> Value {
    let version = guest.read_u32(header)?;
    if version != LINUX_CAPABILITY_VERSION_3 {
        guest.write(header, &LINUX_CAPABILITY_VERSION_3.to_le_bytes())?;
        return if data == 0 { Ok(0) } else { Err(Errno::INVAL) };
    }
    guest.write_unless_null(data, &[0; 24])?;
    Ok(0)
}

/// setuid(2) and its relatives. Who acts by other rights than before is no longer to be dumped (PR_SET_DUMPABLE(2const)).
pub fn change_ids(
    process: &mut Process,
    tasks: &mut Tasks,
    guest: &mut Guest<'_>,
    number: Sysno,
    args: [u64; 6],
) -> Value {
    let of = &mut tasks.current().ids;
    let rights = |ids: &Ids| (ids.user.effective, ids.group.effective, ids.owner());
    let before = rights(of);
    let result = ids::call(of, guest, number, args);
    process.dumpable &= rights(of) == before;
    result
}

/// Random bytes to the program: getrandom(2), `/dev/urandom`. Linux too gives less than was asked for, from 32 MiB on.
pub fn random(guest: &mut Guest<'_>, address: u64, len: u64) -> Value {
    let len = len.min(MOST_BYTES);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(CHUNK).min(CHUNK)];
    let mut done = 0u64;
    while done < len {
        let most = usize::try_from(len - done)
            .unwrap_or(bytes.len())
            .min(bytes.len());
        let piece = bytes.get_mut(..most).ok_or(Errno::FAULT)?;
        guest.random.fill(piece);
        let at = address.checked_add(done).ok_or(Errno::FAULT)?;
        guest.write(at, piece)?;
        done = done.saturating_add(crate::linux::abi::length(most));
    }
    Ok(count(usize::try_from(done).unwrap_or(0)))
}

/// getrandom(2): GRND_NONBLOCK, GRND_RANDOM, GRND_INSECURE all mean the same generator.
pub fn getrandom(guest: &mut Guest<'_>, address: u64, len: u64, how: u64) -> Value {
    let how = flags(how);
    if how & !7 != 0 || how & 6 == 6 {
        return Err(Errno::INVAL);
    }
    random(guest, address, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{Machine, SCRATCH};
    use syscalls::Sysno;

    #[test]
    fn bases_must_be_user_addresses() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(
            machine.outcome(Sysno::arch_prctl, &[0x1002, 0x7000]),
            Outcome::SetFsBase(0x7000)
        );
        assert_eq!(
            machine.outcome(Sysno::arch_prctl, &[0x1001, 0x7000]),
            Outcome::SetGsBase(0x7000)
        );
        assert_eq!(
            machine.outcome(Sysno::arch_prctl, &[0x1003, 0x7000]),
            Outcome::GetFsBase(0x7000)
        );
        for bad in [0x8000_0000_0000, 0xffff_8000_0000_0000, u64::MAX] {
            assert_eq!(machine.call(Sysno::arch_prctl, &[0x1002, bad]), -1);
        }
        assert_eq!(machine.call(Sysno::arch_prctl, &[0x3001, 0]), -22);
    }

    #[test]
    fn randomness_differs_and_is_bounded() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(machine.call(Sysno::getrandom, &[SCRATCH, 32, 0]), 32);
        let first = machine.get(SCRATCH, 32);
        assert_eq!(machine.call(Sysno::getrandom, &[SCRATCH, 32, 1]), 32);
        assert_ne!(first, machine.get(SCRATCH, 32));
        assert_eq!(machine.call(Sysno::getrandom, &[SCRATCH, 32, 8]), -22);
        assert_eq!(machine.call(Sysno::getrandom, &[SCRATCH, 0, 0]), 0);
        assert_eq!(machine.call(Sysno::getrandom, &[0, u64::MAX, 0]), -14);
    }

    #[test]
    fn names_and_limits() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(machine.call(Sysno::uname, &[SCRATCH]), 0);
        assert_eq!(machine.get(SCRATCH, 6), b"Linux\0");
        assert_eq!(machine.get(SCRATCH + 4 * 65, 7), b"x86_64\0");
        assert_eq!(machine.call(Sysno::prlimit64, &[0, 3, 0, SCRATCH]), 0);
        assert_eq!(machine.get(SCRATCH, 8), 0x10_0000u64.to_le_bytes());
        let more = machine.put(
            0,
            Layout::<16>::new().u64(0, 1 << 30).u64(8, 1 << 30).done(),
        );
        assert_eq!(machine.call(Sysno::setrlimit, &[3, more]), -1);
        assert_eq!(machine.call(Sysno::getrlimit, &[77, SCRATCH]), -22);
        let name = machine.put_str(0, "a-name-longer-than-fits");
        assert_eq!(machine.call(Sysno::prctl, &[PR_SET_NAME, name]), 0);
        assert_eq!(machine.call(Sysno::prctl, &[PR_GET_NAME, SCRATCH]), 0);
        assert_eq!(machine.get(SCRATCH, 16), b"a-name-longer-t\0");
    }

    #[test]
    fn the_rest_of_the_process() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(machine.call(Sysno::getpid, &[]), 1);
        assert_eq!(machine.call(Sysno::gettid, &[]), 1);
        assert_eq!(machine.call(Sysno::getuid, &[]), 0);
        assert_eq!(machine.call(Sysno::set_tid_address, &[SCRATCH]), 1);
        assert_eq!(
            machine.call(Sysno::sched_getaffinity, &[0, 128, SCRATCH]),
            8
        );
        assert_eq!(
            machine.call(Sysno::sched_getaffinity, &[0, 7, SCRATCH]),
            -22
        );
        // The raw call gives 20 minus the nice value (getpriority(2), "C library/kernel differences").
        assert_eq!(machine.call(Sysno::getpriority, &[0, 0]), 20);
        assert_eq!(machine.call(Sysno::umask, &[0o77]), 0o22);
        assert_eq!(machine.call(Sysno::umask, &[0]), 0o77);
        assert_eq!(machine.call(Sysno::sysinfo, &[SCRATCH]), 0);
        assert_eq!(machine.call(Sysno::getrusage, &[0, SCRATCH]), 0);
        assert_eq!(machine.outcome(Sysno::exit_group, &[3]), Outcome::Exit(3));
        assert_eq!(
            machine.outcome(Sysno::exit, &[u64::MAX]),
            Outcome::Exit(255)
        );
    }
}
