//! A body, as Varnish reads it; and the head that goes before it.

use std::borrow::Cow;

use varnish::vcl::{Ctx, VclError, VclResponse};

/// What is left of a body.
pub struct Body {
    bytes: Cow<'static, [u8]>,
    position: usize,
}

impl Body {
    /// Sets status and headers, and gives the body.
    pub fn respond(
        ctx: &mut Ctx,
        content_type: &str,
        bytes: Cow<'static, [u8]>,
    ) -> Result<Self, VclError> {
        let response = ctx.http_beresp.as_mut().ok_or("not a backend fetch")?;
        response.set_status(200);
        response.set_proto("HTTP/1.1")?;
        response.set_header("Content-Type", content_type)?;
        response.set_header("Content-Length", &bytes.len().to_string())?;
        Ok(Self { bytes, position: 0 })
    }
}

impl VclResponse for Body {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, VclError> {
        let rest = &self.bytes[self.position..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.position += len;
        Ok(len)
    }

    fn len(&self) -> Option<usize> {
        Some(self.bytes.len())
    }
}
