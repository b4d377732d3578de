// Registered style with a handler each for GET (not with the argument --post-only) and POST, and one for errors, which /die
// asks for.

#include "query.h"

static void on_get(const char *url, const char *arg)
{
	if (path_is(url, "/die"))
		__builtin_trap();
	say("get %s arg %s\n", url, arg);
	done(200);
}

static void on_post(const char *url, const char *arg, const char *content_type, const uint8_t *data, size_t len)
{
	if (path_is(url, "/die"))
		__builtin_trap();
	say("post %s arg %s type %s len %zu crc32 %08x\n", url, arg, content_type, len, crc32_of(data, len));
	done(200);
}

static void on_error(const char *url, const char *arg, const char *exception)
{
	say("error %s arg %s: %s\n", url, arg, exception && *exception ? "with a text" : "without a text");
	done(503);
}

int main(int argc, char **argv)
{
	if (argc < 2 || strcmp(argv[1], "--post-only"))
		set_backend_get(on_get);
	set_backend_post(on_post);
	set_on_error(on_error);
	wait_for_requests();
}
