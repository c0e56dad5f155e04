/* The closing record: one JSON object, written in pieces so that tails are not copied. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "launcher.h"

struct sink {                                    /* file, log, or with fd -1 and no log only a byte count */
    int fd;
    int error;
    struct stream *log;
    int64_t stall_ms;
    size_t count, used;
    char buffer[4096];
};

struct text {                                    /* bytes of a ring, oldest first */
    const unsigned char *ring;
    size_t size, start, length;
};

static void sink_flush(struct sink *s) {
    if (s->log != NULL)
        log_write(s->log, s->buffer, s->used, s->stall_ms);
    else if (s->fd >= 0 && s->error == 0)
        s->error = write_all(s->fd, s->buffer, s->used);
    s->used = 0;
}

static void put(struct sink *s, const char *p, size_t n) {   /* n <= sizeof buffer */
    if (s->used + n > sizeof s->buffer)
        sink_flush(s);
    memcpy(s->buffer + s->used, p, n);
    s->used += n;
    s->count += n;
}

static void put_string(struct sink *s, const char *text) {
    put(s, text, strlen(text));
}

static unsigned at(const struct text *t, size_t i) {
    size_t k = t->start + i;
    return t->ring[k < t->size ? k : k - t->size];
}

/* Decode the character at i: returns its length; *code is its code point, or U+FFFD for a maximal subpart of an ill-formed sequence
 * (Unicode 15, section 3.9). */
static size_t utf8_next(const struct text *t, size_t i, uint32_t *code) {
    unsigned c = at(t, i), low = 0x80, high = 0xBF;
    size_t more;
    uint32_t value;
    if (c < 0x80) {
        *code = c;
        return 1;
    }
    *code = 0xFFFD;
    if (c >= 0xC2 && c <= 0xDF) {
        more = 1;
        value = c & 0x1F;
    } else if (c >= 0xE0 && c <= 0xEF) {
        more = 2;
        value = c & 0x0F;
        low = c == 0xE0 ? 0xA0 : low;
        high = c == 0xED ? 0x9F : high;
    } else if (c >= 0xF0 && c <= 0xF4) {
        more = 3;
        value = c & 0x07;
        low = c == 0xF0 ? 0x90 : low;
        high = c == 0xF4 ? 0x8F : high;
    } else {
        return 1;
    }
    for (size_t k = 1; k <= more; k++) {
        unsigned b = i + k < t->length ? at(t, i + k) : 0;
        if (b < low || b > high)
            return k;
        value = value << 6 | (b & 0x3F);
        low = 0x80;
        high = 0xBF;
    }
    *code = value;
    return more + 1;
}

/* Escapes what JSON requires and every character that some reader treats as a line break. */
static void put_text(struct sink *s, const struct text *t) {
    char piece[8];
    put(s, "\"", 1);
    for (size_t i = 0, n; i < t->length; i += n) {
        uint32_t c;
        n = utf8_next(t, i, &c);
        if (c == '"' || c == '\\') {
            put(s, (char[]){'\\', (char)c}, 2);
        } else if (c == '\n') {
            put(s, "\\n", 2);
        } else if (c == '\t') {
            put(s, "\\t", 2);
        } else if (c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x2028 || c == 0x2029) {
            static const char hex[] = "0123456789abcdef";
            put(s, (char[]){'\\', 'u', hex[c >> 12 & 15], hex[c >> 8 & 15], hex[c >> 4 & 15], hex[c & 15]}, 6);
        } else if (c == 0xFFFD) {
            put(s, "\xEF\xBF\xBD", 3);
        } else {
            for (size_t k = 0; k < n; k++)
                piece[k] = (char)at(t, i + k);
            put(s, piece, n);
        }
    }
    put(s, "\"", 1);
}

/* The last `limit` bytes of the tail, starting at a character boundary. */
static struct text tail_text(const struct tail *t, size_t limit) {
    size_t n = t->total < t->size ? (size_t)t->total : t->size;
    if (n > limit)
        n = limit;
    struct text x = {t->ring, t->size, t->size == 0 ? 0 : (size_t)((t->total - n) % t->size), n};
    for (int cut = 0; n < t->total && cut < 3 && x.length > 0 && (at(&x, 0) & 0xC0) == 0x80; cut++) {
        x.start = (x.start + 1) % x.size;
        x.length--;
    }
    return x;
}

static void put_c_string(struct sink *s, const char *text) {
    if (text == NULL || text[0] == '\0')
        put_string(s, "null");
    else
        put_text(s, &(struct text){(const unsigned char *)text, strlen(text), 0, strlen(text)});
}

static void put_number(struct sink *s, bool known, int64_t value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", (long long)value);
    put_string(s, known ? digits : "null");
}

static void put_bool(struct sink *s, bool value) {
    put_string(s, value ? "true" : "false");
}

static void put_time(struct sink *s, const struct timespec *when) {
    struct tm tm;
    char text[64];
    if (when->tv_sec == 0 || gmtime_r(&when->tv_sec, &tm) == NULL) {
        put_string(s, "null");
        return;
    }
    snprintf(text, sizeof text, "\"%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ\"", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday,
             tm.tm_hour, tm.tm_min, tm.tm_sec, when->tv_nsec / 1000);
    put_string(s, text);
}

static void put_record(struct sink *s, const struct record *r, size_t limit) {
    char seconds[32];
    struct text out = tail_text(&r->out->tail, limit), err = tail_text(&r->err->tail, limit);
    put_string(s, "{\"v\":1,\"name\":");
    put_c_string(s, r->name);
    put_string(s, ",\"ok\":");
    put_bool(s, r->ok);
    put_string(s, ",\"exit_code\":");
    put_number(s, r->exit_code >= 0, r->exit_code);
    put_string(s, ",\"signal\":");
    put_number(s, r->signal > 0, r->signal);
    put_string(s, ",\"reason\":");
    put_c_string(s, r->reason);
    put_string(s, ",\"message\":");
    put_c_string(s, r->message);
    put_string(s, ",\"oom_killed\":");
    put_bool(s, r->oom_killed);
    put_string(s, ",\"started\":");
    put_time(s, &r->started);
    put_string(s, ",\"ended\":");
    put_time(s, &r->ended);
    put_string(s, ",\"peak_memory_bytes\":");
    put_number(s, r->peak_bytes >= 0, r->peak_bytes);
    put_string(s, ",\"cpu_seconds\":");
    snprintf(seconds, sizeof seconds, "%lld.%06d", (long long)(r->cpu_us / 1000000), (int)(r->cpu_us % 1000000));
    put_string(s, r->cpu_us >= 0 ? seconds : "null");
    put_string(s, ",\"stdout\":");
    put_text(s, &out);
    put_string(s, ",\"stderr\":");
    put_text(s, &err);
    put_string(s, ",\"stdout_bytes\":");
    put_number(s, true, (int64_t)r->out->bytes);
    put_string(s, ",\"stderr_bytes\":");
    put_number(s, true, (int64_t)r->err->bytes);
    put_string(s, ",\"truncated\":");
    put_bool(s, out.length < r->out->tail.total || err.length < r->err->tail.total);
    put_string(s, "}");
}

void record_reason(struct record *r, const char *reason, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->message, sizeof r->message, format, arguments);
    va_end(arguments);
    r->reason = reason;
}

int record_write(const struct record *r, int fd, bool with_tails) {
    struct sink s = {.fd = fd};
    put_record(&s, r, with_tails ? SIZE_MAX : 0);
    put_string(&s, "\n");
    sink_flush(&s);
    return s.error;
}

size_t record_size(const struct record *r) {
    struct sink s = {.fd = -1};
    put_record(&s, r, SIZE_MAX);
    return s.count + 1;                          /* including the newline of record_write */
}

void record_line(const struct record *r, struct stream *log, const char *marker, int64_t stall_ms) {
    struct sink s = {.fd = -1, .log = log, .stall_ms = stall_ms};
    if (log->log_last != '\n')
        put_string(&s, "\n");
    put_string(&s, marker);
    put_string(&s, " ");
    put_record(&s, r, SIZE_MAX);
    put_string(&s, "\n");
    sink_flush(&s);
}

void record_termination_log(const struct record *r, const char *path) {
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return;
    for (size_t limit = TERMINATION_LOG_MAX;; limit = limit * 7 / 8) {
        struct sink s = {.fd = -1};
        put_record(&s, r, limit);
        if (s.count <= TERMINATION_LOG_MAX || limit == 0) {
            s = (struct sink){.fd = fd};
            put_record(&s, r, limit);
            sink_flush(&s);
            break;
        }
    }
    close(fd);
}
