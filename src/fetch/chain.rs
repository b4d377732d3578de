//! Programs one after the other: the answer of each is what the next one is asked. Bodies stay on the host, and each fork is back
//! before the next program is asked.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use forkvm::Answer;

use crate::fetch::answer::Answered;
use crate::fetch::ask::{self, Question};
use crate::fetch::body::{BadBody, Body};
use crate::fetch::request::Input;
use crate::fetch::serve::{self, Extent};
use crate::fetch::unanswered::Unanswered;
use crate::order::{Chain, Link};
use crate::tenants::tenant::Tenant;
use crate::varnish::fetch::Fetch;

/// The longest chain, without the program that ends it.
pub const LONGEST: usize = 16;

/// How much of an answer is copied at once.
const PIECE: usize = 64 << 10;

/// The program that ends a chain, which may have none before it.
pub struct End<'t> {
    pub tenant: &'t Arc<Tenant>,
    pub url: Vec<u8>,
    pub arg: Vec<u8>,
    /// Whether it is asked for all of its answer, as those before it are, or for what the client wants.
    pub whole: bool,
    /// How much of its answer there has to be.
    pub extent: Extent,
}

/// What came of a chain.
pub struct Ended {
    /// The tenant of the last program that was asked.
    pub tenant: Arc<Tenant>,
    /// Its answer.
    pub result: Result<Answered, Unanswered>,
}

/// Asks all programs of a chain, or up to the first whose answer ends it: by its status, or since there is none. The first gets
/// `input`. Each has its own time, all together no more than the longest of these. An error is a tenant that can't be asked.
pub fn run(
    fetch: &mut Fetch<'_, '_>,
    Chain(links): &Chain,
    end: End<'_>,
    mut input: Input,
) -> Result<Ended, String> {
    let time = |tenant: &Tenant| tenant.settings.config.limits.max_request_time;
    let tenants = links.iter().map(|link| link.tenant.clone());
    let tenants = tenants.collect::<Result<Vec<_>, String>>()?;
    let mut left = tenants
        .iter()
        .map(|tenant| time(tenant))
        .fold(time(end.tenant), Duration::max);
    let next = tenants.iter().skip(1).chain([end.tenant]);
    for ((link, tenant), next) in links.iter().zip(&tenants).zip(next) {
        let question = Question {
            url: link.url.clone().unwrap_or_else(|| fetch.url()),
            arg: link.arg.clone(),
            input,
            whole: true,
            most: left,
        };
        let result = ask::ask(fetch, tenant, question, Extent::Whole);
        let answered = match result {
            Ok(answered) if !ends(link, &answered.answer) => answered,
            result => {
                return Ok(Ended {
                    tenant: tenant.clone(),
                    result,
                });
            }
        };
        left = left.saturating_sub(answered.took);
        input = match handed_on(answered.answer, next) {
            Ok(input) => input,
            Err(bad) => {
                return Ok(Ended {
                    tenant: next.clone(),
                    result: Err(bad.into()),
                });
            }
        };
    }
    let question = Question {
        url: end.url,
        arg: end.arg,
        input,
        whole: end.whole,
        most: left,
    };
    let result = ask::ask(fetch, end.tenant, question, end.extent);
    Ok(Ended {
        tenant: end.tenant.clone(),
        result,
    })
}

fn ends(link: &Link, answer: &Answer) -> bool {
    answer.failure().is_some() || answer.status() >= link.error_threshold
}

/// An answer as what the next program is asked: as long as a request's body to that may be. Its fork is back after this.
fn handed_on(mut answer: Answer, to: &Tenant) -> Result<Input, BadBody> {
    let (limit, setting) = match to.settings.server {
        true => (to.settings.values.max_body_size, serve::OF_SERVERS),
        false => (
            to.settings.config.limits.max_request_memory,
            crate::fetch::body::OF_PROGRAMS,
        ),
    };
    let len = answer.body_len();
    if len > limit {
        return Err(BadBody::TooLarge(setting));
    }
    let len = usize::try_from(len).map_err(|_| BadBody::TooLarge(setting))?;
    let mut body = Body::of_tenant(to);
    let mut piece = vec![0; len.min(PIECE)];
    loop {
        match answer.read_body(&mut piece) {
            0 => break,
            n => body.push(&piece[..n], len)?,
        }
    }
    let content_type = match answer.content_type() {
        b"" => {
            let mut headers = answer.headers().iter();
            let header = headers.find(|header| header.name.eq_ignore_ascii_case("content-type"));
            header.map_or_else(Vec::new, |header| header.value.to_vec())
        }
        given => given.to_vec(),
    };
    Ok(Input::Answer { body, content_type })
}
