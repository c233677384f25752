/* A pool of threads, started at the first use that needs it and kept. */
#ifndef TCLIP_THREADS_H
#define TCLIP_THREADS_H

#include <stddef.h>

/* Threads that work at a time, the caller's included: TCLIP_NUM_THREADS, or as many as there are
 * processors that this process may use. */
size_t tclip_thread_count(void);

/* Calls task(argument, i, thread) for i = 0..count-1, in no order, and returns when all are done.
 * `thread` is below `tclip_thread_count()`, and no two tasks of this call run on the same at a
 * time. Calls from several threads are allowed: while one has the pool, others work alone. */
void tclip_parallel(size_t count, void (*task)(void *argument, size_t i, size_t thread),
                    void *argument);

#endif
