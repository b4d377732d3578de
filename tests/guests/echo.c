// Says what it was asked, and answers in the ways a test asks for. Registered style, one handler for all
// methods. The README lists the URLs.

#include "query.h"

#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int main_argc;
static char **main_argv;
static int counter;
static uint32_t number_in_main, own_gs[2] = {4711, 4712};

// The byte at place i of /size/N and /frozen/N.
static uint8_t pattern(size_t i)
{
	return (uint8_t)(i * 31 + (i >> 8));
}

static uint8_t frozen[1 << 20];

static const char *terminated(const char *text, size_t len)
{
	return !text ? "NULL" : strlen(text) == len ? "yes" : "no";
}

static void show(const struct kvm_request *request)
{
	say("method: %s\n", request->method);
	say("url: %s\n", request->url);
	say("arg: %s\n", request->arg);
	say("content-type: %s\n", request->content_type ? request->content_type : "(NULL)");
	say("content-length: %zu\n", request->content_len);
	say("terminated: %s %s %s %s\n", terminated(request->method, request->method_len),
	    terminated(request->url, request->url_len), terminated(request->arg, request->arg_len),
	    terminated(request->content_type, request->content_type_len));
	say("warm-up: %d\n", request->info_flags & KVM_REQUEST_WARMUP);
	say("headers: %u\n", request->num_headers);
	for (int i = 0; i < request->num_headers; i++) {
		const struct kvm_header *header = &request->headers[i];

		if (strlen(header->field) != header->len || header->field[header->colon] != ':')
			say("(wrong length or colon) ");
		say("%s\n", header->field);
	}
	done(200);
}

// A body of n bytes, written now.
static void size(size_t n)
{
	uint8_t *body = malloc(n + 1);

	if (!body)
		backend_response_str(500, "text/plain", "no memory\n");
	for (size_t i = 0; i < n; i++)
		body[i] = pattern(i);
	backend_response(200, "application/octet-stream", 24, body, n);
}

// The headers of the query string, each by ?name=N&value=V, sent with the response itself.
static void header(const char *url)
{
	static char fields[80][4096];
	static struct kvm_response_header headers[80];
	struct kvm_response_extra extra = {.headers = headers};
	static char name[2048], value[2048];
	long name_len, value_len;

	while (extra.num_headers < 80 && (name_len = parameter(&url, "name", name, sizeof name)) >= 0) {
		char *field = fields[extra.num_headers];

		value_len = parameter(&url, "value", value, sizeof value);
		if (value_len < 0)
			value_len = 0;
		memcpy(field, name, name_len);
		memcpy(field + name_len, ": ", 2);
		memcpy(field + name_len + 2, value, value_len);
		headers[extra.num_headers++] = (struct kvm_response_header){field, name_len + 2 + value_len};
	}
	say("%u headers\n", extra.num_headers);
	backend_response_extra(200, "text/plain", 10, answer, answer_len, &extra);
}

// /http-append?where=1&field=Key:+value, /http-set the same; says the results, one a line.
static void http(const char *url, long (*call)(int, const char *, size_t))
{
	static char field[4096], where[8];
	long len;

	while (parameter(&url, "where", where, sizeof where) >= 0 &&
	       (len = parameter(&url, "field", field, sizeof field)) >= 0)
		say("%ld\n", call(atoi(where), field, len));
	done(200);
}

static void cached(float ttl, bool by_call)
{
	const struct kvm_response_extra extra = {.cached = true, .ttl = ttl};

	counter++;
	if (by_call) {
		say("set_cacheable: %ld\n", set_cacheable(true, ttl));
		done(200);
	}
	say("for %g s\n", (double)ttl);
	backend_response_extra(200, "text/plain", 10, answer, answer_len, &extra);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void on_request(const struct kvm_request *request)
{
	const char *url = request->url, *rest;
	char text[256];

	if (path_is(url, "/echo"))
		backend_response(200, request->content_type_len ? request->content_type : "application/octet-stream",
				 request->content_type_len ? request->content_type_len : 24, request->content,
				 request->content_len);
	if (path_is(url, "/sum")) {
		say("len %zu crc32 %08x fnv1a %016lx\n", request->content_len,
		    crc32_of(request->content, request->content_len),
		    fnv1a_of(request->content, request->content_len));
		done(200);
	}
	if ((rest = after(url, "/size/")))
		size(strtoul(rest, NULL, 10));
	if ((rest = after(url, "/frozen/"))) {
		const size_t n = strtoul(rest, NULL, 10);
		backend_response(200, "application/octet-stream", 24, frozen, n < sizeof frozen ? n : sizeof frozen);
	}
	if ((rest = after(url, "/status/"))) {
		say("status %d\n", atoi(rest));
		done((int16_t)atoi(rest));
	}
	if (path_is(url, "/header"))
		header(url);
	if (path_is(url, "/http-append"))
		http(url, http_append);
	if (path_is(url, "/http-set"))
		http(url, http_set);
	if ((rest = after(url, "/find/"))) {
		say("%ld ", http_find(KVM_REQUEST, rest, strlen(rest), NULL, 0));
		const size_t n = http_find_value(rest, text, sizeof text);
		say("%zu %s\n", n, text);
		done(200);
	}
	if ((rest = after(url, "/find-into/"))) { // the field X-Here, into so many bytes
		say("%ld\n", http_find(KVM_REQUEST, "X-Here", 6, text, strtoul(rest, NULL, 10)));
		done(200);
	}
	if ((rest = after(url, "/method-into/"))) { // 0: into NULL
		const size_t room = strtoul(rest, NULL, 10);
		say("%ld\n", http_method(room ? text : NULL, room));
		done(200);
	}
	if ((rest = after(url, "/call/"))) { // a hypercall by its number, all arguments 0
		say("%ld\n", kvm_hypercall((unsigned)strtoul(rest, NULL, 16), 0, 0, 0, 0, 0, 0));
		done(200);
	}
	if (path_is(url, "/header-and-extra")) { // extra replaces what was set before, by name
		const struct kvm_response_header fields[] = {{"x-a: 3", 6}, {"X-A: 4", 6}};
		const struct kvm_response_extra extra = {.headers = fields, .num_headers = 2};
		http_append_str(KVM_RESPONSE, "X-A: 1");
		http_append_str(KVM_RESPONSE, "X-B: 2");
		backend_response_extra(200, "text/plain", 10, "", 0, &extra);
	}
	if (path_is(url, "/method")) {
		const long n = http_method(text, sizeof text);
		say("%ld %.*s\n", n, (int)(n < 0 ? 0 : n), text);
		done(200);
	}
	if ((rest = after(url, "/cache/")))
		cached(strtof(rest, NULL), false);
	if ((rest = after(url, "/set-cacheable/")))
		cached(strtof(rest, NULL), true);
	if (path_is(url, "/empty"))
		backend_response(200, "text/plain", 10, "", 0);
	if (path_is(url, "/empty-null"))
		backend_response(200, NULL, 0, NULL, 0);
	if (path_is(url, "/bad-gzip")) { // begins as gzip does
		http_append_str(KVM_RESPONSE, "Content-Encoding: gzip");
		backend_response(200, "text/plain", 10, "\x1f\x8b\x08\0\0\0\0\0\0\xff and then not", 25);
	}
	if (path_is(url, "/type")) {
		const char *from = url;
		const long n = parameter(&from, "type", text, sizeof text);
		backend_response(200, text, n < 0 ? 0 : n, "typed\n", 6);
	}
	if ((rest = after(url, "/sleep-loop/"))) {
		const double end = now() + atoi(rest) / 1e3;
		while (now() < end)
			;
		say("looped %d ms\n", atoi(rest));
		done(200);
	}
	if ((rest = after(url, "/spin/"))) { // the same without a system call, in steps of 1000 turns
		for (volatile long i = 0, n = atol(rest) * 1000; i < n; i++)
			;
		say("spun %ld\n", atol(rest));
		done(200);
	}
	if (path_is(url, "/stdout")) {
		printf("echo: to stdout\n");
		fflush(stdout);
		fprintf(stderr, "echo: to stderr\n");
		say("printed\n");
		done(200);
	}
	if (path_is(url, "/complain")) {
		const char *from = url;
		const long n = parameter(&from, "text", text, sizeof text);
		fprintf(stderr, "echo: about to fail\n%.*s", (int)(n < 0 ? 0 : n), text);
		__builtin_trap();
	}
	if (path_is(url, "/log")) {
		const char *from = url;
		const long n = parameter(&from, "text", text, sizeof text);
		say("log: %ld\n", kvm_log(text, n < 0 ? 0 : n));
		done(200);
	}
	if (path_is(url, "/counter")) {
		say("%d\n", ++counter);
		done(200);
	}
	if (path_is(url, "/prng")) {
		uint64_t bits[2] = {0};
		const long n = getrandom(bits, sizeof bits, 0);
		say("%016lx%016lx %ld %016lx%016lx\n", request->prng[0], request->prng[1], n, bits[0], bits[1]);
		done(200);
	}
	if (path_is(url, "/args")) {
		for (int i = 0; i < main_argc; i++)
			say("%s\n", main_argv[i]);
		done(200);
	}
	if (path_is(url, "/env")) {
		for (char **e = environ; *e; e++)
			say("%s\n", *e);
		done(200);
	}
	if (path_is(url, "/meminfo")) {
		struct kvm_meminfo info = {0, 0, 0, 0};
		const long result = get_meminfo(&info);
		say("%ld max_memory %lu max_reqmem %lu upper %lu current %lu\n", result, info.max_memory,
		    info.max_reqmem, info.reqmem_upper, info.reqmem_current);
		done(200);
	}
	if (path_is(url, "/flags")) {
		say("storage %d debug %d\n", is_storage(), is_debug());
		breakpoint();
		done(200);
	}
	if (path_is(url, "/vcpu")) { // leaves other numbers behind
		say("%u %u in main %u\n", vcpuid(), vcpureqid(), number_in_main);
		__asm__ volatile("movq $-1, %%gs:0" ::: "memory");
		done(200);
	}
	if (path_is(url, "/late")) { // what only main() may do
		say("register %ld ephemeral %ld\n", set_backend_request(on_request), make_ephemeral(false));
		done(200);
	}
	show(request);
}

int main(int argc, char **argv)
{
	main_argc = argc;
	main_argv = argv;
	for (size_t i = 0; i < sizeof frozen; i++)
		frozen[i] = pattern(i);
	crc32_of(NULL, 0); // makes its table
	number_in_main = vcpuid();
	if (argc == 2 && strcmp(argv[1], "--own-gs") == 0)
		syscall(SYS_arch_prctl, 0x1001 /* ARCH_SET_GS */, own_gs);
	if (argc == 3 && strcmp(argv[1], "--needs") == 0 && access(argv[2], R_OK) != 0)
		return 1;
	if (argc == 3 && strcmp(argv[1], "--sleep") == 0)
		sleep((unsigned)atoi(argv[2]));
	if (set_backend_request(on_request) < 0)
		return 1;
	wait_for_requests();
}
