//! What a program can be called by: the functions it registered, or its symbols.

/// Slots of `register_func`, up to the last one that is served.
const SLOTS: usize = 32;

/// The functions a program can be called by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handlers {
    slots: [u64; SLOTS],
    /// `my_post_backend`, which takes other arguments than a registered POST handler.
    pub post_symbol: Option<u64>,
}

impl Handlers {
    /// Slot of the GET handler: `f(url, arg)`.
    pub const GET: usize = 1;
    /// Slot of the POST handler: `f(url, arg, content_type, data, len)`.
    pub const POST: usize = 2;
    /// Slot of the handler for any method: `f(const kvm_request *)`.
    pub const REQUEST: usize = 3;
    /// Slot of the handler for bodies that come segment by segment: `f(url, arg, content_type, segment, len, offset)`.
    pub const STREAM_POST: usize = 4;
    /// Slot of the handler for failed requests: `f(url, arg, failure)`.
    pub const ON_ERROR: usize = 5;
    /// Slot of the handler that hands the state over before a live update: `f()`.
    pub const ON_LIVE_UPDATE: usize = 6;
    /// Slot of the handler that takes it in the new program: `f(len)`.
    pub const ON_LIVE_RESTORE: usize = 7;

    /// Slot of the handler of storage that is to save what has to outlive it: `f()`. This project's own.
    pub const ON_STORAGE_SAVE: usize = 31;

    /// Registers a function. 0, or an errno for a slot whose function would never be called.
    pub fn register(&mut self, slot: u64, function: u64) -> i64 {
        const SERVED: [usize; 8] = [
            Handlers::GET,
            Handlers::POST,
            Handlers::REQUEST,
            Handlers::STREAM_POST,
            Handlers::ON_ERROR,
            Handlers::ON_LIVE_UPDATE,
            Handlers::ON_LIVE_RESTORE,
            Handlers::ON_STORAGE_SAVE,
        ];
        match SERVED.into_iter().find(|&served| served as u64 == slot) {
            Some(slot) => {
                self.slots[slot] = function;
                0
            }
            None => -i64::from(libc::ENOSYS),
        }
    }

    /// The function in a slot.
    pub fn get(&self, slot: usize) -> Option<u64> {
        self.slots
            .get(slot)
            .copied()
            .filter(|&function| function != 0)
    }

    /// True if there is something to call for some request.
    pub fn any(&self) -> bool {
        let slots = [Self::GET, Self::POST, Self::REQUEST, Self::STREAM_POST];
        self.post_symbol.is_some() || slots.iter().any(|&slot| self.get(slot).is_some())
    }

    /// Fills an empty slot.
    pub fn set_default(&mut self, slot: usize, function: Option<u64>) {
        if let (0, Some(function)) = (self.slots[slot], function) {
            self.slots[slot] = function;
        }
    }
}
