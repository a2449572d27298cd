/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "os/thread.h"

static _Thread_local struct pl_waiting inside; /* the mask: of before the outermost call */

static void block(sigset_t *old)
{
	static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
	sigset_t all;

	sigfillset(&all);
	for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++)
		sigdelset(&all, faults[i]);
	pthread_sigmask(SIG_BLOCK, &all, old);
}

void pl_call_enter(void)
{
	if (inside.depth++)
		return;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &inside.cancel);
	block(&inside.signals);
}

void pl_call_leave(const char *unused)
{
	if (--inside.depth)
		return;
	pthread_sigmask(SIG_SETMASK, &inside.signals, NULL);
	pthread_setcancelstate(inside.cancel, NULL);
}

void pl_call_wait_begin(struct pl_waiting *w)
{
	*w = inside;
	inside.depth = 0;
	if (w->depth)
		pthread_sigmask(SIG_SETMASK, &w->signals, NULL);
}

void pl_call_wait_end(const struct pl_waiting *w)
{
	if (w->depth)
		block(&(sigset_t){0});
	inside = *w;
}

int pl_thread_start(pthread_t *thread, void *(*fn)(void *), void *arg)
{
	sigset_t all, was;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &was);
	err = -pthread_create(thread, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &was, NULL);
	return err;
}
