/* Memory and CPU usage: of the container's cgroup if requested and readable, else of the reaped processes. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "launcher.h"

/* The number after `key` ("" for a file that is just a number), or -1. */
static int64_t read_number(const char *root, const char *file, const char *key) {
    char path[4400], text[4096];
    snprintf(path, sizeof path, "%s/%s", root, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return -1;
    text[n] = '\0';
    size_t length = strlen(key);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, length) != 0)
            continue;
        const char *p = line + length;
        while (*p == ' ')
            p++;
        int64_t value = 0;
        if (*p < '0' || *p > '9')
            continue;
        for (; *p >= '0' && *p <= '9' && value < INT64_MAX / 10 - 1; p++)
            value = value * 10 + (*p - '0');
        return value;
    }
    return -1;
}

static int64_t cpu_us(const char *root) {
    int64_t us = read_number(root, "cpu.stat", "usage_usec ");
    if (us >= 0)
        return us;
    int64_t ns = read_number(root, "cpuacct/cpuacct.usage", "");
    if (ns < 0)
        ns = read_number(root, "cpu,cpuacct/cpuacct.usage", "");
    return ns < 0 ? -1 : ns / 1000;
}

static int64_t oom_kills(const char *root) {
    int64_t n = read_number(root, "memory.events", "oom_kill ");
    return n >= 0 ? n : read_number(root, "memory/memory.oom_control", "oom_kill ");
}

static int64_t peak_bytes(const char *root) {
    int64_t n = read_number(root, "memory.peak", "");
    return n >= 0 ? n : read_number(root, "memory/memory.max_usage_in_bytes", "");
}

void usage_start(struct usage *u, const char *root) {
    *u = (struct usage){-1, -1, -1, false};
    if (root == NULL)
        return;
    u->cpu_us = cpu_us(root);
    u->oom_kills = oom_kills(root);
    u->sampled = peak_bytes(root) < 0 && read_number(root, "memory.current", "") >= 0;
    usage_sample(u, root);
}

void usage_sample(struct usage *u, const char *root) {
    int64_t n = u->sampled ? read_number(root, "memory.current", "") : -1;
    if (n > u->peak_bytes)
        u->peak_bytes = n;
}

void usage_end(struct usage *u, const char *root) {
    struct rusage children;
    int64_t after, before = u->cpu_us, kills = u->oom_kills, rss = -1;
    u->cpu_us = -1;
    if (getrusage(RUSAGE_CHILDREN, &children) == 0) {
        rss = (int64_t)children.ru_maxrss * 1024;
        u->cpu_us = (int64_t)(children.ru_utime.tv_sec + children.ru_stime.tv_sec) * 1000000 +
                    children.ru_utime.tv_usec + children.ru_stime.tv_usec;
    }
    if (root != NULL) {
        usage_sample(u, root);
        if (!u->sampled)
            u->peak_bytes = peak_bytes(root);
        if (before >= 0 && (after = cpu_us(root)) >= before)
            u->cpu_us = after - before;
        u->oom_kills = kills >= 0 && (after = oom_kills(root)) > kills ? after - kills : 0;
    }
    if (u->peak_bytes < 0 || (u->sampled && rss > u->peak_bytes))
        u->peak_bytes = rss;                     /* the peak may lie between two samples */
}
