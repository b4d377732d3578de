//! An update or a rollback that is asked for by HTTP: who may, the body, and an answer that tells the truth.
#![forbid(unsafe_code)]

use std::sync::Arc;

use serde_json::{Value, json};
use varnish::vcl::{LogTag, VclError};

use crate::fetch::Fetch;
use crate::keys::Denied;
use crate::logging;
use crate::request::{BadBody, Body};
use crate::response::Response;
use crate::tenant::Tenant;
use crate::update::{self, Done, Refused, Source, Turn};
use crate::version::{NotAVersion, Version};

/// What is asked for, beside the tenant.
pub enum Order {
    /// The body is the new program.
    Update {
        /// The key that was sent.
        key: Vec<u8>,
        /// The longest body.
        max_size: usize,
    },
    /// The program before comes back.
    Rollback {
        /// The key that was sent.
        key: Vec<u8>,
    },
}

/// Keys are not shown.
impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Update { .. } => "Update",
            Self::Rollback { .. } => "Rollback",
        })
    }
}

/// Why the order was not carried out.
#[derive(Debug, thiserror::Error)]
enum Not {
    #[error("there is no such tenant")]
    Unknown,
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("the program is larger than max_size ({0} bytes)")]
    TooLarge(usize),
    #[error("there is no memory for the upload")]
    OutOfMemory,
    #[error("X-Sha256 {0}")]
    BadDigest(#[from] NotAVersion),
    #[error("the upload's SHA-256 is {got}, not {wanted} as X-Sha256 says")]
    WrongDigest { got: Version, wanted: Version },
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A failed fetch: there is nobody to answer.
    #[error("{0}")]
    Unreadable(String),
}

impl Not {
    fn status(&self) -> u16 {
        match self {
            Self::BadDigest(_) => 400,
            Self::Denied(Denied::NoKey) => 401,
            Self::Denied(_) => 403,
            Self::Unknown => 404,
            Self::Refused(Refused::Busy) => 409,
            Self::TooLarge(_) => 413,
            Self::WrongDigest { .. }
            | Self::Refused(Refused::BadProgram { .. } | Refused::NothingBefore) => 422,
            Self::Refused(Refused::Store(_) | Refused::Internal) => 500,
            Self::OutOfMemory
            | Self::Refused(Refused::Booting | Refused::NoResources(_) | Refused::TooLong)
            | Self::Unreadable(_) => 503,
        }
    }

    /// What the client is told.
    fn text(&self) -> String {
        match self {
            // That there is a key file, and where, is the operator's business.
            Self::Denied(Denied::Unreadable(_)) => Denied::Disabled.to_string(),
            other => other.to_string(),
        }
    }
}

/// Carries out an order. An error is a failed fetch.
pub fn respond(
    fetch: &mut Fetch<'_, '_>,
    tenant: Option<Arc<Tenant>>,
    asked: &str,
    order: &Order,
) -> Result<Response, String> {
    let name = tenant.as_ref().map_or(asked, |tenant| tenant.name());
    let response = match carry_out(fetch, tenant.as_ref(), order) {
        Ok(done) => answer(
            fetch,
            if done.changed() { 201 } else { 200 },
            name,
            &of_done(name, &done),
        ),
        Err(Not::Unreadable(what)) => return Err(format!("tenant {name}: upload: {what}")),
        Err(no) => {
            // update.rs has logged what it refused.
            if !matches!(no, Not::Refused(_)) || matches!(no, Not::Refused(Refused::Busy)) {
                for record in logging::about(name, &format!("not updated: {no}")) {
                    fetch.log(LogTag::Error, &record);
                }
            }
            let mut body = json!({ "tenant": name, "error": no.text() });
            if let Not::Refused(Refused::BadProgram { stderr, .. }) = &no {
                body["stderr"] = String::from_utf8_lossy(stderr).into();
            }
            answer(fetch, no.status(), name, &body)
        }
    };
    response.map_err(|error| format!("tenant {name}: {error}"))
}

fn carry_out(
    fetch: &mut Fetch<'_, '_>,
    tenant: Option<&Arc<Tenant>>,
    order: &Order,
) -> Result<Done, Not> {
    let tenant = tenant.ok_or(Not::Unknown)?;
    match order {
        Order::Update { key, max_size } => {
            tenant.settings.key.check(key)?;
            let turn = Turn::take(tenant)?;
            let elf = read(fetch, *max_size)?;
            Ok(update::update(tenant, Source::Given(elf), turn)?)
        }
        Order::Rollback { key } => {
            tenant.settings.key.check(key)?;
            let turn = Turn::take(tenant)?;
            Ok(update::update(tenant, Source::Rollback, turn)?)
        }
    }
}

/// The program in the request's body, checked against X-Sha256.
fn read(fetch: &mut Fetch<'_, '_>, max_size: usize) -> Result<Vec<u8>, Not> {
    let wanted = fetch
        .header("x-sha256")
        .map(|digits| String::from_utf8_lossy(digits.trim_ascii()).parse::<Version>())
        .transpose()?;
    let body = Body::bounded(fetch, max_size, None).map_err(|bad| match bad {
        BadBody::TooLarge => Not::TooLarge(max_size),
        BadBody::NoRoom => Not::OutOfMemory,
        BadBody::Unreadable(what) => Not::Unreadable(what),
    })?;
    let elf = body.into_bytes();
    match wanted {
        Some(wanted) if wanted != Version::of(&elf) => Err(Not::WrongDigest {
            got: Version::of(&elf),
            wanted,
        }),
        _ => Ok(elf),
    }
}

fn of_done(tenant: &str, done: &Done) -> Value {
    let mut body = json!({
        "tenant": tenant,
        "version": done.version,
        "previous": done.previous,
        "bytes": done.bytes,
        "boot_ms": done.boot.as_millis() as u64,
        "ready_ms": done.ready.as_millis() as u64,
    });
    if let Some(bytes) = done.state {
        body["state_bytes"] = bytes.into();
    }
    body
}

fn answer(
    fetch: &mut Fetch<'_, '_>,
    status: u16,
    tenant: &str,
    body: &Value,
) -> Result<Response, VclError> {
    let body = format!("{body:#}\n").into_bytes();
    fetch.set_status(status)?;
    fetch.add_header("Content-Type", b"application/json")?;
    fetch.add_header("Content-Length", body.len().to_string().as_bytes())?;
    if status == 401 {
        let challenge = format!("X-LiveUpdate realm=\"{tenant}\"");
        fetch.add_header("WWW-Authenticate", challenge.as_bytes())?;
    }
    if matches!(status, 409 | 503) {
        fetch.add_header("Retry-After", b"1")?;
    }
    fetch.set_uncacheable();
    Ok(if fetch.method() == "HEAD" {
        Response::without_body()
    } else {
        Response::bytes(body)
    })
}
