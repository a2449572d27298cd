/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside of the userfaultfd source: uffd.c is the side the core calls, uffd_open.c gets the descriptor,
 * uffd_read.c is the thread. */
#ifndef PL_SOURCE_UFFD_H
#define PL_SOURCE_UFFD_H

#include <pthread.h>

#include "core/index.h"
#include "source/uffd_going.h"
#include "source/uffd_hold.h"
#include "source/uffd_mark.h"

struct pl_uffd_area {
	uintptr_t start, end;
};

struct pl_uffd {
	struct pinl_ctx *ctx;
	struct pl_uffd_asks *asks;
	int fd, maps, pagemap;
	atomic_bool stop;
	atomic_bool can_hold; /* found by the thread before its first event is read */
	/* Watches of shared files: MADV_DONTNEED does nothing to them, MADV_REMOVE does, and only the
	 * caller tells which it was. */
	atomic_int ambiguous;
	pthread_t thread;	  /* owns fd once it runs */
	struct pl_uffd_hold hold; /* the thread's */
	struct pl_uffd_mark mark; /* the same */
	struct pl_uffd_going *going;
	struct pl_uffd_area probe;
	pid_t opener;

	pthread_mutex_t lock;  /* covers all below, and registering against unregistering */
	struct pl_index files; /* watched ranges of files, one per lease */
};

/* -errno and a sentence. */
int pl_uffd_open_fd(void);
void pl_uffd_close_fd(int fd);

void *pl_uffd_reader(void *uffd);

#endif
