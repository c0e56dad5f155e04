/* Poke: one small POST that may get lost, with the closing record unless that is too long, and after it the records of the pod's other
 * containers as far as they fit: so the last poke has everything, whichever monitor receives it. A child process with an alarm sends it, so
 * that neither name resolution nor a silent peer can delay the launcher. */
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher.h"

#define SEND_MS 300                  /* resolve, connect and send */
#define ANSWER_MS 100

static char others[POKE_BODY_MAX];   /* only the child process that sends touches it */

struct target {
    char host[256], authority[280];
    const char *port_begin, *path;
    char port[6];
};

static bool parse(const char *text, struct target *t) {
    const char *slash = strchr(text, '/'), *host = text, *end;
    if (slash == NULL || (size_t)(slash - text) >= sizeof t->authority || strlen(slash) > 2048)
        return false;
    for (const char *p = text; *p != '\0'; p++)
        if (*p <= ' ' || *p >= 0x7F)             /* nothing that could terminate the request line */
            return false;
    if (*text == '[') {
        host = text + 1;
        end = strchr(host, ']');
        if (end == NULL || end > slash || end[1] != ':')
            return false;
        t->port_begin = end + 2;
    } else {
        end = strchr(host, ':');
        if (end == NULL || end > slash)
            return false;
        t->port_begin = end + 1;
    }
    size_t digits = strspn(t->port_begin, "0123456789");
    if (end == host || (size_t)(end - host) >= sizeof t->host || digits == 0 || digits > 5 || t->port_begin + digits != slash)
        return false;
    memcpy(t->host, host, (size_t)(end - host));
    memcpy(t->authority, text, (size_t)(slash - text));
    memcpy(t->port, t->port_begin, digits);
    t->path = slash;
    return true;
}

bool poke_valid(const char *text) {
    struct target t = {0};
    return parse(text, &t);
}

static void set_alarm(int ms) {
    struct itimerval timer = {.it_value = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* body: the size of the record, 0 for a poke without one. */
static void send_request(const struct target *t, const struct record *r, size_t body, size_t others_size) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found, *a;
    char request[2700];
    int n = snprintf(request, sizeof request,
                     "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %lu\r\n"
                     "Connection: close\r\n\r\n", t->path, t->authority, (unsigned long)(body + others_size));
    if (getaddrinfo(t->host, t->port, &hints, &found) != 0)
        return;
    for (a = found; a != NULL; a = a->ai_next) {
        int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd < 0)
            continue;
        if (connect(fd, a->ai_addr, a->ai_addrlen) == 0 && write_all(fd, request, (size_t)n) == 0 &&
            (body == 0 || record_write(r, fd, true) == 0) && write_all(fd, others, others_size) == 0) {
            struct pollfd p = {.fd = fd, .events = POLLIN};
            set_alarm(ANSWER_MS);
            (void)poll(&p, 1, ANSWER_MS);
            return;
        }
        close(fd);
    }
}

/* Returns 0 when no poke is being sent. */
pid_t poke_start(const char *text, const struct record *r) {
    struct target t = {0};
    if (!parse(text, &t))
        return 0;
    pid_t pid = fork();
    if (pid == 0) {
        signals_default();
        set_alarm(SEND_MS);
        size_t body = r == NULL ? 0 : record_size(r);
        if (body > POKE_BODY_MAX)
            body = 0;
        size_t others_size = body == 0 ? 0 : control_others(r->name, others, POKE_BODY_MAX - body);
        for (int fd = 0; fd < 64; fd++)          /* keep neither the container's log open nor a lock */
            close(fd);
        send_request(&t, r, body, others_size);
        _exit(0);
    }
    return pid < 0 ? 0 : pid;
}

void poke_wait(pid_t pid) {
    int64_t deadline = now_ms() + SEND_MS + ANSWER_MS + 20;
    while (pid > 0 && waitpid(pid, NULL, WNOHANG) == 0) {
        int64_t left = deadline - now_ms();
        struct pollfd p = {.fd = signals_fd, .events = POLLIN};
        if (left <= 0) {
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            return;
        }
        if (poll(&p, 1, (int)left) > 0)
            (void)termination_requested();
    }
}
