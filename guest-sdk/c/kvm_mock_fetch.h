/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * kvm_mock_fetch.h: fetches of kvm_api_mock.h, which includes this file. Nothing is asked of anybody: what a URL answers, or a path
 * of the program's own Varnish, is in a file that an argument names,
 *
 *     ./program-native --fetch http://api.example/name=name.txt /
 *
 * with the response's head, as "curl -i" prints it, or the body alone. What is not named can't be reached (-EACCES).
 */
#ifndef KVM_MOCK_FETCH_H
#define KVM_MOCK_FETCH_H

#ifndef KVM_API_MOCK_H
#error "include kvm_api.h, with -DKVM_API_MOCK"
#endif

#include <sys/mman.h>

enum { KVM_MOCK_MOST_FETCHES = 8 };

/* A response. */
struct kvm_mock_fetched {
	char *file; /* all of it; NULL: there is none */
	uint32_t status;
	char *lines; /* its headers, each with its line end */
	size_t lines_len;
	const char *body;
	size_t body_len, read;
};
KVM_MOCK struct kvm_mock_fetched kvm_mock_open[KVM_MOCK_MOST_FETCHES];

/* Copies a header line, as the host gives it: the name in lower case, one blank behind its colon. */
KVM_MOCK char *kvm_mock_header_line(char *out, const char *line, const char *end)
{
	while (line < end && *line != ':')
		*out++ = *line >= 'A' && *line <= 'Z' ? *line++ | 32 : *line++;
	if (line < end)
		line++;
	*out++ = ':';
	*out++ = ' ';
	while (line < end && (*line == ' ' || *line == '\t'))
		line++;
	while (line < end)
		*out++ = *line++;
	memcpy(out, "\r\n", 2);
	return out + 2;
}

/* Reads a response's head, if it has one. */
KVM_MOCK void kvm_mock_head_of(struct kvm_mock_fetched *response, char *file, size_t len)
{
	char *at = file, *const end = file + len, *out;

	response->status = 200;
	response->body = file;
	response->body_len = len;
	response->lines = out = (char *)malloc(2 * len + 4);
	if (!out)
		abort();
	if (len >= 5 && !memcmp(file, "HTTP/", 5)) {
		const char *const status = (const char *)memchr(file, ' ', len);

		response->status = status ? (uint32_t)strtoul(status, NULL, 10) : 0;
		while (at < end) {
			char *const line = at, *const next = (char *)memchr(at, '\n', (size_t)(end - at));
			const char *stop = next ? next : end;

			at = next ? next + 1 : end;
			if (stop > line && stop[-1] == '\r')
				stop--;
			if (stop == line)
				break;
			if (line > file)
				out = kvm_mock_header_line(out, line, stop);
		}
		response->body = at;
		response->body_len = (size_t)(end - at);
	}
	response->lines_len = (size_t)(out - response->lines);
}

/* 0, or a negative errno. */
KVM_MOCK long kvm_mock_fetch_url(const char *url, size_t url_len, struct kvm_mock_fetched *response)
{
	size_t len, file_len;
	char *const arguments = kvm_mock_read("/proc/self/cmdline", &len), *at = arguments, *const end = at + len;
	bool named = false;

	memset(response, 0, sizeof *response);
	for (at += strlen(at) + 1; at < end; at += strlen(at) + 1) {
		if (named && !strncmp(at, url, url_len) && at[url_len] == '=') {
			response->file = kvm_mock_read(at + url_len + 1, &file_len);
			kvm_mock_head_of(response, response->file, file_len);
			free(arguments);
			return 0;
		}
		named = !strcmp(at, "--fetch");
	}
	free(arguments);
	fprintf(stderr, "fetch failed: there is no --fetch %.*s=FILE\n", (int)url_len, url);
	return -EACCES;
}

KVM_MOCK void kvm_mock_fetch_drop(struct kvm_mock_fetched *response)
{
	free(response->file);
	free(response->lines);
	memset(response, 0, sizeof *response);
}

/* ------------------------------------------------------------------ in one call */

/* A copy that the program may munmap(), with a NUL behind it. */
KVM_MOCK void *kvm_mock_mapped(const char *data, size_t len)
{
	void *const copy = mmap(NULL, len + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (copy == MAP_FAILED)
		abort();
	memcpy(copy, data, len);
	return copy;
}

/* How many bytes of header lines fit, none of them cut. */
KVM_MOCK size_t kvm_mock_fitting(const struct kvm_mock_fetched *response, size_t room)
{
	size_t len = response->lines_len < room ? response->lines_len : room;

	while (len > 0 && response->lines[len - 1] != '\n')
		len--;
	return len;
}

KVM_MOCK long kvm_mock_fetch(const char *url, size_t url_len, struct curl_op *op, const struct curl_options *options)
{
	const bool dummy = options && options->dummy_fetch;
	struct kvm_mock_fetched response;
	static const char type[] = "content-type: ";
	const char *line;
	long got;

	if (options && options->interface)
		return -EINVAL;
	got = kvm_mock_fetch_url(url, url_len, &response);
	if (got < 0)
		return got;
	if (!dummy && op->content && response.body_len > op->content_length) {
		kvm_mock_fetch_drop(&response);
		return -EMSGSIZE;
	}
	op->status = response.status;
	if (op->headers) {
		op->headers_length = (uint32_t)kvm_mock_fitting(&response, op->headers_length);
		memcpy(op->headers, response.lines, op->headers_length);
	} else {
		op->headers_length = (uint32_t)response.lines_len;
		op->headers = (char *)kvm_mock_mapped(response.lines, response.lines_len);
	}
	if (dummy)
		op->content = NULL;
	else if (op->content)
		memcpy(op->content, response.body, response.body_len);
	else
		op->content = kvm_mock_mapped(response.body, response.body_len);
	op->content_length = dummy ? 0 : (uint32_t)response.body_len;
	memset(op->ctype, 0, sizeof op->ctype);
	op->ctlen = 0;
	for (line = response.lines; line < response.lines + response.lines_len; line = strchr(line, '\n') + 1) {
		if (!strncmp(line, type, sizeof type - 1) && !op->ctlen) {
			const size_t len = strcspn(line + sizeof type - 1, "\r");

			op->ctlen = (uint32_t)(len < sizeof op->ctype ? len : sizeof op->ctype - 1);
			memcpy(op->ctype, line + sizeof type - 1, op->ctlen);
		}
	}
	kvm_mock_fetch_drop(&response);
	return 0;
}

/* ------------------------------------------------------------------ in parts */

KVM_MOCK struct kvm_mock_fetched *kvm_mock_fetch_of(uintptr_t number)
{
	return number >= 1 && number <= KVM_MOCK_MOST_FETCHES && kvm_mock_open[number - 1].file ? &kvm_mock_open[number - 1] : NULL;
}

KVM_MOCK long kvm_mock_fetch_begin(const struct kvm_fetch *what)
{
	int i = 0;
	long got;

	if (!kvm_mock.serving)
		return -EPERM;
	while (i < KVM_MOCK_MOST_FETCHES && kvm_mock_open[i].file)
		i++;
	if (i == KVM_MOCK_MOST_FETCHES)
		return -EMFILE;
	got = kvm_mock_fetch_url(what->url, what->url_len, &kvm_mock_open[i]);
	return got < 0 ? got : i + 1;
}

KVM_MOCK long kvm_mock_fetch_head(uintptr_t number, struct kvm_fetch_head *head, char *headers, size_t room)
{
	const struct kvm_mock_fetched *const response = kvm_mock_fetch_of(number);

	if (!response)
		return -EBADF;
	if (headers && response->lines_len > room)
		return -EMSGSIZE;
	if (headers)
		memcpy(headers, response->lines, response->lines_len);
	head->status = response->status;
	head->headers_len = (uint32_t)response->lines_len;
	head->content_len = (int64_t)response->body_len;
	return 0;
}

KVM_MOCK long kvm_mock_fetch_read(uintptr_t number, void *out, size_t room)
{
	const size_t most = room < (64 << 10) ? room : 64 << 10;
	struct kvm_mock_fetched *const response = kvm_mock_fetch_of(number);
	size_t len;

	if (!response)
		return -EBADF;
	len = response->body_len - response->read < most ? response->body_len - response->read : most;
	memcpy(out, response->body + response->read, len);
	response->read += len;
	return (long)len;
}

KVM_MOCK long kvm_mock_fetch_close(uintptr_t number)
{
	struct kvm_mock_fetched *const response = kvm_mock_fetch_of(number);

	if (!response)
		return -EBADF;
	kvm_mock_fetch_drop(response);
	return 0;
}

#endif /* KVM_MOCK_FETCH_H */
