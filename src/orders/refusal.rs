//! Why an order was not carried out, and the answer that says so.
#![forbid(unsafe_code)]

use forkvm::Failure;
use serde_json::{Value, json};
use varnish::vcl::{LogTag, VclError};

use crate::fetch::body::BadBody;
use crate::fetch::plain;
use crate::fetch::response::Response;
use crate::orders::outcome::Refused;
use crate::tenants::keys::Denied;
use crate::tenants::signature::BadSignature;
use crate::tenants::tenant::NotReady;
use crate::tenants::version::{NotAVersion, Version};
use crate::varnish::fetch::Fetch;
use crate::varnish::logging;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The VCL has none of this name.
    #[error("there is no such tenant")]
    Unknown,
    /// The key does not allow it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The upload is too long.
    #[error("the program is larger than {0} bytes (max_update_size, or max_size of the order)")]
    TooLarge(usize),
    /// The host is short of it.
    #[error("there is no memory for the upload")]
    OutOfMemory,
    /// The client's digest is none.
    #[error("X-Sha256 {0}")]
    BadDigest(#[from] NotAVersion),
    /// The upload is damaged.
    #[error("the upload's SHA-256 is {got}, not {wanted} as X-Sha256 says")]
    WrongDigest {
        /// The upload's.
        got: Version,
        /// What the client said.
        wanted: Version,
    },
    /// No update, or no program to debug.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The tenant's settings say no.
    #[error("debugging is not allowed for this tenant (allow_debug)")]
    NoDebugging,
    /// There is nothing to stop in a server.
    #[error(
        "it is an unmodified server, which gdb can't stop here; debug it where it runs natively (debugging.md)"
    )]
    NoDebuggingOfServers,
    /// One at a time.
    #[error("another request of this tenant is being debugged, one at a time can be")]
    Debugged,
    /// There is no program to debug.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The request that was to be debugged can't be handed to the program.
    #[error(transparent)]
    Body(BadBody),
    /// The request that was debugged failed, which is in the log.
    #[error("{0}")]
    Failed(Failure),
    /// A failed fetch: there is nobody to answer.
    #[error("{0}")]
    Unreadable(String),
}

impl From<BadBody> for Refusal {
    fn from(bad: BadBody) -> Self {
        match bad {
            BadBody::Unreadable(what) => Self::Unreadable(what),
            bad => Self::Body(bad),
        }
    }
}

impl Refusal {
    fn status(&self) -> u16 {
        match self {
            Self::BadDigest(_) => 400,
            Self::Denied(Denied::NoKey) => 401,
            Self::Body(BadBody::Slow(_)) => 408,
            Self::Denied(Denied::Unreadable(_)) => 503,
            Self::Denied(Denied::Signature(BadSignature::TooMany)) => 503,
            Self::Denied(_) | Self::NoDebugging | Self::NoDebuggingOfServers => 403,
            Self::Unknown => 404,
            Self::Refused(Refused::Busy) => 409,
            Self::TooLarge(_) | Self::Body(BadBody::TooLarge(_)) => 413,
            Self::WrongDigest { .. }
            | Self::Refused(Refused::BadProgram { .. } | Refused::NothingBefore) => 422,
            Self::Failed(failure) if failure.is_busy() => 503,
            Self::Failed(_) | Self::Refused(Refused::Store(_) | Refused::Internal) => 500,
            Self::OutOfMemory
            | Self::Debugged
            | Self::NotReady(_)
            | Self::Body(_)
            | Self::Refused(Refused::Booting | Refused::NoResources(_) | Refused::TooLong)
            | Self::Unreadable(_) => 503,
        }
    }

    /// What the client is told.
    fn text(&self) -> String {
        match self {
            // Where things are on this host is the operator's business, who finds it in the log.
            Self::Denied(Denied::Unreadable(_)) => {
                "the key can't be read, the log says why".to_owned()
            }
            Self::NotReady(NotReady::Failed(_)) => {
                "its program is not ready, the log says why".to_owned()
            }
            Self::Refused(Refused::Store(_)) => "it can't be stored, the log says why".to_owned(),
            Self::Refused(Refused::NoResources(_)) => {
                "the host lacks something for it now, the log says what".to_owned()
            }
            other => other.to_string(),
        }
    }

    /// Logs that something was not done, in the fetch's transaction.
    pub fn log(&self, fetch: &mut Fetch<'_, '_>, tenant: &str, not_done: &str) {
        logging::log_in(fetch, LogTag::Error, tenant, &format!("{not_done}: {self}"));
    }

    /// The answer. An error is a failed fetch.
    pub fn answer(&self, fetch: &mut Fetch<'_, '_>, tenant: &str) -> Result<Response, VclError> {
        if let Self::Unreadable(what) = self {
            return Err(format!("upload: {what}").into());
        }
        let mut body = json!({ "tenant": tenant, "error": self.text() });
        if let Self::Refused(Refused::BadProgram { stderr, .. }) = self {
            body["stderr"] = String::from_utf8_lossy(stderr).into();
        }
        answer(fetch, self.status(), tenant, &body)
    }
}

/// An answer in JSON.
pub fn answer(
    fetch: &mut Fetch<'_, '_>,
    status: u16,
    tenant: &str,
    body: &Value,
) -> Result<Response, VclError> {
    let challenge = format!("X-LiveUpdate realm=\"{tenant}\"");
    let retry = matches!(status, 409 | 503);
    let headers = [
        ("Content-Type", "application/json"),
        (
            "WWW-Authenticate",
            if status == 401 { &challenge } else { "" },
        ),
        ("Retry-After", if retry { "1" } else { "" }),
    ];
    let body = format!("{body:#}\n").into_bytes();
    plain::respond(fetch, status, &headers, body.into())
}
