// A process on its own: each line of stdin is a request's URL, answered by the time respond() took in nanoseconds
// and a checksum of the body.
#include "../program.h"

#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static int64_t nanoseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// FNV-1a
static uint64_t checksum(const uint8_t *p, size_t len)
{
	uint64_t sum = 0xcbf29ce484222325;

	for (size_t i = 0; i < len; i++)
		sum = (sum ^ p[i]) * 0x100000001b3;
	return sum;
}

int main(void)
{
	char url[4096];

	mallopt(M_TRIM_THRESHOLD, 64 << 20);
	mallopt(M_MMAP_THRESHOLD, 64 << 20);
	prepare();
	while (fgets(url, sizeof url, stdin)) {
		url[strcspn(url, "\n")] = '\0';
		const int64_t start = nanoseconds();
		const struct answer a = respond(url);
		const int64_t taken = nanoseconds() - start;

		printf("%lld %llx\n", (long long)taken, (unsigned long long)checksum(a.body, a.len));
		fflush(stdout);
	}
	return 0;
}
