//! Futures, on the one processor that a virtual machine has.

use std::future::{poll_fn, Future};
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a future to its end. Nothing else runs meanwhile: there are no threads, so what a future waits for has to come of
/// polling it, or of a call to the host, which waits.
///
/// # Panics
///
/// If the future waits and has woken nobody: nothing ever would.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        assert!(
            woken.0.swap(false, Ordering::Relaxed),
            "the future waits for what nothing in this virtual machine will ever wake"
        );
    }
}

/// Lets the other futures of a [`join`] have a turn.
pub async fn yield_now() {
    let mut waited = false;
    poll_fn(|context| {
        if waited {
            return Poll::Ready(());
        }
        waited = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Both results, when both are there. What the two begin before they wait goes on at the same time.
pub async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut a_is, mut b_is) = (None, None);
    poll_fn(|context| {
        poll_once(&mut a_is, a.as_mut(), context);
        poll_once(&mut b_is, b.as_mut(), context);
        match (a_is.take(), b_is.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (a_is, b_is) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// All results, in the futures' order, when all are there; as [`join`].
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    poll_fn(|context| {
        for (future, output) in &mut futures {
            poll_once(output, future.as_mut(), context);
        }
        if futures.iter().any(|(_, output)| output.is_none()) {
            return Poll::Pending;
        }
        Poll::Ready(futures.iter_mut().filter_map(|(_, o)| o.take()).collect())
    })
    .await
}

/// Polls what has no output yet.
fn poll_once<F: Future>(
    output: &mut Option<F::Output>,
    future: Pin<&mut F>,
    context: &mut Context<'_>,
) {
    if output.is_none() {
        if let Poll::Ready(is) = future.poll(context) {
            *output = Some(is);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::{pending, ready};
    use std::panic::catch_unwind;

    use super::*;

    /// Begins, lets others have their turns, and ends.
    async fn steps(said: &RefCell<Vec<String>>, name: &str, turns: usize) -> String {
        said.borrow_mut().push(format!("{name} begins"));
        for _ in 0..turns {
            yield_now().await;
        }
        said.borrow_mut().push(format!("{name} ends"));
        name.to_owned()
    }

    #[test]
    fn both_begin_before_either_ends() {
        let said = RefCell::default();
        let both = block_on(join(steps(&said, "a", 2), steps(&said, "b", 1)));
        assert_eq!(both, ("a".to_owned(), "b".to_owned()));
        let said = said.into_inner();
        assert_eq!(said, ["a begins", "b begins", "b ends", "a ends"]);
    }

    #[test]
    fn all_results_in_their_order() {
        let said = RefCell::default();
        let all = ["a", "b", "c"].map(|name| steps(&said, name, 3 - name.len()));
        assert_eq!(block_on(join_all(all)), ["a", "b", "c"]);
        assert!(said.borrow()[..3]
            .iter()
            .all(|said| said.ends_with("begins")));
        assert!(block_on(join_all(Vec::<std::future::Ready<()>>::new())).is_empty());
    }

    #[test]
    fn what_nothing_wakes_is_told() {
        assert_eq!(block_on(ready(7)), 7);
        let never = catch_unwind(|| block_on(pending::<()>()));
        let why = *never
            .expect_err("a panic")
            .downcast::<&str>()
            .expect("a text");
        assert!(why.contains("nothing in this virtual machine"), "{why}");
        assert!(catch_unwind(|| block_on(join(ready(()), pending::<()>()))).is_err());
    }
}
