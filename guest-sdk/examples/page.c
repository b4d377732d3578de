// A page for visitors: shows the request as this program got it, and links the other examples. It uses the
// registered style: one handler for every method, with the headers at hand.

#include <kvm_api.h>

#include <stdio.h>
#include <string.h>

// The page is made here. It may only grow to the array's size; a request with more headers than fit is cut.
static char page[256 << 10];
static size_t page_len;

// The end of the page has to fit whatever came before.
enum { RESERVED_FOR_END = 4096 };
static size_t page_limit;

static void add(const char *text, size_t len)
{
	const size_t room = page_limit - page_len;

	if (len > room)
		len = room;
	memcpy(page + page_len, text, len);
	page_len += len;
}

static void html(const char *text)
{
	add(text, strlen(text));
}

// Everything from the request goes through this.
static void escaped(const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		switch (text[i]) {
		case '&': html("&amp;"); break;
		case '<': html("&lt;"); break;
		case '>': html("&gt;"); break;
		case '"': html("&quot;"); break;
		case '\'': html("&#39;"); break;
		default: add(text + i, 1);
		}
	}
}

static void number(size_t n)
{
	char text[24];

	add(text, (size_t)snprintf(text, sizeof text, "%zu", n));
}

static void row(const char *name, size_t name_len, const char *value, size_t value_len)
{
	html("<tr><th>");
	escaped(name, name_len);
	html("</th><td>");
	escaped(value, value_len);
	html("</td></tr>\n");
}

static const char HEAD[] =
	"<!doctype html>\n"
	"<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
	"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
	"<title>vpizza.com: a program in a virtual machine</title>\n"
	"<style>\n"
	":root{color-scheme:light dark;--ink:#1c2430;--dim:#5d6878;--paper:#f6f7f9;--card:#fff;--line:#dfe3e8;--link:#1257b8}\n"
	"@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--dim:#97a3b4;--paper:#12161c;--card:#1a2029;--line:#2b3340;--link:#7db2ff}}\n"
	"*{box-sizing:border-box}\n"
	"body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}\n"
	"main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem}\n"
	"h1{font-size:2rem;line-height:1.2;margin:0 0 .5rem}h2{font-size:1.1rem;margin:2.2rem 0 .7rem}\n"
	"p{margin:.4rem 0;color:var(--dim);max-width:44rem}a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}\n"
	".cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.2rem,1fr));gap:1rem}\n"
	".card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem}\n"
	".card b{display:block;margin-bottom:.2rem}.card p{font-size:.92rem;margin:.2rem 0 .6rem}\n"
	".views{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:1rem}\n"
	".views img{width:100%;aspect-ratio:1;border-radius:10px;display:block;background:var(--line)}\n"
	".wrap{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}\n"
	"table{border-collapse:collapse;width:100%;font:14px/1.5 ui-monospace,monospace}\n"
	"th,td{text-align:left;vertical-align:top;padding:.45rem .9rem;border-top:1px solid var(--line)}\n"
	"tr:first-child>*{border-top:0}th{font-weight:600;white-space:nowrap;color:var(--dim)}td{overflow-wrap:anywhere}\n"
	"</style></head><body><main>\n"
	"<h1>This page was made in a virtual machine</h1>\n"
	"<p>A C program wrote it, forked copy-on-write from the state it had after <code>main()</code>. "
	"When it has answered, all it wrote to memory is undone, and the next request finds it as new.</p>\n"
	"<h2>The tenants</h2>\n<div class=\"cards\">\n"
	"<div class=\"card\"><b><a href=\"/v/\">vpizza.com</a></b><p>This page: the request, shown.</p>"
	"<a href=\"/v/?name=%3Cb%3EAnn%3C/b%3E\">with a query</a></div>\n"
	"<div class=\"card\"><b><a href=\"/w/\">wpizza.com</a></b><p>The smallest program there is.</p>"
	"<a href=\"/w/\">Hello, World!</a></div>\n"
	"<div class=\"card\"><b><a href=\"/x/\">xpizza.com</a></b><p>The Mandelbrot set, computed for each URL.</p>"
	"<a href=\"/x/?x=-0.7436&amp;y=0.1318&amp;zoom=2000&amp;size=800\">2000 times closer</a></div>\n"
	"<div class=\"card\"><b><a href=\"/y/\">ypizza.com</a></b><p>Counts its requests. Reload it: it is always the first.</p>"
	"<a href=\"/y/\">count</a></div>\n"
	"<div class=\"card\"><b><a href=\"/z/\">zpizza.com</a></b><p>A pizza menu in SQLite, filled before the first request.</p>"
	"<a href=\"/z/?q=ham\">with ham</a> &middot; <a href=\"/z/count\">count</a> &middot; "
	"<a href=\"/z/order?id=7&amp;name=Ann\">order</a></div>\n"
	"<div class=\"card\"><b><a href=\"/u/\">upizza.com</a></b><p>Crashes of tpizza.com, and an update while it serves.</p>"
	"<a href=\"/u/\">crash it, update it</a></div>\n"
	"</div>\n"
	"<h2>From xpizza.com, just now</h2>\n<div class=\"views\">\n"
	"<a href=\"/x/?size=800\"><img alt=\"The whole Mandelbrot set\" src=\"/x/?size=384\"></a>\n"
	"<a href=\"/x/?x=0.2925&amp;y=0.0149&amp;zoom=150&amp;size=800\">"
	"<img alt=\"Elephant valley\" src=\"/x/?x=0.2925&amp;y=0.0149&amp;zoom=150&amp;size=384\"></a>\n"
	"<a href=\"/x/?x=-0.743643887&amp;y=0.131825904&amp;zoom=2000&amp;size=800\">"
	"<img alt=\"A spiral in the seahorse valley\" "
	"src=\"/x/?x=-0.743643887&amp;y=0.131825904&amp;zoom=2000&amp;size=384\"></a>\n"
	"<a href=\"/x/?x=-1.7584&amp;zoom=60&amp;size=800\">"
	"<img alt=\"A small copy of the set\" src=\"/x/?x=-1.7584&amp;zoom=60&amp;size=384\"></a>\n"
	"</div>\n"
	"<h2>The request</h2>\n<div class=\"wrap\"><table>\n";

static const char END[] = "</table></div>\n</main></body></html>\n";

static void on_request(const struct kvm_request *request)
{
	static const char csp[] =
		"Content-Security-Policy: default-src 'none'; img-src 'self'; style-src 'unsafe-inline'";
	const struct kvm_response_header headers[] = {{csp, sizeof csp - 1}};
	const struct kvm_response_extra extra = {.headers = headers, .num_headers = 1};

	page_limit = sizeof page - RESERVED_FOR_END;
	html(HEAD);
	row("Method", 6, request->method, request->method_len);
	row("URL", 3, request->url, request->url_len);
	if (request->arg_len)
		row("Argument", 8, request->arg, request->arg_len);
	for (int i = 0; i < request->num_headers; i++) {
		const struct kvm_header *header = &request->headers[i];
		const char *value = header->field + header->colon + 1;
		const char *end = header->field + header->len;

		while (value < end && *value == ' ')
			value++;
		row(header->field, header->colon, value, (size_t)(end - value));
	}
	if (request->content_len) {
		html("<tr><th>Body</th><td>");
		number(request->content_len);
		html(" bytes</td></tr>\n");
	}
	page_limit = sizeof page;
	html(END);
	backend_response_extra(200, "text/html; charset=utf-8", 24, page, page_len, &extra);
}

int main(void)
{
	set_backend_request(on_request);
	wait_for_requests();
}
