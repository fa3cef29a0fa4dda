/* A clock of day that a test sets, for one program: preloaded, it stands before the C library. The waits that libraries do
 * by the clock of day (librdkafka's) go by it too, as they do by the kernel's when an administrator sets that: set back
 * while a thread waits, the thread waits longer. Clocks that only go forward are left alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)
/* How soon a wait notices that the clock was set. */
#define SLICE (20 * INT64_C(1000000))

/* By how many seconds the clock is off: eight bytes of a file that the test writes. */
static const volatile int64_t *off;

__attribute__((constructor)) static void open_clock(void) {
  int file = open(getenv("CLOCK_OFF_BY"), O_RDONLY);
  off = mmap(NULL, sizeof *off, PROT_READ, MAP_SHARED, file, 0);
  if (off == MAP_FAILED) abort();
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  int result = (int)syscall(SYS_clock_gettime, clock, time);
  if (result == 0 && off && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += *off;
  return result;
}

int timespec_get(struct timespec *time, int base) {
  return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, time) == 0 ? base : 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  struct timespec now;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *seconds) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (seconds) *seconds = now.tv_sec;
  return now.tv_sec;
}

static int64_t nanoseconds(const struct timespec *time) { return time->tv_sec * SECOND + time->tv_nsec; }

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  for (;;) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t left = nanoseconds(until) - nanoseconds(&now);
    if (left <= 0) return ETIMEDOUT;
    if (left > SLICE) left = SLICE;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t end = nanoseconds(&now) + left;
    struct timespec slice = {.tv_sec = end / SECOND, .tv_nsec = end % SECOND};
    int result = pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &slice);
    if (result != ETIMEDOUT) return result;
  }
}

/* The same by the C standard's names, which librdkafka takes where there are some. glibc's types are the same below. */
int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
  switch (pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, until)) {
    case 0: return thrd_success;
    case ETIMEDOUT: return thrd_timedout;
    default: return thrd_error;
  }
}
