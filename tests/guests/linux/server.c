/* A server as simple as can be: one request a connection, and a counter that only forks keep at 1.
 *
 *   GET /         "count N"
 *   POST /        "count N bytes M sum S"
 *   GET /hang     never answers
 *   GET /spin     computes for ever
 *   GET /crash    writes to nowhere
 *   GET /fill     dirties 16 MiB, then answers
 *   GET /part     the same after a part of its answer
 *   GET /exit     ends the program
 *   GET /sleep    answers after 50 ms
 *   GET /later    "later 1" once the timer of the argument "later" has gone off
 *   GET /user     "user 33, before N", after it has become that user
 *   POST /say     answers with the body, heads and all
 *   GET /selectors  those of DS, ES and GS, before it has loaded others
 *   GET /time     what CLOCK_MONOTONIC, CLOCK_BOOTTIME and CLOCK_REALTIME say, in seconds
 *   GET /keys     what protection keys deny, before it has them deny otherwise
 *   GET /drip     answers a piece every 50 ms, for ever
 *   GET /used     "used N": of the processor's time, in milliseconds, while it slept for 500
 *   GET /compute  answers 150 pieces, and computes for 10 ms before each
 *   GET /stay     answers, then waits for the client to close
 *   GET /ticking  sleeps for a second with timers that go off all the time and whose signals nobody hears, then says how often
 *   GET /big      answers 16 MiB
 *   GET /upgrade  goes over to sending back what comes
 *   GET /name     what the environment has as NAME
 *   GET /missing  makes a system call that is not there
 *   GET /files    opens files until it can't, and hangs
 *   GET /log      appends a line to /srv/data/log
 *   GET /large    appends 600 KiB to /srv/data/large
 *   GET /threads  starts threads until it can't, which spin
 *
 * Arguments: the port; "forks", to have a child serve each connection; "prefork", to have one serve all;
 * "later", to do something 100 ms after the start; "helper", to wait for one that ends before it serves.
 */
#define _GNU_SOURCE
#include "listening.h"
#include <arpa/inet.h>
#include <cpuid.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int count;
static volatile int is_later;
static char head[64 << 10];
static char body_said[4096];

static void *spin(void *unused)
{
    for (;;) __asm__ volatile("pause");
    return unused;
}

static void must_write(int client, const char *text)
{
    if (write(client, text, strlen(text)) != (ssize_t)strlen(text)) _exit(0);
}

static void ticking(char *body, size_t size)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGALRM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGUSR2, SIG_IGN);
    struct itimerspec often = {{0, 1}, {0, 1}};
    for (int number = 0; number < 2; number++) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = number ? SIGUSR1 : SIGUSR2};
        timer_t timer;
        if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &often, NULL)) abort();
    }
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 1}, {0, 1}}, NULL);
    nanosleep(&(struct timespec){1, 0}, NULL);
    siginfo_t alarm, info;
    int got = sigtimedwait(&set, &info, &(struct timespec){0, 0});
    sigdelset(&set, SIGUSR1);
    int other = sigtimedwait(&set, &alarm, &(struct timespec){0, 0});
    snprintf(body, size, "%d %d %s\n", got, other, info.si_overrun > 900000000 ? "often" : "seldom");
}

/* What protection keys deny, as PKRU has it. */
#define NO_KEYS ~0u
static unsigned rights(void)
{
    unsigned a, b, c = 0, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && c & bit_OSPKE)
        __asm__ volatile("rdpkru" : "=a"(a), "=d"(d) : "c"(0));
    else
        a = NO_KEYS;
    return a;
}

static void serve(int client)
{
    size_t have = 0;
    char *end = NULL;
    while (!end && have < sizeof(head) - 1) {
        ssize_t n = read(client, head + have, sizeof(head) - 1 - have);
        if (n <= 0) return;
        have += n;
        head[have] = 0;
        end = strstr(head, "\r\n\r\n");
    }
    if (!end) return;
    size_t length = 0, got = have - (end + 4 - head), sum = 0;
    char *field = strcasestr(head, "\r\ncontent-length:");
    if (field) length = strtoul(field + 17, NULL, 10);
    for (char *p = end + 4; p < head + have; p++) sum += (unsigned char)*p;
    char path[64] = "";
    sscanf(head, "%*s %63s", path);
    if (!strcmp(path, "/say")) {
        size_t said = got < sizeof(body_said) ? got : sizeof(body_said);
        memcpy(body_said, end + 4, said);
        while (said < length && said < sizeof(body_said)) {
            ssize_t n = read(client, body_said + said, sizeof(body_said) - said);
            if (n <= 0) return;
            said += n;
        }
        if (write(client, body_said, said) < 0) return;
        return;
    }
    while (got < length) {
        ssize_t n = read(client, head, sizeof(head));
        if (n <= 0) return;
        for (ssize_t i = 0; i < n; i++) sum += (unsigned char)head[i];
        got += n;
    }
    count++;
    if (!strcmp(path, "/hang")) pause();
    if (!strcmp(path, "/spin")) for (;;) __asm__ volatile("pause");
    if (!strcmp(path, "/crash")) *(volatile int *)(long)(count * 16) = 1;
    if (!strcmp(path, "/exit")) _exit(3);
    if (!strcmp(path, "/sleep")) nanosleep(&(struct timespec){0, 50000000}, NULL);
    if (!strcmp(path, "/fill") || !strcmp(path, "/part")) {
        char *memory = mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (!strcmp(path, "/part")) must_write(client, "a part");
        for (size_t i = 0; i < 16 << 20; i += 4096) memory[i] = 1;
    }
    if (!strcmp(path, "/look")) {
        char *memory = mmap(NULL, 64 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (size_t i = 0; i < 64 << 20; i += 4096) count += ((volatile char *)memory)[i];
        munmap(memory, 64 << 20);
    }
    if (!strcmp(path, "/missing")) syscall(SYS_io_uring_setup, 1, NULL);
    if (!strcmp(path, "/files")) {
        while (open("/dev/null", O_RDONLY) >= 0);
        pause();
    }
    if (!strcmp(path, "/log") || !strcmp(path, "/large")) {
        int large = !strcmp(path, "/large");
        int log = open(large ? "/srv/data/large" : "/srv/data/log", O_WRONLY | O_CREAT | O_APPEND, 0666);
        int n = large ? 600 << 10 : snprintf(head, sizeof(head), "a line of count %d\n", count);
        for (int part; n > 0; n -= part) {
            part = n < (int)sizeof(head) ? n : (int)sizeof(head);
            if (write(log, head, part) != part) abort();
        }
        close(log);
    }
    if (!strcmp(path, "/threads")) {
        pthread_t thread;
        while (!pthread_create(&thread, NULL, spin, NULL));
        spin(NULL);
    }
    if (!strcmp(path, "/upgrade")) {
        must_write(client, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
        ssize_t n;
        while ((n = read(client, head, sizeof(head))) > 0)
            if (write(client, head, n) != n) return;
        return;
    }
    if (!strcmp(path, "/drip")) {
        must_write(client, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        for (;;) {
            must_write(client, "drop\n");
            nanosleep(&(struct timespec){0, 50000000}, NULL);
        }
    }
    if (!strcmp(path, "/compute")) {
        must_write(client, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        for (int i = 0; i < 150; i++) {
            struct timespec start, now;
            clock_gettime(CLOCK_MONOTONIC, &start);
            do clock_gettime(CLOCK_MONOTONIC, &now);
            while ((now.tv_sec - start.tv_sec) * 1000000000 + now.tv_nsec - start.tv_nsec < 10000000);
            must_write(client, "drop\n");
        }
        return;
    }
    if (!strcmp(path, "/big")) {
        must_write(client, "HTTP/1.1 200 OK\r\nContent-Length: 16777216\r\nConnection: close\r\n\r\n");
        memset(head, 'x', sizeof(head) - 1);
        head[sizeof(head) - 1] = 0;
        for (int left = 16 << 20; left > 0; left -= sizeof(head)) must_write(client, head), must_write(client, "x");
        return;
    }
    unsigned ds, es, gs;
    __asm__ volatile("mov %%ds, %0; mov %%es, %1; mov %%gs, %2" : "=r"(ds), "=r"(es), "=r"(gs));
    if (!strcmp(path, "/selectors"))
        __asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%gs" : : "r"(0x2b));
    unsigned keys = rights();
    if (!strcmp(path, "/keys") && keys != NO_KEYS) __asm__ volatile("wrpkru" : : "a"(keys ^ 0xc), "c"(0), "d"(0));
    char body[128], answer[256];
    clock_t used = clock();
    if (!strcmp(path, "/used")) nanosleep(&(struct timespec){0, 500000000}, NULL);
    used = clock() - used;
    struct timespec monotonic, boot, real;
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    clock_gettime(CLOCK_BOOTTIME, &boot);
    clock_gettime(CLOCK_REALTIME, &real);
    int first = getuid();
    if (!strcmp(path, "/user") && setuid(33)) abort();
    int n = !strcmp(path, "/time")
                ? snprintf(body, sizeof(body), "%ld.%09ld %ld.%09ld %ld.%09ld\n", (long)monotonic.tv_sec, monotonic.tv_nsec,
                           (long)boot.tv_sec, boot.tv_nsec, (long)real.tv_sec, real.tv_nsec)
            : first || getuid() ? snprintf(body, sizeof(body), "user %d, before %d\n", getuid(), first)
            : !strcmp(path, "/later") ? snprintf(body, sizeof(body), "later %d\n", is_later)
          : length ? snprintf(body, sizeof(body), "count %d bytes %zu sum %zu\n", count, got, sum)
                   : snprintf(body, sizeof(body), "count %d\n", count);
    if (!strcmp(path, "/ticking")) ticking(body, sizeof(body)), n = strlen(body);
    if (!strcmp(path, "/used")) n = snprintf(body, sizeof(body), "used %ld\n", used * 1000 / CLOCKS_PER_SEC);
    if (!strcmp(path, "/selectors")) n = snprintf(body, sizeof(body), "%x %x %x\n", ds, es, gs);
    if (!strcmp(path, "/keys")) n = snprintf(body, sizeof(body), "%x\n", keys);
    if (!strcmp(path, "/name")) n = snprintf(body, sizeof(body), "%s\n", getenv("NAME") ?: "");
    int m = snprintf(answer, sizeof(answer),
                     "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", n, body);
    if (write(client, answer, m) != m) abort();
    /* The client has its answer, though it is not done. */
    if (!strcmp(path, "/late")) for (;;) __asm__ volatile("pause");
    if (!strcmp(path, "/stay")) while (read(client, head, sizeof(head)) > 0);
}

static void later(int signal)
{
    is_later = signal == SIGALRM;
}

int main(int argc, char **argv)
{
    int listener = listening(argc, argv);
    if (listener < 0) {
        perror("server");
        return 1;
    }
    if (argc > 2 && !strcmp(argv[2], "helper")) {
        if (!fork()) _exit(7);
        wait(NULL);
    }
    if (argc > 2 && !strcmp(argv[2], "later")) {
        signal(SIGALRM, later);
        setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 100000}}, NULL);
    }
    int prefork = argc > 2 && !strcmp(argv[2], "prefork"), forks = argc > 2 && !strcmp(argv[2], "forks");
    if (prefork && fork()) {
        wait(NULL);
        return 4;
    }
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) return 2;
        if (forks && fork()) {
            close(client);
            continue;
        }
        serve(client);
        if (forks) _exit(0);
        close(client);
    }
}
