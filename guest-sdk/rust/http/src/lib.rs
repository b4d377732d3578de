//! Handlers over the types of the [`http`] crate, for programs of [`forkvm_guest`]'s kind.
//!
//! ```no_run
//! use forkvm_http::{serve, Request};
//! use http::Response;
//!
//! fn hello(request: Request) -> Response<String> {
//!     Response::new(format!("Hello, {}!\n", request.uri().path()))
//! }
//!
//! serve(hello);
//! ```
//!
//! An `async fn` goes to [`serve_async`]. Handlers are functions, and run natively under `cargo test`:
//!
//! ```
//! # use forkvm_http::Request;
//! # fn hello(request: Request) -> http::Response<String> { http::Response::new(format!("Hello, {}!\n", request.uri().path())) }
//! let request = http::Request::get("/Ann").body(Vec::new()).expect("a request");
//! assert_eq!(hello(request).body(), "Hello, /Ann!\n");
//! ```
//!
//! A request whose URL or header fields the `http` crate does not take is answered with a 400, and the handler is not called.

use std::future::Future;
use std::io;
use std::time::Duration;

use forkvm_guest::{block_on, Fetch};
pub use forkvm_guest::{join, join_all, mock};
use http::header::CONTENT_TYPE;

/// A request with its whole body.
pub type Request = http::Request<Vec<u8>>;

/// What else is known of a request: it is among its [extensions](http::Extensions).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// The text that VCL passes along.
    pub arg: String,
    /// The host is only warming the program up before it freezes it.
    pub is_warmup: bool,
    /// Random bits, fresh for every request. Forks share the state of all generators in the program.
    pub random: [u64; 2],
}

/// How long a response may be cached: put it among its extensions. Without it the response is not cached, unless its header
/// fields say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// How long it is fresh.
    pub ttl: Duration,
    /// How long it is served stale while a new one is fetched.
    pub grace: Duration,
    /// How long it is kept for revalidation.
    pub keep: Duration,
}

/// The request as one of the `http` crate's.
///
/// # Errors
///
/// What that crate does not take: a URL with a blank, a name that is none.
pub fn request_of(request: &forkvm_guest::Request<'_>) -> http::Result<Request> {
    let mut made = http::Request::builder()
        .method(&*request.method())
        .uri(request.url_bytes());
    for header in request.headers() {
        made = made.header(header.name, header.value);
    }
    made.extension(Details {
        arg: request.arg().into_owned(),
        is_warmup: request.is_warmup(),
        random: request.random(),
    })
    .body(request.body().to_vec())
}

/// The response as the host takes it. Header values that are not UTF-8 have what is not replaced.
pub fn response_of<B: Into<Vec<u8>>>(response: http::Response<B>) -> forkvm_guest::Response {
    let (parts, body) = response.into_parts();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let content_type = parts.headers.get(CONTENT_TYPE).map(text);
    let made = forkvm_guest::Response::new(content_type.unwrap_or_default(), body)
        .status(parts.status.as_u16());
    let made = match parts.extensions.get::<Cache>() {
        Some(cache) => made.cache(cache.ttl, cache.grace, cache.keep),
        None => made,
    };
    let others = parts
        .headers
        .iter()
        .filter(|(name, _)| *name != CONTENT_TYPE);
    others.fold(made, |made, (name, value)| {
        made.header(name.as_str(), &text(value))
    })
}

/// Freezes the machine; each request then goes to the handler.
pub fn serve<B: Into<Vec<u8>>>(
    mut handler: impl FnMut(Request) -> http::Response<B> + Send + 'static,
) -> ! {
    forkvm_guest::serve(move |request| match request_of(request) {
        Ok(request) => response_of(handler(request)),
        Err(why) => refusal(&why),
    })
}

/// The same for an `async fn`, which runs to its end before the request is answered: [`forkvm_guest::block_on`] says what it may
/// wait for.
///
/// ```no_run
/// use forkvm_http::{serve_async, Request};
/// use http::Response;
///
/// async fn hello(request: Request) -> Response<String> {
///     Response::new(format!("Hello, {}!\n", request.uri().path()))
/// }
///
/// serve_async(hello);
/// ```
pub fn serve_async<B: Into<Vec<u8>>, F: Future<Output = http::Response<B>>>(
    mut handler: impl FnMut(Request) -> F + Send + 'static,
) -> ! {
    serve(move |request| block_on(handler(request)))
}

/// Has the host fetch something, from where the tenant's `allow_net` says: of the request's URL, or if that is only a path of the
/// Varnish that this program runs in. Those of a [`join`] or [`join_all`] are under way at the same time. A response of any status is one.
///
/// ```no_run
/// use forkvm_http::{fetch, join, serve_async, Request};
/// use http::Response;
///
/// async fn both(_: Request) -> Response<Vec<u8>> {
///     let get = |url| fetch(http::Request::get(url).body("").expect("a request"));
///     match join(get("https://api.example/one"), get("https://api.example/other")).await {
///         (Ok(one), Ok(other)) => Response::new([one.into_body(), other.into_body()].concat()),
///         (Err(error), _) | (_, Err(error)) => Response::new(format!("{error}\n").into_bytes()),
///     }
/// }
///
/// serve_async(both);
/// ```
///
/// In tests [`mock::on_fetch`] answers. [`forkvm_guest::Fetch`] says more of what is fetched, such as whether redirects are followed.
///
/// # Errors
///
/// Why it does not come, with Linux's numbers. The log says more.
pub async fn fetch<B: Into<Vec<u8>>>(
    request: http::Request<B>,
) -> io::Result<http::Response<Vec<u8>>> {
    let (parts, body) = request.into_parts();
    let url = parts.uri.to_string();
    let what = match parts.uri.scheme() {
        Some(_) => Fetch::get(url),
        None => Fetch::own(url),
    };
    let what = what.method(parts.method.as_str());
    let what = parts.headers.iter().fold(what, |what, (name, value)| {
        what.header(name.as_str(), &String::from_utf8_lossy(value.as_bytes()))
    });
    let body = body.into();
    let what = if body.is_empty() {
        what
    } else {
        what.body(body)
    };
    let fetched = what.send().await?;
    let mut response = http::Response::builder().status(fetched.head.status);
    for (name, value) in &fetched.head.headers {
        response = response.header(name, value);
    }
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    response.body(fetched.body).map_err(invalid)
}

fn refusal(why: &http::Error) -> forkvm_guest::Response {
    forkvm_guest::Response::text(format!("{why}\n")).status(400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_all_that_the_host_gave() {
        let request = forkvm_guest::Request::builder("/a%20b?c=d")
            .method("PATCH")
            .header("Host", "example.com")
            .header("X-A", "one")
            .header("X-A", "two")
            .body("data")
            .arg("A")
            .random([3, 4])
            .build();
        let request = request_of(&request).expect("a request");
        assert_eq!(request.method(), "PATCH");
        assert_eq!(request.uri().path(), "/a%20b");
        assert_eq!(request.uri().query(), Some("c=d"));
        let values: Vec<_> = request.headers().get_all("x-a").iter().collect();
        assert_eq!(values, ["one", "two"]);
        assert_eq!(request.body(), b"data");
        let details = request.extensions().get::<Details>().expect("details");
        assert_eq!((&*details.arg, details.random), ("A", [3, 4]));
        assert!(!details.is_warmup);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for bad in ["/a b", "", "/\u{7f}"] {
            let request = forkvm_guest::Request::builder(bad).build();
            let why = request_of(&request).expect_err(bad);
            assert_eq!(refusal(&why).status_code(), 400);
        }
        let request = forkvm_guest::Request::builder("/").header("a b", "c");
        assert!(request_of(&request.build()).is_err());
    }

    #[test]
    fn a_response_as_the_host_takes_it() {
        let seconds = Duration::from_secs;
        let cache = Cache {
            ttl: seconds(1),
            grace: seconds(2),
            keep: seconds(3),
        };
        let response = http::Response::builder()
            .status(201)
            .header("Content-Type", "a/b")
            .header("Set-Cookie", "a=1")
            .header("Set-Cookie", "b=2")
            .extension(cache)
            .body("text")
            .expect("a response");
        let response = response_of(response);
        assert_eq!(response.status_code(), 201);
        assert_eq!(response.content_type(), "a/b");
        assert_eq!(response.body(), b"text");
        let headers: Vec<_> = response.headers().collect();
        assert_eq!(headers, [("set-cookie", "a=1"), ("set-cookie", "b=2")]);
        assert_eq!(response.caching(), Some([1, 2, 3].map(seconds)));
        assert_eq!(response_of(http::Response::new("")).caching(), None);
    }

    #[test]
    fn an_async_handler_is_a_function_as_well() {
        async fn twice(request: Request) -> http::Response<Vec<u8>> {
            let half = async { request.body().clone() };
            let (one, other) = forkvm_guest::join(half, async { request.body().clone() }).await;
            http::Response::new([one, other].concat())
        }
        let request = http::Request::post("/").body(b"ab".to_vec());
        let response = block_on(twice(request.expect("a request")));
        assert_eq!(response.body(), b"abab");
    }

    #[test]
    fn what_is_fetched_is_a_response_of_the_crates() {
        mock::on_fetch(|fetch| match fetch.url() {
            "http://a.example/x?y" => {
                assert_eq!(
                    (fetch.method_name(), fetch.header_value("X-A")),
                    ("PUT", Some("b"))
                );
                let body = fetch.body_bytes().to_vec();
                Ok(forkvm_guest::Response::new("a/b", body)
                    .status(404)
                    .header("X-C", "d"))
            }
            "/own" => Ok(forkvm_guest::Response::text("own")),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        });
        let request = http::Request::put("http://a.example/x?y")
            .header("X-A", "b")
            .body("sent");
        let response = block_on(fetch(request.expect("a request"))).expect("a response");
        assert_eq!(response.status(), 404);
        assert_eq!(
            (
                &response.headers()["content-type"],
                &response.headers()["x-c"]
            ),
            (&"a/b".parse().unwrap(), &"d".parse().unwrap())
        );
        assert_eq!(response.body(), b"sent");
        let get = |url| fetch(http::Request::get(url).body("").expect("a request"));
        let (own, other) = block_on(join(get("/own"), get("http://b.example/")));
        assert_eq!(own.expect("a response").body(), b"own");
        assert!(other.is_err());
    }
}
