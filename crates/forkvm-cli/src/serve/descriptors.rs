//! File descriptors: how many connections there may be is how many of these the process may have.

use rustix::process::{Resource, getrlimit, setrlimit};

/// What a fork takes, with the files that its program opens.
const OF_FORK: u64 = 3;
/// What all forks share, the program's files among it, and what the command itself has open.
const OF_OURS: u64 = 256;
/// With fewer connections nothing can be served.
const LEAST: u64 = 8;

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub connections: u32,
    pub forks: usize,
    /// Requests that go by a pair of sockets, at once.
    pub requests: usize,
}

/// Takes as many descriptors as the process may have, and gives how many connections there can be: fewer than wanted, and that is
/// said, if those are not enough.
pub fn prepare(wanted: Wanted) -> Result<u32, String> {
    let limit = getrlimit(Resource::Nofile);
    let mut raised = limit;
    raised.current = limit.maximum;
    let have = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // Without one there is no limit.
    let have = have.unwrap_or(u64::MAX);
    // There are twice the forks while a new program takes the old one's place.
    let others = OF_OURS + 2 * OF_FORK * wanted.forks as u64 + 2 * wanted.requests as u64;
    let room = have.saturating_sub(others);
    if room >= u64::from(wanted.connections) {
        return Ok(wanted.connections);
    }
    let advice =
        "raise LimitNOFILE= of the service or `ulimit -Hn`, or lower --forks and --backlog";
    if room < LEAST {
        return Err(format!(
            "{have} file descriptors are too few, {others} are needed without any connection: {advice}"
        ));
    }
    err!(
        "forkvm: at most {room} connections at once, not {}, since the process may have {have} file descriptors: {advice}",
        wanted.connections
    );
    Ok(u32::try_from(room).unwrap_or(wanted.connections))
}
