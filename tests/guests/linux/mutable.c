/* A server that does what its client says: a list of operations in the body, 8 bytes each (what, a, b in 16 bits, c in 32), on
 * its memory, threads, signals and files. It answers with all that it can see of its own state afterwards. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 8
#define PAGES 8
#define PAGE 4096UL
#define LEN (PAGES * PAGE)
/* Out of the operations' reach. */
#define FILE_OF_ALL 102

static char *slot(unsigned n)
{
    return (char *)0x1000000000UL + (n % SLOTS) * 0x1000000UL;
}

static __thread sigjmp_buf back;
static __thread volatile int guarded;
static volatile int seen[65];
static uint64_t digest;

static void fold(uint64_t value)
{
    digest = (digest ^ value) * 0x100000001b3UL;
    digest ^= digest >> 29;
}

static void faults(int signal)
{
    if (!guarded) _exit(100 + signal);
    siglongjmp(back, 1);
}

static void sees(int signal)
{
    seen[signal]++;
}

/* The byte there, or -1; written if `value` is one. */
static int touch(volatile char *at, int value)
{
    int got = -1;
    guarded = 1;
    if (sigsetjmp(back, 1) == 0) {
        got = (unsigned char)*at;
        if (value >= 0) {
            got = -2;
            *at = (char)value;
            got = value;
        }
    }
    guarded = 0;
    return got;
}

static void *writes(void *argument)
{
    uint32_t of = (uint32_t)(uintptr_t)argument;
    for (int i = 0; i < 4; i++) touch(slot(of) + (of >> 4) % LEN, 7 + i);
    return NULL;
}

static void *blocks(void *argument)
{
    static int never;
    while (!never) syscall(SYS_futex, &never, FUTEX_WAIT, 0, NULL, NULL, 0);
    return argument;
}

static void *spins(void *argument)
{
    volatile double x = (double)(uintptr_t)argument;
    while (x > -1) x = x > 1e9 ? 1 : x * 1.0001 + 1;
    return argument;
}

static void thread(void *(*does)(void *), uint32_t argument, int joined)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, does, (void *)(uintptr_t)argument)) return;
    if (joined) pthread_join(thread, NULL);
}

static void deep(int levels)
{
    volatile char page[PAGE];
    memset((void *)page, levels, sizeof page);
    if (levels > 0) deep(levels - 1);
    page[0]++;
}

static int protection(unsigned b)
{
    static const int of[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC};
    return of[b % 4];
}

static void memory(unsigned what, unsigned a, unsigned b, uint32_t c)
{
    char *from = slot(a) + (b % PAGES) * PAGE;
    size_t len = (c % PAGES + 1) * PAGE;
    int file;
    switch (what) {
    case 0:
        mmap(slot(a), LEN, protection(b), MAP_FIXED | MAP_ANONYMOUS | (c & 1 ? MAP_SHARED : MAP_PRIVATE), -1, 0);
        break;
    case 1:
        if (c >> 16 & 1) {
            mmap(from, len, protection(b), MAP_FIXED | (c >> 17 & 3 ? MAP_SHARED : MAP_PRIVATE), FILE_OF_ALL, (c >> 8) % 4 * PAGE);
            break;
        }
        file = open("/proc/self/exe", O_RDONLY);
        mmap(from, len, protection(b), MAP_FIXED | MAP_PRIVATE, file, (c >> 8) % 4 * PAGE);
        close(file);
        break;
    case 2: munmap(from, len); break;
    case 3: mprotect(from, len, protection(c >> 8)); break;
    case 4: touch(from + (c >> 8) % PAGE, c & 0xff); break;
    case 5: fold(touch(from + (c >> 8) % PAGE, -1)); break;
    case 6: madvise(from, len, (int[]){MADV_DONTNEED, MADV_WILLNEED, MADV_WIPEONFORK, MADV_KEEPONFORK}[(c >> 8) & 3]); break;
    case 7: mremap(from, PAGE, len, MREMAP_MAYMOVE | (b & 0x100 ? MREMAP_FIXED : 0), slot(c >> 8)); break;
    case 20: fold(ftruncate(FILE_OF_ALL, c % (PAGES * PAGE))); break;
    case 21: fold(pwrite(FILE_OF_ALL, &c, sizeof c, (c >> 8) % (PAGES * PAGE))); break;
    case 8: fold((uintptr_t)sbrk((int)(c % 64) * 1024 - 16 * 1024)); break;
    }
}

static void others(unsigned what, unsigned a, unsigned b, uint32_t c)
{
    static void *held[16];
    sigset_t set;
    int fds[2];
    struct itimerval soon = {.it_value = {0, 1000 + c % 5000}};
    switch (what) {
    case 9: thread(writes, a | c << 4, 1); break;
    case 10: thread(b & 1 ? blocks : spins, c, 0); break;
    case 11:
        signal(a & 1 ? SIGUSR1 : SIGUSR2, b & 1 ? SIG_IGN : sees);
        break;
    case 12:
        sigemptyset(&set);
        /* Without these a fault would be the end. */
        if (b % 64 + 1 != SIGSEGV && b % 64 + 1 != SIGBUS) sigaddset(&set, b % 64 + 1);
        sigprocmask(c & 1 ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
        break;
    case 13:
        signal(SIGALRM, sees);
        if (c & 1) setitimer(ITIMER_REAL, &soon, NULL);
        else raise(SIGUSR1);
        break;
    case 14:
        if (c & 1) (void)!pipe(fds);
        else fds[0] = eventfd(b, 0), fds[1] = epoll_create1(0);
        epoll_ctl(fds[1], EPOLL_CTL_ADD, fds[0], &(struct epoll_event){.events = EPOLLIN});
        break;
    case 15:
        fds[0] = open(c & 1 ? "/tmp/a" : "/dev/shm/b", O_RDWR | O_CREAT | O_APPEND, 0600);
        (void)!write(fds[0], &c, sizeof c);
        if (b & 1) close(fds[0]);
        if (b & 2) mkdir("/tmp/folder", 0700), (void)!chdir("/tmp/folder");
        if (b & 4) umask(b >> 3 & 0777);
        break;
    case 16: close(3 + b % 12); break;
    case 17: dup2(b % 8, 3 + c % 12); break;
    case 18:
        free(held[a % 16]);
        held[a % 16] = malloc(c % (1 << 18));
        if (held[a % 16]) memset(held[a % 16], b, c % (1 << 18));
        break;
    case 19: deep(b % 64); break;
    }
}

/* Pages as they can be read and written, descriptors, signals, files. */
static void look(void)
{
    for (unsigned n = 0; n < SLOTS; n++)
        for (unsigned page = 0; page < PAGES; page++) {
            char *at = slot(n) + page * PAGE;
            int got = touch(at, -1);
            fold(got);
            if (got < 0) continue;
            for (unsigned i = 0; i < PAGE / 8; i++) fold(((uint64_t *)at)[i]);
            fold(touch(at, got));
        }
    for (int fd = 0; fd < 32; fd++) fold(fcntl(fd, F_GETFD) < 0 ? -1 : fcntl(fd, F_GETFL));
    sigset_t set;
    sigprocmask(SIG_BLOCK, NULL, &set);
    for (int signal = 1; signal < 65; signal++) {
        struct sigaction action;
        fold(sigismember(&set, signal));
        if (sigaction(signal, NULL, &action) == 0) fold((uintptr_t)action.sa_handler);
    }
    char folder[256] = "";
    fold(getcwd(folder, sizeof folder) ? strlen(folder) : 0);
    mode_t mask = umask(0);
    umask(mask);
    fold(mask);
    struct stat status;
    fold(stat("/tmp/a", &status) ? -1 : status.st_size);
    fold(stat("/dev/shm/b", &status) ? -1 : status.st_size);
    fold(fstat(FILE_OF_ALL, &status) ? -1 : status.st_size);
    for (unsigned page = 0; page < PAGES; page++) {
        uint64_t words[PAGE / 8] = {0};
        fold(pread(FILE_OF_ALL, words, PAGE, page * PAGE));
        for (unsigned i = 0; i < PAGE / 8; i++) fold(words[i]);
    }
    fold((uintptr_t)sbrk(0));
    fold(getpid());
    fold(syscall(SYS_gettid));
}

static void serve(int client)
{
    static char head[64 << 10];
    static int count;
    size_t have = 0, length = 0;
    char *body = NULL;
    while (have < sizeof head - 1 && (!body || have < body - head + length)) {
        ssize_t n = read(client, head + have, sizeof head - 1 - have);
        if (n <= 0) return;
        have += n;
        head[have] = 0;
        if (!body && (body = strstr(head, "\r\n\r\n"))) {
            char *field = strcasestr(head, "\r\ncontent-length:");
            if (field) length = strtoul(field + 17, NULL, 10);
            body += 4;
        }
    }
    digest = 0xcbf29ce484222325UL;
    /* The connection is out of the operations' reach. */
    int kept = fcntl(client, F_DUPFD, 100);
    close(client);
    for (size_t at = 0; at + 8 <= length; at += 8) {
        unsigned char *op = (unsigned char *)body + at;
        uint32_t c;
        memcpy(&c, op + 4, 4);
        unsigned what = op[0] % 22, a = op[1], b = op[2] | op[3] << 8;
        if (what < 9 || what > 19) memory(what, a, b, c);
        else others(what, a, b, c);
    }
    /* What is still to come does, before it is looked. */
    struct itimerval none = {0};
    setitimer(ITIMER_REAL, &none, NULL);
    look();
    char text[64], answer[192];
    int n = snprintf(text, sizeof text, "%d %016lx\n", ++count, digest);
    int m = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", n, text);
    (void)!write(kept, answer, m);
    close(kept);
}

int main(void)
{
    struct sigaction action = {.sa_handler = faults, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    signal(SIGUSR1, sees);
    signal(SIGUSR2, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    for (unsigned n = 0; n < SLOTS; n += 2) {
        mmap(slot(n), LEN, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
        for (unsigned page = 0; page < PAGES; page += n / 2 + 1) memset(slot(n) + page * PAGE, n + page + 1, 64);
    }
    /* A file that is mapped twice before the freeze, and by connections. */
    dup2(memfd_create("mapped", 0), FILE_OF_ALL);
    close(3);
    if (ftruncate(FILE_OF_ALL, 3 * PAGE + 100)) return 3;
    for (unsigned n = 1; n < 4; n += 2)
        mmap(slot(n), LEN / 2, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, FILE_OF_ALL, 0);
    memset(slot(1), 'f', PAGE + 100);
    mprotect(slot(4), LEN / 2, PROT_READ);
    mprotect(slot(6), LEN / 2, PROT_NONE);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8000), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 100)) return 1;
    /* Out of the operations' reach, too. */
    listener = fcntl(listener, F_DUPFD, 101);
    close(3);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) return 2;
        serve(client);
    }
}
