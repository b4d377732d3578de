// The ways in which programs for the C++ VMOD are written, all of them once: sources that use them build with our header. C and
// C++. What each URL answers: on_get.

#define KVM_API_ALREADY_DEFINED
#include <kvm_api.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

EMBED_BINARY(embedded, "idioms.txt");

static uint64_t *shared;
static char *shared_bytes;
static bool is_linux;

static void answer(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void answer(const char *format, ...)
{
	static char text[3 * HTTP_FMT_SIZE];
	va_list args;
	int len;

	va_start(args, format);
	len = vsnprintf(text, sizeof text, format, args);
	va_end(args);
	backend_response(200, "text/plain", strlen("text/plain"), text, (size_t)len);
}

static struct streaming_content stream(void *arg, size_t max, size_t written, size_t total)
{
	struct streaming_content part;

	(void)max, (void)total;
	part.data = (const char *)arg + written;
	part.len = 1;
	return part;
}

static void in_storage(size_t n, struct virtbuffer buffers[], size_t res)
{
	(void)res;
	if (n == 0)
		storage_return_nothing();
	storage_return(buffers[0].data, buffers[0].len);
}

static void task(void *data, size_t len)
{
	(void)data, (void)len;
}

/* Of a type of its own. */
static long counted(const char *what, unsigned by)
{
	return (long)strlen(what) + by;
}

static void on_headers(void)
{
	char buffer[HTTP_FMT_SIZE];
	char *found;
	unsigned len;

	http_append_str(RESP, "X-One: 1");
	http_appendf(BERESP, "X-Two: %d %s", 2, "twice");
	http_setf(RESP, "X-One: %c", 'a');
	sys_http_append(RESP, "X-Three: 3", 10);
	sys_http_append(RESP, "X-Four: 4", 9);
	sys_http_set(RESP, "X-Three: three", 14);
	http_unset_str(RESP, "X-Four");
	http_set_str(REQ, "X-Asked: yes");
	len = (unsigned)http_find_str(REQ, "x-asked", buffer, sizeof buffer);
	found = http_alloc_find(REQ, "X-Asked");
	if (!found || strcmp(found, buffer) || strlen(found) != len)
		abort();
	answer("%u %s, %s, %ld, %ld, %.*s\n", len, found, http_alloc_find(REQ, "X-Absent") ? "found" : "absent",
	       sys_http_find(BEREQ, "X-Asked", 7, buffer, 3), sys_http_method(buffer, sizeof buffer),
	       (int)http_method(NULL, 0), buffer);
}

static void on_long_header(void)
{
	char *word = (char *)calloc(1, HTTP_FMT_SIZE + 1);
	long fits, refused;

	memset(word, 'a', HTTP_FMT_SIZE - 3);
	fits = http_setf(REQ, "X: %s", word);
	word[HTTP_FMT_SIZE - 3] = 'a';
	word[HTTP_FMT_SIZE - 2] = 'a';
	refused = http_setf(REQ, "X: %s", word);
	refused += http_appendf(REQ, "X: %s", word);
	answer("%d %ld %zu\n", fits > 0, refused, strlen(http_alloc_find(REQ, "X")));
}

static void on_get(const char *url, const char *arg)
{
	struct meminfo info;

	(void)arg;
	memset(&info, 0, sizeof info);
	if (!strcmp(url, "/headers"))
		on_headers();
	if (!strcmp(url, "/long"))
		on_long_header();
	if (!strcmp(url, "/embedded"))
		backend_response(200, "text/plain", 10, embedded, embedded_size);
	if (!strcmp(url, "/log")) {
		vlogf("%d, %s", 7, "formatted");
		sys_log("as it is", 8);
		answer("%ld\n", vlogf("%8000d", 1));
	}
	if (!strcmp(url, "/cacheable"))
		answer("%ld %ld\n", sys_set_cacheable(true, 10000, 0, 0), set_cacheable(false, 0.01f, 0.0, 0.0));
	if (!strcmp(url, "/memory")) {
		get_meminfo(&info);
		answer("%d\n", info.max_reqmem >= info.reqmem_current && info.max_memory > 0);
	}
	if (!strcmp(url, "/linux"))
		answer("%d\n", is_linux);
	if (!strcmp(url, "/shared")) {
		if (!shared || !shared_bytes || (uintptr_t)shared % 8 || (char *)shared >= shared_bytes)
			answer("none\n");
		answer("%lu\n", (unsigned long)__sync_add_and_fetch(shared, 1));
	}
	if (!strcmp(url, "/stream")) {
		static const char data[] = "abcde";

		begin_streaming_response(200, "text/plain", 10, 5, stream, data);
	}
	if (!strcmp(url, "/fetch")) {
		struct curl_op op;
		struct curl_fields fields;
		struct curl_options options;
		const char *to = "http://192.0.2.1/";

		memset(&op, 0, sizeof op);
		memset(&fields, 0, sizeof fields);
		memset(&options, 0, sizeof options);
		fields.ptr[CURL_FIELDS_COUNT - 1] = "X-Hello: World";
		fields.len[CURL_FIELDS_COUNT - 1] = 14;
		options.follow_location = true;
		options.dont_verify_host = true;
		answer("%d %d\n", sys_fetch(to, strlen(to), &op, &fields, &options) < 0, sys_request("/", 1, &op, NULL, NULL) < 0);
	}
	if (!strcmp(url, "/storage")) {
		char result[16];
		const struct virtbuffer buffer = {TRUST_ME("stored"), 6};
		const long len = storage_callv(in_storage, 1, &buffer, result, sizeof result);

		answer("%.*s\n", len > 0 ? (int)len : 0, result);
	}
	if (!strcmp(url, "/tasks"))
		answer("%d\n", stop_storage_task(schedule_storage_task(task, "a", 1, 3600.0, 0.5)) == 0 &&
			       storage_task(task, "a", 1) > 0 && storage_task(task, "a", 1, 0, 0) > 0 &&
			       sys_storage_task(task, NULL, 0, 0, 0) > 0);
	backend_response_str(404, "text/plain", "no such URL\n");
}

static void on_post(const char *url, const char *arg, const char *content_type, const uint8_t *data, size_t len)
{
	struct ResponseHeader headers[1];
	BackendResponseExtra extra;

	(void)url, (void)arg;
	memset(&extra, 0, sizeof extra);
	headers[0].field = "X-Extra: yes";
	headers[0].field_len = strlen(headers[0].field);
	extra.headers = headers;
	extra.num_headers = 1;
	backend_response_extra(201, content_type, strlen(content_type), data, len, &extra);
}

static void on_error(const char *url, const char *arg, const char *exception)
{
	(void)arg;
	http_appendf(RESP, "X-Error: %s", url);
	backend_response_str(500, "text/plain", exception);
}

static void on_live_update(void)
{
	storage_return(&is_linux, sizeof is_linux);
}

static void on_live_restore(size_t len)
{
	if (len == 0)
		storage_return_nothing();
	else
		storage_return(&is_linux, sizeof is_linux);
}

int main(void)
{
	storage_func function = in_storage;
	storage_task_func later = task;

	if (IS_LINUX_MAIN()) {
		puts("Hello Linux World!");
		return 0;
	}
	is_linux = IS_LINUX_MAIN();
	shared = SHM_ALLOC_TYPE(uint64_t);
	if (shared)
		shared = SHM_ALLOC_TYPE(*shared);
	shared_bytes = (char *)SHM_ALLOC_BYTES(3);
	if (SHM_ALLOC_BYTES(SIZE_MAX) || SHM_ALLOC_BYTES((size_t)1 << 40))
		abort();
	STORAGE_ALLOW(in_storage);
	STORAGE_ALLOW(counted);
	STORAGE_ALLOW(task);
	(void)function, (void)later;
	if (sys_is_storage() && sys_is_debug())
		sys_breakpoint();
	sys_make_ephemeral(true);
	sys_regex_free(sys_regex_match(sys_regex_compile("a", 1), "a", 1));
	register_func(KVM_SLOT_GET, on_get);
	set_backend_post(on_post);
	set_on_error(on_error);
	set_on_live_update(on_live_update);
	set_on_live_restore(on_live_restore);
	wait_for_requests();
}
