/* The command line. All values are validated here; the other modules rely on them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher.h"

static const char HELP[] =
    "usage: launcher [OPTIONS] -- COMMAND [ARGUMENT...]\n"
    "  --name NAME               this container's name\n"
    "  --control DIR             directory with the files by which containers take turns\n"
    "  --wait-up NAME            wait until DIR/NAME.up exists (repeatable)\n"
    "  --wait NAME               wait until DIR/NAME.json exists; skip if it failed (repeatable)\n"
    "  --always                  run even if an awaited container failed\n"
    "  --wait-timeout SECONDS    deadline for waits without a live launcher (0: none)\n"
    "  --ignore-error            a non-zero exit leaves \"ok\" true\n"
    "  --stdin PATH              the command's stdin (else empty)\n"
    "  --stdout PATH             also write its stdout there\n"
    "  --stderr PATH             also write its stderr there\n"
    "  --workdir DIR             run it there\n"
    "  --mkdir DIR               create DIR first, writable for all, if it does not exist (repeatable)\n"
    "  --tail-bytes N            bytes to keep of each of stdout and stderr (8192)\n"
    "  --time-limit SECONDS      then SIGTERM (0: none)\n"
    "  --grace SECONDS           from SIGTERM to SIGKILL (10)\n"
    "  --log-stall SECONDS       how long a full container log may block the command (10)\n"
    "  --keep-output N           keep up to N bytes of each of stdout and stderr as DIR/NAME.stdout.0, .1, ... (0: none)\n"
    "  --keep-backlog N          bytes of each that may wait there until a follower removes them (134217728)\n"
    "  --keep-stall SECONDS      how long in total a full backlog may block the command (10)\n"
    "  --keep-reader NAME        if output was kept, wait at the end until DIR/NAME.up exists, for a second at most\n"
    "  --poke HOST:PORT/PATH     send a POST there at the end\n"
    "  --poke-start              and another one when the command starts\n"
    "  --record-line MARKER      print 'MARKER {record}' as the last line of stdout\n"
    "  --termination-log PATH    (/dev/termination-log), used if it exists\n"
    "  --cgroup                  usage from the container's cgroup\n"
    "  --cgroup-root DIR         the same, with cgroups mounted at DIR (/sys/fs/cgroup)\n"
    "  --version, --help\n";

static _Noreturn void refuse(const char *what, const char *option) {
    char line[512];
    int n = snprintf(line, sizeof line, "launcher: %s: %.200s (see --help)\n", what, option);
    write_all(2, line, (size_t)n);
    _exit(EXIT_USAGE);
}

static _Noreturn void print_and_exit(const char *text) {
    write_all(1, text, strlen(text));
    _exit(0);
}

/* Names become file names in a directory that others can write to. */
static const char *name_value(const char *option, const char *value) {
    size_t n = strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.");
    if (n == 0 || n > MAX_NAME || value[n] != '\0' || value[0] == '.')
        refuse("invalid name: use 1 to 63 of A-Z a-z 0-9 - _ . without a leading dot", option);
    return value;
}

static const char *path_value(const char *option, const char *value) {
    if (value[0] == '\0' || strlen(value) >= 4096)
        refuse("empty path, or longer than 4095 bytes", option);
    return value;
}

/* "1.5" is 1500. Up to 10 years; digits after the third are dropped. */
static int64_t seconds_value(const char *option, const char *value) {
    const char *p = value;
    int64_t ms = 0;
    for (; *p >= '0' && *p <= '9'; p++)
        if ((ms = ms * 10 + (*p - '0') * 1000) > 315360000000)
            refuse("longer than 10 years", option);
    if (p == value)
        refuse("seconds expected", option);
    if (*p == '.') {
        int64_t unit = 100;
        for (p++; *p >= '0' && *p <= '9'; p++, unit /= 10)
            ms += (*p - '0') * unit;
    }
    if (*p != '\0')
        refuse("seconds expected", option);
    return ms;
}

static uint64_t size_value(const char *option, const char *value, uint64_t most) {
    uint64_t n = 0;
    const char *p = value;
    for (; *p >= '0' && *p <= '9'; p++)
        if ((n = n * 10 + (uint64_t)(*p - '0')) > most)
            refuse(most == MAX_TAIL ? "more than 4194304 bytes" : "more than 1 TiB", option);
    if (p == value || *p != '\0')
        refuse("a number of bytes expected", option);
    return n;
}

static void add_wait(struct options *o, const char *option, const char *value, bool up) {
    if (o->n_waits == MAX_WAITS)
        refuse("too many waits", option);
    o->waits[o->n_waits++] = (struct wait){.name = name_value(option, value), .up = up};
}

void options_parse(struct options *o, char **argv) {
    o->grace_ms = o->log_stall_ms = 10000;
    o->tail_bytes = 8192;
    o->keep_backlog = 128u << 20;
    o->keep_stall_ms = 10000;
    o->termination_log = "/dev/termination-log";
    if (*argv != NULL)
        argv++;
    for (; *argv != NULL; argv++) {
        char *option = *argv, *value = NULL;
        size_t n = strcspn(option, "=");
#define FLAG(text) (strcmp(option, text) == 0)
#define VALUE(text) (n == sizeof text - 1 && memcmp(option, text, n) == 0 &&                                       \
                     ((value = option[n] == '=' ? option + n + 1 : *++argv) != NULL || (refuse("missing value", text), 0)))
        if (FLAG("--")) {
            argv++;
            break;
        } else if (FLAG("--always")) o->always = true;
        else if (FLAG("--ignore-error")) o->ignore_error = true;
        else if (FLAG("--poke-start")) o->poke_start = true;
        else if (FLAG("--cgroup")) o->cgroup_root = o->cgroup_root ? o->cgroup_root : "/sys/fs/cgroup";
        else if (FLAG("--version")) print_and_exit("launcher " LAUNCHER_VERSION "\n");
        else if (FLAG("--help")) print_and_exit(HELP);
        else if (VALUE("--name")) o->name = name_value(option, value);
        else if (VALUE("--control")) o->control = path_value(option, value);
        else if (VALUE("--wait-up")) add_wait(o, option, value, true);
        else if (VALUE("--wait")) add_wait(o, option, value, false);
        else if (VALUE("--wait-timeout")) o->wait_timeout_ms = seconds_value(option, value);
        else if (VALUE("--stdin")) o->stdin_path = path_value(option, value);
        else if (VALUE("--stdout")) o->stdout_path = path_value(option, value);
        else if (VALUE("--stderr")) o->stderr_path = path_value(option, value);
        else if (VALUE("--workdir")) o->workdir = path_value(option, value);
        else if (VALUE("--mkdir")) {
            if (o->n_directories == MAX_DIRECTORIES)
                refuse("too many directories", option);
            o->directories[o->n_directories++] = path_value(option, value);
        } else if (VALUE("--tail-bytes")) o->tail_bytes = (size_t)size_value(option, value, MAX_TAIL);
        else if (VALUE("--keep-output")) o->keep_bytes = size_value(option, value, MAX_KEPT);
        else if (VALUE("--keep-backlog")) o->keep_backlog = size_value(option, value, MAX_KEPT);
        else if (VALUE("--keep-stall")) o->keep_stall_ms = seconds_value(option, value);
        else if (VALUE("--keep-reader")) o->keep_reader = name_value(option, value);
        else if (VALUE("--time-limit")) o->time_limit_ms = seconds_value(option, value);
        else if (VALUE("--grace")) o->grace_ms = seconds_value(option, value);
        else if (VALUE("--log-stall")) o->log_stall_ms = seconds_value(option, value);
        else if (VALUE("--record-line")) o->marker = value;
        else if (VALUE("--termination-log")) o->termination_log = path_value(option, value);
        else if (VALUE("--cgroup-root")) o->cgroup_root = path_value(option, value);
        else if (VALUE("--poke")) {
            if (!poke_valid(value))
                refuse("HOST:PORT/PATH expected", option);
            o->poke = value;
        } else if (option[0] == '-')
            refuse("unknown option", option);
        else
            refuse("missing '--' before the command", option);
    }
    if (*argv == NULL)
        refuse("missing command after", "--");
    if (o->control != NULL && o->name == NULL)
        refuse("--control also needs", "--name");
    if (o->control == NULL && o->n_waits > 0)
        refuse("--wait and --wait-up also need", "--control");
    if (o->control == NULL && (o->keep_bytes > 0 || o->keep_reader != NULL))
        refuse("--keep-output and --keep-reader also need", "--control");
    if (o->poke_start && o->poke == NULL)
        refuse("--poke-start also needs", "--poke");
    if (o->marker != NULL && (o->marker[0] == '\0' || strlen(o->marker) > 256 || strpbrk(o->marker, "\r\n") != NULL))
        refuse("invalid marker: use 1 to 256 bytes without line breaks", "--record-line");
    if (o->name == NULL)
        o->name = "command";
    o->argv = argv;
}
