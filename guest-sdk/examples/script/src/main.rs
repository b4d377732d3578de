//! JavaScript, by QuickJS: a script is run once, before the machine is frozen, and its function `handle(request)` answers each
//! request, in a fork of its own. Nothing that a request does to the script's variables is seen by the next one.
//!
//! `main()`'s argument is the script's file, which the tenant has to be allowed to read; without one it is script.js, built in.
//!
//! `handle` gets `{method, url, arg, headers, body}`, with the headers' names in small letters, and gives a text, or
//! `{status, type, headers, body}`.

use forkvm_guest::{log, serve, Request, Response};
use rquickjs::{CatchResultExt, CaughtError, Context, Ctx, Function, Object, Runtime, Value};

const BUILT_IN: &str = include_str!("../script.js");

thread_local! {
    static CONTEXT: Context = context();
}

fn context() -> Context {
    let runtime = Runtime::new().expect("memory for QuickJS");
    Context::full(&runtime).expect("memory for QuickJS")
}

/// Runs the script, and looks for its handler.
fn load(script: &str) -> Result<(), String> {
    CONTEXT.with(|context| {
        context.with(|ctx| {
            let print = Function::new(ctx.clone(), |text: String| log(text.trim_end()));
            ctx.globals()
                .set("print", print)
                .map_err(|why| why.to_string())?;
            let done: Result<(), _> = ctx.eval(script).catch(&ctx);
            done.map_err(|why| told(&why))?;
            let handle: Result<Function, _> = ctx.globals().get("handle");
            handle.map_err(|_| "the script has no function handle()".to_owned())?;
            Ok(())
        })
    })
}

fn told(why: &CaughtError) -> String {
    match why {
        CaughtError::Exception(thrown) => {
            let stack = thrown.stack().unwrap_or_default();
            format!("{}\n{stack}", thrown.message().unwrap_or_default())
        }
        other => format!("{other}\n"),
    }
}

fn request_of<'js>(ctx: &Ctx<'js>, request: &Request) -> rquickjs::Result<Object<'js>> {
    let headers = Object::new(ctx.clone())?;
    for header in request.headers() {
        let name = String::from_utf8_lossy(header.name).to_lowercase();
        headers.set(name, String::from_utf8_lossy(header.value).into_owned())?;
    }
    let object = Object::new(ctx.clone())?;
    object.set("method", request.method().into_owned())?;
    object.set("url", request.url().into_owned())?;
    object.set("arg", request.arg().into_owned())?;
    object.set("headers", headers)?;
    object.set("body", String::from_utf8_lossy(request.body()).into_owned())?;
    Ok(object)
}

fn response_of(value: Value) -> rquickjs::Result<Response> {
    let Some(object) = value.as_object() else {
        return Ok(Response::text(value.get::<rquickjs::Coerced<String>>()?.0));
    };
    let kind: Option<String> = object.get("type")?;
    let body: Option<rquickjs::Coerced<String>> = object.get("body")?;
    let status: Option<u16> = object.get("status")?;
    let kind = kind.unwrap_or_else(|| "text/plain; charset=utf-8".to_owned());
    let mut response = Response::new(kind, body.map(|body| body.0).unwrap_or_default());
    if let Some(headers) = object.get::<_, Option<Object>>("headers")? {
        for header in headers.props::<String, rquickjs::Coerced<String>>() {
            let (name, value) = header?;
            response = response.header(&name, &value.0);
        }
    }
    Ok(response.status(status.unwrap_or(200)))
}

fn answer(request: &Request) -> Response {
    CONTEXT.with(|context| {
        context.with(|ctx| {
            let answered = (|| {
                let handle: Function = ctx.globals().get("handle")?;
                let value: Value = handle.call((request_of(&ctx, request)?,))?;
                response_of(value)
            })();
            answered.catch(&ctx).unwrap_or_else(|why| {
                let why = told(&why);
                log(&why);
                Response::text(why).status(500)
            })
        })
    })
}

fn main() {
    let script = match std::env::args().nth(1) {
        Some(path) if std::env::var_os("KVM_NAME").is_some() => {
            std::fs::read_to_string(&path).map_err(|why| format!("{path}: {why}"))
        }
        _ => Ok(BUILT_IN.to_owned()),
    };
    if let Err(why) = script.and_then(|script| load(&script)) {
        eprintln!("{why}");
        std::process::exit(1);
    }
    // A first call, for its memory to be there when the machine is frozen.
    answer(&Request::builder("/").build());
    serve(answer)
}
