//! Directors as varnishd calls them: one that finds the tenant of a fetch, and those that answer.
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
//! 6. `backend.list -j` is valid JSON.
//! 7. Status and headers are checked before varnishd's assertions see them (fetch.rs).
//! 8. What several threads use is `Sync`, as the compiler checks below.
//! 9. If workspace runs out, the response object is dropped; there it leaks, and the fork with it.
//!
//! And what is not cached leaves an object that says so (`open`), without which Varnish fetches a URL for one client at
//! a time.

use std::ffi::{CStr, c_int, c_void};
use std::panic::{self, AssertUnwindSafe};
use std::time::SystemTime;
use std::{mem, ptr, slice};

use varnish::ffi::{self, VCL_BACKEND, VCL_BOOL, VCL_IP, VCL_TIME, VfpStatus};
use varnish::vcl::{Buffer, Ctx, LogTag, VclError, VclResponse};

use crate::fetch::response::Response;
use crate::varnish::fetch::Fetch;
use crate::varnish::logging;

/// Why fetches fail that an operator has made fail.
pub const SICK: &str = "made sick by an operator (backend.set_health)";

/// Runs what C has called, and lets no panic out. panics.rs has logged it.
pub fn guard<T>(body: impl FnOnce() -> T) -> Result<T, VclError> {
    panic::catch_unwind(AssertUnwindSafe(body))
        .map_err(|_| "kvm: internal error, logged separately".into())
}

/// A director, which fetch threads use at the same time.
pub trait Vdi: Sync + 'static {
    /// For varnishd: [`resolving`] or [`answering`].
    const METHODS: &'static Methods;

    /// What `backend.list` shows: the columns Probe and Health with a tab between them; with `details`, lines that begin
    /// with a line end each. In JSON, an array `[good, of, health]` as Varnish's own backends have, or any value.
    fn report(&self, details: bool, json: bool) -> String;
}

/// A director that finds another one for a fetch.
pub trait Resolve: Vdi {
    /// The other one, or why there is none.
    fn resolve(&self, ctx: &mut Ctx<'_>) -> Result<VCL_BACKEND, VclError>;
}

/// A director that answers fetches.
pub trait Answer: Vdi {
    /// Whether it can be used, unless an operator says otherwise.
    fn is_healthy(&self) -> bool;

    /// When that changed last.
    fn changed(&self) -> Option<SystemTime>;

    /// Answers a fetch. An error is a failed fetch.
    fn answer(&self, fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError>;

    /// Takes notice that the body of a response was not the gzip that its header said. The fetch has failed.
    fn is_no_gzip(&self, fetch: &mut Fetch<'_, '_>);

    /// Why fetches fail while it is not healthy.
    fn complaint(&self) -> VclError;
}

/// Responses are finished by other threads than they were begun by.
const _: fn() = || {
    fn handed_on<T: Send>() {}
    handed_on::<Response>();
};

/// A director that varnishd knows.
pub struct Registered<D: Vdi> {
    backend: VCL_BACKEND,
    director: Box<D>,
}

// SAFETY: the backend is varnishd's, whose functions for it may be called by any thread.
unsafe impl<D: Vdi + Send> Send for Registered<D> {}
// SAFETY: as above, and a director is Sync.
unsafe impl<D: Vdi> Sync for Registered<D> {}

impl<D: Vdi> Registered<D> {
    /// Makes `director` a backend of this name in the VCL that `ctx` is about.
    pub fn new(ctx: &Ctx<'_>, name: &CStr, director: D) -> Result<Self, VclError> {
        let director = Box::new(director);
        let private: *const D = &raw const *director;
        // SAFETY: the methods are static, and the Box keeps its address until drop() has taken the director back. The
        // format takes a C string, which is copied.
        let backend = unsafe {
            ffi::VRT_AddDirector(
                ctx.raw,
                &raw const D::METHODS.0,
                private.cast_mut().cast(),
                c"%s".as_ptr(),
                name.as_ptr(),
            )
        };
        if backend.0.is_null() {
            return Err("VRT_AddDirector() failed, the VCL cools down".into());
        }
        Ok(Self { backend, director })
    }

    /// The director.
    pub fn director(&self) -> &D {
        &self.director
    }

    /// As C names it. Valid as long as the VCL is.
    pub fn backend(&self) -> VCL_BACKEND {
        self.backend
    }

    /// Whether it can be used.
    pub fn is_healthy(&self, ctx: &Ctx<'_>) -> bool {
        is_healthy(ctx, self.backend)
    }
}

impl<D: Vdi> Drop for Registered<D> {
    fn drop(&mut self) {
        // SAFETY: it is ours since VRT_AddDirector(). A VCL is discarded when no fetch uses it any more, so nobody calls
        // the director after this.
        unsafe { ffi::VRT_DelDirector(&raw mut self.backend) };
    }
}

/// Whether a backend can be used: an operator's word counts (`backend.set_health`), else its own. varnishd leaves it to
/// directors to ask.
pub fn is_healthy(ctx: &Ctx<'_>, backend: VCL_BACKEND) -> bool {
    // SAFETY: both are varnishd's, and it need not say since when.
    unsafe { ffi::VRT_Healthy(ctx.raw, backend, ptr::null_mut()) }.0 != 0
}

/// Static, so shared by threads.
pub struct Methods(ffi::vdi_methods);
// SAFETY: it is never changed, and its pointers are to statics.
unsafe impl Sync for Methods {}

/// The methods of a director that finds another one.
pub const fn resolving<D: Resolve>() -> Methods {
    Methods(ffi::vdi_methods {
        resolve: Some(resolve::<D>),
        list: Some(list::<D>),
        ..NO_METHODS
    })
}

/// The methods of a director that answers.
pub const fn answering<D: Answer>() -> Methods {
    Methods(ffi::vdi_methods {
        gethdrs: Some(gethdrs::<D>),
        finish: Some(finish::<D>),
        getip: Some(getip),
        healthy: Some(healthy::<D>),
        list: Some(list_answering::<D>),
        ..NO_METHODS
    })
}

const NO_METHODS: ffi::vdi_methods = ffi::vdi_methods {
    magic: ffi::VDI_METHODS_MAGIC,
    type_: c"kvm".as_ptr(),
    http1pipe: None,
    healthy: None,
    resolve: None,
    gethdrs: None,
    getip: None,
    finish: None,
    event: None,
    release: None,
    destroy: None,
    panic: None,
    list: None,
};

/// The director that varnishd hands back to us.
///
/// SAFETY: `backend` is one that `Registered::new` made of a `D`, and is still registered.
unsafe fn director<'a, D: Vdi>(backend: VCL_BACKEND) -> &'a D {
    // SAFETY: as the caller promises.
    unsafe { &*(*backend.0).priv_.cast_const().cast::<D>() }
}

/// Logs why a fetch fails.
///
/// SAFETY: varnishd called us with `ctx`.
unsafe fn log_error(ctx: *const ffi::vrt_ctx, error: &VclError) {
    let _ = guard(|| {
        // SAFETY: as the caller promises.
        let mut ctx = unsafe { Ctx::from_ptr(ctx) };
        for record in logging::records(error.as_str().as_bytes()) {
            ctx.log(LogTag::FetchError, record);
        }
    });
}

/// Finds the backend of a fetch. NULL is a failed fetch.
unsafe extern "C" fn resolve<D: Resolve>(
    ctx: *const ffi::vrt_ctx,
    backend: VCL_BACKEND,
) -> VCL_BACKEND {
    let result = guard(|| {
        // SAFETY: varnishd calls us with a context, and with our backend.
        let (mut context, director) = unsafe { (Ctx::from_ptr(ctx), director::<D>(backend)) };
        if !is_healthy(&context, backend) {
            return Err(format!("kvm: {SICK}").into());
        }
        director.resolve(&mut context)
    });
    result.flatten().unwrap_or_else(|error| {
        // SAFETY: as above.
        unsafe { log_error(ctx, &error) };
        VCL_BACKEND(ptr::null())
    })
}

/// Whether it can be used, where no operator says so.
unsafe extern "C" fn healthy<D: Answer>(
    _ctx: *const ffi::vrt_ctx,
    backend: VCL_BACKEND,
    changed: *mut VCL_TIME,
) -> VCL_BOOL {
    let healthy = guard(|| {
        // SAFETY: varnishd calls us with our backend, and with NULL or room for a time.
        unsafe {
            let director = director::<D>(backend);
            if let (Some(room), Some(changed)) = (changed.as_mut(), director.changed()) {
                *room = time(changed);
            }
            director.is_healthy()
        }
    });
    VCL_BOOL(healthy.unwrap_or(false).into())
}

fn time(time: SystemTime) -> VCL_TIME {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    VCL_TIME(ffi::vtim_real(
        since.map_or(0.0, |since| since.as_secs_f64()),
    ))
}

/// Begins a fetch: answers the request, and fills in beresp. Not 0 is a failed fetch.
unsafe extern "C" fn gethdrs<D: Answer>(ctx: *const ffi::vrt_ctx, backend: VCL_BACKEND) -> c_int {
    let result = guard(|| {
        // SAFETY: varnishd calls us with a context of this fetch, and with our backend.
        let (mut context, director) = unsafe { (Ctx::from_ptr(ctx), director::<D>(backend)) };
        if !is_healthy(&context, backend) {
            return Err(director.complaint());
        }
        let response = director.answer(&mut Fetch::new(&mut context)?)?;
        attach(&mut context, response)
    });
    match result.flatten() {
        Ok(()) => 0,
        Err(error) => {
            // SAFETY: as above.
            unsafe { log_error(ctx, &error) };
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
    fini: Some(close),
    priv1: ptr::null(),
});

/// Bytes that Varnish takes ahead of what the client has read, of a response that is streamed and not cached, unless
/// `transit_buffer` says how many. A client that does not read holds twice as much of Varnish's storage, and two threads.
const TRANSIT_BUFFER: i64 = 64 << 10;

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
        if is_plain && response.len().is_none_or(|len| len <= ahead) {
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
    // SAFETY: varnishd calls us with what attach() has pushed and open() has been called with, before finish(). The other
    // processor is in the same workspace, which is as long-lived as the fetch.
    unsafe {
        let unpacker = ptr::with_exposed_provenance::<ffi::vfp_entry>((*entry).priv2 as usize);
        let failed = |entry: &ffi::vfp_entry| entry.closed == VfpStatus::Error;
        if unpacker.as_ref().is_some_and(failed)
            && !failed(&*entry)
            && let Some(response) = (*entry).priv1.cast::<Response>().as_mut()
        {
            response.no_gzip = true;
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

/// Ends a fetch: the response is dropped, and with it the fork is free again.
unsafe extern "C" fn finish<D: Answer>(ctx: *const ffi::vrt_ctx, backend: VCL_BACKEND) {
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
    // A panic's message is all there is to say about it.
    let _ = guard(|| {
        let no_gzip = response.no_gzip;
        drop(response);
        if no_gzip {
            // SAFETY: varnishd calls us with a context of this fetch, and with our backend.
            let (mut ctx, director) = unsafe { (Ctx::from_ptr(ctx), director::<D>(backend)) };
            if let Ok(mut fetch) = Fetch::new(&mut ctx) {
                director.is_no_gzip(&mut fetch);
            }
        }
    });
}

/// `beresp.backend.ip`.
unsafe extern "C" fn getip(_ctx: *const ffi::vrt_ctx, _backend: VCL_BACKEND) -> VCL_IP {
    // SAFETY: varnishd sets it once, before it has threads.
    VCL_IP(unsafe { ffi::bogo_ip })
}

/// `backend.list`.
unsafe extern "C" fn list<D: Vdi>(
    _ctx: *const ffi::vrt_ctx,
    backend: VCL_BACKEND,
    vsb: *mut ffi::vsb,
    details: c_int,
    json: c_int,
) {
    let _ = guard(|| {
        // SAFETY: varnishd calls us with our backend.
        let mut text = unsafe { director::<D>(backend) }.report(details != 0, json != 0);
        if details != 0 && json != 0 {
            // varnishd goes on with the next member.
            text.push_str(",\n");
        }
        // A failed write shows as an incomplete list; there is nothing to do about it.
        let _ = Buffer::from_ptr(vsb).write(&text);
    });
}

/// The same, with the column Last change, which varnishd shows next.
unsafe extern "C" fn list_answering<D: Answer>(
    ctx: *const ffi::vrt_ctx,
    backend: VCL_BACKEND,
    vsb: *mut ffi::vsb,
    details: c_int,
    json: c_int,
) {
    let _ = guard(|| {
        // SAFETY: varnishd calls us with our backend. What an operator has changed since stays: only a later time counts.
        unsafe {
            if let Some(changed) = director::<D>(backend).changed() {
                ffi::VRT_SetChanged(backend, time(changed));
            }
        }
    });
    // SAFETY: what varnishd called us with.
    unsafe { list::<D>(ctx, backend, vsb, details, json) };
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
