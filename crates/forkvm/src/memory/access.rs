//! What may be done with a page, and the error when it may not.

/// First address that no program may use: Linux keeps the last page of the lower half unmapped too, because
/// `sysretq` to a non-canonical address faults in ring 0 on Intel.
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// A pointer from the program that is not (wholly) mapped with the needed permission: EFAULT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad guest address {0:#x}")]
pub struct BadAddress(pub u64);

/// What a page of the program may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// The page may be read.
    pub read: bool,
    /// The page may be written.
    pub write: bool,
    /// The page may be executed.
    pub execute: bool,
}

/// What the program did when it faulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// It read.
    Read,
    /// It wrote.
    Write,
    /// It executed.
    Execute,
}

impl Touch {
    /// True if the page may be used so.
    pub fn is_allowed(self, protection: Protection) -> bool {
        match self {
            Self::Read => protection.read,
            Self::Write => protection.write,
            Self::Execute => protection.execute,
        }
    }
}
