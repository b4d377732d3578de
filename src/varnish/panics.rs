//! Panics: none gets out to C, and the message goes to Varnish's log and stderr, without a backtrace.
#![forbid(unsafe_code)]

use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use varnish::vcl::{LogTag, VclError};

/// Installs our panic hook, for the Rust code of this VMOD only (the .so has a standard library of its own).
///
/// std's hook would print a backtrace if the environment asks for one, and resolving its symbols takes more than the
/// 80 KiB of stack that varnishd gives its threads: a panic that was caught would end the child after all.
pub fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let place = info
                .location()
                .map_or_else(String::new, ToString::to_string);
            let what = info.payload_as_str().unwrap_or("?");
            let text = format!("kvm: internal error at {place}: {what}");
            // Stderr as well: varnishd passes it on to syslog, where it is still found after a restart.
            eprintln!("{text}");
            crate::varnish::logging::write(LogTag::Error, &text);
        }));
    });
}

/// Runs what C has called, and lets no panic out. The hook has logged it.
pub fn guard<T>(body: impl FnOnce() -> T) -> Result<T, VclError> {
    panic::catch_unwind(AssertUnwindSafe(body))
        .map_err(|_| "kvm: internal error, logged separately".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On less stack than varnishd's threads have (`thread_pool_stack`, 80 KiB).
    #[test]
    fn a_panic_does_not_get_out() {
        install_hook();
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        let guarded = thread.spawn(|| {
            let message = guard(|| panic!("of a test")).unwrap_err().to_string();
            (message, guard(|| 1).ok())
        });
        let (message, after) = guarded.unwrap().join().unwrap();
        assert!(message.contains("internal error"), "{message}");
        assert_eq!(after, Some(1));
    }
}
