//! A VMOD for the benchmark, with two backends inside Varnish's process: `native`, the least a Rust backend can cost,
//! and `wasm`, a program as WebAssembly in a fresh instance for each request.
// The VCL's names are the types' and the constructors'.
#![allow(non_camel_case_types, clippy::self_named_constructors)]

mod body;
mod fixed;
mod module;

use varnish::vcl::Backend;

/// A backend that answers without a program.
pub struct native(Backend<fixed::Fixed, body::Body>);

/// A backend that runs WebAssembly.
pub struct wasm(Backend<module::Module, body::Body>);

/// The benchmark's backends.
#[varnish::vmod]
mod bench {
    use std::time::Duration;

    use varnish::ffi::VCL_BACKEND;
    use varnish::vcl::{Backend, Ctx, VclError};

    use super::{fixed, module, native, wasm};

    impl native {
        /// A backend that answers without a program, after so many microseconds of computing.
        pub fn native(
            ctx: &mut Ctx,
            #[vcl_name] name: &str,
            busy_us: f64,
        ) -> Result<Self, VclError> {
            let busy = Duration::try_from_secs_f64(busy_us * 1e-6)
                .map_err(|error| VclError::new(error.to_string()))?;
            let fixed = fixed::Fixed { busy };
            Ok(Self(Backend::new(ctx, "native", name, fixed, false)?))
        }

        /// The backend.
        ///
        /// # Safety
        /// It lives as long as the object, that is, the VCL.
        pub unsafe fn backend(&self) -> VCL_BACKEND {
            // SAFETY: the object, and so the backend, lives until the VCL is discarded.
            unsafe { self.0.as_ref().vcl_ptr() }
        }
    }

    impl wasm {
        /// A backend that runs the module at `path`.
        pub fn wasm(ctx: &mut Ctx, #[vcl_name] name: &str, path: &str) -> Result<Self, VclError> {
            let module = module::Module::load(path)?;
            Ok(Self(Backend::new(ctx, "wasm", name, module, false)?))
        }

        /// The backend.
        ///
        /// # Safety
        /// It lives as long as the object, that is, the VCL.
        pub unsafe fn backend(&self) -> VCL_BACKEND {
            // SAFETY: the object, and so the backend, lives until the VCL is discarded.
            unsafe { self.0.as_ref().vcl_ptr() }
        }
    }
}
