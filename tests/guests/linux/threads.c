/* Threads and futexes: clone(2), futex(2), set_tid_address(2), robust lists, sched_yield(2), execve(2). */
#define _GNU_SOURCE
#include "check.h"
#include <limits.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static long counter;
static __thread long own;

static long futex(int *word, int op, int value, void *timeout, int *second, int value3)
{
    return syscall(SYS_futex, word, op, value, timeout, second, value3);
}

static void *adds(void *argument)
{
    for (int i = 0; i < 2000; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
        own++;
    }
    CHECK(own == 2000);
    return argument;
}

/* Computes without a call: only a time slice has others run meanwhile. Its vector registers must not be lost. */
static volatile int stop;
static void *spins(void *argument)
{
    double sum = 0, x = (double)(long)argument;
    long rounds = 0;
    while (!stop) {
        for (int i = 1; i < 1000; i++) sum = fmod(sum + sqrt(x * i), 97.0);
        rounds++;
    }
    double again = 0;
    for (long r = 0; r < rounds; r++)
        for (int i = 1; i < 1000; i++) again = fmod(again + sqrt(x * i), 97.0);
    CHECK(sum == again);
    return 0;
}

static void *waits(void *argument)
{
    pthread_mutex_lock(&mutex);
    while (counter != 7) pthread_cond_wait(&cond, &mutex);
    pthread_mutex_unlock(&mutex);
    return argument;
}

static void many(void)
{
    pthread_t threads[20];
    for (long i = 0; i < 20; i++) CHECK(pthread_create(&threads[i], 0, adds, (void *)i) == 0);
    for (long i = 0; i < 20; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0 && result == (void *)i);
    }
    CHECK(counter == 40000 && own == 0);
}

static void slices(void)
{
    pthread_t threads[3];
    for (long i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], 0, spins, (void *)(i + 2)) == 0);
    struct timespec pause = {0, 100000000};
    CHECK(nanosleep(&pause, 0) == 0);
    stop = 1;
    for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], 0) == 0);
}

static void conditions(void)
{
    pthread_t threads[5];
    counter = 0;
    for (long i = 0; i < 5; i++) CHECK(pthread_create(&threads[i], 0, waits, 0) == 0);
    for (int i = 0; i < 10; i++) sched_yield();
    pthread_mutex_lock(&mutex);
    counter = 7;
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&mutex);
    for (int i = 0; i < 5; i++) CHECK(pthread_join(threads[i], 0) == 0);
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_nsec += 20000000;
    if (soon.tv_nsec >= 1000000000) soon.tv_sec++, soon.tv_nsec -= 1000000000;
    pthread_mutex_lock(&mutex);
    CHECK(pthread_cond_timedwait(&cond, &mutex, &soon) == ETIMEDOUT);
    pthread_mutex_unlock(&mutex);
}

static int word, other;
static void *wakes(void *argument)
{
    (void)argument;
    struct timespec pause = {0, 20000000};
    nanosleep(&pause, 0);
    word = 1;
    CHECK(futex(&word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0) == 1);
    return 0;
}

static void futexes(void)
{
    struct timespec short_time = {0, 1000000}, bad = {0, 2000000000};
    CALL(futex(&word, FUTEX_WAIT, 1, 0, 0, 0));
    CALL(futex(&word, FUTEX_WAIT, 0, &short_time, 0, 0));
    CALL(futex(&word, FUTEX_WAIT, 0, &bad, 0, 0));
    CALL(futex(&word, FUTEX_WAIT, 1, &bad, 0, 0));
    CALL(futex((int *)8, FUTEX_WAIT, 0, &short_time, 0, 0));
    CALL(futex((int *)8, FUTEX_WAKE, 1, 0, 0, 0));
    CALL(futex((int *)((char *)&word + 1), FUTEX_WAKE, 1, 0, 0, 0));
    CALL(futex(&word, FUTEX_WAIT_BITSET, 0, 0, 0, 0));
    CALL(futex(&word, FUTEX_WAKE_BITSET, 1, 0, 0, 0));
    CALL(futex(&word, FUTEX_WAKE, INT_MAX, 0, 0, 0));
    CALL(futex(&word, FUTEX_CMP_REQUEUE, 0, (void *)1, &other, 3));
    CALL(futex(&word, FUTEX_CMP_REQUEUE, 0, (void *)1, &other, 0));
    CALL(futex(&word, FUTEX_WAKE_OP, 1, (void *)1, &other, FUTEX_OP(FUTEX_OP_ADD, 5, FUTEX_OP_CMP_EQ, 0)));
    CHECK(other == 5);
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, wakes, 0) == 0);
    CALL(futex(&word, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0));
    CHECK(word == 1 && pthread_join(thread, 0) == 0);
}

static pthread_mutex_t robust;
static void *dies(void *argument)
{
    pthread_mutex_lock(&robust);
    return argument;
}

static void robust_locks(void)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attributes);
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, dies, 0) == 0 && pthread_join(thread, 0) == 0);
    CHECK(pthread_mutex_lock(&robust) == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
}

static void *calls_exit(void *argument)
{
    char *const arguments[] = {argument, "second", 0}, *const environment[] = {"A=b", 0};
    execve("/no/such/program", arguments, environment);
    CHECK(errno == ENOENT);
    failed_ ? exit(1) : 0;
    fflush(stdout);
    execve(argument, arguments, environment);
    exit(9);
}

static void bad(void)
{
    static char stack[4096] __attribute__((aligned(16)));
    const long thread = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_SETTLS;
    CALL(syscall(SYS_clone, thread, stack + sizeof stack, 0, 0, 0x7ffffffff000));
    CALL(syscall(SYS_clone, thread, stack + sizeof stack, 0, 0, 1ul << 47));
    CALL(syscall(SYS_clone, thread, stack + sizeof stack, 0, 0, ~0ul));
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "second")) {
        CHECK(getpid() == gettid() && !strcmp(getenv("A"), "b") && environ[1] == 0);
        return done() ? 1 : 5;
    }
    CHECK(getpid() == gettid());
    many();
    slices();
    conditions();
    futexes();
    robust_locks();
    bad();
    printf("%d failed\n", failed_);
    /* Another thread than the first has the program replaced; the new one's first thread is the only one. */
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, calls_exit, argv[0]) == 0);
    pthread_join(thread, 0);
    return 8;
}
