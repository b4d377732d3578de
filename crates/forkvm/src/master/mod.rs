//! The master: a program loaded, run through its `main()`, and frozen. Its memory is a sealed memfd that nobody can
//! write any more; every fork maps it copy-on-write.

mod boot;
pub mod freeze;
pub mod handover;
pub mod numbers;
pub mod role;
pub mod warm_ups;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::arch::layout::{Layout, MMAP_WINDOW, STACK_TOP, XSAVE_LEN};
use crate::call::handlers::Handlers;
use crate::call::{WaitPoint, WayIn};
use crate::config::Config;
use crate::failure::{BootError, Cause, what_to_raise};
use crate::image::elf::Image;
use crate::image::symbols::Symbols;
use crate::image::{loader, start, toolchain};
use crate::linux::{HeapLayout, Linux, STATE_PATH, Setup, StateFile};
use crate::machine::probe::{self, KvmHost};
use crate::master::boot::{Booting, Patch};
use crate::master::handover::Predecessor;
use crate::master::numbers::Numbers;
use crate::master::role::Role;
use crate::master::warm_ups::WarmUps;
use crate::memory::learned::Learned;
use crate::memory::mapping::Mapping;
use crate::memory::shared_area::SharedArea;
use crate::regexes::Regexes;
use crate::request::Host;
use crate::storage::owner::StorageKind;

/// A frozen program.
#[derive(Debug)]
pub struct Master {
    pub config: Config,
    pub host: &'static KvmHost,
    pub file: Arc<File>,
    pub memory: Mapping,
    /// What there is no memory for in the file.
    pub unused: Vec<Range<u64>>,
    /// What its forks share with each other and with storage.
    pub shared: Option<Arc<SharedArea>>,
    /// Whether its forks go on with what requests have left.
    pub keeps_state: bool,
    pub wait_point: WaitPoint,
    pub linux: Linux,
    /// The regular expressions that `main()` has compiled.
    pub regexes: Regexes,
    pub symbols: Symbols,
    /// Bytes of state that came from the program before.
    pub restored: Option<u64>,
    /// The auxiliary vector as a debugger wants it.
    pub auxiliary: Vec<u8>,
    /// How its forks' warm-up requests went.
    pub warm_ups: WarmUps,
    /// What its forks' requests write.
    pub learned: Learned,
    /// Which of its forks have which number.
    pub numbers: Arc<Numbers>,
}

impl Master {
    /// One phrase on how a request's run ended.
    pub fn describe(&self, cause: &Cause) -> String {
        let limits = &self.config.limits;
        let time = format!("{:?} (max_request_time)", limits.max_request_time);
        let memory = format!("{} bytes (max_request_memory)", limits.max_request_memory);
        let stack = self.wait_point.layout.stack_window();
        cause.describe(&self.symbols, &stack, &time, &memory)
    }

    /// Loads an ELF file, runs its `main()`, has it take over its predecessor's state, and freezes it.
    pub fn boot(
        file: &[u8],
        config: Config,
        role: Role<'_>,
        predecessor: Option<Predecessor<'_>>,
        output: &mut dyn Host,
    ) -> Result<Self, BootError> {
        let boot = Boot::plan(file, &config, role)?;
        let (memfd, mut booting) = boot.load()?;
        let wait_point = boot.run_main(&mut booting, output)?;
        // What requests say of it, as they do in warm-ups, is of their own fork.
        let keeps_state = booting.machine.keeps_state;
        let restored = match predecessor {
            Some(predecessor) => boot.restore(&mut booting, &wait_point, predecessor, output)?,
            None => None,
        };
        if !role.is_storage {
            boot.warm_up(&mut booting, &wait_point, output)?;
        }
        let deadline = booting.deadline;
        let (linux, regexes) = booting.finish().map_err(BootError::Host)?;
        // Page tables stay, since the processor may write to them; before them is nothing that programs use.
        let among = boot.layout.tables.end..boot.layout.memory_len();
        let (memory, unused) = freeze::freeze(&memfd, among, deadline)
            .map_err(|error| BootError::Host(format!("freezing its memory: {error}")))?;
        let shared = role.shared.cloned();
        let Boot { host, image, .. } = boot;
        Ok(Self {
            auxiliary: crate::image::stack::debugger_auxiliary(image.placed()),
            config,
            host,
            file: memfd,
            memory,
            unused,
            shared,
            keeps_state,
            wait_point,
            linux,
            regexes,
            symbols: image.symbols,
            restored,
            warm_ups: WarmUps::default(),
            learned: Learned::default(),
            numbers: Arc::default(),
        })
    }
}

/// What a boot is made from.
struct Boot<'a> {
    file: &'a [u8],
    config: &'a Config,
    role: Role<'a>,
    host: &'static KvmHost,
    image: Image,
    layout: Layout,
}

impl<'a> Boot<'a> {
    /// Looks at the file and says where everything is to lie.
    fn plan(file: &'a [u8], config: &'a Config, role: Role<'a>) -> Result<Self, BootError> {
        config
            .check()
            .map_err(|bad| BootError::Setting(bad.to_string()))?;
        let host = probe::host()?;
        let image = Image::parse(file, config.limits.max_memory)?;
        let shared = role.shared.map_or(0, |area| area.len());
        let layout = loader::plan(&image, config.limits.max_memory, shared)
            .map_err(|small| BootError::Setting(small.to_string()))?;
        Ok(Self {
            file,
            config,
            role,
            host,
            image,
            layout,
        })
    }

    /// A machine that is about to run the program, and the file that is its memory.
    fn load(&self) -> Result<(Arc<File>, Booting), BootError> {
        let linux = self.linux()?;
        let memfd = freeze::memfd("forkvm-master", self.layout.memory_len()).map_err(|error| {
            let hint = what_to_raise(error.raw_os_error());
            BootError::Host(format!("its memory: {error}{hint}"))
        })?;
        let memory = Mapping::shared(&memfd, self.layout.memory_len()).map_err(no_machine)?;
        let memory = memory.with_shared(self.role.shared.cloned());
        crate::arch::monitor::install(&memory, self.host.entry).map_err(no_machine)?;
        let executable_heap = self.config.executable_heap;
        loader::load(
            &memory,
            &self.layout,
            &self.image,
            self.file,
            executable_heap,
        )
        .map_err(no_machine)?;
        let rsp = put_stack(
            &memory,
            &self.layout,
            &self.image,
            self.config,
            self.role,
            self.host,
        )
        .map_err(no_machine)?
        .ok_or_else(|| {
            let what = "main_arguments and environment are longer than half the stack";
            BootError::Setting(what.into())
        })?;
        // `main()` runs into an int3 at its first instruction, where its return address is replaced by ours.
        let main = start::find_main(&self.image, self.file)
            .map(|main| Patch::apply(&memory, main))
            .transpose()
            .map_err(no_machine)?;
        let start = (self.image.entry, rsp);
        let time = self.config.limits.max_boot_time;
        let booting = Booting::new(self.host, memory, linux, start, main, time);
        Ok((memfd, booting.map_err(no_machine)?))
    }

    fn linux(&self) -> Result<Linux, BootError> {
        let linux = Linux::new(setup(self.config, self.role, &self.layout));
        // What may be written to is made where the host has none.
        let is_made = |path: &Path| self.config.writable_paths.iter().any(|made| made == path);
        let unusable = linux.unusable_paths().find(|(path, _)| !is_made(path));
        if let Some((path, error)) = unusable {
            let what = format!("allowed_paths: {}: {error}", path.display());
            return Err(BootError::Setting(what));
        }
        Ok(linux)
    }

    /// Runs the program until it waits for requests.
    fn run_main(
        &self,
        booting: &mut Booting,
        output: &mut dyn Host,
    ) -> Result<WaitPoint, BootError> {
        booting.machine.set_slice(output.slice());
        booting.machine.keeps_state = !self.config.ephemeral;
        booting.controls_state = self.config.control_ephemeral;
        let waits = booting.run_main(self.role, output).map_err(|cause| {
            BootError::of(cause, |cause| BootError::Main {
                what: self.describe(&cause) + advice(&cause, self.file),
                cause,
            })
        })?;
        let symbol = |name| {
            let function = self.image.symbols.find(name);
            function.filter(|&function| self.image.is_code(function))
        };
        let handlers = &mut booting.handlers;
        handlers.set_default(Handlers::GET, symbol("my_backend"));
        handlers.post_symbol = symbol("my_post_backend");
        let way_in = match waits {
            Some(way_in) => way_in,
            // It may be called for nothing but its storage functions.
            None if handlers.any() || self.role.is_storage => WayIn::Handler,
            None => {
                return Err(BootError::NoHandler {
                    stripped: self.image.symbols.is_empty(),
                    mangled: self.image.symbols.find_mangled("my_backend"),
                });
            }
        };
        booting
            .wait_point(way_in, &self.layout, self.host.report)
            .map_err(|cause| match cause {
                Cause::Machine(what) => BootError::Host(what),
                cause => self.main_failed(cause),
            })
    }

    fn restore(
        &self,
        booting: &mut Booting,
        wait_point: &WaitPoint,
        predecessor: Predecessor<'_>,
        output: &mut dyn Host,
    ) -> Result<Option<u64>, BootError> {
        let failed = |cause| BootError::of(cause, |cause| BootError::State(self.describe(&cause)));
        booting.restore(wait_point, predecessor, self.role, failed, output)
    }

    fn warm_up(
        &self,
        booting: &mut Booting,
        wait_point: &WaitPoint,
        output: &mut dyn Host,
    ) -> Result<(), BootError> {
        let Some(warm_up) = &self.config.warm_up else {
            return Ok(());
        };
        let time = self.config.limits.max_request_time;
        booting
            .warm_up(wait_point, warm_up, time, output)
            .map_err(|cause| {
                BootError::of(cause, |cause| BootError::Main {
                    what: format!("its warm-up request failed: {}", self.describe(&cause)),
                    cause,
                })
            })
    }

    fn main_failed(&self, cause: Cause) -> BootError {
        BootError::Main {
            what: self.describe(&cause),
            cause,
        }
    }

    fn describe(&self, cause: &Cause) -> String {
        let time = format!("{:?} (max_boot_time)", self.config.limits.max_boot_time);
        let stack = self.layout.stack_window();
        cause.describe(&self.image.symbols, &stack, &time, "max_memory")
    }
}

fn no_machine(error: impl std::fmt::Display) -> BootError {
    BootError::Host(error.to_string())
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

/// The state file of a program that is its storage, or will have a fork that is.
fn state_file(config: &Config, role: Role<'_>) -> Option<StateFile> {
    let most = config.limits.max_state_size;
    let is_storages = role.is_storage || config.storage == StorageKind::Fork;
    (is_storages && most > 0).then(|| StateFile {
        store: Arc::new(config.storage_owner.clone()),
        most,
    })
}

fn setup(config: &Config, role: Role<'_>, layout: &Layout) -> Setup {
    Setup {
        writable_paths: config.writable_paths.clone(),
        overlay_bytes: config.max_file_memory,
        volume_bytes: config.max_volume_writes,
        whole_system: false,
        heap: HeapLayout {
            brk_window: layout.brk_window,
            mmap_window: MMAP_WINDOW,
            len: layout.heap.end - layout.heap.start,
            executable: config.executable_heap,
        },
        stack: layout.stack_window(),
        executable: executable(config),
        allowed_paths: config.allowed_paths.clone(),
        random_addresses: false,
        current_working_directory: config.current_working_directory.clone(),
        allowed_net: Vec::new(),
        allowed_listen: None,
        state: state_file(config, role),
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
    role: Role<'_>,
    host: &KvmHost,
) -> std::io::Result<Option<u64>> {
    let mut arguments = vec![config.name.clone()];
    arguments.extend(config.main_arguments.iter().cloned());
    let mut environment = vec![
        format!("KVM_NAME={}", config.name),
        format!("KVM_GROUP={}", config.group),
        format!(
            "KVM_TYPE={}",
            if role.is_storage {
                "storage"
            } else {
                "request"
            }
        ),
        format!(
            "KVM_STATE={}",
            if state_file(config, role).is_some() {
                STATE_PATH
            } else {
                ""
            }
        ),
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
        ids: [0; 4],
        vdso: 0,
        fsgsbase: host.report.fsgsbase,
        xsave_len: XSAVE_LEN,
    };
    let (bytes, _) = stack.build(STACK_TOP);
    if bytes.len() as u64 > (layout.stack.end - layout.stack.start) / 2 {
        return Ok(None);
    }
    memory
        .write(layout.stack.end - bytes.len() as u64, &bytes)
        .map_err(std::io::Error::other)?;
    Ok(Some(STACK_TOP - bytes.len() as u64))
}
