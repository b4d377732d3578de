/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * kvm_compat.h: what sources written for the header of the C++ VMOD call by other names, or with other arguments, than
 * kvm_api.h has them. kvm_api.h includes this file; programs need not.
 */
#ifndef KVM_COMPAT_H
#define KVM_COMPAT_H

#ifndef KVM_API_H
#error "include kvm_api.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ constants and types */

/* `where` of the functions for headers. */
enum kvm_http_where_names { REQ = KVM_REQUEST, RESP = KVM_RESPONSE };

/* The longest header field that the host takes, in bytes. */
#define HTTP_FMT_SIZE 8192

#define CURL_FIELDS_COUNT KVM_CURL_FIELDS

#define backend_request kvm_request
typedef struct ResponseHeader ResponseHeader;
typedef struct BackendResponseExtra BackendResponseExtra;
typedef kvm_storage_func storage_func;
typedef kvm_storage_task_func storage_task_func;

/* A pointer to what will not be written to, where one to what may be is asked for: as `data` of a struct virtbuffer. */
#define TRUST_ME(pointer) ((void *)(uintptr_t)(pointer))

/* ------------------------------------------------------------------ the calls, one by one */

#define sys_http_append http_append
#define sys_http_set http_set
#define sys_http_find http_find
#define sys_http_method http_method
#define sys_regex_compile regex_compile
#define sys_regex_free regex_free
#define sys_regex_match regex_match
#define sys_regex_subst regex_subst
#define sys_regex_copyto regex_copyto
#define sys_make_ephemeral make_ephemeral
#define sys_shared_memory_area shared_memory_area
#define sys_is_storage is_storage
#define sys_is_debug is_debug
#define sys_breakpoint breakpoint
#define sys_log kvm_log
#define sys_request sys_self_request
#define stop_storage_task storage_task_stop

/* set_cacheable() in milliseconds. */
static inline long sys_set_cacheable(bool cached, uint64_t ttl_ms, uint64_t grace_ms, uint64_t keep_ms)
{
	return kvm_hypercall(KVM_HC_SET_CACHEABLE, cached, ttl_ms, grace_ms, keep_ms, 0, 0);
}

/* Functions of whatever type can be registered, and called in storage. */
#define register_func(slot, handler) (register_func)((slot), (uintptr_t)(handler))
#define sys_storage_allow(function) kvm_hypercall(KVM_HC_STORAGE_ALLOW, (uintptr_t)(function), 0, 0, 0, 0, 0)
#define STORAGE_ALLOW(function) sys_storage_allow(function)

static inline long sys_storage_task(kvm_storage_task_func task, const void *data, size_t len, uint64_t start_ms,
				    uint64_t period_ms)
{
	return storage_task(task, data, len, start_ms, period_ms);
}

/* storage_task() in seconds. */
static inline long schedule_storage_task(kvm_storage_task_func task, const void *data, size_t len, float start,
					 float period)
{
	return sys_storage_task(task, data, len, (uint64_t)(start * 1000.0f), (uint64_t)(period * 1000.0f));
}

static inline long storage_return_nothing(void)
{
	return storage_return("", 0);
}

/* ------------------------------------------------------------------ headers and the log, by printf()'s formats */

/* Removes the fields of this name. */
static inline long http_unset_str(int where, const char *key)
{
	return http_set_str(where, key);
}

/* http_find() of a name that is a text. The copy is NUL-terminated if there is room for that. */
static inline long http_find_str(int where, const char *key, char *out, size_t out_len)
{
	const long len = http_find(where, key, __builtin_strlen(key), out, out_len);

	if (out && len >= 0 && (size_t)len < out_len)
		out[len] = '\0';
	return len;
}

/* The field's whole line as a text from malloc(); NULL if there is none. */
static inline char *http_alloc_find(int where, const char *key)
{
	const long len = http_find(where, key, __builtin_strlen(key), (char *)0, 0);
	char *line = len > 0 ? (char *)__builtin_malloc((size_t)len + 1) : (char *)0;

	if (line && http_find_str(where, key, line, (size_t)len + 1) == len)
		return line;
	__builtin_free(line);
	return (char *)0;
}

#define KVM_PRINTF(text, first) inline __attribute__((format(printf, text, first)))

static inline long kvm_http_vformat(long (*change)(int, const char *, size_t), int where, const char *format,
				    __builtin_va_list args)
{
	char field[HTTP_FMT_SIZE + 1];
	const int len = __builtin_vsnprintf(field, sizeof field, format, args);

	return len < 0 || (size_t)len >= sizeof field ? -1 : change(where, field, (size_t)len);
}

/* http_append() and http_set() of a formatted text; -1 if it is longer than HTTP_FMT_SIZE. */
static KVM_PRINTF(2, 3) long http_appendf(int where, const char *format, ...)
{
	__builtin_va_list args;
	long index;

	__builtin_va_start(args, format);
	index = kvm_http_vformat(http_append, where, format, args);
	__builtin_va_end(args);
	return index;
}

static KVM_PRINTF(2, 3) long http_setf(int where, const char *format, ...)
{
	__builtin_va_list args;
	long index;

	__builtin_va_start(args, format);
	index = kvm_http_vformat(http_set, where, format, args);
	__builtin_va_end(args);
	return index;
}

/* A formatted line in the Varnish log, cut at the log's 4,096 bytes. */
static KVM_PRINTF(1, 2) long vlogf(const char *format, ...)
{
	char line[4096];
	__builtin_va_list args;
	int len;

	__builtin_va_start(args, format);
	len = __builtin_vsnprintf(line, sizeof line, format, args);
	__builtin_va_end(args);
	if (len < 0)
		return -1;
	return kvm_log(line, (size_t)len < sizeof line ? (size_t)len : sizeof line - 1);
}

/* ------------------------------------------------------------------ shared memory, for good */

/* What is still free of the shared memory. */
__attribute__((weak)) char *kvm_shm_free;

/* In main() only: a request that took some would give it back with all else that it changes. Each machine of the program takes
 * its pieces in the same order, and so has the same ones. NULL if there is no more. */
static inline void *kvm_shm_alloc(size_t len, size_t align)
{
	const struct shared_memory_info area = shared_memory_area();
	const uintptr_t from = (uintptr_t)(kvm_shm_free ? kvm_shm_free : (char *)area.ptr);
	const uintptr_t begin = (from + align - 1) & ~(uintptr_t)(align - 1);

	if (!area.ptr || begin < from || begin > (uintptr_t)area.end || len > (uintptr_t)area.end - begin)
		return (void *)0;
	kvm_shm_free = (char *)(begin + len);
	return (void *)begin;
}

/* A pointer to room for this type, or for what has the type of this. */
#define SHM_ALLOC_TYPE(type) ((__typeof__(type) *)kvm_shm_alloc(sizeof(type), __alignof__(type)))
#define SHM_ALLOC_BYTES(len) kvm_shm_alloc((len), 16)

/* ------------------------------------------------------------------ files in the program, and the program elsewhere */

#ifdef __cplusplus
#define KVM_DECLARED extern "C"
#else
#define KVM_DECLARED extern
#endif

/* At file scope: the file's bytes as `name`, a char array, and their number as `name_size`. The path is as the assembler
 * finds it: from the folder that the compiler runs in, or below a -I. There is a NUL behind them. */
#define EMBED_BINARY(name, path) \
	__asm__(".pushsection .rodata, \"a\"\n" \
		".balign 16\n" \
		".global " #name "\n.type " #name ", @object\n" \
		#name ":\n.incbin \"" path "\"\n" \
		"77: .size " #name ", 77b - " #name "\n" \
		".byte 0\n" \
		".balign 8\n" \
		".global " #name "_size\n.type " #name "_size, @object\n.size " #name "_size, 8\n" \
		#name "_size:\n.quad 77b - " #name "\n" \
		".popsection\n"); \
	KVM_DECLARED const char name[]; \
	KVM_DECLARED const size_t name##_size

/* Whether this is an ordinary process of Linux's rather than the virtual machine, where the host sets KVM_NAME. */
static inline bool kvm_is_linux(void)
{
#ifdef KVM_API_MOCK
	return false;
#else
	extern char **environ;
	char **at;

	for (at = environ; at && *at; at++)
		if (!__builtin_strncmp(*at, "KVM_NAME=", 9))
			return false;
	return true;
#endif
}
#define IS_LINUX_MAIN() kvm_is_linux()

#ifdef __cplusplus
}

/* A task that runs once, and soon. */
static inline long storage_task(kvm_storage_task_func task, const void *data, size_t len)
{
	return storage_task(task, data, len, 0, 0);
}
#else
#define storage_task(...) KVM_STORAGE_TASK(__VA_ARGS__, 0, 0, 0)
#define KVM_STORAGE_TASK(task, data, len, start_ms, period_ms, ...) \
	(storage_task)(task, data, len, start_ms, period_ms)
#endif

#endif /* KVM_COMPAT_H */
