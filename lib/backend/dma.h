/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Leases in a device's address space that an IOMMU translates: what the backends vfio and iommufd have
 * in common. The device address of a page is an IOVA, taken from a range that is the leases' alone.
 *
 *	     map            stop               retarget
 *	(new) --> mapped ---------> unmapped ------------> mapped
 *	            |  ^
 *	   retarget +--+  in one step where the table can, else unmapped for a moment
 *
 * Unmapping waits until the IOMMU has dropped its translations and what used them is over, so there is
 * nothing left to drain: a transfer that comes later faults, whether it was begun before or not.
 *
 * What the IOMMU has pinned is read back through second pins (readback.h). Without them
 * (PINL_DMA_NO_READ, or no io_uring here) there is no COPY, and what was written to orphans isn't known.
 */
#ifndef PL_BACKEND_DMA_H
#define PL_BACKEND_DMA_H

#include <pinlease/device.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "backend/iova.h"
#include "backend/readback.h"

/* How one kind of address space is changed. `table` is the backend's. Any thread; no lock is held. With
 * sentences. */
struct pl_dma_ops {
	/* What is mapped at [m->start, m->end) now. */
	int (*map)(void *table, uint64_t iova, const struct pinl_mapping *m);

	/* 0: nothing is mapped there any more, whoever has done it. Else it may be. */
	int (*unmap)(void *table, uint64_t iova, size_t len);

	/* What is mapped at [m->start, m->end) now in the place of what the device has, in one step.
	 * -EOPNOTSUPP, nothing has changed: in two, then. May be NULL. */
	int (*exchange)(void *table, uint64_t iova, const struct pinl_mapping *m);

	/* Another device's memory, m->end - m->start of it. NULL: can't be. */
	int (*import)(void *table, uint64_t iova, const struct pinl_mapping *m,
		      const struct pinl_import *from);
};

struct pl_dma_map;

struct pl_dma {
	const struct pl_dma_ops *ops;
	void *table;
	pthread_mutex_t lock; /* covers space and left */
	struct pl_iova_space space;
	struct pl_dma_map *left, **left_tail; /* ended leases that couldn't be unmapped: their addresses
						 stay taken; tried again, one with each map and forget */
	atomic_uint n_left;
	struct pl_dma_map *aside; /* for pl_dma_aside(), as long as */
	bool aside_used;
	struct pl_readback readback;
};

/* What the table may use and leases are given, [first, last]; 0, 0: all but page 0. */
struct pl_dma_setup {
	const struct pl_dma_ops *ops;
	void *table;
	const struct pl_iova_range *ranges;
	unsigned nr_ranges;
	uint64_t first, last;
	unsigned flags; /* PINL_DMA_NO_READ */
};

int pl_dma_open(struct pl_dma *d, const struct pl_dma_setup *setup, struct pinl_device_info *info);
void pl_dma_close(struct pl_dma *d);

/* As in device.h, to be put into a backend's table: dev is its object, which begins with a struct
 * pl_dma. */
int pl_dma_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs);
void pl_dma_unmap(void *dev, struct pinl_mapping *m);
int pl_dma_stop(void *dev, struct pinl_mapping *m);
int pl_dma_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns);
int pl_dma_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf);
void pl_dma_drop(void *dev, struct pinl_mapping *m);
int pl_dma_retarget(void *dev, struct pinl_mapping *m);
void pl_dma_forget(void *dev, struct pinl_mapping *m);
int pl_dma_import(void *dev, struct pinl_mapping *m, const struct pinl_import *from,
		  struct pinl_addr *addrs);
int pl_dma_dummy(void *dev, struct pinl_mapping *m, void *pages, size_t len);

/* Each lease that is mapped, until fn returns other than 0. With the lock. */
int pl_dma_each(struct pl_dma *d, int (*fn)(void *arg, uint64_t iova, size_t len, bool writable),
		void *arg);
uint64_t pl_dma_iova(const struct pinl_mapping *m);

/* Addresses that are no lease's, for a moment; one thread and one range at a time. Nothing is allocated.
 * -ENOSPC: also while there are some already. */
int pl_dma_aside(struct pl_dma *d, const struct pinl_mapping *m, uint64_t *iova);
void pl_dma_aside_end(struct pl_dma *d);

/* The kernel's answers to pinning for an IOMMU, as a sentence; `what` is the call. */
int pl_dma_pin_error(int err, const struct pinl_mapping *m, uint64_t iova, const char *what);

#endif
