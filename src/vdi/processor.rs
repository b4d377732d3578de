//! The fetch processor that reads a response's body into Varnish's storage.

use std::ffi::{CStr, c_int, c_void};
use std::{mem, ptr, slice};

use varnish::ffi::{self, VfpStatus};
use varnish::vcl::VclError;

use crate::fetch::response::{Late, Response};
use crate::varnish::panics::guard;

/// Static, so shared by threads.
struct Processor(ffi::vfp);
// SAFETY: it is never changed, and its pointers are to statics.
unsafe impl Sync for Processor {}

/// The fetch processor that reads a response's body. It does not own it, finish() does.
static BODY: Processor = Processor(ffi::vfp {
    name: c"kvm".as_ptr(),
    init: Some(open),
    pull: Some(pull),
    fini: Some(close),
    priv1: ptr::null(),
});

/// For varnishd, whose `priv1` is to be the response.
pub fn body() -> *const ffi::vfp {
    &raw const BODY.0
}

/// Bytes that Varnish takes ahead of what the client has read, of a response that is streamed and not cached, unless
/// `transit_buffer` says how many. A client that does not read holds twice as much of Varnish's storage, and two threads.
const TRANSIT_BUFFER: i64 = 64 << 10;
/// How much of Varnish's storage is made ready at a time: it is in the processor's caches still when the body is copied to it.
const PIECE: usize = 16 << 10;

/// Called when VCL has had its say, and before anything is stored.
///
/// An uncacheable response needs a lifetime: for that long, Varnish remembers that requests for this URL need not wait
/// for each other. It has none if its status gets none by default, or `default_ttl` is 0; and the built-in VCL does not
/// help, which looks no further at what is marked uncacheable already, if a site's own VCL lets it run at all.
unsafe extern "C" fn open(
    ctx: *const ffi::vrt_ctx,
    fetch: *mut ffi::vfp_ctx,
    entry: *mut ffi::vfp_entry,
) -> VfpStatus {
    const NOT_REMEMBERED: u32 = ffi::oc_flags_OC_F_PRIVATE | ffi::oc_flags_OC_F_HFP;
    // SAFETY: varnishd calls us with a context of this fetch, which has its object until it is over.
    unsafe {
        let Some(bo) = (*ctx).bo.as_ref() else {
            return VfpStatus::Error;
        };
        let Some(object) = bo.fetch_objcore.as_ref() else {
            return VfpStatus::Error;
        };
        // A pass leaves no object, and a hit-for-pass has the lifetime that VCL gave it.
        let remembered = bo.uncacheable() != 0 && u32::from(object.flags) & NOT_REMEMBERED == 0;
        if remembered && object.ttl <= 0.0 {
            ffi::VRT_l_beresp_ttl(ctx, ffi::VRT_r_param_uncacheable_ttl(ctx));
        }
        // For close(), which finds this one only.
        (*entry).priv2 = unpacker(fetch).expose_provenance() as isize;
        let ahead = bound_ahead(ctx, bo);
        let Some(response) = (*entry).priv1.cast::<Response>().as_mut() else {
            return VfpStatus::Error;
        };
        let is_plain = bo.vfp_filter_list.is_null() || *bo.vfp_filter_list == 0;
        if is_plain && response.left().is_none_or(|len| len <= ahead) {
            return VfpStatus::Ok;
        }
        // The client's pace, or that of what packs or unpacks the body, is not to be the fork's.
        match guard(|| response.keep()).flatten() {
            Ok(()) => VfpStatus::Ok,
            Err(error) => failed(fetch, &error),
        }
    }
}

/// Has Varnish hold no more than a buffer of what a client has still to read, if the response is streamed and not cached, and
/// returns how much it takes in one go. Else its storage would have all of it at once, and no limit of a tenant's would
/// count it.
///
/// SAFETY: `ctx` is the context of a fetch whose VCL has had its say, and `bo` is its own.
unsafe fn bound_ahead(ctx: *const ffi::vrt_ctx, bo: &ffi::busyobj) -> usize {
    // SAFETY: as the caller promises. It is 0 for what is cached or not streamed.
    let given = unsafe { ffi::VRT_r_beresp_transit_buffer(ctx) }.0;
    if given > 0 {
        return usize::try_from(given).unwrap_or(usize::MAX);
    }
    // Nobody reads what is fetched in the background, so nobody would make room in the buffer.
    if bo.uncacheable() == 0 || bo.do_stream() == 0 || bo.is_bgfetch() != 0 {
        return usize::MAX;
    }
    // SAFETY: as above. Nothing has been fetched yet.
    unsafe { ffi::VRT_l_beresp_transit_buffer(ctx, ffi::VCL_BYTES(TRANSIT_BUFFER)) };
    TRANSIT_BUFFER as usize
}

/// The processor of a fetch that unpacks the body, or tests whether it can be. NULL if there is none.
///
/// SAFETY: varnishd has called us with `fetch`.
unsafe fn unpacker(fetch: *const ffi::vfp_ctx) -> *const ffi::vfp_entry {
    // SAFETY: as the caller promises. The list is of this fetch's processors; their names are static.
    unsafe {
        let mut next = (*fetch).vfp.vtqh_first.cast_const();
        while let Some(entry) = next.as_ref() {
            let name = CStr::from_ptr((*entry.vfp).name).to_bytes();
            if matches!(name, b"testgunzip" | b"gunzip" | b"esi_gzip") {
                break;
            }
            next = entry.list.vtqe_next;
        }
        next
    }
}

/// Called when a fetch has all of the body, or has failed. Whether that is since the body is not the gzip that its header
/// says: then what unpacks it has failed, and we have not.
unsafe extern "C" fn close(_fetch: *mut ffi::vfp_ctx, entry: *mut ffi::vfp_entry) {
    // SAFETY: varnishd calls us with what is pushed with a response, and open() has been called with, before finish(). The other
    // processor is in the same workspace, which is as long-lived as the fetch.
    unsafe {
        let unpacker = ptr::with_exposed_provenance::<ffi::vfp_entry>((*entry).priv2 as usize);
        let failed = |entry: &ffi::vfp_entry| entry.closed == VfpStatus::Error;
        if unpacker.as_ref().is_some_and(failed)
            && !failed(&*entry)
            && let Some(response) = (*entry).priv1.cast::<Response>().as_mut()
        {
            response.late = Some(Late::NoGzip);
        }
    }
}

/// Fills a piece of Varnish's storage.
unsafe extern "C" fn pull(
    fetch: *mut ffi::vfp_ctx,
    entry: *mut ffi::vfp_entry,
    to: *mut c_void,
    len: *mut isize,
) -> VfpStatus {
    // SAFETY: varnishd calls us with what is pushed with a response, and only until finish(); on one thread at a time.
    let (response, room) = unsafe {
        let room = usize::try_from(mem::take(&mut *len)).unwrap_or(0);
        ((*entry).priv1.cast::<Response>().as_mut(), room)
    };
    let to = to.cast::<u8>();
    // SAFETY: as above; a fetch has its object until it is over. Another thread may set the flag meanwhile.
    let is_wanted = || unsafe {
        let object = (*fetch).oc;
        object.is_null()
            || u32::from((&raw const (*object).flags).read_volatile()) & ffi::oc_flags_OC_F_CANCEL
                == 0
    };
    let result = guard(|| {
        let response = response.ok_or("kvm: no response")?;
        let room = if to.is_null() { 0 } else { room };
        let comes = response.left().is_none();
        let room = room.min(response.left().unwrap_or(room));
        let mut read = 0;
        let mut at_end = false;
        while read < room {
            let piece = PIECE.min(room - read);
            // SAFETY: varnishd calls us with that much storage there, which is nobody else's meanwhile. Nothing has been
            // written to it yet, so it is made bytes first.
            let piece = unsafe {
                let to = to.add(read);
                to.write_bytes(0, piece);
                slice::from_raw_parts_mut(to, piece)
            };
            match response.read(piece, is_wanted)? {
                0 => {
                    at_end = true;
                    break;
                }
                more => read += more,
            }
            // The client gets what there is before there is more.
            if comes {
                break;
            }
        }
        Ok((read, at_end || response.left() == Some(0)))
    });
    match result.flatten() {
        Ok((read, at_end)) => {
            // SAFETY: as above.
            unsafe { *len = read as isize };
            if at_end {
                VfpStatus::End
            } else {
                VfpStatus::Ok
            }
        }
        // SAFETY: as above.
        Err(error) => unsafe { failed(fetch, &error) },
    }
}

/// Fails a fetch. Without this call it would count as complete.
///
/// SAFETY: varnishd has called us with `fetch`.
unsafe fn failed(fetch: *mut ffi::vfp_ctx, error: &VclError) -> VfpStatus {
    let text = error.as_str();
    // SAFETY: as the caller promises; the format takes a length (an int) and that many bytes.
    unsafe {
        ffi::VFP_Error(
            fetch,
            c"kvm: %.*s".as_ptr(),
            text.len() as c_int,
            text.as_ptr(),
        )
    }
}
