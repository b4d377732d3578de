//! Functions that read descriptions of tenants in JSON.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::json;
use varnish::ffi::{VCL_BOOL, VCL_STRING, vmod_priv, vrt_ctx};
use varnish::vcl::{Ctx, VclError};

use super::arguments::bytes;
use super::call::{call, failing, is_so, registered, run, said};
use crate::tenants::document::{self, Described, Warnings};
use crate::tenants::entries::BadDocument;
use crate::tenants::{remote, words};

/// A document's tenants.
type Read = Result<Vec<Described>, BadDocument>;

/// Adds a document's tenants to a VCL's, for a call of VCL's.
///
/// SAFETY: `ctx` and `vcl` are what varnishd called us with.
unsafe fn add(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    call: &str,
    strict: VCL_BOOL,
    read: impl FnOnce(&mut Warnings) -> Read,
) -> Result<Result<(), String>, VclError> {
    // SAFETY: as the caller promises.
    let (director, ctx) = unsafe { (registered(vcl)?.director(), Ctx::from_ptr(ctx)) };
    Ok(director.add_document(&ctx, call, strict.0 != 0, read))
}

/// The same, where what can't be added fails the load.
///
/// SAFETY: as in add().
unsafe fn add_or_fail(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    call: &str,
    strict: VCL_BOOL,
    read: impl FnOnce(&mut Warnings) -> Read,
) -> Result<(), VclError> {
    // SAFETY: as the caller promises.
    let added = unsafe { add(ctx, vcl, call, strict, read)? };
    Ok(added.map_err(|bad| format!("kvm.{call}: {bad}"))?)
}

/// `kvm.load_tenants()`
pub unsafe extern "C" fn load_tenants(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    file: VCL_STRING,
    strict: VCL_BOOL,
) -> VCL_BOOL {
    is_so(ctx, || {
        // SAFETY: VCL calls us with a context and arguments as in vmod.vcc, whose strings live as long as the call.
        unsafe {
            let file = Path::new(OsStr::from_bytes(bytes(file).unwrap_or_default()));
            let call = format!("load_tenants({file:?})");
            let added = add(ctx, vcl, &call, strict, |warnings| {
                document::load(file, warnings)
            });
            Ok(said(ctx, &call, added?))
        }
    })
}

/// `kvm.fetch_tenants()`
pub unsafe extern "C" fn fetch_tenants(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    url: VCL_STRING,
    strict: VCL_BOOL,
) -> VCL_BOOL {
    is_so(ctx, || {
        // SAFETY: as in load_tenants().
        unsafe {
            let url = String::from_utf8_lossy(bytes(url).unwrap_or_default());
            let call = format!("fetch_tenants({:?})", remote::shown(&url));
            let waits = registered(vcl)?.director().waits();
            let added = add(ctx, vcl, &call, strict, |warnings| {
                document::fetch(&url, waits, warnings)
            });
            Ok(said(ctx, &call, added?))
        }
    })
}

/// `kvm.embed_tenants()`
pub unsafe extern "C" fn embed_tenants(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    json: VCL_STRING,
    strict: VCL_BOOL,
) {
    run(ctx, || {
        // SAFETY: as in load_tenants().
        unsafe {
            let json = bytes(json).unwrap_or_default();
            add_or_fail(ctx, vcl, "embed_tenants()", strict, |warnings| {
                document::parse(json, warnings)
            })
        }
    });
}

/// `kvm.library()`
pub unsafe extern "C" fn library(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    uri: VCL_STRING,
    strict: VCL_BOOL,
) {
    run(ctx, || {
        // SAFETY: as in load_tenants().
        unsafe {
            let uri = String::from_utf8_lossy(bytes(uri).unwrap_or_default());
            let call = format!("library({:?})", remote::shown(&uri));
            let waits = registered(vcl)?.director().waits();
            add_or_fail(ctx, vcl, &call, strict, |warnings| {
                document::library(&uri, waits, warnings)
            })
        }
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
        // SAFETY: as in load_tenants().
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
        // SAFETY: as in load_tenants().
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
