//! An answer that is the body of vcl_synth: on its client's thread, without a fetch.
#![forbid(unsafe_code)]

use varnish::vcl::VclError;

use crate::fetch::answer::{self, Answered};
use crate::fetch::chain::{self, End, Ended};
use crate::fetch::plain;
use crate::fetch::request::Input;
use crate::order::Chain;
use crate::tenants::figures;
use crate::tenants::room::Taken;
use crate::tenants::tenant::Tenant;
use crate::varnish::fetch::{Fetch, of_task};
use crate::varnish::synthetic::Synthetic;

/// What a body takes of its tenant's room: until the request is over, since Varnish has all of it until its client has read it.
struct Kept {
    _room: Taken,
}

of_task!(Kept);

/// Has a chain's end, or one of the programs before it, answer the client's request, and makes that the response: with its status, or
/// this one. `None` if it has failed, which is logged, and the response is as it was, but for its body, which is empty then.
pub fn answer(
    fetch: &mut Fetch<'_, '_>,
    body: &mut Synthetic<'_>,
    chain: &Chain,
    end: End<'_>,
    status: Option<u16>,
) -> Result<Option<u16>, String> {
    let Ended { tenant, result } = chain::run(fetch, chain, end, Input::Request)?;
    Ok(match result {
        Ok(answered) => make(fetch, body, &tenant, answered, status),
        Err(unanswered) => {
            unanswered.log(fetch, &tenant);
            None
        }
    })
}

fn make(
    fetch: &mut Fetch<'_, '_>,
    body: &mut Synthetic<'_>,
    tenant: &Tenant,
    Answered {
        mut answer,
        version,
        mut room,
        ..
    }: Answered,
    status: Option<u16>,
) -> Option<u16> {
    if let Some(objection) = answer::objection(fetch, &answer) {
        answer::log_failed(fetch, tenant, objection);
        return None;
    }
    let status = status.unwrap_or(answer.status());
    let len = match plain::has_body(status) {
        true => answer.body_len(),
        false => 0,
    };
    if !room.take_all(len) {
        let no_room = forkvm::Failure::NoRoom { len };
        answer::log_busy(fetch, tenant, &no_room.to_string());
        return None;
    }
    let made = || -> Result<(), VclError> {
        let len = usize::try_from(len).map_err(|_| "it is too long")?;
        body.fill(len, |buf| answer.read_body(buf))?;
        figures::add(&tenant.figures.sent, len as u64);
        fetch.keep(Kept { _room: room })?;
        // Varnish tells the length of what is there.
        answer::add_headers(fetch, &answer, version, None)?;
        fetch.set_status(status)
    };
    if let Err(error) = made() {
        body.clear();
        let text = format!("its response can't be sent: {error}");
        answer::log_failed(fetch, tenant, &text);
        return None;
    }
    Some(status)
}
