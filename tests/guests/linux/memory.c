/* mmap(2), munmap(2), mprotect(2), mremap(2), brk(2), madvise(2), mincore(2), msync(2): what they give and what is in
 * memory afterwards. Addresses are printed as offsets, since they are random. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static char *map(unsigned long len, int prot) { return mmap(0, len, prot, ANON, -1, 0); }

static void anonymous(void)
{
    char *p = map(5 * PAGE, RW);
    CHECK(p != MAP_FAILED);
    for (int i = 0; i < 5; i++) {
        CHECK(p[i * PAGE] == 0);
        p[i * PAGE] = 'a' + i;
    }
    CALL(mprotect(p + PAGE, PAGE, PROT_READ));
    CALL(mprotect(p + PAGE, 2 * PAGE, PROT_NONE));
    CALL(mprotect(p + PAGE, 2 * PAGE, RW));
    CHECK(p[PAGE] == 'b' && p[2 * PAGE] == 'c');
    CALL(munmap(p + 2 * PAGE, PAGE));
    CALL(mprotect(p, 5 * PAGE, RW));        /* a hole: ENOMEM */
    CALL(msync(p, 5 * PAGE, MS_SYNC));      /* the same */
    CALL(madvise(p, 5 * PAGE, MADV_NORMAL));
    CALL(madvise(p, PAGE, MADV_DONTNEED));
    CHECK(p[0] == 0);
    CHECK(mmap(p + 2 * PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0) == p + 2 * PAGE);
    CHECK(p[2 * PAGE] == 0 && p[3 * PAGE] == 'd');
    CHECK(mmap(p + PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);
    CHECK(mmap(p + 3 * PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0) == p + 3 * PAGE && p[3 * PAGE] == 0);
    CALL(munmap(p, 5 * PAGE));
    CALL(munmap(p, 5 * PAGE));              /* nothing there: fine */
}

static void bad(void)
{
    char *p = map(PAGE, RW);
    CALL(munmap(p + 1, PAGE));
    CALL(munmap(p, 0));
    CALL(mprotect(p + 1, PAGE, RW));
    CALL(mprotect(p, PAGE, 1 << 8));
    CALL(mprotect(p, 0, RW));
    CALL(madvise(p + 1, PAGE, MADV_DONTNEED));
    CALL(madvise(p, PAGE, 12345));
    CALL(msync(p, PAGE, MS_SYNC | MS_ASYNC));
    CALL(msync(p, PAGE, 64));
    CALL((long)mmap(0, 0, RW, ANON, -1, 0));
    CALL((long)mmap(0, PAGE, RW, MAP_ANONYMOUS, -1, 0));
    CALL((long)mmap(0, PAGE, RW, MAP_PRIVATE, 77, 0));
    CALL((long)mmap(0, ~0ul, RW, ANON, -1, 0));
    CALL((long)mmap((void *)1, PAGE, RW, ANON | MAP_FIXED, -1, 0));
    CALL((long)mmap((void *)0x7ffffffff000, PAGE, RW, ANON | MAP_FIXED, -1, 0));
    unsigned char there[4];
    CALL(mincore(p + 1, PAGE, there));
    *p = 1;
    CALL(mincore(p, PAGE, there));
    CHECK(there[0] & 1);
    CALL(mincore(p, PAGE, (void *)8));
    CALL(munmap(p, PAGE));
    CALL(mincore(p, PAGE, there));
}

static void reservations(void)
{
    char *p = mmap(0, 1ul << 40, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    CALL(mprotect(p + (1ul << 39), PAGE, RW));
    p[1ul << 39] = 7;
    CHECK(p[1ul << 39] == 7);
    CALL(munmap(p, 1ul << 40));
    char *low = mmap(0, PAGE, RW, ANON | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED && (unsigned long)low < 1ul << 31);
}

static void moves(void)
{
    char *p = map(4 * PAGE, RW);
    for (int i = 0; i < 4; i++) p[i * PAGE] = '0' + i;
    char *q = mremap(p, 4 * PAGE, 2 * PAGE, 0);
    CHECK(q == p && p[PAGE] == '1');
    CHECK(mmap(p + 2 * PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0) == p + 2 * PAGE);
    p[2 * PAGE] = 'x';
    CALL(mprotect(p + 2 * PAGE, PAGE, PROT_READ)); /* so that they do not become one mapping */
    CHECK(mremap(p, 2 * PAGE, 8 * PAGE, 0) == MAP_FAILED && errno == ENOMEM);
    q = mremap(p, 2 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    CHECK(q != MAP_FAILED && q != p && q[0] == '0' && q[PAGE] == '1' && q[7 * PAGE] == 0);
    CHECK(p[2 * PAGE] == 'x');
    char *room = map(16 * PAGE, PROT_NONE);
    char *r = mremap(q, 8 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + PAGE);
    CHECK(r == room + PAGE && r[0] == '0' && r[PAGE] == '1' && r[2 * PAGE] == 0);
    CALL((long)mremap(r + 1, PAGE, PAGE, 0));
    CALL((long)mremap(r, PAGE, 0, 0));
    CALL((long)mremap(r, PAGE, PAGE, 64));
    CALL((long)mremap(r, PAGE, 2 * PAGE, MREMAP_FIXED, room));
    CALL((long)mremap(r, 3 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, r + PAGE));
    for (int how = 0; how <= MREMAP_MAYMOVE; how++) { /* which of the two differs between kernels */
        CHECK(mremap(r, PAGE, -PAGE, how) == MAP_FAILED && (errno == ENOMEM || errno == EINVAL));
        CHECK(mremap(r, PAGE, 1ul << 63, how) == MAP_FAILED && (errno == ENOMEM || errno == EINVAL));
    }
    CALL(munmap(p, PAGE));
    CALL((long)mremap(p, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
}

/* What a child does not have. */
static void wiped(void)
{
    char *p = map(5 * PAGE, RW);
    memset(p, 'x', 5 * PAGE);
    CALL(madvise(p, PAGE, MADV_WIPEONFORK));
    CALL(madvise(p + PAGE, 2 * PAGE, MADV_WIPEONFORK));
    CALL(madvise(p + PAGE, PAGE, MADV_KEEPONFORK));
    CALL(madvise(p, 0, MADV_WIPEONFORK));
    CALL(madvise(p + 1, PAGE, MADV_WIPEONFORK));
    CHECK(p[0] == 'x' && p[2 * PAGE] == 'x');
    CALL(mprotect(p, 5 * PAGE, PROT_READ));
    CALL(munmap(p + 3 * PAGE, PAGE));
    CALL(madvise(p, 5 * PAGE, MADV_WIPEONFORK)); /* a hole: ENOMEM */
    char *shared = mmap(p + 3 * PAGE, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(shared == p + 3 * PAGE);
    CALL(madvise(p, 5 * PAGE, MADV_WIPEONFORK));
    CALL(madvise(shared, PAGE, MADV_WIPEONFORK));
    CALL(madvise(shared, PAGE, MADV_KEEPONFORK));
    CALL(madvise(p, 5 * PAGE, MADV_KEEPONFORK));
}

static void files(const char *self)
{
    int fd = open(self, O_RDONLY);
    CHECK(fd >= 0);
    char *p = mmap(0, 2 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(p != MAP_FAILED && !memcmp(p, "\177ELF", 4));
    char head[PAGE];
    CHECK(pread(fd, head, PAGE, PAGE) == (long)PAGE && !memcmp(head, p + PAGE, PAGE));
    char *w = mmap(0, PAGE, RW, MAP_PRIVATE, fd, 0);
    w[0] = 'X';
    CHECK(w[0] == 'X' && p[0] == 0x7f && w[1] == 'E');
    CALL(madvise(w, PAGE, MADV_DONTNEED));
    CHECK(w[0] == 0x7f);
    CALL(madvise(w, PAGE, MADV_WIPEONFORK));
    CALL(madvise(w, PAGE, MADV_KEEPONFORK));
    CALL((long)mmap(0, PAGE, RW, MAP_SHARED, fd, 0));
    CALL((long)mmap(0, PAGE, PROT_READ, MAP_PRIVATE, fd, 100));
    CALL((long)mmap(0, 2 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0x7ffffffffffff000));
    CALL((long)mmap(0, PAGE, PROT_READ, MAP_PRIVATE, fd, -(long)PAGE));
    CHECK(mmap(0, PAGE, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED);
    close(fd);
    CHECK(p[1] == 'E');
}

static void heap(void)
{
    char *start = sbrk(0);
    CHECK(sbrk(3 * PAGE + 5) == start);
    start[3 * PAGE] = 1;
    CHECK(sbrk(-(long)(2 * PAGE)) == start + 3 * PAGE + 5);
    CHECK(sbrk(2 * PAGE) == start + PAGE + 5);
    CHECK(start[3 * PAGE] == 0);
    CALL(brk((void *)1));
    CHECK(sbrk(0) == start + 3 * PAGE + 5);
}

/* Code that is written, run, written anew and run again, as JITs do. */
static void code(void)
{
    unsigned char *p = (void *)map(PAGE, RW);
    for (int i = 1; i < 50; i++) {
        p[0] = 0xb8, p[1] = i, p[2] = p[3] = p[4] = 0, p[5] = 0xc3; /* mov $i,%eax; ret */
        CHECK(mprotect(p, PAGE, PROT_READ | PROT_EXEC) == 0);
        CHECK(((int (*)(void))p)() == i);
        CHECK(mprotect(p, PAGE, RW) == 0);
    }
}

/* More pages lose a permission at once than fit into one go of the ring-0 stub. */
static void many(void)
{
    char *p = map(1000 * PAGE, RW);
    for (int i = 0; i < 1000; i++) p[i * PAGE] = i;
    CHECK(munmap(p + PAGE, 998 * PAGE) == 0);
    CHECK(mmap(p + PAGE, 998 * PAGE, RW, ANON | MAP_FIXED, -1, 0) == p + PAGE);
    int sum = 0;
    for (int i = 1; i < 999; i++) sum += p[i * PAGE];
    CHECK(sum == 0 && p[999 * PAGE] == (char)999);
}

int main(int argc, char **argv)
{
    (void)argc;
    anonymous();
    wiped();
    bad();
    reservations();
    moves();
    files(argv[0]);
    heap();
    code();
    many();
    return done();
}
