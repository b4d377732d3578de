// Uses every function of kvm_api.h once, so that the compiler sees them all; C and C++. Never run.

#include <kvm_api.h>
#include <kvm_api.h> // twice is once

static void on_get(const char *url, const char *arg)
{
	char value[64];

	(void)arg;
	http_append(BERESP, url, 1);
	http_set(KVM_RESPONSE, url, 1);
	http_append_str(KVM_RESPONSE, "X-A: b");
	http_set_str(KVM_RESPONSE, "X-A");
	http_find(BEREQ, url, 1, value, sizeof value);
	http_find_value("Host", value, sizeof value);
	http_method(value, sizeof value);
	set_cacheable(true, 60, 10.5, 0);
	set_cacheable(vcpuid() == vcpureqid(), 60);
	set_cacheable(false);
	backend_response_str(200, "text/plain", value);
}

static void on_post(const char *url, const char *arg, const char *type, const uint8_t *data, size_t len)
{
	(void)url, (void)arg;
	backend_response(200, type, 1, data, len);
}

static void on_request(const struct kvm_request *request)
{
	struct kvm_response_header header;
	struct kvm_response_extra extra = {&header, 1, true, 1, 2, 3, {0, 0, 0, 0}};

	header.field = request->headers[0].field;
	header.field_len = request->headers[0].len;
	backend_response_extra(200, request->content_type, request->content_type_len, request->content,
			       request->content_len, &extra);
}

static long on_stream(const char *url, const char *arg, const char *type, const uint8_t *segment, size_t len,
		      size_t offset)
{
	(void)url, (void)arg, (void)type, (void)segment, (void)offset;
	return (long)len;
}

static struct kvm_stream_part part(void *arg, size_t max, size_t written, size_t total)
{
	struct kvm_stream_part p;

	p.data = arg;
	p.len = total - written < max ? total - written : max;
	return p;
}

static void on_error(const char *url, const char *arg, const char *exception)
{
	(void)url, (void)arg;
	begin_streaming_response(500, "text/plain", 10, 4, part, (void *)(uintptr_t)exception);
}

static void on_update(void)
{
	storage_return("state", 5);
}

static void on_restore(size_t len)
{
	(void)len;
}

static void in_storage(size_t n, struct virtbuffer *buffers, size_t result_len)
{
	(void)n, (void)result_len;
	storage_noreturn(buffers[0].data, buffers[0].len);
}

static void task(void *data, size_t len)
{
	(void)data, (void)len;
}

KVM_EXPORT void my_backend(const char *url);
KVM_EXPORT void my_backend(const char *url)
{
	on_get(url, url);
}

KVM_EXPORT void my_post_backend(const char *url, const uint8_t *data, size_t len)
{
	on_post(url, url, url, data, len);
}

static void fetches(void)
{
	struct curl_op op;
	struct curl_fields fields;
	struct curl_options options;
	struct kvm_fetch what;
	struct kvm_fetch_head head;

	__builtin_memset(&op, 0, sizeof op);
	__builtin_memset(&fields, 0, sizeof fields);
	__builtin_memset(&options, 0, sizeof options);
	__builtin_memset(&what, 0, sizeof what);
	options.follow_location = curl_add_field(&fields, "X-A: b");
	fetch("http://a/", 9, &op, &fields, &options);
	sys_fetch("http://a/", 9, &op, NULL, NULL);
	self_request("/", 1, &op, NULL, NULL);
	sys_self_request("/", 1, &op, NULL, NULL);
	what.url = "http://a/";
	what.url_len = 9;
	fetch_head(fetch_begin(&what), &head, op.ctype, sizeof op.ctype);
	fetch_read(1, op.ctype, sizeof op.ctype);
	fetch_close(1);
}

int main(void)
{
	struct kvm_request request;
	struct kvm_meminfo info;
	struct virtbuffer buffer;
	struct kvm_shared_memory shared = shared_memory_area();
	const long regex = regex_compile("a+", 2);

	regex_match(regex, "aaa", 3);
	regex_free(regex);
	set_backend_get(on_get);
	set_backend_post(on_post);
	set_backend_request(on_request);
	set_backend_stream_post(on_stream);
	set_on_error(on_error);
	set_on_live_update(on_update);
	set_on_live_restore(on_restore);
	register_func(KVM_SLOT_GET, (uintptr_t)on_get);
	make_ephemeral(true);
	fetches();
	get_meminfo(&info);
	kvm_log("text", 4);
	kvm_log_str("text");
	breakpoint();
	buffer.data = shared.ptr;
	buffer.len = (size_t)((char *)shared.end - (char *)shared.ptr);
	storage_callv(in_storage, 1, &buffer, &info, sizeof info);
	storage_call(in_storage, "data", 4, &info, sizeof info);
	storage_task_stop(storage_task(task, "data", 4, 100, 0));
	if (is_storage())
		storage_allow(in_storage);
	if (!is_debug())
		wait_for_requests_paused(&request);
	wait_for_requests();
}
