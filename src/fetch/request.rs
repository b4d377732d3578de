//! A request as Varnish has it, made into what the engine takes.
#![forbid(unsafe_code)]

use forkvm::{Header, Request};

use crate::fetch::body::{BadBody, Body};
use crate::tenants::tenant::Tenant;
use crate::varnish::fetch::Fetch;

/// What a program is asked.
pub struct Asked<'c> {
    method: String,
    url: Vec<u8>,
    arg: Vec<u8>,
    /// Where Varnish has them.
    headers: Vec<Header<'c>>,
    body: Body,
}

impl<'c> Asked<'c> {
    /// The fetch's request with its body, but with a URL and an argument of VCL's choice.
    pub fn read(
        fetch: &mut Fetch<'_, 'c>,
        url: Vec<u8>,
        arg: Vec<u8>,
        tenant: &Tenant,
    ) -> Result<Self, BadBody> {
        Ok(Self {
            method: fetch.method(),
            url,
            arg,
            headers: headers(fetch),
            body: Body::of_request(fetch, tenant)?,
        })
    }

    /// The fetch's request but for its body, with a URL of VCL's choice.
    pub fn without_body(fetch: &Fetch<'_, 'c>, url: Vec<u8>) -> Self {
        Self {
            method: fetch.method(),
            url,
            arg: Vec::new(),
            headers: headers(fetch),
            body: Body::none(),
        }
    }

    /// The fetch's request as if it were a GET: its body is not the program's business.
    pub fn get(fetch: &Fetch<'_, 'c>) -> Self {
        let mut headers = headers(fetch);
        headers.retain(|header| !is_of_body(&header.name));
        Self {
            method: "GET".into(),
            url: fetch.url(),
            arg: Vec::new(),
            headers,
            body: Body::none(),
        }
    }

    /// Leaves out what made the request an order: headers that have the key, whatever their name is, and those of
    /// kvm_subs.vcl.
    pub fn conceal(&mut self, key: &[u8]) {
        let key = key.trim_ascii();
        self.headers
            .retain(|header| header.value.trim_ascii() != key && !is_of_order(&header.name));
    }

    /// As the engine takes it.
    pub fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            url: &self.url,
            arg: &self.arg,
            headers: &self.headers,
            body: self.body.bytes(),
        }
    }
}

/// All request headers but Proxy-Connection, the one of the connection that Varnish passes on.
fn headers<'c>(fetch: &Fetch<'_, 'c>) -> Vec<Header<'c>> {
    fetch
        .headers()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("proxy-connection"))
        .map(|(name, value)| Header::new(name, value))
        .collect()
}

/// Whether vcl/kvm_subs.vcl knows an order by this header.
fn is_of_order(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    matches!(
        &*name,
        "x-kvm-order"
            | "x-liveupdate"
            | "x-liverollback"
            | "x-livedebug"
            | "x-debugkey"
            | "x-postkey"
    )
}

/// Whether a header says something about the request's body.
fn is_of_body(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("content-") || matches!(&*name, "transfer-encoding" | "expect" | "x-sha256")
}
