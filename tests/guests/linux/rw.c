/* Reading and writing: all forms of read(2) and write(2), lseek(2), and what only has to find its descriptor open. */
#define _GNU_SOURCE
#include "raw.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

static char text[64];

static void show(int fd)
{
    char all[200] = "";
    ssize_t n = pread(fd, all, 199, 0);
    printf("    %zd \"%.*s\" at %ld\n", n, (int)n, all, (long)lseek(fd, 0, SEEK_CUR));
}

int main(void)
{
    char name[] = "/tmp/rw-XXXXXX";
    int file = mkstemp(name), p[2];
    int reader = open(name, O_RDONLY), writer = open(name, O_WRONLY), folder = open("/tmp", O_RDONLY), path = open(name, O_PATH);
    CALL(pipe(p));
    struct iovec two[2] = {{"one ", 4}, {"two ", 4}}, into[2] = {{text, 3}, {text + 10, 40}}, bad[2] = {{"ok", 2}, {(void *)8, 2}};
    struct iovec long_[2] = {{text, -1ul >> 1}, {text, 2}};
    RAW(write, file, "zero ", 5);
    RAW(writev, file, two, 2);
    RAW(pwrite64, file, "0", 1, 0);
    RAW(pwritev, file, two, 2, 20);
    RAW(pwritev2, file, two, 1, 30, 0, 0);
    RAW(pwritev2, file, two, 1, -1l, 0, 0);
    RAW(pwritev2, file, two, 1, 2, 0, RWF_APPEND);
    RAW(pwritev2, file, two, 2, 0, 0, RWF_DSYNC | RWF_SYNC | RWF_HIPRI);
    RAW(pwritev2, file, two, 2, 0, 0, 1 << 20);
    show(file);
    RAW(lseek, file, 0, SEEK_SET);
    RAW(read, file, text, 5);
    RAW(readv, file, into, 2);
    printf("    %.3s|%.10s\n", text, text + 10);
    RAW(pread64, file, text, 4, 20);
    RAW(preadv, file, into, 2, 22);
    RAW(preadv2, file, into, 2, 1, 0, RWF_NOWAIT);
    RAW(preadv2, file, into, 2, -1l, 0, 0);
    RAW(preadv2, file, into, 2, 0, 0, RWF_HIPRI);
    RAW(preadv2, file, into, 2, 0, 0, 1 << 20);
    show(file);
    /* What is wrong. */
    RAW(writev, file, bad, 2);
    RAW(writev, file, bad + 1, 1);
    RAW(writev, file, BAD, 1);
    RAW(writev, file, two, 1025);
    RAW(writev, file, two, -1);
    RAW(writev, file, two, 0);
    RAW(readv, file, long_, 2);
    RAW(readv, file, BAD, 1);
    RAW(read, file, BAD, 1);
    RAW(read, file, BAD, 0);
    RAW(write, file, BAD, 1);
    RAW(write, file, BAD, 0);
    RAW(read, writer, text, 1);
    RAW(write, reader, text, 1);
    RAW(read, path, text, 1);
    RAW(read, folder, text, 1);
    RAW(readv, folder, into, 1);
    RAW(pread64, folder, text, 1, 0);
    RAW(read, -1, text, 1);
    RAW(write, 999, text, 1);
    RAW(pread64, file, text, 1, -1l);
    RAW(pwrite64, file, text, 1, -1l);
    RAW(preadv, file, into, 1, -1l);
    RAW(pwritev, file, two, 1, -1l);
    RAW(preadv2, file, into, 1, -2l, 0, 0);
    RAW(pread64, p[0], text, 1, 0);
    RAW(pwrite64, p[1], text, 1, 0);
    RAW(preadv, p[0], into, 1, 0);
    RAW(pwritev, p[1], two, 1, 0);
    RAW(pread64, -1, text, 1, 0);
    RAW(pwrite64, -1, text, 1, 0);
    RAW(preadv, -1, into, 1, 0);
    RAW(preadv2, -1, into, 1, 0, 0, 0);
    RAW(pwritev2, -1, into, 1, 0, 0, 0);
    RAW(read, p[1], text, 1);
    RAW(write, p[0], text, 1);
    /* Positions. */
    RAW(lseek, file, 10, SEEK_SET);
    RAW(lseek, file, -3, SEEK_CUR);
    RAW(lseek, file, -100, SEEK_CUR);
    RAW(lseek, file, 5, SEEK_END);
    RAW(lseek, file, 0, 9);
    RAW(lseek, file, 1000, SEEK_DATA);
    RAW(lseek, file, 1000, SEEK_HOLE);
    RAW(lseek, file, 0, SEEK_HOLE);
    RAW(lseek, file, 0, SEEK_DATA);
    RAW(lseek, p[0], 0, SEEK_SET);
    RAW(lseek, path, 0, SEEK_SET);
    RAW(lseek, -1, 0, SEEK_SET);
    /* Sizes. */
    RAW(ftruncate, file, 10);
    show(file);
    RAW(ftruncate, file, -1);
    RAW(ftruncate, reader, 0);
    RAW(ftruncate, p[1], 0);
    RAW(ftruncate, -1, 0);
    RAW(truncate, name, 5);
    RAW(truncate, name, -1);
    RAW(truncate, "/tmp/no-such", 1);
    RAW(truncate, BAD, 1);
    RAW(truncate, "/tmp", 1);
    RAW(fallocate, file, 0, 0, 20);
    RAW(fallocate, file, FALLOC_FL_KEEP_SIZE, 0, 40);
    RAW(fallocate, file, FALLOC_FL_PUNCH_HOLE, 0, 4);
    RAW(fallocate, file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 2);
    RAW(fallocate, file, 0, -1, 4);
    RAW(fallocate, file, 0, 0, 0);
    RAW(fallocate, reader, 0, 0, 4);
    RAW(fallocate, p[1], 0, 0, 4);
    RAW(fallocate, -1, 0, 0, 4);
    CALL(lseek(file, 0, SEEK_END));
    /* Written to the disk some day. */
    RAW(fsync, file);
    RAW(fdatasync, file);
    RAW(syncfs, file);
    RAW(sync_file_range, file, 0, 4, SYNC_FILE_RANGE_WRITE);
    RAW(sync);
    RAW(fsync, p[0]);
    RAW(fdatasync, p[0]);
    RAW(sync_file_range, p[0], 0, 4, 0);
    RAW(sync_file_range, file, 0, 4, 64);
    RAW(sync_file_range, file, -1, 4, 0);
    RAW(fsync, path);
    RAW(fsync, -1);
    RAW(fdatasync, -1);
    RAW(syncfs, -1);
    RAW(sync_file_range, -1, 0, 4, 0);
    RAW(fadvise64, file, 0, 4, POSIX_FADV_WILLNEED);
    RAW(fadvise64, file, 0, 4, 99);
    RAW(fadvise64, p[0], 0, 4, POSIX_FADV_NORMAL);
    RAW(fadvise64, -1, 0, 4, POSIX_FADV_NORMAL);
    RAW(readahead, reader, 0, 4);
    RAW(readahead, writer, 0, 4);
    RAW(readahead, p[0], 0, 4);
    RAW(readahead, -1, 0, 4);
    /* Between files. */
    int target = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    CHECK(target >= 0);
    off_t at = 1;
    RAW(sendfile, target, file, &at, 3);
    printf("    at %ld\n", (long)at);
    RAW(lseek, file, 0, SEEK_SET);
    RAW(sendfile, p[1], file, 0, 4);
    RAW(sendfile, target, p[0], 0, 4);
    RAW(sendfile, target, file, BAD, 4);
    RAW(sendfile, reader, file, 0, 4);
    RAW(sendfile, target, writer, 0, 4);
    RAW(sendfile, -1, file, 0, 4);
    RAW(sendfile, target, -1, 0, 4);
    loff_t from = 0, to = 40, same = 1;
    RAW(copy_file_range, file, &from, target, &to, 5, 0);
    RAW(copy_file_range, file, 0, target, 0, 5, 0);
    RAW(copy_file_range, file, &from, file, &same, 50, 0);
    RAW(copy_file_range, file, &from, file, &to, 3, 0);
    RAW(copy_file_range, file, &from, target, &to, 5, 1);
    RAW(copy_file_range, writer, &from, target, &to, 5, 0);
    RAW(copy_file_range, file, &from, reader, &to, 5, 0);
    RAW(copy_file_range, file, &from, p[1], 0, 5, 0);
    RAW(copy_file_range, folder, 0, target, 0, 5, 0);
    RAW(copy_file_range, file, BAD, target, 0, 5, 0);
    RAW(copy_file_range, -1, 0, target, 0, 5, 0);
    show(target);
    CALL(unlink(name));
    return done();
}
