//! An answer that is a string of VCL's.
#![forbid(unsafe_code)]

use crate::fetch::answer;
use crate::fetch::chain::{self, End, Ended};
use crate::fetch::request::Input;
use crate::order::Chain;
use crate::varnish::fetch::Fetch;

/// Has a chain's end answer, and gives the body. The first program is asked by a GET, since the request's body is for others. `None` if
/// it has failed, which is logged, or if its status is `error_threshold` or above.
pub fn of(
    fetch: &mut Fetch<'_, '_>,
    chain: &Chain,
    end: End<'_>,
    error_threshold: u16,
) -> Result<Option<Vec<u8>>, String> {
    let Ended { tenant, result } = chain::run(fetch, chain, end, Input::Nothing)?;
    let mut answer = match result {
        Ok(answered) => answered.answer,
        Err(unanswered) => {
            unanswered.log(fetch, &tenant);
            return Ok(None);
        }
    };
    if answer.failure().is_some() || answer.status() >= error_threshold {
        return Ok(None);
    }
    let (len, room) = (answer.body_len(), fetch.room());
    let fitting = usize::try_from(len).ok().filter(|&len| len <= room);
    let Some(len) = fitting else {
        let text = format!("its answer of {len} bytes does not fit in the workspace ({room} left)");
        answer::log_failed(fetch, &tenant, &text);
        return Ok(None);
    };
    let mut text = vec![0; len];
    let mut at = 0;
    while at < len {
        match answer.read_body(&mut text[at..]) {
            0 => break,
            n => at += n,
        }
    }
    if text.contains(&0) {
        answer::log_failed(fetch, &tenant, "its answer has a NUL, which no string has");
        return Ok(None);
    }
    Ok(Some(text))
}
