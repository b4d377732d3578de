/* Short files: written and shown. */
#ifndef TEXTS_H
#define TEXTS_H
#include "check.h"
#include <fcntl.h>

static inline void show(const char *path)
{
    char text[200];
    int fd = open(path, O_RDONLY);
    long n = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (n < 0) printf("%s: %s\n", path, strerrorname_np(errno));
    else printf("%s: \"%.*s\"\n", path, (int)n, text);
    close(fd);
}

static inline void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0);
    CHECK(write(fd, text, strlen(text)) == (long)strlen(text));
    close(fd);
}
#endif
