/* Servers of one port of the loopback interface. */
#ifndef LISTENING_H
#define LISTENING_H
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>

/* A listening socket, at the port that the first argument says; -1 if there is none. */
static inline int listening(int argc, char **argv)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(argc > 1 ? atoi(argv[1]) : 8000),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 100)) return -1;
    return listener;
}
#endif
