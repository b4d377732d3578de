//! @NAME@: answers HTTP requests from inside a virtual machine. "make help" says what there is to do.

use forkvm_http::{fetch, join, serve_async, Request};
use http::{Response, StatusCode};

type Answer = Response<Vec<u8>>;

/// Each request: runs in a copy-on-write fork of the program as it was when `serve_async` was called.
async fn handle(greeting: &str, request: Request) -> Answer {
    let path = request.uri().path();
    match (path, path.strip_prefix("/hello/")) {
        ("/", _) => text(format!("{greeting}, World!\n")),
        ("/both", _) => both(request.uri().query().unwrap_or_default()).await,
        (_, Some(name)) => text(format!("{greeting}, {name}!\n")),
        _ => failure(StatusCode::NOT_FOUND, "There is nothing here.\n"),
    }
}

/// Fetches two URLs at the same time: /both?URL,URL. The tenant's `allow_net` has to name them
/// (make dev OPTIONS="--allow-net=HOST").
async fn both(urls: &str) -> Answer {
    let (one, other) = urls.split_once(',').unwrap_or_default();
    match join(get(one), get(other)).await {
        (Ok(one), Ok(other)) => Response::new([one, other].concat()),
        (Err(why), _) | (_, Err(why)) => failure(StatusCode::BAD_GATEWAY, &format!("{why}\n")),
    }
}

async fn get(url: &str) -> std::io::Result<Vec<u8>> {
    let request = http::Request::get(url).body("");
    Ok(fetch(request.map_err(std::io::Error::other)?)
        .await?
        .into_body())
}

fn text(text: String) -> Answer {
    Response::new(text.into_bytes())
}

fn failure(status: StatusCode, why: &str) -> Answer {
    let mut response = text(why.to_owned());
    *response.status_mut() = status;
    response
}

fn main() {
    // The set-up: runs once.
    let greeting: &str = String::from("Hello").leak();
    serve_async(move |request| handle(greeting, request));
}

#[cfg(test)]
mod tests {
    use forkvm_guest::block_on;
    use forkvm_http::mock;

    use super::*;

    fn get(url: &str) -> (u16, String) {
        let request = http::Request::get(url).body(Vec::new()).unwrap();
        let response = block_on(handle("Hello", request));
        let text = String::from_utf8(response.body().clone()).unwrap();
        (response.status().as_u16(), text)
    }

    #[test]
    fn greets() {
        assert_eq!(get("/"), (200, "Hello, World!\n".into()));
        assert_eq!(get("/hello/Ann"), (200, "Hello, Ann!\n".into()));
    }

    #[test]
    fn nothing_else_is_there() {
        assert_eq!(get("/nowhere").0, 404);
    }

    /// What is fetched is the test's to say.
    #[test]
    fn both_are_fetched() {
        mock::on_fetch(|fetch| match fetch.url() {
            "http://a.example/" => Ok(forkvm_guest::Response::text("one ")),
            "http://b.example/" => Ok(forkvm_guest::Response::text("other")),
            _ => Err(std::io::ErrorKind::PermissionDenied.into()),
        });
        assert_eq!(
            get("/both?http://a.example/,http://b.example/"),
            (200, "one other".into())
        );
        assert_eq!(get("/both?http://a.example/,http://c.example/").0, 502);
    }
}
