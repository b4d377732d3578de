// A program that makes every call of the interface well, and then with one of its pointers or lengths changed for a bad one.
// What each URL answers: README.md.

#define _GNU_SOURCE
#include "query.h"

#include <sys/mman.h>

enum { PAGE = 4096, MOST = 9 };

// ------------------------------------------------------------------ the calls

// What is in RDI, RSI, RDX, RCX, R8, R9; and what they point to.
static uint64_t r[6];
static char text[64 << 10] = "X-Evil: 1";
static char room[64 << 10];
static struct kvm_response_header lines[2];
static struct kvm_response_extra extra;
static struct kvm_stream_part part;
static struct virtbuffer buffers[2];
static struct curl_op op;
static struct curl_fields fields;
static struct curl_options options;
static struct kvm_fetch what;
static struct kvm_response_header fetched_with[2];
static char url[1000], path[] = "/page", type[] = "text/plain", content[] = "fine\n", method[] = "POST";

// What becomes of the memory behind a pointer: the host reads it, writes it, does both, runs it; or it is a number.
enum how { READ, WRITTEN, BOTH, RUN, NUMBER };

// A pointer and how many bytes are behind it: `size`, or what `length`, of `width` bytes, says.
struct argument {
	const char *name;
	enum how how;
	void *pointer;
	size_t size;
	void *length;
	size_t width;
	bool nullable; // NULL has a meaning
	bool room;     // the length is but a limit of what is written or read
};

struct call {
	const char *name;
	unsigned number;
	void (*prepare)(void);
	struct argument arguments[MOST];
};

#define FIXED(word, use, place, len, ...) { .name = word, .how = use, .pointer = &(place), .size = len, ##__VA_ARGS__ }
#define SIZED(word, use, place, len, ...) \
	{ .name = word, .how = use, .pointer = &(place), .length = &(len), .width = sizeof(len), ##__VA_ARGS__ }
#define TEXT(word, place, len) SIZED(word, READ, place, len)
#define VALUE(word, place) FIXED(word, NUMBER, place, sizeof(place))

static uint64_t at(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

static void set(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	const uint64_t all[] = { a, b, c, d, e, f };

	memcpy(r, all, sizeof all);
}

static void of_log(void) { set(at(text), 9, 0, 0, 0, 0); }
static void of_meminfo(void) { set(at(room), 0, 0, 0, 0, 0); }
static void of_header(void) { set(KVM_RESPONSE, at(text), 9, 0, 0, 0); }
static void of_find(void) { set(KVM_REQUEST, at("X-Evil"), 6, at(room), 9, 0); }
static void of_method(void) { set(at(room), 3, 0, 0, 0, 0); }
static void of_compile(void) { set(at(text), 9, 0, 0, 0, 0); }
static void of_match(void) { set(1, at(text), 9, 0, 0, 0); }
static void of_cacheable(void) { set(1, 1000, 1000, 1000, 0, 0); }
static void of_allow(void) { set(at(of_log), 0, 0, 0, 0, 0); }
static void of_register(void) { set(1, at(of_log), 0, 0, 0, 0); }
static void of_ephemeral(void) { set(1, 0, 0, 0, 0, 0); }
static void of_nothing(void) { set(0, 0, 0, 0, 0, 0); }

static void of_response(void)
{
	lines[0] = (struct kvm_response_header){ "X-A: 1", 6 };
	lines[1] = (struct kvm_response_header){ "X-B: 2", 6 };
	extra = (struct kvm_response_extra){ .headers = lines, .num_headers = 2, .cached = true, .ttl = 1 };
	set(200, at(type), 10, at(content), 5, at(&extra));
}

static struct kvm_stream_part next(void *arg, size_t max, size_t written, size_t total)
{
	(void)arg, (void)max, (void)total;
	return written > 0 ? (struct kvm_stream_part){ NULL, 0 } : part;
}

static void of_stream(void)
{
	part = (struct kvm_stream_part){ content, 5 };
	set(200, at(type), 10, 0, at(next), 0);
}

// A function of the storage's: as many bytes as all its buffers have.
static void count(size_t n, struct virtbuffer *b, size_t reslen)
{
	size_t all = 0;

	(void)reslen;
	for (size_t i = 0; i < n; i++)
		all += b[i].len;
	storage_return(text, all);
}

static void of_callv(void)
{
	buffers[0] = (struct virtbuffer){ text, 4 };
	buffers[1] = (struct virtbuffer){ text, 5 };
	set(at(count), 2, at(buffers), at(room), 9, 0);
}

static void tick(void *data, size_t len) { (void)data, (void)len; }

static void of_task(void) { set(at(tick), at(text), 9, 3600000, 0, 0); }
static void of_stop(void) { set(1, 0, 0, 0, 0, 0); }

static void of_fetch(void)
{
	op = (struct curl_op){ .post_buflen = 4, .post_buffer = "post", .content = room, .content_length = 1000,
			       .headers = room + 2000, .headers_length = 1000 };
	fields = (struct curl_fields){ .ptr = { text }, .len = { 9 } };
	options = (struct curl_options){ 0 };
	set(at(url), strlen(url), at(&op), at(&fields), at(&options), 0);
}

static void of_self(void)
{
	of_fetch();
	r[0] = at(path);
	r[1] = 5;
}

static void of_begin(void)
{
	fetched_with[0] = (struct kvm_response_header){ text, 9 };
	fetched_with[1] = (struct kvm_response_header){ text, 9 };
	what = (struct kvm_fetch){ .url = url, .url_len = (uint32_t)strlen(url), .method = method, .method_len = 4,
				   .headers = fetched_with, .num_headers = 2, .body = "body", .body_len = 4 };
	set(at(&what), 0, 0, 0, 0, 0);
}

static void of_begun(void)
{
	struct kvm_fetch_head head = { 0 };

	of_begin();
	set((uint64_t)fetch_begin(&what), at(room), at(room + 100), 0, 0, 0);
	fetch_head((long)r[0], &head, NULL, 0);
	r[3] = head.headers_len;
}

static void of_read(void)
{
	of_begun();
	r[2] = 8;
}

// Runs in the storage: gives its result by the call that is asked for.
static void of_return(void) { set(at(text), 9, 0, 0, 0, 0); }

static const struct call calls[] = {
	{ "log", KVM_HC_LOG, of_log, { SIZED("text", READ, r[0], r[1], .room = true) } },
	{ "get_meminfo", KVM_HC_GET_MEMINFO, of_meminfo, { FIXED("out", WRITTEN, r[0], 32) } },
	{ "http_append", KVM_HC_HTTP_APPEND, of_header, { TEXT("field", r[1], r[2]), VALUE("where", r[0]) } },
	{ "http_set", KVM_HC_HTTP_SET, of_header, { TEXT("field", r[1], r[2]), VALUE("where", r[0]) } },
	{ "http_find", KVM_HC_HTTP_FIND, of_find,
	  { TEXT("key", r[1], r[2]), SIZED("out", WRITTEN, r[3], r[4], .nullable = true, .room = true), VALUE("where", r[0]) } },
	{ "http_method", KVM_HC_HTTP_METHOD, of_method, { SIZED("out", WRITTEN, r[0], r[1], .nullable = true, .room = true) } },
	{ "regex_compile", KVM_HC_REGEX_COMPILE, of_compile, { TEXT("pattern", r[0], r[1]) } },
	{ "regex_free", KVM_HC_REGEX_FREE, of_match, { VALUE("number", r[0]) } },
	{ "regex_match", KVM_HC_REGEX_MATCH, of_match, { TEXT("subject", r[1], r[2]), VALUE("number", r[0]) } },
	{ "set_cacheable", KVM_HC_SET_CACHEABLE, of_cacheable, { VALUE("ttl", r[1]), VALUE("grace", r[2]), VALUE("keep", r[3]) } },
	{ "backend_response", KVM_HC_BACKEND_RESPONSE, of_response,
	  { TEXT("type", r[1], r[2]), TEXT("content", r[3], r[4]), FIXED("extra", READ, r[5], sizeof extra, .nullable = true),
	    FIXED("headers", READ, extra.headers, sizeof lines), TEXT("field", lines[1].field, lines[1].field_len),
	    VALUE("status", r[0]), VALUE("count", extra.num_headers), VALUE("ttl", extra.ttl) } },
	{ "begin_streaming_response", KVM_HC_BEGIN_STREAMING_RESPONSE, of_stream,
	  { TEXT("type", r[1], r[2]), FIXED("callback", RUN, r[4], 1), SIZED("part", READ, part.data, part.len, .nullable = true),
	    VALUE("status", r[0]), VALUE("length", r[3]) } },
	{ "storage_callv", KVM_HC_STORAGE_CALLV, of_callv,
	  { FIXED("buffers", READ, r[2], sizeof buffers), TEXT("buffer", buffers[1].data, buffers[1].len),
	    SIZED("result", WRITTEN, r[3], r[4]), FIXED("function", RUN, r[0], 1), VALUE("n", r[1]) } },
	{ "storage_task", KVM_HC_STORAGE_TASK, of_task,
	  { TEXT("data", r[1], r[2]), FIXED("function", RUN, r[0], 1), VALUE("start", r[3]), VALUE("period", r[4]) } },
	{ "storage_task_stop", KVM_HC_STORAGE_TASK_STOP, of_stop, { VALUE("number", r[0]) } },
	{ "fetch", KVM_HC_FETCH, of_fetch,
	  { TEXT("url", r[0], r[1]), FIXED("op", BOTH, r[2], sizeof op), FIXED("fields", READ, r[3], sizeof fields, .nullable = true),
	    SIZED("field", READ, fields.ptr[0], fields.len[0], .nullable = true), FIXED("options", READ, r[4], sizeof options, .nullable = true),
	    SIZED("post", READ, op.post_buffer, op.post_buflen, .nullable = true),
	    SIZED("content", WRITTEN, op.content, op.content_length, .nullable = true),
	    SIZED("headers", WRITTEN, op.headers, op.headers_length, .nullable = true) } },
	{ "self_request", KVM_HC_SELF_REQUEST, of_self, { TEXT("path", r[0], r[1]), FIXED("op", BOTH, r[2], sizeof op) } },
	{ "fetch_begin", KVM_HC_FETCH_BEGIN, of_begin,
	  { FIXED("what", READ, r[0], sizeof what), TEXT("url", what.url, what.url_len),
	    SIZED("method", READ, what.method, what.method_len, .nullable = true),
	    FIXED("headers", READ, what.headers, sizeof fetched_with), TEXT("field", fetched_with[1].field, fetched_with[1].field_len),
	    SIZED("body", READ, what.body, what.body_len, .nullable = true), VALUE("count", what.num_headers) } },
	{ "fetch_head", KVM_HC_FETCH_HEAD, of_begun,
	  { FIXED("head", WRITTEN, r[1], sizeof(struct kvm_fetch_head)), SIZED("headers", WRITTEN, r[2], r[3], .nullable = true, .room = true),
	    VALUE("number", r[0]) } },
	{ "fetch_read", KVM_HC_FETCH_READ, of_read,
	  { SIZED("buffer", WRITTEN, r[1], r[2], .room = true), VALUE("number", r[0]) } },
	{ "fetch_close", KVM_HC_FETCH_CLOSE, of_begun, { VALUE("number", r[0]) } },
	{ "storage_return", KVM_HC_STORAGE_RETURN, of_return, { TEXT("data", r[0], r[1]) } },
	{ "storage_noreturn", KVM_HC_STORAGE_NORETURN, of_return, { TEXT("data", r[0], r[1]) } },
	{ "register_func", KVM_HC_REGISTER_FUNC, of_register, { VALUE("slot", r[0]) } },
	{ "storage_allow", KVM_HC_STORAGE_ALLOW, of_allow, { VALUE("function", r[0]) } },
	{ "make_ephemeral", KVM_HC_MAKE_EPHEMERAL, of_ephemeral, { VALUE("on", r[0]) } },
	{ "wait_for_requests", KVM_HC_WAIT_FOR_REQUESTS, of_nothing, {} },
	{ "wait_for_requests_paused", KVM_HC_WAIT_FOR_REQUESTS_PAUSED, of_nothing, {} },
	{ "nothing", 0x10FFF, of_nothing, {} },
};

// ------------------------------------------------------------------ the bad pointers

// Two pages, then one that nobody may touch; and one that can't be written. At the end of the last is that of all memory
// that mmap(2) gives.
static char *pages, *read_only, *end;

// How a pointer is changed. It is bad for what is written, or for what is read or run as well; or it is good, and has what
// the one in its place had.
enum worth { GOOD, NOT_WRITABLE, BAD };

static uint64_t border(size_t len) { return at(pages) + 2 * PAGE - len; }
static uint64_t past(size_t len) { return border(len) + 1; }
static uint64_t past_stack(size_t len) { return 0x7ffd00000000 - len + 1; }
static uint64_t past_memory(size_t len) { return at(end) - len + 1; }
static uint64_t between(size_t len) { return at(pages) + PAGE - len / 2; }
static uint64_t odd(size_t len) { return at(pages) + 1 + 0 * len; }
static uint64_t code(size_t len) { return at(of_log) + 0 * len; }
static uint64_t constant(size_t len) { return at(read_only) + 0 * len; }

static const struct kind {
	const char *name;
	enum worth worth;
	uint64_t address;
	uint64_t (*of)(size_t len);
} kinds[] = {
	{ "null", BAD, 0, NULL },
	{ "low", BAD, 8, NULL },
	{ "hole", BAD, 0x123456789000, NULL },
	{ "noncanonical", BAD, 1ull << 47, NULL },
	{ "positive", BAD, ~0ull >> 1, NULL },
	{ "sign", BAD, 1ull << 63, NULL },
	{ "kernel", BAD, 0xffff800000000000, NULL },
	{ "vsyscall", BAD, 0xffffffffff600000, NULL },
	{ "last", BAD, ~0ull, NULL },
	{ "clock", BAD, 0x7e0000000000, NULL },
	{ "gdt", BAD, 0x7e0000001000, NULL },
	{ "tss", BAD, 0x7e0000002000, NULL },
	{ "ring0-code", BAD, 0x7e0000004000, NULL },
	{ "ring0-stack", BAD, 0x7e0000006ff8, NULL },
	{ "tables", BAD, 0x7e000001e000, NULL },
	{ "past", BAD, 0, past },
	{ "past-stack", BAD, 0, past_stack },
	{ "past-memory", BAD, 0, past_memory },
	{ "stubs", NOT_WRITABLE, 0x7e0000008000, NULL },
	{ "frozen-state", NOT_WRITABLE, 0x7e0000009000, NULL },
	{ "code", NOT_WRITABLE, 0, code },
	{ "constant", NOT_WRITABLE, 0, constant },
	{ "border", GOOD, 0, border },
	{ "between", GOOD, 0, between },
	{ "odd", GOOD, 0, odd },
};

static const struct length {
	const char *name;
	uint64_t len;
} lengths[] = {
	{ "2^31", 1ull << 31 }, { "2^32-1", UINT32_MAX }, { "2^40", 1ull << 40 }, { "2^63", 1ull << 63 },
	{ "-1", ~0ull }, { "wraps", 0 }, { "one-more", 0 },
};

static uint64_t get(const void *place, size_t width)
{
	uint64_t value = 0;

	memcpy(&value, place, width);
	return value;
}

static void put(void *place, size_t width, uint64_t value)
{
	memcpy(place, &value, width);
}

// How many bytes are behind an argument's pointer.
static size_t size_of(const struct argument *argument)
{
	return argument->length ? get(argument->length, argument->width) : argument->size;
}

// Whether this is something to be tried with the argument.
static bool fits(const struct argument *argument, const struct kind *kind)
{
	if (argument->how == NUMBER || (argument->nullable && !strcmp(kind->name, "null")))
		return false;
	if (argument->how == RUN)
		return kind->worth == BAD && strcmp(kind->name, "past") && strcmp(kind->name, "past-memory");
	return kind->worth != NOT_WRITABLE || argument->how != READ;
}

static bool length_fits(const struct argument *argument, const struct length *length)
{
	if (!argument->length)
		return false;
	if (length->len == 0)
		return strcmp(length->name, "wraps") || argument->width == 8;
	return argument->width == 8 || length->len >> (8 * argument->width) == 0;
}

static void change(const struct argument *argument, const struct kind *kind)
{
	const size_t len = size_of(argument);
	const uint64_t to = kind->of ? kind->of(len) : kind->address;

	if (kind->worth == GOOD && argument->how != RUN)
		memcpy((void *)to, (void *)get(argument->pointer, 8), len);
	put(argument->pointer, 8, to);
}

static void change_length(const struct argument *argument, const struct length *length)
{
	const size_t len = size_of(argument);
	const uint64_t from = get(argument->pointer, 8);

	if (!strcmp(length->name, "wraps")) {
		put(argument->length, argument->width, -from);
	} else if (!strcmp(length->name, "one-more")) {
		memcpy((void *)border(len), (void *)from, len);
		put(argument->pointer, 8, border(len));
		put(argument->length, argument->width, len + 1);
	} else {
		put(argument->length, argument->width, length->len);
	}
}

// ------------------------------------------------------------------ what is asked for

static bool is(const char *word, size_t len, const char *name)
{
	return len == strlen(name) && !memcmp(word, name, len);
}

// The next part of a path; its length.
static size_t word(const char **from, const char **start)
{
	*from += **from == '/';
	*start = *from;
	*from += strcspn(*from, "/?");
	return (size_t)(*from - *start);
}

// Makes the calls's registers, as CALL/ARGUMENT/KIND says, or with =HEX for the kind. NULL if there is no such.
static const struct call *prepared(const char *name)
{
	const char *start;
	size_t len = word(&name, &start);

	for (const struct call *call = calls; call < calls + sizeof calls / sizeof *calls; call++) {
		if (!is(start, len, call->name))
			continue;
		call->prepare();
		if ((len = word(&name, &start)) == 0)
			return call;
		for (const struct argument *argument = call->arguments; argument->name; argument++) {
			if (!is(start, len, argument->name))
				continue;
			len = word(&name, &start);
			if (*start == '=') {
				put(argument->pointer, argument->how == NUMBER ? argument->size : 8, strtoul(start + 1, NULL, 16));
				return call;
			}
			for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
				if (is(start, len, kinds[i].name))
					return change(argument, &kinds[i]), call;
			for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
				if (is(start, len, lengths[i].name))
					return change_length(argument, &lengths[i]), call;
		}
	}
	return NULL;
}

static long made(const struct call *call)
{
	return kvm_hypercall(call->number, r[0], r[1], r[2], r[3], r[4], r[5]);
}

// In the storage.
static void returns(size_t n, struct virtbuffer *b, size_t reslen)
{
	char name[200] = "";

	(void)n, (void)reslen;
	memcpy(name, b[0].data, b[0].len < sizeof name ? b[0].len : sizeof name - 1);
	made(prepared(name));
}

// All that can be tried: CALL ARGUMENT KIND, and whether that is "bad", "good", a bad "length", or one that is but a "limit".
static void list(void)
{
	for (const struct call *call = calls; call < calls + sizeof calls / sizeof *calls; call++) {
		for (const struct argument *argument = call->arguments; argument->name; argument++) {
			for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
				if (fits(argument, &kinds[i]))
					say("%s %s %s %s\n", call->name, argument->name, kinds[i].name,
					    kinds[i].worth == GOOD ? "good" : "bad");
			for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
				if (length_fits(argument, &lengths[i]))
					say("%s %s %s %s\n", call->name, argument->name, lengths[i].name,
					    argument->room && strcmp(lengths[i].name, "one-more") ? "limit" : "length");
		}
	}
}

// Two arguments that are the same memory, or part of it.
static long overlap(const char *name)
{
	if (path_is(name, "find")) {
		of_find();
		memcpy(room, "X-Evil", 6);
		set(KVM_REQUEST, at(room), 6, at(room + 1), 100, 0);
		return kvm_hypercall(KVM_HC_HTTP_FIND, r[0], r[1], r[2], r[3], r[4], 0);
	}
	if (path_is(name, "result-buffer")) {
		of_callv();
		r[3] = at(text);
	} else if (path_is(name, "result-array")) {
		of_callv();
		r[3] = at(buffers);
	} else if (path_is(name, "buffer-array")) {
		of_callv();
		buffers[0] = buffers[1] = (struct virtbuffer){ buffers, 4 };
		buffers[1].len = 5;
	} else if (path_is(name, "content-op")) {
		of_fetch();
		op.content = &op;
		op.content_length = sizeof op;
		return fetch(url, strlen(url), &op, &fields, &options);
	} else if (path_is(name, "content-headers")) {
		of_fetch();
		op.headers = op.content;
		return fetch(url, strlen(url), &op, &fields, &options);
	} else if (path_is(name, "content-url")) {
		of_fetch();
		op.content = url;
		op.content_length = sizeof url;
		op.post_buffer = url;
		return fetch(url, strlen(url), &op, &fields, &options);
	} else if (path_is(name, "head-headers")) {
		of_begun();
		return fetch_head((long)r[0], (void *)room, room, r[3]);
	} else if (path_is(name, "extra")) {
		of_response();
		extra.headers = (void *)&extra;
		extra.num_headers = 1;
		return kvm_hypercall(KVM_HC_BACKEND_RESPONSE, r[0], r[1], r[2], r[3], r[4], r[5]);
	} else {
		return -1000;
	}
	return kvm_hypercall(KVM_HC_STORAGE_CALLV, r[0], r[1], r[2], r[3], r[4], 0);
}

static long served;

static void on_get(const char *from, const char *arg)
{
	const char *rest;

	(void)arg;
	served++;
	if (path_is(from, "/fine")) {
		say("fine %ld\n", served);
	} else if (path_is(from, "/list")) {
		list();
	} else if ((rest = after(from, "/run/"))) {
		const struct call *call = prepared(rest);

		if (!call)
			done(404);
		say("%ld\n", made(call));
	} else if ((rest = after(from, "/storage/"))) {
		// The result, and how much of it there is.
		struct virtbuffer name = { (void *)(uintptr_t)rest, strlen(rest) };
		const long len = storage_callv(returns, 1, &name, room, 9);

		say("%ld\n", len);
	} else if ((rest = after(from, "/overlap/"))) {
		say("%ld\n", overlap(rest));
	} else {
		done(404);
	}
	done(200);
}

// Arguments: the URL that is fetched; what the handler's address is to be, or that of wait_for_requests_paused()'s structure.
int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		const char *value;

		if ((value = after(argv[i], "--handler=")))
			register_func(KVM_SLOT_GET, strtoul(value, NULL, 16));
		else if ((value = after(argv[i], "--paused=")))
			wait_for_requests_paused((void *)strtoul(value, NULL, 16));
		else
			strncpy(url, argv[i], sizeof url - 1);
		if (value)
			wait_for_requests();
	}
	pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	read_only = pages + 3 * PAGE;
	end = pages + 4 * PAGE;
	mprotect(pages + 2 * PAGE, PAGE, PROT_NONE);
	mprotect(read_only, PAGE, PROT_READ);
	memset(text + 9, '\n', sizeof text - 9);
	regex_compile("X", 1);
	storage_allow(count);
	storage_allow(returns);
	kvm_hypercall(KVM_HC_STORAGE_ALLOW, at(tick), 0, 0, 0, 0, 0);
	set_backend_get(on_get);
	wait_for_requests();
}
