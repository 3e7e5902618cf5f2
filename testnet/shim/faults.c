/* Faults in one process, made between it and its C library: a slow disk, one that fails to sync, a full one, a clock
 * that is wrong. It is preloaded into a peer that a testnet starts, and told what to do through a shared page
 * (testnet/src/faults.rs writes it). Without a fault each call costs one load.
 *
 * Only files below the peer's data directory are touched: its output and its sockets never fail by this. What makes
 * system calls without the C library (rustix's linux_raw backend) is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "off_t and off64_t are taken to be the same");

/* The same in testnet/src/faults.rs. */
struct control {
    _Atomic int64_t attached;       /* the process that uses this page; set by us */
    _Atomic int64_t slow_sync_ms;
    _Atomic int64_t fail_sync;
    _Atomic int64_t full_disk;
    _Atomic int64_t clock_shift_ms;
    _Atomic int64_t syncs_slowed;   /* from here on: what was done; set by us */
    _Atomic int64_t syncs_failed;
    _Atomic int64_t writes_refused;
};

static struct control idle;
static struct control *control = &idle;
static char data[PATH_MAX];
static size_t data_len;

/* The next definition of a function. Two threads that look at the same time find the same. */
#define REAL(name)                                                                                                     \
    static __typeof__(name) *_Atomic found;                                                                            \
    __typeof__(name) *real = atomic_load_explicit(&found, memory_order_relaxed);                                       \
    if (!real) {                                                                                                       \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);                                                            \
        atomic_store_explicit(&found, real, memory_order_relaxed);                                                     \
    }

static int64_t get(_Atomic int64_t *at) { return atomic_load_explicit(at, memory_order_relaxed); }
static void count(_Atomic int64_t *at) { atomic_fetch_add_explicit(at, 1, memory_order_relaxed); }

__attribute__((constructor)) static void attach(void) {
    const char *page = getenv("TESTNET_FAULTS"), *below = getenv("TESTNET_FAULTS_BELOW");
    if (!page || !below || strlen(below) >= sizeof data) return;
    int fd = open(page, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) return;
    data_len = strlen(below);
    memcpy(data, below, data_len + 1);
    control = mapped;
    atomic_store(&control->attached, getpid());
}

static int below(const char *path) {
    return data_len && strncmp(path, data, data_len) == 0 && (path[data_len] == '/' || path[data_len] == 0);
}

static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return 0;
    path[len] = 0;
    return below(path);
}

static int path_below(int dir, const char *path) {
    char whole[2 * PATH_MAX];
    if (path[0] == '/') return below(path);
    if (dir != AT_FDCWD) return fd_below(dir);
    if (!getcwd(whole, PATH_MAX)) return 0;
    strncat(whole, "/", 2);
    strncat(whole, path, PATH_MAX - 2);
    return below(whole);
}

/* Whether a write to this file has to fail: every one, also into space that a real full disk would still have. */
static int full(int fd) {
    if (!get(&control->full_disk)) return 0;
    int saved = errno, refused = fd_below(fd);
    errno = saved;
    if (refused) {
        count(&control->writes_refused);
        errno = ENOSPC;
    }
    return refused;
}

static int full_path(int dir, const char *path) {
    if (!get(&control->full_disk) || !path_below(dir, path)) return 0;
    count(&control->writes_refused);
    errno = ENOSPC;
    return 1;
}

/* Whether a sync has to fail; makes it slow where that is wanted. */
static int bad_sync(int fd) {
    int64_t slow = get(&control->slow_sync_ms), fail = get(&control->fail_sync);
    if ((!slow && !fail) || !fd_below(fd)) return 0;
    if (slow > 0) {
        count(&control->syncs_slowed);
        struct timespec left = {slow / 1000, slow % 1000 * 1000000};
        while (nanosleep(&left, &left) != 0 && errno == EINTR) {}
    }
    if (fail) {
        count(&control->syncs_failed);
        errno = EIO;
    }
    return fail != 0;
}

#define SYNC(name)                                                                                                     \
    int name(int fd) {                                                                                                 \
        REAL(name)                                                                                                     \
        return bad_sync(fd) ? -1 : real(fd);                                                                           \
    }
SYNC(fsync)
SYNC(fdatasync)

#define WRITE(result, name, parameters, arguments)                                                                     \
    result name parameters {                                                                                           \
        REAL(name)                                                                                                     \
        return full(fd) ? -1 : real arguments;                                                                         \
    }
WRITE(ssize_t, write, (int fd, const void *from, size_t len), (fd, from, len))
WRITE(ssize_t, writev, (int fd, const struct iovec *from, int parts), (fd, from, parts))
WRITE(ssize_t, pwrite, (int fd, const void *from, size_t len, off_t at), (fd, from, len, at))
WRITE(ssize_t, pwrite64, (int fd, const void *from, size_t len, off64_t at), (fd, from, len, at))
WRITE(ssize_t, pwritev, (int fd, const struct iovec *from, int parts, off_t at), (fd, from, parts, at))
WRITE(ssize_t, pwritev64, (int fd, const struct iovec *from, int parts, off64_t at), (fd, from, parts, at))
WRITE(int, fallocate, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
WRITE(int, fallocate64, (int fd, int mode, off64_t at, off64_t len), (fd, mode, at, len))
WRITE(ssize_t, sendfile, (int fd, int in, off_t *at, size_t len), (fd, in, at, len))
WRITE(ssize_t, sendfile64, (int fd, int in, off64_t *at, size_t len), (fd, in, at, len))

ssize_t copy_file_range(int in, off64_t *in_at, int fd, off64_t *at, size_t len, unsigned flags) {
    REAL(copy_file_range)
    return full(fd) ? -1 : real(in, in_at, fd, at, len, flags);
}

/* These two return the error. */
int posix_fallocate(int fd, off_t at, off_t len) {
    REAL(posix_fallocate)
    return full(fd) ? ENOSPC : real(fd, at, len);
}
int posix_fallocate64(int fd, off64_t at, off64_t len) {
    REAL(posix_fallocate64)
    return full(fd) ? ENOSPC : real(fd, at, len);
}

static mode_t mode_of(int flags, va_list rest) {
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

/* A full disk opens what is there, and makes nothing new. */
static int creates(int dir, const char *path, int flags) {
    int saved = errno, makes = (flags & O_TMPFILE) == O_TMPFILE;
    if (!makes && (flags & O_CREAT)) makes = faccessat(dir, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
    errno = saved;
    return makes && full_path(dir, path);
}

#define OPEN(name, directory, parameters, arguments)                                                                   \
    int name parameters {                                                                                              \
        REAL(name)                                                                                                     \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_of(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        if (get(&control->full_disk) && creates(directory, path, flags)) return -1;                                    \
        return real arguments;                                                                                         \
    }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
OPEN(openat64, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir)
    return full_path(AT_FDCWD, path) ? -1 : real(path, mode);
}

/* Wall clocks only: what counts time with CLOCK_MONOTONIC is right to do so. */
static int64_t shift(void) { return get(&control->clock_shift_ms); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime)
    int result = real(clock, now);
    int64_t ms = shift();
    if (ms && result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t nanos = now->tv_nsec + ms % 1000 * 1000000;
        now->tv_sec += ms / 1000 + (nanos >= 1000000000) - (nanos < 0);
        now->tv_nsec = nanos + (nanos < 0 ? 1000000000 : nanos >= 1000000000 ? -1000000000 : 0);
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday)
    int result = real(now, zone);
    int64_t ms = shift();
    if (ms && result == 0) {
        int64_t micros = now->tv_usec + ms % 1000 * 1000;
        now->tv_sec += ms / 1000 + (micros >= 1000000) - (micros < 0);
        now->tv_usec = micros + (micros < 0 ? 1000000 : micros >= 1000000 ? -1000000 : 0);
    }
    return result;
}

time_t time(time_t *into) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return (time_t)-1;
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
