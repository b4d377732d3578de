//! A running machine, before the freeze or after the fork: the vCPU loop that serves system calls and hands
//! everything else to its caller.

mod handshake;
pub mod probe;
mod space;
mod sync;
mod tasks;
#[allow(unsafe_code)]
pub mod watchdog;

use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::arch::layout::{KERNEL_STACK_TOP, PAGE};
use crate::arch::regs::{RFLAGS, RFLAGS_USER, user_sregs};
use crate::arch::stubs::{
    PORT_EXCEPTION, PORT_HYPERCALL, PORT_PAGE_FAULT, PORT_SYSCALL, PORT_SYSCALL_32, SyscallEntry,
};
use crate::failure::{Cause, Exception, PAGE_FAULT, what_to_raise};
use crate::kvm::{Death, Exit, Vcpu, Vm};
use crate::linux::{Call, FIRST_TID, Linux, Outcome};
use crate::machine::probe::KvmHost;
use crate::machine::watchdog::{Watch, WatchdogError};
use crate::memory::faults::FaultError;
use crate::memory::guest::GuestMemory;
use crate::memory::space::Space;
use crate::memory::user::UserMemory;
use crate::random::Random;
use crate::request::Host;

/// Why the guest stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A hypercall; its arguments are in the registers.
    Hypercall(u32),
    /// A processor exception. The vCPU is in ring 0, in the exception's stub.
    Exception(Exception),
    /// A system call was served; only told while stepping.
    SystemCall,
    /// It ended otherwise.
    Ended(Cause),
}

/// What the vCPU's last exit left behind in KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residue {
    /// Nothing that new registers don't overwrite.
    Clean,
    /// The completion of a port access, to be drained.
    PendingIo,
    /// Nobody knows: the machine is not to be used again.
    Unknown,
}

/// A machine and all its state.
#[derive(Debug)]
pub struct Machine {
    watch: Watch,
    vcpu: Vcpu,
    vm: Vm,
    /// Its memory.
    pub memory: GuestMemory,
    /// The state of its Linux personality.
    pub linux: Linux,
    /// Its random numbers, for good: a reset leaves them alone.
    pub random: Random,
    /// Which of its program's forks it is, for the program to see. 0 before the freeze.
    pub fork_number: u32,
    host: &'static KvmHost,
    residue: Residue,
    /// Something was begun on it that has not come to its end, and never will if there was a panic: it is not to be used
    /// again.
    poisoned: bool,
    /// A debugger steps through the program.
    stepping: bool,
    /// The task whose vector state the processor holds.
    vector_of: i32,
    /// How long it has the processor before others may have it. Only while it boots.
    slice: Option<Duration>,
    /// How long others have kept it from running since [`Machine::watched`] began: its deadline is so much later.
    kept: Duration,
}

/// Where ring 3 was when an exception came (Intel SDM Vol. 3A, 6.14.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExceptionFrame {
    /// The instruction.
    pub rip: u64,
    /// The code segment, whose lowest two bits are the ring.
    pub cs: u64,
    /// The flags.
    pub rflags: u64,
    /// The stack pointer.
    pub rsp: u64,
}

/// A machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused something.
    #[error("KVM: {0}{hint}", hint = what_to_raise(Some(.0.errno())))]
    Kvm(#[from] kvm_ioctls::Error),
    /// No watchdog.
    #[error(transparent)]
    Watchdog(#[from] WatchdogError),
    /// The host's getrandom(2) gave no key.
    #[error("random numbers of the host: {0}")]
    Random(#[from] rustix::io::Errno),
}

impl Machine {
    /// A machine over `memory`. With `ring_entries` its writes are recorded.
    pub fn new(
        host: &'static KvmHost,
        memory: GuestMemory,
        linux: Linux,
        ring_entries: Option<u32>,
    ) -> Result<Self, MachineError> {
        let vm = Vm::new(
            &host.kvm,
            memory.mapping().clone(),
            memory.logged_from(),
            ring_entries,
        )?;
        let mut vcpu = vm.vcpu(&host.cpuid)?;
        host.prepare(&vcpu)?;
        if memory.space().is_some() {
            vcpu.sync_sregs();
        }
        let watch = Watch::new(vcpu.run_page()?)?;
        Ok(Self {
            watch,
            vcpu,
            vm,
            memory,
            linux,
            random: Random::new()?,
            fork_number: 0,
            host,
            residue: Residue::Clean,
            poisoned: false,
            stepping: false,
            vector_of: FIRST_TID,
            slice: None,
            kept: Duration::ZERO,
        })
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut Vcpu {
        &mut self.vcpu
    }

    /// Does `work`, in which the guest runs. [`Machine::run`] ends with a timeout at `deadline`, pages dirtied count for
    /// the limit, and afterwards they are known. If `work` panics they are not, and the machine stays poisoned.
    pub fn watched<T>(&mut self, deadline: Instant, work: impl FnOnce(&mut Self) -> T) -> T {
        /// Takes the watchdog's eyes off, also in a panic: this thread has other things to do.
        struct Watched<'a>(&'a mut Machine);
        impl Drop for Watched<'_> {
            fn drop(&mut self) {
                self.0.watch.disarm();
            }
        }
        self.poisoned = true;
        self.memory.start_request();
        self.kept = Duration::ZERO;
        self.watch.arm(self.turn_end(deadline));
        let watched = Watched(self);
        let result = work(&mut *watched.0);
        drop(watched);
        self.harvest();
        self.poisoned = false;
        result
    }

    /// Says that something begins, or has ended, that leaves the machine unusable if it does not come to its end.
    pub fn set_poisoned(&mut self, poisoned: bool) {
        self.poisoned = poisoned;
    }

    /// Sets another deadline, for the same request.
    pub fn rearm(&mut self, deadline: Instant) {
        self.watch.disarm();
        self.watch.arm(deadline);
    }

    /// Shares the processor with others from now on, by slices of this length ([`Host::give_way`]).
    pub fn set_slice(&mut self, slice: Option<Duration>) {
        self.slice = slice;
    }

    /// How much later than told the deadline of [`Machine::watched`] was, since others had the processor meanwhile.
    pub fn kept(&self) -> Duration {
        self.kept
    }

    /// Whether [`Machine::run`] is to end with each system call it has served.
    pub fn set_stepping(&mut self, stepping: bool) {
        self.stepping = stepping;
    }

    /// Runs the guest, serving its system calls, until something else happens. `deadline` is that of
    /// [`Machine::watched`].
    pub fn run(&mut self, deadline: Instant, host: &mut dyn Host) -> Event {
        loop {
            // What the host writes is not in the ring, which a program that only makes calls never fills.
            if self.over_memory_limit() {
                return Event::Ended(Cause::MemoryLimit);
            }
            if let Err(cause) = self.apply_removals() {
                return Event::Ended(cause);
            }
            let exit = self.vcpu.run();
            self.residue = match exit {
                Exit::Out(_) | Exit::Interrupted | Exit::RingFull => Residue::Clean,
                Exit::OtherIo { .. } => Residue::PendingIo,
                Exit::Dead(_) => Residue::Unknown,
            };
            let ended = match exit {
                Exit::Out(PORT_HYPERCALL) => return Event::Hypercall(self.vcpu.regs().rax as u32),
                Exit::Out(PORT_SYSCALL) => {
                    let ended = self.system_call(deadline, host);
                    if ended.is_none() && self.stepping {
                        return Event::SystemCall;
                    }
                    ended
                }
                Exit::Out(PORT_PAGE_FAULT) if self.memory.space().is_some() => {
                    match self.page_fault() {
                        Ok(()) => None,
                        Err(FaultError::NoMemory) => Some(Cause::MemoryLimit),
                        Err(_) => return self.exception(PAGE_FAULT),
                    }
                }
                Exit::Out(port @ PORT_EXCEPTION..=0x9f) => {
                    return self.exception((port - PORT_EXCEPTION) as u8);
                }
                Exit::Out(PORT_SYSCALL_32) => {
                    Some(Cause::Machine("a system call from 32-bit code".into()))
                }
                Exit::Out(port) | Exit::OtherIo { port } => Some(Cause::BadPort(port)),
                Exit::Interrupted if self.memory.space().is_some() => {
                    self.interrupted(deadline, host)
                }
                Exit::Interrupted => self.turn_over(deadline, host),
                Exit::RingFull => self.ring_full(),
                Exit::Dead(death) => Some(Cause::Machine(match death {
                    Death::TripleFault => death.to_string(),
                    _ => format!("{death}, at {:#x}", self.vcpu.regs().rip),
                })),
            };
            if let Some(cause) = ended {
                return Event::Ended(cause);
            }
        }
    }

    /// The watchdog, or some other signal, has interrupted the program. Before the deadline that is its slice's end.
    fn turn_over(&mut self, deadline: Instant, host: &mut dyn Host) -> Option<Cause> {
        if Instant::now() >= deadline + self.kept {
            return Some(Cause::Timeout);
        }
        if self.slice.is_none() {
            return (!self.watch.go_on()).then_some(Cause::Timeout);
        }
        self.watch.disarm();
        self.give_way(Duration::ZERO, host);
        self.watch.arm(self.turn_end(deadline));
        None
    }

    /// When it is to be interrupted, with this deadline for all of what it does.
    fn turn_end(&self, deadline: Instant) -> Instant {
        let deadline = deadline + self.kept;
        let slice_end = self.slice.map(|slice| Instant::now() + slice);
        slice_end.map_or(deadline, |end| end.min(deadline))
    }

    /// Sleeps, but not past the deadline. False if the deadline came first.
    fn sleep(&mut self, time: Duration, deadline: Instant, host: &mut dyn Host) -> bool {
        let deadline = deadline + self.kept;
        let left = deadline.saturating_duration_since(Instant::now());
        self.give_way(time.min(left), host);
        time <= left
    }

    fn give_way(&mut self, time: Duration, host: &mut dyn Host) {
        let start = Instant::now();
        host.give_way(time);
        if self.slice.is_some() {
            self.kept += start.elapsed().saturating_sub(time);
        }
    }

    /// Serves a system call. `Some` if it ends the run.
    fn system_call(&mut self, deadline: Instant, host: &mut dyn Host) -> Option<Cause> {
        let regs = self.vcpu.regs();
        let call = Call {
            number: regs.rax,
            args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9],
        };
        let outcome = self
            .linux
            .call(call, &mut self.memory, host, &mut self.random);
        if self.memory.take_lost_permission()
            && let Err(error) = self.vm.forget_translations()
        {
            return Some(Cause::Machine(format!("memslot: {error}")));
        }
        if self.memory.space().is_some() {
            return self.task_outcome(call, outcome, deadline, host);
        }
        let result = match outcome {
            Outcome::Return(value) => value,
            Outcome::Block(wait) => match wait.time {
                Some(time) if self.sleep(time, deadline, host) => wait.result,
                Some(_) => return Some(Cause::Timeout),
                // It is the machine's only task: nobody can end the wait.
                None => return Some(Cause::Deadlock(wait.on.why_never())),
            },
            Outcome::SetFsBase(base) => return self.set_bases(Some(base), None),
            Outcome::SetGsBase(base) => return self.set_bases(None, Some(base)),
            Outcome::GetFsBase(address) => return self.get_base(address, |sregs| sregs.fs.base),
            Outcome::GetGsBase(address) => return self.get_base(address, |sregs| sregs.gs.base),
            Outcome::Exit(status) | Outcome::ExitThread(status) => {
                return Some(Cause::Exit(status));
            }
            Outcome::Killed(signal) => return Some(Cause::Killed(signal)),
            // Only of programs with an address space.
            Outcome::Yield | Outcome::Clone(_) | Outcome::Exec(_) => -i64::from(libc::ENOSYS),
        };
        self.return_from_call(result)
    }

    /// Resumes the program after a system call with this in RAX.
    fn return_from_call(&mut self, result: i64) -> Option<Cause> {
        if self.memory.space().is_some_and(Space::has_removals) {
            // A stub runs first, which returns to ring 3 itself.
            let regs = kvm_regs {
                rax: result as u64,
                ..self.after_call()
            };
            self.resume_user(regs);
            return None;
        }
        let mut regs = self.vcpu.regs();
        regs.rax = result as u64;
        if self.host.entry == SyscallEntry::Ring0 {
            // `sysretq` loads RFLAGS from R11, which the program may not have chosen freely: it was RFLAGS at
            // `syscall`, and stays harmless whatever it holds.
            regs.r11 = regs.r11 & RFLAGS_USER | RFLAGS;
        }
        self.vcpu.set_regs(regs);
        None
    }

    fn set_bases(&mut self, fs: Option<u64>, gs: Option<u64>) -> Option<Cause> {
        if self.memory.space().is_some() {
            let mut sregs = self.vcpu.synced_sregs();
            sregs.fs.base = fs.unwrap_or(sregs.fs.base);
            sregs.gs.base = gs.unwrap_or(sregs.gs.base);
            self.vcpu.set_sregs_at_next_run(sregs);
            return self.return_from_call(0);
        }
        let set = || {
            let mut sregs = self.vcpu.sregs()?;
            sregs.fs.base = fs.unwrap_or(sregs.fs.base);
            sregs.gs.base = gs.unwrap_or(sregs.gs.base);
            self.vcpu.set_sregs(&sregs)
        };
        match set() {
            Ok(()) => self.return_from_call(0),
            Err(error) => Some(Cause::Machine(format!("segment base: {error}"))),
        }
    }

    fn get_base(&mut self, address: u64, base: impl Fn(&kvm_sregs) -> u64) -> Option<Cause> {
        match self.vcpu.sregs() {
            Ok(sregs) => {
                let written = self.memory.write(address, &base(&sregs).to_le_bytes());
                self.return_from_call(if written.is_ok() {
                    0
                } else {
                    -i64::from(libc::EFAULT)
                })
            }
            Err(error) => Some(Cause::Machine(format!("segment base: {error}"))),
        }
    }

    /// The registers a program's ring-3 code has now, with the bases it gave itself, ready to be set in another
    /// machine or at another place.
    pub fn user_sregs(&self) -> Result<kvm_sregs, kvm_ioctls::Error> {
        let now = self.vcpu.sregs()?;
        Ok(user_sregs(&now, self.host.choice, now.fs.base, now.gs.base))
    }

    /// Reads a number that an exception pushed: SS first, then RSP, RFLAGS, CS, RIP and for some vectors an error code
    /// (Intel SDM Vol. 3A, 6.14.2).
    fn pushed(&self, nth: u64) -> Option<u64> {
        let address = KERNEL_STACK_TOP - 8 * (nth + 1);
        self.memory.mapping().read_u64(address).ok()
    }

    /// Where ring 3 was when the last exception came.
    pub fn exception_frame(&self) -> Option<ExceptionFrame> {
        Some(ExceptionFrame {
            rsp: self.pushed(1)?,
            rflags: self.pushed(2)?,
            cs: self.pushed(3)?,
            rip: self.pushed(4)?,
        })
    }

    /// Reads an exception from the ring-0 stack.
    fn exception(&mut self, vector: u8) -> Event {
        let Some(ExceptionFrame { rip, rsp, .. }) = self.exception_frame() else {
            return Event::Ended(Cause::Machine("no exception frame".into()));
        };
        let error_code = if Exception::has_error_code(vector) {
            self.pushed(5)
        } else {
            None
        };
        match self.vcpu.sregs() {
            Ok(sregs) => Event::Exception(Exception {
                vector,
                error_code,
                rip,
                rsp,
                cr2: sregs.cr2,
            }),
            Err(error) => Event::Ended(Cause::Machine(format!("KVM_GET_SREGS: {error}"))),
        }
    }

    /// Takes the ring's new entries over into the list of dirtied pages.
    ///
    /// KVM looks whether the ring is nearly full only now and then, and goes on writing over old entries if it has come
    /// too late: `kvm_pvm` does when it has to emulate the program, as after a load of a non-canonical RSP. So a full
    /// ring means that entries may be lost, and the machine is not to be used again.
    fn harvest(&mut self) {
        let first = self.memory.logged_from() / PAGE;
        let (Some(ring), Some(dirty)) = (self.vcpu.ring(), self.memory.dirty()) else {
            return;
        };
        // Only the logged slot is recorded.
        ring.harvest(|_slot, offset| dirty.add((offset + first) as u32));
        if ring.used() == ring.len() {
            self.residue = Residue::Unknown;
        }
    }

    /// Harvests the ring and has KVM take its entries back.
    fn recycle_ring(&mut self) -> std::io::Result<()> {
        const ATTEMPTS: usize = 100;
        self.harvest();
        let Some(ring) = self.vcpu.ring() else {
            return Ok(());
        };
        ring.mark_reset();
        // Since Linux 6.16 the ioctl stops at a pending signal, such as a kick, and calls that success. The signal is
        // taken on its way out, so the next one gets further.
        for _ in 0..ATTEMPTS {
            self.vm.reset_dirty_rings()?;
            if ring.is_reset() {
                return Ok(());
            }
        }
        self.residue = Residue::Unknown;
        Err(std::io::Error::other("KVM does not take its entries back"))
    }

    fn ring_full(&mut self) -> Option<Cause> {
        if let Err(error) = self.recycle_ring() {
            return Some(Cause::Machine(format!("dirty ring: {error}")));
        }
        if self.residue == Residue::Unknown {
            return Some(Cause::Machine("KVM lost track of what it wrote".into()));
        }
        self.over_memory_limit().then_some(Cause::MemoryLimit)
    }

    /// True if the request has dirtied more pages than it may. Counts what has been harvested.
    pub fn over_memory_limit(&self) -> bool {
        self.memory.request_pages() > self.memory.page_limit()
    }

    /// What `get_meminfo` gives: guest memory, the request limit, the most and the present pages of requests, in bytes.
    pub fn memory_info(&self) -> [u64; 4] {
        let bytes = |pages: usize| (pages as u64).saturating_mul(PAGE);
        [
            self.memory.mapping().len(),
            bytes(self.memory.page_limit()),
            bytes(self.memory.dirty_len()),
            bytes(self.memory.request_pages()),
        ]
    }

    /// Finishes what the last exit left pending. False if the machine can't be used any more.
    pub fn settle(&mut self) -> bool {
        match self.residue {
            _ if self.poisoned => false,
            Residue::Clean => true,
            Residue::PendingIo => {
                // What can't be finished stays so: whoever asks again gets the same answer.
                self.residue = if self.vcpu.drain() {
                    Residue::Clean
                } else {
                    Residue::Unknown
                };
                // The rest of an `ins` has written to memory just now.
                self.harvest();
                self.residue == Residue::Clean
            }
            Residue::Unknown => false,
        }
    }

    /// Leaves undone what the last exit left pending.
    #[cfg(test)]
    pub fn forget_residue(&mut self) {
        self.residue = Residue::Clean;
    }

    /// Between requests: keeps room in the ring.
    pub fn keep_ring_low(&mut self) -> std::io::Result<()> {
        match self.vcpu.ring() {
            Some(ring) if ring.used() > ring.len() / 2 => self.recycle_ring(),
            _ => Ok(()),
        }
    }

    /// Forgets all dirtied pages: gives them back to the host and has KVM log them again when next written.
    pub fn shrink(&mut self) -> std::io::Result<()> {
        self.recycle_ring()?;
        self.memory.shrink()
    }
}
