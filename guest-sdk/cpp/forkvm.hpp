/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * forkvm.hpp: kvm_api.h for C++17, with handlers that are functions from a request to a response.
 *
 *     #include <forkvm.hpp>
 *
 *     int main()
 *     {
 *         std::string greeting = "Hello"; // set up once, before the machine is frozen
 *         forkvm::serve([=](const forkvm::Request &request) {
 *             return forkvm::Response::text(greeting + ", " + std::string(request.url()) + "!\n");
 *         });
 *     }
 *
 *     g++ -O2 -static -I guest-sdk/c -I guest-sdk/cpp hello.cc -o hello
 *
 * What a handler changes is gone when it has answered. An exception that it does not catch fails its request. Tests call the
 * handler with a request that they make (RequestBuilder), and look at the response; with -DKVM_API_MOCK the program as a whole
 * runs natively (kvm_api_mock.h). All of kvm_api.h is there beside this.
 */
#ifndef FORKVM_HPP
#define FORKVM_HPP

#include <kvm_api.h>

#include <array>
#include <cstddef>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace forkvm {

/* ------------------------------------------------------------------ text */

/* Whether two names of header fields are the same, in whatever spelling. */
inline bool same_name(std::string_view a, std::string_view b)
{
	const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 32) : c; };

	if (a.size() != b.size())
		return false;
	for (std::size_t i = 0; i < a.size(); i++)
		if (lower(a[i]) != lower(b[i]))
			return false;
	return true;
}

/* The text with %XX and + decoded, as in the parameters of a URL. */
inline std::string decoded(std::string_view text)
{
	const auto digit = [](char c) {
		return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
	};
	std::string result;

	for (std::size_t i = 0; i < text.size(); i++) {
		if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 && digit(text[i + 2]) >= 0) {
			result += static_cast<char>(digit(text[i + 1]) << 4 | digit(text[i + 2]));
			i += 2;
		} else {
			result += text[i] == '+' ? ' ' : text[i];
		}
	}
	return result;
}

/* The first value of this name in "a=1&b=2", decoded: a query string, or the body of a form. */
inline std::optional<std::string> parameter(std::string_view pairs, std::string_view name)
{
	while (!pairs.empty()) {
		const std::string_view pair = pairs.substr(0, pairs.find('&'));

		if (decoded(pair.substr(0, pair.find('='))) == name)
			return pair.find('=') == pair.npos ? "" : decoded(pair.substr(pair.find('=') + 1));
		pairs.remove_prefix(pair.size() < pairs.size() ? pair.size() + 1 : pair.size());
	}
	return std::nullopt;
}

/* ------------------------------------------------------------------ requests */

struct Header {
	std::string_view name, value; /* without the blanks around the value */
};

/* A view of a request, which lives as long as the handler runs. */
class Request {
public:
	explicit Request(const kvm_request &raw) : raw_(&raw) {}

	std::string_view method() const { return {raw_->method, raw_->method_len}; }
	/* Path and query string. */
	std::string_view url() const { return {raw_->url, raw_->url_len}; }
	std::string_view path() const { return url().substr(0, url().find('?')); }
	/* The text that VCL passes along. */
	std::string_view arg() const { return {raw_->arg, raw_->arg_len}; }
	std::string_view content_type() const { return {raw_->content_type, raw_->content_type_len}; }
	std::string_view body() const { return {reinterpret_cast<const char *>(raw_->content), raw_->content_len}; }
	/* The host is only warming the program up before it freezes it. */
	bool is_warmup() const { return raw_->info_flags & KVM_REQUEST_WARMUP; }
	/* Fresh for each request. All generators in the program are part of the frozen state. */
	std::array<std::uint64_t, 2> random() const { return {raw_->prng[0], raw_->prng[1]}; }

	std::size_t header_count() const { return raw_->num_headers; }
	Header header(std::size_t i) const
	{
		const kvm_header &line = raw_->headers[i];
		std::string_view value(line.field, line.len);

		value.remove_prefix(line.colon < line.len ? line.colon + 1 : line.len);
		while (!value.empty() && (value.front() == ' ' || value.front() == '\t'))
			value.remove_prefix(1);
		while (!value.empty() && (value.back() == ' ' || value.back() == '\t'))
			value.remove_suffix(1);
		return {{line.field, line.colon}, value};
	}
	/* The value of the first header field of this name, in whatever spelling. */
	std::optional<std::string_view> header(std::string_view name) const
	{
		for (std::size_t i = 0; i < header_count(); i++)
			if (const Header found = header(i); same_name(found.name, name))
				return found.value;
		return std::nullopt;
	}
	/* The first parameter of this name in the query string, decoded. */
	std::optional<std::string> query(std::string_view name) const
	{
		const std::string_view pairs = url().substr(path().size());

		return parameter(pairs.substr(pairs.empty() ? 0 : 1), name);
	}

private:
	const kvm_request *raw_;
};

/* A request for tests: RequestBuilder("/a").method("POST").header("X-A", "b").body("text").request(), which is a view of it. */
class RequestBuilder {
public:
	explicit RequestBuilder(std::string url) : url_(std::move(url)) {}

	RequestBuilder &method(std::string method) { return method_ = std::move(method), *this; }
	RequestBuilder &arg(std::string arg) { return arg_ = std::move(arg), *this; }
	RequestBuilder &body(std::string body) { return body_ = std::move(body), *this; }
	/* Content-Type is what content_type() gives as well. */
	RequestBuilder &header(const std::string &name, const std::string &value)
	{
		if (same_name(name, "content-type"))
			type_ = value;
		lines_.emplace_back(name + ": " + value, name.size());
		return *this;
	}
	Request request()
	{
		headers_.clear();
		for (const auto &[line, colon] : lines_)
			headers_.push_back({line.c_str(), static_cast<std::uint32_t>(colon), static_cast<std::uint32_t>(line.size())});
		raw_ = kvm_request();
		raw_.method = method_.c_str(), raw_.method_len = static_cast<std::uint16_t>(method_.size());
		raw_.url = url_.c_str(), raw_.url_len = static_cast<std::uint16_t>(url_.size());
		raw_.arg = arg_.c_str(), raw_.arg_len = static_cast<std::uint16_t>(arg_.size());
		raw_.content_type = type_.c_str(), raw_.content_type_len = static_cast<std::uint16_t>(type_.size());
		raw_.content = reinterpret_cast<const std::uint8_t *>(body_.data()), raw_.content_len = body_.size();
		raw_.headers = headers_.data(), raw_.num_headers = static_cast<std::uint16_t>(headers_.size());
		return Request(raw_);
	}

private:
	std::string method_ = "GET", url_, arg_, type_, body_;
	std::vector<std::pair<std::string, std::size_t>> lines_;
	std::vector<kvm_header> headers_;
	kvm_request raw_ = {};
};

/* ------------------------------------------------------------------ responses */

/* An answer, made by one of the static functions and changed step by step. */
class Response {
public:
	Response(std::string content_type, std::string body, int status = 200)
	    : status_(status), type_(std::move(content_type)), body_(std::move(body))
	{
	}
	static Response text(std::string body) { return {"text/plain; charset=utf-8", std::move(body)}; }
	static Response html(std::string body) { return {"text/html; charset=utf-8", std::move(body)}; }
	/* JSON, already made. */
	static Response json(std::string body) { return {"application/json", std::move(body)}; }
	static Response empty(int status) { return {"", "", status}; }

	/* 200 to 599. */
	Response &&status(int status) && { return status_ = status, std::move(*this); }
	/* Adds a header field. There may be 64; a malformed one fails the request. */
	Response &&header(std::string_view name, std::string_view value) &&
	{
		lines_.push_back(std::string(name).append(": ").append(value));
		return std::move(*this);
	}
	/* Lets it be cached for `ttl` seconds, served stale for `grace` while a new one is fetched, kept for revalidation for
	 * `keep`. Without this it is not cached. */
	Response &&cache(float ttl, float grace = 0, float keep = 0) &&
	{
		cached_ = true, ttl_ = ttl, grace_ = grace, keep_ = keep;
		return std::move(*this);
	}

	int status() const { return status_; }
	const std::string &content_type() const { return type_; }
	const std::string &body() const { return body_; }
	bool is_cached() const { return cached_; }
	std::optional<std::string_view> header(std::string_view name) const
	{
		for (const std::string_view line : lines_)
			if (same_name(line.substr(0, line.find(':')), name))
				return line.substr(line.find(':') + 2);
		return std::nullopt;
	}

	/* Ends the request. Handlers return the response instead; this is for code deep below one. */
	[[noreturn]] void send() const
	{
		std::vector<kvm_response_header> headers;
		kvm_response_extra extra = {};

		for (const std::string &line : lines_)
			headers.push_back({line.data(), line.size()});
		extra.headers = headers.data();
		extra.num_headers = static_cast<std::uint16_t>(headers.size() < 65536 ? headers.size() : 65535);
		extra.cached = cached_;
		extra.ttl = ttl_, extra.grace = grace_, extra.keep = keep_;
		backend_response_extra(static_cast<std::int16_t>(status_), type_.data(), type_.size(), body_.data(), body_.size(),
				       &extra);
	}

	/* Ends the request with a body in parts, in the place of this response's own: next(max) gives at most `max` bytes, when the
	 * client takes more, and nothing at the end. They are copied before it is called again. A length of 0 is one that is not
	 * known yet. */
	[[noreturn]] void stream(std::function<std::string_view(std::size_t max)> next, std::size_t length = 0) const
	{
		const kvm_stream_func part = [](void *arg, std::size_t max, std::size_t, std::size_t) noexcept {
			const std::string_view bytes = (*static_cast<decltype(next) *>(arg))(max);
			return kvm_stream_part{bytes.data(), bytes.size()};
		};

		for (const std::string &line : lines_)
			http_append(KVM_RESPONSE, line.data(), line.size());
		kvm_set_cacheable(cached_, ttl_, grace_, keep_);
		begin_streaming_response(static_cast<std::int16_t>(status_), type_.data(), type_.size(), length, part, &next);
	}

private:
	int status_;
	std::string type_, body_;
	std::vector<std::string> lines_;
	bool cached_ = false;
	float ttl_ = 0, grace_ = 0, keep_ = 0;
};

/* ------------------------------------------------------------------ handlers */

/* What an error handler gets to know of the request that failed. */
struct Failure {
	std::string_view url, arg;
	/* Why it failed. */
	std::string_view exception;
};

namespace detail {
inline std::function<Response(const Request &)> on_request;
inline std::function<Response(const Failure &)> on_error;

/* noexcept: what nobody catches ends in std::terminate(), and so in the request's failure. */
inline void request_entry(const kvm_request *raw) noexcept
{
	on_request(Request(*raw)).send();
}

inline void error_entry(const char *url, const char *arg, const char *exception) noexcept
{
	on_error(Failure{url, arg, exception}).send();
}
} // namespace detail

/* Sets the handler that answers in the place of one that failed, in a fresh fork. It has little time. */
inline void on_error(std::function<Response(const Failure &)> handler)
{
	detail::on_error = std::move(handler);
	set_on_error(detail::error_entry);
}

/* The end of the set-up: freezes the machine here. Each request goes to the handler, whatever its method. */
[[noreturn]] inline void serve(std::function<Response(const Request &)> handler)
{
	detail::on_request = std::move(handler);
	set_backend_request(detail::request_entry);
	wait_for_requests();
}

/* Calls a function of the storage's, which main() has allowed (storage_allow), for a result of at most `room` bytes. Nothing if
 * the call failed: the log says why. */
inline std::optional<std::string> storage_call(kvm_storage_func function, std::initializer_list<std::string_view> buffers,
					       std::size_t room)
{
	std::vector<virtbuffer> pointers;
	std::string result(room, '\0');

	for (const std::string_view buffer : buffers)
		pointers.push_back({const_cast<char *>(buffer.data()), buffer.size()});
	const long len = storage_callv(function, pointers.size(), pointers.data(), result.data(), room);
	if (len < 0)
		return std::nullopt;
	result.resize(static_cast<std::size_t>(len));
	return result;
}

/* A value in the memory that all machines of the program share, zero at first, or nullptr if there is no (more) room: for main() only,
 * and kept in a variable. It has to be a std::atomic, or made of them, since others use it at the same time:
 *
 *     static std::atomic<long> *hits;
 *     int main() { hits = forkvm::shared<std::atomic<long>>(); ... }
 */
template <class T> T *shared()
{
	static_assert(std::is_standard_layout<T>::value && std::is_trivially_destructible<T>::value,
		      "zeros have to be such a value, and nobody destroys it");
	return static_cast<T *>(kvm_shm_alloc(sizeof(T), alignof(T)));
}

/* A regular expression, which the host compiles and matches: bytes, by the syntax of the Rust crate regex. Made in main() it is there
 * for every request. Subjects have at most 64 KiB. */
class Regex {
public:
	explicit Regex(std::string_view pattern) : number_(regex_compile(pattern.data(), pattern.size())) {}
	Regex(Regex &&other) noexcept : number_(std::exchange(other.number_, -1)) {}
	Regex &operator=(Regex &&other) noexcept { return std::swap(number_, other.number_), *this; }
	~Regex()
	{
		if (number_ > 0)
			regex_free(number_);
	}

	/* Whether the pattern is one; the log says what is wrong with it. */
	explicit operator bool() const { return number_ > 0; }
	/* Whether it matches somewhere. */
	bool matches(std::string_view subject) const { return regex_match(number_, subject.data(), subject.size()) > 0; }
	/* The subject with `with` in the place of the first match, or of all: \0 in it is all of the match, \1 to \9 its groups. Nothing
	 * if that is more than 64 KiB. */
	std::optional<std::string> replace(std::string_view subject, std::string_view with, bool all = false) const
	{
		const unsigned flags = all ? KVM_REGEX_ALL : 0;
		std::string result(subject.size() + with.size() + 1, '\0');
		const auto substitute = [&](char *out) {
			return regex_subst(number_, subject.data(), subject.size(), with.data(), with.size(), out, result.size(), flags);
		};
		long len = substitute(result.data());

		if (len < 0) {
			/* How long it is, if that was the reason. */
			len = substitute(nullptr);
			result.resize(len > 0 ? static_cast<std::size_t>(len) : 0);
			if (len > 0)
				len = substitute(result.data());
		}
		if (len < 0)
			return std::nullopt;
		result.resize(static_cast<std::size_t>(len));
		return result;
	}

private:
	long number_;
};

/* A line in the Varnish log. */
inline void log(std::string_view line)
{
	kvm_log(line.data(), line.size());
}

} // namespace forkvm

#endif /* FORKVM_HPP */
