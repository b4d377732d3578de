// C++: statics with destructors, iostream, exceptions, thread_local. main() returns, and nothing may have
// been destroyed when a request comes. /uncaught throws what nobody catches.

#include <kvm_api.h>
#ifdef MANGLED // what its author forgot
#undef KVM_EXPORT
#define KVM_EXPORT __attribute__((used))
#endif

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

int destroyed, at_exit_runs;

struct Table {
	std::map<std::string, int> entries;

	Table()
	{
		for (int i = 0; i < 1000; i++)
			entries["entry " + std::to_string(i)] = i;
	}
	~Table()
	{
		entries.clear();
		destroyed++;
	}
};

Table table;
thread_local std::string per_thread = "thread_local";

struct Shape {
	virtual ~Shape() = default;
	virtual std::string name() const = 0;
};

struct Circle : Shape {
	std::string name() const override { return "circle"; }
};

std::unique_ptr<Shape> shape;

std::string caught(int i)
{
	try {
		return "found " + std::to_string(table.entries.at("entry " + std::to_string(i)));
	} catch (const std::out_of_range &) {
		return "caught";
	}
}

} // namespace

KVM_EXPORT void my_backend(const char *url)
{
	std::ostringstream out;
	std::vector<int> numbers{3, 1, 2};

	if (std::string(url) == "/uncaught")
		throw std::runtime_error("nobody catches this");
	std::cout << "cxx: a line on std::cout" << std::endl;
	std::sort(numbers.begin(), numbers.end());
	out << "entries " << table.entries.size() << " destroyed " << destroyed << " atexit " << at_exit_runs << '\n'
	    << caught(7) << ' ' << caught(1000) << ' ' << per_thread << ' '
	    << (dynamic_cast<Circle *>(shape.get()) ? shape->name() : "?") << ' ' << numbers[0] << numbers[2] << '\n';
	table.entries.clear();
	const std::string text = out.str();
	backend_response(200, "text/plain", 10, text.data(), text.size());
}

int main()
{
	std::atexit([] { at_exit_runs++; });
	shape.reset(new Circle);
	per_thread += " set";
	return 0;
}
