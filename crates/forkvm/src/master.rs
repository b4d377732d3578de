//! The master: a program loaded, run through its `main()`, and frozen. Its memory is a sealed memfd that nobody can
//! write any more; every fork maps it copy-on-write.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_VCPUEVENT_VALID_SHADOW, kvm_regs, kvm_sregs};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::arch::layout::{
    FROZEN_BASES, Layout, MMAP_WINDOW, REQUEST_AREA, REQUEST_AREA_LEN, STACK_TOP, XSAVE_IMAGE,
    XSAVE_LEN, monitor,
};
use crate::arch::regs::{RFLAGS, user_sregs};
use crate::arch::stubs::{self, MAIN_RETURNED, STATE_SAVED};
use crate::call::{Circumstances, WaitPoint, Waiting};
use crate::config::{Config, WarmUp};
use crate::elf::{Image, Symbols};
use crate::failure::{BREAKPOINT, BootError, Cause};
use crate::handlers::Handlers;
use crate::handover::Predecessor;
use crate::http::Exchange;
use crate::hypercall::{self, REGISTER_FUNC, WAIT_FOR_REQUESTS, WAIT_FOR_REQUESTS_PAUSED};
use crate::linux::{BadAddress, HeapLayout, Linux, Setup, UserMemory};
use crate::machine::{Event, Machine};
use crate::memory::{GuestMemory, Mapping};
use crate::probe::{self, KvmHost, KvmReport};
use crate::request::Host;
use crate::{loader, start};

/// The opcode of `int3`.
const INT3: u8 = 0xcc;

/// A frozen program.
#[derive(Debug)]
pub struct Master {
    pub config: Config,
    pub host: &'static KvmHost,
    pub file: Arc<File>,
    pub memory: Mapping,
    pub wait_point: WaitPoint,
    pub linux: Linux,
    pub symbols: Symbols,
    /// Bytes of state that came from the program before.
    pub restored: Option<u64>,
    /// The auxiliary vector as a debugger wants it.
    pub auxiliary: Vec<u8>,
}

/// Builds the errors of one tenant's boot.
struct Errors<'a> {
    tenant: &'a str,
}

impl Errors<'_> {
    fn host(&self, error: impl std::fmt::Display) -> BootError {
        BootError::Host {
            tenant: self.tenant.into(),
            what: error.to_string(),
        }
    }

    fn main(&self, what: impl Into<String>) -> BootError {
        BootError::Main {
            tenant: self.tenant.into(),
            what: what.into(),
        }
    }
}

impl Master {
    /// Loads an ELF file, runs its `main()`, has it take over its predecessor's state, and freezes it.
    pub fn boot(
        file: &[u8],
        config: Config,
        predecessor: Option<Predecessor<'_>>,
        output: &mut dyn Host,
    ) -> Result<Self, BootError> {
        let deadline = Instant::now() + config.limits.max_boot_time;
        let tenant = config.name.clone();
        let errors = Errors { tenant: &tenant };
        let host = probe::host().map_err(|source| BootError::Kvm {
            tenant: tenant.clone(),
            source,
        })?;
        let image =
            Image::parse(file, config.limits.max_memory).map_err(|source| BootError::Elf {
                tenant: tenant.clone(),
                source,
            })?;
        let layout =
            loader::plan(&image, config.limits.max_memory).map_err(|small| BootError::Setting {
                tenant: tenant.clone(),
                what: small.to_string(),
            })?;

        let memfd = memfd(&layout).map_err(|error| errors.host(error))?;
        let mapping =
            Mapping::shared(&memfd, layout.memory_len()).map_err(|error| errors.host(error))?;
        crate::arch::monitor::install(&mapping, host.entry).map_err(|error| errors.host(error))?;
        loader::load(&mapping, &layout, &image, file).map_err(|error| errors.host(error))?;
        let rsp = put_stack(&mapping, &layout, &image, &config, host)
            .map_err(|error| errors.host(error))?;
        // `main()` runs into an int3 at its first instruction, where its return address is replaced by ours.
        let main = start::find_main(&image, file);
        let main_byte = main
            .map(|main| Patch::apply(&mapping, main))
            .transpose()
            .map_err(|bad| errors.host(bad))?;

        let linux = Linux::new(setup(&config, &layout));
        if let Some((path, error)) = linux.unusable_paths().next() {
            let what = format!("allowed_paths: {}: {error}", path.display());
            return Err(BootError::Setting { tenant, what });
        }
        let mut machine =
            Machine::new(host, GuestMemory::booting(mapping), linux, None, usize::MAX)
                .map_err(|error| errors.host(error))?;
        let template = machine.vcpu().sregs().map_err(|error| errors.host(error))?;
        let sregs = user_sregs(&template, host.choice, 0, 0);
        machine
            .vcpu()
            .set_sregs(&sregs)
            .map_err(|error| errors.host(error))?;
        machine.vcpu().set_regs(kvm_regs {
            rip: image.entry,
            rsp,
            rflags: RFLAGS,
            ..Default::default()
        });

        let mut booting = Booting {
            machine,
            handlers: Handlers::default(),
            main: main_byte,
            deadline,
        };
        booting.machine.start(deadline);
        let waiting = booting.run_main(output).and_then(|waiting| {
            // The watchdog looks now and then; a main() that ended between two looks may be late all the same.
            let late = Instant::now() >= deadline;
            if late {
                Err(Cause::Timeout)
            } else {
                Ok(waiting)
            }
        });
        booting.machine.stop();
        let describe = |cause: Cause| {
            let time = format!("{:?} (max_boot_time)", config.limits.max_boot_time);
            cause.describe(&image.symbols, &layout.stack_window(), &time, "max_memory")
        };
        let waiting = waiting.map_err(|cause| errors.main(describe(cause)))?;

        let symbol = |name| {
            image
                .symbols
                .find(name)
                .filter(|&function| image.is_code(function))
        };
        booting
            .handlers
            .set_default(Handlers::GET, symbol("my_backend"));
        booting.handlers.post_symbol = symbol("my_post_backend");
        if waiting == Waiting::Handlers && !booting.handlers.any() {
            return Err(BootError::NoHandler {
                tenant,
                stripped: image.symbols.is_empty(),
            });
        }
        let wait_point = booting
            .wait_point(waiting, &layout, host.report)
            .map_err(|error| errors.host(error))?;
        let restored = match predecessor {
            Some(predecessor) if booting.handlers.get(Handlers::ON_LIVE_RESTORE).is_some() => {
                let deadline = booting.deadline;
                predecessor(deadline, output)
                    .and_then(|state| {
                        let Some(state) = state else { return Ok(None) };
                        booting
                            .take_state(&wait_point, &state, output)
                            .map_err(describe)?;
                        Ok(Some(state.len() as u64))
                    })
                    .map_err(|what| BootError::State {
                        tenant: tenant.clone(),
                        what,
                    })?
            }
            _ => None,
        };
        if let Some(warm_up) = &config.warm_up {
            booting
                .warm_up(&wait_point, warm_up, config.limits.max_request_time, output)
                .map_err(|cause| {
                    errors.main(format!("its warm-up request failed: {}", describe(cause)))
                })?;
        }
        let linux = booting.finish().map_err(|error| errors.host(error))?;
        let memory = seal(&memfd, layout.memory_len()).map_err(|error| errors.host(error))?;
        Ok(Self {
            auxiliary: crate::stack::debugger_auxiliary(&image),
            config,
            host,
            file: memfd,
            memory,
            wait_point,
            linux,
            symbols: image.symbols,
            restored,
        })
    }
}

fn memfd(layout: &Layout) -> std::io::Result<Arc<File>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("forkvm-master", flags)?);
    file.set_len(layout.memory_len())?;
    Ok(Arc::new(file))
}

/// Makes the memfd unwritable for good and maps it for reading.
fn seal(memfd: &Arc<File>, len: u64) -> std::io::Result<Mapping> {
    rustix::fs::fcntl_add_seals(
        memfd,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Mapping::frozen(memfd, len).map_err(std::io::Error::other)
}

fn setup(config: &Config, layout: &Layout) -> Setup {
    Setup {
        heap: HeapLayout {
            brk_window: layout.brk_window,
            mmap_window: MMAP_WINDOW,
            len: layout.heap.end - layout.heap.start,
        },
        stack: layout.stack_window(),
        executable: executable(config),
        allowed_paths: config.allowed_paths.clone(),
        current_working_directory: config.current_working_directory.clone(),
    }
}

fn executable(config: &Config) -> String {
    format!("/{}", config.name)
}

fn put_stack(
    memory: &Mapping,
    layout: &Layout,
    image: &Image,
    config: &Config,
    host: &KvmHost,
) -> std::io::Result<u64> {
    let mut arguments = vec![config.name.clone()];
    arguments.extend(config.main_arguments.iter().cloned());
    let mut environment = vec![
        format!("KVM_NAME={}", config.name),
        format!("KVM_GROUP={}", config.group),
        "KVM_TYPE=request".into(),
        "KVM_STATE=".into(),
        format!("KVM_DEBUG={}", u8::from(config.debugging.only)),
        "LC_ALL=C".into(),
        "USER=root".into(),
    ];
    environment.extend(config.environment.iter().cloned());
    let mut random = [0u8; 16];
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())?;
    let stack = crate::stack::InitialStack {
        arguments: &arguments,
        environment: &environment,
        executable: &executable(config),
        image,
        random,
        fsgsbase: host.report.fsgsbase,
        xsave_len: XSAVE_LEN,
    };
    let bytes = stack.build(STACK_TOP);
    if bytes.len() as u64 > (layout.stack.end - layout.stack.start) / 2 {
        return Err(std::io::Error::other(
            "main_arguments and environment are longer than half the stack",
        ));
    }
    memory
        .write(layout.stack.end - bytes.len() as u64, &bytes)
        .map_err(std::io::Error::other)?;
    Ok(STACK_TOP - bytes.len() as u64)
}

/// The byte that an `int3` stands in for.
#[derive(Debug, Clone, Copy)]
struct Patch {
    address: u64,
    physical: u64,
    original: u8,
}

impl Patch {
    fn apply(memory: &Mapping, address: u64) -> Result<Self, BadAddress> {
        use crate::arch::paging::{Access, translate};
        let physical = translate(memory, address, Access::Any).ok_or(BadAddress(address))?;
        let mut original = [0];
        memory
            .read(physical, &mut original)
            .map_err(|_| BadAddress(address))?;
        memory
            .write(physical, &[INT3])
            .map_err(|_| BadAddress(address))?;
        Ok(Self {
            address,
            physical,
            original: original[0],
        })
    }
}

/// A machine on its way through `main()`.
struct Booting {
    machine: Machine,
    handlers: Handlers,
    main: Option<Patch>,
    deadline: Instant,
}

impl Booting {
    /// Runs until the program waits for requests.
    fn run_main(&mut self, output: &mut dyn Host) -> Result<Waiting, Cause> {
        loop {
            let number = match self.machine.run(self.deadline, output) {
                Event::Hypercall(number) => number,
                Event::Exception(exception)
                    if exception.vector == BREAKPOINT && self.at_main(exception.rip) =>
                {
                    self.enter_main(exception.rsp)?;
                    continue;
                }
                Event::Exception(exception) => return Err(Cause::Exception(exception)),
                Event::SystemCall => continue,
                Event::Ended(cause) => return Err(cause),
            };
            let regs = self.machine.vcpu().regs();
            let result = match number {
                WAIT_FOR_REQUESTS => return Ok(Waiting::Handlers),
                WAIT_FOR_REQUESTS_PAUSED => return Ok(Waiting::Paused(regs.rdi)),
                MAIN_RETURNED if regs.rdi as i32 == 0 => return Ok(Waiting::Handlers),
                MAIN_RETURNED => return Err(Cause::MainReturned(regs.rdi as i32)),
                REGISTER_FUNC => self.handlers.register(regs.rdi, regs.rsi),
                _ => hypercall::common(number, &mut self.machine, output),
            };
            self.machine.vcpu().set_result(result as u64);
        }
    }

    /// True if the breakpoint was the one at `main()`: RIP is just past the `int3`.
    fn at_main(&self, rip: u64) -> bool {
        self.main
            .is_some_and(|main| main.address.wrapping_add(1) == rip)
    }

    /// Puts main's first byte back and our stub in the place of its return address, and goes on there in ring 3.
    fn enter_main(&mut self, rsp: u64) -> Result<(), Cause> {
        let failed =
            |error: &dyn std::fmt::Display| Cause::Machine(format!("entering main(): {error}"));
        let Some(main) = self.main.take() else {
            return Ok(());
        };
        self.machine
            .memory
            .write_physical(main.physical, &[main.original])
            .map_err(|error| failed(&error))?;
        self.machine
            .memory
            .write(rsp, &stubs::addresses().main_returned.to_le_bytes())
            .map_err(|error| failed(&error))?;
        let sregs = self.machine.user_sregs().map_err(|error| failed(&error))?;
        let mut regs = self.machine.vcpu().regs();
        (regs.rip, regs.rsp, regs.rflags) = (main.address, rsp, RFLAGS);
        self.machine.vcpu().set_sregs_at_next_run(sregs);
        self.machine.vcpu().set_regs(regs);
        Ok(())
    }

    /// Takes the CPU's state, now that the program waits. The vector state is saved by the guest itself, since KVM
    /// does not give all of it everywhere.
    fn wait_point(
        &mut self,
        waiting: Waiting,
        layout: &Layout,
        report: KvmReport,
    ) -> Result<WaitPoint, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        // A page that still holds the int3 must not be frozen: main() was never entered.
        if let Some(main) = self.main.take() {
            self.machine
                .memory
                .write_physical(main.physical, &[main.original])
                .map_err(|error| text(&error))?;
        }
        // Only a finished `out` has RIP behind it on every KVM.
        if !self.machine.vcpu().drain() {
            return Err("the last hypercall can't be finished".into());
        }
        let regs = self.machine.vcpu().regs();
        let sregs = self.machine.user_sregs().map_err(|error| text(&error))?;
        self.save_vector_state(&sregs)?;
        let bases = [sregs.fs.base.to_le_bytes(), sregs.gs.base.to_le_bytes()].concat();
        self.machine
            .memory
            .write_physical(FROZEN_BASES, &bases)
            .map_err(|error| text(&error))?;
        let mut events = self.machine.vcpu().events().map_err(|error| text(&error))?;
        events.exception = Default::default();
        events.interrupt = Default::default();
        events.flags = KVM_VCPUEVENT_VALID_SHADOW;
        Ok(WaitPoint {
            regs,
            sregs,
            events,
            handlers: self.handlers,
            waiting,
            layout: layout.clone(),
            report,
        })
    }

    /// Runs `on_live_restore` with the state of the program before.
    fn take_state(
        &mut self,
        wait_point: &WaitPoint,
        state: &[u8],
        output: &mut dyn Host,
    ) -> Result<(), Cause> {
        let deadline = self.deadline;
        self.machine.vcpu().set_sregs_at_next_run(wait_point.sregs);
        self.machine
            .vcpu()
            .clear_events_at_next_run(wait_point.events);
        self.machine.start(deadline);
        let result = wait_point.take_state(&mut self.machine, state, deadline, output);
        self.machine.stop();
        result?;
        if self.machine.settle() {
            Ok(())
        } else {
            Err(Cause::Machine(
                "it can't go on after on_live_restore".into(),
            ))
        }
    }

    /// Runs the warm-up requests. What they leave in memory becomes part of the frozen state; the CPU goes back to
    /// where the program waits.
    fn warm_up(
        &mut self,
        wait_point: &WaitPoint,
        warm_up: &WarmUp,
        time: Duration,
        output: &mut dyn Host,
    ) -> Result<(), Cause> {
        let request = warm_up.request();
        let circumstances = Circumstances {
            warm_up: true,
            ..Default::default()
        };
        for _ in 0..warm_up.num_requests {
            let deadline = self.deadline.min(Instant::now() + time);
            let mut exchange = Exchange::new(&request);
            self.machine.vcpu().set_sregs_at_next_run(wait_point.sregs);
            self.machine
                .vcpu()
                .clear_events_at_next_run(wait_point.events);
            self.machine.start(deadline);
            let result = wait_point.call(
                &mut self.machine,
                &mut exchange,
                circumstances,
                deadline,
                output,
                None,
            );
            self.machine.stop();
            result?;
            if !self.machine.settle() {
                return Err(Cause::Machine(
                    "it can't go on after a warm-up request".into(),
                ));
            }
        }
        Ok(())
    }

    /// Ends the machine and hands out its personality. Memory is as the forks will see it.
    fn finish(mut self) -> Result<Linux, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        self.machine
            .linux
            .before_freeze(&mut self.machine.memory)
            .map_err(|error| text(&error))?;
        self.machine
            .memory
            .write_physical(REQUEST_AREA, &[0u8; REQUEST_AREA_LEN as usize])
            .map_err(|error| text(&error))?;
        Ok(self.machine.linux.clone())
    }

    fn save_vector_state(&mut self, sregs: &kvm_sregs) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        // CPUID.(EAX=0DH,ECX=0):EBX, the bytes XSAVE takes with the present XCR0.
        let len = u64::from(std::arch::x86_64::__cpuid_count(0xd, 0).ebx);
        if len > XSAVE_LEN {
            return Err(format!(
                "the processor's vector state takes {len} bytes, more than {XSAVE_LEN}"
            ));
        }
        let zeros = [0u8; REQUEST_AREA_LEN as usize];
        self.machine
            .memory
            .write_physical(REQUEST_AREA, &zeros)
            .map_err(|error| text(&error))?;
        let regs = kvm_regs {
            rip: stubs::addresses().save_state,
            r11: monitor(REQUEST_AREA),
            rflags: RFLAGS,
            ..Default::default()
        };
        self.machine.vcpu().set_sregs_at_next_run(*sregs);
        self.machine.vcpu().set_regs(regs);
        let deadline = Instant::now() + std::time::Duration::from_secs(1);
        self.machine.start(deadline);
        let event = self.machine.run(deadline, &mut crate::request::Quiet);
        self.machine.stop();
        if event != Event::Hypercall(STATE_SAVED) {
            return Err(format!("the vector state can't be saved: {event:?}"));
        }
        let mut image = vec![0; XSAVE_LEN as usize];
        let memory = &mut self.machine.memory;
        memory
            .mapping()
            .read(REQUEST_AREA, &mut image)
            .map_err(|error| text(&error))?;
        memory
            .write_physical(XSAVE_IMAGE, &image)
            .map_err(|error| text(&error))
    }
}
