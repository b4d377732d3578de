/* What the program in Zig calls: kvm_api.h has inline functions only, which Zig can't import. */
#include "kvm_api.h"

extern void kvm_handle(const char *url, size_t url_len);

static void on_request(const struct kvm_request *request)
{
	kvm_handle(request->url, request->url_len);
}

void kvm_serve(void)
{
	set_backend_request(on_request);
	wait_for_requests();
}

void kvm_respond(int16_t status, const char *content_type, const void *body, size_t len)
{
	backend_response(status, content_type, __builtin_strlen(content_type), body, len);
}
