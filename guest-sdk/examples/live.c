// A page about failures and live updates, in two versions of one program (VERSION is 1 or 2): shows which one runs, has
// buttons that replace it, and shows what another tenant's program answers when it crashes. What the buttons do is in
// vcl/demo.vcl, which also tells the versions: this one in the header X-Version, the one before in the URL.

#include <kvm_api.h>

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#ifndef VERSION
#define VERSION 1
#endif

enum { SHORT = 12 };

static char page[16 << 10];
static size_t page_len;

static void html(const char *text)
{
	const size_t len = strlen(text);

	if (len < sizeof page - page_len) {
		memcpy(page + page_len, text, len + 1);
		page_len += len;
	}
}

// The version at the start of a text: hexadecimal digits, or "" if there is none.
static void version_in(const char *text, char out[SHORT + 1])
{
	size_t n = 0;

	while (n < SHORT && isxdigit((unsigned char)text[n])) {
		out[n] = text[n];
		n++;
	}
	out[n] = '\0';
}

static const char STYLE[] =
	"<!doctype html>\n"
	"<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
	"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
	"<title>upizza.com: crashes and updates</title>\n"
	"<style>\n"
	":root{color-scheme:light dark;--ink:#1c2430;--dim:#5d6878;--paper:#f6f7f9;--card:#fff;--line:#dfe3e8;--link:#1257b8;--v1:#1257b8;--v2:#1b7f4b}\n"
	"@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--dim:#97a3b4;--paper:#12161c;--card:#1a2029;--line:#2b3340;--link:#7db2ff;--v1:#7db2ff;--v2:#66d39b}}\n"
	"*{box-sizing:border-box}\n"
	"body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}\n"
	"main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem}\n"
	"h1{font-size:2rem;line-height:1.2;margin:0 0 .5rem}h2{font-size:1.1rem;margin:2.2rem 0 .7rem}\n"
	"p{margin:.4rem 0;color:var(--dim);max-width:44rem}a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}\n"
	".card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem}\n"
	".now{border-left:6px solid var(--v)}.now b{font-size:1.6rem;color:var(--v)}\n"
	"code{font:14px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}\n"
	"form{display:inline-block;margin:.8rem .6rem 0 0}\n"
	"button{font:inherit;padding:.45rem 1rem;border-radius:8px;border:1px solid var(--line);background:var(--paper);color:var(--ink);cursor:pointer}\n"
	"button:hover{border-color:var(--dim)}\n"
	".cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:1rem;margin:.9rem 0}\n"
	".cards p{font-size:.92rem;margin:.2rem 0 .6rem}\n"
	"iframe{width:100%;height:3.4rem;border:1px solid var(--line);border-radius:6px;background:#fff;color-scheme:light;display:block}\n"
	"</style></head><body><main>\n";

static const char CRASHES[] =
	"<h2>tpizza.com crashes, just now</h2>\n"
	"<p>Each frame is a request to the same program. It dies in three ways; its client gets a plain 500, the log gets the "
	"reason, and the request after them finds the program as new.</p>\n"
	"<div class=\"cards\">\n"
	"<div class=\"card\"><b><a href=\"/t/null-write\">/t/null-write</a></b><p>Writes to address 0.</p>"
	"<iframe title=\"null-write\" src=\"/t/null-write\"></iframe></div>\n"
	"<div class=\"card\"><b><a href=\"/t/stack-overflow\">/t/stack-overflow</a></b><p>Calls itself without end.</p>"
	"<iframe title=\"stack-overflow\" src=\"/t/stack-overflow\"></iframe></div>\n"
	"<div class=\"card\"><b><a href=\"/t/loop\">/t/loop</a></b><p>Never ends; it has a second.</p>"
	"<iframe title=\"loop\" src=\"/t/loop\"></iframe></div>\n"
	"<div class=\"card\"><b><a href=\"/t/ok\">/t/ok</a></b><p>Answers.</p>"
	"<iframe title=\"ok\" src=\"/t/ok\"></iframe></div>\n"
	"</div>\n"
	"<p><a href=\"/t/list\">All ways to die</a> &middot; <a href=\"/\">the other tenants</a></p>\n"
	"</main></body></html>\n";

static void on_request(const struct kvm_request *request)
{
	static const char csp[] = "Content-Security-Policy: default-src 'none'; frame-src 'self'; "
				  "style-src 'unsafe-inline'; form-action 'self'";
	const struct kvm_response_header headers[] = {{csp, sizeof csp - 1}};
	const struct kvm_response_extra extra = {.headers = headers, .num_headers = 1};
	const char *given = strstr(request->url, "?before=");
	char value[128], now[SHORT + 1], before[SHORT + 1], text[700];

	http_find_value("X-Version", value, sizeof value);
	version_in(value, now);
	version_in(given ? given + 8 : "", before);

	html(STYLE);
	html("<h1>Crash it, update it</h1>\n"
	     "<p>Programs fail, and programs change. Neither is anybody else's business.</p>\n"
	     "<h2>upizza.com, live</h2>\n");
	snprintf(text, sizeof text,
		 "<div class=\"card now\" style=\"--v:var(--v%d)\"><b>Version %d</b> made this page.\n"
		 "<p>Its program is <code>%s</code>", VERSION, VERSION, now[0] ? now : "unknown");
	html(text);
	if (before[0] && strcmp(before, now) != 0) {
		snprintf(text, sizeof text, ", and took the place of <code>%s</code> a moment ago. Whoever was being "
			 "served meanwhile got an answer from the one or the other", before);
		html(text);
	} else if (before[0]) {
		html(", as before: that very program runs already");
	}
	html(".</p>\n"
	     "<form method=\"post\" action=\"/u/update\"><button>Update to version 2</button></form>\n"
	     "<form method=\"post\" action=\"/u/rollback\"><button>Go back</button></form></div>\n");
	html(CRASHES);
	backend_response_extra(200, "text/html; charset=utf-8", 24, page, page_len, &extra);
}

int main(void)
{
	set_backend_request(on_request);
	wait_for_requests();
}
