//! How many connections there may be. A new one beyond that takes the seat of whoever has been silent for longest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The seats of all connections.
#[derive(Debug)]
pub struct Seats {
    free: Arc<Semaphore>,
    most: u32,
    idle: Mutex<Idle>,
}

/// Who has nothing under way, by when that began.
#[derive(Debug, Default)]
struct Idle {
    next: u64,
    list: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's seat.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    state: Mutex<State>,
    lost: Arc<Notify>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// With its place in the list.
    Idle(u64),
    BusySince(Instant),
}

impl Seats {
    /// So many, at least one.
    pub fn new(most: u32) -> Arc<Self> {
        let most = most.max(1);
        Arc::new(Self {
            free: Arc::new(Semaphore::new(most as usize)),
            most,
            idle: Mutex::default(),
        })
    }

    /// A seat for a connection that has nothing under way yet. Where none is free, the one that has been idle for longest is
    /// lost; where none is idle, this waits.
    pub async fn take(self: &Arc<Self>) -> Seat {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => Ok(permit),
            Err(_) => {
                let oldest = self.idle.lock().list.pop_first();
                if let Some((_, lost)) = oldest {
                    lost.notify_one();
                }
                self.free.clone().acquire_owned().await
            }
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else {
            return std::future::pending().await;
        };
        let lost = Arc::new(Notify::new());
        let place = self.idle.lock().add(&lost);
        Seat {
            seats: self.clone(),
            state: Mutex::new(State::Idle(place)),
            lost,
            _permit: permit,
        }
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        (self.most as usize).saturating_sub(self.free.available_permits())
    }

    /// Waits until all are free.
    pub async fn all_left(&self) {
        let _all = self.free.acquire_many(self.most).await;
    }
}

impl Idle {
    fn add(&mut self, lost: &Arc<Notify>) -> u64 {
        let place = self.next;
        self.next += 1;
        self.list.insert(place, lost.clone());
        place
    }
}

impl Seat {
    /// Something is under way from now on. False if the seat is lost already.
    pub fn set_busy(&self) -> bool {
        let mut state = self.state.lock();
        if let State::Idle(place) = *state
            && self.seats.idle.lock().list.remove(&place).is_none()
        {
            return false;
        }
        *state = State::BusySince(Instant::now());
        true
    }

    /// It is over.
    pub fn set_idle(&self) {
        let mut state = self.state.lock();
        if let State::BusySince(_) = *state {
            *state = State::Idle(self.seats.idle.lock().add(&self.lost));
        }
    }

    /// Since when something is under way.
    pub fn busy_since(&self) -> Option<Instant> {
        match *self.state.lock() {
            State::BusySince(time) => Some(time),
            State::Idle(_) => None,
        }
    }

    /// Waits until another connection takes it.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let State::Idle(place) = *self.state.lock() {
            self.seats.idle.lock().list.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn who_is_silent_for_longest_gives_way() {
        let seats = Seats::new(3);
        let take = || poll(seats.take());
        let (first, second, third) = (take().unwrap(), take().unwrap(), take().unwrap());
        assert!(first.set_busy());
        first.set_idle();
        assert!(second.set_busy());
        // The third is the oldest that is idle now.
        assert!(take().is_none());
        assert!(poll(third.lost()).is_some() && !third.set_busy());
        assert!(poll(first.lost()).is_none() && poll(second.lost()).is_none());
        drop(third);
        let fourth = take().unwrap();
        assert_eq!(seats.taken(), 3);
        assert!(first.set_busy() && fourth.set_busy());
        // Nobody is idle: the next one waits.
        assert!(take().is_none());
        assert!(fourth.busy_since().is_some());
        drop((first, second, fourth));
        assert_eq!(seats.taken(), 0);
        assert!(poll(seats.all_left()).is_some());
        assert!(seats.idle.lock().list.is_empty());
    }
}
