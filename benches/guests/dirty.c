// /N writes to N pages, one byte each.
#include "program.h"

#include <stdlib.h>

enum { PAGE = 4096, PAGES = 1024 };
static char pages[PAGES][PAGE] __attribute__((aligned(PAGE)));

void prepare(void)
{
}

struct answer respond(const char *url)
{
	const int wanted = atoi(url + 1), n = wanted < 0 ? 0 : wanted > PAGES ? PAGES : wanted;

	for (int i = 0; i < n; i++)
		((volatile char *)pages[i])[(i * 67 + 13) % PAGE] = 1;
	return (struct answer){"text/plain", "ok\n", 3};
}
