/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * kvm_api_mock.h: with -DKVM_API_MOCK a program that includes kvm_api.h is an ordinary executable of Linux, for tests
 * and debuggers. Its arguments are the requests, and it prints the responses:
 *
 *     gcc -DKVM_API_MOCK -I guest-sdk/c hello.c -o hello-mock
 *     ./hello-mock [-i] [-X METHOD] [-H 'NAME: VALUE']... [-d BODY|@FILE] [--arg TEXT] [--fetch URL=FILE]... [URL]...
 *
 * -i prints status and headers as well; --fetch has the response of a URL in a file (kvm_mock_fetch.h). Each request runs in a process of its own, forked when the set-up is done, so
 * none sees what another one changed. What the program itself prints goes to standard error. The exit status is 0 if
 * all requests were answered, 1 if one failed, 2 for wrong arguments.
 *
 * As in the virtual machine, exit handlers and destructors do not run when main() returns. That needs glibc and a program
 * that is linked dynamically (without -static); with another C library main() has to end with wait_for_requests(). C has
 * to be gcc's or clang's own dialect (-std=gnu99 or later). Functions of the storage run in the process of the request that calls
 * them, tasks at once; what they keep is gone with the request. Shared memory has 1 MiB, which the requests do share if main() has
 * asked for it. Regular expressions are not all of the host's (kvm_mock_regex.h). What has no sense here gives -ENOSYS: live
 * update, get_meminfo().
 *
 * kvm_api.h includes this file. The definitions are weak, so several sources of a program may include it.
 */
#ifndef KVM_API_MOCK_H
#define KVM_API_MOCK_H

#ifndef KVM_API_H
#error "include kvm_api.h, with -DKVM_API_MOCK"
#endif

#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVM_MOCK __attribute__((weak))

/* As many as the host takes. */
enum { KVM_MOCK_MOST_HEADERS = 64, KVM_MOCK_SLOTS = 16, KVM_MOCK_MOST_FUNCTIONS = 1024 };

/* Header lines of a message. */
struct kvm_mock_lines {
	char *line[KVM_MOCK_MOST_HEADERS];
	int count;
};

struct kvm_mock_state {
	uintptr_t handler[KVM_MOCK_SLOTS];
	int out;      /* standard output, for responses alone */
	int serving;  /* this process answers a request */
	int answered; /* a pipe's end: there it says that it has */
	int include;  /* -i */
	int begun;    /* the response's head is out */
	char *shared; /* memory of all processes */
	struct kvm_request request;
	struct kvm_mock_lines sent, answer;
	struct kvm_header headers[KVM_MOCK_MOST_HEADERS];
};
KVM_MOCK struct kvm_mock_state kvm_mock;

/* A call of the storage. */
struct kvm_mock_call {
	uintptr_t allowed[KVM_MOCK_MOST_FUNCTIONS];
	int allowed_count;
	int runs;
	int returned;
	void *result;
	size_t room;
	long len;
	jmp_buf end;
};
KVM_MOCK struct kvm_mock_call kvm_mock_storage;

/* The symbol style's handlers, if the program has them. */
extern void my_backend(const char *url) KVM_MOCK;
extern void my_post_backend(const char *url, const uint8_t *data, size_t len) KVM_MOCK;

KVM_MOCK long kvm_mock_find(uintptr_t where, const char *name, size_t name_len, char *out, size_t room);

/* ------------------------------------------------------------------ a process for each request */

KVM_MOCK __attribute__((noreturn)) void kvm_mock_fails(const char *what)
{
	fprintf(stderr, "request failed: %s\n", what);
	fflush(NULL);
	_exit(1);
}

KVM_MOCK void kvm_mock_write(const void *data, size_t len)
{
	const char *at = (const char *)data;

	while (len > 0) {
		const ssize_t n = write(kvm_mock.out, at, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return; /* whoever read it has left */
		at += n;
		len -= (size_t)n;
	}
}

/* Calls the handler for bodies by segments. */
KVM_MOCK void kvm_mock_segments(const struct kvm_request *request, kvm_stream_post_func handler)
{
	const size_t most = 64 << 10;
	size_t offset = 0, len;

	do {
		len = request->content_len - offset < most ? request->content_len - offset : most;
		if (handler(request->url, request->arg, request->content_type, len ? request->content + offset : NULL, len,
			    offset) != (long)len)
			kvm_mock_fails("the handler did not take a segment");
		offset += len;
	} while (len > 0);
	kvm_mock_fails("the handler returned without a response");
}

/* Calls the handler for the request, as the host chooses it. */
KVM_MOCK void kvm_mock_handle(const struct kvm_request *request)
{
	const char *const m = request->method;
	const bool body = request->content_len > 0;
	const bool sends = !strcmp(m, "POST") || !strcmp(m, "PUT") || !strcmp(m, "PATCH");
	const kvm_get_func on_get = (kvm_get_func)kvm_mock.handler[KVM_SLOT_GET];
	const kvm_post_func on_post = (kvm_post_func)kvm_mock.handler[KVM_SLOT_POST];
	const kvm_request_func on_request = (kvm_request_func)kvm_mock.handler[KVM_SLOT_REQUEST];

	const kvm_stream_post_func on_segment = (kvm_stream_post_func)kvm_mock.handler[KVM_SLOT_STREAM_POST];

	if (on_segment && (body || (sends && !on_get && !on_request)))
		kvm_mock_segments(request, on_segment);
	if (on_request)
		on_request(request);
	else if (on_post && (body || (sends && !on_get)))
		on_post(request->url, request->arg, request->content_type, request->content, request->content_len);
	else if (on_get)
		on_get(request->url, request->arg);
	else if (my_post_backend && (body || (sends && !my_backend)))
		my_post_backend(request->url, request->content, request->content_len);
	else if (my_backend)
		my_backend(request->url);
	else
		kvm_mock_fails("the program has no handler for it: no my_backend, and none is registered");
	kvm_mock_fails("the handler returned without a response");
}

/* Forks, and waits for the child. 0 in the child; why it has not answered is a text in `why`, empty if it has. */
KVM_MOCK pid_t kvm_mock_fork(char *why, size_t why_len)
{
	int status = 0, ends[2];
	char byte;
	pid_t child;
	ssize_t n;

	fflush(NULL);
	if (pipe(ends) != 0 || (child = fork()) < 0) {
		perror("fork");
		_exit(1);
	}
	if (child == 0) {
		close(ends[0]);
		kvm_mock.answered = ends[1];
		kvm_mock.serving = 1;
		return 0;
	}
	close(ends[1]);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	n = read(ends[0], &byte, 1);
	close(ends[0]);
	why[0] = '\0';
	if (WIFSIGNALED(status))
		snprintf(why, why_len, "%s (signal %d)", strsignal(WTERMSIG(status)), WTERMSIG(status));
	else if (n != 1)
		snprintf(why, why_len, "it has ended without a response (exit status %d)", WEXITSTATUS(status));
	return child;
}

/* Runs the request in a process of its own; true in that process, if it is to go on in the paused loop. */
KVM_MOCK bool kvm_mock_run(bool paused, int *failed)
{
	char why[128];

	if (kvm_mock_fork(why, sizeof why) == 0) {
		if (paused)
			return true;
		kvm_mock_handle(&kvm_mock.request);
	}
	if (!why[0])
		return false;
	fprintf(stderr, "%s: request failed: %s\n", kvm_mock.request.url, why);
	if (kvm_mock.handler[KVM_SLOT_ON_ERROR]) {
		char second[128];

		if (kvm_mock_fork(second, sizeof second) == 0) {
			((kvm_error_func)kvm_mock.handler[KVM_SLOT_ON_ERROR])(kvm_mock.request.url, kvm_mock.request.arg, why);
			kvm_mock_fails("on_error returned without a response");
		}
		if (!second[0])
			return false;
	}
	*failed = 1;
	return false;
}

/* ------------------------------------------------------------------ the arguments */

KVM_MOCK __attribute__((noreturn)) void kvm_mock_usage(void)
{
	fprintf(stderr, "arguments: [-i] [-X METHOD] [-H 'NAME: VALUE']... [-d BODY|@FILE] [--arg TEXT] "
			"[--fetch URL=FILE]... [URL]...\n");
	_exit(2);
}

/* All of a file. */
KVM_MOCK char *kvm_mock_read(const char *path, size_t *len)
{
	FILE *file = fopen(path, "rb");
	size_t room = 0, n;
	char *data = NULL;

	*len = 0;
	if (!file) {
		perror(path);
		_exit(2);
	}
	do {
		if (room - *len < 4096)
			data = (char *)realloc(data, room = 2 * room + 8192);
		if (!data)
			abort();
		n = fread(data + *len, 1, room - *len - 1, file);
		*len += n;
	} while (n > 0);
	fclose(file);
	data[*len] = '\0';
	return data;
}

KVM_MOCK void kvm_mock_prepare(struct kvm_request *r)
{
	int i;

	r->method_len = (uint16_t)strlen(r->method);
	r->url_len = (uint16_t)strlen(r->url);
	r->arg_len = (uint16_t)strlen(r->arg);
	r->content_type_len = (uint16_t)strlen(r->content_type);
	for (i = 0; i < kvm_mock.sent.count; i++) {
		struct kvm_header *header = &kvm_mock.headers[i];

		header->field = kvm_mock.sent.line[i];
		header->len = (uint32_t)strlen(header->field);
		header->colon = (uint32_t)strcspn(header->field, ":");
		if (!strncasecmp(header->field, "content-type:", 13)) {
			r->content_type = header->field + 13 + strspn(header->field + 13, " ");
			r->content_type_len = (uint16_t)strlen(r->content_type);
		}
	}
	r->headers = kvm_mock.headers;
	r->num_headers = (uint16_t)kvm_mock.sent.count;
	if (getentropy(r->prng, sizeof r->prng) != 0)
		r->prng[0] = r->prng[1] = 0;
}

/* The end of the set-up: runs the requests. Comes back only in a process that goes on in the paused loop. */
KVM_MOCK void kvm_mock_serve(bool paused)
{
	static char form[] = "Content-Type: application/x-www-form-urlencoded";
	struct kvm_request *r = &kvm_mock.request;
	size_t len, urls = 0;
	bool body = false;
	int failed = 0;
	char *at = kvm_mock_read("/proc/self/cmdline", &len);
	char *const end = at + len;
	const char **url = (const char **)calloc(len + 1, sizeof *url);

	if (!url)
		abort();
	if (kvm_mock.serving)
		kvm_mock_fails("wait_for_requests() in a request");
	r->method = r->arg = r->content_type = "";
	r->content = (const uint8_t *)"";
	for (at += strlen(at) + 1; at < end; at += strlen(at) + 1) {
		char *value = at + strlen(at) + 1;

		if (!strcmp(at, "-i")) {
			kvm_mock.include = 1;
			continue;
		}
		if (at[0] != '-') {
			url[urls++] = at;
			continue;
		}
		if (value >= end)
			kvm_mock_usage();
		if (!strcmp(at, "-X")) {
			r->method = value;
		} else if (!strcmp(at, "--arg")) {
			r->arg = value;
		} else if (!strcmp(at, "--fetch") && strchr(value, '=')) {
			/* It is looked up when it is fetched. */
		} else if (!strcmp(at, "-d")) {
			r->content_len = strlen(value);
			r->content = (const uint8_t *)value;
			if (value[0] == '@')
				r->content = (const uint8_t *)kvm_mock_read(value + 1, &r->content_len);
			body = true;
		} else if (!strcmp(at, "-H") && strchr(value, ':') && kvm_mock.sent.count < KVM_MOCK_MOST_HEADERS) {
			kvm_mock.sent.line[kvm_mock.sent.count++] = value;
		} else {
			kvm_mock_usage();
		}
		at = value;
	}
	if (!r->method[0])
		r->method = body ? "POST" : "GET";
	if (body && !kvm_mock_find(KVM_REQUEST, "Content-Type", 12, NULL, 0) && kvm_mock.sent.count < KVM_MOCK_MOST_HEADERS)
		kvm_mock.sent.line[kvm_mock.sent.count++] = form;
	if (urls == 0)
		url[urls++] = "/";
	for (size_t i = 0; i < urls; i++) {
		r->url = url[i];
		kvm_mock_prepare(r);
		if (kvm_mock_run(paused, &failed))
			return;
	}
	fflush(NULL);
	_exit(failed);
}

/* ------------------------------------------------------------------ main()'s return */

/* Destructors of statics and of thread_local variables do not run, as they do not in the virtual machine. */
#ifdef __cplusplus
#define KVM_MOCK_NOEXCEPT noexcept
#else
#define KVM_MOCK_NOEXCEPT
#endif
#define KVM_MOCK_DROPS(registrar) \
	KVM_MOCK int registrar(void (*function)(void *), void *argument, void *object) KVM_MOCK_NOEXCEPT; \
	KVM_MOCK int registrar(void (*function)(void *), void *argument, void *object) KVM_MOCK_NOEXCEPT \
	{ \
		(void)function; \
		(void)argument; \
		(void)object; \
		return 0; \
	}
KVM_MOCK_DROPS(__cxa_atexit)
KVM_MOCK_DROPS(__cxa_thread_atexit)

#ifdef __GLIBC__
KVM_MOCK void kvm_mock_exited(int status, void *unused)
{
	(void)unused;
	if (kvm_mock.serving)
		return;
	if (status != 0) {
		fprintf(stderr, "main() failed: it returned %d\n", status);
		fflush(NULL);
		_exit(1);
	}
	kvm_mock_serve(false);
}
#endif

static __attribute__((constructor, used)) void kvm_mock_start(void)
{
	if (kvm_mock.out)
		return; /* another source of this program */
	kvm_mock.out = dup(1);
	if (kvm_mock.out < 0 || dup2(2, 1) < 0)
		abort();
#ifdef __GLIBC__
	if (on_exit(kvm_mock_exited, NULL) != 0)
		abort();
#endif
}

/* ------------------------------------------------------------------ headers and responses */

KVM_MOCK struct kvm_mock_lines *kvm_mock_message(uintptr_t where)
{
	if (where == KVM_REQUEST || where == BEREQ)
		return &kvm_mock.sent;
	return where == KVM_RESPONSE || where == BERESP ? &kvm_mock.answer : NULL;
}

/* Whether a line is a field of this name. */
KVM_MOCK bool kvm_mock_is(const char *line, const char *name, size_t len)
{
	return !strncasecmp(line, name, len) && line[len] == ':';
}

/* Appends a line, or sets it in the place of those of its name; gives its place, from 1 on. */
KVM_MOCK long kvm_mock_change(uintptr_t where, const char *field, size_t len, bool append)
{
	struct kvm_mock_lines *lines = kvm_mock_message(where);
	const char *colon = (const char *)memchr(field, ':', len);
	const size_t name_len = colon ? (size_t)(colon - field) : len;
	char *line;
	int kept = 0;

	if (!lines || !kvm_mock.serving || (kvm_mock.begun && lines == &kvm_mock.answer))
		return -1;
	if (name_len == 0 || (append && !colon) || memchr(field, '\n', len) || memchr(field, '\r', len))
		kvm_mock_fails("a header field has the form \"Name: value\"");
	for (int i = 0; i < lines->count; i++)
		if (append || !kvm_mock_is(lines->line[i], field, name_len))
			lines->line[kept++] = lines->line[i];
	lines->count = kept;
	if (!colon)
		return 0;
	if (kept == KVM_MOCK_MOST_HEADERS)
		return -1;
	line = (char *)malloc(len + 1);
	if (!line)
		abort();
	memcpy(line, field, len);
	line[len] = '\0';
	lines->line[lines->count++] = line;
	return lines->count;
}

/* Copies a text to `out`; gives its length, 0 if it does not fit. Only the length without `out`. */
KVM_MOCK long kvm_mock_copy(const char *text, char *out, size_t room)
{
	const size_t len = strlen(text);

	if (out && len > room)
		return 0;
	if (out)
		memcpy(out, text, len);
	return (long)len;
}

/* The first line of this name, or NULL. */
KVM_MOCK const char *kvm_mock_line(uintptr_t where, const char *name, size_t name_len)
{
	const struct kvm_mock_lines *lines = kvm_mock_message(where);

	for (int i = 0; lines && i < lines->count; i++)
		if (kvm_mock_is(lines->line[i], name, name_len))
			return lines->line[i];
	return NULL;
}

KVM_MOCK long kvm_mock_find(uintptr_t where, const char *name, size_t name_len, char *out, size_t room)
{
	const char *line = kvm_mock_line(where, name, name_len);

	return line ? kvm_mock_copy(line, out, room) : 0;
}

/* These fields take the place of those of the same names. */
KVM_MOCK void kvm_mock_extra(const struct kvm_response_extra *extra)
{
	for (int i = 0; extra && i < extra->num_headers; i++) {
		const char *field = extra->headers[i].field;
		const char *colon = (const char *)memchr(field, ':', extra->headers[i].field_len);

		if (colon)
			kvm_mock_change(KVM_RESPONSE, field, (size_t)(colon - field), false);
	}
	for (int i = 0; extra && i < extra->num_headers; i++)
		kvm_mock_change(KVM_RESPONSE, extra->headers[i].field, extra->headers[i].field_len, true);
}

/* Status and headers; without a length if that is not known. */
KVM_MOCK void kvm_mock_head(int status, const char *type, size_t type_len, const size_t *len)
{
	char text[80];

	if (!kvm_mock.serving) {
		fprintf(stderr, "main() failed: a response without a request\n");
		_exit(1);
	}
	if (kvm_mock.begun)
		kvm_mock_fails("another response in the callback of one");
	if (status < 200 || status > 599)
		kvm_mock_fails("a status is 200 to 599");
	if (kvm_mock.include) {
		snprintf(text, sizeof text, "HTTP/1.1 %d\r\n", status);
		kvm_mock_write(text, strlen(text));
		if (type_len > 0) {
			kvm_mock_write("Content-Type: ", 14);
			kvm_mock_write(type, type_len);
			kvm_mock_write("\r\n", 2);
		}
		for (int i = 0; i < kvm_mock.answer.count; i++) {
			kvm_mock_write(kvm_mock.answer.line[i], strlen(kvm_mock.answer.line[i]));
			kvm_mock_write("\r\n", 2);
		}
		if (len) {
			snprintf(text, sizeof text, "Content-Length: %zu\r\n", *len);
			kvm_mock_write(text, strlen(text));
		}
		kvm_mock_write("\r\n", 2);
	}
}

KVM_MOCK __attribute__((noreturn)) void kvm_mock_end(void)
{
	fflush(NULL);
	/* The pipe has room for a byte. */
	_exit(write(kvm_mock.answered, "", 1) == 1 ? 0 : 1);
}

KVM_MOCK __attribute__((noreturn)) void kvm_mock_respond(int status, const char *type, size_t type_len,
							 const void *body, size_t len,
							 const struct kvm_response_extra *extra)
{
	if (kvm_mock.serving)
		kvm_mock_extra(extra);
	kvm_mock_head(status, type, type_len, &len);
	kvm_mock_write(body, len);
	kvm_mock_end();
}

KVM_MOCK __attribute__((noreturn)) void kvm_mock_stream(int status, const char *type, size_t type_len, size_t len,
							kvm_stream_func callback, void *arg)
{
	const size_t most = 64 << 10;
	size_t written = 0;

	kvm_mock_head(status, type, type_len, len ? &len : NULL);
	kvm_mock.begun = 1;
	while (!len || written < len) {
		const size_t max = len && len - written < most ? len - written : most;
		const struct kvm_stream_part part = callback(arg, max, written, len);

		if (!part.data || part.len == 0) {
			if (len)
				kvm_mock_fails("the callback ended a response before its length");
			break;
		}
		if (part.len > max)
			kvm_mock_fails("the callback gave more than it was asked for");
		kvm_mock_write(part.data, part.len);
		written += part.len;
	}
	kvm_mock_end();
}

/* ------------------------------------------------------------------ storage */

KVM_MOCK void *kvm_mock_copy_of(const void *data, size_t len)
{
	void *const copy = malloc(len + 1);

	if (!copy)
		abort();
	if (len > 0)
		memcpy(copy, data, len);
	return copy;
}

KVM_MOCK long kvm_mock_storage_allow(uintptr_t function)
{
	if (kvm_mock.serving || kvm_mock_storage.allowed_count == KVM_MOCK_MOST_FUNCTIONS)
		return -1;
	kvm_mock_storage.allowed[kvm_mock_storage.allowed_count++] = function;
	return 0;
}

/* Whether a request may have this function run, which what the storage itself does may have of any. */
KVM_MOCK bool kvm_mock_is_allowed(uintptr_t function)
{
	for (int i = 0; i < kvm_mock_storage.allowed_count; i++)
		if (kvm_mock_storage.allowed[i] == function)
			return true;
	if (!kvm_mock_storage.runs)
		fprintf(stderr, "storage: main() has not allowed this function (storage_allow)\n");
	return kvm_mock_storage.runs;
}

KVM_MOCK long kvm_mock_storage_call(kvm_storage_func function, size_t n, const struct virtbuffer *buffers, void *result,
				    size_t room)
{
	struct virtbuffer copies[64];

	if (kvm_mock_storage.runs || n > 64 || !kvm_mock_is_allowed((uintptr_t)function))
		return -1;
	for (size_t i = 0; i < n; i++) {
		copies[i].len = buffers[i].len;
		copies[i].data = kvm_mock_copy_of(buffers[i].data, buffers[i].len);
	}
	kvm_mock_storage.runs = 1;
	kvm_mock_storage.returned = 0;
	kvm_mock_storage.result = result;
	kvm_mock_storage.room = room;
	kvm_mock_storage.len = 0;
	if (!setjmp(kvm_mock_storage.end))
		function(n, copies, room);
	kvm_mock_storage.runs = 0;
	for (size_t i = 0; i < n; i++)
		free(copies[i].data);
	return kvm_mock_storage.len;
}

KVM_MOCK long kvm_mock_storage_return(const void *data, size_t len)
{
	if (kvm_mock_storage.returned)
		return -1;
	if (kvm_mock_storage.room > 0 && len > kvm_mock_storage.room) {
		kvm_mock_storage.len = -1;
		return -1;
	}
	kvm_mock_storage.returned = 1;
	if (kvm_mock_storage.room > 0 && len > 0)
		memcpy(kvm_mock_storage.result, data, len);
	kvm_mock_storage.len = kvm_mock_storage.room > 0 ? (long)len : 0;
	return (long)len;
}

KVM_MOCK long kvm_mock_storage_task(kvm_storage_task_func function, const void *data, size_t len)
{
	const int outer = kvm_mock_storage.runs;
	void *copy;

	if (len > 64 << 10 || !kvm_mock_is_allowed((uintptr_t)function))
		return -1;
	copy = kvm_mock_copy_of(data, len);
	kvm_mock_storage.runs = 1;
	function(copy, len);
	kvm_mock_storage.runs = outer;
	free(copy);
	return 1;
}

/* ------------------------------------------------------------------ shared memory */

KVM_MOCK long kvm_mock_shared_area(unsigned long *end)
{
	const size_t len = 1 << 20;

	if (!kvm_mock.shared) {
		void *const area = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

		if (area == MAP_FAILED)
			return 0;
		kvm_mock.shared = (char *)area;
	}
	*end = (unsigned long)(kvm_mock.shared + len);
	return (long)kvm_mock.shared;
}

/* ------------------------------------------------------------------ the host's side of a call */

#include "kvm_mock_fetch.h"
#include "kvm_mock_regex.h"

KVM_MOCK long kvm_mock_call(unsigned number, uintptr_t a0, uintptr_t a1, uintptr_t a2, uintptr_t a3, uintptr_t a4,
			    uintptr_t a5)
{
	switch (number) {
	case KVM_HC_REGISTER_FUNC:
		if (kvm_mock.serving)
			return -EPERM;
		if (a0 >= KVM_MOCK_SLOTS || a0 == KVM_SLOT_SOCKET_PAUSE)
			return -ENOSYS;
		kvm_mock.handler[a0] = a1;
		return 0;
	case KVM_HC_WAIT_FOR_REQUESTS:
		kvm_mock_serve(false);
		return 0;
	case KVM_HC_WAIT_FOR_REQUESTS_PAUSED:
		kvm_mock_serve(true);
		*(struct kvm_request *)a0 = kvm_mock.request;
		return 0;
	case KVM_HC_BACKEND_RESPONSE:
		kvm_mock_respond((int16_t)a0, (const char *)a1, a2, (const void *)a3, a4,
				 (const struct kvm_response_extra *)a5);
	case KVM_HC_SET_CACHEABLE:
		return kvm_mock.serving && !kvm_mock.begun ? 0 : -1;
	case KVM_HC_HTTP_APPEND:
	case KVM_HC_HTTP_SET:
		return kvm_mock_change(a0, (const char *)a1, a2, number == KVM_HC_HTTP_APPEND);
	case KVM_HC_HTTP_FIND:
		return kvm_mock_find(a0, (const char *)a1, a2, (char *)a3, a4);
	case KVM_HC_HTTP_METHOD:
		return kvm_mock.serving ? kvm_mock_copy(kvm_mock.request.method, (char *)a0, a1) : -1;
	case KVM_HC_SHARED_MEMORY_AREA:
		return kvm_mock_shared_area((unsigned long *)a0);
	case KVM_HC_MAKE_EPHEMERAL:
		return a0 ? 0 : kvm_mock.serving ? -EPERM : -ENOSYS;
	case KVM_HC_LOG:
		fprintf(stderr, "%.*s\n", (int)a1, (const char *)a0);
		return 0;
	case KVM_HC_IS_STORAGE:
		return kvm_mock_storage.runs;
	case KVM_HC_STORAGE_ALLOW:
		return kvm_mock_storage_allow(a0);
	case KVM_HC_STORAGE_CALLV:
		return kvm_mock_storage_call((kvm_storage_func)a0, a1, (const struct virtbuffer *)a2, (void *)a3, a4);
	case KVM_HC_STORAGE_TASK:
		return kvm_mock_storage_task((kvm_storage_task_func)a0, (const void *)a1, a2);
	case KVM_HC_STORAGE_TASK_STOP:
		return -1;
	case KVM_HC_STORAGE_RETURN:
	case KVM_HC_STORAGE_NORETURN:
		if (!kvm_mock_storage.runs)
			break;
		a2 = (uintptr_t)kvm_mock_storage_return((const void *)a0, a1);
		if (number == KVM_HC_STORAGE_RETURN)
			return (long)a2;
		longjmp(kvm_mock_storage.end, 1);
	case KVM_HC_REGEX_COMPILE:
		return kvm_mock_regex_compile((const char *)a0, a1);
	case KVM_HC_REGEX_FREE:
		return kvm_mock_regex_free(a0);
	case KVM_HC_REGEX_MATCH:
		return kvm_mock_regex_match(a0, (const char *)a1, a2);
	case KVM_HC_REGEX_SUBST:
		return kvm_mock_regex_subst(a0, (const struct kvm_regex_subst *)a1, a2);
	case KVM_HC_REGEX_COPYTO:
		return kvm_mock_regex_copyto(a0, (const struct kvm_regex_copyto *)a1, a2);
	case KVM_HC_FETCH:
	case KVM_HC_SELF_REQUEST:
		return kvm_mock_fetch((const char *)a0, a1, (struct curl_op *)a2, (const struct curl_options *)a4);
	case KVM_HC_FETCH_BEGIN:
		return kvm_mock_fetch_begin((const struct kvm_fetch *)a0);
	case KVM_HC_FETCH_HEAD:
		return kvm_mock_fetch_head(a0, (struct kvm_fetch_head *)a1, (char *)a2, a3);
	case KVM_HC_FETCH_READ:
		return kvm_mock_fetch_read(a0, (void *)a1, a2);
	case KVM_HC_FETCH_CLOSE:
		return kvm_mock_fetch_close(a0);
	case KVM_HC_IS_DEBUG:
	case KVM_HC_BREAKPOINT:
		return 0;
	case KVM_HC_BEGIN_STREAMING_RESPONSE:
		kvm_mock_stream((int16_t)a0, (const char *)a1, a2, a3, (kvm_stream_func)a4, (void *)a5);
	default:
		return -ENOSYS;
	}
	if (number == KVM_HC_STORAGE_NORETURN)
		kvm_mock_fails("storage_noreturn() outside of a call of storage");
	return -ENOSYS;
}

#ifdef __cplusplus
}
#endif

#endif /* KVM_API_MOCK_H */
