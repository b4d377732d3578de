/* A program that can be told from another one by every byte of its answers: -DANSWER='A'.
 *
 *   /N   N such bytes (1,000 without a number), and the field X-Answer
 *   /slow/MS   the same 1,000, after a busy loop of so many milliseconds
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <kvm_api.h>

#define MOST (1 << 20)

static char bytes[MOST];

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

KVM_EXPORT void my_backend(const char *url)
{
	size_t n = 1000;

	if (strncmp(url, "/slow/", 6) == 0) {
		uint64_t end = now_ms() + strtoul(url + 6, NULL, 10);

		while (now_ms() < end)
			;
	} else if (url[0] == '/' && url[1] >= '0' && url[1] <= '9') {
		n = strtoul(url + 1, NULL, 10);
	}
	if (n > MOST)
		n = MOST;

	char field[] = "X-Answer: ?";
	field[sizeof(field) - 2] = ANSWER;
	struct kvm_response_header header = { field, sizeof(field) - 1 };
	struct kvm_response_extra extra = { .headers = &header, .num_headers = 1 };

	backend_response_extra(200, "text/plain", 10, bytes, n, &extra);
}

int main(void)
{
	memset(bytes, ANSWER, sizeof(bytes));
	return 0;
}
