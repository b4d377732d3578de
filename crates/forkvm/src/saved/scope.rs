//! What state is written or read in: the moment of the freeze, and a list of what is referred to.

use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

/// Something of the host that state refers to.
pub type Shared = Arc<dyn Any + Send + Sync>;

/// What state is written or read in.
pub struct Scope {
    /// The moment of the freeze.
    pub frozen: Instant,
    /// What is referred to by number.
    list: Vec<Shared>,
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Does `work`, in which state is written or read that was, or is from now on, frozen at this moment and refers to what is in
/// the list. Gives the list as it is then: writing adds to it.
pub fn within<T>(frozen: Instant, list: Vec<Shared>, work: impl FnOnce() -> T) -> (T, Vec<Shared>) {
    /// Nothing is left in the scope, also in a panic.
    struct Left(Option<Scope>);
    impl Drop for Left {
        fn drop(&mut self) {
            SCOPE.set(self.0.take());
        }
    }
    let left = Left(SCOPE.replace(Some(Scope { frozen, list })));
    let result = work();
    let list = SCOPE.take().map_or_else(Vec::new, |scope| scope.list);
    drop(left);
    (result, list)
}

/// Looks at it; `None` outside of [`within`].
pub fn scope<T>(what: impl FnOnce(&mut Scope) -> Option<T>) -> Option<T> {
    SCOPE.with_borrow_mut(|scope| what(scope.as_mut()?))
}

/// The number of something, which gets one.
pub fn number(of: &Shared) -> Option<u32> {
    scope(|scope| {
        let known = scope.list.iter().position(|known| Arc::ptr_eq(known, of));
        let place = known.unwrap_or_else(|| {
            scope.list.push(Arc::clone(of));
            scope.list.len().saturating_sub(1)
        });
        u32::try_from(place).ok()
    })
}

/// What a number stands for.
pub fn numbered(number: u32) -> Option<Shared> {
    scope(|scope| scope.list.get(usize::try_from(number).ok()?).cloned())
}
