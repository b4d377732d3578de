//! One backend fetch as varnishd holds it, in safe terms: the request to read, the response to fill in. Or a client's request
//! that is answered on its own thread, where there is no fetch.

use std::io::Write;
use std::ptr;

use varnish::ffi;
use varnish::vcl::{BodyState, Ctx, HttpHeaders, LogTag, VclError};

/// Something that is kept with a task, which may be one of each kind.
pub trait OfTask: Sized + 'static {
    /// Its address is the key that it is kept under. A static of each kind's own.
    const KEY: &'static u8;
    /// How it is dropped.
    const METHODS: &'static ffi::vmod_priv_methods;
}

/// How something of a task is dropped when that is over, or rolled back.
pub const fn dropped<T: 'static>() -> ffi::vmod_priv_methods {
    ffi::vmod_priv_methods {
        magic: ffi::VMOD_PRIV_METHODS_MAGIC,
        type_: c"kvm task".as_ptr(),
        fini: Some(ffi::vmod_priv::on_fini::<T>),
    }
}

/// Makes a type one that is kept with a task.
macro_rules! of_task {
    ($kind:ty) => {
        impl $crate::varnish::fetch::OfTask for $kind {
            const KEY: &'static u8 = {
                static KEY: u8 = 0;
                &KEY
            };
            const METHODS: &'static ::varnish::ffi::vmod_priv_methods = {
                static METHODS: ::varnish::ffi::vmod_priv_methods =
                    $crate::varnish::fetch::dropped::<$kind>();
                &METHODS
            };
        }
    };
}
pub(crate) use of_task;

/// Keeps something with the task of `ctx`, in place of an earlier one.
pub fn keep<T: OfTask>(kept: T, ctx: &mut Ctx<'_>) -> Result<(), VclError> {
    // SAFETY: varnishd gave us ctx. The result is null or the task's own vmod_priv, which nobody else has under
    // our key, so it holds a T or nothing.
    unsafe {
        let slot = ffi::VRT_priv_task(ctx.raw, ptr::from_ref(T::KEY).cast()).as_mut();
        let slot = slot.ok_or("out of workspace")?;
        drop(slot.take::<T>());
        slot.put(Box::new(kept), T::METHODS);
    }
    Ok(())
}

/// Takes what is kept with the task of `ctx`.
pub fn taken<T: OfTask>(ctx: &mut Ctx<'_>) -> Option<T> {
    // SAFETY: as in keep(); get returns null if there is none.
    unsafe {
        let key = ptr::from_ref(T::KEY).cast();
        let slot = ffi::VRT_priv_task_get(&raw const *ctx.raw, key).as_mut()?;
        slot.take::<T>().map(|kept| *kept)
    }
}

/// Header slots and workspace that a guest leaves free: Varnish adds headers of its own after us.
const SPARE_SLOTS: usize = 8;
const SPARE_BYTES: usize = 8 << 10;

/// Bytes of workspace that a header takes: with ": " and NUL, rounded up as WS_Alloc() does.
fn line_len(name: &str, value: &[u8]) -> usize {
    (name.len() + value.len() + 3).next_multiple_of(size_of::<usize>())
}

/// Bytes of the task's workspace that are free.
fn free(ctx: &Ctx<'_>) -> usize {
    // SAFETY: the workspace of this task, which only this thread uses.
    unsafe { ctx.ws.raw.as_ref() }.map_or(0, |ws| (ws.e as usize).saturating_sub(ws.f as usize))
}

/// What may have the last of a workspace: no more than this.
const SHORT: usize = 256;

/// How many bytes a string of about this length may have that is put into the workspace: of a long one enough is left for Varnish.
pub fn room(ctx: &Ctx<'_>, len: usize) -> usize {
    let spare = if len > SHORT { SPARE_BYTES } else { 0 };
    // Its NUL, and what it is rounded up by.
    free(ctx).saturating_sub(spare + size_of::<usize>())
}

/// bereq.method, or req.method where there is no fetch.
pub fn method_of(ctx: &Ctx<'_>) -> Option<String> {
    let request = ctx.http_bereq.as_ref().or(ctx.http_req.as_ref())?;
    let method = request.method()?;
    Some(String::from_utf8_lossy(method.as_ref()).into_owned())
}

/// A fetch that is being answered, or a client's own request.
pub struct Fetch<'f, 'c> {
    ctx: &'f mut Ctx<'c>,
    side: Side,
}

/// Whose request it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// bereq and beresp.
    Backend,
    /// req, and resp if there is one.
    Client,
}

impl<'f, 'c> Fetch<'f, 'c> {
    /// The fetch that `ctx` is about.
    pub fn new(ctx: &'f mut Ctx<'c>) -> Result<Self, VclError> {
        if ctx.raw.bo.is_null() || ctx.http_bereq.is_none() || ctx.http_beresp.is_none() {
            return Err("not a backend fetch".into());
        }
        Ok(Self {
            ctx,
            side: Side::Backend,
        })
    }

    /// The client's request that `ctx` is about.
    pub fn of_client(ctx: &'f mut Ctx<'c>) -> Result<Self, VclError> {
        if ctx.raw.req.is_null() || ctx.http_req.is_none() {
            return Err("not a client's request".into());
        }
        Ok(Self {
            ctx,
            side: Side::Client,
        })
    }

    /// What VCL works on with `ctx`: bereq, or else req.
    pub fn of_task(ctx: &'f mut Ctx<'c>) -> Result<Self, VclError> {
        match ctx.http_bereq {
            Some(_) => Ok(Self {
                ctx,
                side: Side::Backend,
            }),
            None => Self::of_client(ctx),
        }
    }

    fn request(&self) -> Option<&HttpHeaders<'c>> {
        match self.side {
            Side::Backend => self.ctx.http_bereq.as_ref(),
            Side::Client => self.ctx.http_req.as_ref(),
        }
    }

    fn response(&mut self) -> Result<&mut HttpHeaders<'c>, VclError> {
        match self.side {
            Side::Backend => self.ctx.http_beresp.as_mut().ok_or("no beresp"),
            Side::Client => self.ctx.http_resp.as_mut().ok_or("no resp"),
        }
        .map_err(Into::into)
    }

    /// What is kept with its task. `None` if nothing is, or the task was rolled back since.
    pub fn kept<T: OfTask>(&self) -> Option<&T> {
        // SAFETY: as in keep(); get returns null if there is none.
        unsafe {
            let key = ptr::from_ref(T::KEY).cast();
            let slot = ffi::VRT_priv_task_get(&raw const *self.ctx.raw, key).as_ref()?;
            slot.get_ref::<T>()
        }
    }

    /// Keeps something until its task is over.
    pub fn keep<T: OfTask>(&mut self, kept: T) -> Result<(), VclError> {
        keep(kept, self.ctx)
    }

    /// The request's method.
    pub fn method(&self) -> String {
        let method = self.request().and_then(HttpHeaders::method);
        let method = method.map(|method| String::from_utf8_lossy(method.as_ref()).into_owned());
        method.unwrap_or_default()
    }

    /// Its URL.
    pub fn url(&self) -> Vec<u8> {
        let url = self.request().and_then(|request| request.url());
        url.map_or_else(Vec::new, |url| url.as_ref().to_vec())
    }

    /// The request's headers, where they are: also while the body is read and the response filled in.
    pub fn headers(&self) -> impl Iterator<Item = (&'c str, &'c [u8])> + use<'_, 'f, 'c> {
        let headers = self
            .request()
            .into_iter()
            .flat_map(|request| request.iter());
        headers.map(|(name, value)| {
            let value: &[u8] = match value {
                varnish::vcl::StrOrBytes::Utf8(text) => text.as_bytes(),
                varnish::vcl::StrOrBytes::Bytes(bytes) => bytes,
            };
            // SAFETY: a header's text is in the task's workspace, or a constant: it neither moves nor goes nor changes
            // before varnishd has the task back, after which nobody has a context of lifetime `'c`. Nothing here takes
            // one of the request's headers away, and that would not touch its text.
            unsafe { (&*ptr::from_ref(name), &*ptr::from_ref(value)) }
        })
    }

    /// The first of the request's headers with this name.
    pub fn header(&self, name: &str) -> Option<&'c [u8]> {
        self.headers()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The same of req's headers, where there is a request of a client's.
    pub fn client_header(&self, name: &str) -> Option<Vec<u8>> {
        let mut headers = self.ctx.http_req.as_ref()?.iter();
        let (_, value) = headers.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(value.as_ref().to_vec())
    }

    /// Whether 304 can be an answer: the request has a condition, which is a client's that is passed on, or Varnish's own
    /// about what it has in its cache.
    pub fn is_conditional(&self) -> bool {
        let asks = |name| self.header(name).is_some();
        if !asks("if-none-match") && !asks("if-modified-since") {
            return false;
        }
        // SAFETY: new() has checked that there is one, and only this thread works on the fetch.
        let bo = unsafe { self.ctx.raw.bo.as_ref() };
        self.side == Side::Client
            || bo.is_some_and(|bo| bo.uncacheable() != 0 || !bo.stale_oc.is_null())
    }

    /// The request body's length, if the client gave it.
    pub fn content_length(&self) -> Option<u64> {
        str::from_utf8(self.header("content-length")?)
            .ok()?
            .parse()
            .ok()
    }

    /// How far the request body is.
    pub fn body_state(&self) -> Result<BodyState, VclError> {
        self.ctx.req_body_state()
    }

    /// Whether there is a request body that can be read.
    pub fn has_body(&self) -> bool {
        matches!(
            self.body_state(),
            Ok(BodyState::Length | BodyState::Chunked | BodyState::Eof)
        )
    }

    /// Copies the request body to `sink`.
    pub fn read_body(&mut self, sink: &mut impl Write) -> Result<bool, VclError> {
        self.ctx.req_body(sink)
    }

    /// Logs in the fetch's transaction.
    pub fn log(&mut self, tag: LogTag, record: &str) {
        self.ctx.log(tag, record);
    }

    /// Begins the response.
    pub fn set_status(&mut self, status: u16) -> Result<(), VclError> {
        // varnishd asserts that a status has three digits.
        if !(200..=599).contains(&status) {
            return Err(format!("status {status} is not 200 to 599").into());
        }
        let response = self.response()?;
        response.set_status(status);
        response.set_proto("HTTP/1.1")
    }

    /// Adds headers to the response: all of them, or none if one is malformed or they don't fit. (The crate's
    /// `set_header` takes only UTF-8, and lets line ends through.) A client's response has some already, of Varnish and VCL: they
    /// give way to those of their names.
    pub fn add_headers<'h>(
        &mut self,
        headers: impl Iterator<Item = (&'h str, &'h [u8])> + Clone,
    ) -> Result<(), VclError> {
        let (mut slots, mut bytes) = (0, 0);
        for (name, value) in headers.clone() {
            if name.is_empty() || name.bytes().any(|c| !c.is_ascii_graphic() || c == b':') {
                return Err("a header's name is not a token".into());
            }
            if value.iter().any(|c| b"\r\n\0".contains(c)) {
                return Err(format!("a line end or NUL in the value of header {name}").into());
            }
            slots += 1;
            bytes += line_len(name, value);
        }
        let workspace = match self.side {
            Side::Backend => "workspace_backend",
            Side::Client => "workspace_client",
        };
        let free = free(self.ctx);
        let replaces = self.side == Side::Client;
        let response = self.response()?;
        let limit = usize::from(response.raw.shd);
        if usize::from(response.raw.nhd) + slots + SPARE_SLOTS > limit {
            return Err(format!(
                "{slots} response headers are more than http_max_hdr ({limit}) allows"
            )
            .into());
        }
        if bytes + SPARE_BYTES > free {
            return Err(
                format!("the response headers, {bytes} bytes, don't fit in {workspace}").into(),
            );
        }
        if replaces {
            for (name, _) in headers.clone() {
                response.unset_header(name);
            }
        }
        for (name, value) in headers {
            let line = [name.as_bytes(), b": ", value].concat();
            let copy = self.ctx.ws.copy_bytes_with_null(&line)?;
            let response = self.response()?;
            // SAFETY: it is the task's http, and the NUL-terminated copy lives in the workspace of the same task.
            unsafe { ffi::http_SetHeader(&raw mut *response.raw, copy.b) };
        }
        Ok(())
    }

    /// How many bytes a string of any length may have that is put into the workspace.
    pub fn room(&self) -> usize {
        room(self.ctx, usize::MAX)
    }

    /// As `set beresp.uncacheable = true`.
    pub fn set_uncacheable(&mut self) {
        if self.side == Side::Client {
            return;
        }
        // SAFETY: new() has checked that there is one, and only this thread works on the fetch.
        if let Some(bo) = unsafe { self.ctx.raw.bo.as_mut() } {
            bo.set_uncacheable(1);
        }
    }
}
