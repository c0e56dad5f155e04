/* Signals arrive through a signalfd, so that one poll loop handles signals, streams and deadlines and no handler can race with it. */
#include <signal.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "launcher.h"

int signals_fd = -1;
static const int FORWARDED[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};

int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void signals_prepare(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    for (size_t i = 0; i < sizeof FORWARDED / sizeof *FORWARDED; i++)
        sigaddset(&set, FORWARDED[i]);
    sigprocmask(SIG_SETMASK, &set, NULL);
    signal(SIGCHLD, SIG_DFL);                    /* with an inherited SIG_IGN the kernel would reap children itself */
    signal(SIGPIPE, SIG_IGN);
    signals_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

void signals_default(void) {
    sigset_t none;
    struct sigaction plain = {.sa_handler = SIG_DFL};
    for (int n = 1; n < 65; n++)
        (void)sigaction(n, &plain, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

int signals_next(void) {
    struct signalfd_siginfo info;
    return read(signals_fd, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

bool termination_requested(void) {
    bool requested = false;
    for (int n; (n = signals_next()) != 0;)
        requested |= n == SIGTERM || n == SIGINT;
    return requested;
}
