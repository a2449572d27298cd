/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Data between a program's buffer and the pages of a fixed buffer, through a ring that nobody else uses
 * and a memfd, because pinned pages have no other name once their mapping is gone.
 */
#ifndef PL_BACKEND_RING_MOVE_H
#define PL_BACKEND_RING_MOVE_H

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

struct pl_mover {
	struct io_uring ring; /* its buffer table is the user's */
	int fd;		      /* the memfd: lanes, one after the other */
	unsigned char *lanes;
	atomic_uint taken;    /* a bit for each lane */
	pthread_mutex_t lock; /* the ring's queues and lane 0 */
};

/* With an empty table of so many slots. No sentence. */
int pl_mover_open(struct pl_mover *m, unsigned slots);
void pl_mover_close(struct pl_mover *m);

/*
 * Copy len bytes between buf and the pages at `at` in the buffer of `slot`. 0 or -errno; a failure
 * leaves nothing behind that a later move could meet. Any thread, nothing is allocated. No lock is held
 * while buf is accessed: it may be in memory that somebody else's move is to fill.
 */
int pl_mover_move(struct pl_mover *m, bool to_pages, uintptr_t at, unsigned slot, void *buf, size_t len);

#endif
