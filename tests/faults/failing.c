/* Loaded before the C library: calls that change files below one folder are counted and, if asked for, refused.

   A process steers it by the functions at the end (from Python: ctypes.CDLL(None)), or by the environment:
   FAULTS_FOLDER, FAULTS_KINDS, FAULTS_AT, FAULTS_ERRNO, FAULTS_ONWARD, and FAULTS_CLOCK, seconds by which the clock
   of the day jumps to and fro. Calls that the C library makes of itself are not seen, so fwrite and fopen stand here
   beside write and open. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE, SYNC, RENAME, MAKE, REMOVE, LIST, KINDS };

static char folder[PATH_MAX], last[2 * PATH_MAX];
static long counts[KINDS], reached, at, refused;
static unsigned kinds;
static int number, onward;
static double jump;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Whether a path, relative to an open folder or not, lies in the watched folder or is it. */
static int below(int directory, const char *path)
{
    char full[2 * PATH_MAX] = "", link[64];
    size_t length = strlen(folder), start = 0;
    if (length == 0 || path == NULL)
        return 0;
    if (path[0] != '/') {
        if (directory == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t read = readlink(link, full, PATH_MAX - 1);
        if (read < 0)
            return 0;
        full[read] = '\0';
        start = strlen(full);
    }
    snprintf(full + start, sizeof full - start, "%s%s", start && path[0] ? "/" : "", path);
    if (strncmp(full, folder, length) != 0 || (full[length] != '/' && full[length] != '\0'))
        return 0;
    memcpy(last, full, sizeof last);
    return 1;
}

/* Whether this call is one that fails; it is counted. */
static int fails(int kind)
{
    __atomic_add_fetch(&counts[kind], 1, __ATOMIC_SEQ_CST);
    if (!(kinds & (1u << kind)))
        return 0;
    long now = __atomic_add_fetch(&reached, 1, __ATOMIC_SEQ_CST);
    if (at == 0 || (onward ? now < at : now != at))
        return 0;
    __atomic_add_fetch(&refused, 1, __ATOMIC_SEQ_CST);
    errno = number;
    return 1;
}

static int fails_at(int kind, int directory, const char *path) { return below(directory, path) && fails(kind); }
static int fails_on(int kind, int file) { return below(file, "") && fails(kind); }

/* As a disk that fills up: the first write that fails has written half of what it was given. */
static int half(void) { return onward && refused == 1 && (number == ENOSPC || number == EDQUOT); }

ssize_t write(int file, const void *data, size_t size)
{
    if (!fails_on(WRITE, file))
        return NEXT(write)(file, data, size);
    return half() && size > 1 ? NEXT(write)(file, data, size / 2) : -1;
}

ssize_t writev(int file, const struct iovec *parts, int count)
{
    return fails_on(WRITE, file) ? -1 : NEXT(writev)(file, parts, count);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file)
{
    return fails_on(WRITE, fileno(file)) ? 0 : NEXT(fwrite)(data, size, count, file);
}

#define SIZED(name, ...) { return fails_on(WRITE, file) ? -1 : NEXT(name)(file, __VA_ARGS__); }

ssize_t pwrite(int file, const void *data, size_t size, off_t place) SIZED(pwrite, data, size, place)
ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) SIZED(pwrite64, data, size, place)
ssize_t pwritev(int file, const struct iovec *parts, int count, off_t place) SIZED(pwritev, parts, count, place)
int ftruncate(int file, off_t size) SIZED(ftruncate, size)
int ftruncate64(int file, off64_t size) SIZED(ftruncate64, size)
int fallocate(int file, int mode, off_t place, off_t size) SIZED(fallocate, mode, place, size)
int fallocate64(int file, int mode, off64_t place, off64_t size) SIZED(fallocate64, mode, place, size)

int posix_fallocate(int file, off_t place, off_t size)
{
    return fails_on(WRITE, file) ? number : NEXT(posix_fallocate)(file, place, size);
}

int truncate(const char *path, off_t size)
{
    return fails_at(WRITE, AT_FDCWD, path) ? -1 : NEXT(truncate)(path, size);
}

int truncate64(const char *path, off64_t size)
{
    return fails_at(WRITE, AT_FDCWD, path) ? -1 : NEXT(truncate64)(path, size);
}

int fsync(int file) { return fails_on(SYNC, file) ? -1 : NEXT(fsync)(file); }
int fdatasync(int file) { return fails_on(SYNC, file) ? -1 : NEXT(fdatasync)(file); }

int rename(const char *from, const char *to)
{
    return fails_at(RENAME, AT_FDCWD, to) ? -1 : NEXT(rename)(from, to);
}

int renameat(int there, const char *from, int here, const char *to)
{
    return fails_at(RENAME, here, to) ? -1 : NEXT(renameat)(there, from, here, to);
}

int renameat2(int there, const char *from, int here, const char *to, unsigned how)
{
    return fails_at(RENAME, here, to) ? -1 : NEXT(renameat2)(there, from, here, to, how);
}

int mkdir(const char *path, mode_t mode) { return fails_at(MAKE, AT_FDCWD, path) ? -1 : NEXT(mkdir)(path, mode); }

int mkdirat(int directory, const char *path, mode_t mode)
{
    return fails_at(MAKE, directory, path) ? -1 : NEXT(mkdirat)(directory, path, mode);
}

/* Opening counts where it may make the file. */
#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        return flags & O_CREAT && fails_at(MAKE, AT_FDCWD, path) ? -1 : NEXT(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) \
    { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        return flags & O_CREAT && fails_at(MAKE, directory, path) ? -1 : NEXT(name)(directory, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode)
{
    return mode[0] != 'r' && fails_at(MAKE, AT_FDCWD, path) ? NULL : NEXT(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode)
{
    return mode[0] != 'r' && fails_at(MAKE, AT_FDCWD, path) ? NULL : NEXT(fopen64)(path, mode);
}

int chmod(const char *path, mode_t mode) { return fails_at(MAKE, AT_FDCWD, path) ? -1 : NEXT(chmod)(path, mode); }

int fchmodat(int directory, const char *path, mode_t mode, int flags)
{
    return fails_at(MAKE, directory, path) ? -1 : NEXT(fchmodat)(directory, path, mode, flags);
}

int unlink(const char *path) { return fails_at(REMOVE, AT_FDCWD, path) ? -1 : NEXT(unlink)(path); }
int rmdir(const char *path) { return fails_at(REMOVE, AT_FDCWD, path) ? -1 : NEXT(rmdir)(path); }

int unlinkat(int directory, const char *path, int flags)
{
    return fails_at(REMOVE, directory, path) ? -1 : NEXT(unlinkat)(directory, path, flags);
}

DIR *opendir(const char *path) { return fails_at(LIST, AT_FDCWD, path) ? NULL : NEXT(opendir)(path); }
DIR *fdopendir(int file) { return fails_on(LIST, file) ? NULL : NEXT(fdopendir)(file); }

/* -- the clock of the day: every other look is `jump` seconds away --------------------------------------------- */

static long looks;

int clock_gettime(clockid_t which, struct timespec *now)
{
    int result = NEXT(clock_gettime)(which, now);
    if (jump != 0 && which == CLOCK_REALTIME && __atomic_add_fetch(&looks, 1, __ATOMIC_SEQ_CST) % 2)
        now->tv_sec += (time_t)jump;
    return result;
}

time_t time(time_t *place)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place != NULL)
        *place = now.tv_sec;
    return now.tv_sec;
}

/* -- steering -------------------------------------------------------------------------------------------------- */

long faults_count(int kind) { return counts[kind]; }
long faults_refused(void) { return refused; }
long faults_looks(void) { return looks; }
const char *faults_last(void) { return last; }

/* Count anew below `path`; call number `n` of those kinds, a sum of 1 << kind, fails, and with `then` all later. */
void faults_set(const char *path, unsigned which, long n, int error, int then)
{
    memset(counts, 0, sizeof counts);
    reached = refused = 0;
    kinds = which;
    at = n;
    number = error;
    onward = then;
    snprintf(folder, sizeof folder, "%s", path);
}

static long told(const char *name)
{
    const char *text = getenv(name);
    return text == NULL ? 0 : atol(text);
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTS_FOLDER");
    jump = (double)told("FAULTS_CLOCK");
    if (path != NULL)
        faults_set(path, (unsigned)told("FAULTS_KINDS"), told("FAULTS_AT"), (int)told("FAULTS_ERRNO"), told("FAULTS_ONWARD") != 0);
}
