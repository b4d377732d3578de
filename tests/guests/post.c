// Symbol style with both functions.

#include "query.h"

KVM_EXPORT void my_backend(const char *url)
{
	say("get %s\n", url);
	done(200);
}

KVM_EXPORT void my_post_backend(const char *url, const uint8_t *data, size_t len)
{
	say("post %s len %zu crc32 %08x\n", url, len, crc32_of(data, len));
	done(200);
}

int main(void)
{
	return 0;
}
