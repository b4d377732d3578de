//! `forkvm serve`: what is random is new in each connection, or so made that libraries seed their generators anew.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::collections::{BTreeMap, BTreeSet};

use common::{guest_path, kvm_or_skip};
use serving::Serving;

const ZERO: &str = "00000000000000000000000000000000";
const KEPT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// What a server of `seeded.c` says in some connections, by name.
fn said(options: &[&str], argument: &str) -> Vec<BTreeMap<String, String>> {
    let program = guest_path("linux/seeded").to_str().unwrap().to_owned();
    let serving = Serving::start(
        &[&[&*format!("--allow-read={program}")], options].concat(),
        &[&program, "8000", argument],
    );
    let one = |_| {
        let line = serving.answer(b"x");
        let words = line.split_ascii_whitespace();
        let pairs = words.map(|word| word.split_once('=').unwrap());
        let pairs: BTreeMap<String, String> = pairs.map(|(a, b)| (a.into(), b.into())).collect();
        assert_eq!(pairs.len(), 12, "{line:?} {}", serving.said());
        pairs
    };
    (0..6).map(one).collect()
}

/// How many different ones there are.
fn kinds(said: &[BTreeMap<String, String>], name: &str) -> usize {
    let values: BTreeSet<&str> = said.iter().map(|one| one[name].as_str()).collect();
    values.len()
}

#[test]
fn a_connection_is_a_child_with_numbers_of_its_own() {
    kvm_or_skip!();
    let said = said(&["-t2"], "");
    assert_eq!(kinds(&said, "getrandom"), said.len());
    assert_eq!(kinds(&said, "auxv"), said.len());
    for one in &said {
        let memory = ["wiped", "read-only", "kept"].map(|name| one[name].as_str());
        assert_eq!(memory, [ZERO, ZERO, KEPT]);
        // What seeds itself anew in a child finds another id; all others the one that there was. Both mean the process.
        let ids = ["other", "plain", "tid", "own", "former", "stranger"];
        let ids = ids.map(|name| one[name].as_str());
        assert_eq!(ids, ["1", "1", "1", "1", "1", "0"], "{one:?}");
    }
}

#[test]
fn a_child_made_for_a_connection_has_them_too() {
    kvm_or_skip!();
    let said = said(&["-t2"], "forks");
    assert_eq!(kinds(&said, "getrandom"), said.len());
    for one in &said {
        let memory = ["wiped", "late", "kept"].map(|name| one[name].as_str());
        assert_eq!(memory, [ZERO, ZERO, KEPT]);
        let ids = ["other", "plain", "own", "former"].map(|name| one[name].as_str());
        assert_eq!(ids, ["1", "0", "1", "0"], "{one:?}");
    }
}

#[test]
fn what_a_program_has_written_itself_stays() {
    kvm_or_skip!();
    for one in said(&["-t2"], "mark") {
        assert_eq!(one["auxv"], "ee".repeat(16));
    }
}

#[test]
fn without_a_reset_it_is_one_child() {
    kvm_or_skip!();
    let said = said(&["--no-reset"], "");
    assert_eq!(kinds(&said, "getrandom"), said.len());
    assert_eq!(kinds(&said, "auxv"), 1);
    assert_eq!(said[0]["wiped"], ZERO);
    for one in &said[1..] {
        assert_eq!(one["wiped"], "cc".repeat(16));
        assert_eq!([&one["other"], &one["own"], &one["former"]], ["1"; 3]);
    }
}
