// A streamed response, /N: N bytes, the byte at place i is (i * 31 + (i >> 8)) & 0xff. And a streamed POST
// body, of which it answers the length, the number of parts and the CRC-32 when it is complete: the last call
// has a length of 0.

#include "query.h"

static uint8_t part[64 << 10];
static uint32_t crc = ~0u;
static size_t received;
static int parts;

static struct kvm_stream_part next_part(void *arg, size_t max, size_t written, size_t total)
{
	size_t len = total - written;

	(void)arg;
	if (len > max)
		len = max;
	if (len > sizeof part)
		len = sizeof part;
	for (size_t i = 0; i < len; i++)
		part[i] = (uint8_t)((written + i) * 31 + ((written + i) >> 8));
	return (struct kvm_stream_part){part, len};
}

static void on_get(const char *url, const char *arg)
{
	(void)arg;
	begin_streaming_response(200, "application/octet-stream", 24, strtoul(url + 1, NULL, 10), next_part, NULL);
}

static long on_part(const char *url, const char *arg, const char *type, const uint8_t *segment, size_t len,
		    size_t offset)
{
	(void)url, (void)arg, (void)type;
	if (len == 0) {
		say("len %zu parts %d crc32 %08x\n", received, parts, ~crc);
		done(200);
	}
	if (offset != received)
		__builtin_trap();
	for (size_t i = 0; i < len; i++) {
		crc ^= segment[i];
		for (int k = 0; k < 8; k++)
			crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
	}
	received += len;
	parts++;
	return (long)len;
}

int main(void)
{
	set_backend_get(on_get);
	set_backend_stream_post(on_part);
	wait_for_requests();
}
