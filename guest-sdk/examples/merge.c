// Asks several JSON APIs at once and merges what they say: main()'s arguments are NAME=URL, at most eight, and the answer is
// {"NAME": what that one has said, ...}, with null for one that has failed. The tenant's allow_net has to name them.

#include <kvm_api.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 8, MOST_BYTES = 256 << 10 };

static struct {
	const char *name, *url;
	long number; // of the fetch; negative if it could not be begun
} apis[MOST];
static int count;

// A response's room, which only grows as far as it is needed.
static char answer[MOST * (MOST_BYTES + 200) + 100];
static size_t answer_len;

static void add(const char *text)
{
	answer_len += (size_t)snprintf(answer + answer_len, sizeof answer - answer_len, "%s", text);
}

// Adds what an API has said, once all of it is there; false if it has failed.
static bool take(long number)
{
	const size_t begin = answer_len;
	struct kvm_fetch_head head;
	long n;

	if (number < 0 || fetch_head(number, &head, NULL, 0) < 0 || head.status != 200)
		return false;
	while ((n = fetch_read(number, answer + answer_len, begin + MOST_BYTES - answer_len)) > 0)
		if ((answer_len += (size_t)n) == begin + MOST_BYTES)
			break;
	if (n != 0 || answer_len == begin) {
		answer_len = begin;
		return false;
	}
	return true;
}

static void on_get(const char *url, const char *arg)
{
	(void)url, (void)arg;
	// All are asked before the first one is waited for.
	for (int i = 0; i < count; i++) {
		struct kvm_fetch what;

		memset(&what, 0, sizeof what);
		what.url = apis[i].url;
		what.url_len = (uint32_t)strlen(what.url);
		apis[i].number = fetch_begin(&what);
	}
	add("{");
	for (int i = 0; i < count; i++) {
		add(i ? ",\"" : "\"");
		add(apis[i].name);
		add("\":");
		if (!take(apis[i].number)) {
			vlogf("merge: nothing of %s", apis[i].name);
			add("null");
		}
	}
	add("}\n");
	backend_response(200, "application/json", 16, answer, answer_len);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc && count < MOST; i++) {
		char *equals = strchr(argv[i], '=');

		if (!equals || equals - argv[i] > 100 || strcspn(argv[i], "\"\\\n") < (size_t)(equals - argv[i]))
			continue;
		*equals = '\0';
		apis[count].name = argv[i];
		apis[count++].url = equals + 1;
	}
	if (count == 0) {
		fprintf(stderr, "main_arguments = \"NAME=URL NAME=URL\"\n");
		return 1;
	}
	set_backend_get(on_get);
	wait_for_requests();
}
