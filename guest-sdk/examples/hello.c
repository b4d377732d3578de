// The smallest program: one function that answers, and a main() that has nothing to set up.
#include <kvm_api.h>

KVM_EXPORT void my_backend(const char *url)
{
	(void)url;
	backend_response_str(200, "text/plain", "Hello, World!\n");
}

int main(void)
{
	return 0;
}
