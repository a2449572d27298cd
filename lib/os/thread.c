/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "os/thread.h"

static sigset_t block_signals(void)
{
	static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
	sigset_t block, old;

	sigfillset(&block);
	for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++)
		sigdelset(&block, faults[i]);
	pthread_sigmask(SIG_BLOCK, &block, &old);
	return old;
}

struct pl_call pl_call_enter(void)
{
	struct pl_call call;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &call.cancel);
	call.signals = block_signals();
	return call;
}

void pl_call_leave(struct pl_call *call)
{
	pthread_sigmask(SIG_SETMASK, &call->signals, NULL);
	pthread_setcancelstate(call->cancel, NULL);
}

void pl_call_wait_begin(const struct pl_call *call)
{
	pthread_sigmask(SIG_SETMASK, &call->signals, NULL);
}

void pl_call_wait_end(const struct pl_call *call)
{
	block_signals();
}

int pl_thread_start(pthread_t *thread, const char *name, void *(*fn)(void *arg), void *arg)
{
	sigset_t old = block_signals();
	int err = -pthread_create(thread, NULL, fn, arg);

	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!err)
		pthread_setname_np(*thread, name);
	return err;
}
