// Makes JSON small: what is POSTed comes back without the blanks, and without comments if /?comments says that it has some. What is
// no JSON is 400, and the answer says where.
//
//   curl -d @file.json http://…/

#include <forkvm.hpp>

#include <algorithm>
#include <stdexcept>

using forkvm::Request;
using forkvm::Response;

namespace {

// As JSON's grammar (RFC 8259) has it, token by token; what is open is kept in a string, so that depth is no matter.
class Minifier {
public:
	Minifier(std::string_view text, bool comments) : text_(text), comments_(comments) { result_.reserve(text.size()); }

	std::string run()
	{
		value();
		blanks();
		if (at_ < text_.size())
			fail("something after the end");
		return std::move(result_);
	}

private:
	struct Wrong : std::runtime_error {
		using std::runtime_error::runtime_error;
	};

	[[noreturn]] void fail(const char *what) const
	{
		std::size_t line = 1, column = 1;

		for (std::size_t i = 0; i < at_; i++)
			text_[i] == '\n' ? (line++, column = 1) : column++;
		throw Wrong(std::string(what) + " in line " + std::to_string(line) + ", column " + std::to_string(column));
	}

	char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

	bool take(char c)
	{
		if (at_ == text_.size() || text_[at_] != c)
			return false;
		result_ += c;
		at_++;
		return true;
	}

	void blanks()
	{
		for (;;) {
			at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
			if (!comments_ || peek() != '/')
				return;
			const std::string_view mark = text_.substr(at_, 2);
			const auto end = mark == "//" ? text_.find('\n', at_) : mark == "/*" ? text_.find("*/", at_ + 2) : at_;
			if (end == at_)
				return;
			if (end == text_.npos && mark == "/*")
				fail("a comment without an end");
			at_ = end == text_.npos ? text_.size() : end + (mark == "/*" ? 2 : 1);
		}
	}

	void value()
	{
		std::string open;

		do {
			blanks();
			if (!open.empty() && open.back() == '{')
				key();
			if (take('{') || take('[')) {
				open += result_.back();
				blanks();
				if (!take(close(open.back())))
					continue;
				open.pop_back();
			} else {
				scalar();
			}
			// After a value: the ends of what it was the last of, and a comma if there are more.
			for (blanks(); !open.empty() && take(close(open.back())); blanks())
				open.pop_back();
			if (!open.empty() && !take(','))
				fail(open.back() == '{' ? "neither , nor }" : "neither , nor ]");
		} while (!open.empty());
	}

	static char close(char open) { return open == '{' ? '}' : ']'; }

	void key()
	{
		if (peek() != '"')
			fail("no name");
		string();
		blanks();
		if (!take(':'))
			fail("no :");
		blanks();
	}

	void scalar()
	{
		for (const std::string_view word : {"true", "false", "null"}) {
			if (text_.substr(at_, word.size()) == word) {
				result_ += word;
				at_ += word.size();
				return;
			}
		}
		if (peek() == '"')
			string();
		else
			number();
	}

	void string()
	{
		const std::size_t begin = at_++;

		for (; peek() != '"'; at_++) {
			if (at_ >= text_.size())
				fail("a string without an end");
			if (static_cast<unsigned char>(peek()) < 0x20)
				fail("a control character in a string");
			if (peek() == '\\')
				escape();
		}
		result_ += text_.substr(begin, ++at_ - begin);
	}

	void escape()
	{
		at_++;
		if (peek() == 'u') {
			for (int i = 0; i < 4; i++, at_++)
				if (at_ + 1 >= text_.size() || std::string_view("0123456789abcdefABCDEF").find(text_[at_ + 1]) == text_.npos)
					fail("no four digits after \\u");
		} else if (at_ >= text_.size() || std::string_view("\"\\/bfnrt").find(peek()) == text_.npos) {
			fail("an escape that is none");
		}
	}

	bool digits()
	{
		const std::size_t begin = at_;

		while (peek() >= '0' && peek() <= '9')
			result_ += text_[at_++];
		return at_ > begin;
	}

	void number()
	{
		take('-');
		if (!take('0') && !digits())
			fail("no value");
		if (take('.') && !digits())
			fail("no digit after .");
		if (take('e') || take('E')) {
			if (!take('+'))
				take('-');
			if (!digits())
				fail("no digit in the exponent");
		}
	}

	std::string_view text_;
	bool comments_;
	std::size_t at_ = 0;
	std::string result_;
};

Response handle(const Request &request)
{
	if (request.method() != "POST" && request.method() != "PUT")
		return Response::text("POST some JSON\n").status(405).header("Allow", "POST, PUT");
	try {
		return Response::json(Minifier(request.body(), request.query("comments").has_value()).run());
	} catch (const std::runtime_error &wrong) {
		return Response::text(std::string(wrong.what()) + "\n").status(400);
	}
}

} // namespace

int main()
{
	forkvm::serve(handle);
}
