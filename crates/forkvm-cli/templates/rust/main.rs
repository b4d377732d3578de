//! @NAME@: answers HTTP requests from inside a virtual machine. "make help" says what there is to do.

use forkvm_guest::{serve, Request, Response};

/// Each request: runs in a copy-on-write fork of the program as it was when `serve` was called.
fn handle(greeting: &str, request: &Request) -> Response {
    let url = request.url();
    match (&*url, url.strip_prefix("/hello/")) {
        ("/", _) => Response::text(format!("{greeting}, World!\n")),
        (_, Some(name)) => Response::text(format!("{greeting}, {name}!\n")),
        _ => Response::text("There is nothing here.\n").status(404),
    }
}

fn main() {
    // The set-up: runs once.
    let greeting = String::from("Hello");
    serve(move |request| handle(&greeting, request));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(url: &str) -> Response {
        handle("Hello", &Request::builder(url).build())
    }

    #[test]
    fn greets() {
        assert_eq!(get("/").body_text(), "Hello, World!\n");
        assert_eq!(get("/hello/Ann").body_text(), "Hello, Ann!\n");
    }

    #[test]
    fn nothing_else_is_there() {
        assert_eq!(get("/nowhere").status_code(), 404);
    }
}
