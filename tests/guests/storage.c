/* A program whose requests call its storage: each URL makes one call.
 *
 *   /call/NAME?b=TEXT&b=TEXT&room=N&zeros=N
 *                     calls the storage's function NAME (below) with these buffers and one of so many zeros, and room for N bytes of a
 *                     result (1000): "LEN RESULT"
 *   /raw/NAME?n=N&at=HEX&data=HEX&len=HEX&dst=HEX&room=HEX
 *                     the same with registers as they stand there: the result in RAX. at: of the buffers, by default one of data and len
 *   /task/NAME?data=TEXT&start=MS&period=MS
 *                     storage_task(): the result
 *   /stop/N           storage_task_stop(): the result
 *   /many/N           so many calls of "add" in one request: the last result
 *   /tasks/N          so many tasks in an hour: how many were taken
 *   /crash            the request crashes after a call of "add"
 *   /main             what main() of the program for requests got from the storage
 *   /state            KVM_STATE, and what writing to its file and reading it in a request give
 *   /fill/N           so many zeros, to a file in /scratch: how many were written
 *   /streamed         a response in three parts, each of a call of "add"
 *   /type             KVM_TYPE, and is_storage(), here
 *
 * With SEGMENTS in its environment it counts a body's segments. With SAVES it saves the counter when it ends, or crashes. With LONG_STATE the state that it hands over has 20 MiB.
 *
 * After a live update a counter and its history go over.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "query.h"

#ifndef NAME
#define NAME "storage"
#endif

struct function {
	const char *name;
	kvm_storage_func call;
	kvm_storage_task_func task;
	bool allowed;
};
static const struct function functions[];
static uintptr_t address_of(const char *name);

static long counter, cleaned, ticks;
static char history[1000] = NAME;
static char text[64 << 10];

__attribute__((format(printf, 1, 2))) static void give(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	const int n = vsnprintf(text, sizeof text, format, args);
	va_end(args);
	storage_return(text, (size_t)n);
}

static void spin(void)
{
	for (;;)
		__asm__ volatile("pause");
}

/* ------------------------------------------------------------------ what the storage does */

static void add(size_t n, struct virtbuffer *b, size_t room)
{
	(void)room;
	counter += n > 0 ? strtol(strndup(b[0].data, b[0].len), NULL, 10) : 1;
	give("%ld", counter);
}

static void get(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	give("%ld %ld %ld %s", counter, cleaned, ticks, history);
}

static void echo(size_t n, struct virtbuffer *b, size_t room)
{
	char *all = malloc(room), *at = all;

	for (size_t i = 0; i < n; i++) {
		const size_t len = b[i].len < room - (size_t)(at - all) ? b[i].len : room - (size_t)(at - all);

		at = mempcpy(at, b[i].data, len);
		/* They are the function's own to write to. */
		memset(b[i].data, 'x', b[i].len);
	}
	storage_return(all, (size_t)(at - all));
	free(all);
}

static void lengths(size_t n, struct virtbuffer *b, size_t room)
{
	int len = sprintf(text, "%zu %zu:", n, room);

	for (size_t i = 0; i < n; i++)
		len += sprintf(text + len, " %zu", b[i].len);
	storage_return(text, (size_t)len);
}

static void sums(size_t n, struct virtbuffer *b, size_t room)
{
	uint64_t sum = 0;

	(void)room;
	for (size_t i = 0; i < n; i++)
		sum += fnv1a_of(b[i].data, b[i].len);
	give("%016lx", sum);
}

static void nothing(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	counter++;
}

static void clean(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	give("before %ld", cleaned);
	cleaned++;
}

static void no_return(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	counter++;
	storage_noreturn("gone", 4);
}

static void twice(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	const long one = storage_return("first", 5);
	const long two = storage_return("second", 6);

	sprintf(history, "%ld %ld", one, two);
}

/* A result that is too long, one that is nowhere, and one that fits. */
static void three(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b;
	const long one = storage_return(text, room + 1);
	const long two = storage_return((void *)0x123456789000, 5);
	const long three = storage_return((void *)text, (size_t)1 << 63);

	give("%ld %ld %ld", one, two, three);
}

static void too_long(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b;
	storage_noreturn(text, room + 1);
}

static void crash(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	counter += 1000;
	__builtin_trap();
}

static void crash_late(size_t n, struct virtbuffer *b, size_t room)
{
	give("late");
	crash(n, b, room);
}

static void endless(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	counter += 1000;
	spin();
}

static void quits(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	_exit(3);
}

static void answers(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	backend_response_str(200, "text/plain", "from storage");
}

static void greedy(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	for (;;)
		memset(malloc(1 << 20), 1, 1 << 20);
}

static void nap(size_t n, struct virtbuffer *b, size_t room)
{
	const long ms = n > 0 ? strtol(strndup(b[0].data, b[0].len), NULL, 10) : 50;
	const struct timespec time = { ms / 1000, ms % 1000 * 1000000 };

	(void)room;
	const int result = nanosleep(&time, NULL);

	counter++;
	give("%d", result);
}

static void busy(size_t n, struct virtbuffer *b, size_t room)
{
	const long ms = n > 0 ? strtol(strndup(b[0].data, b[0].len), NULL, 10) : 50;
	struct timespec start, now;

	(void)room;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < ms);
	counter++;
	give("%ld", counter);
}

/* Says when it is over. */
static void late(size_t n, struct virtbuffer *b, size_t room)
{
	busy(n, b, room);
	kvm_log_str("it is over");
}

/* A page of the Varnish that it runs in. */
static void page(size_t n, struct virtbuffer *b, size_t room)
{
	static char body[1000];
	struct curl_op op = { .content = body, .content_length = sizeof body };

	(void)n, (void)b, (void)room;
	const long result = self_request("/page", 5, &op, NULL, NULL);

	give("%ld %.*s", result, result < 0 ? 0 : (int)op.content_length, body);
}

static void nested(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	give("%ld", storage_callv(add, 0, NULL, NULL, 0));
}

static void type(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	give("%s %d %u", getenv("KVM_TYPE"), is_storage(), vcpuid());
}

/* Changes permissions, which forks for requests can't. */
static void protect(size_t n, struct virtbuffer *b, size_t room)
{
	char *const page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)n, (void)b, (void)room;
	*page = 7;
	if (mprotect(page, 4096, PROT_READ))
		give("%d", errno);
	else
		give("read %d", *page);
	munmap(page, 4096);
}

static void allows(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	give("%ld", storage_allow(add));
}

static void forbidden(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	counter += 1000;
	give("forbidden");
}

/* ------------------------------------------------------------------ the state file */

static const char *state_file(void)
{
	const char *const path = getenv("KVM_STATE");

	return path ? path : "";
}

/* Opens it as `how` says (w, a, r+: fopen(3)), writes the counter, and closes it. */
static void save_as(const char *how)
{
	FILE *const file = fopen(state_file(), how);

	if (!file) {
		give("open %d", errno);
		return;
	}
	fprintf(file, "%ld ", counter);
	if (fclose(file))
		give("close %d", errno);
	else
		give("saved %ld", counter);
}

static void save(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	save_as("w");
}

static void append(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	save_as("a");
}

/* So many zeros, by fsync(2). */
static void sync_zeros(size_t n, struct virtbuffer *b, size_t room)
{
	const long len = n > 0 ? strtol(strndup(b[0].data, b[0].len), NULL, 10) : 0;
	char *const zeros = calloc(1, (size_t)len);
	const int fd = open(state_file(), O_RDWR | O_CREAT | O_TRUNC, 0600);

	(void)room;
	if (fd < 0)
		give("open %d", errno);
	else if (write(fd, zeros, (size_t)len) != len)
		give("write %d", errno);
	else if (fsync(fd))
		give("sync %d", errno);
	else
		give("synced");
	close(fd);
	free(zeros);
}

static void saved(size_t n, struct virtbuffer *b, size_t room)
{
	FILE *const file = fopen(state_file(), "r");

	(void)n, (void)b, (void)room;
	if (!file) {
		give("open %d", errno);
		return;
	}
	char start[21] = "";
	const size_t len = fread(text, 1, sizeof text, file);

	memcpy(start, text, len < 20 ? len : 20);
	fclose(file);
	give("%zu %s", len, start);
}

/* All of it, however long it is. */
static void measure(size_t n, struct virtbuffer *b, size_t room)
{
	const int fd = open(state_file(), O_RDONLY);
	size_t all = 0;
	ssize_t len;

	(void)n, (void)b, (void)room;
	if (fd < 0) {
		give("open %d", errno);
		return;
	}
	while ((len = read(fd, text, sizeof text)) > 0)
		all += (size_t)len;
	close(fd);
	give("%zu", all);
}

/* Leaves it open, and crashes. */
static void save_crash(size_t n, struct virtbuffer *b, size_t room)
{
	const int fd = open(state_file(), O_WRONLY | O_CREAT | O_TRUNC, 0600);

	(void)n, (void)b, (void)room;
	if (fd < 0 || write(fd, "half", 4) != 4)
		give("no file");
	else
		__builtin_trap();
}

static void on_storage_save(void)
{
	if (!strcmp(getenv("SAVES"), "crash"))
		__builtin_trap();
	FILE *const file = fopen(state_file(), "w");

	if (!file || fprintf(file, "%ld ", counter) < 2 || fclose(file))
		kvm_log_str("not saved");
}

/* ------------------------------------------------------------------ tasks */

static void tick(void *data, size_t len)
{
	ticks += len > 0 ? strtol(strndup(data, len), NULL, 10) : 1;
}

static void tick_again(void *data, size_t len)
{
	tick(data, len);
	storage_task(tick, data, len, 0, 0);
}

/* Adds itself twice, until there is no room for more. */
static bool no_more;

static void tick_more(void *data, size_t len)
{
	tick(data, len);
	for (int i = 0; i < 2 && !no_more; i++)
		no_more = storage_task(tick_more, data, len, 0, 0) < 0;
}

static void end_more(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	no_more = true;
}

/* Asks for a request that adds it again. */
static void tick_ask(void *data, size_t len)
{
	static char body[1000];
	struct curl_op op = { .content = body, .content_length = sizeof body };

	tick(data, len);
	self_request("/task/tick-ask", 14, &op, NULL, NULL);
}

/* Takes its time, and counts at its end. */
static void tick_slow(void *data, size_t len)
{
	const struct timespec time = { 0, 400 * 1000000 };

	(void)data, (void)len;
	nanosleep(&time, NULL);
	counter++;
}

static void tick_crash(void *data, size_t len)
{
	tick(data, len);
	__builtin_trap();
}

static void tick_endless(void *data, size_t len)
{
	tick(data, len);
	spin();
}

static void begin_ticks(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	give("%ld", storage_task(tick, "1", 1, 10, 10));
}

/* Of the storage's own, and none that others may have run. */
static void secret_tick(void *data, size_t len)
{
	tick(data, len);
}

static void begin_secret(size_t n, struct virtbuffer *b, size_t room)
{
	(void)n, (void)b, (void)room;
	give("%ld", storage_task(secret_tick, "100", 3, 0, 0));
}

static const struct function functions[] = {
	{ "add", add, NULL, true },	    { "get", get, NULL, true },
	{ "echo", echo, NULL, true },	    { "lengths", lengths, NULL, true },
	{ "sums", sums, NULL, true },	    { "nothing", nothing, NULL, true },
	{ "clean", clean, NULL, true },	    { "noreturn", no_return, NULL, true },
	{ "twice", twice, NULL, true },	    { "three", three, NULL, true },
	{ "too-long", too_long, NULL, true }, { "crash", crash, NULL, true },
	{ "crash-late", crash_late, NULL, true }, { "endless", endless, NULL, true },
	{ "quits", quits, NULL, true },	    { "answers", answers, NULL, true },
	{ "greedy", greedy, NULL, true },   { "nap", nap, NULL, true },
	{ "busy", busy, NULL, true },	    { "nested", nested, NULL, true },
	{ "late", late, NULL, true },	    { "page", page, NULL, true },
	{ "tick-ask", NULL, tick_ask, true }, { "tick-more", NULL, tick_more, true },
	{ "end-more", end_more, NULL, true }, { "type", type, NULL, true },	    { "protect", protect, NULL, true },
	{ "allows", allows, NULL, true },   { "forbidden", forbidden, NULL, false },
	{ "tick", NULL, tick, true },	    { "tick-again", NULL, tick_again, true },
	{ "tick-slow", NULL, tick_slow, true },
	{ "tick-crash", NULL, tick_crash, true }, { "tick-endless", NULL, tick_endless, true },
	{ "secret-tick", NULL, secret_tick, false }, { "begin-ticks", begin_ticks, NULL, true },
	{ "begin-secret", begin_secret, NULL, true }, { "save", save, NULL, true },
	{ "append", append, NULL, true },   { "sync", sync_zeros, NULL, true },
	{ "measure", measure, NULL, true },
	{ "saved", saved, NULL, true },	    { "save-crash", save_crash, NULL, true },
};

static uintptr_t address_of(const char *name)
{
	for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
		if (path_is(name, functions[i].name))
			return functions[i].call ? (uintptr_t)functions[i].call : (uintptr_t)functions[i].task;
	return strtoul(name, NULL, 16);
}

/* ------------------------------------------------------------------ requests */

static long in_main = -100;

/* Parts of a response that are made by the storage: three of them. */
static struct kvm_stream_part add_part(void *arg, size_t max, size_t written, size_t total)
{
	static char result[30];
	struct kvm_stream_part part = { result, 0 };

	(void)arg, (void)max, (void)total;
	if (written < 3) {
		const long len = storage_callv(add, 0, NULL, result, sizeof result);

		part.len = len > 0 ? (size_t)len : 0;
	}
	return part;
}

static unsigned long number(const char *url, const char *name, int base, unsigned long otherwise)
{
	char value[100];

	return parameter(&url, name, value, sizeof value) > 0 ? strtoul(value, NULL, base) : otherwise;
}

static void on_call(const char *name, const char *url)
{
	static char values[80][1000];
	struct virtbuffer buffers[80];
	const size_t room = number(url, "room", 10, 1000), zeros = number(url, "zeros", 10, 0);
	char *const result = malloc(room + 1);
	const char *at = url;
	size_t n = 0;
	long len;

	while (n < 79 && (len = parameter(&at, "b", values[n], sizeof *values)) >= 0) {
		buffers[n].data = values[n];
		buffers[n++].len = (size_t)len;
	}
	if (zeros > 0) {
		buffers[n].data = calloc(1, zeros);
		buffers[n++].len = zeros;
	}
	len = storage_callv((kvm_storage_func)address_of(name), n, buffers, result, room);
	say("%ld %.*s\n", len, len > 0 ? (int)len : 0, result);
}

static void on_raw(const char *name, const char *url)
{
	struct virtbuffer buffer = { (void *)number(url, "data", 16, (uintptr_t)text), number(url, "len", 16, 3) };
	const struct virtbuffer *at = (void *)number(url, "at", 16, (uintptr_t)&buffer);
	char result[100];
	char *dst = (void *)number(url, "dst", 16, (uintptr_t)result);

	say("%ld\n", storage_callv((kvm_storage_func)address_of(name), number(url, "n", 10, 1), at, dst,
				   number(url, "room", 16, sizeof result)));
}

static void on_get(const char *url, const char *arg)
{
	const char *rest;

	(void)arg;
	if ((rest = after(url, "/call/"))) {
		on_call(rest, url);
	} else if ((rest = after(url, "/raw/"))) {
		on_raw(rest, url);
	} else if ((rest = after(url, "/task/"))) {
		static char data[100 << 10];
		const char *at = url;
		const long len = parameter(&at, "data", data, sizeof data);
		const size_t bytes = number(url, "bytes", 10, len < 0 ? 0 : (unsigned long)len);

		say("%ld\n", storage_task((kvm_storage_task_func)address_of(rest), data, bytes,
					  number(url, "start", 10, 0), number(url, "period", 10, 0)));
	} else if ((rest = after(url, "/stop/"))) {
		say("%ld\n", storage_task_stop(strtol(rest, NULL, 10)));
	} else if ((rest = after(url, "/many/"))) {
		char result[30] = "";

		for (long i = strtol(rest, NULL, 10), len; i > 0; i--)
			if ((len = storage_callv(add, 0, NULL, result, sizeof result - 1)) > 0)
				result[len] = '\0';
		say("%s\n", result);
	} else if ((rest = after(url, "/tasks/"))) {
		long taken = 0;

		for (long i = strtol(rest, NULL, 10); i > 0; i--)
			taken += storage_task(tick, NULL, 0, 3600000, 0) > 0;
		say("%ld\n", taken);
	} else if (path_is(url, "/crash")) {
		storage_callv(add, 0, NULL, NULL, 0);
		__builtin_trap();
	} else if (path_is(url, "/spin")) {
		spin();
	} else if (path_is(url, "/main")) {
		say("%ld\n", in_main);
	} else if (path_is(url, "/state")) {
		const int writing = open("/kvm-state", O_WRONLY | O_CREAT, 0600) < 0 ? errno : 0;
		const int reading = open("/kvm-state", O_RDONLY) < 0 ? errno : 0;

		say("%s %d %d\n", getenv("KVM_STATE"), writing, reading);
	} else if ((rest = after(url, "/fill/"))) {
		const int fd = open("/scratch/file", O_WRONLY | O_CREAT, 0600);
		long left = strtol(rest, NULL, 10), done = 0;
		ssize_t len;

		while (left > done && (len = write(fd, text, sizeof text)) > 0)
			done += len;
		say("%ld\n", done);
	} else if (path_is(url, "/streamed")) {
		begin_streaming_response(200, "text/plain", 10, 0, add_part, NULL);
	} else if (path_is(url, "/type")) {
		say("%s %d\n", getenv("KVM_TYPE"), is_storage());
	} else {
		say("no such test\n");
		done(404);
	}
	done(200);
}

/* A body by segments, each of which is counted: the number after the last. */
static long on_segment(const char *url, const char *arg, const char *type, const uint8_t *segment, size_t len, size_t offset)
{
	char result[30];

	(void)url, (void)arg, (void)type, (void)segment, (void)offset;
	const long n = storage_callv(add, 0, NULL, result, sizeof result);

	if (len > 0)
		return (long)len;
	say("%.*s\n", n > 0 ? (int)n : 0, result);
	done(200);
}

static void on_live_update(void)
{
	char state[1100];

	if (getenv("LONG_STATE"))
		storage_return(calloc(1, 20 << 20), 20 << 20);
	storage_return(state, (size_t)sprintf(state, "%ld %s", counter, history));
}

static void on_live_restore(size_t len)
{
	char state[1200] = "";

	if (len > 1100 || storage_return(state, len) != (long)len)
		abort();
	if (sscanf(state, "%ld %900s", &counter, history) != 2)
		abort();
	strcat(history, ">" NAME);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "--storage-fails") && is_storage())
		return 3;
	/* One that is stored only once is only once; what is allowed is so however often it is said. */
	for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
		if (functions[i].allowed && storage_allow((kvm_storage_func)address_of(functions[i].name)))
			abort();
	if (storage_allow(add))
		abort();
	FILE *const file = *state_file() ? fopen(state_file(), "r") : NULL;

	if (file) {
		if (fscanf(file, "%ld", &counter) != 1)
			counter = -1;
		fclose(file);
	}
	if (!is_storage()) {
		char result[30];

		in_main = storage_callv(add, 0, NULL, result, sizeof result);
	} else if (argc > 1 && !strcmp(argv[1], "--ticks")) {
		storage_task(tick, "1", 1, 10, 10);
	}
	/* The state is the storage's. */
	if (is_storage() || getenv("BOTH")) {
		set_on_live_update(on_live_update);
		set_on_live_restore(on_live_restore);
	}
	if (is_storage() && getenv("SAVES"))
		set_on_storage_save(on_storage_save);
	set_backend_get(on_get);
	if (getenv("SEGMENTS"))
		set_backend_stream_post(on_segment);
	wait_for_requests();
}
