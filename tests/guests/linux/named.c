/* What has a name among files and is none: named pipes (fifo(7)), sockets (unix(7)); and names that are exchanged (rename(2)). */
#define _GNU_SOURCE
#include "raw.h"
#include "texts.h"
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

static void mode(const char *path)
{
    struct stat s;
    if (lstat(path, &s)) printf("%s: %s\n", path, strerrorname_np(errno));
    else printf("%s: %o, %ld links\n", path, s.st_mode, S_ISDIR(s.st_mode) ? 0 : (long)s.st_nlink);
}

static void got(int fd)
{
    char text[100];
    long n = read(fd, text, sizeof text);
    if (n < 0) printf("    %s\n", strerrorname_np(errno));
    else printf("    %ld \"%.*s\"\n", n, (int)n, text);
}

static void ready(int fd)
{
    struct pollfd of = {fd, POLLIN | POLLOUT, 0};
    CHECK(poll(&of, 1, 0) >= 0);
    printf("    ready %x\n", of.revents);
}

static void *writer(void *path)
{
    usleep(20000);
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && write(fd, "from a thread", 13) == 13);
    close(fd);
    return 0;
}

static char taken[20];

static void *reader(void *path)
{
    usleep(20000);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && read(fd, taken, 11) == 11 && read(fd, taken + 11, 1) == 0);
    close(fd);
    return 0;
}

static volatile int signals;
static void on_signal(int number) { signals += number == SIGUSR1 || number == SIGPIPE; }
static pthread_t main_thread;
static volatile int finished;

static void *interrupts(void *unused)
{
    while (!finished) {
        usleep(10000);
        pthread_kill(main_thread, SIGUSR1);
    }
    return unused;
}

static void fifos(void)
{
    umask(022);
    CALL(mkfifo("f", 0666));
    CALL(mkfifo("f", 0666));
    CALL(mkfifo("no/f", 0666));
    CALL(mkfifo("g/", 0666));
    CALL(mknod("m", S_IFIFO | 0600, 0));
    CALL(mknod("w", S_IFDIR | 0600, 0));
    CALL(mknod("w", S_IFLNK | 0600, 0));
    mode("f"), mode("m");
    CALL(chmod("m", 0644));
    mode("m");
    CALL(truncate("f", 0));
    CALL(open("f", O_CREAT | O_EXCL | O_RDWR, 0600));
    CALL(open("f", O_DIRECTORY | O_RDONLY));
    CALL(open("f/", O_RDONLY | O_NONBLOCK));
    CALL(open("f", O_WRONLY | O_NONBLOCK));
    /* Without waiting. */
    int r = open("f", O_RDONLY | O_NONBLOCK);
    CHECK(r >= 0);
    got(r);
    int w = open("f", O_WRONLY | O_NONBLOCK), w2 = open("f", O_WRONLY);
    CHECK(w >= 0 && w2 >= 0);
    got(r), ready(r), ready(w);
    CALL(write(w, "one", 3));
    CALL(write(w2, "two", 3));
    int left = 0;
    CALL(ioctl(r, FIONREAD, &left));
    printf("    %d\n", left);
    ready(r);
    int r2 = open("f", O_RDONLY);
    CHECK(r2 >= 0);
    char text[4] = "";
    CALL(read(r2, text, 3));
    got(r);
    close(w);
    got(r), ready(r);
    close(w2);
    got(r), ready(r);
    CALL(lseek(r, 0, SEEK_CUR));
    CALL(pread(r, text, 1, 0));
    CALL(ftruncate(r, 0));
    CALL(write(r, "x", 1));
    CALL(fcntl(r, F_GETPIPE_SZ));
    struct stat s, t;
    CHECK(!fstat(r, &s) && !lstat("f", &t) && s.st_ino == t.st_ino && s.st_mode == t.st_mode);
    close(r2);
    /* What is in it stays as long as one has it open. */
    w = open("f", O_WRONLY);
    CALL(write(w, "stays", 5));
    close(r);
    signal(SIGPIPE, on_signal);
    CALL(write(w, "x", 1));
    printf("    %d signals\n", signals);
    r = open("f", O_RDONLY | O_NONBLOCK);
    got(r);
    CALL(write(w, "goes", 4));
    close(r), close(w);
    r = open("f", O_RDONLY | O_NONBLOCK);
    got(r);
    close(r);
    /* Both ends are one descriptor. */
    int both = open("f", O_RDWR);
    CHECK(both >= 0);
    ready(both);
    CALL(write(both, "to itself", 9));
    ready(both);
    got(both);
    CALL(fcntl(both, F_SETFL, O_RDWR | O_NONBLOCK));
    got(both);
    CALL(dup2(both, 50));
    CALL(close(both));
    CALL(write(50, "by another", 10));
    got(50);
    CALL(close(50));
    /* Another name, and none. */
    CALL(link("f", "f2"));
    mode("f2");
    r = open("f", O_RDONLY | O_NONBLOCK), w = open("f2", O_WRONLY);
    CHECK(r >= 0 && w >= 0);
    CALL(write(w, "by its other name", 17));
    got(r);
    CALL(unlink("f"));
    CALL(rename("f2", "f3"));
    CALL(write(w, "still", 5));
    got(r);
    CALL(unlink("f3"));
    CALL(write(w, "still", 5));
    got(r);
    CHECK(!fstat(r, &s));
    printf("    %o, %ld links\n", s.st_mode, (long)s.st_nlink);
    close(r), close(w);
    mode("f3");
    /* One waits for the other. */
    CALL(mkfifo("wait", 0600));
    pthread_t thread;
    pthread_create(&thread, 0, writer, "wait");
    r = open("wait", O_RDONLY);
    CHECK(r >= 0);
    got(r), got(r);
    pthread_join(thread, 0);
    close(r);
    pthread_create(&thread, 0, reader, "wait");
    w = open("wait", O_WRONLY);
    CHECK(w >= 0);
    CALL(write(w, "to a thread", 11));
    close(w);
    pthread_join(thread, 0);
    printf("    %s\n", taken);
    /* A wait that a signal ends leaves nothing. */
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, 0);
    main_thread = pthread_self();
    pthread_create(&thread, 0, interrupts, 0);
    CALL(open("wait", O_RDONLY));
    CALL(open("wait", O_WRONLY));
    finished = 1;
    pthread_join(thread, 0);
    CALL(open("wait", O_WRONLY | O_NONBLOCK));
    r = open("wait", O_RDONLY | O_NONBLOCK);
    got(r);
    /* Through the file system's other ways. */
    CALL(access("wait", R_OK | W_OK));
    CALL(symlink("wait", "to-wait"));
    w = open("to-wait", O_WRONLY | O_APPEND);
    CHECK(w >= 0);
    CALL(write(w, "by a link", 9));
    got(r);
    int path = open("wait", O_PATH);
    CALL(read(path, text, 1));
    CHECK(!fstat(path, &s) && S_ISFIFO(s.st_mode));
    char proc[40];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", w);
    char to[100] = "";
    long n = readlink(proc, to, sizeof to - 1);
    CHECK(n > 5 && !strcmp(to + n - 5, "/wait"));
    CHECK(n > 0);
    close(r), close(w), close(path);
}

static int bound(int style, const char *path)
{
    int fd = socket(AF_UNIX, style, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    if (bind(fd, (void *)&a, sizeof a)) printf("bind %s: %s\n", path, strerrorname_np(errno)), close(fd), fd = -1;
    else printf("bind %s\n", path);
    return fd;
}

static int to(int style, const char *path)
{
    int fd = socket(AF_UNIX, style, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    if (connect(fd, (void *)&a, sizeof a)) printf("connect %s: %s\n", path, strerrorname_np(errno)), close(fd), fd = -1;
    else printf("connect %s\n", path);
    return fd;
}

static void sockets(void)
{
    int file = open("file", O_CREAT | O_RDWR, 0666);
    umask(027);
    int s = bound(SOCK_STREAM, "s");
    mode("s");
    umask(022);
    bound(SOCK_STREAM, "s"), bound(SOCK_DGRAM, "file"), bound(SOCK_STREAM, "no/s"), bound(SOCK_STREAM, ".");
    to(SOCK_STREAM, "s"); /* does not listen */
    CALL(listen(s, 5));
    close(to(SOCK_STREAM, "s")), to(SOCK_DGRAM, "s"), to(SOCK_STREAM, "file"), to(SOCK_STREAM, "missing"), to(SOCK_STREAM, "no/s");
    CALL(open("s", O_RDWR));
    CALL(open("s", O_RDONLY | O_CREAT, 0600));
    CALL(truncate("s", 0));
    CALL(chmod("s", 0700));
    mode("s");
    int path = open("s", O_PATH);
    struct stat st, of;
    CHECK(!fstat(path, &st) && S_ISSOCK(st.st_mode));
    CHECK(!fstat(s, &of) && S_ISSOCK(of.st_mode) && of.st_ino != st.st_ino);
    close(path);
    /* By other names. */
    CALL(symlink("s", "link"));
    close(to(SOCK_STREAM, "link"));
    CALL(link("s", "hard"));
    close(to(SOCK_STREAM, "hard"));
    CALL(rename("s", "moved"));
    to(SOCK_STREAM, "s");
    int c = to(SOCK_STREAM, "moved");
    struct sockaddr_un a;
    socklen_t len = sizeof a;
    memset(&a, 0, sizeof a);
    CALL(getpeername(c, (void *)&a, &len));
    printf("    %s\n", a.sun_path);
    /* A name that is free again. */
    int again = bound(SOCK_STREAM, "s");
    CALL(listen(again, 5));
    close(to(SOCK_STREAM, "s"));
    CALL(unlink("hard"));
    CALL(unlink("moved"));
    to(SOCK_STREAM, "moved"), to(SOCK_STREAM, "link");
    CALL(write(c, "x", 1));
    /* One that nobody has any more stays. */
    close(again);
    mode("s");
    to(SOCK_STREAM, "s"), bound(SOCK_STREAM, "s");
    CALL(unlink("s"));
    close(bound(SOCK_STREAM, "s"));
    CALL(unlink("s"));
    mode("s");
    /* Datagrams. */
    int d = bound(SOCK_DGRAM, "d"), from = bound(SOCK_DGRAM, "from");
    strcpy(a.sun_path, "d");
    CALL(sendto(from, "hello", 5, 0, (void *)&a, sizeof a));
    char text[10];
    len = sizeof a;
    CALL(recvfrom(d, text, 10, 0, (void *)&a, &len));
    printf("    %.5s from %s\n", text, a.sun_path);
    CALL(rename("from", "renamed"));
    CALL(sendto(d, "back", 4, 0, (void *)&a, len));
    strcpy(a.sun_path, "renamed");
    CALL(sendto(d, "back", 4, 0, (void *)&a, sizeof a));
    strcpy(a.sun_path, "file");
    CALL(sendto(d, "back", 4, 0, (void *)&a, sizeof a));
    CALL(mknod("made", S_IFSOCK | 0600, 0));
    mode("made");
    to(SOCK_STREAM, "made");
    /* In another working directory. */
    CALL(mkdir("sub", 0755));
    CALL(chdir("sub"));
    int u = bound(SOCK_STREAM, "../up");
    CALL(listen(u, 1));
    CALL(chdir(".."));
    mode("up");
    close(to(SOCK_STREAM, "up"));
    close(file);
}

static void exchange(void)
{
    put("a", "of a"), put("b", "of b");
    CALL(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE));
    show("a"), show("b");
    CALL(renameat2(AT_FDCWD, "a", AT_FDCWD, "a", RENAME_EXCHANGE));
    CALL(renameat2(AT_FDCWD, "a", AT_FDCWD, "missing", RENAME_EXCHANGE));
    CALL(renameat2(AT_FDCWD, "missing", AT_FDCWD, "a", RENAME_EXCHANGE));
    CALL(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE | RENAME_NOREPLACE));
    CALL(mkdir("x", 0755));
    CALL(mkdir("x/deep", 0755));
    put("x/deep/file", "deep");
    CALL(mkdir("y", 0700));
    put("y/other", "other");
    CALL(renameat2(AT_FDCWD, "x", AT_FDCWD, "y", RENAME_EXCHANGE));
    show("y/deep/file"), show("x/other"), mode("x"), mode("y"), mode("x/deep");
    CALL(renameat2(AT_FDCWD, "a", AT_FDCWD, "y", RENAME_EXCHANGE));
    show("y"), show("a/deep/file"), mode("a"), mode("y");
    CALL(renameat2(AT_FDCWD, "a", AT_FDCWD, "a/deep", RENAME_EXCHANGE));
    CALL(renameat2(AT_FDCWD, "a/deep/file", AT_FDCWD, "a", RENAME_EXCHANGE));
    CALL(renameat2(AT_FDCWD, "y", AT_FDCWD, "a/deep/file", RENAME_EXCHANGE));
    show("y"), show("a/deep/file");
    CALL(symlink("y", "l"));
    CALL(renameat2(AT_FDCWD, "l", AT_FDCWD, "b", RENAME_EXCHANGE));
    mode("l"), mode("b"), show("b");
    CALL(link("l", "l2"));
    CALL(renameat2(AT_FDCWD, "l", AT_FDCWD, "l2", RENAME_EXCHANGE));
    mode("l");
    CALL(renameat2(AT_FDCWD, "l/", AT_FDCWD, "y", RENAME_EXCHANGE));
    CALL(renameat2(AT_FDCWD, ".", AT_FDCWD, "y", RENAME_EXCHANGE));
}

static int removes(const char *path, const struct stat *s, int kind, struct FTW *at)
{
    (void)s, (void)kind, (void)at;
    return remove(path);
}

int main(void)
{
    char folder[] = "/tmp/named-XXXXXX";
    CHECK(mkdtemp(folder) && !chdir(folder));
    fifos();
    sockets();
    exchange();
    CHECK(!chdir("/"));
    CHECK(!nftw(folder, removes, 10, FTW_DEPTH | FTW_PHYS));
    CALL(access(folder, F_OK) && errno == ENOENT);
    return done();
}
