//! Requests that are debugged: who may, one at a time, and an answer that tells the programmer what happened.
//!
//! The request runs on its fetch's thread as any other does, and waits there for gdb (`forkvm/src/debug`).
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use forkvm::Host;

use crate::fetch::answer::{self, Answered};
use crate::fetch::body;
use crate::fetch::request::{Asked, Input};
use crate::fetch::response::Response;
use crate::order::{self, Target};
use crate::orders::refusal::Refusal;
use crate::orders::{update, upload};
use crate::tenants::room::Taken;
use crate::tenants::tenant::{DebugTurn, Release, Tenant};
use crate::tenants::version::Version;
use crate::varnish::fetch::Fetch;

/// Has a request debugged. An error is a failed fetch.
// In a stack frame of its own: those of other requests should stay small.
#[inline(never)]
pub fn respond(
    fetch: &mut Fetch<'_, '_>,
    tenant: Option<Arc<Tenant>>,
    asked: &str,
    target: &Target,
    order: &order::Debug,
) -> Result<Response, String> {
    let name = tenant.as_ref().map_or(asked, |tenant| tenant.name());
    let response = match debug(fetch, tenant.as_ref(), target, order) {
        Ok((tenant, answered)) => {
            let head = fetch.method() == "HEAD";
            let response = answer::hand_over(fetch, tenant, answered, head);
            // A debugger may have changed it.
            fetch.set_uncacheable();
            response
        }
        Err(refusal) => {
            if !matches!(refusal, Refusal::Failed(_)) {
                refusal.log(fetch, name, "not debugged");
            }
            body::discard(fetch);
            refusal.answer(fetch, name)
        }
    };
    response.map_err(|error| format!("tenant {name}: {error}"))
}

fn debug<'t>(
    fetch: &mut Fetch<'_, '_>,
    tenant: Option<&'t Arc<Tenant>>,
    target: &Target,
    order: &order::Debug,
) -> Result<(&'t Tenant, Answered), Refusal> {
    let tenant = tenant.ok_or(Refusal::Unknown)?;
    let config = &tenant.settings.config;
    let proof = tenant.check(order.key.bytes(), &fetch.method(), order.action())?;
    if tenant.settings.server {
        return Err(Refusal::NoDebuggingOfServers);
    }
    if !config.debugging.allowed {
        return Err(Refusal::NoDebugging);
    }
    // Before the upload, so that there is one program at most that is only debugged.
    let _turn = DebugTurn::take(tenant).ok_or(Refusal::Debugged)?;
    proof.check_unused(tenant.name())?;
    let (Release { program, version }, mut asked) = match order.upload {
        Some(max_size) => {
            let elf = upload::read(fetch, max_size, tenant, proof)?;
            let asked = Asked::new(fetch, (fetch.url(), Vec::new()), Input::Nothing);
            (update::boot_to_debug(tenant, elf)?, asked)
        }
        None => {
            let release = tenant.program(Instant::now() + config.limits.max_request_time)?;
            let url = target.url.clone().unwrap_or_else(|| fetch.url());
            let asked = Asked::new(fetch, (url, target.arg.clone()), Input::Request);
            let asked = asked.with_body(fetch, tenant)?;
            proof.spend(tenant.name(), || Version::of(asked.request().body))?;
            (release, asked)
        }
    };
    // Keys and orders are nothing for programs.
    asked.conceal(order.key.bytes());
    let start = Instant::now();
    let deadline = start + config.limits.max_request_time;
    let run = |host: &mut dyn Host| program.debug(&asked.request(), deadline, host);
    let answer = answer::ask(fetch, tenant, run).map_err(Refusal::Failed)?;
    let answered = Answered {
        answer,
        deadline,
        took: start.elapsed(),
        version: Some(version),
        room: Taken::nothing(&tenant.responses),
    };
    Ok((tenant, answered))
}
