/* The command's process: start, follow, terminate and reap it, with everything it leaves behind.
 *
 * The command leads a session of its own; signals go to its whole process group. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher.h"

#define SETTLE_MS 200                /* after the command, for each step: pipes close, SIGTERM, SIGKILL */
#define PIPE_BYTES (1 << 20)
#define KEPT_POLL_MS 5               /* while the follower of the kept output has to catch up */
#define SAMPLE_MS 250                /* of memory.current, where the kernel records no peak */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* ---- start */

struct failure {                     /* sent by the child when it cannot execute the command */
    enum { NO_WORKDIR, NO_PROGRAM } what;
    int error;
    bool interpreter;                /* the program exists, its interpreter or loader does not */
};

/* Like execvp, but never falls back to a shell for a file that is not a program. */
static void execute(char **argv, struct failure *f) {
    const char *path = getenv("PATH");
    char candidate[4096 + 256];
    extern char **environ;
    bool denied = false;
    if (strchr(argv[0], '/') != NULL) {
        execve(argv[0], argv, environ);
        f->error = errno;
        f->interpreter = errno == ENOENT && access(argv[0], F_OK) == 0;
        return;
    }
    f->error = ENOENT;
    if (argv[0][0] == '\0')
        return;
    for (path = path != NULL ? path : DEFAULT_PATH; path != NULL; path = *path == ':' ? path + 1 : NULL) {
        size_t n = strcspn(path, ":");
        int length = snprintf(candidate, sizeof candidate, "%.*s%s%s", (int)n, path, n > 0 ? "/" : "./", argv[0]);
        path += n;
        if (length < 0 || (size_t)length >= sizeof candidate)
            continue;
        execve(candidate, argv, environ);
        if (errno == EACCES)
            denied = true;
        else if (errno == ENOENT && access(candidate, F_OK) == 0)
            f->interpreter = true;
        else if (errno != ENOENT && errno != ENOTDIR && errno != ESTALE && errno != ENODEV && errno != ETIMEDOUT &&
                 errno != ENAMETOOLONG && errno != ELOOP) {
            f->error = errno;
            return;
        }
    }
    if (denied && !f->interpreter)
        f->error = EACCES;
}

static _Noreturn void execute_command(const struct options *o, const int fds[3], int report, pid_t parent) {
    struct failure f = {.what = NO_WORKDIR};
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);            /* needed where the launcher is not PID 1 */
    if (getppid() != parent)
        _exit(EXIT_TERMINATED);
    signals_default();
    for (int i = 0; i < 3; i++)
        dup2(fds[i], i);                         /* clears close-on-exec; main.c ensures that fds[i] > 2 */
    if (o->workdir != NULL && chdir(o->workdir) != 0) {
        f.error = errno;
    } else {
        f.what = NO_PROGRAM;
        execute(o->argv, &f);
    }
    (void)write_all(report, &f, sizeof f);
    _exit(EXIT_NOT_EXECUTABLE);
}

/* The command cannot run as requested: counts as its own failure and is reported on its stderr. */
static void fail(const struct options *o, struct record *r, struct stream *err, int exit_code, const char *reason,
                 const char *what, int error) {
    char line[MAX_MESSAGE + 1];
    record_reason(r, reason, error == 0 ? "%.300s" : "%.300s: %s", what, strerror(error));
    snprintf(line, sizeof line, "%s\n", r->message);
    stream_print(err, line);
    r->exit_code = exit_code;
    r->ok = o->ignore_error;
    clock_gettime(CLOCK_REALTIME, &r->ended);
}

/* Directories of the task's outputs. Failures are ignored: the command reports them better. */
static void make_output_directories(const struct options *o) {
    char directory[4096];
    mode_t mask = umask(0);
    for (size_t i = 0; i < o->n_directories; i++) {
        strcpy(directory, o->directories[i]);
        (void)make_directories(directory);
    }
    umask(mask);
}

static bool open_streams(const struct options *o, struct record *r, struct stream *out, struct stream *err, int *in) {
    int error;
    char directory[4096], what[4300];
    make_output_directories(o);
    if (o->stderr_path != NULL && (error = open_output(o->stderr_path, &err->file)) != 0) {
        fail(o, r, err, 1, "StderrUnavailable", o->stderr_path, error);
        return false;
    }
    if (o->stdout_path != NULL && (error = open_output(o->stdout_path, &out->file)) != 0) {
        fail(o, r, err, 1, "StdoutUnavailable", o->stdout_path, error);
        return false;
    }
    if (o->stdin_path == NULL)
        *in = open_nothing();
    else if ((error = open_input(o->stdin_path, in)) != 0) {
        snprintf(what, sizeof what, "stdin %s", o->stdin_path);
        fail(o, r, err, 1, "StdinUnavailable", what, error);
        return false;
    }
    if (o->workdir != NULL) {
        strcpy(directory, o->workdir);
        if ((error = make_directories(directory)) != 0) {
            snprintf(what, sizeof what, "working directory %s", o->workdir);
            fail(o, r, err, 1, "WorkdirUnavailable", what, error);
            return false;
        }
    }
    return true;
}

static pid_t start(const struct options *o, struct record *r, struct stream *out, struct stream *err, int in) {
    int outs[2] = {-1, -1}, errs[2] = {-1, -1}, report[2] = {-1, -1}, error = 0;
    struct failure f;
    char what[4300];
    pid_t pid = -1, self = getpid();
    if (in < 0 || pipe2(outs, O_CLOEXEC) != 0 || pipe2(errs, O_CLOEXEC) != 0 || pipe2(report, O_CLOEXEC) != 0 ||
        (pid = fork()) < 0)
        error = errno;
    if (pid == 0)
        execute_command(o, (int[]){in, outs[1], errs[1]}, report[1], self);
    close(in);
    close(outs[1]);
    close(errs[1]);
    close(report[1]);
    out->pipe = outs[0];
    err->pipe = errs[0];
    if (error != 0) {
        close(report[0]);
        fail(o, r, err, EXIT_NOT_EXECUTABLE, "StartFailed", "cannot start the command", error);
        r->ok = false;
        return -1;
    }
    /* A successful exec closes the pipe. From then on the group exists and receives signals. */
    ssize_t n;
    while ((n = read(report[0], &f, sizeof f)) < 0 && errno == EINTR)
        ;
    close(report[0]);
    if (n != (ssize_t)sizeof f) {
        for (int i = 0; i < 2; i++) {
            int fd = i == 0 ? out->pipe : err->pipe;
            (void)fcntl(fd, F_SETFL, O_NONBLOCK);
            (void)fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES);
        }
        return pid;
    }
    waitpid(pid, NULL, 0);
    if (f.what == NO_WORKDIR) {
        snprintf(what, sizeof what, "working directory %s", o->workdir);
        fail(o, r, err, 1, "WorkdirUnavailable", what, f.error);
    } else if (f.error == ENOENT || f.error == ENOTDIR) {
        snprintf(what, sizeof what, f.interpreter ? "%.300s: its interpreter or loader was not found"
                                                  : "%.300s: command not found", o->argv[0]);
        fail(o, r, err, EXIT_NOT_FOUND, "NotFound", what, 0);
    } else {
        fail(o, r, err, EXIT_NOT_EXECUTABLE, "NotExecutable", o->argv[0], f.error);
    }
    return -1;
}

/* ---- follow */

struct run {
    const struct options *o;
    struct record *r;
    struct stream *out, *err;
    struct usage usage;
    pid_t pid, poke;
    bool exited;
    int status;
    int64_t limit_at, kill_at;       /* ms; 0: not set */
    enum { RUNNING, DRAINING, TERMINATING, KILLING } stage;
    int64_t stage_until;
};

/* True while any process is left. Orphans are reparented to the launcher: it is PID 1 or their subreaper. */
static bool reap(struct run *x) {
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid == x->pid) {
            x->exited = true;
            x->status = status;
        } else if (pid == x->poke && pid > 0) {
            x->poke = 0;
        } else if (pid < 0 && errno != EINTR) {
            return false;
        } else if (pid == 0) {
            return true;
        }
    }
}

/* Signal the command's group and processes that have left the group. */
static void signal_rest(struct run *x, int number) {
    char text[4096];
    kill(-x->pid, number);
    if (getpid() == 1) {
        kill(-1, number);
        return;
    }
    int fd = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = '\0';
    for (char *p = text, *end; (end = strchr(p, ' ')) != NULL; p = end + 1) {    /* a truncated number is not followed by a space */
        pid_t pid = (pid_t)strtol(p, NULL, 10);
        if (pid > 1 && pid != x->poke)
            kill(pid, number);
    }
}

static void take_signals(struct run *x, int64_t now) {
    for (int n; (n = signals_next()) != 0;) {
        if (n == SIGCHLD)
            continue;
        if (!x->exited)
            kill(-x->pid, n);
        if ((n == SIGTERM || n == SIGINT) && !x->exited) {
            if (x->r->reason == NULL)
                record_reason(x->r, "Terminated", "terminated by signal %d", n);
            if (x->kill_at == 0)
                x->kill_at = now + x->o->grace_ms;
        }
    }
}

static void enforce_deadlines(struct run *x, int64_t now) {
    if (x->limit_at != 0 && now >= x->limit_at) {
        x->limit_at = 0;
        if (x->r->reason == NULL)
            record_reason(x->r, "TimeLimit", "time limit of %lld.%03d s exceeded", (long long)(x->o->time_limit_ms / 1000),
                       (int)(x->o->time_limit_ms % 1000));
        kill(-x->pid, SIGTERM);
        if (x->kill_at == 0)
            x->kill_at = now + x->o->grace_ms;
    }
    if (x->kill_at != 0 && now >= x->kill_at) {
        kill(-x->pid, SIGKILL);
        x->kill_at = now + 1000;
    }
}

/* After the command has exited: wait for its pipes to close, then terminate the processes that hold them. True when finished. */
static bool settle(struct run *x, bool others, int64_t now) {
    bool drained = x->out->pipe < 0 && x->err->pipe < 0;
    bool flushed = x->out->len == 0 && x->err->len == 0;
    if (x->stage == RUNNING) {
        clock_gettime(CLOCK_REALTIME, &x->r->ended);
        if (x->poke > 0)
            kill(x->poke, SIGKILL);              /* the closing poke carries more */
        x->stage = DRAINING;
        x->stage_until = now + SETTLE_MS;
    }
    if (drained && flushed && (!others || (x->stage == KILLING && now >= x->stage_until)))
        return true;
    if (x->stage == DRAINING && (now >= x->stage_until || (drained && others))) {
        signal_rest(x, SIGTERM);
        x->stage = TERMINATING;
        x->stage_until = now + SETTLE_MS;
    } else if (x->stage == TERMINATING && (now >= x->stage_until || !others)) {
        signal_rest(x, SIGKILL);
        x->stage = KILLING;
        x->stage_until = now + SETTLE_MS;
        x->out->budget = x->err->budget = 2 * PIPE_BYTES;    /* bound for pipes kept open by processes that cannot be reached */
    } else if (x->stage == KILLING) {
        if (others)
            signal_rest(x, SIGKILL);                         /* children of killed processes may have been reparented since */
        for (int i = 0; i < 2 && now >= x->stage_until; i++) {
            struct stream *s = i == 0 ? x->out : x->err;
            struct pollfd p = {.fd = s->pipe, .events = POLLIN};
            if (s->pipe >= 0 && s->len == 0 && (poll(&p, 1, 0) != 1 || !(p.revents & POLLIN))) {
                close(s->pipe);                              /* empty, and held open by a process that cannot be reached */
                s->pipe = -1;
            }
        }
    }
    return false;
}

static int time_left(const struct run *x, int64_t now) {
    int64_t next = INT64_MAX;
    const int64_t at[] = {
        x->exited ? 0 : x->limit_at,
        x->exited ? 0 : x->kill_at,
        x->stage == RUNNING ? 0 : x->stage == KILLING ? now + 10 : x->stage_until,
        x->out->len > 0 ? x->out->log_stalled_at + x->o->log_stall_ms : 0,
        x->err->len > 0 ? x->err->log_stalled_at + x->o->log_stall_ms : 0,
        x->usage.sampled ? now + SAMPLE_MS : 0,
    };
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        if (at[i] != 0 && at[i] < next)
            next = at[i];
    if (next == INT64_MAX)
        return -1;
    return next <= now ? 0 : next - now > 3600000 ? 3600000 : (int)(next - now);
}

static void follow(struct run *x) {
    struct stream *streams[2] = {x->out, x->err};
    for (;;) {
        int64_t now = now_ms();
        take_signals(x, now);
        bool others = reap(x);
        if (!x->exited)
            enforce_deadlines(x, now);
        else if (settle(x, others, now))
            return;
        usage_sample(&x->usage, x->o->cgroup_root);
        struct pollfd p[5] = {{.fd = signals_fd, .events = POLLIN}};
        bool waits = false;
        for (int i = 0; i < 2; i++) {            /* a full log or backlog holds back only its own pipe */
            bool pending = streams[i]->len > 0, kept = !pending && streams[i]->pipe >= 0 && keep_waits(&streams[i]->kept, now, !x->exited);
            waits |= kept;
            p[1 + i] = (struct pollfd){.fd = pending || kept ? -1 : streams[i]->pipe, .events = POLLIN};
            p[3 + i] = (struct pollfd){.fd = pending ? streams[i]->log : -1, .events = POLLOUT};
        }
        int left = time_left(x, now);
        if (poll(p, 5, waits && (left < 0 || left > KEPT_POLL_MS) ? KEPT_POLL_MS : left) < 0)
            continue;
        now = now_ms();
        for (int i = 0; i < 2; i++) {
            if (streams[i]->len > 0)
                stream_flush(streams[i], now, x->o->log_stall_ms);
            else if (p[1 + i].revents != 0)
                stream_read(streams[i], now, x->o->log_stall_ms);
        }
    }
}

void run_command(const struct options *o, struct record *r, struct stream *out, struct stream *err) {
    int in = -1;
    struct run x = {.o = o, .r = r, .out = out, .err = err};
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    clock_gettime(CLOCK_REALTIME, &r->started);
    usage_start(&x.usage, o->cgroup_root);
    if (open_streams(o, r, out, err, &in) && (x.pid = start(o, r, out, err, in)) > 0) {
        if (o->time_limit_ms > 0)
            x.limit_at = now_ms() + o->time_limit_ms;
        if (o->poke_start)
            x.poke = poke_start(o->poke, NULL);
        follow(&x);
        poke_wait(x.poke);
        r->signal = WIFSIGNALED(x.status) ? WTERMSIG(x.status) : 0;
        r->exit_code = r->signal != 0 ? 128 + r->signal : WEXITSTATUS(x.status);
        r->ok = (r->exit_code == 0 || o->ignore_error) && r->reason == NULL;
        int error = out->file_error != 0 ? out->file_error : err->file_error;
        if (error != 0 && r->reason == NULL) {   /* the command may have succeeded, but its output file is incomplete */
            record_reason(r, "OutputLost", "%.300s: %s", out->file_error != 0 ? o->stdout_path : o->stderr_path, strerror(error));
            r->ok = o->ignore_error;
        }
    }
    usage_end(&x.usage, o->cgroup_root);
    r->peak_bytes = x.usage.peak_bytes;
    r->cpu_us = x.usage.cpu_us;
    r->oom_killed = x.usage.oom_kills > 0;
    if (out->file >= 0)
        close(out->file);
    if (err->file >= 0)
        close(err->file);
}
