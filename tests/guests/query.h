// What the test programs share: text for answers, and parameters from a URL.
#ifndef QUERY_H
#define QUERY_H

#include <kvm_api.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The answer, made by say() line by line, sent by done().
static char answer[256 << 10];
static size_t answer_len;

__attribute__((format(printf, 1, 2), unused)) static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	const int n = vsnprintf(answer + answer_len, sizeof answer - answer_len, format, args);
	va_end(args);
	answer_len += n;
	if (answer_len >= sizeof answer)
		answer_len = sizeof answer - 1;
}

__attribute__((unused, noreturn)) static void done(int16_t status)
{
	backend_response(status, "text/plain", 10, answer, answer_len);
}

// Whether the path of the URL is `path`.
__attribute__((unused)) static bool path_is(const char *url, const char *path)
{
	const size_t len = strcspn(url, "?");

	return len == strlen(path) && !memcmp(url, path, len);
}

// What follows `prefix` in the URL, or NULL.
__attribute__((unused)) static const char *after(const char *url, const char *prefix)
{
	const size_t len = strlen(prefix);

	return strncmp(url, prefix, len) ? NULL : url + len;
}

static inline int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

// The next `name=value` of the query string after *from (the URL at first), decoded; its length, or -1.
// The value may hold NULs.
__attribute__((unused)) static long parameter(const char **from, const char *name, char *value, size_t size)
{
	const size_t name_len = strlen(name);

	for (const char *p = strpbrk(*from, "?&"); p; p = strchr(p, '&')) {
		size_t len = 0;

		p++;
		if (strncmp(p, name, name_len) || p[name_len] != '=')
			continue;
		for (p += name_len + 1; *p && *p != '&' && len + 1 < size; p++) {
			if (*p == '%' && hex_digit(p[1]) >= 0 && hex_digit(p[2]) >= 0) {
				value[len++] = (char)(hex_digit(p[1]) << 4 | hex_digit(p[2]));
				p += 2;
			} else {
				value[len++] = *p == '+' ? ' ' : *p;
			}
		}
		value[len] = '\0';
		*from = p;
		return (long)len;
	}
	return -1;
}

// CRC-32 as in zlib and gzip, and FNV-1a of 64 bits.
__attribute__((unused)) static uint32_t crc32_of(const uint8_t *data, size_t len)
{
	static uint32_t table[256];
	uint32_t crc = ~0u;

	if (!table[1]) {
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t c = i;
			for (int k = 0; k < 8; k++)
				c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
			table[i] = c;
		}
	}
	for (size_t i = 0; i < len; i++)
		crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
	return ~crc;
}

__attribute__((unused)) static uint64_t fnv1a_of(const uint8_t *data, size_t len)
{
	uint64_t hash = 0xcbf29ce484222325;

	for (size_t i = 0; i < len; i++)
		hash = (hash ^ data[i]) * 0x100000001b3;
	return hash;
}

#endif
