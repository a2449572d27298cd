/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The iommufd backend's own objects; shared by iommufd.c and iommufd_switch.c. */
#ifndef PL_BACKEND_IOMMUFD_H
#define PL_BACKEND_IOMMUFD_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "backend/dma.h"

struct iommufd_dev {
	struct pl_dma dma; /* first, for pl_dma_map() and so on */
	int fd;		   /* our duplicate */
	uint32_t ioas;	   /* the program's address space */

	/* How pages are exchanged in one step; nr_devices 0: not at all. */
	pthread_mutex_t exchanging; /* one at a time; taken before: */
	pthread_rwlock_t lock;	    /* for reading: changes of one lease; for writing: an exchange, which
				       pins nothing then */
	uint32_t twin;		    /* an address space of ours; empty, if not on_twin */
	atomic_bool on_twin; /* devices couldn't be brought back; changed with the lock for writing */
	struct pl_attached {
		int fd; /* the program's: a duplicate would keep the kernel from taking a device away */
		dev_t dev; /* and what it was, should the program have closed it: */
		ino_t ino;
		dev_t rdev;
	} * devices;
	unsigned nr_devices;
	struct pl_iova_range *own; /* what the program itself has mapped */
	unsigned nr_own;
};

/* The calls by their numbers: 0 or -errno, no sentence. */
int pl_ioas_map(int fd, uint32_t ioas, uint64_t iova, const struct pinl_mapping *m);
int pl_ioas_unmap(int fd, uint32_t ioas, uint64_t iova, size_t len); /* 0 also if nothing is there */
struct pl_ioas_place {
	uint32_t ioas;
	uint64_t iova;
};
int pl_ioas_copy(int fd, struct pl_ioas_place from, struct pl_ioas_place to, size_t len, bool writable);

/* Sentences. */
int pl_switch_open(struct iommufd_dev *d, const struct pinl_iommufd_arg *arg);
void pl_switch_close(struct iommufd_dev *d);

/* Of pl_dma_ops. */
int pl_switch_exchange(void *table, uint64_t iova, const struct pinl_mapping *m);

/* lock held for writing: back to the program's address space, if devices are left on the twin. */
int pl_switch_back(struct iommufd_dev *d);

#endif
