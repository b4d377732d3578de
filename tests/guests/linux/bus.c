/* Mapped files past their ends: the rest of the last page is zero, what follows is SIGBUS. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096

static sigjmp_buf back;
static volatile int code;
static char *volatile at;

static void bus(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    code = info->si_code;
    at = info->si_addr;
    siglongjmp(back, 1);
}

/* Looks at the first byte of each page. */
static void look(const char *name, volatile char *map, int pages)
{
    printf("%s:", name);
    for (int i = 0; i < pages; i++) {
        if (sigsetjmp(back, 1)) printf(" SIGBUS %d%s", code, at == map + i * PAGE + 7 ? "" : " elsewhere");
        else printf(" %d", map[i * PAGE + 7]);
    }
    putchar('\n');
}

int main(void)
{
    char name[] = "/tmp/bus-XXXXXX", bytes[PAGE + 100];
    struct sigaction action = {.sa_sigaction = bus, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, 0);
    int file = mkstemp(name), out = open("/dev/null", O_WRONLY), p[2];
    memset(bytes, 5, sizeof bytes);
    CALL(write(file, bytes, sizeof bytes));
    char *shared = mmap(0, 20 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    char *private = mmap(0, 20 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    look("shared", shared, 20);
    look("private", private, 20);
    CHECK(shared[PAGE + 99] == 5 && shared[PAGE + 100] == 0 && shared[2 * PAGE - 1] == 0);
    CALL(pipe(p));
    CALL(write(p[1], shared + 2 * PAGE, 1));
    CALL(write(p[1], private + 3 * PAGE, 1));
    CALL(write(p[1], shared + PAGE + 90, 20));
    CALL(write(out, shared, PAGE));
    CALL(ftruncate(file, 4 * PAGE));
    look("longer", shared, 6);
    shared[3 * PAGE + 7] = 9;
    look("changed", shared, 6);
    CALL(ftruncate(file, PAGE));
    look("shorter", shared, 6);
    CALL(ftruncate(file, 4 * PAGE));
    look("longer", shared, 6);
    CALL(unlink(name));
    return done();
}
