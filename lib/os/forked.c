/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table is lock-free, because a child of fork() may take no lock: the thread that had it isn't
 * there.
 */
#include "os/forked.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#define MAX_FORKED 4096

/* Descriptors plus one; 0: empty. None is at or after `top`. */
static atomic_int forked[MAX_FORKED], top;

static void close_in_child(void)
{
	for (int i = 0; i < atomic_load(&top); i++) {
		int fd = atomic_exchange(&forked[i], 0);

		if (fd)
			close(fd - 1);
	}
}

static void watch_forks(void)
{
	pthread_atfork(NULL, NULL, close_in_child);
}

static void raise_top(int to)
{
	int was = atomic_load(&top);

	while (was < to && !atomic_compare_exchange_weak(&top, &was, to))
		;
}

int pl_forked_add(int fd)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, watch_forks);
	for (int i = 0; i < MAX_FORKED; i++) {
		int empty = 0;

		raise_top(i + 1);
		if (atomic_compare_exchange_strong(&forked[i], &empty, fd + 1))
			return 0;
	}
	return -EMFILE;
}

void pl_forked_remove(int fd)
{
	for (int i = 0; i < atomic_load(&top); i++) {
		int it = fd + 1;

		if (atomic_compare_exchange_strong(&forked[i], &it, 0))
			return;
	}
}

void pl_forked_close(int fd)
{
	if (fd < 0)
		return;
	pl_forked_remove(fd);
	close(fd);
}
