//! The ceiling: a backend that has its answer ready, or has it after a time of computing.

use std::time::{Duration, Instant};

use varnish::vcl::{Ctx, VclBackend, VclError};

use crate::body::Body;

/// Answers as the program hello does.
pub struct Fixed {
    /// How long it computes first: what a guest's round trip would take, and nothing else of it.
    pub busy: Duration,
}

impl VclBackend<Body> for Fixed {
    fn get_response(&self, ctx: &mut Ctx) -> Result<Option<Body>, VclError> {
        let start = Instant::now();
        while start.elapsed() < self.busy {
            std::hint::spin_loop();
        }
        Body::respond(ctx, "text/plain", b"Hello, World!\n".into()).map(Some)
    }
}
