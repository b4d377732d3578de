//! What becomes of a program's storage in a live update: its state goes over while no request changes it.

use std::sync::Arc;
use std::time::Instant;

use crate::call::handlers::Handlers;
use crate::call::stored::NotStored;
use crate::failure::BootError;
use crate::program::Program;
use crate::request::Host;

/// A program on its way to take another one's place. Dropped before that is [complete](TakeOver::complete), it leaves the
/// other one as it was.
#[derive(Debug)]
#[must_use]
pub struct TakeOver<'a> {
    before: &'a Arc<Program>,
    program: Arc<Program>,
    /// The way in to the program before is closed.
    is_closed: bool,
    /// Nobody is inside any more.
    is_empty: bool,
}

impl Program {
    /// Has this program's storage take over the state of that of `before`, if they have handlers for it (`on_live_update` there,
    /// `on_live_restore` here). From then on requests of `before` wait, so that none changes what has gone over already; those
    /// under way are waited for before, for [`max_wait`](crate::Limits::max_wait) at most. Those that take longer go on with the storage before.
    ///
    /// # Errors
    /// [`BootError::State`], [`BootError::Stopped`]: nothing has changed for `before`.
    pub fn take_over<'a>(
        self: &Arc<Self>,
        before: &'a Arc<Self>,
        host: &mut dyn Host,
    ) -> Result<TakeOver<'a>, BootError> {
        let mut take_over = TakeOver {
            before,
            program: self.clone(),
            is_closed: false,
            is_empty: false,
        };
        if let (Some(from), Some(to)) = (&before.storage, &self.storage)
            && from.has(Handlers::ON_LIVE_UPDATE)
            && to.has(Handlers::ON_LIVE_RESTORE)
        {
            take_over.is_closed = true;
            from.pause_tasks();
            let late = before
                .way_in
                .close(Instant::now() + before.config().limits.max_wait);
            take_over.is_empty = late == 0;
            if late > 0 {
                host.note(&format!(
                    "{late} requests have taken longer than max_wait: what they store from now on is lost by the update"
                ));
            }
            let limits = &self.config().limits;
            let deadline = Instant::now() + limits.max_boot_time;
            let failed = |which, why: NotStored| match why {
                NotStored::Stopped => BootError::Stopped,
                why => BootError::State(format!("{which}: {why}")),
            };
            let handed_over = from
                .give_state(limits.max_memory, deadline, host)
                .map_err(|why| failed("on_live_update of the storage before", why))?;
            if let Some(state) = handed_over.state {
                to.take_state(state, deadline + handed_over.kept, host)
                    .map_err(|why| failed("on_live_restore of the storage", why))?;
            }
        }
        Ok(take_over)
    }
}

impl TakeOver<'_> {
    /// Says that it has happened: requests that still come to the program before are answered by the new one. Tasks of the one
    /// before are over, and those of the new one begin.
    pub fn complete(mut self) {
        self.is_closed = false;
        let before = self.before;
        if let Some(storage) = &before.storage {
            storage.retire();
            before.way_in.lead_to(self.program.clone());
            // Its program may have to stay for those who read their responses.
            if self.is_empty {
                storage.give_up();
            }
        }
        self.program.begin();
    }
}

impl Drop for TakeOver<'_> {
    fn drop(&mut self) {
        if self.is_closed {
            self.before.way_in.open();
            if let Some(storage) = &self.before.storage {
                storage.go_on_with_tasks();
            }
        }
    }
}
