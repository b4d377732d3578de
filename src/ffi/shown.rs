//! What operators are shown of the tenants.

use varnish::ffi::{VCL_STRING, vmod_priv, vrt_ctx};
use varnish::vcl::{Ctx, VclError};

use super::arguments::bytes;
use super::call::{registered, run};
use crate::varnish::fetch::Fetch;
use crate::varnish::synthetic::Synthetic;

/// `kvm.synth_stats()`
pub unsafe extern "C" fn synth_stats(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    form: VCL_STRING,
    pattern: VCL_STRING,
) {
    run(ctx, || {
        // SAFETY: VCL calls us with a context and arguments as in vmod.vcc, whose strings live as long as the call.
        let (director, mut context, form, pattern) = unsafe {
            let director = registered(vcl)?.director();
            let form = bytes(form).unwrap_or_default();
            let pattern = bytes(pattern).unwrap_or_default();
            (director, Ctx::from_ptr(ctx), form, pattern)
        };
        let mut body = Synthetic::of("synth_stats", &context)?;
        let shown = director.shown(form, pattern);
        let shown = shown.map_err(|why| VclError::new(format!("kvm.synth_stats(): {why}")))?;
        let mut left = &*shown.text;
        body.fill(left.len(), |buf| {
            let (now, later) = left.split_at(left.len().min(buf.len()));
            buf[..now.len()].copy_from_slice(now);
            left = later;
            now.len()
        })?;
        let headers = [
            ("Content-Type", shown.content_type.as_bytes()),
            ("Cache-Control", b"no-store"),
        ];
        Fetch::of_client(&mut context)?.add_headers(headers.into_iter())
    });
}
