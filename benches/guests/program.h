/* What a program of the benchmark is, however it is run: each file in front/ makes another executable of it. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <stddef.h>

struct answer {
	const char *type;
	const void *body;
	size_t len;
};

/* Once, before the first request. */
void prepare(void);

/* A request. What it gives stays until the next one. */
struct answer respond(const char *url);

#endif
