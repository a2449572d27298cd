/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Threads of the library's own, and threads of the application's inside the library. No signal handler
 * of the application's runs on either: it could unmap or discard watched memory, and then the thread
 * would wait, with a lock of the library's taken, for those who need that lock to let it go. A thread
 * inside isn't cancelled either. Faults (SIGSEGV and the like) come through.
 */
#ifndef PL_OS_THREAD_H
#define PL_OS_THREAD_H

#include <pthread.h>
#include <signal.h>

struct pl_call {
	sigset_t signals; /* of before */
	int cancel;
};

struct pl_call pl_call_enter(void);
void pl_call_leave(struct pl_call *call);

/* From here to the end of the block. */
#define PL_CALL(name)                                                                                   \
	__attribute__((cleanup(pl_call_leave), unused)) struct pl_call name = pl_call_enter()

/* Around a wait that may be long: signals come through, cancellation doesn't. No lock is held. */
void pl_call_wait_begin(const struct pl_call *call);
void pl_call_wait_end(const struct pl_call *call);

/* 0 or -errno. */
int pl_thread_start(pthread_t *thread, const char *name, void *(*fn)(void *arg), void *arg);

#endif
