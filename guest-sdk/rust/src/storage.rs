//! Storage: a machine of the program's that is never reset, which requests call (the tenant's setting `storage`).
//!
//! ```no_run
//! use forkvm_guest::{serve, storage, Response};
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! static HITS: AtomicU64 = AtomicU64::new(0);
//!
//! // Runs in the storage machine, where HITS stays.
//! fn count(_call: &storage::Call) -> Vec<u8> {
//!     (HITS.fetch_add(1, Ordering::Relaxed) + 1).to_string().into_bytes()
//! }
//!
//! fn main() {
//!     storage::allow(count);
//!     serve(|_| match storage::call(count, &[], 100) {
//!         Some(hits) => Response::text(String::from_utf8_lossy(&hits)),
//!         None => Response::text("no storage").status(500),
//!     });
//! }
//! ```
//!
//! A function that panics ends the storage machine, which begins again as `main()` has left it, or with what the last live update
//! has carried over; its call fails. Outside of a virtual machine [`call`] and [`task`] just run the function, which can't call the
//! storage either.

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice::from_raw_parts;
use std::time::Duration;

use crate::raw::{self, Buffer};
use crate::{hypercall, native};

/// Most buffers of a call, and data of a task.
const MOST_BUFFERS: usize = 64;
const MOST_TASK_DATA: usize = 64 << 10;

/// A call, as a function of the storage's gets it.
pub struct Call<'a> {
    buffers: &'a [Buffer],
    room: usize,
    _of: PhantomData<&'a [u8]>,
}

impl<'a> Call<'a> {
    /// The buffers it was called with, copies of the caller's.
    pub fn buffers(&self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        // SAFETY: the host, or `call` below, has put them there for as long as the call takes.
        self.buffers.iter().map(|buffer| unsafe { bytes(buffer) })
    }

    /// The first of them; empty if there is none.
    pub fn data(&self) -> &'a [u8] {
        self.buffers().next().unwrap_or_default()
    }

    /// How long the result may be. A longer one fails the call.
    pub fn room(&self) -> usize {
        self.room
    }
}

/// # Safety
///
/// The buffer's memory is there for `'a`.
unsafe fn bytes<'a>(buffer: &Buffer) -> &'a [u8] {
    match buffer.len {
        0 => &[],
        // SAFETY: the caller's promise.
        len => unsafe { from_raw_parts(buffer.data, len) },
    }
}

/// A function is known by its type, so that it has an entry that the host can call.
fn conjure<F: Copy>() -> F {
    const {
        assert!(
            size_of::<F>() == 0,
            "give the function itself, or a closure that captures nothing"
        )
    };
    // SAFETY: a value without a size, of a type of which whoever names the entry has had one and may copy it.
    unsafe { std::mem::zeroed() }
}

extern "C" fn call_entry<F: Fn(&Call) -> Vec<u8> + Copy>(
    count: usize,
    buffers: *const Buffer,
    room: usize,
) {
    let function: F = conjure();
    let buffers = match count {
        0 => &[][..],
        // SAFETY: the host passes as many as it says.
        count => unsafe { from_raw_parts(buffers, count) },
    };
    let call = Call {
        buffers,
        room,
        _of: PhantomData,
    };
    // It can't unwind into the host; aborting tells it that the call has failed.
    let Ok(result) = catch_unwind(AssertUnwindSafe(|| function(&call))) else {
        std::process::abort();
    };
    // SAFETY: the host reads the result.
    unsafe {
        hypercall(
            raw::STORAGE_RETURN,
            [result.as_ptr() as usize, result.len(), 0, 0, 0, 0],
        )
    };
}

extern "C" fn task_entry<F: Fn(&[u8]) + Copy>(data: *const u8, len: usize) {
    let function: F = conjure();
    // SAFETY: the host passes what it copied.
    let data = unsafe { bytes(&Buffer { data, len }) };
    if catch_unwind(AssertUnwindSafe(|| function(data))).is_err() {
        std::process::abort();
    }
}

fn call_address<F: Fn(&Call) -> Vec<u8> + Copy>(_: F) -> usize {
    call_entry::<F> as *const () as usize
}

fn task_address<F: Fn(&[u8]) + Copy>(_: F) -> usize {
    task_entry::<F> as *const () as usize
}

thread_local! {
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

/// Whether a function of the storage's runs, outside of a virtual machine.
pub(crate) fn runs() -> bool {
    RUNS.get()
}

/// Runs one there.
fn run<T>(function: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            RUNS.set(self.0);
        }
    }
    let _before = Before(RUNS.replace(true));
    function()
}

/// Lets requests call a function, given as itself. In `main()`, before the program waits for requests.
pub fn allow<F: Fn(&Call) -> Vec<u8> + Copy + 'static>(function: F) {
    allow_address(call_address(function));
}

/// Lets requests have a function run as a task. The storage itself may have any run.
pub fn allow_task<F: Fn(&[u8]) + Copy + 'static>(function: F) {
    allow_address(task_address(function));
}

fn allow_address(address: usize) {
    // SAFETY: the entries have the signatures that they are called with.
    unsafe { hypercall(raw::STORAGE_ALLOW, [address, 0, 0, 0, 0, 0]) };
}

/// Calls a function of the storage's with up to 64 buffers, for a result of up to `room` bytes. `None` if the call failed: the log says
/// why.
pub fn call<F: Fn(&Call) -> Vec<u8> + Copy + 'static>(
    function: F,
    buffers: &[&[u8]],
    room: usize,
) -> Option<Vec<u8>> {
    let buffers: Vec<Buffer> = buffers
        .iter()
        .map(|buffer| Buffer {
            data: buffer.as_ptr(),
            len: buffer.len(),
        })
        .collect();
    if native::is_native() {
        if runs() || buffers.len() > MOST_BUFFERS {
            return None;
        }
        let call = Call {
            buffers: &buffers,
            room,
            _of: PhantomData,
        };
        return Some(run(|| function(&call))).filter(|result| result.len() <= room);
    }
    let mut result = vec![0; room];
    // SAFETY: the host reads the buffers and writes to the result, which has that room.
    let len = unsafe {
        hypercall(
            raw::STORAGE_CALLV,
            [
                call_address(function),
                buffers.len(),
                buffers.as_ptr() as usize,
                result.as_mut_ptr() as usize,
                room,
                0,
            ],
        )
    };
    result.truncate(usize::try_from(len).ok()?);
    Some(result)
}

/// A task's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task(usize);

/// Has a function run in the storage machine after `start`, and if there is a `period` again and again. `None` if that can't be.
/// Outside of a virtual machine it has run when this returns, once.
pub fn task<F: Fn(&[u8]) + Copy + 'static>(
    function: F,
    data: &[u8],
    start: Duration,
    period: Option<Duration>,
) -> Option<Task> {
    if native::is_native() {
        if data.len() > MOST_TASK_DATA {
            return None;
        }
        run(|| function(data));
        return Some(Task(0));
    }
    let milliseconds = |time: Duration| usize::try_from(time.as_millis()).unwrap_or(usize::MAX);
    // One that is shorter than a millisecond is a period all the same.
    let period = period.map_or(0, |period| milliseconds(period).max(1));
    // SAFETY: the host reads the data.
    let number = unsafe {
        hypercall(
            raw::STORAGE_TASK,
            [
                task_address(function),
                data.as_ptr() as usize,
                data.len(),
                milliseconds(start),
                period,
                0,
            ],
        )
    };
    usize::try_from(number).ok().map(Task)
}

impl Task {
    /// Takes it off the list. False if it is not on it any more.
    pub fn stop(self) -> bool {
        // SAFETY: no memory is touched.
        unsafe { hypercall(raw::STORAGE_TASK_STOP, [self.0, 0, 0, 0, 0, 0]) == 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn join(call: &Call) -> Vec<u8> {
        assert_eq!(call.data(), b"one");
        call.buffers().collect::<Vec<_>>().concat()
    }

    #[test]
    fn functions_run_natively() {
        allow(join);
        let result = call(join, &[b"one", b"", b"two"], 6);
        assert_eq!(result.as_deref(), Some(&b"onetwo"[..]));
        assert_eq!(call(join, &[b"one", b"", b"two"], 5), None);
        assert_eq!(
            call(|call: &Call| vec![b'x'; call.room()], &[], 3).unwrap(),
            b"xxx"
        );
        static LEN: AtomicUsize = AtomicUsize::new(0);
        fn add(data: &[u8]) {
            LEN.fetch_add(data.len(), Ordering::Relaxed);
        }
        allow_task(add);
        assert!(task(add, b"abc", Duration::ZERO, None).is_some());
        assert_eq!(LEN.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn natively_as_in_a_virtual_machine() {
        fn nested(_: &Call) -> Vec<u8> {
            let inner = call(nested, &[], 10).is_none();
            vec![inner.into(), crate::is_storage().into()]
        }
        fn panics(_: &Call) -> Vec<u8> {
            panic!("on purpose")
        }
        assert_eq!(call(nested, &[], 2), Some(vec![1, 1]));
        assert!(!crate::is_storage());
        assert!(std::panic::catch_unwind(|| call(panics, &[], 2)).is_err());
        assert!(!crate::is_storage());
        assert_eq!(call(nested, &[&b"a"[..]; 65], 2), None);
        assert!(task(|_: &[u8]| (), &[0; 65537], Duration::ZERO, None).is_none());
    }
}
