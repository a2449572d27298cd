/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Threads of the library's own, and threads of the application's inside the library. No signal handler
 * of the application's runs on either: it could unmap or discard watched memory, and then the thread
 * would wait, with a lock of the library's taken, for those who need that lock to let it go; and a
 * handler on a thread that fills or recalls memory could touch that very memory. A thread inside isn't
 * cancelled either. Faults (SIGSEGV and the like) come through.
 */
#ifndef PL_OS_THREAD_H
#define PL_OS_THREAD_H

#include <pthread.h>
#include <signal.h>

/* Nests; only the outermost costs anything. */
void pl_call_enter(void);
void pl_call_leave(const char *unused);

/* From here to the end of the block. */
#define PL_CALL(name)                                                                                   \
	__attribute__((cleanup(pl_call_leave), unused)) const char name = (pl_call_enter(), 0)

/* Around a wait that may be long: signals come through, cancellation doesn't. No lock is held. A handler
 * may call the library meanwhile. */
struct pl_waiting {
	int depth, cancel;
	sigset_t signals;
};
void pl_call_wait_begin(struct pl_waiting *w);
void pl_call_wait_end(const struct pl_waiting *w);

/* 0 or -errno. All of the library's threads are started by this, with every signal blocked. */
int pl_thread_start(pthread_t *thread, void *(*fn)(void *), void *arg);

#endif
