// Streaming responses, well and badly made. What each URL answers: README.md.

#include "query.h"

#include <time.h>
#include <unistd.h>

enum { ROOM = 1 << 20 };

// What is answered, on the stack of the handler.
struct plan {
	const char *kind;
	size_t part; // bytes of each part
	size_t len;  // of all parts
	bool text; // letters, not the pattern
	size_t good; // as many bytes are made well
};

static uint8_t buffer[ROOM];
static int kept;

static struct kvm_stream_part part(const void *data, size_t len)
{
	return (struct kvm_stream_part){data, len};
}

static uint8_t pattern(size_t at)
{
	return (uint8_t)(at * 31 + (at >> 8));
}

static char value[64];

// Whether the URL has this parameter, whose value is in `value` then.
static bool has(const char *url, const char *name)
{
	return parameter(&url, name, value, sizeof value) >= 0;
}

static void sleep_ms(long ms)
{
	const struct timespec time = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&time, NULL);
}

static struct kvm_stream_part next(void *arg, size_t max, size_t written, size_t total)
{
	struct plan *plan = arg;
	const char *kind = plan->kind;
	size_t len = plan->part;

	// Floating point and the stack are as functions may expect them.
	if ((uintptr_t)__builtin_frame_address(0) % 16 != 0)
		return part("misaligned", 10);
	if (!strcmp(kind, "asked")) {
		len = snprintf((char *)buffer, ROOM, "max %zu written %zu total %zu\n", max, written, total);
		return part(buffer, len < max ? len : max);
	}
	if (!strcmp(kind, "calls")) {
		char line[200];
		long n = http_find(KVM_REQUEST, "X-Here", 6, line, sizeof line - 1);

		if (written > 0)
			return part(NULL, 0);
		line[n > 0 ? n : 0] = '\0';
		say("%s\n", line);
		say("%ld\n", http_method(line, sizeof line));
		say("%ld %ld\n", http_append_str(KVM_RESPONSE, "X-Late: 1"), http_set_str(BERESP, "X-Late: 1"));
		say("%ld\n", http_set_str(KVM_REQUEST, "X-Own: 1"));
		say("%ld\n", http_find(KVM_REQUEST, "X-Own", 5, NULL, 0));
		say("%ld\n", set_cacheable(true, 10, 10, 10));
		return part(answer, answer_len);
	}
	if (written >= plan->good) {
		if (!strcmp(kind, "crash"))
			*(volatile int *)0 = 1;
		if (!strcmp(kind, "exit"))
			_exit(3);
		if (!strcmp(kind, "hang"))
			for (;;)
				__asm__ volatile("");
		if (!strcmp(kind, "sleep"))
			sleep_ms(1000000);
		if (!strcmp(kind, "respond"))
			backend_response_str(200, "text/plain", "another");
		if (!strcmp(kind, "again"))
			begin_streaming_response(200, "text/plain", 10, 0, next, arg);
		if (!strcmp(kind, "wait"))
			wait_for_requests();
		if (!strcmp(kind, "wild"))
			return part((void *)0x10, 10);
		if (!strcmp(kind, "kernel"))
			return part((void *)0x7e0000001000, 10);
		if (!strcmp(kind, "wraps"))
			return part((void *)-8, 16);
		if (!strcmp(kind, "edge"))
			return part((void *)0x7ffffffff000, 16);
		if (!strcmp(kind, "huge"))
			return part(buffer, 1ull << 63);
		if (!strcmp(kind, "more"))
			return part(buffer, max + 1);
		if (!strcmp(kind, "memory")) {
			for (size_t at = 0; at < 256 << 20; at += 4096)
				*(volatile char *)malloc(4096) = 1;
		}
	}
	if (!strcmp(kind, "slow"))
		sleep_ms(20);
	if (len > max)
		len = max;
	if (strcmp(kind, "endless") && len > plan->len - written)
		len = plan->len - written;
	for (size_t i = 0; i < len; i++)
		buffer[i] = plan->text ? 'a' + (written + i) % 26 : pattern(written + i);
	kept++;
	return part(buffer, len);
}

// /KIND?len=N&part=N&good=N&announced=N&status=N&ttl=N
static void on_request(const struct kvm_request *request)
{
	const char *from = request->url;
	char kind[64] = {0};
	struct plan plan = {kind, 1000, 10000, false, 1};
	size_t announced = 0;
	int16_t status = 200;
	kvm_stream_func callback = next;

	memcpy(kind, from + 1, strcspn(from + 1, "?") < 63 ? strcspn(from + 1, "?") : 63);
	if (!strcmp(kind, "kept")) {
		say("%d\n", kept);
		done(200);
	}
	plan.text = has(request->url, "text");
	if (has(request->url, "len"))
		plan.len = strtoul(value, NULL, 0);
	if (has(request->url, "part"))
		plan.part = strtoul(value, NULL, 0);
	if (has(request->url, "good"))
		plan.good = strtoul(value, NULL, 0);
	if (has(request->url, "announced"))
		announced = strtoul(value, NULL, 0);
	if (has(request->url, "status"))
		status = (int16_t)atoi(value);
	if (has(request->url, "ttl"))
		set_cacheable(true, (float)atoi(value), 0, 0);
	if (has(request->url, "callback"))
		callback = (kvm_stream_func)strtoul(value, NULL, 0);
	if (has(request->url, "header"))
		http_append(KVM_RESPONSE, value, strlen(value));
	if (!strcmp(kind, "no-stack"))
		__asm__ volatile("xor %%esp, %%esp; mov $0x10012, %%eax; out %%eax, $0"
				 : : "D"(200), "S"("text/plain"), "d"(10), "c"(0) : "rax", "memory");
	begin_streaming_response(status, "text/plain", 10, announced, callback, &plan);
}

int main(void)
{
	set_backend_request(on_request);
	wait_for_requests();
}
