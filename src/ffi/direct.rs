//! Functions that a program answers at once, on the thread that runs VCL: there is no fetch.

use varnish::ffi::{VCL_BOOL, VCL_INT, VCL_STRING, vmod_priv, vrt_ctx};
use varnish::vcl::{Ctx, VclError};

use super::arguments::{bytes, text};
use super::call::{call, registered, run, said};
use crate::backend;
use crate::fetch::synth as answer;
use crate::varnish::fetch::Fetch;
use crate::varnish::synthetic::Synthetic;

/// `kvm.synth()`
pub unsafe extern "C" fn synth(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    status: VCL_INT,
    tenant: VCL_STRING,
    url: VCL_STRING,
    arg: VCL_STRING,
    // A fork is always put back as it was.
    _soft_reset: VCL_BOOL,
) -> VCL_INT {
    let done = run(ctx, || {
        // SAFETY: VCL calls us with a context and arguments as in vmod.vcc, whose strings live as long as the call.
        let (name, asked, director, mut context) = unsafe {
            let asked = (text(url), text(arg));
            let name = bytes(tenant).unwrap_or_default();
            (name, asked, registered(vcl)?.director(), Ctx::from_ptr(ctx))
        };
        let status = given_status(status.0)?;
        let mut body = Synthetic::of(&context)?;
        let tenant = match director.usable(&context, name) {
            Ok(tenant) => tenant,
            Err(why) => {
                backend::count_refused();
                // SAFETY: as above.
                unsafe { said(ctx, &call("synth", name), Err(why)) };
                return Ok(0);
            }
        };
        let mut fetch = Fetch::of_client(&mut context)?;
        let answered = answer::answer(&mut fetch, &mut body, &tenant, asked, status);
        Ok(answered.map_or(0, i64::from))
    });
    VCL_INT(done.unwrap_or(0))
}

/// The status that a response is to have. 0 is the program's own.
fn given_status(status: i64) -> Result<Option<u16>, VclError> {
    match u16::try_from(status) {
        Ok(0) => Ok(None),
        Ok(status @ 200..=599) => Ok(Some(status)),
        _ => Err(format!("kvm.synth(): status {status} is not 200 to 599, or 0").into()),
    }
}
