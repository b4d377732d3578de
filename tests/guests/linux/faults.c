/* Ends by the fault that its argument names. */
#define _GNU_SOURCE
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static volatile int zero, one = 1, value;

static void *reads(void *at)
{
    value = *(volatile int *)at;
    return NULL;
}

int main(int argc, char **argv)
{
    const char *fault = argc > 1 ? argv[1] : "";
    void *volatile low = (void *)0x10;
    if (!strcmp(fault, "read")) reads(low);
    if (!strcmp(fault, "write")) *(volatile char *)"constant" = 1;
    if (!strcmp(fault, "wild")) reads((void *)(1ul << 63));
    if (!strcmp(fault, "invalid")) __asm__ volatile("ud2");
    if (!strcmp(fault, "divide")) value = one / zero;
    if (!strcmp(fault, "sse")) {
        static volatile double none, infinite;
        feenableexcept(FE_DIVBYZERO);
        infinite = 1 / none;
        (void)infinite;
    }
    if (!strcmp(fault, "stack")) __asm__ volatile("mov %0, %%rsp; pop %%rax" : : "r"(1ul << 63) : "rax");
    if (!strcmp(fault, "int3")) __asm__ volatile("int3");
    if (!strcmp(fault, "ignored")) {
        signal(SIGSEGV, SIG_IGN);
        reads(low);
    }
    if (!strcmp(fault, "blocked")) {
        sigset_t set;
        sigfillset(&set);
        sigprocmask(SIG_BLOCK, &set, NULL);
        reads(low);
    }
    if (!strcmp(fault, "in-thread")) {
        pthread_t thread;
        if (!pthread_create(&thread, NULL, reads, low)) pthread_join(thread, NULL);
    }
    if (!strcmp(fault, "abort")) abort();
    return 0;
}
