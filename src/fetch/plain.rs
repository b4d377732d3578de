//! Responses of our own: they tell the client what it can do, and the log the rest.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use varnish::vcl::VclError;

use crate::fetch::response::Response;
use crate::varnish::fetch::Fetch;

/// What clients are told where the program failed.
pub const FAILED: &str = "The service failed.\n";
/// Where there is no fork, or no memory, just now.
pub const BUSY: &str = "The service is busy, try again.\n";
/// Where the request is none of HTTP/1.1.
pub const BAD_REQUEST: &str = "The request is not valid.\n";

/// Whether a response with this status has a body (RFC 9110, 15.3.5 and 15.4.5).
pub fn has_body(status: u16) -> bool {
    !matches!(status, 204 | 304)
}

/// The program failed.
pub fn failed(fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
    plain(fetch, 500, FAILED, None)
}

/// The request is none of HTTP/1.1.
pub fn bad_request(fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
    plain(fetch, 400, BAD_REQUEST, None)
}

/// There is no fork, or no memory, for the request just now.
pub fn busy(fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
    plain(fetch, 503, BUSY, Some("1"))
}

/// The request's body is longer than allowed.
pub fn too_large(fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
    plain(fetch, 413, "The request body is too large.\n", None)
}

/// The request's body takes too long to come.
pub fn too_slow(fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
    plain(fetch, 408, "The request body came too slowly.\n", None)
}

fn plain(
    fetch: &mut Fetch<'_, '_>,
    status: u16,
    text: &'static str,
    retry_after: Option<&str>,
) -> Result<Response, VclError> {
    let headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Retry-After", retry_after.unwrap_or_default()),
    ];
    respond(fetch, status, &headers, Cow::Borrowed(text.as_bytes()))
}

/// A response with this body, and with those of these headers that have a value.
pub fn respond(
    fetch: &mut Fetch<'_, '_>,
    status: u16,
    headers: &[(&str, &str)],
    body: Cow<'static, [u8]>,
) -> Result<Response, VclError> {
    let len = body.len().to_string();
    let headers = headers.iter().copied().chain([("Content-Length", &*len)]);
    let headers = headers.filter(|(_, value)| !value.is_empty());
    fetch.set_status(status)?;
    fetch.add_headers(headers.map(|(name, value)| (name, value.as_bytes())))?;
    fetch.set_uncacheable();
    Ok(if fetch.method() == "HEAD" {
        Response::without_body()
    } else {
        Response::own(body)
    })
}
