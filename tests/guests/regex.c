// Regular expressions by the host. What each URL answers: README.md.

#include "query.h"

static char value[70000];
static long in_main[3];

static bool has(const char *url, const char *name)
{
	return parameter(&url, name, value, sizeof value) >= 0;
}

static void on_get(const char *url, const char *arg)
{
	(void)arg;
	if (path_is(url, "/main")) {
		say("%ld %ld %ld\n", in_main[0], in_main[1], in_main[2]);
	} else if (path_is(url, "/match")) {
		const long number = has(url, "n") ? strtol(value, NULL, 0) : 1;
		const size_t len = has(url, "s") ? strlen(value) : 0;
		say("%ld\n", regex_match(number, value, len));
	} else if (path_is(url, "/compile")) {
		const size_t len = has(url, "p") ? strlen(value) : 0;
		const long number = regex_compile(value, len);
		const size_t subject = has(url, "s") ? strlen(value) : 0;
		say("%ld %ld\n", number, regex_match(number, value, subject));
	} else if (path_is(url, "/many")) {
		long last = 0, count = 0;
		while ((last = regex_compile("a", 1)) > 0)
			count++;
		say("%ld %ld\n", count, last);
	} else if (path_is(url, "/free")) {
		say("%ld", regex_free(1));
		say(" %ld", regex_free(1));
		say(" %ld", regex_match(1, "abc", 3));
		say(" %ld\n", regex_compile("x", 1));
	} else if (path_is(url, "/pointers")) {
		say("%ld", regex_compile((const char *)0x10, 1));
		say(" %ld", regex_compile((const char *)0x7e0000001000, 1));
		say(" %ld", regex_compile("a", 4097));
		say(" %ld", regex_compile("a", (size_t)1 << 63));
		say(" %ld", regex_match(1, (const char *)-8, 16));
		say(" %ld", regex_match(1, value, 65537));
		say(" %ld", regex_match(1, value, (size_t)-1));
		say(" %ld", regex_match(1, NULL, 0));
		say(" %ld\n", regex_match(-1, value, 1));
	} else if (path_is(url, "/subst")) {
		// n, the subject, what takes a match's place, room, flags.
		static char with[70000], out[70000];
		const long number = has(url, "n") ? strtol(value, NULL, 0) : 1;
		const unsigned flags = has(url, "flags") ? (unsigned)strtoul(value, NULL, 0) : 0;
		const size_t room = has(url, "room") ? strtoul(value, NULL, 0) : sizeof out;
		const size_t with_len = has(url, "w") ? strlen(strcpy(with, value)) : 0;
		const size_t len = has(url, "s") ? strlen(value) : 0;
		const long got = regex_subst(number, value, len, with, with_len, out, room, flags);
		say("%ld %ld %.*s\n", got, regex_subst(number, value, len, with, with_len, NULL, 0, flags),
		    got > 0 ? (int)got : 0, out);
	} else if (path_is(url, "/regsub")) {
		// A pattern, a subject in a header, and the result in another one.
		static char subject[1000], out[1000], with[300];
		const long number = has(url, "p") ? regex_compile(value, strlen(value)) : 1;
		const unsigned flags = has(url, "flags") ? (unsigned)strtoul(value, NULL, 0) : 0;
		has(url, "w") ? strcpy(with, value) : 0;
		const size_t len = http_find_value("X-Subject", subject, sizeof subject);
		const long got = regex_subst(number, subject, len, with, strlen(with), out, sizeof out, flags);
		http_appendf(KVM_RESPONSE, "X-Result: %.*s", got > 0 ? (int)got : 0, out);
		say("%ld %.*s\n", got, got > 0 ? (int)got : 0, out);
	} else if (path_is(url, "/copyto")) {
		// From one of the request's headers to another one of the response's.
		static char from[300], to[300], with[300];
		const long number = has(url, "n") ? strtol(value, NULL, 0) : 1;
		const unsigned flags = has(url, "flags") ? (unsigned)strtoul(value, NULL, 0) : 0;
		const int message = has(url, "message") ? (int)strtol(value, NULL, 0) : KVM_RESPONSE;
		has(url, "from") ? strcpy(from, value) : 0;
		has(url, "to") ? strcpy(to, value) : 0;
		has(url, "w") ? strcpy(with, value) : 0;
		say("%ld\n", regex_copyto(number, KVM_REQUEST, from, message, to, with, flags));
	} else if (path_is(url, "/layouts")) {
		// As a binary with other arguments in mind calls them, and with pointers to nowhere.
		struct kvm_regex_subst what = {sizeof what, value, 3, "x", 1, value + 100, 10};
		struct kvm_regex_copyto copy = {sizeof copy, KVM_REQUEST, KVM_RESPONSE, "Host", 4, "X-A", 3, "x", 1};
		strcpy(value, "abc");
		memset(value + 100, 0, 11);
		say("%ld", kvm_hypercall(KVM_HC_REGEX_SUBST, 1, (uintptr_t)"a text, and no structure; a text, and no structure", 3,
					 (uintptr_t)value, 3, (uintptr_t)value));
		say(" %ld", kvm_hypercall(KVM_HC_REGEX_COPYTO, 1, 0, 1, 2, 3, 4));
		say(" %ld", kvm_hypercall(KVM_HC_REGEX_SUBST, 1, (uintptr_t)&what, 2, 0, 0, 0));
		say(" %ld", kvm_hypercall(KVM_HC_REGEX_COPYTO, 1, (uintptr_t)&copy, ~0ul, 0, 0, 0));
		say(" %ld", kvm_hypercall(KVM_HC_REGEX_SUBST, 99, (uintptr_t)&what, 0, 0, 0, 0));
		what.out = (char *)0x10;
		say(" %ld", kvm_hypercall(KVM_HC_REGEX_SUBST, 1, (uintptr_t)&what, 0, 0, 0, 0));
		what.out = value + 100;
		what.with = (const char *)-8;
		what.with_len = 16;
		say(" %ld", kvm_hypercall(KVM_HC_REGEX_SUBST, 1, (uintptr_t)&what, 0, 0, 0, 0));
		what.with_len = (size_t)1 << 63;
		say(" %ld", kvm_hypercall(KVM_HC_REGEX_SUBST, 1, (uintptr_t)&what, 0, 0, 0, 0));
		copy.name = (const char *)0x10;
		say(" %ld", kvm_hypercall(KVM_HC_REGEX_COPYTO, 1, (uintptr_t)&copy, 0, 0, 0, 0));
		copy.name = "Host";
		copy.to_name_len = (size_t)-1;
		say(" %ld", kvm_hypercall(KVM_HC_REGEX_COPYTO, 1, (uintptr_t)&copy, 0, 0, 0, 0));
		say(" %d\n", memcmp(value + 100, "\0\0\0\0\0\0\0\0\0\0", 10));
	} else if (path_is(url, "/overlap")) {
		// The result over the subject that it is made of.
		strcpy(value, "xaaby");
		const long number = regex_compile("a(a)", 4);
		const long got = regex_subst(number, value, 5, "[\\1\\1]", 6, value + 1, 100, 0);
		say("%ld %.*s\n", got, 1 + (int)got, value);
	} else if (path_is(url, "/long")) {
		// A subject as long as may be, and results that are, and are too long.
		static char out[140000];
		const long all = regex_compile("a", 1);
		memset(value, 'a', 65536);
		say("%ld", regex_match(all, value, 65536));
		say(" %ld", regex_match(all, value, 65537));
		say(" %ld", regex_subst(all, value, 65536, "b", 1, out, sizeof out, KVM_REGEX_ALL));
		say(" %c%c", out[0], out[65535]);
		say(" %ld", regex_subst(all, value, 65536, "bb", 2, out, sizeof out, KVM_REGEX_ALL));
		say(" %ld", regex_subst(all, value, 65537, "", 0, out, sizeof out, KVM_REGEX_ALL));
		say(" %ld", regex_subst(all, value, 65536, "", 0, NULL, 0, KVM_REGEX_ALL));
		// A pattern with many states takes shorter ones.
		const long many = regex_compile(".*(a|b).{300}c", 14);
		say(" %ld %ld\n", regex_match(many, value, 4096), regex_match(many, value, 65536));
	} else if (path_is(url, "/quadratic")) {
		// Each search looks at all of the rest.
		const long number = regex_compile(".*[^A-Z]|[A-Z]", 14);
		for (;;)
			memset(value, 'A', 65536), regex_subst(number, value, 65536, "", 0, NULL, 0, KVM_REGEX_ALL);
	} else if (path_is(url, "/heavy")) {
		const long number = regex_compile(".*(a|b).{300}c", 14);
		for (;;)
			memset(value, 'a', 65536), regex_match(number, value, 4096);
	}
	done(200);
}

int main(void)
{
	in_main[0] = regex_compile("^a(b+)c$", 8);
	in_main[1] = regex_compile("(?i)HOST: *([a-z.]+)", 20);
	in_main[2] = regex_copyto(in_main[0], KVM_REQUEST, "Host", KVM_RESPONSE, "X-Host", "", 0);
	set_backend_get(on_get);
	wait_for_requests();
}
