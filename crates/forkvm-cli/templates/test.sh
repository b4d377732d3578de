#!/bin/sh
# Tests of the program: "make test". Each check is a request; "forkvm run" takes the same arguments.
program=$1
failed=0

# check EXPECTED ARGUMENTS...
check() {
	expected=$1
	shift
	got=$("$program" "$@")
	if [ "$got" = "$expected" ]; then
		echo "ok: $*"
	else
		echo "FAILED: $*: expected \"$expected\", got \"$got\""
		failed=1
	fi
}

# status EXPECTED ARGUMENTS...
status() {
	expected=$1
	shift
	got=$("$program" -i "$@" | head -n 1 | tr -d '\r')
	if [ "$got" = "HTTP/1.1 $expected" ]; then
		echo "ok: $*: $expected"
	else
		echo "FAILED: $*: expected status $expected, got \"$got\""
		failed=1
	fi
}

check "Hello, World!" /
check "Hello, Ann!" /hello/Ann
status 404 /nowhere
exit $failed
