/* @NAME@: answers HTTP requests from inside a virtual machine. "make help" says what there is to do. */
#include <kvm_api.h>

#include <stdio.h>
#include <string.h>

static char greeting[32];

/* Each request: runs in a copy-on-write fork of the program as it was after main(), and ends with a response. */
KVM_EXPORT void my_backend(const char *url)
{
	char text[300];

	if (strcmp(url, "/") == 0)
		snprintf(text, sizeof text, "%s, World!\n", greeting);
	else if (strncmp(url, "/hello/", 7) == 0)
		snprintf(text, sizeof text, "%s, %.200s!\n", greeting, url + 7);
	else
		backend_response_str(404, "text/plain", "There is nothing here.\n");
	backend_response_str(200, "text/plain", text);
}

/* The set-up: runs once. */
int main(void)
{
	snprintf(greeting, sizeof greeting, "Hello");
	return 0;
}
