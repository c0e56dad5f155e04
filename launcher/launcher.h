/* The launcher runs one command of a pod when its turn has come, and leaves a closing record of how it ended.
 *
 * One module for each thing it knows: options.c (the command line), control.c (the files by which containers take turns),
 * streams.c (stdin, stdout, stderr and their tails), process.c (start, signals, time limit, reaping), usage.c (memory and CPU),
 * record.c (the JSON), poke.c (the wake-up request), main.c (the order of it all). README.md is the contract.
 * Memory is fixed: nothing grows with the output, the number of processes or the size of a file.
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
#define MAX_MESSAGE 512              /* so that a record without tails always fits a termination message */
#define TERMINATION_LOG_MAX 4096     /* Kubernetes keeps no more of a container's termination message */
#define POKE_BODY_MAX (128u << 10)   /* a longer record is not sent along: it is in the log */

enum exit_status {                   /* the launcher's own; a command's are passed on */
    EXIT_USAGE = 2,
    EXIT_WAIT_TIMEOUT = 124,
    EXIT_NOT_BEGUN = 125,
    EXIT_NOT_EXECUTABLE = 126,
    EXIT_NOT_FOUND = 127,
    EXIT_TERMINATED = 143,
};

/* ---- options.c */
struct wait {
    const char *name;
    bool up;                         /* for NAME.up; else for NAME.json */
    bool done;
};

struct options {
    const char *name, *control, *stdin_path, *stdout_path, *stderr_path, *workdir;
    const char *marker, *poke, *termination_log;
    const char *cgroup_root;         /* NULL: figures come from getrusage */
    bool always, ignore_error, poke_start;
    int64_t wait_timeout_ms;         /* 0: none */
    int64_t time_limit_ms;           /* 0: none */
    int64_t grace_ms, log_stall_ms;
    size_t tail_bytes;
    struct wait waits[MAX_WAITS];
    size_t n_waits;
    const char *directories[MAX_DIRECTORIES];
    size_t n_directories;
    char **argv;
};

/* Fills *o or ends the process: 2 with a message for a bad command line, 0 after --help and --version. */
void options_parse(struct options *o, char **argv);

/* ---- streams.c */
struct tail {                        /* the last `size` bytes of `total` */
    unsigned char *ring;
    size_t size;
    uint64_t total;
};

struct stream {                      /* one of the command's stdout, stderr on its way to file, container log and tail */
    int pipe;                        /* read end; -1 when at its end */
    int file;                        /* -1: none */
    int file_error;                  /* errno of the first write that failed */
    int log;                         /* our own stdout or stderr; -1 when closed */
    bool log_dropping;               /* the log stands still: leave it out until it takes bytes again */
    int64_t log_stalled_at;          /* ms, 0: it does not */
    unsigned char log_last;          /* last byte printed */
    uint64_t bytes;                  /* written by the command */
    uint64_t budget;                 /* bytes still to be read; bounds the draining of a pipe that never ends */
    size_t off, len;                 /* of `buffer`, what the log has still to take */
    struct tail tail;
    unsigned char buffer[64 * 1024];
};

void stream_prepare(struct stream *s, int log);
void log_restore(void);
bool tail_allocate(struct tail *t, size_t size);
void stream_read(struct stream *s, int64_t now, int64_t log_stall_ms);
void stream_flush(struct stream *s, int64_t now, int64_t log_stall_ms);
void stream_say(struct stream *s, const char *text);       /* a line of the launcher's own */
void log_write(struct stream *s, const char *data, size_t n, int64_t stall_ms);
int write_all(int fd, const void *data, size_t n);         /* 0 or errno */
int make_directories(char *path);                          /* mkdir -p; 0 or errno */
int open_input(const char *path, int *fd);                 /* 0 or errno */
int open_output(const char *path, int *fd);                /* parents made, truncated, O_APPEND; 0 or errno */
int open_nothing(void);                                    /* a descriptor that reads as empty */

/* ---- usage.c */
struct usage {
    int64_t peak_bytes;              /* -1: unknown */
    int64_t cpu_us;
    int64_t oom_kills;
    bool sampled;                    /* no peak is kept for us: call usage_sample now and then */
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
    struct timespec started, ended;  /* tv_sec 0: null, the command was not begun */
    int64_t peak_bytes, cpu_us;      /* -1: null */
    const struct stream *out, *err;
};

void record_say(struct record *r, const char *reason, const char *format, ...) __attribute__((format(printf, 3, 4)));
int record_write(const struct record *r, int fd, bool with_tails);      /* 0 or errno */
size_t record_size(const struct record *r);                             /* bytes that record_write writes with tails */
void record_line(const struct record *r, struct stream *log, const char *marker, int64_t stall_ms);
void record_termination_log(const struct record *r, const char *path);

/* ---- control.c */
enum turn { TURN_RUN, TURN_SKIP, TURN_TIMEOUT, TURN_TERMINATED };
enum begin { BEGIN_YES, BEGIN_ALREADY, BEGIN_ERROR };

bool control_open(const struct options *o, struct record *r);    /* and NAME.up; false: see the record */
enum turn control_wait(struct options *o, struct record *r);
enum begin control_begin(const struct options *o);               /* NAME.begun; on error errno is set */
void control_close(const struct options *o, const struct record *r, bool keep_first);

/* ---- process.c */
extern int signals_fd;

int64_t now_ms(void);
void signals_prepare(void);
void signals_default(void);          /* in a child, before it goes its own way */
bool termination_asked(void);        /* eats the pending signals */
void run_command(const struct options *o, struct record *r, struct stream *out, struct stream *err);

/* ---- poke.c */
pid_t poke_begin(const char *target, const struct record *closing);   /* closing: NULL, or what the request carries */
void poke_finish(pid_t pid);
bool poke_valid(const char *target);

#endif
