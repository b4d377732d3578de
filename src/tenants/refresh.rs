//! Tenants of the same name in other VCLs follow an update of one of them.
#![forbid(unsafe_code)]

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use varnish::vcl::LogTag;

use crate::tenants::boot::{self, Purpose};
use crate::tenants::places::Place;
use crate::tenants::source;
use crate::tenants::tenant::{Release, State, Tenant};
use crate::varnish::logging;

/// Gives a tenant the stored program, if it runs another one: after an update of a tenant of the same name with other
/// settings (those of another VCL), of which this one did not know.
pub fn refresh(tenant: &Arc<Tenant>) {
    // A panic is logged, and whoever called us has other things to do.
    let _ = panic::catch_unwind(AssertUnwindSafe(|| while catches_up(tenant) {}));
}

/// Tries to boot the stored program, if that is another one. Says whether to look again: what is stored may have changed
/// meanwhile, and so may what runs. (No turn is taken, since an update would be refused for that.)
fn catches_up(tenant: &Tenant) -> bool {
    let state = tenant.state();
    let tried = match &state {
        State::Booting => return false,
        State::Ready(_) => tenant.unfit(),
        State::Failed(failed) => failed.version,
    };
    let Ok(Some(manifest)) = tenant.store.manifest() else {
        return false;
    };
    let base = source::version_of_path(tenant);
    let mut programs = tenant.store.programs(base, |_| {});
    // One before it, if it can't be read just now, is no progress.
    let Some(stored) = programs
        .next()
        .filter(|elf| elf.version == manifest.current)
    else {
        return false;
    };
    let version = stored.version;
    if matches!(&state, State::Ready(release) if release.version == version) {
        tenant.set_unfit(None);
        return false;
    }
    if tried == Some(version) {
        return false;
    }
    match boot::start_whole(
        tenant,
        &stored.elf,
        None,
        Purpose::Service,
        &mut Place::take(),
    ) {
        Ok(program) => {
            if tenant.replace(&state, State::Ready(Release { program, version })) {
                if let State::Ready(before) = &state {
                    before.program.retire();
                }
                let text = format!("updated to {}, for another VCL", version.short());
                logging::log(LogTag::Notice, tenant.name(), &text);
            }
            true
        }
        Err(failure) => {
            // Whoever loads a VCL with these settings gets to know the reason again.
            tenant.set_unfit(Some(version));
            let text = format!("not updated for another VCL: {}", failure.reason);
            logging::log(LogTag::Error, tenant.name(), &text);
            // A program that failed has not become another one by that.
            matches!(state, State::Ready(_))
        }
    }
}
