// Has a URL fetched, which is the request's argument, and answers with what came.
#include <kvm_api.h>

static void handler(const char *url, const char *arg)
{
	struct curl_op op = {0};

	(void)url;
	if (arg[0] && sys_fetch(arg, __builtin_strlen(arg), &op, NULL, NULL))
		backend_response_str(502, "text/plain", "no answer\n");
	backend_response(200, "text/plain", 10, op.content, op.content_length);
}

int main(void)
{
	set_backend_get(handler);
	wait_for_requests();
}
