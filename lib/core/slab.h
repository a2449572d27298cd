/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory for the cache's leases, of which there may be a million: in huge pages, so that making one
 * faults no page in and the index misses no TLB. A chunk that is empty goes back, but for one.
 */
#ifndef PL_CORE_SLAB_H
#define PL_CORE_SLAB_H

#include <pthread.h>
#include <stddef.h>

struct pl_slab_chunk;

struct pl_slab {
	pthread_mutex_t lock;
	struct pl_slab_chunk *room; /* chunks that have some */
	size_t size, chunks, empty; /* size: of an object, a multiple of 64 */
};

void pl_slab_init(struct pl_slab *slab, size_t size);
void pl_slab_end(struct pl_slab *slab);	 /* all objects are back */
void *pl_slab_new(struct pl_slab *slab); /* zeroed; NULL: no memory */
void pl_slab_free(struct pl_slab *slab, void *object);

#endif
