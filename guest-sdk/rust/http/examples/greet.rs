//! `async fn` handlers over the http crate's types: greets by a parameter of the URL.

use forkvm_http::{serve_async, Details, Request};
use http::{header, Method, Response, StatusCode};

async fn name(request: &Request) -> Option<String> {
    let query = request.uri().query()?;
    let name = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("name="))?;
    Some(name.replace('+', " "))
}

async fn greet(request: Request) -> Response<Vec<u8>> {
    let arg = request.extensions().get::<Details>();
    let arg = arg.map(|details| &*details.arg).unwrap_or_default();
    let text = match (request.method(), name(&request).await) {
        (&Method::POST, _) => [&b"You said: "[..], request.body()].concat(),
        (_, Some(name)) => format!("Hello, {name}!{arg}\n").into_bytes(),
        (_, None) => {
            let mut response = Response::new(b"Who are you? /?name=\n".to_vec());
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return response;
        }
    };
    let mut response = Response::new(text);
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn main() {
    serve_async(greet)
}
