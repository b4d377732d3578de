// Counters: "/N" counts N times in the storage, by a call each; "/shared" once in the memory that all forks share.
#include <stdlib.h>
#include <string.h>

#include <kvm_api.h>

static uint64_t counter, *shared;

static void count(size_t n, struct virtbuffer *buffers, size_t result_len)
{
	(void)n, (void)buffers, (void)result_len;
	counter++;
	storage_return(&counter, sizeof counter);
}

KVM_EXPORT void my_backend(const char *url)
{
	uint64_t counted = 0;

	if (!strcmp(url, "/shared")) {
		if (!shared)
			backend_response_str(500, "text/plain", "no shared memory\n");
		counted = __atomic_add_fetch(shared, 1, __ATOMIC_RELAXED);
	}
	for (long left = strtol(url + 1, NULL, 10); left > 0; left--)
		if (storage_call(count, NULL, 0, &counted, sizeof counted) != sizeof counted)
			backend_response_str(500, "text/plain", "not counted\n");
	backend_response(200, "text/plain", 10, &counted, sizeof counted);
}

int main(void)
{
	storage_allow(count);
	shared = SHM_ALLOC_TYPE(uint64_t);
	return 0;
}
