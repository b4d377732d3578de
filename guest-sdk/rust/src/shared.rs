//! Memory that all machines of the program share, its forks and its storage (the tenant's setting `shared_memory`).
//!
//! ```no_run
//! use forkvm_guest::{serve, shared, Response};
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! fn main() {
//!     let hits: &AtomicU64 = shared::alloc().expect("shared_memory of the tenant is too small");
//!     serve(move |_| Response::text(format!("{}\n", hits.fetch_add(1, Ordering::Relaxed) + 1)));
//! }
//! ```
//!
//! It is zero when the program starts, and no reset touches it. Others write to it while this machine runs, so there are atomics
//! only. It is for what requests may know of each other. Outside of a virtual machine there is a mebibyte.

use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicI16, AtomicI32, AtomicI64, AtomicI8, AtomicIsize, AtomicU16, AtomicU32, AtomicU64,
    AtomicU8, AtomicUsize, Ordering,
};
use std::sync::OnceLock;

use crate::{native, raw};

/// Bytes that there are outside of a virtual machine.
const NATIVE: usize = 1 << 20;

/// What may be shared.
///
/// # Safety
///
/// Any bytes are a value, zeros as well, also if they change at any time: it is made of atomic integers alone, and has no padding.
pub unsafe trait Shareable: Sync {}

macro_rules! shareable {
    ($($atomic:ty)*) => { $(
        // SAFETY: an atomic integer.
        unsafe impl Shareable for $atomic {}
    )* };
}
shareable!(AtomicU8 AtomicU16 AtomicU32 AtomicU64 AtomicUsize AtomicI8 AtomicI16 AtomicI32 AtomicI64 AtomicIsize);

// SAFETY: as its elements, which follow each other.
unsafe impl<T: Shareable, const N: usize> Shareable for [T; N] {}

/// What is free, from the area's start on.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// The area's address and length.
fn area() -> Option<(NonNull<u8>, usize)> {
    let (start, end) = if native::is_native() {
        static AREA: OnceLock<Vec<AtomicU64>> = OnceLock::new();
        let area = AREA.get_or_init(|| (0..NATIVE / 8).map(|_| AtomicU64::new(0)).collect());
        let start = area.as_ptr() as usize;
        (start, start + NATIVE)
    } else {
        raw::shared_area()
    };
    let start = NonNull::new(start as *mut u8).filter(|_| (start as isize) > 0)?;
    Some((start, end.checked_sub(start.as_ptr() as usize)?))
}

/// How many bytes there are; 0 if the tenant has none.
pub fn len() -> usize {
    area().map_or(0, |(_, len)| len)
}

/// Takes room for a value, for good. `None` if there is no more. In `main()` only: a request that took some would forget that
/// it has. Each machine of the program takes the same pieces in the same order, and so has the same ones: where the storage's
/// `main()` does otherwise than the one for requests, that has to be after what both take.
pub fn alloc<T: Shareable>() -> Option<&'static T> {
    let (start, len) = area()?;
    let fits = |taken: usize| {
        let from = taken.checked_next_multiple_of(align_of::<T>())?;
        let end = from.checked_add(size_of::<T>())?;
        (end <= len).then_some((from, end))
    };
    let end = |taken| fits(taken).map(|(_, end)| end);
    let taken = TAKEN
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, end)
        .ok()?;
    let (from, _) = fits(taken)?;
    // SAFETY: so many bytes from there on are in the area, whose start is aligned to a page (natively to 8 bytes, which is the most
    // that these types ask for). They are there for good, and whoever else writes to them has the same type, or they are still some
    // value of it.
    Some(unsafe { &*start.as_ptr().add(from).cast::<T>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_aligned() {
        let byte: &AtomicU8 = alloc().unwrap();
        let number: &AtomicU64 = alloc().unwrap();
        let many: &[AtomicU32; 100] = alloc().unwrap();
        byte.store(1, Ordering::Relaxed);
        number.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(byte.load(Ordering::Relaxed), 1);
        assert!(many
            .iter()
            .all(|number| number.load(Ordering::Relaxed) == 0));
        assert_eq!(std::ptr::from_ref(number) as usize % 8, 0);
        assert!(alloc::<[AtomicU8; NATIVE]>().is_none());
        assert_eq!(len(), NATIVE);
    }
}
