//! When a fork forgets the pages it has dirtied.
//!
//! Every page on the list is copied back at every reset, whether the last request wrote it or not: KVM does not log a
//! page again while it stays writable. So one large request makes all later ones dearer. Forgetting the list costs too:
//! each page that requests do use is then faulted in anew. The policy weighs the two in pages copied, not in time.

/// Faulting a page in costs about as much as copying this many.
const FAULT: usize = 40;
/// Resets after a shrink during which the list grows to what requests normally use.
const SETTLING: u32 = 16;
/// Surplus copies are put up with until they have cost this many times what forgetting would.
const PATIENCE: usize = 8;

/// One fork's decision, made at every reset.
#[derive(Debug)]
pub struct ShrinkPolicy {
    /// More pages than this are never kept.
    limit: usize,
    resets: u32,
    /// What requests normally use, in pages.
    settled: usize,
    /// Pages copied beyond that since the last shrink.
    surplus: usize,
}

impl ShrinkPolicy {
    /// For a fork that may keep at most `limit` pages.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            resets: 0,
            settled: 0,
            surplus: 0,
        }
    }

    /// To be called at each reset with the length of the list. True if the list is to be forgotten now.
    pub fn is_due(&mut self, listed: usize) -> bool {
        self.resets = self.resets.saturating_add(1);
        if self.resets <= SETTLING {
            self.settled = listed;
        }
        self.surplus += listed - self.settled.min(listed);
        let due = listed > self.limit || self.surplus > PATIENCE * FAULT * (self.settled + 8);
        if due {
            *self = Self::new(self.limit);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resets_until_due(policy: &mut ShrinkPolicy, listed: usize, most: usize) -> Option<usize> {
        (1..=most).find(|_| policy.is_due(listed))
    }

    #[test]
    fn steady_use_is_left_alone() {
        for pages in [0, 5, 100, 1000] {
            let mut policy = ShrinkPolicy::new(2048);
            assert_eq!(
                resets_until_due(&mut policy, pages, 10_000),
                None,
                "{pages} pages"
            );
        }
    }

    #[test]
    fn one_large_request_is_forgotten_soon() {
        let mut policy = ShrinkPolicy::new(2048);
        assert_eq!(resets_until_due(&mut policy, 10, 100), None);
        let resets = resets_until_due(&mut policy, 1010, 1000).unwrap();
        assert!(resets <= 10, "{resets}");
        assert_eq!(resets_until_due(&mut policy, 10, 10_000), None);
    }

    #[test]
    fn the_limit_is_never_exceeded() {
        let mut policy = ShrinkPolicy::new(100);
        assert!(!policy.is_due(100));
        assert!(policy.is_due(101));
    }
}
