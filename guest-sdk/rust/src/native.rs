//! Outside of a virtual machine: a request from the program's arguments, and its response on standard output.

use std::collections::HashMap;
use std::io::{self, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::exit;
use std::sync::OnceLock;

use crate::response::Parts;
use crate::{mock, Failure, Request, RequestBuilder, Response, ON_ERROR, ON_REQUEST};

/// Whether this is an ordinary process, as under `cargo test`. The host names the tenant in every program's environment.
pub(crate) fn is_native() -> bool {
    static NATIVE: OnceLock<bool> = OnceLock::new();
    *NATIVE.get_or_init(|| std::env::var_os("KVM_NAME").is_none())
}

const USAGE: &str = "outside of a virtual machine its arguments are a request:
  [-i] [-X METHOD] [-H 'NAME: VALUE']... [-d BODY|@FILE] [--arg TEXT] [--fetch URL=FILE]... [URL]
-i prints status and headers as well; --fetch has the response of a URL in a file, with its head as \"curl -i\" prints it or without";

/// What the arguments say.
struct Arguments {
    include: bool,
    /// Where what is fetched is.
    fetched: HashMap<String, PathBuf>,
    request: Request<'static>,
}

impl Arguments {
    fn read(arguments: impl IntoIterator<Item = String>) -> Option<Self> {
        let mut arguments = arguments.into_iter();
        let (mut include, mut url) = (false, None);
        let (mut method, mut body) = (None, None);
        let mut fetched = HashMap::new();
        // Changes to the request, whose URL may come last.
        let mut changes: Vec<Box<dyn FnOnce(RequestBuilder) -> RequestBuilder>> = Vec::new();
        while let Some(argument) = arguments.next() {
            match &*argument {
                "-i" => include = true,
                "-X" => method = Some(arguments.next()?),
                "-d" => {
                    let text = arguments.next()?;
                    body = Some(match text.strip_prefix('@') {
                        Some(path) => std::fs::read(path).ok()?,
                        None => text.into_bytes(),
                    });
                }
                "--fetch" => {
                    // A URL may have parameters.
                    let pair = arguments.next()?;
                    let (url, file) = pair.rsplit_once('=')?;
                    fetched.insert(url.to_owned(), file.into());
                }
                "-H" => {
                    let line = arguments.next()?;
                    let (name, value) = line.split_once(':')?;
                    let (name, value) = (name.to_owned(), value.trim().to_owned());
                    changes.push(Box::new(move |request| request.header(&name, &value)));
                }
                "--arg" => {
                    let arg = arguments.next()?;
                    changes.push(Box::new(move |request| request.arg(arg)));
                }
                option if option.starts_with('-') => return None,
                _ if url.is_some() => return None,
                _ => url = Some(argument),
            }
        }
        let mut request = Request::builder(url.unwrap_or_else(|| "/".into()));
        if let Some(body) = body {
            request = request.method("POST").body(body);
        }
        if let Some(method) = method {
            request = request.method(&method);
        }
        let request = changes
            .into_iter()
            .fold(request, |request, change| change(request));
        Some(Arguments {
            include,
            fetched,
            request: request.build(),
        })
    }

    fn or_exit() -> Self {
        Self::read(std::env::args().skip(1)).unwrap_or_else(|| {
            eprintln!("{USAGE}");
            exit(2)
        })
    }
}

/// Runs the handler for the request of the arguments. A panic goes to `on_error`, if there is such a handler.
pub(crate) fn serve() -> ! {
    let Arguments {
        request, fetched, ..
    } = Arguments::or_exit();
    mock::on_fetch(move |fetch| match fetched.get(fetch.url()) {
        Some(file) => mock::recorded(&std::fs::read(file)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no response")),
        None => {
            let url = fetch.url();
            eprintln!("fetch failed: there is no --fetch {url}=FILE");
            Err(io::ErrorKind::PermissionDenied.into())
        }
    });
    let handled = catch_unwind(AssertUnwindSafe(|| {
        let mut handler = ON_REQUEST.lock().ok()?;
        Some(handler.as_mut()?(&request))
    }));
    let exception = match handled {
        Ok(Some(response)) => answer(&response),
        Ok(None) => "no handler is set (on_request)",
        Err(_) => "the handler panicked",
    };
    eprintln!("request failed: {exception}");
    let failure = Failure {
        url: request.url().into_owned(),
        arg: request.arg().into_owned(),
        exception: exception.into(),
    };
    if let Some(handler) = ON_ERROR.lock().ok().as_mut().and_then(|slot| slot.as_mut()) {
        answer(&handler(&failure));
    }
    exit(1)
}

/// Prints a response and ends the program.
pub(crate) fn answer(response: &Response) -> ! {
    let mut text = Vec::new();
    if Arguments::or_exit().include {
        head(&mut text, response, Some(response.body().len()));
    }
    text.extend_from_slice(response.body());
    // Whoever reads it may have left.
    let _ = std::io::stdout().write_all(&text);
    exit(0)
}

/// The same with a body in parts.
pub(crate) fn answer_in_parts<P: AsRef<[u8]>, I: Iterator<Item = P>>(
    response: &Response,
    len: Option<usize>,
    mut parts: Parts<I>,
) -> ! {
    let mut text = Vec::new();
    if Arguments::or_exit().include {
        head(&mut text, response, len);
    }
    let mut written = 0;
    loop {
        let _ = std::io::stdout().write_all(&text);
        let left = len.map_or(usize::MAX, |len| len - written);
        text = parts.next(left.min(MOST_PART)).to_vec();
        written += text.len();
        if text.is_empty() {
            break;
        }
    }
    if len.is_some_and(|len| len != written) {
        eprintln!("request failed: the response has ended after {written} bytes");
        exit(1)
    }
    exit(0)
}

/// How much the host asks for at a time.
const MOST_PART: usize = 64 << 10;

fn head(text: &mut Vec<u8>, response: &Response, len: Option<usize>) {
    let mut line = |line: String| text.extend_from_slice(format!("{line}\r\n").as_bytes());
    line(format!("HTTP/1.1 {}", response.status_code()));
    if !response.content_type().is_empty() {
        line(format!("Content-Type: {}", response.content_type()));
    }
    for (name, value) in response.headers() {
        line(format!("{name}: {value}"));
    }
    if let Some(len) = len {
        line(format!("Content-Length: {len}"));
    }
    line(String::new());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Option<Arguments> {
        Arguments::read(arguments.iter().map(|&argument| argument.to_owned()))
    }

    #[test]
    fn arguments_are_a_request() {
        let all = ["-i", "-d", "body", "-H", "X-A: b", "/x", "--arg", "A"];
        let all = read(&all).expect("a request");
        assert!(all.include);
        assert_eq!(all.request.method(), "POST");
        assert_eq!(
            (&*all.request.url(), all.request.body()),
            ("/x", &b"body"[..])
        );
        assert_eq!(all.request.header("x-a").as_deref(), Some("b"));
        assert_eq!(all.request.arg(), "A");
        let none = read(&[]).expect("a request");
        assert_eq!(
            (&*none.request.method(), &*none.request.url()),
            ("GET", "/")
        );
        assert_eq!(read(&["-X", "PUT"]).expect("one").request.method(), "PUT");
        let fetched = read(&["--fetch", "http://a/?b=c=file"])
            .expect("one")
            .fetched;
        assert_eq!(fetched["http://a/?b=c"], PathBuf::from("file"));
        for bad in [
            &["/a", "/b"][..],
            &["-X"],
            &["-H", "no colon"],
            &["--what"],
            &["-d", "@/no/such/file"],
            &["--fetch", "x"],
        ] {
            assert!(read(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn this_is_no_virtual_machine() {
        assert!(is_native());
        assert!(!crate::is_debug() && !crate::is_storage());
        assert_eq!(crate::fork_number(), 0);
        assert_eq!(crate::meminfo().map(|info| info.max_memory), None);
        crate::log("to standard error");
    }

    #[test]
    fn the_head_of_a_response() {
        let mut text = Vec::new();
        head(
            &mut text,
            &Response::text("abc").status(404).header("X", "y"),
            Some(3),
        );
        let expected = "HTTP/1.1 404\r\nContent-Type: text/plain; charset=utf-8\r\nX: y\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(String::from_utf8_lossy(&text), expected);
    }
}
