/* A server that is hostile to the machine's dispatcher. Its argument of a connection's first line:
 *
 *   nothing       answers
 *   scribble N    writes over all of its pages that can be written to, by a generator that starts at N, and answers
 *   queue N       says in its queue that calls were answered which were not, the Nth way, and goes on
 *   connection N  has it take descriptor N for the connection, and reads from there
 *   code          writes over its code
 *   jump N        jumps to its Nth byte
 *   keep TEXT     fills all of those pages with this, and answers
 *   find TEXT     says how often that is in them, and how many of their bytes are not zero beyond the connection's own
 *
 * Every answer ends with the number of connections so far, and what else has come on this one.
 */
#define _GNU_SOURCE
#include "listening.h"
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of crates/forkvm/src/arch: layout.rs, dispatcher/mod.rs. */
#define CODE 0x7e0010000000UL
#define STATE (CODE + 0x2000)
#define QUEUE (STATE + 0x1000)
#define INPUT (QUEUE + 0x1000)
#define END (CODE + 0x18000)

static int connections;

struct entry {
    uint64_t number, arguments[6];
    int64_t answer;
};

static void lie(int way, int client)
{
    static const char text[] = "not of this connection", large[1 << 17];
    volatile struct entry *queue = (struct entry *)QUEUE;
    volatile uint32_t *count = (uint32_t *)(STATE + 0x80);
    struct entry entry = {SYS_write, {client, (uint64_t)text, 10}, 10};
    switch (way) {
    case 0: entry.answer = 11; break;                                /* more than was written */
    case 1: entry = (struct entry){SYS_exit_group, {0}, 0}; break;   /* never answered there */
    case 2: entry = (struct entry){SYS_execve, {(uint64_t) "/bin/true"}, 0}; break;
    case 3: entry = (struct entry){SYS_futex, {STATE, 0, 0}, 0}; break; /* waits */
    case 4: entry = (struct entry){SYS_read, {client, INPUT, 1 << 20}, 1 << 20}; break;
    case 5: entry = (struct entry){~0UL, {~0UL, ~0UL, ~0UL, ~0UL, ~0UL, ~0UL}, -1}; break;
    case 6: entry = (struct entry){SYS_accept4, {3}, 4}; break;
    case 7: entry = (struct entry){SYS_write, {77, (uint64_t)text, 10}, 10}; break;
    case 8: entry = (struct entry){SYS_write, {client, 8, 10}, 10}; break;
    case 9: entry = (struct entry){SYS_epoll_wait, {client, STATE, 8}, 0}; break;
    case 12: entry = (struct entry){SYS_write, {2, (uint64_t)large, sizeof large}, sizeof large}; break; /* more than it has room for */
    }
    for (int i = 0; i < 64; i++) queue[i] = entry;
    *count = way == 10 ? 0xffffffff : way == 11 ? 65 : 1;
    syscall(SYS_sched_getaffinity, 0, 8, &entry);
}

static size_t found(const char *text)
{
    size_t len = strlen(text), times = 0;
    for (const char *at = (char *)STATE; at + len <= (char *)END; at++) times += memcmp(at, text, len) == 0;
    return times;
}

static void serve(int client)
{
    static char line[4096], answer[8192];
    ssize_t got = read(client, line, sizeof line - 1);
    if (got < 0) got = 0;
    line[got] = 0;
    char *rest = strchr(line, '\n');
    if (rest) *rest++ = 0;
    else rest = line + got;
    char *argument = strchr(line, ' ');
    if (argument) *argument++ = 0;
    else argument = line + strlen(line);
    unsigned long number = strtoul(argument, NULL, 10);
    size_t times = 0;
    if (!strcmp(line, "scribble")) {
        uint64_t x = number * 2 + 1;
        for (uint64_t *at = (uint64_t *)STATE; at < (uint64_t *)END; at++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            *(volatile uint64_t *)at = x;
        }
    } else if (!strcmp(line, "queue")) {
        lie(number, client);
    } else if (!strcmp(line, "connection")) {
        *(volatile int *)(STATE + 0x94) = number;
        char byte;
        if (read(number, &byte, 1) == 1) rest = "read";
    } else if (!strcmp(line, "code")) {
        *(volatile char *)CODE = 0xc3;
    } else if (!strcmp(line, "jump")) {
        __asm__ volatile("jmp *%0" : : "r"(CODE + number), "a"(39), "c"(&&after), "b"(STATE) : "memory");
    after:;
    } else if (!strcmp(line, "keep")) {
        size_t len = strlen(argument);
        for (char *at = (char *)STATE; at + len <= (char *)END; at += len) {
            /* As it was where that is what it goes by. */
            if (at < (char *)STATE + 0x600 && at + len > (char *)STATE) continue;
            if (at < (char *)INPUT && at + len > (char *)QUEUE) continue;
            memcpy(at, argument, len);
        }
    } else if (!strcmp(line, "find")) {
        times = found(argument);
    }
    int len = snprintf(answer, sizeof answer, "%zu %d %s", times, ++connections, rest);
    if (write(client, answer, len) != len) _exit(1);
}

int main(void)
{
    int listener = listening(0, NULL);
    if (listener < 0) return 1;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) return 2;
        serve(client);
        close(client);
    }
}
