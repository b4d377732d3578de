//! A program as WebAssembly: compiled when the VCL is loaded, a fresh instance for each request.

use varnish::vcl::{Ctx, VclBackend, VclError};

use crate::body::Body;

/// A compiled program.
#[cfg(feature = "wasm")]
pub struct Module(forkvm_bench_wasm::Program);

#[cfg(feature = "wasm")]
impl Module {
    /// Compiles it.
    pub fn load(path: &str) -> Result<Self, VclError> {
        let program = forkvm_bench_wasm::Program::load(path.as_ref());
        program
            .map(Self)
            .map_err(|error| VclError::new(format!("{error:#}")))
    }
}

#[cfg(feature = "wasm")]
impl VclBackend<Body> for Module {
    fn get_response(&self, ctx: &mut Ctx) -> Result<Option<Body>, VclError> {
        let request = ctx.http_bereq.as_ref().ok_or("not a backend fetch")?;
        let url = request.url().ok_or("no URL")?;
        let answer = self
            .0
            .instance()
            .and_then(|mut instance| instance.answer(url.as_ref()));
        let answer = answer.map_err(|error| VclError::new(format!("{error:#}")))?;
        Body::respond(ctx, &answer.content_type, answer.body.into()).map(Some)
    }
}

/// Stands for it where this VMOD was built without wasmtime.
#[cfg(not(feature = "wasm"))]
pub struct Module;

#[cfg(not(feature = "wasm"))]
impl Module {
    /// Refuses.
    pub fn load(_path: &str) -> Result<Self, VclError> {
        Err("built without the feature wasm".into())
    }
}

#[cfg(not(feature = "wasm"))]
impl VclBackend<Body> for Module {
    fn get_response(&self, _ctx: &mut Ctx) -> Result<Option<Body>, VclError> {
        Err("built without the feature wasm".into())
    }
}
