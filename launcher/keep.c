/* Whole output: the command's stdout and stderr as files in the control directory, from which a follower moves them to the log store
 * (docs/adr/0013-whole-logs.md).
 *
 * NAME.stdout.0, NAME.stdout.1, … have SEGMENT_BYTES each. The follower removes a segment that it has stored. Where it falls behind by the
 * whole backlog, the command waits like any writer to a full pipe, for --keep-stall in total; after that, and after --keep-output bytes,
 * nothing more is kept. Neither a full disk nor a missing follower can do more than end the copy. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "launcher.h"

#define SEGMENT_BYTES (8u << 20)     /* the follower knows it: poiesis/logstore/follower.py */
#define READ_BYTES (64u << 10)       /* of one stream_read */
#define READER_MS 1000
#define READER_POLL_MS 5

void keep_prepare(struct kept *k, const struct options *o, const char *stream) {
    *k = (struct kept){.fd = -1, .name = o->name, .stream = stream, .left = o->control == NULL ? 0 : o->keep_bytes};
    k->backlog = (o->keep_backlog + SEGMENT_BYTES - 1) / SEGMENT_BYTES;
    k->stall_left_ms = o->keep_stall_ms;
}

static void segment_name(const struct kept *k, char *buffer, size_t size, uint64_t number) {
    snprintf(buffer, size, "%s.%s.%llu", k->name, k->stream, (unsigned long long)number);
}

static void end(struct kept *k) {
    if (k->fd >= 0)
        close(k->fd);
    k->fd = -1;
    k->left = 0;
}

/* Writable for all: the follower has another user than the command. */
static bool open_segment(struct kept *k) {
    char name[MAX_NAME + 32];
    segment_name(k, name, sizeof name, k->written / SEGMENT_BYTES);
    (void)unlinkat(control_directory(), name, 0);        /* put there by an earlier command */
    k->fd = openat(control_directory(), name, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (k->fd >= 0)
        (void)fchmod(k->fd, 0666);
    return k->fd >= 0;
}

void keep_add(struct kept *k, const unsigned char *p, size_t n) {
    if (n > k->left)
        n = (size_t)k->left;
    while (n > 0) {
        size_t room = SEGMENT_BYTES - (size_t)(k->written % SEGMENT_BYTES), count = n < room ? n : room;
        if ((k->fd < 0 && !open_segment(k)) || write_all(k->fd, p, count) != 0) {
            end(k);
            return;
        }
        k->written += count;
        k->left -= count;
        p += count;
        n -= count;
        if (k->left == 0 || count == room) {
            close(k->fd);
            k->fd = -1;
        }
    }
}

bool keep_waits(struct kept *k, int64_t now, bool runs) {
    char name[MAX_NAME + 32];
    struct stat st;
    if (k->left == 0)
        return false;
    uint64_t next = (k->written + READ_BYTES) / SEGMENT_BYTES, allowed = k->backlog + (runs ? 0 : 1);    /* one more for the rest in the pipe */
    if (next < allowed)
        return false;
    segment_name(k, name, sizeof name, next - allowed);
    if (fstatat(control_directory(), name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        k->waiting_at = 0;
        return false;
    }
    if (k->waiting_at != 0)
        k->stall_left_ms -= now - k->waiting_at;
    k->waiting_at = now;
    if (runs && k->stall_left_ms > 0)
        return true;
    end(k);
    return false;
}

/* A pod that ends may be deleted at once: the follower's container has to be running by then, or it is never started. */
void keep_await_reader(const struct options *o, const struct kept *out, const struct kept *err) {
    char name[MAX_NAME + 16];
    struct stat st;
    if (o->keep_reader == NULL || (out->written == 0 && err->written == 0))
        return;
    snprintf(name, sizeof name, "%s.up", o->keep_reader);
    for (int64_t until = now_ms() + READER_MS; now_ms() < until;) {
        if (fstatat(control_directory(), name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            return;
        nanosleep(&(struct timespec){.tv_nsec = READER_POLL_MS * 1000000}, NULL);
    }
}
