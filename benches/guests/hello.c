// The least a program can answer.
#include "program.h"

void prepare(void)
{
}

struct answer respond(const char *url)
{
	static const char body[] = "Hello, World!\n";

	(void)url;
	return (struct answer){"text/plain", body, sizeof body - 1};
}
