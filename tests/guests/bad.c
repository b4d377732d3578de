// Programs that must never get to serve: what main() does is chosen by -DBAD=function. All but the last two
// have a my_backend that would answer.

#define _GNU_SOURCE
#include <kvm_api.h>

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef NO_HANDLER
KVM_EXPORT void my_backend(const char *url)
{
	(void)url;
	backend_response_str(200, "text/plain", "must not be served\n");
}
#endif

#ifdef HUGE_BSS
static volatile char huge[1ul << 30];
#define BAD() (huge[1 << 20])
#endif

#ifdef GO // the note by which Go's linker marks a program; such a one ends so where there are no threads
__asm__(".pushsection .note.go.buildid, \"a\", @note\n"
	"	.long 4, 4, 4\n	.ascii \"Go\\0\\0\"\n	.ascii \"test\"\n"
	".popsection");
#endif

int returns_0(void) { return 0; }
int returns_3(void) { return 3; }
__attribute__((noreturn)) int never_ends(void) { for (;;) __asm__ volatile("pause"); }
int aborts(void) { abort(); }
int exits_0(void) { exit(0); }
int exits_1(void) { exit(1); }
int waits(void) { wait_for_requests(); }

__attribute__((noreturn)) int sleeps(void)
{
	for (;;)
		nanosleep(&(struct timespec){3600, 0}, NULL);
}

int crashes(void)
{
	volatile char *p = NULL;

	__asm__ volatile("" : "+r"(p));
	return *p = 1;
}

int recurse(volatile char *caller)
{
	volatile char frame[4096];

	frame[0] = caller[0];
	__asm__ volatile("" ::: "memory");
	return frame[0] == 77 ? 0 : recurse(frame) + frame[0];
}

int overflows(void)
{
	volatile char frame[1] = {0};

	return recurse(frame);
}

// All the memory there is, and then some.
int takes_memory(void)
{
	for (;;) {
		char *piece = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (piece == MAP_FAILED)
			abort();
		memset(piece, 1, 1 << 20);
	}
}

int main(void)
{
	return BAD();
}
