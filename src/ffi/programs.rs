//! Functions about programs by the names that the tinykvm VMOD has for them.

use serde_json::json;
use varnish::ffi::{VCL_BOOL, VCL_INT, VCL_STRING, vmod_priv, vrt_ctx};
use varnish::vcl::{Ctx, VclError};

use super::arguments::bytes;
use super::call::{call, registered, run, said};
use crate::tenants::{document, words};

/// `kvm.library()`
pub unsafe extern "C" fn library(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    uri: VCL_STRING,
    strict: VCL_BOOL,
) {
    run(ctx, || {
        // SAFETY: VCL calls us with a context and arguments as in vmod.vcc, whose strings live as long as the call.
        let (uri, director, ctx) = unsafe {
            let uri = String::from_utf8_lossy(bytes(uri).unwrap_or_default());
            (uri, registered(vcl)?.director(), Ctx::from_ptr(ctx))
        };
        let call = format!("library({uri:?})");
        let added = director.add_document(&ctx, &call, strict.0 != 0, |warnings| {
            document::library(&uri, warnings)
        });
        Ok(added.map_err(|bad| format!("kvm.{call}: {bad}"))?)
    });
}

/// `kvm.configure()`
pub unsafe extern "C" fn configure(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    program: VCL_STRING,
    json: VCL_STRING,
) {
    run(ctx, || {
        // SAFETY: as in library().
        unsafe {
            let name = bytes(program).unwrap_or_default();
            let json = bytes(json).unwrap_or_default();
            let director = registered(vcl)?.director();
            let done = director.configure(&Ctx::from_ptr(ctx), name, json);
            failing("configure", name, done)
        }
    });
}

/// `kvm.main_arguments()`
pub unsafe extern "C" fn main_arguments(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    program: VCL_STRING,
    arguments: VCL_STRING,
) {
    run(ctx, || {
        // SAFETY: as in library().
        unsafe {
            let name = bytes(program).unwrap_or_default();
            let arguments = str::from_utf8(bytes(arguments).unwrap_or_default())?;
            let words = words::split(arguments)
                .map_err(|bad| format!("kvm.{}: {bad}", call("main_arguments", name)))?;
            let json = json!({ "main_arguments": words }).to_string();
            let director = registered(vcl)?.director();
            let done = director.configure(&Ctx::from_ptr(ctx), name, json.as_bytes());
            failing("main_arguments", name, done)
        }
    });
}

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

/// A call without a value, whose failure is VCL's.
fn failing(function: &str, name: &[u8], done: Result<(), String>) -> Result<(), VclError> {
    Ok(done.map_err(|why| format!("kvm.{}: {why}", call(function, name)))?)
}
