//! A request to a tenant's unmodified server: what its response has while it is made.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use forkvm::{Answer, Failure, Host, Later, Program, Request, Upload};

use crate::tenants::room::Taken;
use crate::tenants::tenant::Tenant;
use crate::varnish::logging::LateOutput;

/// Has a server answer: all of its response, or what there is once its head is there and the rest takes its time.
pub fn answer(
    program: &Arc<Program>,
    request: &Request<'_>,
    tenant: &Tenant,
    deadline: Instant,
    host: &mut dyn Host,
) -> Result<Answer, Failure> {
    program
        .exchange(request, Upload::Whole, deadline, host)?
        .answer(deadline, Some(later(tenant)), host)
}

/// What there is for a response whose head is out.
fn later(tenant: &Tenant) -> Later {
    let mut room = Taken::nothing(&tenant.responses);
    Later {
        host: Box::new(LateOutput::new(
            tenant.name(),
            tenant.settings.values.stdout,
        )),
        // Others are to have some, too.
        room: Box::new(move |more| room.take_fair(more)),
    }
}
