//! Storages in service, which save when that is over: their program's, or the whole process's.

use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// One that can be told to save.
pub trait Saves: Send + Sync {
    /// Saves, and says itself what comes of it.
    fn save_and_tell(&self);
    /// It has, and nothing more is to run in it.
    fn is_over(&self);
}

#[derive(Default)]
struct All {
    in_service: Vec<Weak<dyn Saves>>,
    /// How many save just now because they end.
    saving: usize,
}

static ALL: LazyLock<Mutex<All>> = LazyLock::new(Mutex::default);
/// One has saved.
static SAVED: Condvar = Condvar::new();

/// This one is in service from now on.
pub fn enter(storage: Weak<dyn Saves>) {
    let mut all = ALL.lock();
    all.in_service.retain(|one| one.strong_count() > 0);
    all.in_service.push(storage);
}

/// Has one save on a thread of its own, since it ends.
pub fn save(storage: Arc<dyn Saves>) {
    ALL.lock().saving += 1;
    let saving = Saving(storage);
    // Without a thread nothing is saved, as in a crash.
    let _ = std::thread::Builder::new()
        .name("forkvm-storage".into())
        .spawn(move || {
            saving.0.save_and_tell();
            drop(saving);
        });
}

/// Has all save, since the process ends, and waits for that for so long at most. False: some have not.
pub fn save_all(time: Duration) -> bool {
    let end = Instant::now() + time;
    let in_service = std::mem::take(&mut ALL.lock().in_service);
    in_service.iter().filter_map(Weak::upgrade).for_each(save);
    let mut all = ALL.lock();
    while all.saving > 0 && !SAVED.wait_until(&mut all, end).timed_out() {}
    all.saving == 0
}

/// One that saves; also if it panics.
struct Saving(Arc<dyn Saves>);

impl Drop for Saving {
    fn drop(&mut self) {
        self.0.is_over();
        ALL.lock().saving -= 1;
        SAVED.notify_all();
    }
}
