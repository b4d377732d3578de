// A program to be debugged: an inner function with variables, a breakpoint() of its own, faults, loops and system
// calls. Built without optimisation. The README lists the URLs.

#include "query.h"

#include <time.h>
#include <unistd.h>

static int requests;
static volatile int stop_looping;

__attribute__((noinline)) static int triple(int number)
{
	int result = number * 3;

	requests++;
	return result;
}

__attribute__((noinline)) static double half(double number)
{
	double result = number / 2;

	return result;
}

__attribute__((noinline)) static int asks(int number)
{
	int before = number;
	pid_t pid = getpid();
	int after = before + 1;

	return pid > 0 ? after : -1;
}

__attribute__((noinline)) static int pauses(void)
{
	int seen = 1;

	breakpoint();
	return seen + 1;
}

__attribute__((noinline)) static int trap_flag(void)
{
	unsigned long flags;

	__asm__ volatile("pushfq\n\tpopq %0" : "=r"(flags));
	return flags >> 8 & 1;
}

__attribute__((noinline)) static int checksum(const void *code)
{
	const unsigned char *bytes = code;
	int sum = 0;

	for (int i = 0; i < 8; i++)
		sum += bytes[i];
	return sum;
}

__attribute__((noinline)) static void crash(int *where)
{
	*where = 1;
}

static void my_handler(const char *url)
{
	const char *argument = after(url, "/number/");
	int number = argument ? atoi(argument) : 14;

	if (path_is(url, "/breakpoint")) {
		int seen = pauses();

		say("seen %d debug %d\n", seen, is_debug());
	} else if (path_is(url, "/crash")) {
		crash(NULL);
	} else if (path_is(url, "/trap")) {
		__asm__ volatile("int3");
		say("trapped\n");
	} else if (path_is(url, "/loop")) {
		while (!stop_looping)
			;
		say("looped\n");
	} else if (path_is(url, "/calls")) {
		while (!stop_looping)
			(void)is_debug();
		say("called\n");
	} else if (path_is(url, "/flags")) {
		say("trap flag %d\n", trap_flag());
	} else if (path_is(url, "/half")) {
		say("half %.2f\n", half(number));
	} else if (path_is(url, "/asks")) {
		say("asks %d\n", asks(number));
	} else {
		int result = triple(number);

		say("triple %d requests %d debug %d code %d\n", result, requests, is_debug(), checksum(triple));
	}
	done(200);
}

KVM_EXPORT void my_backend(const char *url)
{
	my_handler(url);
}

int main(void)
{
	return 0;
}
