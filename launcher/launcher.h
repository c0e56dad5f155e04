/* The launcher runs one command of a pod when its turn has come, and writes a closing record of how it ended.
 *
 * Modules, from the top: main.c (the sequence), process.c (start, time limit, reaping), poke.c (the wake-up request), control.c (the files
 * by which containers take turns), options.c (the command line), record.c (the JSON), streams.c (stdin, stdout, stderr and their tails),
 * keep.c (the whole output, for a log store), usage.c (memory and CPU), signals.c (signals and the clock). README.md is the contract.
 * Memory use is constant: it does not grow with the output, the number of processes or the size of a file.
 */
#ifndef LAUNCHER_H
#define LAUNCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define LAUNCHER_VERSION "1.0.0"
#define MAX_WAITS 1024               /* --wait and --wait-up together */
#define MAX_DIRECTORIES 4096         /* --mkdir */
#define MAX_NAME 63                  /* a container's name (RFC 1123 label) */
#define MAX_TAIL (4u << 20)
#define MAX_KEPT (UINT64_C(1) << 40)  /* --keep-output, --keep-backlog */
#define MAX_MESSAGE 512              /* a record without tails always fits in a termination message */
#define TERMINATION_LOG_MAX 4096     /* limit of Kubernetes for a container's termination message */
#define POKE_BODY_MAX (128u << 10)   /* of all records in a poke; a longer one is not sent, only logged */

enum exit_status {                   /* the launcher's own; a command's exit status is passed on */
    EXIT_USAGE = 2,
    EXIT_WAIT_TIMEOUT = 124,
    EXIT_NOT_BEGUN = 125,
    EXIT_NOT_EXECUTABLE = 126,
    EXIT_NOT_FOUND = 127,
    EXIT_TERMINATED = 143,
};

/* ---- signals.c */
extern int signals_fd;

int64_t now_ms(void);                /* monotonic */
void signals_prepare(void);
void signals_default(void);          /* for a child process */
int signals_next(void);              /* a pending signal, 0: none */
bool termination_requested(void);    /* consumes the pending signals */

/* ---- options.c */
struct wait {
    const char *name;
    bool up;                         /* wait for NAME.up, else for NAME.json */
    bool done;
};

struct options {
    const char *name, *control, *stdin_path, *stdout_path, *stderr_path, *workdir;
    const char *marker, *poke, *termination_log;
    const char *cgroup_root;         /* NULL: use getrusage */
    bool always, ignore_error, poke_start;
    int64_t wait_timeout_ms;         /* 0: none */
    int64_t time_limit_ms;           /* 0: none */
    int64_t grace_ms, log_stall_ms;
    size_t tail_bytes;
    uint64_t keep_bytes;             /* of each stream; 0: none */
    uint64_t keep_backlog;
    int64_t keep_stall_ms;
    const char *keep_reader;         /* NULL: none */
    struct wait waits[MAX_WAITS];
    size_t n_waits;
    const char *directories[MAX_DIRECTORIES];
    size_t n_directories;
    char **argv;
};

/* Fills *o, or exits: with 2 and a message for an invalid command line, with 0 after --help and --version. */
void options_parse(struct options *o, char **argv);

/* ---- keep.c */
struct kept {                        /* the copy of a stream in the control directory */
    const char *name, *stream;
    int fd;                          /* the current segment; -1: none */
    uint64_t written;
    uint64_t left;                   /* 0: nothing more is kept */
    uint64_t backlog;                /* segments */
    int64_t waiting_at;              /* ms; 0: not waiting */
    int64_t stall_left_ms;
};

void keep_prepare(struct kept *k, const struct options *o, const char *stream);
void keep_add(struct kept *k, const unsigned char *p, size_t n);
bool keep_waits(struct kept *k, int64_t now, bool runs);   /* true: read nothing more of the stream now */
void keep_await_reader(const struct options *o, const struct kept *out, const struct kept *err);

/* ---- streams.c */
struct tail {                        /* the last `size` bytes of `total` */
    unsigned char *ring;
    size_t size;
    uint64_t total;
};

struct stream {                      /* the command's stdout or stderr, copied to file, container log and tail */
    int pipe;                        /* read end; -1 after end of file */
    int file;                        /* -1: none */
    int file_error;                  /* errno of the first write that failed */
    int log;                         /* the launcher's stdout or stderr; -1 when closed */
    bool log_dropping;               /* the log is blocked: drop output until it accepts bytes again */
    int64_t log_stalled_at;          /* ms; 0: not stalled */
    unsigned char log_last;          /* last byte printed */
    uint64_t bytes;                  /* written by the command */
    uint64_t budget;                 /* bytes still to be read: bounds draining a pipe that is never closed */
    size_t off, len;                 /* part of `buffer` still to be written to the log */
    struct tail tail;
    struct kept kept;
    unsigned char buffer[64 * 1024];
};

void stream_prepare(struct stream *s, int log);
void log_restore(void);
bool tail_allocate(struct tail *t, size_t size);
void stream_read(struct stream *s, int64_t now, int64_t log_stall_ms);
void stream_flush(struct stream *s, int64_t now, int64_t log_stall_ms);
void stream_print(struct stream *s, const char *text);     /* a message of the launcher's own */
void log_write(struct stream *s, const char *data, size_t n, int64_t stall_ms);
int write_all(int fd, const void *data, size_t n);         /* 0 or errno */
int make_directories(char *path);                          /* mkdir -p; 0 or errno */
int open_input(const char *path, int *fd);                 /* 0 or errno */
int open_output(const char *path, int *fd);                /* creates parents, truncates; O_APPEND; 0 or errno */
int open_nothing(void);                                    /* a descriptor at end of file */

/* ---- usage.c */
struct usage {
    int64_t peak_bytes;              /* -1: unknown */
    int64_t cpu_us;
    int64_t oom_kills;
    bool sampled;                    /* the kernel records no peak: call usage_sample regularly */
};

void usage_start(struct usage *before, const char *cgroup_root);
void usage_sample(struct usage *u, const char *cgroup_root);
void usage_end(struct usage *before_then_result, const char *cgroup_root);

/* ---- record.c */
struct record {
    const char *name;
    bool ok;
    int exit_code;                   /* -1: null */
    int signal;                      /* 0: null */
    const char *reason;              /* NULL: null */
    char message[MAX_MESSAGE];       /* empty: null */
    bool oom_killed;
    struct timespec started, ended;  /* tv_sec 0: null, the command was not started */
    int64_t peak_bytes, cpu_us;      /* -1: null */
    const struct stream *out, *err;
};

void record_reason(struct record *r, const char *reason, const char *format, ...) __attribute__((format(printf, 3, 4)));
int record_write(const struct record *r, int fd, bool with_tails);      /* 0 or errno */
size_t record_size(const struct record *r);                             /* bytes that record_write writes with tails */
void record_line(const struct record *r, struct stream *log, const char *marker, int64_t stall_ms);
void record_termination_log(const struct record *r, const char *path);

/* ---- control.c */
enum turn { TURN_RUN, TURN_SKIP, TURN_TIMEOUT, TURN_TERMINATED };
enum begin { BEGIN_YES, BEGIN_ALREADY, BEGIN_ERROR };

int control_directory(void);                                     /* -1: none */
bool control_open(const struct options *o, struct record *r);    /* creates NAME.up; false: the record has the reason */
enum turn control_wait(struct options *o, struct record *r);
enum begin control_begin(const struct options *o);               /* creates NAME.begun; sets errno on error */
void control_close(const struct options *o, const struct record *r, bool keep_first);
size_t control_others(const char *own, char *buffer, size_t size);   /* the records of the other containers, a line each: its length */

/* ---- process.c */
void run_command(const struct options *o, struct record *r, struct stream *out, struct stream *err);

/* ---- poke.c */
pid_t poke_start(const char *target, const struct record *closing);   /* closing: the request body, or NULL */
void poke_wait(pid_t pid);
bool poke_valid(const char *target);

#endif
