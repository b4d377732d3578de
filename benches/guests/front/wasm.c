// A WebAssembly module: the host writes the URL to url_buffer(), calls answer(), and reads the structure it points to.
#include "../program.h"

#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))

static char url[4096];
static struct {
	uint32_t type, type_len, body, body_len;
} result;

EXPORT("url_buffer") char *url_buffer(void)
{
	return url;
}

EXPORT("prepare") void wasm_prepare(void)
{
	prepare();
}

EXPORT("answer") const void *wasm_answer(void)
{
	const struct answer a = respond(url);

	result.type = (uint32_t)(uintptr_t)a.type;
	result.type_len = (uint32_t)__builtin_strlen(a.type);
	result.body = (uint32_t)(uintptr_t)a.body;
	result.body_len = (uint32_t)a.len;
	return &result;
}
