// For musl-gcc: its start code, malloc, stdio and the return of main().

#include "query.h"

static char *kept;

KVM_EXPORT void my_backend(const char *url)
{
	size_t total = 0;

	for (int i = 0; i < 1000; i++) {
		char *p = malloc(i * 37);

		memset(p, i, i * 37);
		total += i * 37;
		if (i % 3)
			free(p);
	}
	char *big = calloc(1, 3 << 20);
	big[1 << 20] = 1;
	say("musl %s %s %zu %.3f\n", url, kept, total, atof("2.5") + big[1 << 20]);
	free(big);
	done(200);
}

int main(void)
{
	kept = strdup("kept");
	return 0;
}
