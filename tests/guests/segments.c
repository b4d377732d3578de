// Bodies that come segment by segment, taken well and badly. What each URL answers: README.md.

#include "query.h"

static uint64_t hash = 0xcbf29ce484222325;
static size_t segments, bytes, longest;

static struct kvm_stream_part one(void *arg, size_t max, size_t written, size_t total)
{
	(void)max, (void)total;
	return (struct kvm_stream_part){written == 0 ? arg : NULL, 9};
}

static long on_segment(const char *url, const char *arg, const char *type, const uint8_t *segment, size_t len, size_t offset)
{
	if (offset != bytes || (len == 0) != (segment == NULL))
		say("wrong: offset %zu after %zu bytes, %p of %zu\n", offset, bytes, (const void *)segment, len);
	if (path_is(url, "/early"))
		backend_response_str(200, "text/plain", "early\n");
	if (path_is(url, "/early-long")) {
		static char body[1 << 20];
		memset(body, 'e', sizeof body);
		backend_response(200, "text/plain", 10, body, sizeof body);
	}
	if (path_is(url, "/early-parts"))
		begin_streaming_response(200, "text/plain", 10, 0, one, "in parts\n");
	if (path_is(url, "/refuse"))
		return (long)len - 1;
	if (path_is(url, "/more"))
		return (long)len + 1;
	if (path_is(url, "/negative"))
		return -1;
	if (path_is(url, "/crash"))
		*(volatile int *)0 = 1;
	if (path_is(url, "/hang"))
		for (;;)
			__asm__ volatile("");
	if (path_is(url, "/crash-late") && offset > 100000)
		*(volatile int *)0 = 1;
	if (path_is(url, "/memory"))
		memset(malloc(8 << 20), 1, 8 << 20);
	if (segments == 0)
		http_append_str(KVM_RESPONSE, "X-First: 1");
	if (len > 0) {
		for (size_t i = 0; i < len; i++)
			hash = (hash ^ segment[i]) * 0x100000001b3;
		segments++;
		bytes += len;
		longest = len > longest ? len : longest;
		return (long)len;
	}
	if (path_is(url, "/returns"))
		return 0;
	say("%s %s %s len %zu fnv1a %016lx\n", url, arg, type, bytes, hash);
	if (longest > 65536)
		say("too long: %zu\n", longest);
	if (path_is(url, "/segments"))
		say("%zu segments\n", segments);
	done(200);
}

static void on_post(const char *url, const char *arg, const char *type, const uint8_t *data, size_t len)
{
	(void)url, (void)arg, (void)type, (void)data, (void)len;
	backend_response_str(200, "text/plain", "post\n");
}

static void on_get(const char *url, const char *arg)
{
	(void)arg;
	say("get %s %zu\n", url, bytes);
	done(200);
}

static void on_request(const struct kvm_request *request)
{
	say("request %s %zu\n", request->url, bytes);
	done(200);
}

static void on_failure(const char *url, const char *arg, const char *what)
{
	(void)arg;
	say("failed: %s: %s\n", url, what);
	done(500);
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "";

	set_backend_stream_post(on_segment);
	if (!strcmp(how, "--on-error"))
		set_on_error(on_failure);
	if (!strcmp(how, "--any-method"))
		set_backend_request(on_request);
	if (strcmp(how, "--alone")) {
		set_backend_post(on_post);
		set_backend_get(on_get);
	}
	wait_for_requests();
}
