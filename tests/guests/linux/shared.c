/* Files that are mapped by MAP_SHARED: mmap(2), msync(2), mremap(2), mprotect(2), madvise(2), ftruncate(2). What is written to
 * one mapping is in the others at once, and in the file; what calls write is in the mappings. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)

static sigjmp_buf back;

static void faults(int signal) { siglongjmp(back, signal); }

/* The byte at an address, or minus the signal that it gives. */
static int byte(const volatile char *at)
{
    int signal = sigsetjmp(back, 1);
    return signal ? -signal : *at;
}

static char *map(int fd, unsigned long len, int prot, unsigned long offset)
{
    char *p = mmap(0, len, prot, MAP_SHARED, fd, offset);
    CHECK(p != MAP_FAILED);
    return p;
}

static int file(unsigned long size)
{
    int fd = memfd_create("shared", 0);
    CHECK(fd >= 0 && ftruncate(fd, size) == 0);
    return fd;
}

static void calls_and_mappings(void)
{
    char path[] = "/tmp/shared-XXXXXX";
    int fd = mkstemp(path), other = open(path, O_RDONLY);
    CHECK(fd >= 0 && other >= 0);
    CALL(ftruncate(fd, 10000));
    char *p = map(fd, 12288, RW, 0);
    CALL((long)mmap(0, 4096, RW, MAP_SHARED, other, 0));
    char *q = map(other, 12288, PROT_READ, 0);
    CHECK(!q[5000]);
    CALL(mprotect(q, 4096, RW));
    memcpy(p + 5000, "by the mapping", 14);
    CHECK(!memcmp(q + 5000, "by the mapping", 14));
    char text[20] = "";
    CALL(pread(fd, text, 14, 5000));
    printf("%s\n", text);
    CALL(pwrite(fd, "by the call", 11, 5000));
    printf("%.14s, %.14s\n", p + 5000, q + 5000);
    memcpy(p + 9000, "last", 4);
    CALL(msync(p, 12288, MS_SYNC));
    CALL(munmap(p, 12288));
    CALL(pread(fd, text, 4, 9000));
    printf("%.4s\n", text);
    CALL(close(fd));
    CALL(close(other));
    CALL(unlink(path));
    CHECK(!memcmp(q + 9000, "last", 4));
    CALL(munmap(q, 12288));
}

/* Nothing but instructions between a write and a look. */
static void at_once(void)
{
    int fd = file(3 * PAGE);
    char *p = map(fd, 3 * PAGE, RW, 0), *q = map(fd, 2 * PAGE, RW, PAGE), *r = map(fd, 3 * PAGE, PROT_READ, 0);
    int same = 1;
    for (int i = 1; i < 100; i++) {
        p[PAGE + i] = i;
        same &= q[i] == i && r[PAGE + i] == i;
        q[PAGE + i] = -i;
        same &= p[2 * PAGE + i] == -i && r[2 * PAGE + i] == -i;
    }
    CHECK(same);
    /* A page that one mapping has touched, by a call that looks at it in one that has not. */
    char *s = map(fd, PAGE, RW, PAGE), text[4] = "";
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    CALL(write(pipes[1], s + 50, 3));
    CALL(read(pipes[0], text, 3));
    CHECK(text[0] == 50 && text[2] == 52);
    CALL(write(pipes[1], "abc", 3));
    CALL(read(pipes[0], s + 50, 3));
    CHECK(!memcmp(q + 50, "abc", 3));
    /* Of no use any more, moved, and written before it is read-only. */
    CALL(munmap(s, PAGE));
    CHECK(q[50] == 'a' && r[PAGE + 52] == 'c');
    char *room = mmap(0, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    q = mremap(q, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
    CHECK(q == room && q[50] == 'a');
    q[51] = 'B';
    CHECK(p[PAGE + 51] == 'B');
    p[0] = 'w';
    CALL(mprotect(p, PAGE, PROT_READ));
    CALL(pread(fd, text, 1, 0));
    CHECK(text[0] == 'w' && r[0] == 'w');
    CALL(mprotect(r, PAGE, RW));
    r[1] = 'x';
    CHECK(p[1] == 'x');
    CALL(madvise(p, 3 * PAGE, MADV_DONTNEED));
    CHECK(p[1] == 'x' && p[PAGE + 51] == 'B' && q[50] == 'a');
    /* Anonymous memory in its place has nothing to do with it. */
    CHECK(mmap(q, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == q && !q[50]);
    q[50] = 'z';
    CHECK(p[PAGE + 50] == 'a');
    close(fd);
}

/* What a private mapping has written is its own. */
static void private_ones(void)
{
    int fd = file(PAGE);
    char *p = map(fd, PAGE, RW, 0), *q = mmap(0, PAGE, RW, MAP_PRIVATE, fd, 0);
    q[0] = 'q';
    p[0] = 'p';
    char text[2] = "";
    CALL(pread(fd, text, 1, 0));
    CHECK(q[0] == 'q' && p[0] == 'p' && text[0] == 'p');
    close(fd);
}

/* Code that is written by one mapping and run by another, as runtimes do that never have memory writable and executable. */
static void code(void)
{
    int fd = file(PAGE);
    unsigned char *w = (void *)map(fd, PAGE, RW, 0);
    char *x = map(fd, PAGE, PROT_READ | PROT_EXEC, 0);
    int right = 1;
    for (int i = 1; i < 50; i++) {
        memcpy(w, (unsigned char[]){0xb8, i, 0, 0, 0, 0xc3}, 6); /* mov $i,%eax; ret */
        right &= ((int (*)(void))x)() == i;
    }
    CHECK(right);
    close(fd);
}

/* A ring: the same pages twice, one after the other. */
static void ring(void)
{
    int fd = file(2 * PAGE);
    char *p = mmap(0, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mmap(p, 2 * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == p);
    CHECK(mmap(p + 2 * PAGE, 2 * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == p + 2 * PAGE);
    close(fd);
    memcpy(p + 2 * PAGE - 3, "around", 6);
    CHECK(!memcmp(p, "und", 3) && !memcmp(p + 4 * PAGE - 3, "aro", 3));
    struct iovec piece = {p + 2 * PAGE - 3, 6};
    CALL(writev(1, &piece, 1));
    puts("");
}

static void ends(void)
{
    int fd = file(2 * PAGE);
    char *p = map(fd, 3 * PAGE, RW, 0), *q = map(fd, 2 * PAGE, PROT_READ, PAGE);
    p[0] = p[PAGE] = p[PAGE + 100] = 'e';
    printf("%d %d %d\n", byte(q), byte(q + 100), byte(p + 2 * PAGE));
    CALL(ftruncate(fd, PAGE + 50));
    printf("%d %d %d\n", byte(p + PAGE), byte(q), byte(q + 100));
    CALL(ftruncate(fd, PAGE));
    printf("%d %d %d\n", byte(p), byte(p + PAGE), byte(q));
    CALL(ftruncate(fd, 3 * PAGE));
    printf("%d %d %d\n", byte(p + PAGE), byte(q), byte(p + 2 * PAGE));
    p[2 * PAGE + 7] = 'x';
    printf("%d\n", byte(q + PAGE + 7));
    CALL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
    printf("%d\n", byte(p));
    close(fd);
}

/* More mappings than memory for as many pages. */
static void many(void)
{
    enum { MAPS = 2000 };
    int fd = file(16 * PAGE);
    static char *maps[MAPS];
    for (int i = 0; i < MAPS; i++) maps[i] = map(fd, 16 * PAGE, RW, 0);
    for (int i = 0; i < MAPS; i++) *(int *)(maps[i] + 4 * (i % 1000)) += i;
    int right = 1;
    for (int i = 0; i < 1000; i++) right &= *(int *)(maps[MAPS - 1 - i] + 4 * i) == 2 * i + 1000;
    CHECK(right);
    for (int i = 0; i < MAPS; i++) munmap(maps[i], 16 * PAGE);
    int first = 0;
    CALL(pread(fd, &first, 4, 4 * 999));
    printf("%d\n", first);
    close(fd);
}

int main(void)
{
    signal(SIGBUS, faults);
    signal(SIGSEGV, faults);
    setbuf(stdout, 0);
    calls_and_mappings();
    at_once();
    private_ones();
    code();
    ring();
    ends();
    many();
    return done();
}
