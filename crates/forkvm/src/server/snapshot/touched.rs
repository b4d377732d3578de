//! Which memory requests touch: what a fork that comes from the file has to have before it can answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use crate::request::Quiet;
use crate::server::fork::ServerFork;
use crate::server::master::Server;
use crate::server::warm_up;

/// Most different warm-up requests that are looked at.
const MOST_REQUESTS: usize = 8;

/// The numbers of the frames that the warm-up requests touch, each in a fork of its own: its first one, as that is what a client
/// waits for. Without a warm-up, those that a connection touches at which nothing arrives, since a request that nobody has asked for
/// may do what nobody wants. Where a fork can't be had or fails, less is known, and more is waited for.
pub fn touched(server: &Arc<Server>) -> BTreeSet<u64> {
    let mut requests: Vec<&[u8]> = Vec::new();
    for request in &server.limits.warm_up {
        if !requests.contains(&&request[..]) && requests.len() < MOST_REQUESTS {
            requests.push(request);
        }
    }
    if requests.is_empty() {
        requests.push(b"");
    }
    let mut touched = BTreeSet::new();
    for request in requests {
        let noted = ServerFork::noting(Arc::clone(server));
        let Ok((mut fork, frames)) = noted else {
            break;
        };
        // Who is asked nothing waits for the question.
        let time = match request {
            b"" => server.limits.max_request_time.min(warm_up::IDLE),
            _ => server.limits.max_request_time,
        };
        let deadline = Instant::now() + time;
        let mut client = warm_up::Client::new(request, Some(deadline));
        let _ = fork.serve(&mut client, &mut Quiet);
        touched.extend(frames.lock().iter());
    }
    touched
}
