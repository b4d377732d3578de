//! What a descriptor is ready for, as poll(2) and epoll(7) tell it.

/// `POLL*` of asm-generic/poll.h; `EPOLL*` are the same.
pub const IN: u16 = 0x001;
pub const OUT: u16 = 0x004;
pub const ERR: u16 = 0x008;
pub const HUP: u16 = 0x010;
pub const NVAL: u16 = 0x020;
pub const RDNORM: u16 = 0x040;
pub const WRNORM: u16 = 0x100;
pub const WRBAND: u16 = 0x200;
pub const RDHUP: u16 = 0x2000;

/// What a descriptor is ready for, and how often it became so: an edge is a count that has grown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    /// What holds now.
    pub events: u16,
    /// How often something came to be read.
    pub arrivals: u64,
    /// How often there came to be room again to write.
    pub openings: u64,
}

impl Readiness {
    /// Of something that never waits and never changes.
    pub fn always(events: u16) -> Self {
        Self {
            events,
            ..Self::default()
        }
    }
}
