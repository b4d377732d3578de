"""Runs the tests of one module of CPython's test suite, and says of each when it begins and how it ended.

    unittests.py SECONDS MODULE [+TEST-TO-RUN...] [-TEST-TO-LEAVE-OUT...]

All are run if none are named; those to leave out may be patterns. Lines on standard output that begin with "@": "@ run TEST",
"@ ok TEST", "@ fail TEST" (failed, or raised something), "@ skip TEST". A test that takes longer than SECONDS ends the program.
"""
import faulthandler
import fnmatch
import os
import sys
import time
import traceback
import unittest

from test import support

seconds, module = float(sys.argv[1]), sys.argv[2]
only = {test[1:] for test in sys.argv[3:] if test[0] == "+"}
left_out = [test[1:] for test in sys.argv[3:] if test[0] == "-"]
# Tests close and replace standard output.
out = os.fdopen(os.dup(1), "w", buffering=1)
# No test asks for the outside, but for one module, to which this is the loopback.
support.use_resources = ["network"] if module == "test.test_socketserver" else []
support.verbose = False


def say(what, test):
    out.write(f"@ {what} {test}\n")


class Result(unittest.TestResult):
    # What a test's end is made of: a test may fail and be skipped, in parts.
    verdict = "ok"

    def startTest(self, test):
        super().startTest(test)
        self.verdict = "ok"
        self.begun = time.perf_counter()
        say("run", test.id())
        faulthandler.dump_traceback_later(seconds, exit=True)

    def stopTest(self, test):
        faulthandler.cancel_dump_traceback_later()
        say(self.verdict, test.id())
        super().stopTest(test)

    def failed(self, test, error):
        self.verdict = "fail"
        sys.stderr.write(f"\n{test.id()}:\n")
        traceback.print_exception(*error)
        # That of a class or of a module belongs to none.
        if not isinstance(test, unittest.TestCase):
            say("fail", test.id().replace(" ", "-"))

    def addError(self, test, error):
        self.failed(test, error)

    def addFailure(self, test, error):
        self.failed(test, error)

    def addUnexpectedSuccess(self, test):
        self.verdict = "fail"

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.failed(test, error)

    def addSkip(self, test, reason):
        if not isinstance(test, unittest.TestCase):
            say("skip", test.id().replace(" ", "-"))
        elif self.verdict == "ok":
            self.verdict = "skip"


def tests_of(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_of(test)
        elif (not only or test.id() in only) and not any(fnmatch.fnmatchcase(test.id(), pattern) for pattern in left_out):
            yield test


faulthandler.enable()
try:
    found = unittest.defaultTestLoader.loadTestsFromName(module)
except unittest.SkipTest:
    say("skip", module)
    found = unittest.TestSuite()
unittest.TestSuite(tests_of(found)).run(Result())
say("done", module)
out.flush()
# Threads that a test left behind are not waited for.
os._exit(0)
