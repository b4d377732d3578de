//! Functions about programs by the names that the tinykvm VMOD has for them.

use varnish::ffi::{VCL_BOOL, VCL_INT, VCL_STRING, vmod_priv, vrt_ctx};

use super::arguments::bytes;
use super::call::{call, failing, registered, run, said};

/// `kvm.start()`
pub unsafe extern "C" fn start(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    program: VCL_STRING,
    is_async: VCL_BOOL,
    debug: VCL_BOOL,
) {
    run(ctx, || {
        // SAFETY: as in library().
        unsafe {
            let name = bytes(program).unwrap_or_default();
            let done = match debug.0 {
                0 => registered(vcl)?.director().start(name, is_async.0 == 0),
                _ => Err(
                    "a start can't be debugged, but requests can: kvm.vm_debug_backend()".into(),
                ),
            };
            failing("start", name, done)
        }
    });
}

/// `kvm.invalidate_programs()`
pub unsafe extern "C" fn invalidate_programs(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    pattern: VCL_STRING,
) -> VCL_INT {
    let done = run(ctx, || {
        // SAFETY: as in library().
        unsafe {
            let pattern = bytes(pattern).unwrap_or_default();
            match registered(vcl)?.director().invalidate(pattern) {
                Ok(begun) => Ok(begun as i64),
                Err(why) => {
                    said(ctx, &call("invalidate_programs", pattern), Err(why));
                    Ok(0)
                }
            }
        }
    });
    VCL_INT(done.unwrap_or(0))
}
