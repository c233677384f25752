#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { MOST_THREADS = 256, SPINS = 4000 };

static struct {
  pthread_mutex_t owner; /* held by the call that has the pool */
  pthread_mutex_t mutex;
  pthread_cond_t wake, idle;
  size_t started, working;
  int open; /* whether threads may still join the job */
  atomic_size_t jobs;
  atomic_size_t next;
  size_t count;
  void (*task)(void *, size_t, size_t);
  void *argument;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER,
          .mutex = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .idle = PTHREAD_COND_INITIALIZER};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static size_t thread_count = 1;

/* Threads do not survive a fork: a child begins with none. */
static void after_fork(void) {
  pool.owner = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  pool.mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  pool.wake = pool.idle = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
  pool.started = pool.working = 0;
  pool.open = 0;
}

static void count_threads(void) {
  long count = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
  cpu_set_t set;
  if (!sched_getaffinity(0, sizeof set, &set)) count = CPU_COUNT(&set);
#endif
  const char *wanted = getenv("TCLIP_NUM_THREADS");
  if (wanted && atol(wanted) > 0) count = atol(wanted);
  thread_count = count < 1 ? 1 : count > MOST_THREADS ? MOST_THREADS : (size_t)count;
  pthread_atfork(NULL, NULL, after_fork);
}

size_t tclip_thread_count(void) {
  pthread_once(&once, count_threads);
  return thread_count;
}

static void work(size_t thread) {
  size_t i;
  while ((i = atomic_fetch_add(&pool.next, 1)) < pool.count) pool.task(pool.argument, i, thread);
}

static void *run(void *thread) {
  size_t seen = 0;
  for (;;) {
    /* Jobs follow each other closely, so that sleeping at once would cost more than it saves. */
    for (int i = 0; i < SPINS && atomic_load_explicit(&pool.jobs, memory_order_relaxed) == seen; i++)
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      __asm__ volatile("yield");
#endif
    pthread_mutex_lock(&pool.mutex);
    while (atomic_load(&pool.jobs) == seen) pthread_cond_wait(&pool.wake, &pool.mutex);
    seen = atomic_load(&pool.jobs);
    int joins = pool.open;
    pool.working += joins != 0;
    pthread_mutex_unlock(&pool.mutex);
    if (!joins) continue;
    work((size_t)thread);
    pthread_mutex_lock(&pool.mutex);
    if (!--pool.working) pthread_cond_signal(&pool.idle);
    pthread_mutex_unlock(&pool.mutex);
  }
  return NULL;
}

/* Starts what is missing; where the system refuses, fewer work. */
static void start_threads(size_t wanted) {
  while (pool.started < wanted) {
    pthread_t handle;
    if (pthread_create(&handle, NULL, run, (void *)(pool.started + 1))) return;
    pthread_detach(handle);
    pool.started++;
  }
}

void tclip_parallel(size_t count, void (*task)(void *argument, size_t i, size_t thread),
                    void *argument) {
  if (count < 2 || tclip_thread_count() < 2 || pthread_mutex_trylock(&pool.owner)) {
    for (size_t i = 0; i < count; i++) task(argument, i, 0);
    return;
  }
  start_threads(tclip_thread_count() - 1);
  pthread_mutex_lock(&pool.mutex);
  pool.task = task;
  pool.argument = argument;
  pool.count = count;
  atomic_store(&pool.next, 0);
  pool.open = 1;
  atomic_fetch_add(&pool.jobs, 1);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.mutex);
  work(0);
  pthread_mutex_lock(&pool.mutex);
  pool.open = 0;
  while (pool.working) pthread_cond_wait(&pool.idle, &pool.mutex);
  pthread_mutex_unlock(&pool.mutex);
  pthread_mutex_unlock(&pool.owner);
}
