// @NAME@: answers HTTP requests from inside a virtual machine. "make help" says what there is to do.
#include <kvm_api.h>

#include <string>

static std::string greeting;

// Each request: runs in a copy-on-write fork of the program as it was after main(), and ends with a response.
KVM_EXPORT void my_backend(const char *url)
{
	const std::string path(url), hello("/hello/");
	std::string text;

	if (path == "/")
		text = greeting + ", World!\n";
	else if (path.compare(0, hello.size(), hello) == 0)
		text = greeting + ", " + path.substr(hello.size()) + "!\n";
	else
		backend_response_str(404, "text/plain", "There is nothing here.\n");
	backend_response_str(200, "text/plain", text.c_str());
}

// The set-up: runs once. Nothing of it is destroyed when it returns.
int main()
{
	greeting = "Hello";
	return 0;
}
