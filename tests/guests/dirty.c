// /N writes to N pages (at most 20000, 80 MB) and answers how many it wrote to and how many it found written
// to before: that has to be 0.
//
//   /N/say      the same, and says so on standard error before it answers
//   /N/heap     does so with N pages of fresh heap instead
//   /N/peek     maps N pages of heap and only reads them
//   /N/sleep    the same, and sleeps for an hour before it answers
//   /N/crash    the same, but ends with an invalid instruction
//
// With an argument it has an on_error, which writes to a page, says so, and answers.

#include "query.h"

#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 20000 };
static uint8_t pages[PAGES][PAGE] __attribute__((aligned(PAGE)));

// Fresh pages of the heap, written to or only read.
static void heap(int n, bool write)
{
	volatile uint8_t *const fresh =
		mmap(NULL, (size_t)n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int found = 0;

	if (fresh == MAP_FAILED) {
		say("no room\n");
		done(500);
	}
	for (int i = 0; i < n; i++) {
		found += fresh[(size_t)i * PAGE + 13] != 0;
		if (write)
			fresh[(size_t)i * PAGE + 13] = 1;
	}
	say("%s %d found %d\n", write ? "wrote" : "read", n, found);
	done(200);
}

KVM_EXPORT void my_backend(const char *url)
{
	const int wanted = atoi(url + 1), n = wanted < 0 ? 0 : wanted > PAGES ? PAGES : wanted;
	int found = 0;

	if (strstr(url, "/heap") || strstr(url, "/peek"))
		heap(wanted, strstr(url, "/heap"));
	for (int i = 0; i < n; i++) {
		const int place = (i * 67 + 13) % PAGE;

		found += pages[i][place] != 0;
		pages[i][place] = 1;
	}
	if (strstr(url, "/say"))
		fputs("written", stderr);
	if (strstr(url, "/sleep"))
		sleep(3600);
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

int main(int argc, char **argv)
{
	(void)argv;
	if (argc > 1)
		set_on_error(on_error);
	return 0;
}
