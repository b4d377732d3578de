/* Calls with paths, in all their forms: what they give, and how they fail. */
#define _GNU_SOURCE
#include "raw.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <utime.h>

static struct stat is;
static struct statx isx;

/* Beneath what is no folder there is nothing, whatever it is. */
static void beneath_files(void)
{
    const char *paths[] = {"/etc/hosts/x", "/etc/hosts/x/y", "/dev/null/x", "/proc/self/maps/x"};
    for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
        const char *path = paths[i];
        RAW(open, path, O_RDONLY);
        RAW(open, path, O_WRONLY | O_CREAT, 0600);
        RAW(stat, path, &is);
        RAW(access, path, F_OK);
        RAW(readlink, path, (char *)&is, 10);
        RAW(chdir, path);
        RAW(mkdir, path, 0700);
        RAW(unlink, path);
        RAW(rmdir, path);
        RAW(rename, path, "/tmp/x");
        RAW(link, path, "/tmp/x");
        RAW(symlink, "x", path);
        RAW(chmod, path, 0600);
        RAW(truncate, path, 0);
        RAW(statfs, path, &is);
    }
}

static void look(const char *path)
{
    if (fstatat(AT_FDCWD, path, &is, AT_SYMLINK_NOFOLLOW)) printf("    %s: %s\n", path, strerrorname_np(errno));
    else printf("    %s: %o, %lu links, %ld bytes, %u:%u, %ld %ld\n", path, is.st_mode, S_ISDIR(is.st_mode) ? 0 : (long)is.st_nlink,
                S_ISDIR(is.st_mode) ? 0 : (long)is.st_size, is.st_uid, is.st_gid, is.st_mtime > 2000000 ? 0 : (long)is.st_atime,
                is.st_mtime > 2000000 ? 0 : (long)is.st_mtime);
}

int main(void)
{
    char folder[] = "/tmp/paths-XXXXXX", long_name[300], text[300] = "";
    memset(long_name, 'n', 299);
    long_name[299] = 0;
    umask(022);
    CHECK(mkdtemp(folder));
    CALL(chdir(folder));
    int here = open(".", O_RDONLY | O_DIRECTORY);
    /* Made. */
    close(syscall(SYS_open, "file", O_CREAT | O_WRONLY, 0644));
    close(syscall(SYS_creat, "created", 0600));
    close(syscall(SYS_openat, here, "at", O_CREAT | O_EXCL | O_RDWR, 0666));
    RAW(open, "file", O_CREAT | O_EXCL, 0644);
    RAW(open, "file", O_DIRECTORY);
    RAW(open, "none", O_RDONLY);
    RAW(open, "file/x", O_RDONLY);
    RAW(open, BAD, O_RDONLY);
    RAW(open, long_name, O_RDONLY);
    RAW(open, "", O_RDONLY);
    RAW(creat, ".", 0644);
    RAW(openat, 999, "file", O_RDONLY);
    int file = open("file", O_RDWR);
    RAW(openat, file, "file", O_RDONLY);
    RAW(mkdir, "d", 0755);
    RAW(mkdirat, here, "d/e", 0700);
    RAW(mkdir, "d", 0755);
    RAW(mkdirat, here, "none/e", 0700);
    RAW(mkdirat, 999, "x", 0700);
    RAW(mkdir, BAD, 0700);
    RAW(mkdir, long_name, 0700);
    RAW(symlink, "file", "l");
    RAW(symlinkat, "d", here, "ld");
    RAW(symlink, "x", "l");
    RAW(symlink, "", "y");
    RAW(symlinkat, "x", 999, "y");
    RAW(symlink, BAD, "y");
    RAW(symlink, "loop", "loop");
    RAW(open, "loop", O_RDONLY);
    RAW(open, "l", O_NOFOLLOW);
    RAW(link, "file", "hard");
    RAW(linkat, here, "l", here, "hard-link", 0);
    RAW(linkat, here, "l", here, "hard-file", AT_SYMLINK_FOLLOW);
    RAW(linkat, here, "l", here, "z", 99);
    RAW(link, "d", "hard-d");
    RAW(link, "none", "z");
    RAW(link, "file", "hard");
    RAW(link, BAD, "z");
    RAW(linkat, 999, "file", here, "z", 0);
    RAW(mknod, "node", S_IFREG | 0640, 0);
    RAW(mknodat, here, "node2", 0600, 0);
    RAW(mknod, "node", S_IFREG, 0);
    RAW(mknodat, 999, "z", 0600, 0);
    RAW(mknod, BAD, 0600, 0);
    RAW(mknod, "z", S_IFDIR, 0);
    /* Looked at. */
    const char *all[] = {"file", "created", "at", "d", "d/e", "l", "ld", "hard", "hard-link", "hard-file", "node", "node2", "none", "file/x", "loop"};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) look(all[i]);
    RAW(stat, "l", &is);
    RAW(lstat, "l", &is);
    printf("    %o\n", is.st_mode);
    RAW(fstat, file, &is);
    RAW(stat, "loop", &is);
    RAW(stat, "none", &is);
    RAW(stat, BAD, &is);
    RAW(stat, "file", BAD);
    RAW(lstat, "file", BAD);
    RAW(fstat, 999, &is);
    RAW(fstat, file, BAD);
    RAW(newfstatat, here, "file", &is, 0);
    RAW(newfstatat, file, "", &is, AT_EMPTY_PATH);
    RAW(newfstatat, file, "", &is, 0);
    RAW(newfstatat, 999, "file", &is, 0);
    RAW(newfstatat, here, "file", &is, 1 << 20);
    RAW(statx, here, "file", 0, STATX_BASIC_STATS, &isx);
    printf("    %o %llu\n", isx.stx_mode, (unsigned long long)isx.stx_size);
    RAW(statx, file, "", AT_EMPTY_PATH, STATX_MODE, &isx);
    RAW(statx, 999, "file", 0, 0, &isx);
    RAW(statx, here, "file", 0, 0, BAD);
    RAW(statx, here, "file", 1 << 20, 0, &isx);
    RAW(statx, here, "file", 0, 1u << 31, &isx);
    RAW(access, "file", R_OK | W_OK);
    RAW(access, "file", X_OK);
    RAW(access, "none", F_OK);
    RAW(access, "file", 9);
    RAW(access, BAD, 0);
    RAW(faccessat, here, "d", X_OK);
    RAW(faccessat, 999, "d", X_OK);
    RAW(faccessat2, here, "loop", F_OK, AT_SYMLINK_NOFOLLOW);
    RAW(faccessat2, here, "loop", F_OK, 0);
    RAW(faccessat2, here, "file", F_OK, AT_EACCESS);
    RAW(faccessat2, here, "file", F_OK, 1);
    RAW(readlink, "l", text, 300);
    RAW(readlink, "l", text, 2);
    RAW(readlinkat, here, "ld", text, 300);
    printf("    %s\n", text);
    RAW(readlink, "file", text, 300);
    RAW(readlink, "none", text, 300);
    RAW(readlink, "l", text, 0);
    RAW(readlink, "l", BAD, 3);
    RAW(readlinkat, 999, "l", text, 300);
    int link = open("l", O_PATH | O_NOFOLLOW);
    RAW(readlinkat, link, "", text, 300);
    struct statfs fs;
    CHECK(syscall(SYS_statfs, ".", &fs) == 0 && fs.f_bsize > 0 && fs.f_namelen == 255);
    CHECK(syscall(SYS_fstatfs, file, &fs) == 0 && fs.f_blocks >= fs.f_bfree);
    RAW(statfs, "none", &fs);
    RAW(statfs, ".", BAD);
    RAW(statfs, BAD, &fs);
    RAW(fstatfs, 999, &fs);
    RAW(fstatfs, file, BAD);
    /* Changed. */
    RAW(chmod, "file", 0600);
    RAW(fchmod, file, 0644);
    RAW(fchmodat, here, "created", 0444);
    RAW(chmod, "none", 0600);
    RAW(chmod, BAD, 0600);
    RAW(fchmod, 999, 0600);
    RAW(fchmodat, 999, "x", 0600);
    RAW(chown, "file", 1, 2);
    RAW(fchown, file, -1, 3);
    RAW(lchown, "l", 4, 5);
    RAW(fchownat, here, "created", 6, 7, 0);
    RAW(fchownat, file, "", 8, -1, AT_EMPTY_PATH);
    RAW(fchownat, here, "l", 9, 9, AT_SYMLINK_NOFOLLOW);
    RAW(fchownat, here, "l", 9, 9, 1);
    RAW(chown, "none", 1, 2);
    RAW(lchown, "none", 1, 2);
    RAW(chown, BAD, 1, 2);
    RAW(fchown, 999, 1, 2);
    RAW(fchownat, 999, "x", 1, 2, 0);
    struct utimbuf old = {1000, 2000};
    struct timeval micro[2] = {{3000, 5}, {4000, 6}}, wrong[2] = {{1, 1000000}, {1, 1}};
    struct timespec nano[2] = {{5000, 7}, {6000, 8}}, omit[2] = {{1, UTIME_OMIT}, {7000, 0}}, none[2] = {{1, UTIME_OMIT}, {1, UTIME_OMIT}}, bad[2] = {{1, -5}, {1, 1}};
    RAW(utime, "file", &old);
    look("file");
    RAW(utimes, "file", micro);
    look("file");
    RAW(futimesat, here, "file", micro);
    RAW(utimensat, here, "file", nano, 0);
    look("file");
    RAW(utimensat, file, 0, omit, 0);
    look("file");
    RAW(utimensat, here, "l", nano, AT_SYMLINK_NOFOLLOW);
    look("l");
    RAW(utimensat, here, "none", none, 0);
    RAW(utimensat, here, "file", none, 0);
    RAW(utimensat, here, "file", bad, 0);
    RAW(utimensat, here, "file", nano, 77);
    RAW(utimensat, here, BAD, nano, 0);
    RAW(utimensat, here, "file", BAD, 0);
    RAW(utimensat, 999, "file", nano, 0);
    RAW(utime, "none", &old);
    RAW(utime, "file", BAD);
    RAW(utimes, "file", wrong);
    RAW(utimes, "none", micro);
    RAW(utimes, "file", BAD);
    RAW(futimesat, 999, "file", micro);
    RAW(futimesat, here, "file", wrong);
    RAW(utime, "file", 0);
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) look(all[i]);
    /* Attributes that there are none of. */
    RAW(getxattr, "file", "user.x", text, 10);
    RAW(lgetxattr, "l", "trusted.x", text, 10);
    RAW(fgetxattr, file, "user.x", text, 10);
    RAW(listxattr, "file", text, 300);
    RAW(llistxattr, "file", text, 300);
    RAW(flistxattr, file, text, 300);
    RAW(removexattr, "file", "user.x");
    RAW(lremovexattr, "file", "user.x");
    RAW(fremovexattr, file, "user.x");
    RAW(getxattr, "none", "user.x", text, 10);
    RAW(lgetxattr, "none", "user.x", text, 10);
    RAW(fgetxattr, 999, "user.x", text, 10);
    RAW(listxattr, "none", text, 10);
    RAW(llistxattr, "none", text, 10);
    RAW(flistxattr, 999, text, 10);
    RAW(setxattr, "none", "user.x", "v", 1, 0);
    RAW(lsetxattr, "none", "user.x", "v", 1, 0);
    RAW(fsetxattr, 999, "user.x", "v", 1, 0);
    RAW(removexattr, "none", "user.x");
    RAW(lremovexattr, "none", "user.x");
    RAW(fremovexattr, 999, "user.x");
    RAW(getxattr, "file", BAD, text, 10);
    RAW(getxattr, "file", "", text, 10);
    RAW(setxattr, "file", "user.x", "v", 1, 77);
    /* Moved. */
    RAW(rename, "at", "moved");
    RAW(renameat, here, "moved", here, "d/moved");
    RAW(renameat2, here, "d/moved", here, "created", RENAME_NOREPLACE);
    RAW(renameat2, here, "d/moved", here, "again", RENAME_NOREPLACE);
    RAW(renameat2, here, "again", here, "created", 1 << 20);
    RAW(renameat2, here, "again", here, "created", RENAME_NOREPLACE | RENAME_EXCHANGE);
    look("again");
    look("created");
    RAW(rename, "none", "x");
    RAW(rename, "d", "d/e/x");
    RAW(rename, "file", "d");
    RAW(rename, "d", "file");
    RAW(rename, BAD, "x");
    RAW(renameat, 999, "x", here, "y");
    RAW(rename, "hard", "file"); /* one file */
    look("hard");
    RAW(rename, ".", "x");
    /* Removed. */
    RAW(rmdir, "d");
    RAW(unlinkat, here, "d/e", AT_REMOVEDIR);
    RAW(rmdir, "file");
    RAW(rmdir, ".");
    RAW(rmdir, "none");
    RAW(rmdir, BAD);
    RAW(unlink, "d");
    RAW(unlinkat, here, "l", 0);
    RAW(unlinkat, here, "d", 0);
    RAW(unlinkat, here, "file", 1);
    RAW(unlinkat, 999, "x", 0);
    RAW(unlink, "none");
    RAW(unlink, BAD);
    RAW(unlink, "file");
    RAW(fstat, file, &is);
    printf("    %lu links\n", (long)is.st_nlink);
    /* Where it is. */
    RAW(getcwd, text, 300);
    CHECK(!strcmp(text, folder));
    RAW(getcwd, text, 3);
    RAW(getcwd, BAD, 300);
    RAW(chdir, "d");
    RAW(fchdir, here);
    RAW(chdir, "none");
    RAW(chdir, "created");
    RAW(chdir, BAD);
    RAW(fchdir, file);
    RAW(fchdir, 999);
    RAW(umask, 0777);
    RAW(umask, 022);
    char entries[1024];
    long n, count = 0;
    while ((n = syscall(SYS_getdents64, here, entries, sizeof entries)) > 0)
        for (long at = 0; at < n; count++) at += ((struct dirent64 *)(entries + at))->d_reclen;
    printf("    %ld names\n", count);
    RAW(getdents64, here, entries, sizeof entries);
    RAW(lseek, here, 0, SEEK_SET);
    RAW(getdents64, here, entries, 1);
    RAW(getdents64, here, BAD, 1000);
    RAW(getdents64, file, entries, 1000);
    RAW(getdents64, 999, entries, 1000);
    const char *left[] = {"created", "again", "ld", "hard", "hard-link", "hard-file", "node", "node2", "loop"};
    for (unsigned i = 0; i < sizeof left / sizeof *left; i++) CALL(unlink(left[i]));
    CALL(rmdir("d"));
    CALL(chdir("/"));
    CALL(rmdir(folder));
    beneath_files();
    return done();
}
