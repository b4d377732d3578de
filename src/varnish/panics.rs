//! Where a panic's message goes: Varnish's log and stderr, without a backtrace.
#![forbid(unsafe_code)]

use std::panic;
use std::sync::Once;

use varnish::vcl::LogTag;

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
