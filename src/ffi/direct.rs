//! Functions that a program answers at once, on the thread that runs VCL: there is no fetch.

use varnish::ffi::{VCL_BOOL, VCL_INT, VCL_STRING, vmod_priv, vrt_ctx};
use varnish::vcl::{Ctx, VclError};

use super::arguments::{bytes, given, text};
use super::call::{call, registered, run, said, string};
use crate::backend;
use crate::fetch::chain::{End, LONGEST};
use crate::fetch::serve::Extent;
use crate::fetch::{synth as synthetic, text as answer};
use crate::order::{Chain, Link};
use crate::varnish::fetch::{self, Fetch};
use crate::varnish::synthetic::Synthetic;

/// `kvm.chain()`
pub unsafe extern "C" fn chain(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    program: VCL_STRING,
    arg: VCL_STRING,
    config: VCL_STRING,
    error_threshold: VCL_INT,
) {
    run(ctx, || {
        // SAFETY: VCL calls us with a context and arguments as in vmod.vcc, whose strings live as long as the call.
        let (name, director, mut ctx, url, arg) = unsafe {
            let name = bytes(program).unwrap_or_default();
            let director = registered(vcl)?.director();
            (name, director, Ctx::from_ptr(ctx), given(arg), text(config))
        };
        let error_threshold = threshold("chain", error_threshold)?;
        let mut chain: Chain = fetch::taken(&mut ctx).unwrap_or_default();
        if chain.0.len() >= LONGEST {
            return Err(format!("kvm.chain(): a chain has at most {LONGEST} programs").into());
        }
        chain.0.push(Link {
            tenant: director.usable(&ctx, name),
            url,
            arg,
            error_threshold,
        });
        fetch::keep(chain, &mut ctx)
    });
}

/// `kvm.to_string()`
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn to_string(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    program: VCL_STRING,
    url: VCL_STRING,
    arg: VCL_STRING,
    on_error: VCL_STRING,
    error_threshold: VCL_INT,
    // A fork is always put back as it was.
    _soft_reset: VCL_BOOL,
) -> VCL_STRING {
    let done = run(ctx, || {
        // SAFETY: as in chain().
        let (name, director, mut context, url, arg) = unsafe {
            let name = bytes(VCL_STRING(program.0)).unwrap_or_default();
            let director = registered(vcl)?.director();
            (name, director, Ctx::from_ptr(ctx), given(url), text(arg))
        };
        let threshold = threshold("to_string", error_threshold)?;
        let chain = fetch::taken(&mut context).unwrap_or_default();
        let done = director.usable(&context, name).and_then(|tenant| {
            let mut fetch = Fetch::of_task(&mut context).map_err(|error| error.to_string())?;
            let end = End {
                tenant: &tenant,
                url: url.unwrap_or_else(|| fetch.url()),
                arg,
                whole: true,
                extent: Extent::Whole,
            };
            answer::of(&mut fetch, &chain, end, threshold)
        });
        match done {
            Ok(Some(text)) => Ok(Some(string(&mut context, &text)?)),
            Ok(None) => Ok(None),
            // SAFETY: varnishd called us with it.
            Err(why) => unsafe {
                refuse(ctx, "to_string", name, why);
                Ok(None)
            },
        }
    });
    done.flatten().unwrap_or(on_error)
}

/// `kvm.synth()`
pub unsafe extern "C" fn synth(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    status: VCL_INT,
    tenant: VCL_STRING,
    url: VCL_STRING,
    arg: VCL_STRING,
    _soft_reset: VCL_BOOL,
) -> VCL_INT {
    let done = run(ctx, || {
        // SAFETY: as in chain().
        let (name, director, mut context, url, arg) = unsafe {
            let name = bytes(tenant).unwrap_or_default();
            let director = registered(vcl)?.director();
            (name, director, Ctx::from_ptr(ctx), text(url), text(arg))
        };
        let status = given_status(status.0)?;
        let mut body = Synthetic::of("synth", &context)?;
        let chain = fetch::taken(&mut context).unwrap_or_default();
        let done = director.usable(&context, name).and_then(|tenant| {
            let end = End {
                tenant: &tenant,
                url,
                arg,
                whole: false,
                extent: Extent::Whole,
            };
            let mut fetch = Fetch::of_client(&mut context).map_err(|error| error.to_string())?;
            synthetic::answer(&mut fetch, &mut body, &chain, end, status)
        });
        match done {
            Ok(answered) => Ok(answered.map_or(0, i64::from)),
            // SAFETY: varnishd called us with it.
            Err(why) => unsafe {
                refuse(ctx, "synth", name, why);
                Ok(0)
            },
        }
    });
    VCL_INT(done.unwrap_or(0))
}

/// Says why a tenant could not be asked.
///
/// SAFETY: varnishd called us with `ctx`.
unsafe fn refuse(ctx: *const vrt_ctx, function: &str, name: &[u8], why: String) {
    backend::count_refused();
    // SAFETY: as the caller promises.
    unsafe { said(ctx, &call(function, name), Err(why)) };
}

/// The status that a response is to have. 0 is the program's own.
fn given_status(status: i64) -> Result<Option<u16>, VclError> {
    match u16::try_from(status) {
        Ok(0) => Ok(None),
        Ok(status @ 200..=599) => Ok(Some(status)),
        _ => Err(format!("kvm.synth(): status {status} is not 200 to 599, or 0").into()),
    }
}

/// From which status on an answer is an error. 600, and there is none.
fn threshold(function: &str, status: VCL_INT) -> Result<u16, VclError> {
    match u16::try_from(status.0) {
        Ok(status @ 200..=600) => Ok(status),
        _ => {
            let status = status.0;
            Err(format!("kvm.{function}(): error_threshold {status} is not 200 to 600").into())
        }
    }
}
