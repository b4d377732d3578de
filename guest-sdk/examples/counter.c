// Every request counts, and every response says 1: each runs in a fork of the state after main().
#include <kvm_api.h>
#include <stdio.h>

static int counter = 0;

KVM_EXPORT void my_backend(const char *url)
{
	char text[32];

	(void)url;
	counter++;
	snprintf(text, sizeof text, "%d\n", counter);
	backend_response_str(200, "text/plain", text);
}

int main(void)
{
	return 0;
}
