/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * kvm_api.h: write a program that answers HTTP requests from inside a virtual machine.
 *
 *     #include <kvm_api.h>
 *
 *     KVM_EXPORT void my_backend(const char *url)
 *     {
 *         (void)url;
 *         backend_response_str(200, "text/plain", "Hello, World!\n");
 *     }
 *
 *     int main(void) { return 0; }
 *
 *     gcc -O2 -static -I guest-sdk/c hello.c -o hello
 *
 * main() runs once and sets everything up. When it returns 0 (or calls wait_for_requests()) the machine is
 * frozen, and every request runs in a copy-on-write fork of that state. What a request changes is gone when
 * it has answered, so nothing of one request can be seen by another.
 *
 * Two styles:
 *
 *   Symbol style      export `void my_backend(const char *url)`, and for POST, if wanted,
 *                     `void my_post_backend(const char *url, const uint8_t *data, size_t len)`.
 *                     They are found in the ELF's symbol table: do not strip the program.
 *   Registered style  main() calls set_backend_get() and the like, then wait_for_requests().
 *                     Or it loops on wait_for_requests_paused(&req) and needs no handler at all.
 *
 * A handler ends with one of the response functions, none of which return. A handler that returns, exits or
 * crashes fails its request: the client gets the answer of the on_error handler, or a plain 500.
 *
 * Text from the request (url, arg, header fields, ...) is NUL-terminated. Text and data given to the host are
 * copied before the call returns. Functions that return a `long` give a negative errno (-ENOSYS is -38) when
 * the host does not know the call or refuses it.
 *
 * With -DKVM_API_MOCK the program is an ordinary executable that takes a request from its arguments and prints the
 * response, for tests (kvm_api_mock.h).
 *
 * C99 or later, C++11 or later, gcc or clang, x86-64, any optimisation level, fixed-address and PIE. Nothing has to be
 * linked with it, and beside it is only kvm_compat.h: names that sources for the C++ VMOD use.
 */
#ifndef KVM_API_H
#define KVM_API_H

#if !defined(__x86_64__) || defined(__ILP32__)
#error "kvm_api.h: programs for the virtual machine are 64-bit x86 (x86-64, not x32)"
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* KVM_EXPORT: put it in front of my_backend and my_post_backend. It gives C linkage in C++, and keeps the
 * function and its name where compilers and linkers like to drop them because nobody in the program calls it
 * (-fvisibility=hidden, -flto, -Wl,--gc-sections). */
#if defined(__has_attribute)
#define KVM_HAS_ATTRIBUTE(a) __has_attribute(a)
#else
#define KVM_HAS_ATTRIBUTE(a) 0
#endif
#if KVM_HAS_ATTRIBUTE(retain)
#define KVM_RETAIN __attribute__((retain))
#else
#define KVM_RETAIN
#endif
#if KVM_HAS_ATTRIBUTE(externally_visible)
#define KVM_EXTERNAL __attribute__((externally_visible))
#else
#define KVM_EXTERNAL
#endif
#ifdef __cplusplus
#define KVM_EXTERN_C extern "C"
#else
#define KVM_EXTERN_C
#endif
#define KVM_EXPORT KVM_EXTERN_C __attribute__((used, visibility("default"))) KVM_RETAIN KVM_EXTERNAL

/* Checked at compile time, also in C99, which has no _Static_assert. */
#ifdef __cplusplus
#define KVM_ASSERT(name, cond) static_assert(cond, #name)
#else
#define KVM_ASSERT(name, cond) \
	typedef char kvm_assert_##name[(cond) ? 1 : -1] __attribute__((unused))
#endif

/* These structures have the names that sources for the C++ VMOD know them by, and ours beside them. */
#define kvm_response_header ResponseHeader
#define kvm_response_extra BackendResponseExtra
#define kvm_stream_part streaming_content
#define kvm_shared_memory shared_memory_info
#define kvm_meminfo meminfo

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ hypercalls */

/* The numbers. Use the functions below; these are for programs in other languages and for tests. */
enum kvm_hypercall_number {
	KVM_HC_REGISTER_FUNC = 0x10000,
	KVM_HC_WAIT_FOR_REQUESTS = 0x10001,
	KVM_HC_WAIT_FOR_REQUESTS_PAUSED = 0x10002,
	KVM_HC_SET_CACHEABLE = 0x10005,
	KVM_HC_BACKEND_RESPONSE = 0x10010,
	KVM_HC_STORAGE_RETURN = 0x10011,
	KVM_HC_BEGIN_STREAMING_RESPONSE = 0x10012,
	KVM_HC_STORAGE_NORETURN = 0x10013,
	KVM_HC_HTTP_APPEND = 0x10020,
	KVM_HC_HTTP_SET = 0x10021,
	KVM_HC_HTTP_FIND = 0x10022,
	KVM_HC_HTTP_METHOD = 0x10023,
	KVM_HC_REGEX_COMPILE = 0x10030,
	KVM_HC_REGEX_FREE = 0x10031,
	KVM_HC_REGEX_MATCH = 0x10032,
	KVM_HC_REGEX_SUBST = 0x10033,
	KVM_HC_REGEX_COPYTO = 0x10035,
	KVM_HC_SHARED_MEMORY_AREA = 0x10700,
	KVM_HC_MAKE_EPHEMERAL = 0x10703,
	KVM_HC_IS_STORAGE = 0x10706,
	KVM_HC_STORAGE_ALLOW = 0x10707,
	KVM_HC_STORAGE_CALLV = 0x10708,
	KVM_HC_STORAGE_TASK = 0x10709,
	KVM_HC_STORAGE_TASK_STOP = 0x1070A,
	KVM_HC_GET_MEMINFO = 0x10A00,
	KVM_HC_FETCH = 0x20000,
	KVM_HC_SELF_REQUEST = 0x20001,
	KVM_HC_FETCH_BEGIN = 0x20010,
	KVM_HC_FETCH_HEAD = 0x20011,
	KVM_HC_FETCH_READ = 0x20012,
	KVM_HC_FETCH_CLOSE = 0x20013,
	KVM_HC_LOG = 0x7F000,
	KVM_HC_IS_DEBUG = 0x7FDEB,
	KVM_HC_BREAKPOINT = 0x7F7F7
};

#ifdef KVM_API_MOCK
/* Outside of a virtual machine: see kvm_api_mock.h, which plays the host. */
long kvm_mock_call(unsigned number, uintptr_t a0, uintptr_t a1, uintptr_t a2, uintptr_t a3, uintptr_t a4,
		   uintptr_t a5);

static inline long kvm_hypercall(unsigned number, uintptr_t a0, uintptr_t a1, uintptr_t a2, uintptr_t a3,
				 uintptr_t a4, uintptr_t a5)
{
	return kvm_mock_call(number, a0, a1, a2, a3, a4, a5);
}
#else
/* One call to the host: number in eax, arguments in rdi, rsi, rdx, rcx, r8, r9, result in rax, and `out` to
 * port 0 is the door. The host preserves every other register and the flags; no stack is used. */
static inline __attribute__((always_inline)) long
kvm_hypercall(unsigned number, uintptr_t a0, uintptr_t a1, uintptr_t a2, uintptr_t a3, uintptr_t a4,
	      uintptr_t a5)
{
	long result = (long)number;
	register uintptr_t r8 __asm__("r8") = a4;
	register uintptr_t r9 __asm__("r9") = a5;

	__asm__ volatile("outl %%eax, $0"
			 : "+a"(result)
			 : "D"(a0), "S"(a1), "d"(a2), "c"(a3), "r"(r8), "r"(r9)
			 : "memory");
	return result;
}
#endif

/* ------------------------------------------------------------------ requests */

/* One header field of the request, for example "Host: example.com". */
struct kvm_header {
	const char *field; /* the whole line, NUL-terminated */
	uint32_t colon;    /* index of the colon: the name's length */
	uint32_t len;      /* length of the whole line */
};
KVM_ASSERT(header_size, sizeof(struct kvm_header) == 16);
KVM_ASSERT(header_colon, offsetof(struct kvm_header, colon) == 8);
KVM_ASSERT(header_len, offsetof(struct kvm_header, len) == 12);

/* One request, as the registered style gets it. The texts are never NULL; an absent one is "". */
struct kvm_request {
	const char *method;
	const char *url;
	const char *arg;          /* text that the VCL passes along; may hold anything */
	const char *content_type; /* of the request's body */
	uint16_t method_len;
	uint16_t url_len;
	uint16_t arg_len;
	uint16_t content_type_len;
	const uint8_t *content; /* the request's body, content_len bytes */
	size_t content_len;
	const struct kvm_header *headers;
	uint16_t num_headers;
	uint16_t info_flags; /* KVM_REQUEST_WARMUP */
	uint32_t reserved0;
	uint64_t prng[2]; /* fresh random bits for every request */
	uint64_t reserved1[2];
};
KVM_ASSERT(request_size, sizeof(struct kvm_request) == 104);
KVM_ASSERT(request_method, offsetof(struct kvm_request, method) == 0);
KVM_ASSERT(request_url, offsetof(struct kvm_request, url) == 8);
KVM_ASSERT(request_arg, offsetof(struct kvm_request, arg) == 16);
KVM_ASSERT(request_content_type, offsetof(struct kvm_request, content_type) == 24);
KVM_ASSERT(request_method_len, offsetof(struct kvm_request, method_len) == 32);
KVM_ASSERT(request_url_len, offsetof(struct kvm_request, url_len) == 34);
KVM_ASSERT(request_arg_len, offsetof(struct kvm_request, arg_len) == 36);
KVM_ASSERT(request_content_type_len, offsetof(struct kvm_request, content_type_len) == 38);
KVM_ASSERT(request_content, offsetof(struct kvm_request, content) == 40);
KVM_ASSERT(request_content_len, offsetof(struct kvm_request, content_len) == 48);
KVM_ASSERT(request_headers, offsetof(struct kvm_request, headers) == 56);
KVM_ASSERT(request_num_headers, offsetof(struct kvm_request, num_headers) == 64);
KVM_ASSERT(request_info_flags, offsetof(struct kvm_request, info_flags) == 66);
KVM_ASSERT(request_prng, offsetof(struct kvm_request, prng) == 72);

/* In info_flags: not a client's request, the host is warming the program up before it freezes it. */
#define KVM_REQUEST_WARMUP 1

/* ------------------------------------------------------------------ handlers and the end of main() */

typedef void (*kvm_get_func)(const char *url, const char *arg);
typedef void (*kvm_post_func)(const char *url, const char *arg, const char *content_type,
			      const uint8_t *data, size_t len);
typedef void (*kvm_request_func)(const struct kvm_request *request);
typedef long (*kvm_stream_post_func)(const char *url, const char *arg, const char *content_type,
				     const uint8_t *segment, size_t len, size_t offset);
typedef void (*kvm_error_func)(const char *url, const char *arg, const char *exception);
typedef void (*kvm_live_update_func)(void);
typedef void (*kvm_live_restore_func)(size_t len);
typedef void (*kvm_storage_save_func)(void);

enum kvm_handler_slot {
	KVM_SLOT_GET = 1,
	KVM_SLOT_POST = 2,
	KVM_SLOT_REQUEST = 3,
	KVM_SLOT_STREAM_POST = 4,
	KVM_SLOT_ON_ERROR = 5,
	KVM_SLOT_ON_LIVE_UPDATE = 6,
	KVM_SLOT_ON_LIVE_RESTORE = 7,
	KVM_SLOT_SOCKET_PAUSE = 12,
	KVM_SLOT_ON_STORAGE_SAVE = 31 /* not in the first interface */
};

/* Registers a handler by slot, given as an address: main() only. The typed functions below are safer. */
static inline long register_func(int slot, uintptr_t handler)
{
	return kvm_hypercall(KVM_HC_REGISTER_FUNC, (uintptr_t)slot, handler, 0, 0, 0, 0);
}

/* Called for every request without a body, and for those with one where there is no handler for them. */
static inline long set_backend_get(kvm_get_func handler)
{
	return register_func(KVM_SLOT_GET, (uintptr_t)handler);
}

/* Called with the whole body for whatever has one; and for POST, PUT and PATCH without one where there is no handler for
 * GET. */
static inline long set_backend_post(kvm_post_func handler)
{
	return register_func(KVM_SLOT_POST, (uintptr_t)handler);
}

/* Called for every request of whatever method; it wins over the GET and POST handlers. */
static inline long set_backend_request(kvm_request_func handler)
{
	return register_func(KVM_SLOT_REQUEST, (uintptr_t)handler);
}

/* Called for each segment of a request's body as it comes in, at most 64 KiB, and returns `len` to go on; then once more with a
 * `len` of 0, and ends with a response. One before that is the answer at once. It wins over the others for what has a body. */
static inline long set_backend_stream_post(kvm_stream_post_func handler)
{
	return register_func(KVM_SLOT_STREAM_POST, (uintptr_t)handler);
}

/* Called when a request failed, in a fresh fork, with a text that says why. It answers in the place of the
 * failed handler and has little time for it. */
static inline long set_on_error(kvm_error_func handler)
{
	return register_func(KVM_SLOT_ON_ERROR, (uintptr_t)handler);
}

/* Live update, the old program's side: called before it is replaced; hands its state over with
 * storage_return(). */
static inline long set_on_live_update(kvm_live_update_func handler)
{
	return register_func(KVM_SLOT_ON_LIVE_UPDATE, (uintptr_t)handler);
}

/* Live update, the new program's side: called with the length of the state that the old one left. */
static inline long set_on_live_restore(kvm_live_restore_func handler)
{
	return register_func(KVM_SLOT_ON_LIVE_RESTORE, (uintptr_t)handler);
}

/* Called in the storage before its program is updated or ends with its VCL or with Varnish, to write what has to outlive that to the
 * file that KVM_STATE names. */
static inline long set_on_storage_save(kvm_storage_save_func handler)
{
	return register_func(KVM_SLOT_ON_STORAGE_SAVE, (uintptr_t)handler);
}

/* The end of the set-up: freezes the program here. Needed in the registered style; in the symbol style the
 * return of main() does the same. */
static inline __attribute__((noreturn)) void wait_for_requests(void)
{
	kvm_hypercall(KVM_HC_WAIT_FOR_REQUESTS, 0, 0, 0, 0, 0, 0);
	__builtin_trap();
}

/* Freezes the program here too, but each request comes back from this call with *request filled in, and all
 * local variables as they were:
 *
 *     struct kvm_request request;
 *     for (;;) {
 *         wait_for_requests_paused(&request);
 *         backend_response(200, "text/plain", 10, request.url, request.url_len);
 *     }
 *
 * Since a response does not return, the loop never takes its second turn; it is there for readers. */
static inline long wait_for_requests_paused(struct kvm_request *request)
{
#ifdef KVM_API_MOCK
	return kvm_hypercall(KVM_HC_WAIT_FOR_REQUESTS_PAUSED, (uintptr_t)request, 0, 0, 0, 0, 0);
#else
	long result = KVM_HC_WAIT_FOR_REQUESTS_PAUSED;

	/* Vector registers are scratch here, as over any function call: the host may resume with clean ones. */
	__asm__ volatile("outl %%eax, $0"
			 : "+a"(result)
			 : "D"(request)
			 : "memory"
#ifdef __SSE__
			   ,
			   "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
			   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#endif
#ifdef __AVX512F__
			   ,
			   "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24",
			   "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3",
			   "k4", "k5", "k6", "k7"
#endif
	);
	return result;
#endif
}

/* ------------------------------------------------------------------ responses */

/* Ends the request. status is 200..599; the content type is shorter than 4096 bytes. */
static inline __attribute__((noreturn)) void
backend_response(int16_t status, const char *content_type, size_t content_type_len, const void *content,
		 size_t content_len)
{
	kvm_hypercall(KVM_HC_BACKEND_RESPONSE, (uintptr_t)(intptr_t)status, (uintptr_t)content_type,
		      content_type_len, (uintptr_t)content, content_len, 0);
	__builtin_trap();
}

/* The same, with NUL-terminated texts. */
static inline __attribute__((noreturn)) void
backend_response_str(int16_t status, const char *content_type, const char *content)
{
	backend_response(status, content_type, __builtin_strlen(content_type), content,
			 __builtin_strlen(content));
}

/* One header field of the response: "Key: value" without a line end. */
struct kvm_response_header {
	const char *field;
	size_t field_len;
};
KVM_ASSERT(response_header_size, sizeof(struct kvm_response_header) == 16);

/* Headers and caching of a response. Zero it first: struct kvm_response_extra extra = {0}; */
struct kvm_response_extra {
	const struct kvm_response_header *headers;
	uint16_t num_headers; /* at most 64 */
	bool cached;          /* false: not to be cached, and the times below are ignored */
	float ttl;            /* seconds, all three */
	float grace;
	float keep;
	uint64_t reserved[4];
};
KVM_ASSERT(extra_size, sizeof(struct kvm_response_extra) == 56);
KVM_ASSERT(extra_num_headers, offsetof(struct kvm_response_extra, num_headers) == 8);
KVM_ASSERT(extra_cached, offsetof(struct kvm_response_extra, cached) == 10);
KVM_ASSERT(extra_ttl, offsetof(struct kvm_response_extra, ttl) == 12);
KVM_ASSERT(extra_grace, offsetof(struct kvm_response_extra, grace) == 16);
KVM_ASSERT(extra_keep, offsetof(struct kvm_response_extra, keep) == 20);
KVM_ASSERT(extra_reserved, offsetof(struct kvm_response_extra, reserved) == 24);

/* backend_response() with headers and caching. */
static inline __attribute__((noreturn)) void
backend_response_extra(int16_t status, const char *content_type, size_t content_type_len,
		       const void *content, size_t content_len, const struct kvm_response_extra *extra)
{
	kvm_hypercall(KVM_HC_BACKEND_RESPONSE, (uintptr_t)(intptr_t)status, (uintptr_t)content_type,
		      content_type_len, (uintptr_t)content, content_len, (uintptr_t)extra);
	__builtin_trap();
}

/* A part of a streamed response. */
struct kvm_stream_part {
	const void *data;
	size_t len;
};
KVM_ASSERT(stream_part_size, sizeof(struct kvm_stream_part) == 16);

/* Gives the next part of the body, at most `max` bytes, when `written` of `total` bytes have been taken. NULL or 0 bytes end
 * a body of unknown length (total is 0 then); one of known length that ends early fails. */
typedef struct kvm_stream_part (*kvm_stream_func)(void *arg, size_t max, size_t written, size_t total);

/* Answers the request with a body of content_length bytes, or of a length that is not known yet if that is 0: status, content
 * type and headers go out at once, and the callback makes the body part by part, whenever the client takes more. It runs as
 * if this function called it, so `arg` may point to variables of the handler. All of it is within the request's time. If it
 * fails, the client sees the connection break off, and nothing is cached. */
static inline __attribute__((noreturn)) void
begin_streaming_response(int16_t status, const char *content_type, size_t content_type_len,
			 size_t content_length, kvm_stream_func callback, const void *arg)
{
	kvm_hypercall(KVM_HC_BEGIN_STREAMING_RESPONSE, (uintptr_t)(intptr_t)status, (uintptr_t)content_type,
		      content_type_len, content_length, (uintptr_t)callback, (uintptr_t)arg);
	__builtin_trap();
}

/* Whether and how long the coming response may be cached, in seconds: set_cacheable(cached, ttl, grace, keep). Times
 * that are left out are 0. -1 outside of a request. */
static inline long kvm_set_cacheable(bool cached, float ttl, float grace, float keep)
{
	return kvm_hypercall(KVM_HC_SET_CACHEABLE, cached, (uintptr_t)(long)(ttl * 1000.0f),
			     (uintptr_t)(long)(grace * 1000.0f), (uintptr_t)(long)(keep * 1000.0f), 0, 0);
}
#ifdef __cplusplus
static inline long set_cacheable(bool cached, float ttl = 0, float grace = 0, float keep = 0)
{
	return kvm_set_cacheable(cached, ttl, grace, keep);
}
#else
#define set_cacheable(...) KVM_SET_CACHEABLE(__VA_ARGS__, 0, 0, 0, 0)
#define KVM_SET_CACHEABLE(cached, ttl, grace, keep, ...) kvm_set_cacheable(cached, ttl, grace, keep)
#endif

/* ------------------------------------------------------------------ headers */

/* `where` of the functions below. BEREQ and BERESP are VCL's names for the same two. */
enum kvm_http_where { KVM_REQUEST = 0, KVM_RESPONSE = 1, BEREQ = 4, BERESP = 5 };

/* Adds the field "Key: value", beside others of that name; gives its place among the message's fields, from 1 on. A
 * name or value that is invalid or empty fails the request. */
static inline long http_append(int where, const char *field, size_t len)
{
	return kvm_hypercall(KVM_HC_HTTP_APPEND, (uintptr_t)where, (uintptr_t)field, len, 0, 0, 0);
}

/* The same in the place of others of that name. Without a colon ("Key"): removes them, and gives 0. */
static inline long http_set(int where, const char *field, size_t len)
{
	return kvm_hypercall(KVM_HC_HTTP_SET, (uintptr_t)where, (uintptr_t)field, len, 0, 0, 0);
}

static inline long http_append_str(int where, const char *field)
{
	return http_append(where, field, __builtin_strlen(field));
}

static inline long http_set_str(int where, const char *field)
{
	return http_set(where, field, __builtin_strlen(field));
}

/* Copies the field named `key`, the whole "Key: value", to `out`; gives its length, 0 when it is absent or longer than
 * out_len. With out == NULL it only gives the length. The copy is not NUL-terminated. */
static inline long http_find(int where, const char *key, size_t key_len, char *out, size_t out_len)
{
	return kvm_hypercall(KVM_HC_HTTP_FIND, (uintptr_t)where, (uintptr_t)key, key_len, (uintptr_t)out,
			     out_len, 0);
}

/* The value of the request's field `key`, without its name, as a text in `out`; "" and 0 when it is absent
 * or longer than `out` takes. */
static inline size_t http_find_value(const char *key, char *out, size_t out_len)
{
	const size_t key_len = __builtin_strlen(key);
	long len = http_find(KVM_REQUEST, key, key_len, (char *)0, 0);
	size_t from = key_len + 1, n;

	if (out_len == 0)
		return 0;
	out[0] = '\0';
	if (len <= (long)key_len || (size_t)len >= out_len)
		return 0;
	len = http_find(KVM_REQUEST, key, key_len, out, out_len - 1);
	if (len <= (long)key_len || (size_t)len >= out_len) {
		out[0] = '\0';
		return 0;
	}
	while (from < (size_t)len && (out[from] == ' ' || out[from] == '\t'))
		from++;
	n = (size_t)len - from;
	__builtin_memmove(out, out + from, n);
	out[n] = '\0';
	return n;
}

/* Copies the request's method ("GET") to `out`; gives its length, 0 when it is longer than out_len. With out == NULL it
 * only gives the length. The copy is not NUL-terminated. */
static inline long http_method(char *out, size_t out_len)
{
	return kvm_hypercall(KVM_HC_HTTP_METHOD, (uintptr_t)out, out_len, 0, 0, 0, 0);
}

/* ------------------------------------------------------------------ regular expressions, by the host */

/* Compiles a pattern and gives its number, from 1 on, or a negative value; the log says what is wrong with it. The syntax is
 * the Rust crate regex's: without backreferences and look-around. At most 64 at a time, patterns up to 4 KiB, subjects up to
 * 64 KiB, or less for a large pattern (-E2BIG is -7). Those compiled in main() are there for every request, and a request's own
 * are gone after it. */
static inline long regex_compile(const char *pattern, size_t len)
{
	return kvm_hypercall(KVM_HC_REGEX_COMPILE, (uintptr_t)pattern, len, 0, 0, 0, 0);
}

static inline long regex_free(long regex)
{
	return kvm_hypercall(KVM_HC_REGEX_FREE, (uintptr_t)regex, 0, 0, 0, 0, 0);
}

/* 0 when `subject` does not match, 1 when it does somewhere, negative for an error. */
static inline long regex_match(long regex, const char *subject, size_t len)
{
	return kvm_hypercall(KVM_HC_REGEX_MATCH, (uintptr_t)regex, (uintptr_t)subject, len, 0, 0, 0);
}

/* Flag of the two below: every match, and not only the first one. */
#define KVM_REGEX_ALL 1u

/* What regex_subst() passes to the host. */
struct kvm_regex_subst {
	uint64_t size; /* of this structure */
	const char *subject;
	size_t len;
	const char *with;
	size_t with_len;
	char *out;
	size_t room;
};
KVM_ASSERT(regex_subst_size, sizeof(struct kvm_regex_subst) == 56);

/* Copies `subject` to `out` with `with` in the place of the first match, or with KVM_REGEX_ALL of each, as VCL's regsub() and
 * regsuball() do: \0 in it is all of the match, \1 to \9 are its groups, a backslash before anything else is left out. Where
 * nothing matches it is the subject. Gives the result's length, at most 64 KiB; with out == NULL only that. Negative for an
 * error: -EMSGSIZE (-90) when it is longer than `room`, -E2BIG (-7) when it is longer than 64 KiB. */
static inline long regex_subst(long regex, const char *subject, size_t len, const char *with, size_t with_len, char *out,
			       size_t room, unsigned flags)
{
	struct kvm_regex_subst what;

	what.size = sizeof what;
	what.subject = subject;
	what.len = len;
	what.with = with;
	what.with_len = with_len;
	what.out = out;
	what.room = room;
	return kvm_hypercall(KVM_HC_REGEX_SUBST, (uintptr_t)regex, (uintptr_t)&what, flags, 0, 0, 0);
}

/* What regex_copyto() passes to the host. */
struct kvm_regex_copyto {
	uint64_t size; /* of this structure */
	uint32_t from, to;
	const char *name;
	size_t name_len;
	const char *to_name;
	size_t to_name_len;
	const char *with;
	size_t with_len;
};
KVM_ASSERT(regex_copyto_size, sizeof(struct kvm_regex_copyto) == 64);

/* If the value of the header called `name` in the message `from` (KVM_REQUEST, KVM_RESPONSE) matches: sets the header `to_name` of
 * the message `to` to that value with the substitution made, as by regex_subst(). Gives its place, as http_set() does; 0, and
 * nothing changes, when there is no such header, it does not match, or nothing would be left of it. In a request only. */
static inline long regex_copyto(long regex, int from, const char *name, int to, const char *to_name, const char *with,
				unsigned flags)
{
	struct kvm_regex_copyto what;

	what.size = sizeof what;
	what.from = (uint32_t)from;
	what.to = (uint32_t)to;
	what.name = name;
	what.name_len = __builtin_strlen(name);
	what.to_name = to_name;
	what.to_name_len = __builtin_strlen(to_name);
	what.with = with;
	what.with_len = __builtin_strlen(with);
	return kvm_hypercall(KVM_HC_REGEX_COPYTO, (uintptr_t)regex, (uintptr_t)&what, flags, 0, 0, 0);
}

/* ------------------------------------------------------------------ shared state */

/* Memory that all virtual machines of this program share, its forks and its storage, and no reset touches: zero when the program
 * starts, then whatever any of them has written. Others write to it while this one runs, so use atomics, and copy what you check
 * before you use it. */
struct kvm_shared_memory {
	void *ptr;
	void *end;
};

/* Empty (ptr == end) where the tenant has none (its setting `shared_memory`). Always at the same place. */
static inline struct kvm_shared_memory shared_memory_area(void)
{
	struct kvm_shared_memory area;
	unsigned long begin = KVM_HC_SHARED_MEMORY_AREA, end = 0;

#ifdef KVM_API_MOCK
	begin = (unsigned long)kvm_hypercall(KVM_HC_SHARED_MEMORY_AREA, (uintptr_t)&end, 0, 0, 0, 0, 0);
#else
	__asm__ volatile("outl %%eax, $0" : "+a"(begin), "+d"(end) : : "memory");
#endif
	if ((long)begin <= 0 || end < begin)
		begin = end = 0;
	area.ptr = (void *)begin;
	area.end = (void *)end;
	return area;
}

/* In main(), whether a machine is put back to the frozen state after each request, as it is unless the tenant or this says
 * otherwise: 0; -ENOSYS for false where the tenant may not (its setting `control_ephemeral`). In a request true has this one's
 * machine put back when it is answered, and false is -EPERM. */
static inline long make_ephemeral(bool ephemeral)
{
	return kvm_hypercall(KVM_HC_MAKE_EPHEMERAL, ephemeral, 0, 0, 0, 0, 0);
}

/* A tenant with storage (its setting `storage`) runs its program twice: once forked for requests, and once as a single machine
 * that is never reset, the storage VM, which the others call. Whatever it keeps in memory stays:
 *
 *     static long hits;
 *
 *     static void count(size_t n, struct virtbuffer *buffers, size_t result_len)
 *     {
 *         hits++;
 *         storage_return(&hits, sizeof hits);
 *     }
 *
 *     int main(void)
 *     {
 *         storage_allow(count);
 *         ...
 *     }
 *
 * and in a request: long hits; storage_call(count, NULL, 0, &hits, sizeof hits);
 *
 * A function that crashes or takes too long ends the storage VM, which begins again as main() has left it, or with what the last
 * live update has carried over. */

/* A piece of memory, as passed to the storage VM. */
struct virtbuffer {
	void *data;
	size_t len;
};
KVM_ASSERT(virtbuffer_size, sizeof(struct virtbuffer) == 16);

/* Runs in the storage VM with copies of the caller's buffers, which are there until it returns. Its result is what it gives to
 * storage_return(), at most result_len bytes. */
typedef void (*kvm_storage_func)(size_t n, struct virtbuffer *buffers, size_t result_len);
typedef void (*kvm_storage_task_func)(void *data, size_t len);

/* Whether this is the storage VM. */
static inline bool is_storage(void)
{
	return kvm_hypercall(KVM_HC_IS_STORAGE, 0, 0, 0, 0, 0, 0) == 1;
}

/* Lets requests call `func` and have it run as a task. In main() only: that of the storage VM counts. */
static inline long storage_allow(kvm_storage_func func)
{
	return kvm_hypercall(KVM_HC_STORAGE_ALLOW, (uintptr_t)func, 0, 0, 0, 0, 0);
}

/* Calls `func` in the storage VM with up to 64 buffers and waits for its result. Calls are served one after
 * another. Gives the result's length, 0 without a result or without room for one, -1 when the call failed (the log says why). */
static inline long storage_callv(kvm_storage_func func, size_t n, const struct virtbuffer *buffers,
				 void *result, size_t result_len)
{
	return kvm_hypercall(KVM_HC_STORAGE_CALLV, (uintptr_t)func, n, (uintptr_t)buffers, (uintptr_t)result,
			     result_len, 0);
}

/* storage_callv() with one buffer. */
static inline long storage_call(kvm_storage_func func, const void *data, size_t len, void *result,
				size_t result_len)
{
	struct virtbuffer buffer;

	buffer.data = (void *)(uintptr_t)data;
	buffer.len = len;
	return storage_callv(func, 1, &buffer, result, result_len);
}

/* In the storage VM: hands the result to the caller. This call comes back, so there can be work after it, which the caller waits
 * for. Gives the length, -1 when it is more than the caller has room for. */
static inline long storage_return(const void *data, size_t len)
{
	return kvm_hypercall(KVM_HC_STORAGE_RETURN, (uintptr_t)data, len, 0, 0, 0, 0);
}

/* The same, but does not come back. */
static inline __attribute__((noreturn)) void storage_noreturn(const void *data, size_t len)
{
	kvm_hypercall(KVM_HC_STORAGE_NORETURN, (uintptr_t)data, len, 0, 0, 0, 0);
	__builtin_trap();
}

/* Runs `func` in the storage VM later, without waiting: after start_ms, and if period_ms is not 0 again and
 * again, with a copy of the data (at most 64 KiB). Gives the task's number, -1 when there are 256 already. A request can only
 * have a function run that is allowed, as by storage_allow((kvm_storage_func)func). A task that fails is not run again. */
static inline long storage_task(kvm_storage_task_func func, const void *data, size_t len, uint64_t start_ms,
				uint64_t period_ms)
{
	return kvm_hypercall(KVM_HC_STORAGE_TASK, (uintptr_t)func, (uintptr_t)data, len, start_ms, period_ms,
			     0);
}

/* Takes a task off the list: 0, or -1 when it is not on it. */
static inline long storage_task_stop(long task)
{
	return kvm_hypercall(KVM_HC_STORAGE_TASK_STOP, (uintptr_t)task, 0, 0, 0, 0, 0);
}

/* ------------------------------------------------------------------ fetching by HTTP, by the host */

/* The host fetches what the tenant's `allow_net` names, and nothing else, within the request's time. Each of these calls gives a
 * negative errno when it fails, and the log says why: -EACCES what may not be reached, -EINVAL a URL or a header that is none,
 * -EFAULT a bad pointer, -EMSGSIZE a body that is too long (max_fetch_size, or the buffer), -ECONNREFUSED nobody there, -EPROTO
 * no HTTP or no TLS, -ETIMEDOUT, -ELOOP redirects in circles, -EAGAIN too many at once. A response of any status is a success. */

/* What is posted, and what has come. Zero it first: struct curl_op op = {0}; */
struct curl_op {
	uint32_t status;         /* out: the response's status */
	uint32_t post_buflen;    /* the length of */
	const void *post_buffer; /* what is posted; NULL: a GET */
	char *headers;           /* a buffer for the response's header lines; NULL: the host allocates it */
	uint32_t headers_length; /* its length; out: how much of it there is */
	uint32_t unused;
	void *content;           /* a buffer for the body; NULL: the host allocates it */
	uint32_t content_length; /* its length; out: the body's */
	uint32_t ctlen;          /* the length of; 0: up to its NUL */
	char ctype[128];         /* what is posted (a form unless given, or a header says so); out: the content type, NUL-terminated */
};
KVM_ASSERT(curl_op_size, sizeof(struct curl_op) == 176);
KVM_ASSERT(curl_op_headers, offsetof(struct curl_op, headers) == 16);
KVM_ASSERT(curl_op_content, offsetof(struct curl_op, content) == 32);
KVM_ASSERT(curl_op_ctype, offsetof(struct curl_op, ctype) == 48);

/* Request headers, "Key: value" each. */
#define KVM_CURL_FIELDS 12
struct curl_fields {
	const char *ptr[KVM_CURL_FIELDS];
	uint16_t len[KVM_CURL_FIELDS];
};
KVM_ASSERT(curl_fields_size, sizeof(struct curl_fields) == 120);

struct curl_options {
	const char *interface; /* NULL: it can't be chosen here */
	const char *unused;
	int8_t follow_location;  /* redirects are followed, ten at most */
	int8_t dummy_fetch;      /* the body is read, and not kept */
	int8_t tcp_fast_open;    /* only a hint */
	int8_t dont_verify_host; /* whatever name the certificate has, if the tenant may (fetch_unverified) */
	uint32_t unused2;
};
KVM_ASSERT(curl_options_size, sizeof(struct curl_options) == 24);

/* Fetches a URL and waits for all of it. 0, or a negative errno. fields and options may be NULL. What the host allocates is
 * the program's to munmap(), and gone after the request in any case. */
static inline long sys_fetch(const char *url, size_t url_len, struct curl_op *op, const struct curl_fields *fields,
			     const struct curl_options *options)
{
	return kvm_hypercall(KVM_HC_FETCH, (uintptr_t)url, url_len, (uintptr_t)op, (uintptr_t)fields,
			     (uintptr_t)options, 0);
}
static inline long fetch(const char *url, size_t url_len, struct curl_op *op, const struct curl_fields *fields,
			 const struct curl_options *options)
{
	return sys_fetch(url, url_len, op, fields, options);
}

/* The same from the Varnish that this program runs in, by its path ("/page?query"), where its VCL allows that. */
static inline long sys_self_request(const char *path, size_t path_len, struct curl_op *op,
				    const struct curl_fields *fields, const struct curl_options *options)
{
	return kvm_hypercall(KVM_HC_SELF_REQUEST, (uintptr_t)path, path_len, (uintptr_t)op, (uintptr_t)fields,
			     (uintptr_t)options, 0);
}
static inline long self_request(const char *path, size_t path_len, struct curl_op *op,
				const struct curl_fields *fields, const struct curl_options *options)
{
	return sys_self_request(path, path_len, op, fields, options);
}

/* Adds a header to those of a fetch; false if there are twelve. */
static inline bool curl_add_field(struct curl_fields *fields, const char *field)
{
	int i;

	for (i = 0; i < KVM_CURL_FIELDS; i++) {
		if (!fields->ptr[i]) {
			fields->ptr[i] = field;
			fields->len[i] = (uint16_t)__builtin_strlen(field);
			return true;
		}
	}
	return false;
}

/* In parts: what several requests at a time, or a long body, need. These calls are this host's own. At most eight are open at a
 * time, in a request only, and they end with it. */
struct kvm_fetch {
	const char *url; /* or, with `own`, a path of this Varnish's */
	uint32_t url_len;
	uint32_t method_len;
	const char *method; /* NULL: GET, or POST with a body */
	const struct kvm_response_header *headers;
	uint16_t num_headers; /* at most 64 */
	bool follow;          /* redirects are followed */
	bool unverified;      /* as dont_verify_host */
	bool own;
	const void *body; /* NULL: none */
	size_t body_len;
	uint64_t reserved;
};
KVM_ASSERT(fetch_size, sizeof(struct kvm_fetch) == 64);
KVM_ASSERT(fetch_method, offsetof(struct kvm_fetch, method) == 16);
KVM_ASSERT(fetch_num_headers, offsetof(struct kvm_fetch, num_headers) == 32);
KVM_ASSERT(fetch_own, offsetof(struct kvm_fetch, own) == 36);
KVM_ASSERT(fetch_body, offsetof(struct kvm_fetch, body) == 40);

struct kvm_fetch_head {
	uint32_t status;
	uint32_t headers_len; /* bytes of the header lines */
	int64_t content_len;  /* of the body; -1 if that is not known yet */
};
KVM_ASSERT(fetch_head_size, sizeof(struct kvm_fetch_head) == 16);

/* Begins a fetch and does not wait for it. Gives its number, from 1 on. */
static inline long fetch_begin(const struct kvm_fetch *what)
{
	return kvm_hypercall(KVM_HC_FETCH_BEGIN, (uintptr_t)what, 0, 0, 0, 0, 0);
}

/* Waits for the response's head. Its lines, each with its line end, are copied to `headers` if that is not NULL; -EMSGSIZE if they
 * don't fit. 0, or a negative errno. */
static inline long fetch_head(long number, struct kvm_fetch_head *head, char *headers, size_t room)
{
	return kvm_hypercall(KVM_HC_FETCH_HEAD, (uintptr_t)number, (uintptr_t)head, (uintptr_t)headers, room, 0, 0);
}

/* Waits for more of the body, and gives how many bytes are in `buf` now; 0 at its end. */
static inline long fetch_read(long number, void *buf, size_t len)
{
	return kvm_hypercall(KVM_HC_FETCH_READ, (uintptr_t)number, (uintptr_t)buf, len, 0, 0, 0);
}

/* Ends it, wherever it is. Its number may be another one's then. */
static inline long fetch_close(long number)
{
	return kvm_hypercall(KVM_HC_FETCH_CLOSE, (uintptr_t)number, 0, 0, 0, 0, 0);
}

/* ------------------------------------------------------------------ about this machine */

/* Which of the program's virtual machines this is: 0 in main() and in warm-up requests, from 1 on in a request. No two
 * that run at the same time have the same number, and it is no greater than there have been machines at a time. */
static inline uint32_t vcpuid(void)
{
	uint32_t number = 0;

#ifndef KVM_API_MOCK
	__asm__ volatile("movl %%gs:0, %0" : "=r"(number));
#endif
	return number;
}

/* The same number: a machine has one processor. */
static inline uint32_t vcpureqid(void)
{
	uint32_t number = 0;

#ifndef KVM_API_MOCK
	__asm__ volatile("movl %%gs:4, %0" : "=r"(number));
#endif
	return number;
}

/* All in bytes. */
struct kvm_meminfo {
	uint64_t max_memory;     /* the machine's memory */
	uint64_t max_reqmem;     /* what one request may write to */
	uint64_t reqmem_upper;   /* the most a request in this machine has written to so far */
	uint64_t reqmem_current; /* what this request has written to so far */
};
KVM_ASSERT(meminfo_size, sizeof(struct kvm_meminfo) == 32);

static inline long get_meminfo(struct kvm_meminfo *info)
{
	return kvm_hypercall(KVM_HC_GET_MEMINFO, (uintptr_t)info, 0, 0, 0, 0, 0);
}

/* A line in the Varnish log. */
static inline long kvm_log(const char *text, size_t len)
{
	return kvm_hypercall(KVM_HC_LOG, (uintptr_t)text, len, 0, 0, 0, 0);
}

static inline long kvm_log_str(const char *text)
{
	return kvm_log(text, __builtin_strlen(text));
}

/* Whether this request came in for debugging. */
static inline bool is_debug(void)
{
	return kvm_hypercall(KVM_HC_IS_DEBUG, 0, 0, 0, 0, 0, 0) == 1;
}

/* Stops here for a remote debugger where the tenant allows debugging; does nothing otherwise. */
static inline void breakpoint(void)
{
	kvm_hypercall(KVM_HC_BREAKPOINT, 0, 0, 0, 0, 0, 0);
}

#ifdef __cplusplus
}
#endif

#include "kvm_compat.h"
#ifdef KVM_API_MOCK
#include "kvm_api_mock.h"
#endif

#endif /* KVM_API_H */
