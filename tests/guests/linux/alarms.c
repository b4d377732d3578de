/* Never ends: each of its calls takes longer than its timer, whose signal it ignores. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/time.h>

int main(void)
{
    enum { LEN = 16 << 20 };
    char *to = malloc(LEN);
    struct itimerval time = {{0, 1}, {0, 1}};
    signal(SIGALRM, SIG_IGN);
    setitimer(ITIMER_REAL, &time, NULL);
    puts("begins");
    fflush(stdout);
    while (to) (void)!getrandom(to, LEN, 0);
    return 1;
}
