#!/usr/bin/env python3
"""Runs others' test suites natively and in the machine, and compares test by test (docs/conformance.md).

    conformance.py [--log FOLDER] [SUITE[/UNIT]...]

FORKVM is the command, CONFORMANCE the folder that conformance-setup.sh made. What may differ, and why, is in
tests/conformance/SUITE.txt: a difference that is not there is an error, and so is one that is there and is gone.
"""
import argparse
import fnmatch
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent / "tests" / "conformance"
PREFIX = Path(os.environ.get("CONFORMANCE", HERE.parent.parent / "target" / "conformance")).resolve()
FORKVM = os.environ.get("FORKVM", str(HERE.parent.parent / "target" / "release" / "forkvm"))
# What a program is given in both places.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp"}
# Seconds: of a test, and of all of a unit's.
TEST_TIME, UNIT_TIME = 60, 600
# A unit is run again without the test that ended it, so many times.
MOST_DEATHS = 20
# A test that does not do what is expected is run again by itself, so many times: natively as well some fail now and then.
AGAIN = 2


class Suite:
    """Its units are run one by one; each has a program, and lines that say how its tests ended."""

    def __init__(self, name):
        self.name = name
        self.units = (HERE / f"{name}.units").read_text().split()

    def cwd(self, unit):
        """Where the program runs; by default a folder of its own."""
        return None

    def environment(self, unit):
        """What the program is given besides."""
        return {}


class Python(Suite):
    def command(self, unit, only, without):
        python = PREFIX / "python/usr/bin/python3.11"
        tests = [f"{sign}test.{unit}.{test}" for sign, tests in (("+", only), ("-", without)) for test in tests]
        return [python, HERE / "unittests.py", str(TEST_TIME), f"test.{unit}", *tests]

    def verdicts(self, unit, lines):
        for line in lines:
            if found := re.match(r"@ (run|ok|fail|skip) (\S+)", line):
                yield found[2].removeprefix(f"test.{unit}."), found[1]

    def ended(self, lines):
        return any(line.startswith("@ done") for line in lines)


class Go(Suite):
    def command(self, unit, only, without):
        name = unit.replace("/", "_")
        command = [PREFIX / f"go/{name}.test", "-test.v", "-test.short", f"-test.timeout={TEST_TIME * 5}s"]
        # Go 1.19 has no -test.skip.
        if without and not only:
            listed = subprocess.run([command[0], "-test.list=."], capture_output=True, text=True, check=True)
            only = [test for test in listed.stdout.split() if test.startswith(("Test", "Example"))]
        if only:
            only = [test for test in only if not any(fnmatch.fnmatchcase(test, pattern) for pattern in without)]
            command.append(f"-test.run=^({'|'.join(only)})$")
        return command

    def verdicts(self, unit, lines):
        verdict = {"PASS": "ok", "FAIL": "fail", "SKIP": "skip"}
        for line in lines:
            # A test's own output may stand before it on the line.
            if found := re.match(r"=== (RUN  |CONT |PAUSE) ([^\s/]+)$", line):
                yield found[2], "pause" if found[1] == "PAUSE" else "run"
            elif found := re.search(r"--- (PASS|FAIL|SKIP): ([^\s/]+) \(", line):
                yield found[2], verdict[found[1]]

    def ended(self, lines):
        return any(line in ("PASS", "FAIL") for line in lines)

    def environment(self, unit):
        # Many of these build programs and run them, but leave themselves out where there are flags for the compiler.
        return {"GO_GCFLAGS": "-e"} if unit == "runtime" else {}

    def cwd(self, unit):
        return f"/usr/share/go-1.19/src/{unit}"


SUITES = {"cpython": Python("cpython"), "go": Go("go")}


def run_once(suite, unit, where, log, only, without):
    """The lines that the program printed."""
    command = [str(word) for word in suite.command(unit, only, without)]
    environment = ENVIRONMENT | suite.environment(unit)
    with tempfile.TemporaryDirectory() as folder:
        cwd = suite.cwd(unit)
        if where == "machine":
            command = [
                FORKVM, "exec", "--allow-read=/usr,/etc,/bin,/lib,/sbin," + f"{PREFIX},{HERE}", f"--cwd={cwd or '/tmp'}",
                "--max-file-memory=512", f"--max-time={UNIT_TIME}",
                *(f"--env={name}={value}" for name, value in environment.items()), "--", *command,
            ]
            cwd = "/"
        with open(log, "ab") as errors:
            try:
                # Whatever the tests' own output has in it.
                done = subprocess.run(
                    command, cwd=cwd or folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=errors, timeout=UNIT_TIME + 30)
                out = done.stdout
            except subprocess.TimeoutExpired as late:
                out = late.stdout or b""
            errors.write(out)
    return out.decode(errors="replace").splitlines()


def run(suite, unit, where, log, only, without):
    """How each test ended (all, or only some): "ok", "fail", "skip", or "died" if it ended the program or would not end."""
    verdicts, died = {}, list(without)
    for _ in range(MOST_DEATHS):
        lines = run_once(suite, unit, where, log, only, died)
        started = {}
        for test, verdict in suite.verdicts(unit, lines):
            started[test] = "died" if verdict == "run" else verdict
        # Those that waited for others to end are run next time.
        started = {test: verdict for test, verdict in started.items() if verdict != "pause"}
        verdicts |= started
        dead = [test for test, verdict in started.items() if verdict == "died"]
        if suite.ended(lines) and not dead:
            break
        # One that has failed may still take the program along.
        dead = dead or list(started)[-1:]
        if not dead:
            verdicts["the-end"] = "died"
            break
        died += dead
    return verdicts


def run_both(suite, unit, logs, only, without):
    """As run(), natively and in the machine, at the same time unless only some are run; tests by their full names."""

    def run_there(where):
        tests = run(suite, unit, where, logs / f"{unit.replace('/', '_')}.{where}.log", only, without)
        return {f"{unit}.{test}": how for test, how in tests.items()}

    with ThreadPoolExecutor(1 if only else 2) as threads:
        return list(threads.map(run_there, ("native", "machine")))


class Expected:
    """A file of expected differences: a line with "#" is the reason for those after it; each is one test, or several by a
    pattern, all of which differ; "died" before it if that is how it ends in the machine, "maybe" if it is so at times,
    "without" if it is not run at all."""

    def __init__(self, name):
        self.file = HERE / f"{name}.txt"
        self.lines = []
        self.without = []
        reason = ""
        for line in self.file.read_text().splitlines():
            if line.startswith("#"):
                reason = line
            elif line.strip():
                *how, pattern = line.split()
                if not reason:
                    sys.exit(f"{self.file}: {pattern} has no reason")
                if how == ["without"]:
                    self.without.append(pattern)
                else:
                    self.lines.append((pattern, how[0] if how else ""))

    def compare(self, native, machine):
        """What is wrong, by test; how many differences are as expected; and what lines they are of."""
        wrong, expected = {}, 0
        matched = set()
        for test in sorted(native.keys() | machine.keys()):
            here, there = native.get(test, "none"), machine.get(test, "none")
            lines = [line for line in self.lines if fnmatch.fnmatchcase(test, line[0])]
            matched.update(lines)
            hows = {how for _, how in lines}
            if here == there:
                if lines and "maybe" not in hows:
                    wrong[test] = f"is listed, and does not differ: {here}"
            elif not lines or (there == "died") > bool(hows & {"died", "maybe"}):
                wrong[test] = f"natively {here}, in the machine {there}"
            else:
                expected += 1
        return wrong, expected, matched


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=PREFIX / "log")
    parser.add_argument("what", nargs="*", metavar="SUITE[/UNIT]", default=list(SUITES))
    arguments = parser.parse_args()
    bad = False
    for what in arguments.what:
        name, _, only = what.partition("/")
        suite = SUITES[name]
        expected = Expected(name)
        unseen = set(expected.lines)
        for unit in [only] if only else suite.units:
            logs = arguments.log / name
            logs.mkdir(parents=True, exist_ok=True)
            for log in logs.glob(f"{unit.replace('/', '_')}.*.log"):
                log.unlink()
            without = [test.removeprefix(f"{unit}.") for test in expected.without if test.startswith(f"{unit}.")]
            native, machine = run_both(suite, unit, logs, [], without)
            wrong, differ, matched = expected.compare(native, machine)
            first = wrong
            for _ in range(AGAIN):
                if wrong:
                    some = run_both(suite, unit, logs, [test.removeprefix(f"{unit}.") for test in wrong], without)
                    native, machine = native | some[0], machine | some[1]
                    wrong, differ, matched = expected.compare(native, machine)
            unseen -= matched
            ok = sum(how == "ok" for how in machine.values())
            print(f"{name} {unit}: {len(native)} tests, {ok} ok in the machine, {differ} differ as expected", flush=True)
            for test, how in first.items():
                bad |= test in wrong
                print(f"    {test}: {wrong[test]}" if test in wrong else f"    {test}: at first {how}", flush=True)
        if not only:
            for pattern, _ in unseen:
                bad = True
                print(f"{expected.file}: there is no test {pattern}")
    sys.exit(bad)


main()
