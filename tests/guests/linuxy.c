// What a program may ask of the system: a family of calls for each URL, and a line that says what came of
// them. A failed call is shown by the name of its errno. The README says which results are right.
//
// Not to be run outside of a virtual machine: /denied and /write-file mean it.
//
// Files are named by ?path=. If main() gets an argument, it opens that file, for /main-file.

#define _GNU_SOURCE
#include "query.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int main_file = -1;
static char path[4096];

// Says "name result", with the errno's name for -1.
static long show(const char *name, long result)
{
	if (result == -1)
		say("%s %s ", name, strerrorname_np(errno) ? strerrorname_np(errno) : "?");
	else
		say("%s %ld ", name, result);
	return result;
}

static const char *yes(bool condition)
{
	return condition ? "yes" : "no";
}

static bool all(const char *p, size_t len, char value)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != value)
			return false;
	return true;
}

static bool ok(const void *mapping)
{
	return mapping != MAP_FAILED;
}

static char *map(size_t len)
{
	return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

// ---------------------------------------------------------------- memory

static void do_malloc(void)
{
	bool small = true;
	char *pieces[1000], *big = malloc(5 << 20);

	for (int i = 0; i < 1000; i++) {
		pieces[i] = malloc(i + 1);
		memset(pieces[i], i, i + 1);
	}
	for (int i = 0; i < 1000; i++) {
		small = small && all(pieces[i], i + 1, (char)i);
		free(pieces[i]);
	}
	memset(big, 7, 5 << 20);
	big = realloc(big, 9 << 20);
	const bool kept = all(big, 5 << 20, 7);
	char *zero = calloc(1, 2 << 20);
	say("small %s realloc %s calloc-zero %s too-big %s", yes(small), yes(kept), yes(all(zero, 2 << 20, 0)),
	    yes(!malloc(1ul << 46)));
	free(zero);
	free(big);
}

static void do_mmap(void)
{
	char *p = map(1 << 20);

	if (!ok(p)) {
		show("mmap", -1);
		return;
	}
	say("mapped yes zero %s ", yes(all(p, 1 << 20, 0)));
	memset(p, 1, 1 << 20);
	show("munmap", munmap(p, 1 << 20));
	p = map(1 << 20);
	say("again-zero %s ", yes(ok(p) && all(p, 1 << 20, 0)));
	show("madvise", madvise(p, 1 << 20, MADV_DONTNEED));
}

// Arguments that can't be right.
static void do_mmap_wild(void)
{
	const int private = MAP_PRIVATE | MAP_ANONYMOUS, rw = PROT_READ | PROT_WRITE;

	show("empty", ok(mmap(NULL, 0, rw, private, -1, 0)) ? 0 : -1);
	show("huge", ok(mmap(NULL, 1ul << 46, rw, private, -1, 0)) ? 0 : -1);
	show("wrap", ok(mmap(NULL, -4096ul, rw, private, -1, 0)) ? 0 : -1);
	show("kernel", ok(mmap((void *)0xffffffff81000000, 4096, rw, private | MAP_FIXED, -1, 0)) ? 0 : -1);
	show("closed-fd", ok(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 77, 0)) ? 0 : -1);
	show("munmap-odd", munmap((void *)0x1234567, 4096));
	show("mprotect-odd", mprotect((void *)0x1234567, 4096, PROT_READ));
	show("mprotect-kernel", mprotect((void *)0xffffffff81000000, 4096, rw));
}

static void do_mremap(void)
{
	char *p = map(64 << 10);

	memset(p, 5, 64 << 10);
	p = mremap(p, 64 << 10, 1 << 20, MREMAP_MAYMOVE);
	if (!ok(p)) {
		show("mremap", -1);
		return;
	}
	say("grown yes kept %s rest-zero %s ", yes(all(p, 64 << 10, 5)),
	    yes(all(p + (64 << 10), (1 << 20) - (64 << 10), 0)));
	p = mremap(p, 1 << 20, 4096, 0);
	say("shrunk %s", yes(ok(p) && all(p, 4096, 5)));
}

static void do_mprotect(void)
{
	char *p = map(8192);

	p[0] = 1;
	show("read-only", mprotect(p, 4096, PROT_READ));
	show("none", mprotect(p + 4096, 4096, PROT_NONE));
	say("readable %s ", yes(p[0] == 1));
	show("back", mprotect(p, 8192, PROT_READ | PROT_WRITE));
	p[0] = p[4096] = 2;
	show("exec", mprotect(p, 4096, PROT_READ | PROT_EXEC));
	show("wx", mprotect(p, 4096, PROT_READ | PROT_WRITE | PROT_EXEC));
}

// Ends the request where permissions are kept.
static void do_mprotect_write(void)
{
	volatile char *p = map(4096);

	if (mprotect((void *)p, 4096, PROT_READ)) {
		show("mprotect", -1);
		return;
	}
	p[0] = 1;
	say("survived");
}

static void do_munmap_touch(void)
{
	volatile char *p = map(4096);

	p[0] = 1;
	munmap((void *)p, 4096);
	say("survived %d", p[0]);
}

static void do_brk(void)
{
	char *before = sbrk(0), *grown = sbrk(1 << 20);

	if (grown == (char *)-1) {
		show("sbrk", -1);
		return;
	}
	say("grown %s zero %s ", yes(grown == before), yes(all(grown, 1 << 20, 0)));
	memset(grown, 1, 1 << 20);
	sbrk(-(1 << 20));
	say("shrunk %s ", yes(sbrk(0) == before));
	grown = sbrk(1 << 20);
	say("again-zero %s too-much %s", yes(all(grown, 1 << 20, 0)), yes(sbrk(1l << 46) == (void *)-1));
}

// ---------------------------------------------------------------- files

static void do_read(void)
{
	char text[100];
	const int fd = open(path, O_RDONLY);

	if (fd < 0) {
		show("open", -1);
		return;
	}
	const ssize_t n = read(fd, text, sizeof text);
	if (n < 0)
		show("read", -1);
	else
		say("read %zd: %.*s", n, (int)n, text);
	close(fd);
}

static void show_stat(const char *name, int result, const struct stat *st)
{
	if (result < 0)
		show(name, -1);
	else
		say("%s %s mode %o size %ld ", name,
		    S_ISREG(st->st_mode) ? "file" : S_ISDIR(st->st_mode) ? "folder" : S_ISLNK(st->st_mode) ? "link" : "other",
		    st->st_mode & 07777, (long)st->st_size);
}

static void do_stat(void)
{
	struct stat st;
	const int fd = open(path, O_RDONLY);

	show_stat("stat", stat(path, &st), &st);
	show_stat("lstat", lstat(path, &st), &st);
	if (fd >= 0)
		show_stat("fstat", fstat(fd, &st), &st);
	show("access", access(path, R_OK));
	show("access-write", access(path, W_OK));
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void do_list(void)
{
	char *names[1000];
	int n = 0;
	DIR *dir = opendir(path);

	if (!dir) {
		show("opendir", -1);
		return;
	}
	for (struct dirent *entry; n < 1000 && (entry = readdir(dir));)
		names[n++] = strdup(entry->d_name);
	closedir(dir);
	qsort(names, n, sizeof *names, by_name);
	for (int i = 0; i < n; i++)
		say("%s ", names[i]);
}

static void do_seek(void)
{
	char a[4] = "", b[4] = "";
	const int fd = open(path, O_RDONLY);
	struct iovec vectors[2] = {{a, 3}, {b, 3}};

	if (fd < 0) {
		show("open", -1);
		return;
	}
	show("end", lseek(fd, 0, SEEK_END));
	show("set", lseek(fd, 1, SEEK_SET));
	show("cur", lseek(fd, 1, SEEK_CUR));
	show("before", lseek(fd, -1, SEEK_SET));
	show("pread", pread(fd, a, 3, 1));
	say("%s ", a);
	show("readv", readv(fd, vectors, 2));
	say("%s|%s ", a, b);
	show("cur", lseek(fd, 0, SEEK_CUR));
	show("write", write(fd, a, 1));
}

static void do_mmap_file(void)
{
	const int fd = open(path, O_RDONLY);

	if (fd < 0) {
		show("open", -1);
		return;
	}
	char *p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	if (ok(p))
		say("mapped %.16s", p);
	else
		show("mmap", -1);
}

// The descriptor is main()'s, its offset must be as it was then.
static void do_main_file(void)
{
	char text[9] = "";

	show("read", read(main_file, text, 8));
	say("%s ", text);
	show("offset", lseek(main_file, 0, SEEK_CUR));
}

// Adds a byte to a file, which it makes if it is not there, and says how long it is then.
static void do_change(void)
{
	const int fd = open(path, O_RDWR | O_CREAT | O_APPEND, 0644);
	struct stat st;

	if (show("open", fd < 0 ? -1 : 0) != 0)
		return;
	show("write", write(fd, "x", 1));
	if (fstat(fd, &st) == 0)
		say("size %ld ", (long)st.st_size);
	close(fd);
}

static void do_write_file(void)
{
	show("create", open(path, O_WRONLY | O_CREAT, 0600));
	show("write", open(path, O_WRONLY));
	show("truncate", open(path, O_RDONLY | O_TRUNC));
	show("append", open(path, O_RDWR | O_APPEND));
	show("unlink", unlink(path));
	show("mkdir", mkdir(path, 0700));
	show("rename", rename(path, "/tmp/renamed"));
	show("symlink", symlink("/etc/passwd", path));
	show("chmod", chmod(path, 0777));
	show("truncate", truncate(path, 0));
}

static void do_exe(void)
{
	const ssize_t n = readlink("/proc/self/exe", path, sizeof path);

	if (n < 0)
		show("readlink", -1);
	else
		say("%.*s", (int)n, path);
}

static void do_cwd(void)
{
	if (getcwd(path, sizeof path))
		say("%s", path);
	else
		show("getcwd", -1);
}

static void do_chdir(void)
{
	show("chdir", chdir(path));
	do_cwd();
}

static void do_dup(void)
{
	const long fd = show("dup", dup(1));

	show("F_GETFL", fcntl(fd, F_GETFL) & O_ACCMODE);
	show("F_GETFD", fcntl(fd, F_GETFD));
	show("dup2", dup2(1, 9));
	show("dup3-same", dup3(1, 1, O_CLOEXEC));
	show("F_DUPFD", fcntl(1, F_DUPFD_CLOEXEC, 20));
	show("close", close(fd));
	show("close-again", close(fd));
	show("next", dup(1));
	show("write", write(9, "linuxy: to a copy\n", 18));
}

static void do_tty(void)
{
	struct winsize size;

	show("TIOCGWINSZ", ioctl(1, TIOCGWINSZ, &size));
	say("isatty %s ", yes(isatty(1)));
	show("odd-ioctl", ioctl(1, 0xdeadbeef, &size));
	show("stdin", read(0, path, 10));
}

static void do_closed_fd(void)
{
	char c = 0;

	show("write", write(77, "x", 1));
	show("read", read(77, &c, 1));
	show("close", close(77));
	show("close-negative", close(-1));
	show("lseek", lseek(77, 0, SEEK_SET));
	show("fstat", fstat(77, &(struct stat){0}));
	show("dup", dup(77));
	show("ioctl", ioctl(77, TIOCGWINSZ, &c));
	show("huge", write(0x7fffffff, "x", 1));
}

static void do_pipe(void)
{
	int fds[2];
	char text[8] = "";

	if (show("pipe", pipe(fds)) < 0)
		return;
	show("write", write(fds[1], "through", 7));
	show("read", read(fds[0], text, 7));
	say("%s ", text);
	close(fds[1]);
	show("at-end", read(fds[0], text, 7));
}

static void do_poll(void)
{
	struct pollfd fds = {1, POLLOUT, 0};

	show("stdout", poll(&fds, 1, 0));
	show("nothing", poll(NULL, 0, 5));
	show("select", select(0, NULL, NULL, NULL, &(struct timeval){0, 1000}));
}

// ---------------------------------------------------------------- time and chance

static double seconds(struct timespec t)
{
	return t.tv_sec + t.tv_nsec / 1e9;
}

static double clock_now(clockid_t id)
{
	struct timespec t = {0, 0};

	clock_gettime(id, &t);
	return seconds(t);
}

static void do_time(void)
{
	struct timeval tv = {0, 0};
	const time_t t = time(NULL);
	const double real = clock_now(CLOCK_REALTIME), mono = clock_now(CLOCK_MONOTONIC);

	gettimeofday(&tv, NULL);
	say("realtime %ld ", (long)real);
	say("agree %s ", yes(real - t < 2 && real - t > -2 && real - tv.tv_sec < 2 && real - tv.tv_sec > -2));
	say("monotonic %s ", yes(mono > 0 && clock_now(CLOCK_MONOTONIC) >= mono));
	show("getres", clock_getres(CLOCK_MONOTONIC, &(struct timespec){0, 0}));
	show("coarse", clock_gettime(CLOCK_REALTIME_COARSE, &(struct timespec){0, 0}));
	show("cputime", clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &(struct timespec){0, 0}));
	show("no-clock", clock_gettime(12345, &(struct timespec){0, 0}));
}

static void do_sleep(void)
{
	const double before = clock_now(CLOCK_MONOTONIC);

	show("nanosleep", nanosleep(&(struct timespec){0, 20000000}, NULL));
	const double took = clock_now(CLOCK_MONOTONIC) - before;
	say("at-least %s ", yes(took >= 0.02));
	show("negative", nanosleep(&(struct timespec){-1, 0}, NULL));
	show("clock_nanosleep", -clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){0, 1000000}, NULL));
}

static void do_random(void)
{
	uint64_t a[2] = {0, 0}, b[2] = {0, 0};

	show("getrandom", getrandom(a, sizeof a, 0));
	show("again", getrandom(b, sizeof b, GRND_NONBLOCK));
	say("differ %s zero %s %016lx%016lx", yes(memcmp(a, b, sizeof a) != 0), yes(!a[0] || !b[0]), a[0], a[1]);
}

// ---------------------------------------------------------------- the process and the machine

static void do_ids(void)
{
	say("pid %d tid %ld ppid %d uid %d euid %d gid %d egid %d pgrp %d", getpid(), syscall(SYS_gettid), getppid(),
	    getuid(), geteuid(), getgid(), getegid(), getpgrp());
}

static void do_uname(void)
{
	struct utsname name;

	if (uname(&name))
		show("uname", -1);
	else
		say("%s %s %s", name.sysname, name.machine, name.release);
}

static void do_sysinfo(void)
{
	struct sysinfo info = {0};

	show("sysinfo", sysinfo(&info));
	say("totalram %lu freeram %lu", info.totalram * info.mem_unit, info.freeram * info.mem_unit);
}

static void do_rlimit(void)
{
	struct rlimit limit;

	if (show("stack", getrlimit(RLIMIT_STACK, &limit)) == 0)
		say("(%ld) ", (long)limit.rlim_cur);
	if (show("nofile", getrlimit(RLIMIT_NOFILE, &limit)) == 0)
		say("(%ld) ", (long)limit.rlim_cur);
	show("setrlimit", setrlimit(RLIMIT_NOFILE, &(struct rlimit){1, 1}));
	show("getrusage", getrusage(RUSAGE_SELF, &(struct rusage){0}));
}

static void do_affinity(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	const int result = sched_getaffinity(0, sizeof set, &set);
	show("affinity", result);
	say("cpus %d ", CPU_COUNT(&set));
	say("online %ld ", sysconf(_SC_NPROCESSORS_ONLN));
	show("yield", sched_yield());
}

static void do_auxv(void)
{
	const unsigned char *random = (const unsigned char *)getauxval(AT_RANDOM);

	say("pagesz %lu phdr %s random %s execfn %s secure %lu platform %s", getauxval(AT_PAGESZ),
	    yes(getauxval(AT_PHDR) != 0), yes(random && !all((const char *)random, 16, 0)),
	    getauxval(AT_EXECFN) ? (const char *)getauxval(AT_EXECFN) : "none", getauxval(AT_SECURE),
	    getauxval(AT_PLATFORM) ? (const char *)getauxval(AT_PLATFORM) : "none");
}

// ---------------------------------------------------------------- signals

static volatile sig_atomic_t signalled;
static sigjmp_buf after_fault;

static void on_signal(int number)
{
	signalled = number;
}

static void on_fault(int number)
{
	siglongjmp(after_fault, number);
}

static void do_sigaction(void)
{
	struct sigaction old, action = {.sa_handler = on_signal};
	sigset_t set, old_set;
	stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};

	show("set", sigaction(SIGUSR1, &action, NULL));
	show("get", sigaction(SIGUSR1, NULL, &old));
	say("kept %s ", yes(old.sa_handler == on_signal));
	show("kill", sigaction(SIGKILL, &action, NULL));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	show("block", sigprocmask(SIG_BLOCK, &set, NULL));
	sigemptyset(&old_set);
	show("mask", sigprocmask(SIG_SETMASK, NULL, &old_set));
	say("blocked %s ", yes(sigismember(&old_set, SIGUSR2)));
	show("sigaltstack", sigaltstack(&stack, NULL));
}

static void do_raise(void)
{
	signal(SIGUSR1, on_signal);
	show("raise", raise(SIGUSR1));
	say("handled %s ", yes(signalled == SIGUSR1));
	signal(SIGUSR2, SIG_IGN);
	show("ignored", raise(SIGUSR2));
	show("kill-other", kill(12345, SIGTERM));
	show("kill-all", kill(-1, 0));
}

static void do_segv_handler(void)
{
	if (sigsetjmp(after_fault, 1)) {
		say("caught");
		return;
	}
	signal(SIGSEGV, on_fault);
	volatile char *p = NULL;
	__asm__ volatile("" : "+r"(p));
	*p = 1;
	say("survived");
}

// ---------------------------------------------------------------- what is not to be had

static void *thread(void *arg)
{
	return arg;
}

static void do_threads(void)
{
	pthread_t id;
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

	errno = pthread_create(&id, NULL, thread, NULL);
	show("pthread_create", errno ? -1 : 0);
	show("lock", pthread_mutex_lock(&mutex));
	show("unlock", pthread_mutex_unlock(&mutex));
}

static void do_fork(void)
{
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	show("fork", child);
	child = vfork();
	if (child == 0)
		_exit(0);
	show("vfork", child);
	show("wait", wait(NULL));
	show("exec", execl("/bin/true", "true", (char *)NULL));
}

static void do_socket(void)
{
	int fds[2];

	show("inet", socket(AF_INET, SOCK_STREAM, 0));
	show("inet6", socket(AF_INET6, SOCK_DGRAM, 0));
	show("unix", socket(AF_UNIX, SOCK_STREAM, 0));
	show("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
	show("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
}

// Nothing of this may do anything to the host.
static void do_denied(void)
{
	show("mount", mount("none", "/mnt", "tmpfs", 0, NULL));
	show("chroot", chroot("/"));
	show("setuid", setuid(0));
	show("ptrace", syscall(SYS_ptrace, 16, 1, 0, 0));
	show("kill-parent", kill(getppid(), 0));
	show("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL));
	show("init_module", syscall(SYS_init_module, "", 0, ""));
	show("bpf", syscall(SYS_bpf, 0, NULL, 0));
	show("perf", syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0));
	show("io_uring", syscall(SYS_io_uring_setup, 1, NULL));
	show("userfaultfd", syscall(SYS_userfaultfd, 0));
	show("memfd", syscall(SYS_memfd_create, "x", 0));
	show("unshare", unshare(CLONE_NEWUSER));
	show("shm", syscall(SYS_shmget, 1, 4096, 01600));
	show("process_vm_readv", syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0));
	show("open_by_handle", syscall(SYS_open_by_handle_at, -1, NULL, 0));
	show("iopl", syscall(SYS_iopl, 3));
}

static void do_events(void)
{
	show("eventfd", eventfd(0, EFD_NONBLOCK));
	show("epoll", epoll_create1(0));
	show("timerfd", timerfd_create(CLOCK_MONOTONIC, 0));
	show("futex", syscall(SYS_futex, &main_file, 1 /* FUTEX_WAKE */, 1, NULL, NULL, 0));
}

// ---------------------------------------------------------------- state on the host's side

// Says how things are, and changes them all: every request has to say the same.
static void do_state(void)
{
	struct sigaction action;
	sigset_t set;
	struct rlimit limit = {0, 0};
	char cwd[256] = "?";

	say("cwd %s ", getcwd(cwd, sizeof cwd) ? cwd : "?");
	chdir(path[0] ? path : "/tmp");
	say("umask %o ", umask(077));
	sigaction(SIGUSR1, NULL, &action);
	say("handler %s ", yes(action.sa_handler != SIG_DFL));
	signal(SIGUSR1, on_signal);
	sigemptyset(&set);
	sigprocmask(SIG_BLOCK, NULL, &set);
	say("blocked %s ", yes(sigismember(&set, SIGUSR2)));
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	say("stdout-flags %d ", fcntl(1, F_GETFL) & O_NONBLOCK);
	fcntl(1, F_SETFL, O_NONBLOCK);
	show("next-fd", dup(2));
	show("ninth", dup2(1, 9));
	show("stderr", close(2));
	getrlimit(RLIMIT_STACK, &limit);
	say("stack %ld ", (long)limit.rlim_cur);
	setrlimit(RLIMIT_STACK, &(struct rlimit){65536, limit.rlim_max});
	say("brk %lx ", (unsigned long)sbrk(0));
	sbrk(65536);
	say("mmap %lx ", (unsigned long)map(65536));
	say("offset %ld", (long)lseek(main_file, 5, SEEK_SET) == 5 ? 5 : -1l);
}

static const struct {
	const char *url;
	void (*run)(void);
} calls[] = {
	{"/malloc", do_malloc},
	{"/mmap", do_mmap},
	{"/mmap-wild", do_mmap_wild},
	{"/mmap-file", do_mmap_file},
	{"/mremap", do_mremap},
	{"/mprotect", do_mprotect},
	{"/mprotect-write", do_mprotect_write},
	{"/munmap-touch", do_munmap_touch},
	{"/brk", do_brk},
	{"/read", do_read},
	{"/stat", do_stat},
	{"/list", do_list},
	{"/seek", do_seek},
	{"/main-file", do_main_file},
	{"/write-file", do_write_file},
	{"/change", do_change},
	{"/exe", do_exe},
	{"/cwd", do_cwd},
	{"/chdir", do_chdir},
	{"/dup", do_dup},
	{"/tty", do_tty},
	{"/closed-fd", do_closed_fd},
	{"/pipe", do_pipe},
	{"/poll", do_poll},
	{"/time", do_time},
	{"/sleep", do_sleep},
	{"/random", do_random},
	{"/ids", do_ids},
	{"/uname", do_uname},
	{"/sysinfo", do_sysinfo},
	{"/rlimit", do_rlimit},
	{"/affinity", do_affinity},
	{"/auxv", do_auxv},
	{"/sigaction", do_sigaction},
	{"/raise", do_raise},
	{"/segv-handler", do_segv_handler},
	{"/threads", do_threads},
	{"/fork", do_fork},
	{"/socket", do_socket},
	{"/denied", do_denied},
	{"/events", do_events},
	{"/state", do_state},
};

KVM_EXPORT void my_backend(const char *url)
{
	const char *from = url;

	parameter(&from, "path", path, sizeof path);
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		if (!path_is(url, calls[i].url))
			continue;
		calls[i].run();
		say("\n");
		done(200);
	}
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		say("%s\n", calls[i].url);
	done(path_is(url, "/") ? 200 : 404);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		main_file = open(argv[1], O_RDONLY);
	return 0;
}
