// Memory that all machines of a program share. What each URL does: README.md.
#include "query.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BODY_LEN = 1 << 20, TEXTS = 4, TEXT_LEN = 64 };

// All that is shared, in one piece: what is answered from it, others change meanwhile.
struct shared {
	uint64_t counter;
	uint64_t mains;
	uint32_t stop;
	struct kvm_response_extra extra;
	struct kvm_response_header headers[TEXTS];
	char texts[TEXTS][TEXT_LEN];
	struct iovec pieces[2];
	struct virtbuffer buffers[2];
	struct curl_op op;
	struct curl_fields fields;
	struct kvm_fetch what;
	char result[64];
	char body[BODY_LEN];
};

static struct shared *shared;
static uint64_t private_counter;
static long protect_in_main = -1, exec_in_main = -1;

static const char *const texts[] = {
	"X-Fine: yes", "X-Fine:\r\nX-Evil: yes", "X-Fine: y\0s", "Set-Cookie: a=b", ": nameless", "no colon",
};

static void set_up(void)
{
	for (int i = 0; i < TEXTS; i++) {
		strcpy(shared->texts[i], texts[0]);
		shared->headers[i].field = shared->texts[i];
		shared->headers[i].field_len = strlen(texts[0]);
	}
	memset(&shared->extra, 0, sizeof shared->extra);
	shared->extra.headers = shared->headers;
	shared->extra.num_headers = TEXTS;
	for (int i = 0; i < 2; i++) {
		shared->pieces[i].iov_base = shared->body;
		shared->pieces[i].iov_len = 100;
		shared->buffers[i].data = shared->body;
		shared->buffers[i].len = 100;
	}
	memset(&shared->op, 0, sizeof shared->op);
	memset(&shared->fields, 0, sizeof shared->fields);
	shared->what = (struct kvm_fetch){
		.url = "http://a/", .url_len = 9, .headers = shared->headers, .num_headers = TEXTS,
	};
	for (int i = 0; i < BODY_LEN; i++)
		shared->body[i] = 'a' + i % 26;
}

// Changes all that others are answered from, until told to stop.
static void scribble(void)
{
	static const uint64_t lengths[] = { 0, 1, 11, TEXT_LEN, 8192, 8193, 1 << 20, UINT64_MAX, INT64_MIN };
	char *const pointers[] = { shared->texts[0], shared->body, (char *)(shared + 1), NULL, (char *)-16, (char *)scribble };
	volatile struct shared *const at = shared;

	for (unsigned n = 0; !__atomic_load_n(&shared->stop, __ATOMIC_RELAXED); n++) {
		const unsigned i = n % TEXTS;
		const char *const text = texts[n % (sizeof texts / sizeof *texts)];

		for (int k = 0; k < TEXT_LEN - 1 && k < 24; k++)
			at->texts[i][k] = k < 22 ? text[k < (int)strlen(text) ? k : (int)strlen(text)] : '\n';
		at->headers[i].field_len = n & 64 ? lengths[n / 64 % 9] : 1 + n % 21;
		at->headers[i].field = n & 128 ? pointers[n / 128 % 6] : shared->texts[i];
		at->extra.num_headers = n & 32 ? TEXTS : n % 70;
		at->extra.headers = n & 1024 ? (void *)pointers[n / 1024 % 6] : shared->headers;
		at->extra.cached = n;
		at->extra.ttl = n & 4 ? (float)n : __builtin_inff();
		at->pieces[i % 2].iov_len = n & 2 ? 100 : lengths[n % 9];
		at->pieces[i % 2].iov_base = n & 8 ? shared->body : pointers[n % 6];
		at->buffers[i % 2].len = n & 2 ? 100 : lengths[n % 9];
		at->buffers[i % 2].data = n & 8 ? shared->body : pointers[n % 6];
		// Of these most have to be good at a time for something to be fetched.
		at->op.post_buffer = n % 7 ? NULL : pointers[n / 7 % 6];
		at->op.post_buflen = n % 5 ? 100 : lengths[n % 9];
		at->op.content = n % 7 ? shared->body : pointers[n / 7 % 6];
		at->op.content_length = n % 5 ? 100 : lengths[n % 9];
		at->op.headers = n % 3 ? NULL : shared->result;
		at->op.headers_length = n % 5 ? sizeof shared->result : lengths[n % 9];
		at->fields.len[0] = n % 5 ? 11 : lengths[n % 9];
		at->fields.ptr[0] = n % 7 ? "A: b, but not c" : pointers[n / 7 % 6];
		at->what.method = n % 3 ? NULL : "GETGETGET";
		at->what.method_len = n % 5 ? 3 : lengths[n % 9];
		at->what.body = n % 7 ? NULL : pointers[n / 7 % 6];
		at->what.body_len = n % 5 ? 100 : lengths[n % 9];
		at->what.num_headers = n % 3 ? 1 : n;
		at->body[n % BODY_LEN] = n;
		at->body[n % 200] = n;
	}
}

static void in_storage(size_t n, struct virtbuffer *buffers, size_t room)
{
	uint64_t len = 0;

	for (size_t i = 0; i < n; i++)
		len += buffers[i].len;
	(void)room;
	storage_return(&len, sizeof len);
}

// Counts in the storage machine what requests count.
static void add_in_storage(size_t n, struct virtbuffer *buffers, size_t room)
{
	(void)n, (void)buffers, (void)room;
	const uint64_t counted = shared ? __atomic_add_fetch(&shared->counter, 1, __ATOMIC_RELAXED) : 0;

	private_counter++;
	storage_return(&counted, sizeof counted);
}

static void crash_in_storage(size_t n, struct virtbuffer *buffers, size_t room)
{
	(void)n, (void)buffers, (void)room;
	__builtin_trap();
}

static struct streaming_content part(void *arg, size_t max, size_t written, size_t total)
{
	(void)arg, (void)total;
	if (written >= 300000)
		return (struct streaming_content){ NULL, 0 };
	return (struct streaming_content){ shared->body + written, max < 300000 - written ? max : 300000 - written };
}

// What needs shared memory.
static void with_shared(const char *url)
{
	if (path_is(url, "/add")) {
		const uint64_t counted = __atomic_add_fetch(&shared->counter, 1, __ATOMIC_RELAXED);
		say("%lu %lu\n", counted, ++private_counter);
	} else if (path_is(url, "/get")) {
		say("%lu %lu mains %lu\n", __atomic_load_n(&shared->counter, __ATOMIC_RELAXED), private_counter, shared->mains);
	} else if (path_is(url, "/crash")) {
		__atomic_add_fetch(&shared->counter, 1, __ATOMIC_RELAXED);
		__builtin_trap();
	} else if (path_is(url, "/setup")) {
		set_up();
		__atomic_store_n(&shared->stop, 0, __ATOMIC_RELAXED);
	} else if (path_is(url, "/scribble")) {
		scribble();
	} else if (path_is(url, "/stop")) {
		__atomic_store_n(&shared->stop, 1, __ATOMIC_RELAXED);
	} else if (path_is(url, "/header")) {
		backend_response_extra(200, shared->texts[0], 5, shared->body, 1000, &shared->extra);
	} else if (path_is(url, "/append")) {
		say("%ld\n", http_append(KVM_RESPONSE, shared->texts[0], 11));
	} else if (path_is(url, "/body")) {
		backend_response(200, "text/plain", 10, shared->body, BODY_LEN);
	} else if (path_is(url, "/past-end")) {
		const char *const end = shared_memory_area().end;
		backend_response(200, "text/plain", 10, end - 100, 101);
	} else if (path_is(url, "/stream")) {
		begin_streaming_response(200, "text/plain", 10, 0, part, NULL);
	} else if (path_is(url, "/iov")) {
		say("%zd\n", writev(1, shared->pieces, 2));
	} else if (path_is(url, "/callv")) {
		say("%ld\n", storage_callv(in_storage, 2, shared->buffers, shared->result, sizeof shared->result));
	} else if (path_is(url, "/call/add")) {
		uint64_t counted = 0;
		say("%ld", storage_call(add_in_storage, NULL, 0, &counted, sizeof counted));
		say(" %lu\n", counted);
	} else if (path_is(url, "/call/crash")) {
		say("%ld\n", storage_call(crash_in_storage, NULL, 0, NULL, 0));
	} else if (path_is(url, "/fetch")) {
		say("%ld\n", sys_fetch("http://a/", 9, &shared->op, &shared->fields, NULL));
	} else if (path_is(url, "/fetch-parts")) {
		const long number = fetch_begin(&shared->what);
		say("%ld %ld\n", number, number > 0 ? fetch_read(number, shared->result, sizeof shared->result) : 0);
	} else if (path_is(url, "/read")) {
		const int fd = open("/dev/zero", O_RDONLY);
		say("%zd %zd", read(fd, shared->body, 10), getrandom(shared->result, 10, 0));
		say(" %s\n", memcmp(shared->body, "\0\0\0\0\0\0\0\0\0", 10) ? "other" : "zero");
	} else if (path_is(url, "/path")) {
		strcpy(shared->result, "/dev/null");
		say("%d\n", open(shared->result, O_RDONLY) >= 0);
	} else if (path_is(url, "/protect")) {
		// As it was in main(), and now.
		void *const page = (void *)((uintptr_t)shared->body & ~4095ul);
		say("%ld %ld", protect_in_main, exec_in_main);
		say(" %d", mprotect(page, 4096, PROT_READ | PROT_WRITE));
		say(" %d", mprotect(page, 4096, PROT_READ | PROT_EXEC));
		say(" %d\n", errno == EACCES);
	} else if (path_is(url, "/map")) {
		void *const start = shared_memory_area().ptr;
		void *const map = mmap(start, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		say("%d %d", map == MAP_FAILED, errno == ENOMEM);
		say(" %d", madvise(start, 4096, MADV_DONTNEED));
		munmap(start, 4096);
		say(" %lu\n", shared->mains);
	} else if (path_is(url, "/execute")) {
		shared->body[0] = (char)0xc3;
		((void (*)(void))(uintptr_t)shared->body)();
	} else if (path_is(url, "/end")) {
		char *const end = shared_memory_area().end;
		end[-1] = 1;
		*(volatile char *)end = 1;
	} else {
		say("no such test\n");
		done(404);
	}
}

KVM_EXPORT void my_backend(const char *url)
{
	if (path_is(url, "/area")) {
		const struct shared_memory_info area = shared_memory_area();
		say("%d %zu\n", area.ptr != NULL, (size_t)((char *)area.end - (char *)area.ptr));
	} else if (shared) {
		with_shared(url);
	} else {
		say("none\n");
	}
	done(200);
}

int main(void)
{
	shared = SHM_ALLOC_TYPE(struct shared);
	storage_allow(in_storage);
	storage_allow(add_in_storage);
	storage_allow(crash_in_storage);
	if (shared) {
		void *const page = (void *)((uintptr_t)shared->body & ~4095ul);

		__atomic_add_fetch(&shared->mains, 1, __ATOMIC_RELAXED);
		__atomic_add_fetch(&shared->counter, 100, __ATOMIC_RELAXED);
		set_up();
		protect_in_main = mprotect(page, 4096, PROT_READ);
		exec_in_main = mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
	}
	return 0;
}
