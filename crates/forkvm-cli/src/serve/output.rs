//! Where goes what a server prints.

use forkvm::{Host, Stream};

use crate::exec::print;

/// What the program prints is ours. Its standard input is empty.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Every call is printed.
    pub strace: bool,
}

impl Host for Output {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        print(stream, bytes);
    }

    fn traces(&self) -> bool {
        self.strace
    }

    fn trace(&mut self, line: &str) {
        err!("{line}");
    }
}
