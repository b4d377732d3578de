/* Starts a helper in the way that its argument names, and says what came of it. */
#define _GNU_SOURCE
#include "check.h"
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>

extern char **environ;

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "fork";
    char *arguments[] = {"true", 0};
    pid_t child = 1;
    errno = 0;
    if (!strcmp(how, "fork")) child = fork();
    if (!strcmp(how, "vfork")) child = vfork();
    if (!strcmp(how, "posix_spawn")) errno = posix_spawn(&child, "/bin/true", 0, 0, arguments, environ);
    if (!strcmp(how, "system")) child = system("true");
    if (child == 0) _exit(0);
    printf("%s: %s\n", how, errno ? strerrorname_np(errno) : "done");
    return 0;
}
