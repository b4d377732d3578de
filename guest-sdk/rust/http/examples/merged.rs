//! Asks several JSON APIs at once and merges what they say, as an `async fn`: main()'s arguments are NAME=URL, and the answer is
//! {"NAME": what that one has said, ...}, with null for one that has failed. The tenant's `allow_net` has to name them.

use forkvm_http::{fetch, join_all, serve_async};
use http::{header, Request, Response, StatusCode};

/// An API's name and URL.
type Api = (String, String);

/// What one has said.
async fn ask(url: &str) -> Option<Vec<u8>> {
    let request = Request::get(url).header(header::ACCEPT, "application/json");
    let said = fetch(request.body("").ok()?).await.ok()?;
    let is_some = said.status() == StatusCode::OK && !said.body().is_empty();
    is_some.then(|| said.into_body())
}

async fn merged(apis: &[Api]) -> Response<Vec<u8>> {
    let said = join_all(apis.iter().map(|(_, url)| ask(url))).await;
    let mut body = b"{".to_vec();
    for (nth, ((name, _), said)) in apis.iter().zip(said).enumerate() {
        let comma = if nth > 0 { "," } else { "" };
        body.extend(format!("{comma}\"{name}\":").bytes());
        if said.is_none() {
            forkvm_guest::log(&format!("merged: nothing of {name}"));
        }
        body.extend(said.as_deref().unwrap_or(b"null"));
    }
    body.extend(b"}\n");
    let mut response = Response::new(body);
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Those of the arguments, whose names need no escapes in JSON.
fn apis(arguments: impl Iterator<Item = String>) -> Vec<Api> {
    let pairs = arguments.filter_map(|argument| {
        let (name, url) = argument.split_once('=')?;
        let is_plain = !name.contains(['"', '\\', '\n']);
        is_plain.then(|| (name.to_owned(), url.to_owned()))
    });
    pairs.collect()
}

fn main() {
    let apis = apis(std::env::args().skip(1));
    assert!(!apis.is_empty(), "main_arguments = \"NAME=URL NAME=URL\"");
    // They are there for as long as the program is.
    let apis: &'static [Api] = apis.leak();
    serve_async(move |_| merged(apis))
}

#[cfg(test)]
mod tests {
    use forkvm_guest::{block_on, Response};
    use forkvm_http::mock;

    use super::*;

    #[test]
    fn what_the_apis_say_is_one_object() {
        mock::on_fetch(|fetch| match fetch.url() {
            "http://a.example/?x=y" => Ok(Response::json("[1]")),
            "http://b.example/" => Ok(Response::json("{}").status(500)),
            _ => Err(std::io::ErrorKind::ConnectionRefused.into()),
        });
        let arguments = [
            "one=http://a.example/?x=y",
            "two=http://b.example/",
            "three=http://c.example/",
            "no pair",
            "\"=http://a.example/",
        ];
        let apis = apis(arguments.into_iter().map(str::to_owned));
        let answer = block_on(merged(&apis));
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        assert_eq!(text, "{\"one\":[1],\"two\":null,\"three\":null}\n");
    }
}
