//! The interface itself: hypercalls, and the structures that host and guest share.

use core::ffi::c_void;

use crate::native;

pub(crate) const REGISTER_FUNC: u32 = 0x10000;
pub(crate) const WAIT_FOR_REQUESTS: u32 = 0x10001;
pub(crate) const SET_CACHEABLE: u32 = 0x10005;
pub(crate) const BACKEND_RESPONSE: u32 = 0x10010;
pub(crate) const BEGIN_STREAMING_RESPONSE: u32 = 0x10012;
pub(crate) const HTTP_APPEND: u32 = 0x10020;
pub(crate) const REGEX_COMPILE: u32 = 0x10030;
pub(crate) const REGEX_FREE: u32 = 0x10031;
pub(crate) const REGEX_MATCH: u32 = 0x10032;
pub(crate) const REGEX_SUBST: u32 = 0x10033;
pub(crate) const GET_MEMINFO: u32 = 0x10A00;
pub(crate) const STORAGE_RETURN: u32 = 0x10011;
const SHARED_MEMORY_AREA: u32 = 0x10700;
pub(crate) const IS_STORAGE: u32 = 0x10706;
pub(crate) const STORAGE_ALLOW: u32 = 0x10707;
pub(crate) const STORAGE_CALLV: u32 = 0x10708;
pub(crate) const STORAGE_TASK: u32 = 0x10709;
pub(crate) const STORAGE_TASK_STOP: u32 = 0x1070A;
pub(crate) const FETCH_BEGIN: u32 = 0x20010;
pub(crate) const FETCH_HEAD: u32 = 0x20011;
pub(crate) const FETCH_READ: u32 = 0x20012;
pub(crate) const FETCH_CLOSE: u32 = 0x20013;
pub(crate) const LOG: u32 = 0x7F000;
pub(crate) const IS_DEBUG: u32 = 0x7FDEB;

pub(crate) const SLOT_REQUEST: usize = 3;
pub(crate) const SLOT_STREAM_POST: usize = 4;
pub(crate) const SLOT_ON_ERROR: usize = 5;

/// Linux's number for a call that is not there.
const ENOSYS: isize = 38;

/// A call to the host, with the numbers and arguments of `kvm_api.h`. -ENOSYS outside of a virtual machine.
///
/// # Safety
///
/// The host reads and writes the memory that pointers among the arguments name, as each call defines.
pub unsafe fn hypercall(number: u32, args: [usize; 6]) -> isize {
    if native::is_native() {
        return -ENOSYS;
    }
    let result: isize;
    // SAFETY: `out` to port 0 is the call; the host preserves all registers but rax, and uses no stack. What
    // it does to memory is the caller's responsibility, and asm! is taken to read and write memory.
    unsafe {
        core::arch::asm!(
            "out 0, eax",
            inlateout("rax") number as isize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("rcx") args[3],
            in("r8") args[4],
            in("r9") args[5],
            options(nostack, preserves_flags),
        );
    }
    result
}

/// Where the memory begins and ends that all machines of the program share; not above 0 where there is none. In a virtual machine only.
pub(crate) fn shared_area() -> (usize, usize) {
    let (start, end): (usize, usize);
    // SAFETY: as above; this call gives its second result in rdx, and touches no memory.
    unsafe {
        core::arch::asm!(
            "out 0, eax",
            inlateout("rax") SHARED_MEMORY_AREA as usize => start,
            inlateout("rdx") 0usize => end,
            options(nostack, preserves_flags),
        );
    }
    (start, end)
}

/// What a call gives: a number, or one of Linux's errors.
pub(crate) fn result(result: isize) -> std::io::Result<usize> {
    usize::try_from(result).map_err(|_| std::io::Error::from_raw_os_error(-(result as i32)))
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct Header {
    pub field: *const u8,
    pub colon: u32,
    pub len: u32,
}

/// A piece of memory that storage is called with.
#[repr(C)]
pub(crate) struct Buffer {
    pub data: *const u8,
    pub len: usize,
}

#[repr(C)]
pub(crate) struct Request {
    pub method: *const u8,
    pub url: *const u8,
    pub arg: *const u8,
    pub content_type: *const u8,
    pub method_len: u16,
    pub url_len: u16,
    pub arg_len: u16,
    pub content_type_len: u16,
    pub content: *const u8,
    pub content_len: usize,
    pub headers: *const Header,
    pub num_headers: u16,
    pub info_flags: u16,
    pub reserved0: u32,
    pub prng: [u64; 2],
    pub reserved1: [u64; 2],
}

#[repr(C)]
pub(crate) struct ResponseHeader {
    pub field: *const u8,
    pub len: usize,
}

#[repr(C)]
pub(crate) struct ResponseExtra {
    pub headers: *const ResponseHeader,
    pub num_headers: u16,
    pub cached: bool,
    pub ttl: f32,
    pub grace: f32,
    pub keep: f32,
    pub reserved: [u64; 4],
}

#[repr(C)]
pub(crate) struct StreamPart {
    pub data: *const u8,
    pub len: usize,
}

#[repr(C)]
pub(crate) struct Fetch {
    pub url: *const u8,
    pub url_len: u32,
    pub method_len: u32,
    pub method: *const u8,
    pub headers: *const ResponseHeader,
    pub num_headers: u16,
    pub follow: bool,
    pub unverified: bool,
    pub own: bool,
    pub body: *const u8,
    pub body_len: usize,
    pub reserved: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct FetchHead {
    pub status: u32,
    pub headers_len: u32,
    pub content_len: i64,
}

#[repr(C)]
pub(crate) struct RegexSubst {
    size: usize,
    subject: *const u8,
    len: usize,
    with: *const u8,
    with_len: usize,
    out: *mut u8,
    room: usize,
}

impl RegexSubst {
    pub(crate) fn new(subject: &[u8], with: &[u8], out: &mut [u8]) -> Self {
        RegexSubst {
            size: size_of::<Self>(),
            subject: subject.as_ptr(),
            len: subject.len(),
            with: with.as_ptr(),
            with_len: with.len(),
            out: out.as_mut_ptr(),
            room: out.len(),
        }
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<*const c_void>() == 8);
    assert!(size_of::<Header>() == 16);
    assert!(offset_of!(Header, colon) == 8 && offset_of!(Header, len) == 12);
    assert!(size_of::<Buffer>() == 16);
    assert!(size_of::<Request>() == 104);
    assert!(offset_of!(Request, method_len) == 32 && offset_of!(Request, content_type_len) == 38);
    assert!(offset_of!(Request, content) == 40 && offset_of!(Request, headers) == 56);
    assert!(offset_of!(Request, num_headers) == 64 && offset_of!(Request, info_flags) == 66);
    assert!(offset_of!(Request, prng) == 72);
    assert!(size_of::<ResponseHeader>() == 16);
    assert!(size_of::<Fetch>() == 64 && size_of::<FetchHead>() == 16);
    assert!(offset_of!(Fetch, method) == 16 && offset_of!(Fetch, num_headers) == 32);
    assert!(offset_of!(Fetch, own) == 36 && offset_of!(Fetch, body) == 40);
    assert!(size_of::<ResponseExtra>() == 56);
    assert!(offset_of!(ResponseExtra, cached) == 10 && offset_of!(ResponseExtra, ttl) == 12);
    assert!(size_of::<RegexSubst>() == 56);
    assert!(offset_of!(ResponseExtra, keep) == 20 && offset_of!(ResponseExtra, reserved) == 24);
};
