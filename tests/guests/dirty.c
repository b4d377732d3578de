// /N writes to N pages (at most 20000, 80 MB) and answers how many it wrote to and how many it found written
// to before: that has to be 0.
//
//   /N/say      the same, and says so on standard error before it answers
//   /N/crash    the same, but ends with an invalid instruction; on_error then writes, says so, and answers

#include "query.h"

enum { PAGE = 4096, PAGES = 20000 };
static uint8_t pages[PAGES][PAGE] __attribute__((aligned(PAGE)));

KVM_EXPORT void my_backend(const char *url)
{
	const int wanted = atoi(url + 1), n = wanted < 0 ? 0 : wanted > PAGES ? PAGES : wanted;
	int found = 0;

	for (int i = 0; i < n; i++) {
		const int place = (i * 67 + 13) % PAGE;

		found += pages[i][place] != 0;
		pages[i][place] = 1;
	}
	if (strstr(url, "/say"))
		fputs("written", stderr);
	if (strstr(url, "/crash"))
		__builtin_trap();
	say("wrote %d found %d\n", n, found);
	done(200);
}

static void on_error(const char *url, const char *arg, const char *failure)
{
	(void)arg, (void)failure;
	pages[0][13] = 1;
	fputs("failed", stderr);
	say("on_error of %s\n", url);
	done(200);
}

int main(void)
{
	set_on_error(on_error);
	return 0;
}
