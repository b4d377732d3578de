// A program whose requests find what earlier ones have left, if it may be that. What each URL does: README.md.
#include "query.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static long counter;
static char said[128]; // what make_ephemeral() returned in main()
static char *hoard;
static volatile long depth;

static struct streaming_content part(void *arg, size_t max, size_t written, size_t total)
{
	static char bytes[10000];

	(void)max, (void)total;
	counter++;
	if ((long)written >= (long)sizeof bytes * (intptr_t)arg)
		return (struct streaming_content){ NULL, 0 };
	if ((intptr_t)arg == 3 && written == 2 * sizeof bytes)
		__builtin_trap();
	return (struct streaming_content){ bytes, sizeof bytes };
}

static void on_error(const char *url, const char *arg, const char *failure)
{
	(void)url, (void)arg, (void)failure;
	answer_len = 0;
	say("failed %ld\n", ++counter);
	done(500);
}

static void on_post(const char *url, const char *arg, const char *type, const uint8_t *data, size_t len)
{
	(void)url, (void)arg, (void)type;
	answer_len = 0;
	say("%ld %zu %p\n", ++counter, len, (const void *)data);
	done(200);
}

static void on_get(const char *url, const char *arg)
{
	const char *number;

	(void)arg;
	answer_len = 0; // what was said before is still there
	if (path_is(url, "/count")) {
		say("%ld\n", ++counter);
	} else if (path_is(url, "/main")) {
		say("%s\n", said);
	} else if (path_is(url, "/forget")) {
		const long result = make_ephemeral(true);
		say("%ld %ld\n", result, ++counter);
	} else if (path_is(url, "/late")) {
		say("%ld\n", make_ephemeral(false));
	} else if (path_is(url, "/crash")) {
		counter += 1000;
		__builtin_trap();
	} else if (path_is(url, "/exit")) {
		counter += 1000;
		_exit(0);
	} else if (path_is(url, "/hang")) {
		counter += 1000;
		for (;;)
			depth++;
	} else if (path_is(url, "/bad")) {
		counter += 1000;
		backend_response(99, "", 0, "", 0);
	} else if (path_is(url, "/long")) {
		// More than max_response_size.
		counter += 1000;
		backend_response(200, "text/plain", 10, malloc(3 << 20), 3 << 20);
	} else if ((number = after(url, "/hoard/"))) {
		// Keeps so many MiB more.
		const size_t len = strtoul(number, NULL, 10) << 20;
		char *const more = malloc(len);
		if (more)
			memset(more, 7, len);
		hoard = more;
		say("%ld %s\n", ++counter, more ? "had" : "none");
	} else if (path_is(url, "/open")) {
		say("%d\n", open("/dev/zero", O_RDONLY));
	} else if (path_is(url, "/cwd")) {
		char cwd[64];
		say("%s\n", getcwd(cwd, sizeof cwd));
		chdir("/tmp");
	} else if ((number = after(url, "/file/"))) {
		// Writes so many MiB more to a file.
		static char mebibyte[1 << 20];
		const int fd = open("/tmp/kept", O_WRONLY | O_CREAT | O_APPEND, 0600);
		long n = strtol(number, NULL, 10), written = 0;
		while (n-- > 0 && write(fd, mebibyte, sizeof mebibyte) == sizeof mebibyte)
			written++;
		say("%ld %ld %ld\n", ++counter, written, (long)lseek(fd, 0, SEEK_END) >> 20);
		close(fd);
	} else if ((number = after(url, "/stream/"))) {
		begin_streaming_response(200, "text/plain", 10, 0, part, (void *)strtol(number, NULL, 10));
	} else if (path_is(url, "/regex")) {
		say("%ld\n", regex_compile("a", 1));
	} else if (path_is(url, "/echo")) {
		say("%ld\n", ++counter);
		static char body[1 << 20];
		memset(body, 'a' + counter % 26, sizeof body);
		backend_response(200, "text/plain", 10, body, sizeof body);
	} else {
		say("no such test\n");
		done(404);
	}
	done(200);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "--keep"))
			snprintf(said + strlen(said), sizeof said - strlen(said), "%ld ", make_ephemeral(false));
		else if (!strcmp(argv[i], "--forget"))
			snprintf(said + strlen(said), sizeof said - strlen(said), "%ld ", make_ephemeral(true));
		else if (!strcmp(argv[i], "--on-error"))
			set_on_error(on_error);
	set_backend_get(on_get);
	set_backend_post(on_post);
	wait_for_requests();
}
