//! An update or a rollback that is asked for by HTTP: who may, the body, and an answer that tells the truth.
#![forbid(unsafe_code)]

use std::cell::LazyCell;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::fetch::body::{self, BadBody, Body};
use crate::fetch::response::Response;
use crate::order::Upload;
use crate::orders::outcome::{Done, Refused};
use crate::orders::refusal::{self, Refusal};
use crate::orders::update::{self, Source, Turn};
use crate::orders::versions;
use crate::tenants::keys::Proof;
use crate::tenants::tenant::Tenant;
use crate::tenants::version::Version;
use crate::varnish::fetch::Fetch;

/// Carries out an order. An error is a failed fetch.
// In a stack frame of its own: those of other requests should stay small.
#[inline(never)]
pub fn respond(
    fetch: &mut Fetch<'_, '_>,
    tenant: Option<Arc<Tenant>>,
    asked: &str,
    order: &Upload,
) -> Result<Response, String> {
    let name = tenant.as_ref().map_or(asked, |tenant| tenant.name());
    let response = match carry_out(fetch, tenant.as_ref(), order) {
        Ok((status, body)) => refusal::answer(fetch, status, name, &body),
        Err(refusal) => {
            // update.rs has logged what it refused.
            if !matches!(refusal, Refusal::Refused(_))
                || matches!(refusal, Refusal::Refused(Refused::Busy))
            {
                refusal.log(fetch, name, "not updated");
            }
            body::discard(fetch);
            refusal.answer(fetch, name)
        }
    };
    response.map_err(|error| format!("tenant {name}: {error}"))
}

fn carry_out(
    fetch: &mut Fetch<'_, '_>,
    tenant: Option<&Arc<Tenant>>,
    order: &Upload,
) -> Result<(u16, Value), Refusal> {
    let tenant = tenant.ok_or(Refusal::Unknown)?;
    let (key, action) = order.key();
    let proof = tenant.check(key.bytes(), &fetch.method(), action)?;
    // Whoever may update may look; and a client can ask so whether its key is right before it sends a program.
    let looks = matches!(&*fetch.method(), "GET" | "HEAD");
    if looks && matches!(order, Upload::Update { .. }) {
        // To look twice changes nothing.
        return Ok((200, versions::list(tenant)?));
    }
    // One upload of a tenant at a time, which need not keep others from a rollback while it trickles in.
    let (source, _upload) = match order {
        Upload::Update { max_size, .. } => {
            let upload = Turn::to_upload(tenant)?;
            let elf = read(fetch, *max_size, tenant, proof)?;
            (Source::Given(elf), Some(upload))
        }
        Upload::Rollback { .. } => {
            // Its body is not read.
            proof.spend_without_body(tenant.name())?;
            (Source::Rollback, None)
        }
    };
    let turn = Turn::take(tenant)?;
    let done = update::update(tenant, source, turn)?;
    let status = if done.changed() { 201 } else { 200 };
    Ok((status, of_done(tenant.name(), &done)))
}

/// The program in the request's body, checked against X-Sha256 and against what was signed, which is used up.
pub fn read(
    fetch: &mut Fetch<'_, '_>,
    max_size: usize,
    tenant: &Tenant,
    proof: Proof<'_>,
) -> Result<Vec<u8>, Refusal> {
    proof.check_unused(tenant.name())?;
    let max_size = match max_size {
        0 => tenant.settings.values.max_update_size as usize,
        given => given,
    };
    let wanted = fetch
        .header("x-sha256")
        .map(|digits| String::from_utf8_lossy(digits.trim_ascii()).parse::<Version>())
        .transpose()?;
    let elf = Body::of_upload(fetch, max_size, tenant).map_err(|bad| match bad {
        BadBody::TooLarge(_) => Refusal::TooLarge(max_size),
        BadBody::NoRoom => Refusal::OutOfMemory,
        bad => bad.into(),
    })?;
    let got = LazyCell::new(|| Version::of(&elf));
    if let Some(wanted) = wanted
        && wanted != *got
    {
        return Err(Refusal::WrongDigest { got: *got, wanted });
    }
    proof.spend(tenant.name(), || *got)?;
    Ok(elf)
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
