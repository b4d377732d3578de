/* System calls by their numbers, as C libraries don't make all of them. */
#ifndef RAW_H
#define RAW_H
#include "check.h"
#include <sys/syscall.h>

/* Prints what a call gives: its name and arguments, as they are written, its result or errno. */
#define RAW(name, ...)                                                                         \
    do {                                                                                       \
        errno = 0;                                                                             \
        long result_ = syscall(SYS_##name, ##__VA_ARGS__);                                     \
        if (result_ == -1) printf(#name "(" #__VA_ARGS__ "): -1 %s\n", strerrorname_np(errno)); \
        else printf(#name "(" #__VA_ARGS__ "): %ld\n", result_);                               \
    } while (0)

/* An address that no program has, and one that it may not write to. */
#define BAD ((void *)8)
#define CONST ((void *)"constant")
#endif
