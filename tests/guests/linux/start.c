/* How a program is started: arguments, environment, auxiliary vector, its own name. */
#define _GNU_SOURCE
#include "check.h"
#include <elf.h>
#include <limits.h>
#include <link.h>
#include <stdlib.h>
#include <sys/auxv.h>

extern char **environ;

static int each(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    int *count = data;
    /* The program comes first, and the dynamic linker told its address. */
    if ((*count)++ == 0) CHECK(info->dlpi_phdr == (void *)getauxval(AT_PHDR) && info->dlpi_phnum == getauxval(AT_PHNUM));
    return 0;
}

int main(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) printf("argv[%d] %s\n", i, argv[i]);
    CHECK(argv[argc] == 0);
    printf("LINUX_TEST %s\n", getenv("LINUX_TEST"));
    printf("execfn %s\n", (char *)getauxval(AT_EXECFN));
    char link[PATH_MAX] = "";
    CHECK(readlink("/proc/self/exe", link, sizeof link - 1) > 0);
    printf("exe %s\n", link);
    printf("name %s\n", program_invocation_short_name);
    CHECK(getauxval(AT_PAGESZ) == 4096 && getauxval(AT_CLKTCK) == 100 && getauxval(AT_SECURE) == 0);
    CHECK(getauxval(AT_PHNUM) > 0);
    unsigned char *random = (void *)getauxval(AT_RANDOM), sum = 0;
    for (int i = 0; i < 16; i++) sum |= random[i];
    CHECK(sum);
    printf("platform %s\n", (char *)getauxval(AT_PLATFORM));
    int count = 0;
    dl_iterate_phdr(each, &count);
    CHECK(count > 0);
    CHECK((unsigned long)__builtin_frame_address(0) % 16 == 0);
    return done() ? 1 : 42;
}
