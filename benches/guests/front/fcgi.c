// A FastCGI process that stays: as many threads as argv[1] says take connections from file descriptor 0.
#include "../program.h"

#include <fcgiapp.h>
#include <pthread.h>
#include <stdlib.h>

static void *serve(void *unused)
{
	FCGX_Request request;

	if (FCGX_InitRequest(&request, 0, 0) != 0)
		exit(1);
	while (FCGX_Accept_r(&request) == 0) {
		const char *url = FCGX_GetParam("REQUEST_URI", request.envp);
		const struct answer a = respond(url ? url : "/");

		FCGX_FPrintF(request.out, "Content-Type: %s\r\nContent-Length: %d\r\n\r\n", a.type, (int)a.len);
		FCGX_PutStr(a.body, (int)a.len, request.out);
		FCGX_Finish_r(&request);
	}
	return unused;
}

int main(int argc, char **argv)
{
	const int threads = argc > 1 ? atoi(argv[1]) : 1;

	prepare();
	if (FCGX_Init() != 0)
		return 1;
	for (int i = 1; i < threads; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, serve, NULL) != 0)
			return 1;
	}
	serve(NULL);
	return 0;
}
