//! How state that holds things of this host is written to a file and read back (a server's snapshot): times
//! as what they differ from the freeze, open files as numbers in a list. What that is relative to goes beside serde, which
//! hands nothing on, in a scope of the thread.

pub mod array;
pub mod instant;
pub mod instant_option;
pub mod listed;
pub mod listed_option;
mod scope;

pub use self::scope::{Shared, within};

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct State {
        #[serde(with = "instant")]
        at: Instant,
        #[serde(with = "instant_option")]
        until: Option<Instant>,
        #[serde(with = "listed")]
        file: Arc<String>,
        #[serde(with = "listed_option")]
        other: Option<Arc<String>>,
        #[serde(with = "array")]
        many: [u8; 100],
    }

    #[test]
    fn times_go_with_the_freeze_and_files_by_their_number() {
        let frozen = Instant::now();
        let file = Arc::new("a".to_owned());
        let state = State {
            at: frozen - Duration::from_secs(5),
            until: Some(frozen + Duration::from_secs(7)),
            file: file.clone(),
            other: Some(file.clone()),
            many: [3; 100],
        };
        let (bytes, list) = within(frozen, Vec::new(), || postcard::to_stdvec(&state).unwrap());
        assert_eq!(list.len(), 1);
        let later = frozen + Duration::from_secs(1_000_000);
        let again: Shared = Arc::new("b".to_owned());
        let read = || postcard::from_bytes::<State>(&bytes);
        let (found, _) = within(later, vec![again], read);
        let found = found.unwrap();
        assert_eq!(found.at, later - Duration::from_secs(5));
        assert_eq!(found.until, Some(later + Duration::from_secs(7)));
        assert!(Arc::ptr_eq(&found.file, &found.other.unwrap()));
        assert_eq!((*found.file).as_str(), "b");
        assert_eq!(found.many, [3; 100]);
        // A list without it, one of other things, and no scope at all.
        let (none, _) = within(later, Vec::new(), read);
        let (other, _) = within(later, vec![Arc::new(7) as Shared], read);
        assert!(none.is_err() && other.is_err() && read().is_err());
    }
}
