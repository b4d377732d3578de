// The C++ wrapper: what is tested without a machine is tested in main(), which fails if it is wrong; the rest is served.

#include <forkvm.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

using forkvm::Request;
using forkvm::RequestBuilder;
using forkvm::Response;

namespace {

std::atomic<long> *counter;

void stored_twice(std::size_t n, virtbuffer *buffers, std::size_t)
{
	std::string both;

	for (std::size_t i = 0; i < n; i++)
		both.append(static_cast<const char *>(buffers[i].data), buffers[i].len);
	if (storage_return(both.data(), both.size()) < 0)
		std::abort();
}

std::optional<forkvm::Regex> word;

Response handle(const Request &request)
{
	if (request.path() == "/regex") {
		const forkvm::Regex none("(");
		forkvm::Regex own("(?i)^/R(.*)x$"), moved("a");

		moved = std::move(own);
		std::string text(word->matches("-") || none || !moved.matches(request.path()) ? "wrong " : "right ");
		text.append(word->replace("to be", "<\\1>").value_or("none")).append(" ");
		text.append(word->replace("to be", "\\1\\1\\1\\1\\1\\1", true).value_or("none")).append(" ");
		text.append(word->replace(std::string(60000, 'a'), "\\0\\0").value_or("none")).append(" ");
		text.append(none.replace("a", "b").value_or("none")).append("\n");
		return Response::text(text);
	}
	if (request.path() == "/throw")
		throw std::runtime_error("thrown on purpose");
	if (request.path() == "/send")
		Response::text("from below\n").send();
	if (request.path() == "/stream") {
		int n = 0;
		std::string part;

		Response::text("").header("X-Parts", "3").stream([=](std::size_t max) mutable {
			part = n++ < 3 ? "part " + std::to_string(n) + "\n" : "";
			return std::string_view(part).substr(0, max);
		});
	}
	if (request.path() == "/storage") {
		const auto stored = forkvm::storage_call(stored_twice, {"one", "two"}, 20);
		const auto fails = forkvm::storage_call(stored_twice, {"one", "two"}, 2);
		return Response::text(stored.value_or("none") + (fails ? " fits\n" : " does not fit\n"));
	}
	if (request.path() == "/shared")
		return Response::text(counter ? std::to_string(++*counter) + "\n" : "none\n");
	if (request.path() == "/log")
		forkvm::log("a line");
	std::string text(request.method());

	text.append(" ").append(request.path());
	text.append("\nname ").append(request.query("name").value_or("absent"));
	text.append("\nx-a ").append(request.header("x-a").value_or("absent"));
	text.append("\narg ").append(request.arg()).append("\ntype ").append(request.content_type());
	text.append("\nbody ").append(request.body()).append("\n");
	return Response::text(text)
	    .status(201)
	    .header("X-Method", request.method())
	    .header("Set-Cookie", "a=1")
	    .header("Set-Cookie", "b=2")
	    .cache(60, 10);
}

Response failed(const forkvm::Failure &failure)
{
	return Response::text("failed: " + std::string(failure.url) + "\n").status(500);
}

int wrong;

void check(bool right, const char *what)
{
	if (!right)
		std::fprintf(stderr, "wrong: %s\n", what), wrong++;
}
#define CHECK(condition) check(condition, #condition)

void test()
{
	RequestBuilder made("/a%20b?x=1&name=a%26b+c%zz%2&flag&name=second");
	made.method("POST").header("X-A", " \t one ").header("x-a", "two").header("Content-Type", "a/b").body("data").arg("A");
	const Request request = made.request();

	CHECK(request.method() == "POST" && request.path() == "/a%20b");
	CHECK(request.query("name") == "a&b c%zz%2" && request.query("x") == "1" && request.query("flag") == "");
	CHECK(forkvm::parameter("a=1&b=%C3%A9+&b=2&c", "b") == "\xc3\xa9 " && forkvm::parameter("c", "c") == "");
	CHECK(!forkvm::parameter("", "a") && !forkvm::parameter("a&", "") && forkvm::parameter("&x=y", "x") == "y");
	CHECK(!request.query("nam") && !request.query("") && !RequestBuilder("/?").request().query("x"));
	CHECK(request.header("X-a") == "one" && !request.header("X") && request.header_count() == 3);
	CHECK(request.header(2).name == "Content-Type" && request.content_type() == "a/b");
	CHECK(request.body() == "data" && request.arg() == "A" && !request.is_warmup());

	const Response response = handle(request);
	CHECK(response.status() == 201 && response.is_cached() && response.content_type() == "text/plain; charset=utf-8");
	CHECK(response.header("x-method") == "POST" && response.header("set-cookie") == "a=1" && !response.header("x"));
	CHECK(response.body() == "POST /a%20b\nname a&b c%zz%2\nx-a one\narg A\ntype a/b\nbody data\n");
	CHECK(Response::empty(204).body().empty() && !Response::json("{}").is_cached());
	CHECK(failed({"/x", "", "why"}).body() == "failed: /x\n");
}

} // namespace

int main()
{
	test();
	if (wrong)
		return 1;
	storage_allow(stored_twice);
	counter = forkvm::shared<std::atomic<long>>();
	word.emplace("([a-z])[a-z]*");
	forkvm::on_error(failed);
	forkvm::serve(handle);
}
