//! Write a program in Rust that answers HTTP requests from inside a virtual machine.
//!
//! ```no_run
//! use forkvm_guest::{serve, Response};
//!
//! fn main() {
//!     let greeting = String::from("Hello"); // set up once, before the machine is frozen
//!     serve(move |request| Response::text(format!("{greeting}, {}!\n", request.url())));
//! }
//! ```
//!
//! `main()` sets everything up. [`serve`] freezes the machine, and each request runs in a copy-on-write fork of
//! that state: what the handler changes is gone when it has answered. A handler that panics fails its request.
//!
//! Build it as a static program:
//!
//! ```text
//! RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target x86_64-unknown-linux-gnu
//! ```
//!
//! The program may be stripped.
//!
//! Handlers are functions from a [`Request`] to a [`Response`], and run natively under `cargo test`: a test makes the
//! request ([`Request::builder`]) and looks at the response. Outside of a virtual machine [`log`] goes to standard error,
//! and [`serve`] takes the request from the program's arguments and prints the response:
//!
//! ```text
//! cargo run -- -i /any/url
//! ```
//!
//! What the host does for a program is done there by [`mock`], or by the test itself: fetches, regular expressions, storage.

#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
compile_error!("programs for the virtual machine are 64-bit x86");

mod fetch;
pub mod mock;
mod native;
mod raw;
mod regex;
mod request;
mod response;
pub mod shared;
pub mod storage;
mod task;

use std::ffi::{c_char, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Mutex;

pub use fetch::{Fetch, FetchHead, Fetched, Fetching};
pub use raw::hypercall;
pub use regex::Regex;
pub use request::{Header, Request, RequestBuilder};
pub use response::Response;
pub use task::{block_on, join, join_all, yield_now};

type OnRequest = Box<dyn FnMut(&Request) -> Response + Send>;
type OnBody = Box<dyn FnMut(&Segment<'_>) -> Option<Response> + Send>;
type OnError = Box<dyn FnMut(&Failure) -> Response + Send>;

static ON_REQUEST: Mutex<Option<OnRequest>> = Mutex::new(None);
static ON_BODY: Mutex<Option<OnBody>> = Mutex::new(None);
static ON_ERROR: Mutex<Option<OnError>> = Mutex::new(None);

/// A segment of a request's body, or its end.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// The request's URL.
    pub url: &'a CStr,
    /// The text that VCL passed along.
    pub arg: &'a CStr,
    /// The body's type, or "".
    pub content_type: &'a CStr,
    /// At most 64 KiB; empty at the body's end.
    pub data: &'a [u8],
    /// How much of the body came before.
    pub offset: usize,
}

/// What an error handler gets to know of the request that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The request's URL.
    pub url: String,
    /// The text that VCL passed along.
    pub arg: String,
    /// Why the request failed.
    pub exception: String,
}

extern "C" fn request_entry(request: *const raw::Request) {
    // SAFETY: the host passes a request that stays as it is until we answer.
    let request = unsafe { Request::from_raw(request) };
    answer(|| Some(ON_REQUEST.lock().ok()?.as_mut()?(&request)));
}

extern "C" fn segment_entry(
    url: *const c_char,
    arg: *const c_char,
    content_type: *const c_char,
    data: *const u8,
    len: usize,
    offset: usize,
) -> isize {
    // SAFETY: the host passes NUL-terminated texts, and so many bytes if that is not 0, that stay as they are until we return.
    let segment = unsafe {
        Segment {
            url: CStr::from_ptr(url),
            arg: CStr::from_ptr(arg),
            content_type: CStr::from_ptr(content_type),
            data: match len {
                0 => &[],
                _ => std::slice::from_raw_parts(data, len),
            },
            offset,
        }
    };
    let taken = catch_unwind(AssertUnwindSafe(|| {
        Some(ON_BODY.lock().ok()?.as_mut()?(&segment))
    }));
    match taken {
        Ok(Some(Some(response))) => response.send(),
        Ok(Some(None)) => isize::try_from(len).unwrap_or(-1),
        Ok(None) | Err(_) => std::process::abort(),
    }
}

extern "C" fn error_entry(url: *const c_char, arg: *const c_char, exception: *const c_char) {
    // SAFETY: the host passes NUL-terminated texts that stay as they are until we answer.
    let failure = unsafe {
        Failure {
            url: text(url),
            arg: text(arg),
            exception: text(exception),
        }
    };
    answer(|| Some(ON_ERROR.lock().ok()?.as_mut()?(&failure)));
}

/// # Safety
///
/// `text` is NULL or NUL-terminated.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// Runs a handler and sends what it gives. A panic has printed its message; it ends here, because it can't
/// unwind into the host, and aborting tells the host that the request has failed.
fn answer(handler: impl FnOnce() -> Option<Response>) -> ! {
    match catch_unwind(AssertUnwindSafe(handler)) {
        Ok(Some(response)) => response.send(),
        Ok(None) | Err(_) => std::process::abort(),
    }
}

/// Panics after the freeze, where the host refuses it.
fn register(slot: usize, entry: usize) {
    if native::is_native() {
        return;
    }
    // SAFETY: the entry points have the signatures of their slots.
    let result = unsafe { hypercall(raw::REGISTER_FUNC, [slot, entry, 0, 0, 0, 0]) };
    assert!(
        result >= 0,
        "the host refused the handler for slot {slot}: {result}"
    );
}

/// Sets the handler for requests of every method. To be called before [`wait_for_requests`].
pub fn on_request(handler: impl FnMut(&Request) -> Response + Send + 'static) {
    register(raw::SLOT_REQUEST, request_entry as *const () as usize);
    if let Ok(mut slot) = ON_REQUEST.lock() {
        *slot = Some(Box::new(handler));
    }
}

/// Sets the handler for request bodies that come segment by segment: it is called for each, and at the end of the body with an
/// empty one, where it has to answer. An answer before ends it. To be called before [`wait_for_requests`].
///
/// Requests without a body go to [`on_request`]'s handler. Outside of a virtual machine there are no segments.
pub fn on_body(handler: impl FnMut(&Segment<'_>) -> Option<Response> + Send + 'static) {
    register(raw::SLOT_STREAM_POST, segment_entry as *const () as usize);
    if let Ok(mut slot) = ON_BODY.lock() {
        *slot = Some(Box::new(handler));
    }
}

/// Sets the handler that answers in the place of one that failed, in a fresh fork. It has little time.
pub fn on_error(handler: impl FnMut(&Failure) -> Response + Send + 'static) {
    register(raw::SLOT_ON_ERROR, error_entry as *const () as usize);
    if let Ok(mut slot) = ON_ERROR.lock() {
        *slot = Some(Box::new(handler));
    }
}

/// The end of the set-up: freezes the machine here. Requests go to the handlers. Outside of a virtual machine there is
/// one request, that of the program's arguments.
pub fn wait_for_requests() -> ! {
    if native::is_native() {
        native::serve();
    }
    // SAFETY: no memory is touched, and the call does not come back.
    unsafe { hypercall(raw::WAIT_FOR_REQUESTS, [0; 6]) };
    std::process::abort()
}

/// [`on_request`] and [`wait_for_requests`] in one.
pub fn serve(handler: impl FnMut(&Request) -> Response + Send + 'static) -> ! {
    on_request(handler);
    wait_for_requests()
}

/// Writes a line to the Varnish log, outside of a virtual machine to standard error.
pub fn log(text: &str) {
    if native::is_native() {
        return eprintln!("{text}");
    }
    // SAFETY: the host reads the text.
    unsafe { hypercall(raw::LOG, [text.as_ptr() as usize, text.len(), 0, 0, 0, 0]) };
}

/// Whether this is the tenant's storage machine, which is never reset. In tests: whether one of its functions runs.
pub fn is_storage() -> bool {
    if native::is_native() {
        return storage::runs();
    }
    // SAFETY: no memory is touched.
    unsafe { hypercall(raw::IS_STORAGE, [0; 6]) == 1 }
}

/// Whether this request came in for debugging.
pub fn is_debug() -> bool {
    // SAFETY: no memory is touched.
    unsafe { hypercall(raw::IS_DEBUG, [0; 6]) == 1 }
}

/// Which of the program's virtual machines this is: 0 in `main()` and in warm-up requests, from 1 on in a request. No two
/// that run at the same time have the same number, and it is no greater than there have been machines at a time.
pub fn fork_number() -> u32 {
    if native::is_native() {
        return 0;
    }
    let number: u32;
    // SAFETY: the host has GS base point at the number, and this program does not change GS base.
    unsafe {
        core::arch::asm!("mov {0:e}, gs:[0]", out(reg) number, options(nostack, readonly, preserves_flags));
    }
    number
}

/// Memory of this machine and its requests, in bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Meminfo {
    /// The machine's memory.
    pub max_memory: u64,
    /// What one request may write to.
    pub max_reqmem: u64,
    /// The most a request in this machine has written to so far.
    pub reqmem_upper: u64,
    /// What this request has written to so far.
    pub reqmem_current: u64,
}

/// Asks the host about memory; `None` if it does not tell.
pub fn meminfo() -> Option<Meminfo> {
    let mut info = Meminfo::default();
    // SAFETY: the host writes the structure.
    let result = unsafe {
        hypercall(
            raw::GET_MEMINFO,
            [&mut info as *mut Meminfo as usize, 0, 0, 0, 0, 0],
        )
    };
    (result >= 0).then_some(info)
}
