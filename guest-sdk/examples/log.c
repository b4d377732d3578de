// A log that is written while it is read: each line goes to the client when it is there.
//
//   /?lines=20&every=200    so many lines (1 to 1000), one every so many milliseconds (0 to 10000); as text
//   /events?…               the same as server-sent events
//   /page                   a page that shows them
//
// All of it is one request, and has the tenant's max_request_time.

#include <kvm_api.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char PAGE[] =
	"<!doctype html>\n"
	"<html lang=\"en\"><head><meta charset=\"utf-8\"><title>A log</title></head><body><h1>A log, as it is written</h1><pre id=\"log\"></pre>\n"
	"<script>\n"
	"const source = new EventSource('events?lines=20&every=200');\n"
	"source.onmessage = event => document.getElementById('log').append(event.data + '\\n');\n"
	"source.onerror = () => source.close();\n"
	"</script></body></html>\n";

struct log {
	long lines, every, written;
	bool events;
	char line[200];
};

static long parameter(const char *url, const char *name, long least, long most, long absent)
{
	const size_t len = strlen(name);

	for (const char *at = strchr(url, '?'); at; at = strchr(at, '&')) {
		char *end;
		long value;

		if (strncmp(++at, name, len) || at[len] != '=')
			continue;
		value = strtol(at + len + 1, &end, 10);
		if (end == at + len + 1 || (*end && *end != '&') || value < least || value > most)
			backend_response_str(400, "text/plain", "lines is 1 to 1000, every 0 to 10000\n");
		return value;
	}
	return absent;
}

// The host asks for more when the client has taken what there was.
static struct kvm_stream_part next_line(void *of, size_t max, size_t written, size_t total)
{
	struct log *log = of;
	struct kvm_stream_part part = {NULL, 0};
	struct timespec now;
	struct tm utc;
	char time[40];

	(void)max, (void)written, (void)total;
	if (log->written == log->lines)
		return part;
	if (log->written++ > 0)
		usleep((useconds_t)log->every * 1000);
	clock_gettime(CLOCK_REALTIME, &now);
	strftime(time, sizeof time, "%H:%M:%S", gmtime_r(&now.tv_sec, &utc));
	part.data = log->line;
	part.len = (size_t)snprintf(log->line, sizeof log->line, "%s%s.%03ld line %ld of %ld\n%s", log->events ? "data: " : "", time,
				    now.tv_nsec / 1000000, log->written, log->lines, log->events ? "\n" : "");
	return part;
}

static void on_get(const char *url, const char *arg)
{
	struct log log = {0}; // stays while the response is made

	(void)arg;
	if (!strcmp(url, "/page"))
		backend_response(200, "text/html; charset=utf-8", 24, PAGE, sizeof PAGE - 1);
	log.lines = parameter(url, "lines", 1, 1000, 20);
	log.every = parameter(url, "every", 0, 10000, 200);
	log.events = !strncmp(url, "/events", 7);
	if (log.events)
		begin_streaming_response(200, "text/event-stream", 17, 0, next_line, &log);
	begin_streaming_response(200, "text/plain", 10, 0, next_line, &log);
}

int main(void)
{
	set_backend_get(on_get);
	wait_for_requests();
}
