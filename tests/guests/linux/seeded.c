/* A server whose connections say what is random in them, and what they are called. One line a connection:
 *
 *   getrandom, AT_RANDOM, memory that a child finds zero, such that it keeps after all, the stack that was there at the start, ids
 *
 * Arguments: the port; "mark", to have AT_RANDOM's bytes written over before the freeze; "forks", to answer as a child.
 */
#define _GNU_SOURCE
#include "listening.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096

/* What OpenSSL is known by: all that is called from this program's own code is called from a library that seeds its generators
 * anew in a child. */
int RAND_bytes(unsigned char *bytes, int len)
{
    return getrandom(bytes, len, 0) == len;
}

/* The id as others are told it: `sub $8, %rsp; call *%rdi; add $8, %rsp; ret`, in code that is no library's. */
static int plain_pid(void)
{
    static const unsigned char code[] = {0x48, 0x83, 0xec, 8, 0xff, 0xd7, 0x48, 0x83, 0xc4, 8, 0xc3};
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(page, code, sizeof(code));
    if (mprotect(page, PAGE, PROT_READ | PROT_EXEC)) abort();
    int pid = ((int (*)(pid_t (*)(void)))page)(getpid);
    munmap(page, PAGE);
    return pid;
}

static void hex(FILE *out, const char *name, const unsigned char *bytes)
{
    fprintf(out, "%s=", name);
    for (int i = 0; i < 16; i++) fprintf(out, "%02x", bytes[i]);
    fputc(' ', out);
}

/* What /proc says of a process: its id, by both of its files, or 0. */
static int known(int pid)
{
    char path[64], line[128];
    int of_stat = 0, of_status = 0;
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fscanf(file, "%d", &of_stat) != 1) abort();
    fclose(file);
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    file = fopen(path, "r");
    while (fgets(line, sizeof(line), file)) sscanf(line, "Pid: %d", &of_status);
    fclose(file);
    return of_stat == of_status ? of_stat : -1;
}

/* Whether an id means this process, or its first thread, to those that take one. */
static int is_own(int pid)
{
    struct sched_param param;
    cpu_set_t set;
    return !kill(pid, 0) && !syscall(SYS_tgkill, pid, gettid(), 0) && !syscall(SYS_tkill, pid, 0) &&
           !sched_getparam(pid, &param) && !sched_getaffinity(pid, sizeof(set), &set) &&
           (errno = 0, getpriority(PRIO_PROCESS, pid), !errno) && getpgid(pid) >= 0 && known(pid) == plain_pid();
}

int main(int argc, char **argv)
{
    int listener = listening(argc, argv);
    if (listener < 0) return 1;
    unsigned char *at_random = (void *)getauxval(AT_RANDOM);
    if (argc > 2 && !strcmp(argv[2], "mark")) memset(at_random, 0xee, 16);
    int forks = argc > 2 && !strcmp(argv[2], "forks");
    unsigned char *wiped = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(wiped, 0xaa, 3 * PAGE);
    if (madvise(wiped, 4 * PAGE, MADV_WIPEONFORK) || madvise(wiped + PAGE, PAGE, MADV_KEEPONFORK) ||
        mprotect(wiped + 2 * PAGE, PAGE, PROT_READ))
        return 2;
    int pid = getpid(), tid = gettid();
    for (;;) {
        int client = accept(listener, NULL, NULL);
        char head[4096], *answer;
        size_t len;
        if (client < 0 || read(client, head, sizeof(head)) <= 0) return 3;
        /* What a child finds that is made for the connection is what it is here by then. */
        memset(wiped + 3 * PAGE, 0xbb, 16);
        if (forks && (pid = getpid(), fork())) return 4;
        if (forks) tid = gettid();
        unsigned char random[16];
        if (!RAND_bytes(random, 16)) return 5;
        FILE *out = open_memstream(&answer, &len);
        hex(out, "getrandom", random);
        hex(out, "auxv", at_random);
        hex(out, "wiped", wiped);
        hex(out, "kept", wiped + PAGE);
        hex(out, "read-only", wiped + 2 * PAGE);
        hex(out, "late", wiped + 3 * PAGE);
        fprintf(out, "plain=%d ", plain_pid() == pid);
        fprintf(out, "other=%d tid=%d own=%d former=%d stranger=%d\n", getpid() != pid, gettid() == tid, is_own(getpid()), is_own(pid), !kill(77, 0) || known(77));
        fclose(out);
        memset(wiped, 0xcc, 2 * PAGE);
        if (write(client, answer, len) != (ssize_t)len) return 6;
        free(answer);
        close(client);
        if (forks) return 0;
    }
}
