//! The threads that fetch, for all clients of the process.

use std::sync::OnceLock;

use forkvm::FetchError;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::names::THREADS;

/// How many there are.
const WORKERS: usize = 2;

/// What runs on them. They begin with the first fetch.
pub fn handle() -> Result<&'static Handle, FetchError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(THREADS)
            .thread_name("forkvm-fetch")
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| format!("the threads that fetch can't be started: {error}"))
    });
    match runtime {
        Ok(runtime) => Ok(runtime.handle()),
        Err(what) => Err(FetchError::Unreachable(what.clone())),
    }
}
