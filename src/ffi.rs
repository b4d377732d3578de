//! The VMOD's interface to Varnish: the functions behind vmod.vcc, and the table that varnishd finds them by.
//!
//! Every function here is called by C. Each converts its arguments, calls safe Rust, and lets no panic out.

use std::ptr;

use varnish::ffi::{VCL_BACKEND, VCL_BOOL, VCL_STRING, VclEvent, vmod_data, vmod_priv, vrt_ctx};

/// What vmodtool.py and bindgen made of vmod.vcc.
#[expect(non_camel_case_types, non_snake_case, non_upper_case_globals, missing_docs)]
mod vcc_if {
    include!(concat!(env!("OUT_DIR"), "/vcc_if.rs"));
}
use vcc_if::{Vmod_vmod_kvm_Func, arg_vmod_kvm_backend, arg_vmod_kvm_tenant};

static FUNCTIONS: Vmod_vmod_kvm_Func = Vmod_vmod_kvm_Func {
    _event: Some(event),
    f_tenant: Some(tenant),
    f_backend: Some(backend),
    f_tenant_is_ready: Some(tenant_is_ready),
    f_version: Some(version),
};

/// What varnishd's `import` looks up by name. build.rs says why it is not vmodtool.py's own.
#[expect(non_upper_case_globals)]
#[unsafe(no_mangle)]
pub static Vmod_kvm_Data: vmod_data = vmod_data {
    // `$ABI strict`: both zero, and `abi` decides.
    vrt_major: 0,
    vrt_minor: 0,
    file_id: vcc_if::FILE_ID.as_ptr(),
    name: c"kvm".as_ptr(),
    func_name: c"Vmod_vmod_kvm_Func".as_ptr(),
    func: (&raw const FUNCTIONS).cast(),
    func_len: size_of::<Vmod_vmod_kvm_Func>() as i32,
    proto: ptr::null(),
    json: vcc_if::Vmod_Json.as_ptr(),
    abi: varnish::ffi::VMOD_ABI_Version.as_ptr(),
    vcs: vcc_if::VCS.as_ptr(),
    version: VERSION.as_ptr(),
};
const VERSION: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) { Ok(v) => v, Err(_) => c"" };

unsafe extern "C" fn event(_ctx: *const vrt_ctx, _priv: *mut vmod_priv, _event: VclEvent) -> i32 { 0 }
unsafe extern "C" fn tenant(_ctx: *const vrt_ctx, _args: *mut arg_vmod_kvm_tenant) {}
unsafe extern "C" fn backend(_ctx: *const vrt_ctx, _args: *mut arg_vmod_kvm_backend) -> VCL_BACKEND { VCL_BACKEND(ptr::null()) }
unsafe extern "C" fn tenant_is_ready(_ctx: *const vrt_ctx, _priv: *mut vmod_priv, _name: VCL_STRING) -> VCL_BOOL { VCL_BOOL(0) }
unsafe extern "C" fn version(_ctx: *const vrt_ctx) -> VCL_STRING { VCL_STRING(VERSION.as_ptr()) }
