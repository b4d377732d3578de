// Has something fetched, as its URL says: in one call, in parts, and in ways that have to be refused. What is answered is in
// README.md.

#define _GNU_SOURCE
#include "query.h"

#include <errno.h>
#include <sys/mman.h>

static char url[10000], method[64], field[9000], posted[1 << 20];
static long in_main = 1;

// Whether the query has `name=1`.
static bool flag(const char *from, const char *name)
{
	char value[8];

	return parameter(&from, name, value, sizeof value) == 1 && value[0] == '1';
}

static long text(const char *from, const char *name, char *value, size_t size)
{
	return parameter(&from, name, value, size);
}

static const char *error(long result)
{
	return result < 0 ? strerrorname_np((int)-result) : "OK";
}

// What is posted: `post=TEXT`, or `zeros=N`; -1 if there is nothing.
static long post_of(const char *query)
{
	char number[16];

	if (text(query, "zeros", number, sizeof number) > 0)
		return atol(number);
	return text(query, "post", posted, sizeof posted);
}

// /whole?url=URL[&post=TEXT][&zeros=N][&header=LINE][&follow=1][&dummy=1][&unverified=1][&own=1][&room=N][&headers=N][&type=TEXT[&ctlen=N]]
static void whole(const char *query)
{
	static char room[1 << 20], headers[1 << 16];
	struct curl_op op = {0};
	struct curl_fields fields = {0};
	struct curl_options options = {0};
	const char *from = query;
	char number[16];
	const long len = text(query, "url", url, sizeof url);
	const long post = post_of(query);
	long result;

	if (post >= 0) {
		op.post_buffer = posted;
		op.post_buflen = (uint32_t)post;
	}
	// So many bytes of it count.
	text(query, "type", op.ctype, sizeof op.ctype);
	if (text(query, "ctlen", number, sizeof number) > 0)
		op.ctlen = (uint32_t)atol(number);
	for (char *line = field; parameter(&from, "header", line, 1000) >= 0; line += 1000)
		curl_add_field(&fields, line);
	options.follow_location = flag(query, "follow");
	options.dummy_fetch = flag(query, "dummy");
	options.dont_verify_host = flag(query, "unverified");
	if (text(query, "room", number, sizeof number) > 0) {
		op.content = room;
		op.content_length = (uint32_t)atol(number);
	}
	if (text(query, "headers", number, sizeof number) > 0) {
		op.headers = headers;
		op.headers_length = (uint32_t)atol(number);
	}
	result = flag(query, "own") ? self_request(url, (size_t)len, &op, &fields, &options)
				    : fetch(url, (size_t)len, &op, &fields, &options);
	say("%s\n", error(result));
	if (result)
		done(200);
	say("status %u\ntype %u %s\nlength %u crc32 %08x\n", op.status, op.ctlen, op.ctype, op.content_length,
	    crc32_of(op.content, op.content_length));
	say("terminated %s\n", op.content && ((char *)op.content)[op.content_length] == '\0' ? "yes" : "no");
	say("headers %u\n%.*s\n", op.headers_length, (int)op.headers_length, op.headers);
	if (flag(query, "show"))
		say("%.*s", (int)op.content_length, (const char *)op.content);
	done(200);
}

static void begin(struct kvm_fetch *what, const char *query, const char *name)
{
	static char urls[2][10000];
	static int count;
	char *to = urls[count++];
	const long len = text(query, name, to, sizeof urls[0]);

	what->url = to;
	what->url_len = len < 0 ? 0 : (uint32_t)len;
}

// One after the other read to its end: the body's checksum.
static void rest(long number)
{
	static uint8_t body[4 << 20];
	struct kvm_fetch_head head;
	char headers[10000];
	size_t len = 0;
	long n = fetch_head(number, &head, headers, sizeof headers);

	if (n) {
		say("head %s\n", error(n));
		return;
	}
	say("status %u headers %u length %ld\n", head.status, head.headers_len, (long)head.content_len);
	while ((n = fetch_read(number, body + len, sizeof body - len)) > 0)
		len += (size_t)n;
	say("read %s %zu crc32 %08x\n", error(n), len, crc32_of(body, len));
}

// /parts?url=URL[&second=URL][&method=M][&post=TEXT][&zeros=N][&leave=1]: both begun before either is read.
static void parts(const char *query)
{
	struct kvm_fetch what = {0};
	const long post = post_of(query);
	long one, other = 0;

	begin(&what, query, "url");
	if (post >= 0) {
		what.body = posted;
		what.body_len = (size_t)post;
	}
	if (text(query, "method", method, sizeof method) > 0) {
		what.method = method;
		what.method_len = (uint32_t)strlen(method);
	}
	one = fetch_begin(&what);
	say("begin %s\n", error(one));
	if (strstr(query, "second=")) {
		begin(&what, query, "second");
		other = fetch_begin(&what);
		say("begin %s\n", error(other));
	}
	if (flag(query, "leave"))
		done(200);
	if (one > 0)
		rest(one);
	if (other > 0)
		rest(other);
	say("close %s, ", error(fetch_close(one)));
	say("again %s\n", error(fetch_close(one)));
	done(200);
}

static struct kvm_stream_part next(void *arg, size_t max, size_t written, size_t total)
{
	static char piece[64 << 10];
	const long n = fetch_read((long)arg, piece, max < sizeof piece ? max : sizeof piece);
	struct kvm_stream_part part = {piece, n > 0 ? (size_t)n : 0};

	(void)written, (void)total;
	return part;
}

// /stream?url=URL: the response's body is passed on as it comes.
static void stream(const char *query)
{
	struct kvm_fetch what = {0};
	long number;

	begin(&what, query, "url");
	number = fetch_begin(&what);
	if (number < 0)
		done(502);
	begin_streaming_response(200, "text/plain", 10, 0, next, (void *)number);
}

// /many?url=URL: begun until it is refused.
static void many(const char *query)
{
	struct kvm_fetch what = {0};
	long number, count = 0;

	begin(&what, query, "url");
	while ((number = fetch_begin(&what)) > 0)
		count++;
	say("%ld, then %s\n", count, error(number));
	say("close %s\n", error(fetch_close(3)));
	say("begin %ld\n", fetch_begin(&what));
	done(200);
}

// /bad/WHICH?url=URL: a structure that is wrong.
static void bad(const char *which, const char *query)
{
	static const char read_only[4096] __attribute__((aligned(4096))) = "x";
	struct curl_op op = {0}, *at = &op;
	struct curl_fields fields = {0};
	struct curl_options options = {0};
	struct kvm_fetch what = {0};
	struct kvm_fetch_head head;
	const long len = text(query, "url", url, sizeof url);
	long result;

	if (path_is(which, "url"))
		result = fetch((char *)8, 100, &op, NULL, NULL);
	else if (path_is(which, "url-len"))
		result = fetch(url, 1ul << 63, &op, NULL, NULL);
	else if (path_is(which, "url-wraps"))
		result = fetch((char *)-8, 4000, &op, NULL, NULL);
	else if (path_is(which, "op"))
		result = fetch(url, (size_t)len, (struct curl_op *)8, NULL, NULL);
	else if (path_is(which, "op-read-only"))
		result = fetch(url, (size_t)len, (struct curl_op *)(uintptr_t)read_only, NULL, NULL);
	else if (path_is(which, "op-end"))
		result = fetch(url, (size_t)len, (struct curl_op *)(0x7ffd00000000 - 100), NULL, NULL);
	else if (path_is(which, "fields"))
		result = fetch(url, (size_t)len, &op, (struct curl_fields *)8, NULL);
	else if (path_is(which, "options"))
		result = fetch(url, (size_t)len, &op, NULL, (struct curl_options *)8);
	else if (path_is(which, "interface")) {
		options.interface = "eth0";
		result = fetch(url, (size_t)len, &op, NULL, &options);
	} else if (path_is(which, "field")) {
		fields.ptr[11] = (char *)8;
		fields.len[11] = 65535;
		result = fetch(url, (size_t)len, &op, &fields, NULL);
	} else if (path_is(which, "content")) {
		op.content = (void *)(uintptr_t)read_only;
		op.content_length = 4096;
		result = fetch(url, (size_t)len, &op, NULL, NULL);
	} else if (path_is(which, "content-len")) {
		op.content = posted;
		op.content_length = UINT32_MAX;
		result = fetch(url, (size_t)len, &op, NULL, NULL);
	} else if (path_is(which, "headers")) {
		op.headers = (char *)-1;
		op.headers_length = 2;
		result = fetch(url, (size_t)len, &op, NULL, NULL);
	} else if (path_is(which, "post")) {
		op.post_buffer = (void *)8;
		op.post_buflen = UINT32_MAX;
		result = fetch(url, (size_t)len, &op, NULL, NULL);
	} else if (path_is(which, "post-null-page")) {
		op.post_buffer = (void *)8;
		op.post_buflen = 1;
		result = fetch(url, (size_t)len, &op, NULL, NULL);
	} else if (path_is(which, "overlapping")) {
		// The body comes over the structure, which is written last.
		op.content = at;
		op.content_length = sizeof op;
		op.headers = (char *)at;
		op.headers_length = sizeof op;
		result = fetch(url, (size_t)len, at, (struct curl_fields *)at, NULL);
	} else if (path_is(which, "begin")) {
		result = fetch_begin((struct kvm_fetch *)8);
	} else if (path_is(which, "begin-method")) {
		what.url = url;
		what.url_len = (uint32_t)len;
		what.method = (char *)8;
		what.method_len = UINT32_MAX;
		result = fetch_begin(&what);
	} else if (path_is(which, "begin-headers")) {
		what.url = url;
		what.url_len = (uint32_t)len;
		what.headers = (void *)-16;
		what.num_headers = 64;
		result = fetch_begin(&what);
	} else if (path_is(which, "begin-many-headers")) {
		what.url = url;
		what.url_len = (uint32_t)len;
		what.num_headers = 65;
		result = fetch_begin(&what);
	} else if (path_is(which, "begin-body")) {
		what.url = url;
		what.url_len = (uint32_t)len;
		what.body = url;
		what.body_len = 1ul << 63;
		result = fetch_begin(&what);
	} else if (path_is(which, "head")) {
		result = fetch_head(1, &head, NULL, 0);
	} else if (path_is(which, "head-out")) {
		result = fetch_head(1, (struct kvm_fetch_head *)8, NULL, 0);
	} else if (path_is(which, "read")) {
		result = fetch_read(-1, url, 1);
	} else if (path_is(which, "read-out")) {
		result = fetch_read(0, (void *)8, 1ul << 63);
	} else if (path_is(which, "close")) {
		result = fetch_close(0);
	} else if (path_is(which, "last")) {
		result = kvm_hypercall(0x20014, 0, 0, 0, 0, 0, 0);
	} else {
		say("no such way\n");
		done(500);
	}
	say("%s\n", error(result));
	done(200);
}

static void handler(const char *query, const char *arg)
{
	const char *which = after(query, "/bad/");

	(void)arg;
	if (which)
		bad(which, query);
	if (path_is(query, "/whole"))
		whole(query);
	if (path_is(query, "/parts"))
		parts(query);
	if (path_is(query, "/stream"))
		stream(query);
	if (path_is(query, "/many"))
		many(query);
	if (path_is(query, "/main"))
		say("%s\n", error(in_main));
	done(200);
}

// With an argument main() fetches that as well; with a second one it begins to in parts.
int main(int argc, char **argv)
{
	struct curl_op op = {0};
	struct kvm_fetch what = {0};

	if (argc > 2) {
		what.url = argv[1];
		what.url_len = (uint32_t)strlen(argv[1]);
		in_main = fetch_begin(&what);
	} else if (argc > 1) {
		in_main = fetch(argv[1], strlen(argv[1]), &op, NULL, NULL);
	}
	set_backend_get(handler);
	wait_for_requests();
}
