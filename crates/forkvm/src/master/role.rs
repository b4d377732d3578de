//! What a program is booted for.

use std::sync::Arc;

use crate::call::stored::{Access, Stored};
use crate::memory::shared_area::SharedArea;

/// What a machine is to be.
#[derive(Debug, Clone, Copy)]
pub struct Role<'a> {
    /// The storage; else the one that requests' forks are of.
    pub is_storage: bool,
    /// What `main()` may call: the storage, if there is another machine that is it, or if this one is, its list of tasks.
    pub storage: Option<&'a dyn Stored>,
    /// What it shares with the program's other machines.
    pub shared: Option<&'a Arc<SharedArea>>,
}

impl<'a> Role<'a> {
    /// To answer requests.
    pub fn requests(storage: Option<&'a dyn Stored>) -> Self {
        Self {
            is_storage: false,
            storage,
            shared: None,
        }
    }

    /// To be the storage, with these tasks.
    pub fn storage(tasks: &'a dyn Stored) -> Self {
        Self {
            is_storage: true,
            storage: Some(tasks),
            shared: None,
        }
    }

    /// The same with memory that it shares with other machines.
    pub fn sharing(self, shared: Option<&'a Arc<SharedArea>>) -> Self {
        Self { shared, ..self }
    }

    /// What may be called.
    pub fn access(self) -> Option<Access<'a>> {
        let storage = self.storage?;
        Some(Access { storage, loops: 0 })
    }
}
