/* The command's streams: bytes go from its pipe to a file, to the container's log, into a bounded tail and to the kept copy.
 *
 * The log is written without blocking. While it is full the command blocks, like any writer to a full pipe, but for --log-stall at
 * most; after that its output is dropped from the log (never from file and tail). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"

static int log_flags[2] = {-1, -1};              /* original flags of the launcher's stdout and stderr, where changed */

/* O_NONBLOCK is a flag of the open file description, which the parent process may share: see log_restore. */
void stream_prepare(struct stream *s, int fd) {
    struct stat st;
    s->pipe = s->file = s->kept.fd = -1;
    s->budget = UINT64_MAX;
    s->log = fd;
    s->log_last = '\n';
    if (fstat(fd, &st) != 0 || S_ISREG(st.st_mode))
        return;
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && !(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0)
        log_flags[fd - 1] = flags;
}

void log_restore(void) {
    for (int i = 0; i < 2; i++)
        if (log_flags[i] >= 0)
            (void)fcntl(i + 1, F_SETFL, log_flags[i]);
}

bool tail_allocate(struct tail *t, size_t size) {
    t->ring = size == 0 ? NULL : malloc(size);   /* pages are allocated only when output arrives */
    t->size = t->ring == NULL ? 0 : size;
    return t->size == size;
}

static void tail_add(struct tail *t, const unsigned char *p, size_t n) {
    if (n > t->size) {
        t->total += n - t->size;
        p += n - t->size;
        n = t->size;
    }
    if (n == 0)
        return;
    size_t at = t->total % t->size, first = n < t->size - at ? n : t->size - at;
    memcpy(t->ring + at, p, first);
    memcpy(t->ring, p + first, n - first);
    t->total += n;
}

int write_all(int fd, const void *data, size_t n) {
    const char *p = data;
    while (n > 0) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return k == 0 ? EIO : errno;
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

void stream_flush(struct stream *s, int64_t now, int64_t log_stall_ms) {
    while (s->off < s->len && s->log >= 0) {
        ssize_t k = write(s->log, s->buffer + s->off, s->len - s->off);
        if (k > 0) {
            s->off += (size_t)k;
            s->log_last = s->buffer[s->off - 1];
            s->log_stalled_at = 0;
            s->log_dropping = false;
        } else if (k < 0 && errno == EINTR) {
            continue;
        } else if (k < 0 && errno == EAGAIN) {
            if (s->log_stalled_at == 0)
                s->log_stalled_at = now;
            if (!s->log_dropping && now - s->log_stalled_at < log_stall_ms)
                return;
            s->log_dropping = true;
            break;
        } else {
            if (k < 0 && errno == EPIPE)
                s->log = -1;
            break;                               /* a log on a full disk: drop */
        }
    }
    s->off = s->len = 0;
}

static void stream_keep(struct stream *s, const unsigned char *p, size_t n) {
    tail_add(&s->tail, p, n);
    keep_add(&s->kept, p, n);
    if (s->file >= 0 && s->file_error == 0)
        s->file_error = write_all(s->file, p, n);
}

void stream_read(struct stream *s, int64_t now, int64_t log_stall_ms) {
    ssize_t n = s->budget == 0 ? 0 : read(s->pipe, s->buffer, sizeof s->buffer);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        close(s->pipe);
        s->pipe = -1;
        return;
    }
    s->bytes += (uint64_t)n;
    s->budget -= s->budget < (uint64_t)n ? s->budget : (uint64_t)n;
    stream_keep(s, s->buffer, (size_t)n);
    s->off = 0;
    s->len = (size_t)n;
    stream_flush(s, now, log_stall_ms);
}

void log_write(struct stream *s, const char *data, size_t n, int64_t stall_ms) {
    while (n > 0 && s->log >= 0) {
        ssize_t k = write(s->log, data, n);
        if (k > 0) {
            s->log_last = (unsigned char)data[k - 1];
            data += k;
            n -= (size_t)k;
        } else if (k < 0 && errno == EAGAIN) {
            struct pollfd p = {.fd = s->log, .events = POLLOUT};
            if (poll(&p, 1, (int)(s->log_dropping ? 100 : stall_ms)) == 0)
                s->log = -1;                     /* no reader: do not wait again for each piece */
        } else if (k == 0 || errno != EINTR) {
            s->log = -1;
        }
    }
}

void stream_print(struct stream *s, const char *text) {
    stream_keep(s, (const unsigned char *)text, strlen(text));
    log_write(s, text, strlen(text), 1000);
}

static int make_directory(const char *path) {
    struct stat st;
    if (mkdir(path, 0777) == 0)
        return 0;
    int error = errno;                           /* on a read-only file system it is EROFS even if the directory exists */
    if (stat(path, &st) != 0)
        return error;
    return S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
}

int make_directories(char *path) {
    struct stat st;
    if (stat(path, &st) == 0)
        return S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
    for (char *p = path + 1; *p != '\0'; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        int error = make_directory(path);
        *p = '/';
        if (error != 0)
            return error;
    }
    return make_directory(path);
}

/* O_NONBLOCK: opening a FIFO must not block. */
int open_input(const char *path, int *fd) {
    struct stat st;
    if ((*fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)) < 0)
        return errno;
    int error = fstat(*fd, &st) != 0 ? errno : S_ISDIR(st.st_mode) ? EISDIR : 0;
    if (error == 0 && fcntl(*fd, F_SETFL, 0) != 0)
        error = errno;
    if (error != 0) {
        close(*fd);
        *fd = -1;
    }
    return error;
}

/* O_APPEND: stdout and stderr may be the same file, opened twice. */
int open_output(const char *path, int *fd) {
    char parent[4096];
    strcpy(parent, path);                        /* options.c limits its length */
    char *slash = strrchr(parent, '/');
    if (slash != NULL && slash != parent) {
        *slash = '\0';
        int error = make_directories(parent);
        if (error != 0)
            return error;
    }
    if ((*fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666)) < 0)
        return errno;
    (void)fcntl(*fd, F_SETFL, O_APPEND);
    return 0;
}

int open_nothing(void) {
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC), ends[2];
    if (fd < 0 && pipe2(ends, O_CLOEXEC) == 0) { /* no /dev: a pipe without a writer */
        close(ends[1]);
        fd = ends[0];
    }
    return fd;
}
