//! What a server may take.

use std::time::Duration;

/// What a server and its connections may take. Sizes are bytes.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// How long it may take until it waits for a connection.
    pub max_boot_time: Duration,
    /// How long it may take to answer: from the last bytes of the client to the first ones of the server.
    pub max_request_time: Duration,
    /// How long a connection may be silent after an answer.
    pub max_idle_time: Duration,
    /// Memory that one connection may newly dirty.
    pub max_request_memory: u64,
    /// Memory that a fork may keep after a reset.
    pub req_mem_limit_after_reset: u64,
    /// What clients send before the freeze, one after the other, each on a connection of its own: warm-up requests take a
    /// server's first-time costs (lazy imports, caches, a JIT).
    pub warm_up: Vec<Vec<u8>>,
    /// Whether each new fork serves them too, before it gets a connection.
    pub warm_forks: bool,
    /// How long it goes on after that, before the freeze: for what it does some time after its start.
    pub warm_up_time: Duration,
    /// Connections to the outside that are open at the freeze are reset, for the program to find out. Otherwise it is not
    /// frozen.
    pub drop_connections: bool,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_boot_time: Duration::from_secs(60),
            max_request_time: Duration::from_secs(30),
            max_idle_time: Duration::from_secs(60),
            max_request_memory: 256 << 20,
            req_mem_limit_after_reset: 32 << 20,
            warm_up: Vec::new(),
            warm_forks: true,
            warm_up_time: Duration::ZERO,
            drop_connections: false,
        }
    }
}
