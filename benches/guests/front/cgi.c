// A CGI program: one process, one request.
#include "../program.h"

#include <stdio.h>
#include <stdlib.h>

int main(void)
{
	const char *url = getenv("REQUEST_URI");

	prepare();
	const struct answer a = respond(url ? url : "/");

	printf("Content-Type: %s\r\nContent-Length: %zu\r\n\r\n", a.type, a.len);
	fwrite(a.body, 1, a.len, stdout);
	return 0;
}
