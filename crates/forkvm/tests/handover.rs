//! Live update in the engine: the old program's state arrives in the new one, or the error says why not; whatever
//! happens, the old program serves as before.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use common::{Recorder, Tenant, config, guest, kvm_or_skip, scaled};
use forkvm::{BootError, Config, Host, Program, Quiet, Stream};

/// The settings of both programs. A handler that hangs has the rest of max_boot_time: of such the time is short.
fn settings(name: &str) -> Config {
    let mut config = config(name);
    let seconds = if name.contains("hangs") { 1 } else { 20 };
    config.limits.max_boot_time = scaled(Duration::from_secs(seconds));
    config.limits.max_memory = 32 << 20;
    config.limits.max_request_memory = 4 << 20;
    config
}

fn boot(name: &str) -> Tenant {
    Tenant::boot_with(name, |config| *config = settings(name))
}

fn succeed(old: &Program, name: &str, host: &mut dyn Host) -> Result<Tenant, BootError> {
    let settings = settings(&format!("{} {name}", old.config().name));
    old.boot_successor(&guest(name), settings, host)
        .map(Into::into)
}

#[track_caller]
fn successor(old: &Program, name: &str) -> Tenant {
    succeed(old, name, &mut Quiet).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What a program remembers. Its forks are the master's, also after a hand-over.
#[track_caller]
fn history(of: &Tenant) -> String {
    let text = of.get("/").text().to_owned();
    of.assert_pristine();
    text
}

#[test]
fn state_goes_over_from_program_to_program() {
    kvm_or_skip!();
    let one = boot("state-one");
    assert_eq!(one.restored_state(), None);
    let two = successor(&one, "state-two");
    assert_eq!(two.restored_state(), Some(3));
    let three = successor(&two, "state-noreturn");
    let four = successor(&three, "state-take-pieces");
    assert_eq!(history(&four), "one>two>noreturn>take-pieces");
    assert_eq!(four.restored_state(), Some(16));
    // Each of them goes on with what it knew.
    assert_eq!(history(&three), "one>two>noreturn");
    assert_eq!(history(&one), "one");
    // It can be had again, and outlives the one it is from.
    let again = successor(&one, "state-two");
    drop((one, two, three));
    assert_eq!(history(&again), "one>two");
    assert_eq!(history(&four), "one>two>noreturn>take-pieces");
}

#[test]
fn a_program_may_have_no_state_to_give_or_no_use_for_it() {
    kvm_or_skip!();
    for (old, new, bytes, after) in [
        ("state-silent", "state-two", None, "two"),
        ("state-gives-nothing", "state-two", None, "two"),
        ("state-one", "state-deaf", None, "deaf"),
        // The old one is not even asked.
        ("state-give-crashes", "state-deaf", None, "deaf"),
        ("state-give-empty", "state-two", Some(0), ">two"),
    ] {
        let old = boot(old);
        let new = successor(&old, new);
        assert_eq!(new.restored_state(), bytes, "{}", history(&old));
        assert_eq!(history(&new), after);
    }
}

/// Sends the old program a request while its handler runs.
struct Meanwhile<'a> {
    old: &'a Tenant,
    seen: Vec<String>,
}

impl Host for Meanwhile<'_> {
    fn output(&mut self, _: Stream, bytes: &[u8]) {
        assert_eq!(bytes, b"giving");
        self.seen.push(history(self.old));
    }
}

#[test]
fn requests_neither_wait_for_the_handler_nor_see_what_it_does() {
    kvm_or_skip!();
    // It has one fork, and that is for requests.
    let old = boot("state-give-changes");
    for _ in 0..3 {
        let mut meanwhile = Meanwhile {
            old: &old,
            seen: Vec::new(),
        };
        let new = succeed(&old, "state-two", &mut meanwhile).unwrap();
        assert_eq!(meanwhile.seen, ["give-changes"]);
        assert_eq!(history(&new), "give-changes!>two");
        assert_eq!(history(&old), "give-changes");
    }
}

/// A host with others to run, who keep a program from running on for a while, the first few times.
#[derive(Default)]
struct Shared {
    slices: u32,
    /// At which of them it wants the boot to end.
    stops_at: Option<u32>,
}

const KEPT: Duration = Duration::from_millis(600);

impl Host for Shared {
    fn output(&mut self, _: Stream, _: &[u8]) {}

    fn slice(&self) -> Option<Duration> {
        Some(Duration::from_millis(10))
    }

    fn give_way(&mut self, _: Duration) -> ControlFlow<()> {
        self.slices += 1;
        if Some(self.slices) == self.stops_at {
            return ControlFlow::Break(());
        }
        if self.slices <= 4 {
            std::thread::sleep(KEPT);
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn the_handler_shares_the_processor_as_the_boot_does() {
    kvm_or_skip!();
    let old = boot("state-give-hangs");
    let mut host = Shared::default();
    let mut config = settings("t");
    config.limits.max_boot_time = KEPT * 2;
    let booted = old.boot_successor(&guest("state-two"), config, &mut host);
    let error = booted.unwrap_err();
    assert!(error.to_string().contains("max_boot_time"), "{error}");
    // It was kept for twice its time, which did not count.
    assert!(host.slices >= 4, "{} slices", host.slices);
}

/// It is no state that can't be handed over: nobody is to try without.
#[test]
fn a_host_ends_a_boot_while_the_state_is_handed_over() {
    kvm_or_skip!();
    for (old, new) in [("give-hangs", "two"), ("one", "take-hangs")] {
        let (name, old) = (old, boot(&format!("state-{old}")));
        let mut host = Shared {
            stops_at: Some(1),
            ..Default::default()
        };
        let error = succeed(&old, &format!("state-{new}"), &mut host)
            .map(|new| history(&new))
            .expect_err(new);
        assert!(matches!(error, BootError::Stopped), "{new}: {error}");
        assert_eq!(host.slices, 1, "{new}");
        assert_eq!(history(&old), name);
    }
}

#[test]
fn a_state_that_cannot_go_over_is_an_error_and_the_old_program_stays() {
    kvm_or_skip!();
    let giving = "on_live_update of the program before: ";
    for (old, new, words) in [
        ("give-crashes", "two", [giving, "invalid instruction"]),
        ("give-hangs", "two", [giving, "max_boot_time"]),
        ("give-wild", "two", [giving, "1000 bytes at"]),
        ("give-huge", "two", [giving, "max_memory"]),
        ("give-exits", "two", [giving, "exit(3)"]),
        (
            "give-answers",
            "two",
            [giving, "backend_response() outside"],
        ),
        ("give-greedy", "two", [giving, "max_request_memory"]),
        ("one", "take-refuses", ["on_live_restore", "without taking"]),
        (
            "one",
            "take-crashes",
            ["on_live_restore", "invalid instruction"],
        ),
        ("one", "take-hangs", ["", "max_boot_time"]),
        ("one", "take-wild", ["on_live_restore", "3 bytes at"]),
        ("one", "take-exits", ["", "exit(3)"]),
        ("one", "take-answers", ["", "backend_response() outside"]),
    ] {
        let (name, old) = (old, boot(&format!("state-{old}")));
        let error = succeed(&old, &format!("state-{new}"), &mut Quiet)
            .map(|new| history(&new))
            .expect_err(new);
        let BootError::State(what) = error else {
            panic!("{name}, {new}: {error}");
        };
        for words in words {
            assert!(what.contains(words), "{name}, {new}, {words}: {what}");
        }
        assert_eq!(history(&old), name);
        // The next one may do better: it has no use for the state, or can take it.
        let next = if name == "one" { "two" } else { "deaf" };
        let next = successor(&old, &format!("state-{next}"));
        assert!(["deaf", "one>two"].contains(&history(&next).as_str()));
    }
}

#[test]
fn a_successor_that_is_no_program_takes_no_state() {
    kvm_or_skip!();
    let old = boot("state-give-changes");
    for name in ["bad-text", "bad-main-crashes", "bad-no-handler"] {
        let mut host = Recorder::default();
        let error = succeed(&old, name, &mut host).map(drop).expect_err(name);
        assert!(!matches!(error, BootError::State { .. }), "{error}");
        // It was never asked for.
        assert_eq!(host.text(Stream::Stderr), "", "{name}");
        assert_eq!(history(&old), "give-changes");
    }
}

#[test]
fn a_state_larger_than_the_new_programs_memory_stays_where_it_is() {
    kvm_or_skip!();
    let old: Arc<Program> = boot("state-give-huge").clone();
    let mut config = settings("t");
    config.limits.max_memory = 24 << 20;
    let error = old
        .boot_successor(&guest("state-two"), config, &mut Quiet)
        .map(drop)
        .unwrap_err();
    // The limit is the new program's.
    assert!(error.to_string().contains("25165824"), "{error}");
}
