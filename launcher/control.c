/* The control directory: the containers of a pod take turns by means of its files.
 *
 * Commands can write there too, so its content is not trusted: symbolic links are not followed, only regular files count, and only the
 * first 4 KiB of a record are read. A launcher holds a lock on its NAME.up while it lives, so that the others notice when it was killed (an
 * OOM kill takes every process of a cgroup) and do not wait for a record that never comes. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"

#define POLL_MS 250                  /* where inotify does not work: too many watches, a network file system */
#define MAX_ENTRIES 4096             /* of the control directory that are looked at: a command can create any number */
#define HEAD_BYTES 4096              /* "ok" is within the first hundred bytes of a record */
#define LOCKED "locked\n"            /* content of a NAME.up whose lock shows whether its launcher lives */

static int directory = -1;
static int up = -1;

enum verdict { ABSENT, ALIVE, FAILED, SUCCEEDED, DEAD };

static void file_name(char *buffer, const char *name, const char *suffix) {
    snprintf(buffer, MAX_NAME + 16, "%s%s", name, suffix);
}

/* Create a file with an unpredictable name. */
static int open_temporary(char *buffer, const char *name) {
    for (int i = 0; i < 16; i++) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        snprintf(buffer, MAX_NAME + 48, ".%s.%lx.%x.tmp", name, (unsigned long)t.tv_nsec, (unsigned)(getpid() + i));
        int fd = openat(directory, buffer, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

/* rename that also replaces a directory put there by a command. */
static int replace(const char *temporary, const char *name) {
    char aside[MAX_NAME + 80];
    if (renameat(directory, temporary, directory, name) == 0)
        return 0;
    if (errno == EISDIR || errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR) {
        snprintf(aside, sizeof aside, "%s.aside", temporary);
        if (renameat(directory, name, directory, aside) == 0 && renameat(directory, temporary, directory, name) == 0)
            return 0;
    }
    int error = errno;
    (void)unlinkat(directory, temporary, 0);
    return error;
}

int control_directory(void) {
    return directory;
}

bool control_open(const struct options *o, struct record *r) {
    char temporary[MAX_NAME + 48], name[MAX_NAME + 16];
    if (o->control == NULL)
        return true;
    int error = 0;
    directory = open(o->control, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 || (up = open_temporary(temporary, o->name)) < 0) {
        error = errno;
    } else {
        file_name(name, o->name, ".up");
        (void)fchmod(up, 0644);
        if (flock(up, LOCK_EX | LOCK_NB) == 0)   /* before the rename, so that it is never visible unlocked while the launcher lives */
            (void)write_all(up, LOCKED, sizeof LOCKED - 1);
        error = replace(temporary, name);
    }
    if (error != 0)
        record_reason(r, "ControlUnavailable", "control directory %s: %s", o->control, strerror(error));
    return error == 0;
}

/* lock_error: of an attempt to lock the file, 0 if no other process holds its lock. */
static ssize_t read_head(const char *name, char *head, size_t size, int *lock_error) {
    struct stat st;
    ssize_t n = -1;
    int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        n = read(fd, head, size);
    if (n >= 0 && lock_error != NULL)
        *lock_error = flock(fd, LOCK_SH | LOCK_NB) == 0 ? 0 : errno;
    close(fd);
    return n;
}

static enum verdict read_verdict(const char *name) {
    static const char key[] = "\"ok\":";
    char head[HEAD_BYTES + 1], file[MAX_NAME + 16];
    file_name(file, name, ".json");
    ssize_t n = read_head(file, head, HEAD_BYTES, NULL);
    if (n < 0)
        return ABSENT;
    head[n] = '\0';
    const char *found = memmem(head, (size_t)n, key, sizeof key - 1);
    if (found == NULL)
        return FAILED;
    found += sizeof key - 1;
    found += strspn(found, " ");
    return strncmp(found, "true", 4) == 0 ? SUCCEEDED : FAILED;
}

/* Of a container without a record: ABSENT unless the lock shows whether its launcher lives. */
static enum verdict read_up(const char *name) {
    char head[sizeof LOCKED], file[MAX_NAME + 16];
    int lock_error = 0;
    file_name(file, name, ".up");
    ssize_t n = read_head(file, head, sizeof LOCKED - 1, &lock_error);
    if (n != sizeof LOCKED - 1 || memcmp(head, LOCKED, sizeof LOCKED - 1) != 0)
        return ABSENT;
    return lock_error == 0 ? DEAD : lock_error == EWOULDBLOCK ? ALIVE : ABSENT;
}

static enum verdict check_wait(const struct wait *w) {
    struct stat st;
    char file[MAX_NAME + 16];
    if (w->up) {
        file_name(file, w->name, ".up");
        return fstatat(directory, file, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) ? SUCCEEDED : ABSENT;
    }
    enum verdict v = read_verdict(w->name);
    if (v != ABSENT)
        return v;
    enum verdict launcher = read_up(w->name);
    if (launcher == DEAD && (v = read_verdict(w->name)) != ABSENT)    /* it may have ended normally between the two checks */
        return v;
    return launcher;
}

/* Check all waits once: true when waiting is over. absent: the first one without a live launcher, which may never come. */
static bool check_all_waits(struct options *o, struct record *r, enum turn *turn, const struct wait **absent) {
    bool all = true;
    *absent = NULL;
    for (size_t i = 0; i < o->n_waits; i++) {
        struct wait *w = &o->waits[i];
        if (w->done)
            continue;
        enum verdict v = check_wait(w);
        if (v == ABSENT || v == ALIVE) {
            all = false;
            if (v == ABSENT && *absent == NULL)
                *absent = w;
            continue;
        }
        w->done = true;
        if (v != SUCCEEDED && !o->always) {
            record_reason(r, "Skipped", v == DEAD ? "%s ended without a record" : "%s did not succeed", w->name);
            *turn = TURN_SKIP;
            return true;
        }
    }
    *turn = TURN_RUN;
    return all;
}

enum turn control_wait(struct options *o, struct record *r) {
    enum turn turn;
    const struct wait *absent;
    char events[4096];
    int64_t deadline = now_ms() + o->wait_timeout_ms;
    int watch = -1;
    if (o->n_waits > 0 && (watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) >= 0)
        (void)inotify_add_watch(watch, o->control, IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE);
    for (;;) {
        if (termination_requested()) {
            record_reason(r, "Terminated", "terminated before its turn");
            turn = TURN_TERMINATED;
            break;
        }
        if (check_all_waits(o, r, &turn, &absent))
            break;
        if (absent == NULL)              /* a command may run for any time */
            deadline = now_ms() + o->wait_timeout_ms;
        int64_t left = o->wait_timeout_ms == 0 ? POLL_MS : deadline - now_ms();
        if (left <= 0) {
            record_reason(r, "WaitTimeout", "waited %lld s for %s%s", (long long)(o->wait_timeout_ms / 1000), absent->name,
                       absent->up ? " to start" : " to end");
            turn = TURN_TIMEOUT;
            break;
        }
        struct pollfd p[2] = {{.fd = signals_fd, .events = POLLIN}, {.fd = watch, .events = POLLIN}};
        if (poll(p, 2, (int)(left < POLL_MS ? left : POLL_MS)) > 0 && p[1].revents != 0)
            (void)!read(watch, events, sizeof events);
    }
    if (watch >= 0)
        close(watch);
    return turn;
}

enum begin control_begin(const struct options *o) {
    char name[MAX_NAME + 16];
    if (directory < 0)
        return BEGIN_YES;
    file_name(name, o->name, ".begun");
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return errno == EEXIST ? BEGIN_ALREADY : BEGIN_ERROR;
    close(fd);
    return BEGIN_YES;
}

/* keep_first: a record left by an earlier start of this container takes precedence. */
void control_close(const struct options *o, const struct record *r, bool keep_first) {
    char temporary[MAX_NAME + 48], name[MAX_NAME + 16], head[1];
    if (directory < 0)
        return;
    file_name(name, o->name, ".json");
    if (keep_first && read_head(name, head, 1, NULL) >= 0)
        return;
    for (int with_tails = 1; with_tails >= 0; with_tails--) {    /* without tails it may still fit on a full disk */
        int fd = open_temporary(temporary, o->name);
        if (fd < 0)
            continue;
        int error = record_write(r, fd, with_tails);
        (void)fchmod(fd, 0644);
        if (error == 0 && fsync(fd) != 0 && errno != EINVAL && errno != EROFS)
            error = errno;
        if (close(fd) != 0 && error == 0)
            error = errno;
        if (error == 0 && replace(temporary, name) == 0)
            return;
        (void)unlinkat(directory, temporary, 0);
    }
}

/* Append one record to the buffer, as one line; it stays as it is if the file is not one, or does not fit. */
static size_t append_record(const char *name, char *buffer, size_t used, size_t size) {
    struct stat st;
    size_t n = 0;
    int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return used;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 && (uintmax_t)st.st_size < size - used)
        for (ssize_t more; n < (size_t)st.st_size; n += (size_t)more)
            if ((more = read(fd, buffer + used + n, (size_t)st.st_size - n)) <= 0)
                break;
    close(fd);
    if (n > 0 && buffer[used + n - 1] != '\n')
        buffer[used + n++] = '\n';
    return used + n;
}

size_t control_others(const char *own, char *buffer, size_t size) {
    static const char suffix[] = ".json";
    char own_file[MAX_NAME + 16];
    size_t used = 0;
    int fd = directory < 0 ? -1 : openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = fd < 0 ? NULL : fdopendir(fd);
    if (listing == NULL) {
        if (fd >= 0)
            close(fd);
        return 0;
    }
    file_name(own_file, own, suffix);
    for (int i = 0; i < MAX_ENTRIES && used < size; i++) {
        const struct dirent *entry = readdir(listing);
        if (entry == NULL)
            break;
        size_t n = strlen(entry->d_name);
        if (n < sizeof suffix || n > MAX_NAME + sizeof suffix - 1 || entry->d_name[0] == '.' ||
            strcmp(entry->d_name + n - (sizeof suffix - 1), suffix) != 0 || strcmp(entry->d_name, own_file) == 0)
            continue;
        used = append_record(entry->d_name, buffer, used, size);
    }
    closedir(listing);
    return used;
}
