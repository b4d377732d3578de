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
//! And what is not cached leaves an object that says so (processor.rs), without which Varnish fetches a URL for one client at
//! a time.

use std::ffi::{CStr, c_int};
use std::os::fd::BorrowedFd;
use std::time::SystemTime;
use std::{mem, ptr, slice};

use varnish::ffi::{self, VCL_BACKEND, VCL_BOOL, VCL_IP, VCL_TIME};
use varnish::vcl::{Buffer, Ctx, LogTag, VclError};

use crate::fetch::pipe::Client;
use crate::fetch::response::{Late, Response};
use crate::varnish::fetch::Fetch;
use crate::varnish::logging;
use crate::varnish::panics::guard;

mod processor;

/// Why fetches fail that an operator has made fail.
pub const SICK: &str = "made sick by an operator (backend.set_health)";

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

    /// Has a client and the program say to each other what they like, until one of the two leaves. An error is one that the client
    /// was told nothing of.
    fn pipe(&self, fetch: &mut Fetch<'_, '_>, client: Client<'_>) -> Result<(), VclError>;

    /// Takes notice that a fetch has failed after the response's head was there.
    fn has_failed_late(&self, fetch: &mut Fetch<'_, '_>, why: &Late);

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
        http1pipe: Some(http1pipe::<D>),
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

/// Serves a client by `return (pipe)`. Says why its connection is closed then.
unsafe extern "C" fn http1pipe<D: Answer>(
    ctx: *const ffi::vrt_ctx,
    backend: VCL_BACKEND,
) -> ffi::stream_close_t {
    let result = guard(|| {
        // SAFETY: varnishd calls us with a context of this request, with what is to be its fetch, and with our backend. The client's
        // connection is the request's until we return.
        let (mut context, director, client) = unsafe {
            let client = client(ctx).ok_or("kvm: no client")?;
            (Ctx::from_ptr(ctx), director::<D>(backend), client)
        };
        if !is_healthy(&context, backend) {
            return Err(director.complaint());
        }
        director.pipe(&mut Fetch::new(&mut context)?, client)
    });
    match result.flatten() {
        // SAFETY: varnishd's reasons are constants.
        Ok(()) => unsafe { ffi::SC_TX_PIPE.as_ptr() },
        // SAFETY: as above.
        Err(error) => unsafe {
            log_error(ctx, &error);
            ffi::SC_TX_ERROR.as_ptr()
        },
    }
}

/// The client of a request that is piped.
///
/// SAFETY: varnishd called us with `ctx`, and has the client's connection open for longer than `'a`.
unsafe fn client<'a>(ctx: *const ffi::vrt_ctx) -> Option<Client<'a>> {
    // SAFETY: as the caller promises. What came after the request's head is between the two pointers, or they are null.
    unsafe {
        let req = (*ctx).req.as_ref()?;
        let (session, conn) = (req.sp.as_ref()?, req.htc.as_ref()?);
        let (from, to) = (conn.pipeline_b.cast::<u8>(), conn.pipeline_e.cast::<u8>());
        let begun = match from.is_null() {
            true => Vec::new(),
            false => slice::from_raw_parts(from, to.offset_from_unsigned(from)).to_vec(),
        };
        (session.fd >= 0).then(|| Client {
            fd: BorrowedFd::borrow_raw(session.fd),
            begun,
        })
    }
}

/// Hands the response to varnishd, which reads its body with `pull` and gives it back with `finish`.
fn attach(ctx: &mut Ctx<'_>, response: Response) -> Result<(), VclError> {
    let no_workspace = || VclError::from("kvm: out of workspace (workspace_backend)");
    let announced = response.announced();
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
        conn.content_length = announced.map_or(-1, |len| len as isize);
        conn.body_status = match announced {
            Some(0) => ffi::BS_NONE.as_ptr(),
            Some(_) => ffi::BS_LENGTH.as_ptr(),
            None => ffi::BS_CHUNKED.as_ptr(),
        };
        // Also without a body: open() is called for every response.
        let entry = ffi::VFP_Push(bo.vfc, processor::body())
            .as_mut()
            .ok_or_else(no_workspace)?;
        conn.priv_ = Box::into_raw(Box::new(response)).cast();
        entry.priv1 = conn.priv_;
        bo.htc = conn;
    }
    Ok(())
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
        let mut response = response;
        let late = response.late.take();
        drop(response);
        if let Some(late) = late {
            // SAFETY: varnishd calls us with a context of this fetch, and with our backend.
            let (mut ctx, director) = unsafe { (Ctx::from_ptr(ctx), director::<D>(backend)) };
            if let Ok(mut fetch) = Fetch::new(&mut ctx) {
                director.has_failed_late(&mut fetch, &late);
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
