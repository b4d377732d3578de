//! The boot of a program, and of its storage before it.

use std::sync::Arc;

use crate::arch::layout::page_up;
use crate::call::stored::Stored;
use crate::config::Config;
use crate::failure::{BootError, what_to_raise};
use crate::master::Master;
use crate::master::handover::Predecessor;
use crate::master::role::Role;
use crate::memory::shared_area::SharedArea;
use crate::request::Host;
use crate::storage::owner::StorageKind;
use crate::storage::{Storage, Tasks};

/// Boots a program, after its storage if that is another machine.
pub fn boot(
    elf: &[u8],
    config: Config,
    predecessor: Option<Predecessor<'_>>,
    host: &mut dyn Host,
) -> Result<(Arc<Master>, Option<Arc<Storage>>), BootError> {
    let kind = config.storage;
    let shared = shared_area(&config)?;
    let mut storage = None;
    if kind == StorageKind::Machine {
        let tasks = Arc::<Tasks>::default();
        let role = Role::storage(&tasks).sharing(shared.as_ref());
        let master =
            Master::boot(elf, config.clone(), role, None, host).map_err(BootError::of_storage)?;
        storage = Some(of_master(&Arc::new(master), tasks)?);
    }
    let role = Role::requests(storage.as_deref().map(|storage| storage as &dyn Stored));
    let role = role.sharing(shared.as_ref());
    let master = Arc::new(Master::boot(elf, config, role, predecessor, host)?);
    if kind == StorageKind::Fork {
        storage = Some(of_master(&master, Arc::default())?);
    }
    Ok((master, storage))
}

/// What the program's machines are to share, all zero: nothing of it is the program's before.
fn shared_area(config: &Config) -> Result<Option<Arc<SharedArea>>, BootError> {
    config
        .check()
        .map_err(|bad| BootError::Setting(bad.to_string()))?;
    match page_up(config.shared_memory) {
        None | Some(0) => Ok(None),
        Some(len) => SharedArea::new(len)
            .map(|area| Some(Arc::new(area)))
            .map_err(|error| {
                let hint = what_to_raise(error.raw_os_error());
                BootError::Host(format!("its shared memory: {error}{hint}"))
            }),
    }
}

fn of_master(master: &Arc<Master>, tasks: Arc<Tasks>) -> Result<Arc<Storage>, BootError> {
    Storage::new(master.clone(), tasks).map_err(|error| BootError::Host(error.to_string()))
}

impl BootError {
    /// The same of a program's storage.
    fn of_storage(self) -> Self {
        match self {
            Self::Main { cause, what } => Self::Main {
                cause,
                what: format!("as storage: {what}"),
            },
            other => other,
        }
    }
}
