// A chat: visitors see each other's lines. Each request has its own fork, which is put back afterwards; the lines are kept by the
// storage machine, which requests call. The tenant needs storage = true.
//
//   GET /                 the page
//   GET /lines?after=N    the lines after the Nth, each as "NUMBER<tab>WHO<tab>TEXT"
//   POST /say             a form with who and text
//
// The last 200 lines are kept, also over an update of the program.

#include <forkvm.hpp>

#include <cstdlib>
#include <deque>

using forkvm::Request;
using forkvm::Response;

namespace {

constexpr std::size_t MOST_LINES = 200, MOST_WHO = 40, MOST_TEXT = 500, ROOM = MOST_LINES * (MOST_WHO + MOST_TEXT + 24);

const char PAGE[] = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Chat</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:2rem auto;padding:0 1rem}
#lines{border:1px solid #8886;border-radius:8px;height:55vh;overflow-y:auto;padding:.5rem 1rem}
#lines p{margin:.25rem 0;overflow-wrap:anywhere}
form{display:flex;gap:.5rem;margin-top:1rem}input{font:inherit;min-width:0}#text{flex:1}
</style></head><body>
<h1>Chat</h1>
<div id="lines" aria-live="polite"></div>
<form id="form"><input id="who" placeholder="name" size="8" maxlength="20"><input id="text" placeholder="say something" maxlength="200" autocomplete="off">
<button id="say">Say</button></form>
<script>
const by = id => document.getElementById(id);
let last = 0;
async function look() {
  const answer = await fetch('lines?after=' + last, {cache: 'no-store'});
  if (!answer.ok) return;
  for (const line of (await answer.text()).split('\n')) {
    const [number, who, text] = line.split('\t');
    if (!(number > last)) continue;
    last = +number;
    const row = document.createElement('p'), name = document.createElement('b');
    name.textContent = who + ': ';
    row.append(name, text);
    by('lines').append(row);
    row.scrollIntoView();
  }
}
async function keepLooking() {
  try { await look(); } catch {}
  setTimeout(keepLooking, 500);
}
by('form').onsubmit = async event => {
  event.preventDefault();
  const said = new URLSearchParams({who: by('who').value || 'somebody', text: by('text').value});
  const answer = await fetch('say', {method: 'POST', body: said});
  if (answer.ok) by('text').value = '';
};
keepLooking();
</script></body></html>
)";

// ---------------------------------------------------------------- in the storage machine

struct Line {
	std::uint64_t number;
	std::string who, text;
};

std::deque<Line> lines;
std::uint64_t said;

void keep(std::uint64_t number, std::string who, std::string text)
{
	lines.push_back({number, std::move(who), std::move(text)});
	if (lines.size() > MOST_LINES)
		lines.pop_front();
	said = number;
}

std::string after(std::uint64_t number)
{
	std::string result;

	for (const Line &line : lines)
		if (line.number > number)
			result.append(std::to_string(line.number)).append("\t").append(line.who).append("\t").append(line.text).append("\n");
	return result;
}

std::string text_of(const virtbuffer &buffer)
{
	return {static_cast<const char *>(buffer.data), buffer.len};
}

// who, text
void store_line(std::size_t n, virtbuffer *buffers, std::size_t)
{
	if (n == 2)
		keep(said + 1, text_of(buffers[0]), text_of(buffers[1]));
}

// the number of the last line that is known, as text
void stored_lines(std::size_t n, virtbuffer *buffers, std::size_t)
{
	const std::string result = after(n == 1 ? std::strtoull(text_of(buffers[0]).c_str(), nullptr, 10) : 0);

	storage_return(result.data(), result.size());
}

void give_lines()
{
	const std::string all = after(0);

	storage_return(all.data(), all.size());
}

void take_lines(std::size_t len)
{
	std::string all(len, '\0');

	storage_return(all.data(), all.size());
	for (std::size_t at = 0; at < all.size(); at = all.find('\n', at) + 1) {
		const std::string line = all.substr(at, all.find('\n', at) - at);
		const auto who = line.find('\t') + 1, text = line.find('\t', who) + 1;
		keep(std::strtoull(line.c_str(), nullptr, 10), line.substr(who, text - who - 1), line.substr(text));
	}
}

// ---------------------------------------------------------------- requests

// On one line, and no longer than that; a character of UTF-8 is not cut in two.
std::string cleaned(std::string text, std::size_t most)
{
	for (char &c : text)
		if (static_cast<unsigned char>(c) < ' ' || c == 127)
			c = ' ';
	if (text.size() > most) {
		while ((text[most] & 0xc0) == 0x80)
			most--;
		text.resize(most);
	}
	return text;
}

Response handle(const Request &request)
{
	if (request.path() == "/say" && request.method() == "POST") {
		const std::string who = cleaned(forkvm::parameter(request.body(), "who").value_or(""), MOST_WHO);
		const std::string text = cleaned(forkvm::parameter(request.body(), "text").value_or(""), MOST_TEXT);
		if (who.empty() || text.empty())
			return Response::text("who and text\n").status(400);
		if (!forkvm::storage_call(store_line, {who, text}, 0))
			return Response::text("there is no storage\n").status(503);
		return Response::empty(204);
	}
	if (request.path() == "/lines") {
		const auto found = forkvm::storage_call(stored_lines, {request.query("after").value_or("0")}, ROOM);
		return found ? Response::text(*found) : Response::text("there is no storage\n").status(503);
	}
	if (request.path() == "/")
		return Response::html(PAGE).header(
		    "Content-Security-Policy",
		    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'");
	return Response::text("There is nothing here.\n").status(404);
}

} // namespace

int main()
{
	storage_allow(store_line);
	storage_allow(stored_lines);
	if (is_storage()) {
		set_on_live_update(give_lines);
		set_on_live_restore(take_lines);
	}
	forkvm::serve(handle);
}
