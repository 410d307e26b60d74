/* Counts what a process and its children do to the files below one folder, and lets one of these calls go wrong.
 *
 * Loaded with LD_PRELOAD; shim.py compiles it and reads and writes the shared state. An operation is one that changes
 * files: opening to create or write, writing, truncating, syncing, renaming, linking, removing, making folders. The
 * operation with number `at` (from 1) meets the fault; what is written then is written by half. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, KILL, SIGNAL, ERROR, ERROR_FROM, PAUSE, CLOCK };
#define LOGGED (1 << 20)

struct state {
  _Atomic int64_t count;     /* operations so far */
  _Atomic int64_t at;        /* the one that meets the fault */
  _Atomic int32_t action;
  _Atomic int32_t error;     /* errno of ERROR and ERROR_FROM, number of SIGNAL */
  _Atomic int32_t paused, resumed;
  _Atomic int64_t back;      /* seconds by which clocks are late from then on */
  char root[1024];
  char kinds[LOGGED];        /* what each operation was */
};

static struct state *state;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAULTS_STATE");
  if (!path) return;
  int descriptor = (int)open(path, O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return;
  void *mapped = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  close(descriptor);
  if (mapped != MAP_FAILED) state = mapped;
}

static int below(const char *path) {
  size_t length = state ? strlen(state->root) : 0;
  return length && !strncmp(path, state->root, length) && (path[length] == '/' || !path[length]);
}

static int of_descriptor(int descriptor) {
  if (!state || !state->root[0]) return 0;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

static int at_folder(int folder, const char *path) {
  if (!state || !state->root[0]) return 0;
  if (path[0] == '/') return below(path);
  if (folder != AT_FDCWD) return of_descriptor(folder);
  char here[PATH_MAX];
  return getcwd(here, sizeof here) && below(here);
}

/* Counts an operation. Returns the errno that it is to fail with, or 0; `cut` tells that half of it is to be done. */
static int meet(char kind, int *cut) {
  int64_t number = atomic_fetch_add(&state->count, 1) + 1;
  if (number <= LOGGED) state->kinds[number - 1] = kind;
  int action = state->action;
  if (action == ERROR_FROM && state->at && number >= state->at) {
    if (kind == 'u') return 0; /* what is full lets go of files */
    if (number == state->at && cut) *cut = 1;
    return state->error;
  }
  if (!state->at || number != state->at) return 0;
  switch (action) {
    case KILL:
      if (cut) { *cut = 1; return 0; }
      kill(0, SIGKILL);
      for (;;) pause();
    case SIGNAL:
      kill(0, state->error);
      return 0;
    case ERROR:
      if (cut) *cut = 1;
      return state->error;
    case PAUSE:
      state->paused = 1;
      while (!state->resumed) usleep(2000);
      return 0;
    case CLOCK:
      state->back = 400L * 86400;
      return 0;
  }
  return 0;
}

static void after_cut(void) {
  if (state->action == KILL) {
    kill(0, SIGKILL);
    for (;;) pause();
  }
}

#define REAL(type, name, ...)                                      \
  static type (*real)(__VA_ARGS__);                                \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name);

#define FAIL(kind)                        \
  {                                       \
    int fault = meet(kind, NULL);         \
    if (fault) { errno = fault; return -1; } \
  }

#define WRITE(half, whole)                \
  {                                       \
    int cut = 0, fault = meet('w', &cut); \
    if (cut) { if (half < 0) {} after_cut(); } \
    if (fault) { errno = fault; return -1; } \
    return whole;                         \
  }

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t)
  if (!of_descriptor(fd)) return real(fd, data, size);
  WRITE(real(fd, data, size / 2), real(fd, data, size))
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  REAL(ssize_t, pwrite, int, const void *, size_t, off_t)
  if (!of_descriptor(fd)) return real(fd, data, size, at);
  WRITE(real(fd, data, size / 2, at), real(fd, data, size, at))
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t)
  if (!of_descriptor(fd)) return real(fd, data, size, at);
  WRITE(real(fd, data, size / 2, at), real(fd, data, size, at))
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(ssize_t, writev, int, const struct iovec *, int)
  if (!of_descriptor(fd)) return real(fd, parts, count);
  WRITE(real(fd, parts, count / 2), real(fd, parts, count))
}
ssize_t sendfile(int out, int in, off_t *at, size_t size) {
  REAL(ssize_t, sendfile, int, int, off_t *, size_t)
  if (!of_descriptor(out)) return real(out, in, at, size);
  FAIL('w') return real(out, in, at, size);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
  REAL(ssize_t, sendfile64, int, int, off64_t *, size_t)
  if (!of_descriptor(out)) return real(out, in, at, size);
  FAIL('w') return real(out, in, at, size);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
  REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned)
  if (!of_descriptor(out)) return real(in, from, out, to, size, flags);
  FAIL('w') return real(in, from, out, to, size, flags);
}

#define ON_DESCRIPTOR(name, kind)              \
  int name(int fd) {                           \
    REAL(int, name, int)                       \
    if (of_descriptor(fd)) FAIL(kind)          \
    return real(fd);                           \
  }
ON_DESCRIPTOR(fsync, 's')
ON_DESCRIPTOR(fdatasync, 's')

#define ON_LENGTH(name, type, kind)            \
  int name(int fd, type length) {              \
    REAL(int, name, int, type)                 \
    if (of_descriptor(fd)) FAIL(kind)          \
    return real(fd, length);                   \
  }
ON_LENGTH(ftruncate, off_t, 't')
ON_LENGTH(ftruncate64, off64_t, 't')

int posix_fallocate(int fd, off_t at, off_t length) {
  REAL(int, posix_fallocate, int, off_t, off_t)
  if (of_descriptor(fd)) { int fault = meet('w', NULL); if (fault) return fault; }
  return real(fd, at, length);
}

#define ON_OPEN(name)                                                          \
  int name(const char *path, int flags, ...) {                                 \
    REAL(int, name, const char *, int, ...)                                    \
    va_list rest; va_start(rest, flags);                                       \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;    \
    va_end(rest);                                                              \
    if ((flags & (O_CREAT | O_TRUNC)) && at_folder(AT_FDCWD, path)) FAIL('o')  \
    return real(path, flags, mode);                                            \
  }
ON_OPEN(open)
ON_OPEN(open64)

#define ON_OPENAT(name)                                                        \
  int name(int folder, const char *path, int flags, ...) {                     \
    REAL(int, name, int, const char *, int, ...)                               \
    va_list rest; va_start(rest, flags);                                       \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;    \
    va_end(rest);                                                              \
    if ((flags & (O_CREAT | O_TRUNC)) && at_folder(folder, path)) FAIL('o')    \
    return real(folder, path, flags, mode);                                    \
  }
ON_OPENAT(openat)
ON_OPENAT(openat64)

#define ON_FOPEN(name)                                                         \
  FILE *name(const char *path, const char *how) {                              \
    REAL(FILE *, name, const char *, const char *)                             \
    if (how[0] != 'r' && at_folder(AT_FDCWD, path)) {                          \
      int fault = meet('o', NULL);                                             \
      if (fault) { errno = fault; return NULL; }                               \
    }                                                                          \
    return real(path, how);                                                    \
  }
ON_FOPEN(fopen)
ON_FOPEN(fopen64)

int rename(const char *from, const char *to) {
  REAL(int, rename, const char *, const char *)
  if (at_folder(AT_FDCWD, to)) FAIL('r')
  return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(int, renameat, int, const char *, int, const char *)
  if (at_folder(b, to)) FAIL('r')
  return real(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(int, renameat2, int, const char *, int, const char *, unsigned)
  if (at_folder(b, to)) FAIL('r')
  return real(a, from, b, to, flags);
}
int link(const char *from, const char *to) {
  REAL(int, link, const char *, const char *)
  if (at_folder(AT_FDCWD, to)) FAIL('l')
  return real(from, to);
}
int symlink(const char *from, const char *to) {
  REAL(int, symlink, const char *, const char *)
  if (at_folder(AT_FDCWD, to)) FAIL('l')
  return real(from, to);
}
int mkdir(const char *path, mode_t mode) {
  REAL(int, mkdir, const char *, mode_t)
  if (at_folder(AT_FDCWD, path)) FAIL('m')
  return real(path, mode);
}
int unlink(const char *path) {
  REAL(int, unlink, const char *)
  if (at_folder(AT_FDCWD, path)) FAIL('u')
  return real(path);
}
int unlinkat(int folder, const char *path, int flags) {
  REAL(int, unlinkat, int, const char *, int)
  if (at_folder(folder, path)) FAIL('u')
  return real(folder, path, flags);
}
int rmdir(const char *path) {
  REAL(int, rmdir, const char *)
  if (at_folder(AT_FDCWD, path)) FAIL('u')
  return real(path);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(int, clock_gettime, clockid_t, struct timespec *)
  int code = real(clock, now);
  if (!code && state && state->back && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec -= state->back;
  return code;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  REAL(int, gettimeofday, struct timeval *, void *)
  int code = real(now, zone);
  if (!code && state && state->back) now->tv_sec -= state->back;
  return code;
}
time_t time(time_t *where) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (where) *where = now.tv_sec;
  return now.tv_sec;
}
