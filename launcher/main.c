/* The sequence: announce the start, wait for the turn, run the command, report how it ended. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "launcher.h"

static struct options options;
static struct stream out, err;       /* zero-initialized: their buffers take no space in the binary */

/* Keep the numbers of the standard streams from being assigned to other descriptors. */
static void fill_standard_streams(void) {
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF) {
            int nothing = open_nothing();
            if (nothing >= 0)                    /* gets the lowest free number, fd; stays open across exec */
                (void)fcntl(nothing, F_SETFD, 0);
        }
}

/* Returns -1 when the command is to run, else the launcher's exit status. */
static int await_turn(struct record *r, bool *keep_first) {
    if (!control_open(&options, r))
        return EXIT_NOT_BEGUN;
    switch (control_wait(&options, r)) {
    case TURN_SKIP:
        return 0;
    case TURN_TIMEOUT:
        return EXIT_WAIT_TIMEOUT;
    case TURN_TERMINATED:
        return EXIT_TERMINATED;
    case TURN_RUN:
        break;
    }
    switch (control_begin(&options)) {
    case BEGIN_ALREADY:
        *keep_first = true;
        record_reason(r, "AlreadyBegun", "the command has been started before and is not run again");
        return EXIT_NOT_BEGUN;
    case BEGIN_ERROR:
        record_reason(r, "ControlUnavailable", "%s.begun: %s", options.name, strerror(errno));
        return EXIT_NOT_BEGUN;
    case BEGIN_YES:
        break;
    }
    return -1;
}

int main(int argc, char **argv) {
    (void)argc;
    bool keep_first = false;
    /* The command runs as the same user: it may not trace or stop us, and so evade its time limit, nor use our descriptors. */
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    fill_standard_streams();
    options_parse(&options, argv);
    signals_prepare();
    stream_prepare(&out, 1);
    stream_prepare(&err, 2);
    struct record r = {.name = options.name, .exit_code = -1, .peak_bytes = -1, .cpu_us = -1, .out = &out, .err = &err};
    int status = await_turn(&r, &keep_first);
    if (status < 0) {
        tail_allocate(&out.tail, options.tail_bytes);
        tail_allocate(&err.tail, options.tail_bytes);
        keep_prepare(&out.kept, &options, "stdout");
        keep_prepare(&err.kept, &options, "stderr");
        run_command(&options, &r, &out, &err);
        keep_await_reader(&options, &out.kept, &err.kept);
        status = r.exit_code;
    }
    control_close(&options, &r, keep_first);
    if (options.marker != NULL) {
        if (err.log_last != '\n')                /* readers see both streams merged */
            log_write(&err, "\n", 1, options.log_stall_ms);
        record_line(&r, &out, options.marker, options.log_stall_ms);
    }
    record_termination_log(&r, options.termination_log);
    if (options.poke != NULL)
        poke_wait(poke_start(options.poke, &r));
    log_restore();
    return status;
}
