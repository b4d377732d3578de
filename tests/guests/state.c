/* A program whose state goes over to its successor: the names of all programs there were, in their order.
 *
 *   any URL   "one", after a live update "one>two" and so on
 *
 * -DNAME: the name. -DGIVE and -DTAKE: how the state is given and taken, "well" or one of the ways below.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <kvm_api.h>

static char *history;

static volatile char room[8 << 20];

static const char give[] = GIVE, take[] = TAKE;

static int is(const char *way, const char *name)
{
	return strcmp(way, name) == 0;
}

static void on_get(const char *url, const char *arg)
{
	(void)url;
	(void)arg;
	backend_response_str(200, "text/plain", history);
}

static void on_live_update(void)
{
	if (is(give, "nothing"))
		return;
	if (is(give, "crashes"))
		__builtin_trap();
	if (is(give, "hangs"))
		for (;;)
			__asm__ volatile("pause");
	if (is(give, "wild"))
		storage_return((const void *)0x123456789000, 1000);
	if (is(give, "huge"))
		storage_return(history, (size_t)1 << 40);
	if (is(give, "exits"))
		_exit(3);
	if (is(give, "answers"))
		backend_response_str(200, "text/plain", history);
	if (is(give, "greedy"))
		for (size_t done = 0; done < sizeof(room); done += 4096)
			room[done] = 1;
	if (is(give, "empty"))
		storage_return(NULL, 0);
	if (is(give, "noreturn"))
		storage_noreturn(history, strlen(history));
	if (is(give, "changes")) {
		/* What it changes here is nobody's but this handler's. */
		history = strcat(strcpy((char *)room, history), "!");
		if (write(STDERR_FILENO, "giving", 6) != 6)
			__builtin_trap();
	}
	storage_return(history, strlen(history));
	/* Not reached, or it does not matter: the state is handed over. */
	__builtin_trap();
}

static void on_live_restore(size_t len)
{
	char *old = malloc(len + sizeof(">" NAME));

	if (is(take, "refuses"))
		return;
	if (is(take, "crashes"))
		__builtin_trap();
	if (is(take, "hangs"))
		for (;;)
			__asm__ volatile("pause");
	if (is(take, "wild"))
		storage_return((const void *)0x123456789000, len);
	if (is(take, "exits"))
		_exit(3);
	if (is(take, "answers"))
		backend_response_str(200, "text/plain", history);
	if (is(take, "pieces")) {
		/* As much as there is room for, and never more than there is. */
		if (storage_return(old, len / 2) != (long)(len / 2) || storage_return(old, len + 1) != (long)len)
			abort();
	}
	if (storage_return(old, len) != (long)len)
		abort();
	strcpy(old + len, ">" NAME);
	history = old;
	if (is(take, "noreturn"))
		storage_noreturn(old, len);
}

int main(void)
{
	history = strdup(NAME);
	set_backend_get(on_get);
	if (!is(give, "never"))
		set_on_live_update(on_live_update);
	if (!is(take, "never"))
		set_on_live_restore(on_live_restore);
	wait_for_requests();
}
