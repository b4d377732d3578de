// main() returns, and the state stays usable: no exit handler or destructor has run, and what stdio holds
// back has not been written.

#include "query.h"

#include <stdio_ext.h>

static int at_exit_runs, destructor_runs;
static FILE *stream;
static char *stream_text;
static size_t stream_len;
static char *from_heap;

static void at_exit(void)
{
	at_exit_runs++;
}

__attribute__((destructor)) static void destructor(void)
{
	destructor_runs++;
}

KVM_EXPORT void my_backend(const char *url)
{
	(void)url;
	fprintf(stream, "request");
	fclose(stream);
	say("atexit %d destructor %d pending %zu stream %s heap %s\n", at_exit_runs, destructor_runs,
	    __fpending(stdout), stream_text, from_heap);
	done(200);
}

int main(void)
{
	static char buffer[1024];

	atexit(at_exit);
	setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
	printf("held back"); // 9 bytes, not flushed
	stream = open_memstream(&stream_text, &stream_len);
	fprintf(stream, "main+");
	from_heap = strdup("kept");
	return 0;
}
