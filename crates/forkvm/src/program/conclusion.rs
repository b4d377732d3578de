//! What a client gets when a handler has answered, or failed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::call::handlers::Handlers;
use crate::call::hypercall::Response;
use crate::failure::{Cause, Failure};
use crate::master::Master;
use crate::program::answer::Answer;
use crate::program::counters::Counters;
use crate::program::lease::Lease;
use crate::program::stay::{Stay, stored};
use crate::request::{Host, Request};

/// Time `on_error` gets beyond the request's deadline, which a timeout has used up.
const ON_ERROR_TIME: Duration = Duration::from_secs(1);

/// A program's counters, and its request's right to its storage.
pub type Owner<'a> = (&'a Arc<Counters>, Option<Stay>);

/// The handler's answer, or in its place the one of `on_error`, which says in [`Answer::failure`] what happened.
pub fn conclude(
    owner: Owner<'_>,
    mut lease: Lease<Master>,
    result: Result<Response, Cause>,
    request: &Request<'_>,
    deadline: Instant,
    host: &mut dyn Host,
) -> Result<Answer, Failure> {
    let (counters, stay) = &owner;
    let master = lease.pool().origin().clone();
    let most = master.config.limits.max_response_size;
    let cause = match result.and_then(|response| bounded(response, most)) {
        Ok(response) => return Answer::of_guest(owner, lease, response, None, deadline),
        Err(cause) => cause,
    };
    lease.fork()?.has_failed();
    let stopped = cause == Cause::Stopped;
    let what = master.describe(&cause);
    let failure = counters.failed(cause, what);
    let handlers = &master.wait_point.handlers;
    // Whoever had it end wants no answer.
    if stopped || handlers.get(Handlers::ON_ERROR).is_none() {
        return Err(failure);
    }
    let spent = lease.usage().spent;
    if let Err(error) = lease.fork()?.reset() {
        return Err(failed_again(
            failure,
            &format!("on_error can't be called: {error}"),
        ));
    }
    // The reset has begun its account anew.
    lease.pool().account().spent(spent);
    let deadline = deadline.min(Instant::now()) + ON_ERROR_TIME;
    match lease
        .fork()?
        .call_on_error(
            request,
            &failure.to_string(),
            stored(stay.as_ref()),
            deadline,
            host,
        )
        .and_then(|response| bounded(response, most))
    {
        Ok(response) => {
            let failure = Some(failure);
            Answer::of_guest(owner, lease, response, failure, deadline)
        }
        Err(second) => {
            let second = format!("on_error failed: {}", master.describe(&second));
            Err(failed_again(failure, &second))
        }
    }
}

/// A response that is longer than allowed is a failure like any other.
fn bounded(response: Response, most: u64) -> Result<Response, Cause> {
    // One whose length is not known yet is looked at while it is made.
    let len = response.body.len().unwrap_or(0);
    match len > most {
        true => Err(Cause::LongResponse { len, most }),
        false => Ok(response),
    }
}

/// A failure that is not all: what else went wrong is told with it.
fn failed_again(first: Failure, second: &str) -> Failure {
    match first {
        Failure::Guest { cause, what } => Failure::Guest {
            cause,
            what: format!("{what}; then {second}"),
        },
        other => other,
    }
}
