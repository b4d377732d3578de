//! What VCL calls functions with, in Rust's terms: strings, and the settings of `kvm.tenant()`.

use std::ffi::CStr;

use varnish::ffi::{VCL_BOOL, VCL_BYTES, VCL_DURATION, VCL_INT, VCL_STRING};

use super::vcc_if::{arg_vmod_kvm_server, arg_vmod_kvm_tenant};
use crate::order::Sent;
use crate::tenants::kinds::{Allowed, List};
use crate::tenants::settings::Given;
use crate::tenants::table::settings;

/// The key that VCL was sent; an unset header is an empty one.
///
/// SAFETY: VCL called us with the string.
pub unsafe fn sent(key: VCL_STRING) -> Sent {
    // SAFETY: as the caller promises.
    Sent::new(unsafe { bytes(key) }.unwrap_or_default())
}

/// A VCL string, copied; an unset header is an empty one.
///
/// SAFETY: VCL called us with the string.
pub unsafe fn text(string: VCL_STRING) -> Vec<u8> {
    // SAFETY: as the caller promises.
    unsafe { bytes(string) }.unwrap_or_default().to_vec()
}

/// A VCL string, copied. `None` for an empty one, and for an unset header.
///
/// SAFETY: VCL called us with the string.
pub unsafe fn given(string: VCL_STRING) -> Option<Vec<u8>> {
    // SAFETY: as the caller promises.
    Some(unsafe { text(string) }).filter(|text| !text.is_empty())
}

/// A VCL string's bytes. `None` for an unset header and the like.
///
/// SAFETY: VCL called us with the string; the bytes are not used after the call.
pub unsafe fn bytes<'a>(string: VCL_STRING) -> Option<&'a [u8]> {
    // SAFETY: VCL strings are NULL or NUL-terminated.
    (!string.0.is_null()).then(|| unsafe { CStr::from_ptr(string.0) }.to_bytes())
}

/// An argument of VCL's as settings are given.
trait FromVcl<A> {
    /// SAFETY: VCL called us with the argument; what is made of it is not used after the call.
    unsafe fn from_vcl(argument: &A) -> Self;
}

impl FromVcl<VCL_DURATION> for f64 {
    unsafe fn from_vcl(argument: &VCL_DURATION) -> Self {
        argument.0.0
    }
}

impl FromVcl<VCL_BYTES> for i64 {
    unsafe fn from_vcl(argument: &VCL_BYTES) -> Self {
        argument.0
    }
}

impl FromVcl<VCL_INT> for i64 {
    unsafe fn from_vcl(argument: &VCL_INT) -> Self {
        argument.0
    }
}

impl FromVcl<VCL_BOOL> for bool {
    unsafe fn from_vcl(argument: &VCL_BOOL) -> Self {
        argument.0 != 0
    }
}

impl FromVcl<VCL_STRING> for &[u8] {
    unsafe fn from_vcl(argument: &VCL_STRING) -> Self {
        // SAFETY: as the caller promises.
        unsafe { bytes(VCL_STRING(argument.0)) }.unwrap_or_default()
    }
}

impl FromVcl<VCL_STRING> for List<'_> {
    unsafe fn from_vcl(argument: &VCL_STRING) -> Self {
        // SAFETY: as the caller promises.
        Self::Words(unsafe { FromVcl::from_vcl(argument) })
    }
}

impl FromVcl<VCL_STRING> for Allowed<'_> {
    unsafe fn from_vcl(argument: &VCL_STRING) -> Self {
        // SAFETY: as the caller promises.
        Self::Words(unsafe { FromVcl::from_vcl(argument) })
    }
}

macro_rules! arguments {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident $(as $in_json:literal)?: $kind:ident $(($bounds:expr))? = $default:expr;
    )*) => {
        arguments!(@of given_program, arg_vmod_kvm_tenant, false, $($name)*);
        arguments!(@of given_server, arg_vmod_kvm_server, true, $($name)*);
    };
    (@of $given:ident, $arguments:ty, $server:literal, $($name:ident)*) => {
        /// The settings that VCL called `kvm.tenant()` or `kvm.server()` with. Each that it did not give has its default.
        ///
        /// SAFETY: VCL called us with the arguments; what is made of them is not used after the call.
        pub unsafe fn $given<'a>(args: &$arguments) -> Given<'a> {
            // SAFETY: as the caller promises.
            unsafe {
                Given {
                    name: FromVcl::from_vcl(&args.name),
                    path: FromVcl::from_vcl(&args.path),
                    server: $server,
                    $($name: FromVcl::from_vcl(&args.$name),)*
                }
            }
        }
    };
}
settings!(arguments);
