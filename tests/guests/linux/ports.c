/* `out` to the port by which the machine's own code makes system calls, for one that waits and so goes on at this
 * address: SIGSEGV, as for any port. Some machines serve it, where the address is one that a program may have. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

int main(int argc, char **argv)
{
    struct timespec time = {0, 1000};
    unsigned long at = strtoul(argc > 1 ? argv[1] : "", 0, 16);
    __asm__ volatile("out %%eax, $4" : : "a"(SYS_nanosleep), "D"(&time), "S"(0), "c"(at) : "r11", "memory");
    return 7;
}
