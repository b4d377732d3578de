/* A server that does what the path of a request says, step by step: /STEP/STEP/...
 *
 *   chunked        a head whose body comes in chunks
 *   lasting        the same, to be cached for 100 seconds, with an ETag
 *   length-N       one whose body has N bytes
 *   open           one whose body goes on to the connection's end
 *   events         one of server-sent events, in chunks
 *   upgrade        101 to a protocol that sends back what comes, as long as it comes
 *   early          103 (Early Hints)
 *   say-TEXT       a piece of the body; in chunks, a chunk
 *   raw-TEXT       the text as it is, with ~ for CR LF
 *   esi-HOST       says that here is to be what /chunked/say-HOST/count/end of that host is
 *   fill-N         N bytes x of the body; in chunks, chunks of 64 KiB at most
 *   drip           says "drop" every 20 ms, for ever
 *   end            the last chunk
 *   trailer        the last chunk, with a trailer
 *   gate           waits for a byte from 127.0.0.1:PORT, where PORT is what follows ? in the URL
 *   sleep-N spin-N for N ms
 *   read-N         reads N bytes of the request's body, as they come
 *   drain          reads the request's body to its end
 *   count          says "count C bytes N sum S" of what was read, C being how many requests this process has had
 *   echo           reads the request's body to its end, and sends each piece back
 *   hang           waits for ever
 *   crash          writes to nowhere
 *   kill           ends itself by SIGKILL
 *   reset          resets the connection
 *   close          closes it
 *   keep           waits until the client closes it
 *
 * Arguments: the port; "forks", to have a child serve each connection.
 */
#define _GNU_SOURCE
#include "listening.h"
#include <ctype.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int client, in_chunks, counted;
static char buffer[64 << 10];
/* What has come and was not read yet. */
static char *have, *end;
/* The request's body: what is left of it, or of its chunk. */
static int is_chunked, is_over;
static size_t left, got, sum;

static void must(int holds)
{
    if (!holds) _exit(9);
}

static void all(const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t part = send(client, bytes, n, MSG_NOSIGNAL);
        if (part <= 0) _exit(0);
        bytes += part, n -= part;
    }
}

static void text(const char *it)
{
    all(it, strlen(it));
}

static void piece(const char *bytes, size_t n)
{
    char size[32];
    if (in_chunks) snprintf(size, sizeof(size), "%zx\r\n", n), text(size);
    all(bytes, n);
    if (in_chunks) text("\r\n");
}

static int more(void)
{
    if (have < end) return 1;
    ssize_t n = read(client, buffer, sizeof(buffer));
    have = buffer, end = buffer + (n > 0 ? n : 0);
    return n > 0;
}

static void line(char *to, size_t size)
{
    size_t n = 0;
    for (;;) {
        must(more());
        char c = *have++;
        if (c == '\n') break;
        if (c != '\r' && n + 1 < size) to[n++] = c;
    }
    to[n] = 0;
}

/* What comes next of the request's body; 0 at its end. */
static size_t next(char **bytes)
{
    char size[64];
    if (is_chunked && left == 0 && !is_over) {
        line(size, sizeof(size));
        left = strtoul(size, NULL, 16);
        if (left == 0) line(size, sizeof(size)), is_over = 1;
    }
    if (left == 0) return 0;
    must(more());
    size_t n = (size_t)(end - have) < left ? (size_t)(end - have) : left;
    *bytes = have;
    have += n, left -= n, got += n;
    for (size_t i = 0; i < n; i++) sum += (unsigned char)(*bytes)[i];
    if (is_chunked && left == 0) line(size, sizeof(size));
    return n;
}

static void gate(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    char byte;
    must(!connect(fd, (struct sockaddr *)&to, sizeof(to)) && read(fd, &byte, 1) == 1);
    close(fd);
}

static void pass(long ms, int spins)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000}, start, now;
    if (!spins) {
        nanosleep(&time, NULL);
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &start);
    do clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < ms);
}

static void step(char *name, int port)
{
    char *argument = strchr(name, '-'), *bytes, said[128];
    if (argument) *argument++ = 0;
    size_t n = argument ? strtoul(argument, NULL, 10) : 0;
    if (!strcmp(name, "chunked")) text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), in_chunks = 1;
    else if (!strcmp(name, "lasting"))
        text("HTTP/1.1 200 OK\r\nCache-Control: max-age=100\r\nETag: \"one\"\r\nTransfer-Encoding: chunked\r\n\r\n"), in_chunks = 1;
    else if (!strcmp(name, "length")) snprintf(said, sizeof(said), "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", n), text(said);
    else if (!strcmp(name, "open")) text("HTTP/1.1 200 OK\r\n\r\n");
    else if (!strcmp(name, "events"))
        text("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"), in_chunks = 1;
    else if (!strcmp(name, "upgrade")) {
        text("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
        while (more()) all(have, end - have), have = end;
    } else if (!strcmp(name, "early")) text("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
    else if (!strcmp(name, "say")) piece(argument, strlen(argument));
    else if (!strcmp(name, "esi")) {
        n = snprintf(said, sizeof(said), "<esi:include src=\"http://%s/chunked/say-%s/count/end\"/>", argument, argument);
        piece(said, n);
    } else if (!strcmp(name, "raw")) {
        for (char *c = argument; *c; c++) *c == '~' ? text("\r\n") : all(c, 1);
    } else if (!strcmp(name, "fill")) {
        static char filling[64 << 10];
        memset(filling, 'x', sizeof(filling));
        for (size_t part; n > 0; n -= part) {
            part = n < sizeof(filling) ? n : sizeof(filling);
            piece(filling, part);
        }
    } else if (!strcmp(name, "drip")) {
        for (;;) piece("drop\n", 5), pass(20, 0);
    } else if (!strcmp(name, "end")) text("0\r\n\r\n");
    else if (!strcmp(name, "trailer")) text("0\r\nX-Trailer: x\r\n\r\n");
    else if (!strcmp(name, "gate")) gate(port);
    else if (!strcmp(name, "sleep") || !strcmp(name, "spin")) pass(n, name[1] == 'p');
    else if (!strcmp(name, "read")) {
        for (size_t until = got + n; got < until;) must(next(&bytes));
    } else if (!strcmp(name, "drain")) {
        while (next(&bytes));
    } else if (!strcmp(name, "count")) {
        piece(said, snprintf(said, sizeof(said), "count %d bytes %zu sum %zu\n", counted, got, sum));
    } else if (!strcmp(name, "echo")) {
        for (size_t m; (m = next(&bytes));) piece(bytes, m);
    } else if (!strcmp(name, "hang")) pause();
    else if (!strcmp(name, "crash")) *(volatile int *)(long)(counted * 16) = 1;
    else if (!strcmp(name, "kill")) raise(SIGKILL);
    else if (!strcmp(name, "reset"))
        setsockopt(client, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)), close(client), client = -1;
    else if (!strcmp(name, "close")) close(client), client = -1;
    else if (!strcmp(name, "keep")) {
        while (more()) have = end;
    } else _exit(8);
}

static void serve(void)
{
    char first[4096], field[4096];
    is_chunked = is_over = in_chunks = 0;
    left = got = sum = 0;
    have = end = buffer;
    if (!more()) return;
    line(first, sizeof(first));
    for (;;) {
        line(field, sizeof(field));
        if (!*field) break;
        if (!strncasecmp(field, "content-length:", 15)) left = strtoul(field + 15, NULL, 10);
        if (!strncasecmp(field, "transfer-encoding: chunked", 26)) is_chunked = 1;
    }
    counted++;
    char *path = strchr(first, ' ');
    must(!!path);
    path[strcspn(path + 1, " ") + 1] = 0;
    char *query = strchr(path, '?');
    if (query) *query++ = 0;
    char *rest;
    for (char *name = strtok_r(path + 1, "/", &rest); name && client >= 0; name = strtok_r(NULL, "/", &rest))
        step(name, query ? atoi(query) : 0);
}

int main(int argc, char **argv)
{
    int listener = listening(argc, argv), forks = argc > 2 && !strcmp(argv[2], "forks");
    must(listener >= 0);
    for (;;) {
        client = accept(listener, NULL, NULL);
        must(client >= 0);
        if (forks && fork()) {
            close(client);
            continue;
        }
        serve();
        if (forks) _exit(0);
        if (client >= 0) close(client);
    }
}
