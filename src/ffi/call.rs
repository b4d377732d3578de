//! How a call of VCL's is run: errors and panics become VCL's.

use std::ptr;
use std::time::Duration;

use varnish::ffi::{VCL_BOOL, VCL_STRING, cache_param, vmod_priv, vrt_ctx};
use varnish::vcl::{Buffer, Ctx, LogTag, VclError};

use crate::director::Director;
use crate::tenants::name;
use crate::varnish::panics::guard;
use crate::varnish::{fetch, logging};
use crate::vdi::Registered;

/// Runs what VCL has called. An error fails the VCL task (at load: the load) with its text, and so does a panic.
pub fn run<T>(ctx: *const vrt_ctx, body: impl FnOnce() -> Result<T, VclError>) -> Option<T> {
    match guard(body).flatten() {
        Ok(value) => Some(value),
        Err(error) => {
            // SAFETY: varnishd called us with it.
            let _ = guard(|| unsafe { Ctx::from_ptr(ctx) }.fail(error));
            None
        }
    }
}

/// The same, for a function that says whether something is so. What failed is not.
pub fn is_so(ctx: *const vrt_ctx, body: impl FnOnce() -> Result<bool, VclError>) -> VCL_BOOL {
    VCL_BOOL(run(ctx, body).unwrap_or(false).into())
}

/// The director of the VCL whose private pointer this is.
///
/// SAFETY: `vcl` is the PRIV_VCL that varnishd called us with; the reference is not used after the call.
pub unsafe fn registered<'a>(vcl: *mut vmod_priv) -> Result<&'a Registered<Director>, VclError> {
    // SAFETY: event() has put it there at load, and it stays until the VCL is discarded.
    unsafe {
        vcl.as_ref()
            .and_then(|vcl| vcl.get_ref::<Registered<Director>>())
    }
    .ok_or_else(|| "kvm: not loaded".into())
}

/// A call with a tenant's name, which may be a client's choice, for a message.
pub fn call(function: &str, tenant: &[u8]) -> String {
    let tenant = &tenant[..tenant.len().min(name::MAX_LEN)];
    format!("{function}(\"{}\")", tenant.escape_ascii())
}

/// Says why a call gives false: in the log, and at VCL load in what the load prints, should the VCL fail for it.
///
/// SAFETY: varnishd called us with `ctx`.
pub unsafe fn said(ctx: *const vrt_ctx, call: &str, done: Result<(), String>) -> bool {
    let Err(reason) = done else { return true };
    // SAFETY: as the caller promises.
    let mut ctx = unsafe { Ctx::from_ptr(ctx) };
    for line in reason.lines() {
        let text = format!("kvm.{call}: {line}");
        for record in logging::records(text.as_bytes()) {
            ctx.log(LogTag::VclError, &record);
        }
        if !ctx.raw.msg.is_null() {
            // A failed write shows as an incomplete message.
            let line = logging::escape(text.as_bytes()) + "\n";
            let _ = Buffer::from_ptr(ctx.raw.msg).write(&line);
        }
    }
    false
}

/// A call without a value, whose failure is VCL's.
pub fn failing(function: &str, tenant: &[u8], done: Result<(), String>) -> Result<(), VclError> {
    Ok(done.map_err(|why| format!("kvm.{}: {why}", call(function, tenant)))?)
}

/// How long a VCL's load may wait for others in all. varnishd's manager kills a child that says nothing for cli_timeout; half of that
/// is for all else.
pub fn load_waits() -> Duration {
    /// Where varnishd does not say.
    const USUAL: Duration = Duration::from_secs(60);
    // SAFETY: varnishd sets the pointer once, before it loads anything, and changes the number in one piece.
    let timeout = unsafe { cache_param.as_ref() }.map(|params| params.cli_timeout.0);
    let timeout = timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    timeout.unwrap_or(USUAL) / 2
}

/// What VCL gets for a string that is not there.
pub const NO_STRING: VCL_STRING = VCL_STRING(ptr::null());

/// Text for VCL, in the workspace of the task. What does not fit is an error, and leaves the workspace as it was: varnishd fails what is
/// done with one that has overflowed.
pub fn string(ctx: &mut Ctx<'_>, text: &[u8]) -> Result<VCL_STRING, VclError> {
    let (len, room) = (text.len(), fetch::room(ctx, text.len()));
    if len > room {
        return Err(format!("{len} bytes do not fit in the workspace ({room} left)").into());
    }
    let copy = ctx.ws.copy_bytes_with_null(text)?;
    Ok(VCL_STRING(copy.b))
}

/// The same for what a call gives. Where there is none, or it does not fit, the log says why, and VCL gets none.
///
/// SAFETY: varnishd called us with `ctx`.
pub unsafe fn string_or_none(
    ctx: *const vrt_ctx,
    call: &str,
    text: Result<Vec<u8>, String>,
) -> VCL_STRING {
    // SAFETY: as the caller promises.
    unsafe {
        let mut context = Ctx::from_ptr(ctx);
        let text =
            text.and_then(|text| string(&mut context, &text).map_err(|error| error.to_string()));
        text.unwrap_or_else(|why| {
            said(ctx, call, Err(why));
            NO_STRING
        })
    }
}
