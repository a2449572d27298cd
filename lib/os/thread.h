/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Starting the library's threads. All of them are started by this, and so run with every signal blocked:
 * the program's handlers touch what they like, leased memory too, and a thread that fills or recalls
 * that memory would then wait for itself; and a handler on it would interrupt what it waits for.
 */
#ifndef PL_OS_THREAD_H
#define PL_OS_THREAD_H

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

/* 0 or -errno. */
static inline int pl_thread_start(pthread_t *thread, void *(*fn)(void *), void *arg)
{
	sigset_t all, was;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &was);
	err = -pthread_create(thread, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &was, NULL);
	return err;
}

#endif
