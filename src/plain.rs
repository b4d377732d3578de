//! Responses of our own: they tell the client what it can do, and the log the rest.
#![forbid(unsafe_code)]

use varnish::vcl::VclError;

use crate::fetch::Fetch;
use crate::response::Response;

/// The program failed.
pub fn failed(fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
    plain(fetch, 500, "The service failed.\n", None)
}

/// There is no fork, or no memory, for the request just now.
pub fn busy(fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
    plain(fetch, 503, "The service is busy, try again.\n", Some("1"))
}

/// The request's body is longer than allowed.
pub fn too_large(fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
    plain(fetch, 413, "The request body is too large.\n", None)
}

fn plain(
    fetch: &mut Fetch<'_, '_>,
    status: u16,
    text: &'static str,
    retry_after: Option<&str>,
) -> Result<Response, VclError> {
    fetch.set_status(status)?;
    fetch.add_header("Content-Type", b"text/plain; charset=utf-8")?;
    if let Some(seconds) = retry_after {
        fetch.add_header("Retry-After", seconds.as_bytes())?;
    }
    fetch.set_uncacheable();
    fetch.add_header("Content-Length", text.len().to_string().as_bytes())?;
    Ok(if fetch.method() == "HEAD" {
        Response::without_body()
    } else {
        Response::text(text)
    })
}
