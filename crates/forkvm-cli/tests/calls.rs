//! Every supported system call has a program of tests/guests/linux that makes it natively and in the machine alike.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use common::{guest_path, kvm_or_skip};

/// Where calls are carried out, by name.
const TABLES: [&str; 3] = [
    include_str!("../../forkvm/src/linux/table.rs"),
    include_str!("../../forkvm/src/linux/net/table.rs"),
    include_str!("../../forkvm/src/linux/tasks/table.rs"),
];
/// Which program covers which call: "call program", or "call - reason".
const COVERAGE: &str = include_str!("../../../tests/guests/linux/calls.txt");
/// The programs that the tests of exec.rs compare.
const COMPARED: &str = concat!(include_str!("alike.rs"), include_str!("exec.rs"));

/// The calls that the tables name.
fn supported() -> BTreeSet<&'static str> {
    let names = TABLES.into_iter().flat_map(|table| {
        table.split("Sysno::").skip(1).map(|rest| {
            let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            &rest[..end.unwrap_or(rest.len())]
        })
    });
    names.filter(|name| *name != "new").collect()
}

/// For each call its program, and what is said after it.
fn coverage() -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let lines = COVERAGE.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (call, rest) = line.split_once(' ')?;
            Some((call, rest.split_once(' ').unwrap_or((rest, ""))))
        })
        .collect()
}

#[test]
fn every_call_is_covered_or_has_a_reason() {
    let covered = coverage();
    let listed: BTreeSet<_> = covered.keys().copied().collect();
    let supported = supported();
    let missing: Vec<_> = supported.difference(&listed).collect();
    assert!(missing.is_empty(), "no program covers {missing:?}");
    let gone: Vec<_> = listed.difference(&supported).collect();
    assert!(gone.is_empty(), "not in the tables: {gone:?}");
    for (call, (program, reason)) in covered {
        match program {
            "-" => assert!(!reason.is_empty(), "{call} has neither program nor reason"),
            _ => assert!(
                COMPARED.contains(&format!("same(\"{program}\")"))
                    || COMPARED.contains(&format!("program(\"{program}\")")),
                "{program}, which covers {call}, is compared nowhere"
            ),
        }
    }
}

#[test]
fn programs_make_the_calls_that_they_cover() {
    kvm_or_skip!();
    let mut of_program: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (call, (program, _)) in coverage() {
        of_program.entry(program).or_default().push(call);
    }
    of_program.remove("-");
    for (program, calls) in of_program {
        let path = guest_path(&format!("linux/{program}"));
        let output = Command::new(env!("CARGO_BIN_EXE_forkvm"))
            .args(["exec", "--strace", "--env", "FILES_TEST=/tmp"])
            .args(["--env", "LINUX_TEST=x=y"])
            .arg(format!("--allow-read={}", path.parent().unwrap().display()))
            .arg("--")
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let trace = String::from_utf8_lossy(&output.stderr);
        for call in calls {
            let made = trace.lines().any(|line| {
                let after = line
                    .strip_prefix('[')
                    .and_then(|line| line.split_once("] "));
                after.is_some_and(|(_, made)| made.starts_with(&format!("{call}(")))
            });
            assert!(made, "{program} does not call {call}");
        }
    }
}
