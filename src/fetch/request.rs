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

/// What a program gets as a request's body, and how it is asked.
pub enum Input {
    /// The request's own: it is asked as the client asks.
    Request,
    /// Nothing: it is asked by a GET.
    Nothing,
    /// What a program has answered: it is asked by a POST.
    Answer {
        /// Its body.
        body: Body,
        /// What that is.
        content_type: Vec<u8>,
    },
}

impl<'c> Asked<'c> {
    /// The request with a URL and an argument of VCL's choice. Its own body is not in it yet.
    pub fn new(fetch: &Fetch<'_, 'c>, (url, arg): (Vec<u8>, Vec<u8>), input: Input) -> Self {
        let mut headers = headers(fetch);
        if !matches!(input, Input::Request) {
            headers.retain(|header| !is_of_body(&header.name));
        }
        let (method, body) = match input {
            Input::Request => (fetch.method(), Body::none()),
            Input::Nothing => ("GET".into(), Body::none()),
            Input::Answer { body, content_type } => {
                let length = body.bytes().len().to_string().into_bytes();
                if !content_type.is_empty() {
                    headers.push(Header::new("Content-Type", content_type));
                }
                headers.push(Header::new("Content-Length", length));
                ("POST".into(), body)
            }
        };
        Self {
            method,
            url,
            arg,
            headers,
            body,
        }
    }

    /// The same for an answer that is to be whole, whatever a client wants of the last one: there is no HEAD, no range and no
    /// condition.
    pub fn whole(mut self) -> Self {
        if self.method == "HEAD" {
            self.method = "GET".into();
        }
        self.headers.retain(|header| !is_of_part(&header.name));
        self
    }

    /// The same with the request's body, as far as the tenant takes it.
    pub fn with_body(
        mut self,
        fetch: &mut Fetch<'_, '_>,
        tenant: &Tenant,
    ) -> Result<Self, BadBody> {
        self.body = Body::of_request(fetch, tenant)?;
        Ok(self)
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

/// Whether a header asks for less than the whole (RFC 9110, 13.1 and 14.2).
fn is_of_part(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "range" || name.starts_with("if-")
}

/// Whether a header says something about the request's body.
fn is_of_body(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("content-") || matches!(&*name, "transfer-encoding" | "expect" | "x-sha256")
}
