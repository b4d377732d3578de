// What a hostile program may try: to change the engine's own pages, and calls that would take more of the host than
// their request may. The README says what comes of it.

#define _GNU_SOURCE
#include "query.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

enum { PAGE = 4096, BIG = 12 << 20, RW = PROT_READ | PROT_WRITE };

static char own[1 << 20] __attribute__((aligned(4096)));
static char in_main[4096];
static char *frozen;
static const char *path;

static void show(const char *name, long result)
{
	say("%s %s\n", name, result == -1 ? strerrorname_np(errno) : "done");
}

// The engine's pages: descriptor tables, ring-0 code, its code in ring 3, the frozen registers, the request.
static void monitor(void)
{
	static const uintptr_t pages[] = {0x7e0000001000, 0x7e0000004000, 0x7e0000008000, 0x7e0000009000,
					  0x7e000000d000, 0x7e000000e000};

	for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
		void *p = (void *)pages[i];

		show("mprotect", mprotect(p, PAGE, RW | PROT_EXEC));
		show("mprotect", mprotect(p, PAGE, PROT_EXEC));
		show("mprotect", mprotect(p, 2 * PAGE, PROT_READ | PROT_EXEC));
		show("mmap", (long)mmap(p, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		show("mremap", (long)mremap(p, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
		show("mremap", (long)mremap(frozen, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p));
		show("madvise", madvise(p, PAGE, MADV_DONTNEED));
	}
	// Nothing of the program's lies there, which is no error (munmap(2)).
	if (munmap((void *)pages[2], 8 * PAGE))
		show("munmap", -1);
}

static char *map(size_t len)
{
	return mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void read_zero(void)
{
	show("read", read(open("/dev/zero", O_RDONLY), map(BIG), BIG));
}

static void get_random(void)
{
	show("getrandom", getrandom(map(BIG), BIG, 0));
}

static void map_file(void)
{
	const int fd = open(path, O_RDONLY);

	if (fd < 0)
		show("open", -1);
	show("mmap", (long)mmap(NULL, BIG, RW, MAP_PRIVATE, fd, 0));
}

static void move(void)
{
	show("mremap", (long)mremap(frozen, BIG, BIG + PAGE, MREMAP_MAYMOVE));
}

// Asks for what is so already: that writes nothing.
static void protect_own(void)
{
	show("mprotect", mprotect(own, sizeof own, RW));
}

static void many_headers(void)
{
	static char line[2000] = "X-Long: ";
	struct kvm_response_header headers[64];
	struct kvm_response_extra extra = {.headers = headers, .num_headers = 64};

	memset(line + 8, 'x', sizeof line - 8);
	for (int i = 0; i < 64; i++)
		headers[i] = (struct kvm_response_header){line, sizeof line};
	backend_response_extra(200, "text/plain", 10, "sent\n", 5, &extra);
}

// Calls of the interface that the host does not have yet. (Those that never return end the request.)
static void absent(void)
{
	static const unsigned numbers[] = {0x10034, 0x10500, 0x10710, 0x10713, 0x20000, 0x12345};

	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		say("%#x %ld\n", numbers[i], kvm_hypercall(numbers[i], 0, 0, 0, 0, 0, 0));
}

static void main_said(void)
{
	say("%s", in_main);
}

static const struct {
	const char *url;
	void (*run)(void);
} pages[] = {
	{"/main", main_said},
	{"/monitor", monitor},
	{"/read-zero", read_zero},
	{"/getrandom", get_random},
	{"/map-file", map_file},
	{"/move", move},
	{"/protect-own", protect_own},
	{"/many-headers", many_headers},
	{"/absent", absent},
};

static void on_get(const char *url, const char *arg)
{
	(void)arg;
	for (size_t i = 0; i < sizeof pages / sizeof *pages; i++)
		if (path_is(url, pages[i].url)) {
			pages[i].run();
			done(200);
		}
	done(404);
}

int main(int argc, char **argv)
{
	path = argc > 1 ? argv[1] : "";
	frozen = map(BIG);
	memset(frozen, 'f', BIG);
	monitor();
	for (int slot = 0; slot <= 16; slot++)
		say("slot %d %ld\n", slot, register_func(slot, (uintptr_t)on_get));
	for (int slot = KVM_SLOT_GET; slot <= KVM_SLOT_ON_LIVE_RESTORE; slot++)
		register_func(slot, 0);
	say("set_cacheable %ld\n", set_cacheable(true, 1, 1, 1));
	memcpy(in_main, answer, answer_len);
	answer_len = 0;
	set_backend_get(on_get);
	wait_for_requests();
}
