/* For programs that run natively and in the machine: what they print has to be the same. */
#ifndef CHECK_H
#define CHECK_H
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef __GLIBC__
#define strerrorname_np strerror
#endif

/* Prints a call's result, and errno if it failed. */
#define CALL(call)                                                                             \
    do {                                                                                       \
        errno = 0;                                                                             \
        long result_ = (long)(call);                                                           \
        if (result_ == -1) printf("%s: -1 %s\n", #call, strerrorname_np(errno));               \
        else printf("%s: %ld\n", #call, result_);                                              \
    } while (0)

static int failed_;

/* Says what does not hold. */
#define CHECK(holds)                                                                           \
    do {                                                                                       \
        if (!(holds)) {                                                                        \
            printf("%s:%d: not so: %s (errno %s)\n", __FILE__, __LINE__, #holds, strerrorname_np(errno)); \
            failed_++;                                                                         \
        }                                                                                      \
    } while (0)

/* The exit status. */
static inline int done(void)
{
    printf("%d failed\n", failed_);
    fflush(stdout);
    return failed_ != 0;
}
#endif
