//! The director as varnishd calls it.
//!
//! This takes the place of `varnish::vcl::Backend` (crate 0.8.0), whose callbacks have defects that would cost a
//! tenant its forks, a client its data, or everybody the cache. What is done differently here:
//!
//! 1. An error while the body is read fails the fetch; there it ends as a success, truncated and cached. So does a
//!    body that is shorter than announced.
//! 2. No panic reaches C, where it would end the child and with it the cache.
//! 3. There is a response object for every response, also without a body, and `finish` finds it or NULL, never what
//!    was in the memory before.
//! 4. Content-Length is a header that director.rs sets; the crate's `len()` does not.
//! 5. `beresp.backend.ip` is 0.0.0.0, as Varnish says for what has no address. (The crate's `getip` checks the wrong
//!    magic number, which ends the child; without a `getip` it is NULL, which fails the VCL.)
//! 6. `backend.list -j` is valid JSON (report.rs).
//! 7. Status and headers are checked before varnishd's assertions see them (fetch.rs).
//! 8. What several threads use is `Sync`, as the compiler checks below.
//! 9. If workspace runs out, the response object is dropped; there it leaks, and the fork with it.
//!
//! And what is not cached leaves an object that says so (`open`), without which Varnish fetches a URL for one client at
//! a time.

use std::ffi::{c_int, c_void};
use std::panic::{self, AssertUnwindSafe};
use std::{mem, ptr, slice};

use varnish::ffi::{self, VCL_BACKEND, VCL_IP, VfpStatus};
use varnish::vcl::{Buffer, Ctx, LogTag, VclBackend, VclError, VclResponse};

use crate::director::Director;
use crate::fetch::response::Response;

/// Runs what C has called, and lets no panic out. panics.rs has logged it.
pub fn guard<T>(body: impl FnOnce() -> T) -> Result<T, VclError> {
    panic::catch_unwind(AssertUnwindSafe(body))
        .map_err(|_| "kvm: internal error, logged separately".into())
}

/// A director that varnishd knows.
pub struct Registered {
    backend: VCL_BACKEND,
    director: Box<Director>,
}

/// Fetch threads use the director at the same time.
const _: fn() = || {
    fn shared<T: Sync>() {}
    fn handed_on<T: Send>() {}
    shared::<Director>();
    handed_on::<Response>();
};

impl Registered {
    /// Makes `director` the backend `kvm` of the VCL that `ctx` is about.
    pub fn new(ctx: &mut Ctx<'_>, director: Director) -> Result<Self, VclError> {
        let director = Box::new(director);
        let private: *const Director = &raw const *director;
        // SAFETY: the methods are static, and the Box keeps its address until drop() has taken the director back.
        let backend = unsafe {
            ffi::VRT_AddDirector(
                ctx.raw,
                &raw const METHODS.0,
                private.cast_mut().cast(),
                c"kvm".as_ptr(),
            )
        };
        if backend.0.is_null() {
            return Err("VRT_AddDirector() failed, the VCL cools down".into());
        }
        Ok(Self { backend, director })
    }

    /// The director.
    pub fn director(&self) -> &Director {
        &self.director
    }

    /// As C names it. Valid as long as the VCL is.
    pub fn backend(&self) -> VCL_BACKEND {
        VCL_BACKEND(self.backend.0)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: it is ours since VRT_AddDirector(). A VCL is discarded when no fetch uses it any more, so nobody calls
        // the director after this.
        unsafe { ffi::VRT_DelDirector(&raw mut self.backend) };
    }
}

/// Static, so shared by threads.
struct Methods(ffi::vdi_methods);
// SAFETY: it is never changed, and its pointers are to statics.
unsafe impl Sync for Methods {}

static METHODS: Methods = Methods(ffi::vdi_methods {
    magic: ffi::VDI_METHODS_MAGIC,
    type_: c"kvm".as_ptr(),
    gethdrs: Some(gethdrs),
    finish: Some(finish),
    list: Some(list),
    http1pipe: None,
    healthy: None,
    resolve: None,
    getip: Some(getip),
    event: None,
    release: None,
    destroy: None,
    panic: None,
});

/// The director that varnishd hands back to us.
///
/// SAFETY: `backend` is one that `Registered::new` made, and is still registered.
unsafe fn director<'a>(backend: VCL_BACKEND) -> &'a Director {
    // SAFETY: as the caller promises.
    unsafe { &*(*backend.0).priv_.cast_const().cast::<Director>() }
}

/// Begins a fetch: answers the request, and fills in beresp. Not 0 is a failed fetch.
unsafe extern "C" fn gethdrs(ctx: *const ffi::vrt_ctx, backend: VCL_BACKEND) -> c_int {
    let result = guard(|| {
        // SAFETY: varnishd calls us with a context of this fetch, and with our backend.
        let (mut ctx, director) = unsafe { (Ctx::from_ptr(ctx), director(backend)) };
        let response = director
            .get_response(&mut ctx)?
            .unwrap_or_else(Response::without_body);
        attach(&mut ctx, response)
    });
    match result.flatten() {
        Ok(()) => 0,
        Err(error) => {
            let _ = guard(|| {
                // SAFETY: as above.
                let mut ctx = unsafe { Ctx::from_ptr(ctx) };
                for record in crate::varnish::logging::records(error.as_str().as_bytes()) {
                    ctx.log(LogTag::FetchError, record);
                }
            });
            1
        }
    }
}

/// Hands the response to varnishd, which reads its body with `pull` and gives it back with `finish`.
fn attach(ctx: &mut Ctx<'_>, response: Response) -> Result<(), VclError> {
    let no_workspace = || VclError::from("kvm: out of workspace (workspace_backend)");
    let len = response.len().unwrap_or(0);
    // SAFETY: the fetch's busyobj; everything is allocated in its workspace, which is as long-lived as the fetch. The
    // workspace is not initialised, so the structures are zeroed (all their fields may be). Nothing is handed over before
    // all of it is there.
    unsafe {
        let bo = ctx.raw.bo.as_mut().ok_or("kvm: not a backend fetch")?;
        let conn = ffi::WS_Alloc(bo.ws.as_mut_ptr(), size_of::<ffi::http_conn>() as u32)
            .cast::<ffi::http_conn>();
        if conn.is_null() {
            return Err(no_workspace());
        }
        ptr::write_bytes(conn, 0, 1);
        let conn = &mut *conn;
        conn.magic = ffi::HTTP_CONN_MAGIC;
        conn.doclose = ffi::SC_REM_CLOSE.as_ptr();
        conn.content_length = len as isize;
        conn.body_status = if len == 0 {
            ffi::BS_NONE.as_ptr()
        } else {
            ffi::BS_LENGTH.as_ptr()
        };
        // Also without a body: open() is called for every response.
        let entry = ffi::VFP_Push(bo.vfc, &raw const BODY.0)
            .as_mut()
            .ok_or_else(no_workspace)?;
        conn.priv_ = Box::into_raw(Box::new(response)).cast();
        entry.priv1 = conn.priv_;
        bo.htc = conn;
    }
    Ok(())
}

/// Static, so shared by threads.
struct Processor(ffi::vfp);
// SAFETY: it is never changed, and its pointers are to statics.
unsafe impl Sync for Processor {}

/// The fetch processor that reads a response's body. It does not own it, finish() does.
static BODY: Processor = Processor(ffi::vfp {
    name: c"kvm".as_ptr(),
    init: Some(open),
    pull: Some(pull),
    fini: None,
    priv1: ptr::null(),
});

/// Called when VCL has had its say, and before anything is stored.
///
/// An uncacheable response needs a lifetime: for that long, Varnish remembers that requests for this URL need not wait
/// for each other. It has none if its status gets none by default, or `default_ttl` is 0; and the built-in VCL does not
/// help, which looks no further at what is marked uncacheable already, if a site's own VCL lets it run at all.
unsafe extern "C" fn open(
    ctx: *const ffi::vrt_ctx,
    _fetch: *mut ffi::vfp_ctx,
    _entry: *mut ffi::vfp_entry,
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
    }
    VfpStatus::Ok
}

/// Fills a piece of Varnish's storage.
unsafe extern "C" fn pull(
    fetch: *mut ffi::vfp_ctx,
    entry: *mut ffi::vfp_entry,
    to: *mut c_void,
    len: *mut isize,
) -> VfpStatus {
    // SAFETY: varnishd calls us with what attach() has pushed, with `len` bytes of storage at `to`, and only until
    // finish(); on one thread at a time.
    let (response, room) = unsafe {
        let room = usize::try_from(*len).unwrap_or(0);
        *len = 0;
        let response = (*entry).priv1.cast::<Response>().as_mut();
        (
            response,
            if to.is_null() {
                &mut [][..]
            } else {
                slice::from_raw_parts_mut(to.cast::<u8>(), room)
            },
        )
    };
    let result = guard(|| {
        let response = response.ok_or("kvm: no response")?;
        let read = if room.is_empty() {
            0
        } else {
            response.read(room)?
        };
        Ok((read, response.len() == Some(0)))
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
        Err(error) => {
            let text = error.as_str();
            // SAFETY: the format takes a length (an int) and that many bytes. Without this call the fetch would count as
            // complete.
            unsafe {
                ffi::VFP_Error(
                    fetch,
                    c"kvm: %.*s".as_ptr(),
                    text.len() as c_int,
                    text.as_ptr(),
                )
            }
        }
    }
}

/// Ends a fetch: the response is dropped, and with it the fork is free again.
unsafe extern "C" fn finish(ctx: *const ffi::vrt_ctx, _backend: VCL_BACKEND) {
    // SAFETY: varnishd calls this once for a gethdrs() that returned 0. htc is what attach() has made, or NULL after a
    // rollback.
    let response = unsafe {
        let Some(bo) = (*ctx).bo.as_mut() else { return };
        let Some(conn) = mem::replace(&mut bo.htc, ptr::null_mut()).as_mut() else {
            return;
        };
        let response = mem::replace(&mut conn.priv_, ptr::null_mut()).cast::<Response>();
        if response.is_null() {
            return;
        }
        Box::from_raw(response)
    };
    // The panic's message is all there is to say about it.
    let _ = guard(|| drop(response));
}

/// `beresp.backend.ip`.
unsafe extern "C" fn getip(_ctx: *const ffi::vrt_ctx, _backend: VCL_BACKEND) -> VCL_IP {
    // SAFETY: varnishd sets it once, before it has threads.
    VCL_IP(unsafe { ffi::bogo_ip })
}

/// `backend.list`.
unsafe extern "C" fn list(
    ctx: *const ffi::vrt_ctx,
    backend: VCL_BACKEND,
    vsb: *mut ffi::vsb,
    details: c_int,
    json: c_int,
) {
    let _ = guard(|| {
        // SAFETY: varnishd calls us with a context, our backend, and the buffer for the answer.
        let (mut ctx, director) = unsafe { (Ctx::from_ptr(ctx), director(backend)) };
        let mut vsb = Buffer::from_ptr(vsb);
        match (json != 0, details != 0) {
            (true, true) => director.report_details_json(&mut ctx, &mut vsb),
            (true, false) => director.report_json(&mut ctx, &mut vsb),
            (false, true) => director.report_details(&mut ctx, &mut vsb),
            (false, false) => director.report(&mut ctx, &mut vsb),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::varnish::panics;

    /// On less stack than varnishd's threads have (`thread_pool_stack`, 80 KiB).
    #[test]
    fn a_panic_does_not_get_out() {
        panics::install_hook();
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        let guarded = thread.spawn(|| {
            let message = guard(|| panic!("of a test")).unwrap_err().to_string();
            (message, guard(|| 1).ok())
        });
        let (message, after) = guarded.unwrap().join().unwrap();
        assert!(message.contains("internal error"), "{message}");
        assert_eq!(after, Some(1));
    }
}
