//! The master: a program loaded, run through its `main()`, and frozen. Its memory is a sealed memfd that nobody can
//! write any more; every fork maps it copy-on-write.

mod boot;
pub mod handover;
pub mod numbers;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::arch::layout::{Layout, MMAP_WINDOW, STACK_TOP, XSAVE_LEN};
use crate::call::handlers::Handlers;
use crate::call::{WaitPoint, Waiting};
use crate::config::Config;
use crate::failure::{BootError, Cause, what_to_raise};
use crate::image::elf::Image;
use crate::image::symbols::Symbols;
use crate::image::{loader, start, toolchain};
use crate::linux::{HeapLayout, Linux, Setup};
use crate::machine::probe::{self, KvmHost};
use crate::master::boot::{Booting, End, Patch};
use crate::master::handover::Predecessor;
use crate::master::numbers::Numbers;
use crate::memory::mapping::Mapping;
use crate::memory::unused;
use crate::request::Host;

/// A frozen program.
#[derive(Debug)]
pub struct Master {
    pub config: Config,
    pub host: &'static KvmHost,
    pub file: Arc<File>,
    pub memory: Mapping,
    /// What there is no memory for in the file.
    pub unused: Vec<Range<u64>>,
    pub wait_point: WaitPoint,
    pub linux: Linux,
    pub symbols: Symbols,
    /// Bytes of state that came from the program before.
    pub restored: Option<u64>,
    /// The auxiliary vector as a debugger wants it.
    pub auxiliary: Vec<u8>,
    /// Which of its forks have which number.
    pub numbers: Arc<Numbers>,
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
        let tenant = config.name.clone();
        config.check().map_err(|bad| BootError::Setting {
            tenant: tenant.clone(),
            what: bad.to_string(),
        })?;
        let deadline = Instant::now() + config.limits.max_boot_time;
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

        let memfd = memfd(&layout).map_err(|error| {
            let hint = what_to_raise(error.raw_os_error());
            errors.host(format!("its memory: {error}{hint}"))
        })?;
        let mapping =
            Mapping::shared(&memfd, layout.memory_len()).map_err(|error| errors.host(error))?;
        crate::arch::monitor::install(&mapping, host.entry).map_err(|error| errors.host(error))?;
        loader::load(&mapping, &layout, &image, file).map_err(|error| errors.host(error))?;
        let rsp = put_stack(&mapping, &layout, &image, &config, host)
            .map_err(|error| errors.host(error))?
            .ok_or_else(|| BootError::Setting {
                tenant: tenant.clone(),
                what: "main_arguments and environment are longer than half the stack".into(),
            })?;
        // `main()` runs into an int3 at its first instruction, where its return address is replaced by ours.
        let main = start::find_main(&image, file)
            .map(|main| Patch::apply(&mapping, main))
            .transpose()
            .map_err(|bad| errors.host(bad))?;

        let linux = Linux::new(setup(&config, &layout));
        if let Some((path, error)) = linux.unusable_paths().next() {
            let what = format!("allowed_paths: {}: {error}", path.display());
            return Err(BootError::Setting { tenant, what });
        }
        let mut booting = Booting::new(host, mapping, linux, (image.entry, rsp), main, deadline)
            .map_err(|error| errors.host(error))?;
        booting.machine.set_slice(output.slice());
        let end = booting.run_main(output);
        let describe = |cause: Cause| {
            let time = format!("{:?} (max_boot_time)", config.limits.max_boot_time);
            cause.describe(&image.symbols, &layout.stack_window(), &time, "max_memory")
        };
        let end = end.map_err(|cause| {
            let advice = advice(&cause, file);
            errors.main(describe(cause) + advice)
        })?;

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
        let waiting = match end {
            End::Waits(waiting) => waiting,
            End::Returned if booting.handlers.any() => Waiting::Handlers,
            End::Returned => {
                return Err(BootError::NoHandler {
                    tenant,
                    stripped: image.symbols.is_empty(),
                    mangled: image.symbols.find_mangled("my_backend"),
                });
            }
        };
        let wait_point = booting
            .wait_point(waiting, &layout, host.report)
            .map_err(|cause| match cause {
                Cause::Machine(what) => errors.host(what),
                cause => errors.main(describe(cause)),
            })?;
        let restored = match predecessor {
            Some(predecessor) => booting
                .restore(&wait_point, predecessor, describe, output)
                .map_err(|what| BootError::State {
                    tenant: tenant.clone(),
                    what,
                })?,
            None => None,
        };
        if let Some(warm_up) = &config.warm_up {
            booting
                .warm_up(&wait_point, warm_up, config.limits.max_request_time, output)
                .map_err(|cause| {
                    errors.main(format!("its warm-up request failed: {}", describe(cause)))
                })?;
        }
        let deadline = booting.deadline;
        let linux = booting.finish().map_err(|error| errors.host(error))?;
        let (memory, unused) = freeze(&memfd, &layout, deadline)
            .map_err(|error| errors.host(format!("freezing its memory: {error}")))?;
        Ok(Self {
            auxiliary: crate::image::stack::debugger_auxiliary(image.placed()),
            config,
            host,
            file: memfd,
            memory,
            unused,
            wait_point,
            linux,
            symbols: image.symbols,
            restored,
            numbers: Arc::default(),
        })
    }
}

/// What to do about a `main()` that ended so, where its language makes the cause hard to see.
fn advice(cause: &Cause, file: &[u8]) -> &'static str {
    if toolchain::is_go(file) {
        return "; it is a Go program, which needs threads, and there are none yet";
    }
    match cause {
        Cause::Exit(0) => {
            "; the end of main() must be a call of wait_for_requests() where it can't be caught: Zig's start-up code, and \
             that of Rust without its standard library, exit in the place of returning"
        }
        _ => "",
    }
}

fn memfd(layout: &Layout) -> std::io::Result<Arc<File>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("forkvm-master", flags)?);
    file.set_len(layout.memory_len())?;
    Ok(Arc::new(file))
}

/// Gives back what the program left zero, makes the rest unwritable for good, and maps it for reading.
fn freeze(
    memfd: &Arc<File>,
    layout: &Layout,
    deadline: Instant,
) -> std::io::Result<(Mapping, Vec<Range<u64>>)> {
    let len = layout.memory_len();
    let map = |unused: &[_]| Mapping::frozen(memfd, len, unused).map_err(std::io::Error::other);
    // Page tables stay, since the processor may write to them; before them is nothing that programs use.
    let unused = unused::give_back(memfd, &map(&[])?, layout.tables.end..len)?;
    seal(memfd, deadline)?;
    Ok((map(&unused)?, unused))
}

/// Makes the memfd unwritable for good.
///
/// The kernel refuses while somebody holds one of its pages for writing (F_ADD_SEALS in fcntl(2)), which its own reclaim
/// and migration of pages may do for a moment: that is waited out.
fn seal(memfd: &File, deadline: Instant) -> std::io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    loop {
        match rustix::fs::fcntl_add_seals(memfd, seals) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
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
        random_addresses: false,
        current_working_directory: config.current_working_directory.clone(),
    }
}

fn executable(config: &Config) -> String {
    format!("/{}", config.name)
}

/// Writes what is on the stack at the start, and gives RSP; `None` if that is too long.
fn put_stack(
    memory: &Mapping,
    layout: &Layout,
    image: &Image,
    config: &Config,
    host: &KvmHost,
) -> std::io::Result<Option<u64>> {
    let mut arguments = vec![config.name.clone()];
    arguments.extend(config.main_arguments.iter().cloned());
    let mut environment = vec![
        format!("KVM_NAME={}", config.name),
        format!("KVM_GROUP={}", config.group),
        "KVM_TYPE=request".into(),
        "KVM_STATE=".into(),
        format!("KVM_DEBUG={}", u8::from(config.debugging.only)),
        "LC_ALL=C".into(),
        "LC_TYPE=C".into(),
        "USER=root".into(),
    ];
    environment.extend(config.environment.iter().cloned());
    let mut random = [0u8; 16];
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())?;
    let executable = executable(config);
    let stack = crate::image::stack::InitialStack {
        arguments: &arguments,
        environment: &environment,
        executable: executable.as_bytes(),
        placed: image.placed(),
        random,
        fsgsbase: host.report.fsgsbase,
        xsave_len: XSAVE_LEN,
    };
    let bytes = stack.build(STACK_TOP);
    if bytes.len() as u64 > (layout.stack.end - layout.stack.start) / 2 {
        return Ok(None);
    }
    memory
        .write(layout.stack.end - bytes.len() as u64, &bytes)
        .map_err(std::io::Error::other)?;
    Ok(Some(STACK_TOP - bytes.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> (Arc<File>, Mapping) {
        let file =
            rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let file = Arc::new(File::from(file.unwrap()));
        file.set_len(8192).unwrap();
        let mapping = Mapping::shared(&file, 8192).unwrap();
        (file, mapping)
    }

    #[test]
    fn whoever_holds_the_memory_for_a_moment_is_waited_for() {
        let (file, mapping) = memory();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(mapping);
        });
        seal(&file, Instant::now() + Duration::from_secs(60)).unwrap();
        holder.join().unwrap();
    }

    #[test]
    fn who_holds_it_on_is_not() {
        let (file, _mapping) = memory();
        let error = seal(&file, Instant::now()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    }
}
