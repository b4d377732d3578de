// A program of this VMOD's: prepare() before the freeze, respond() in a fork.
#include "../program.h"

#include <kvm_api.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

KVM_EXPORT void my_backend(const char *url)
{
	const struct answer a = respond(url);

	backend_response(200, a.type, __builtin_strlen(a.type), a.body, a.len);
}

int main(void)
{
#ifdef HEAP_STAYS
	// What a request frees stays with malloc, so that none has to ask the system for memory.
	mallopt(M_TRIM_THRESHOLD, 64 << 20);
	mallopt(M_MMAP_THRESHOLD, 64 << 20);
#endif
	prepare();
#ifdef HEAP_STAYS
	respond("/");
#endif
	return 0;
}
