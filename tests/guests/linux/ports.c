/* Reaches for the port by which the machine's own code makes system calls: SIGSEGV, as for any port. Some machines serve it,
 * here, or with an argument at the stub there, for a call that waits and so goes on at this address. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

/* MONITOR_BASE + USER_STUBS (crates/forkvm/src/arch/layout.rs), where `syscall` arrives if that is in ring 3. */
#define STUB 0x7e0000008000UL

int main(int argc, char **argv)
{
    struct timespec time = {0, 1000};
    long result = SYS_nanosleep;
    if (argc > 1) {
        unsigned long at = strtoul(argv[1], 0, 16);
        __asm__ volatile("jmp *%%rdx" : "+a"(result) : "D"(&time), "S"(0), "c"(at), "d"(STUB) : "r11", "memory");
    } else {
        __asm__ volatile("out %%eax, $4" : "+a"(result) : "D"(&time), "S"(0) : "rcx", "r11", "memory");
    }
    return result == 0 ? 7 : 8;
}
