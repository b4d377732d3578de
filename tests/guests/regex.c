// Regular expressions by the host. What each URL answers: README.md.

#include "query.h"

static char value[70000];
static long in_main[2];

static bool has(const char *url, const char *name)
{
	return parameter(&url, name, value, sizeof value) >= 0;
}

static void on_get(const char *url, const char *arg)
{
	(void)arg;
	if (path_is(url, "/main")) {
		say("%ld %ld\n", in_main[0], in_main[1]);
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
	} else if (path_is(url, "/heavy")) {
		const long number = regex_compile(".*(a|b).{300}c", 14);
		for (;;)
			memset(value, 'a', 65536), regex_match(number, value, 65536);
	}
	done(200);
}

int main(void)
{
	in_main[0] = regex_compile("^a(b+)c$", 8);
	in_main[1] = regex_compile("(?i)HOST: *([a-z.]+)", 20);
	set_backend_get(on_get);
	wait_for_requests();
}
