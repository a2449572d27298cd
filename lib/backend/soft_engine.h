/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside of the soft device: soft.c (open, map), soft_engine.c (page table, engine), soft_revoke.c. */
#ifndef PL_BACKEND_SOFT_ENGINE_H
#define PL_BACKEND_SOFT_ENGINE_H

#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <stdint.h>

#include <pinlease/device.h>

#include "backend/soft_pin.h"
#include "core/index.h"

enum { PL_PTE_VALID = 1, PL_PTE_WRITABLE = 2, PL_PTE_DIRTY = 4 };

/* Of one mapping: the present pages, and those of recalls that no drain has confirmed yet. */
#define PL_SOFT_PINS 4

/* Another device's memory; soft_import.c. soft->lock. */
struct pl_soft_far {
	unsigned char *at;  /* what the engine is on: it, or a dummy */
	size_t len;	    /* of `at`, which is there again and again */
	unsigned char *own; /* our mapping of it; NULL: the exporter's is used, or it is gone */
	size_t own_len;
};

struct pl_soft_map {
	struct pl_node node; /* soft->maps, by device address */
	uint64_t daddr;	     /* device address of `start`, set by pl_soft_insert */
	uintptr_t start, end;
	int writable;
	int stopped;	    /* no entry is valid, none can be faulted in */
	struct pl_pin *pin; /* NULL: on demand, or dropped */
	struct pl_pin *old; /* pins of before a retarget that no drain has confirmed, newest first */
	struct pl_pin *spare;
	struct pl_soft_far *far; /* NULL: memory */
	struct pl_pin *pins;	 /* all of them, made in map, freed in forget; NULL: on demand */
	unsigned char pte[];
};

/* A transfer. Lives on its submitter's stack until it has `ended`. */
struct pl_soft_dma {
	struct pl_soft_dma *next;
	uint64_t daddr;
	unsigned char *buf;
	size_t len, pos;
	int write;
	struct pl_soft_map *map; /* while in flight */
	struct pl_pin *pin;	 /* the pages it began with; NULL: on demand */
	unsigned char *far;	 /* of another device's memory: what it is busy on */
	int busy;		 /* the page at `pos` is being accessed */
	int cancel, result;
	sem_t ended;
};

struct pl_soft {
	size_t page;
	enum pinl_device_class device_class;
	struct pl_pins *pins; /* NULL: no io_uring */
	int pins_err;	      /* why */
	pthread_t engine;

	pthread_mutex_t lock; /* everything below, and all of maps and transfers */
	pthread_cond_t changed;
	struct pl_index maps;
	uint64_t next_daddr;
	struct pl_soft_dma *head, **tail; /* waiting */
	struct pl_soft_dma *cur;	  /* in flight */
	unsigned submitters;
	int paused, closing;
	int bounce; /* a memfd of one page, for other devices' memory; -1: none yet */
};

void *pl_soft_engine(void *soft);

/* Queue a transfer and wait for its end. */
int pl_soft_submit(struct pl_soft *s, struct pl_soft_dma *x);

/* Give the mapping its device addresses and make it visible to the engine. */
void pl_soft_insert(struct pl_soft *s, struct pl_soft_map *map);

/* With the lock held. */
void pl_soft_remove(struct pl_soft *s, struct pl_soft_map *map);

/* The mapping that has all of [daddr, daddr + len), or NULL. With the lock held. */
struct pl_soft_map *pl_soft_find(struct pl_soft *s, uint64_t daddr, size_t len);

/* The memory behind an entry: `pin`, or on demand what is mapped at `va` now. Without the lock. */
int pl_soft_access(struct pl_soft *s, const struct pl_pin *pin, uintptr_t va, void *buf, size_t len,
		   int write);

/* With the lock held, as the one below. */
static inline int pl_soft_in_flight(const struct pl_soft *s, const struct pl_soft_map *map)
{
	return s->cur && s->cur->map == map;
}

static inline void pl_soft_cancel(struct pl_soft *s)
{
	s->cur->cancel = 1;
	pthread_cond_broadcast(&s->changed);
}

static inline size_t pl_soft_index(const struct pl_soft *s, const struct pl_soft_map *map, uintptr_t va)
{
	return (va - map->start) / s->page;
}

/* soft.c: -EOPNOTSUPP and the sentence why a device of this class can't `what`. */
int pl_soft_unsupported(const struct pl_soft *s, const char *what);

/* soft_revoke.c: let go of a list of pins of the mapping that no transfer has. */
void pl_soft_free_pins(struct pl_soft *s, struct pl_soft_map *map, struct pl_pin *pin);

/* soft_import.c */
int pl_soft_import(void *dev, struct pinl_mapping *m, const struct pinl_import *from,
		   struct pinl_addr *addrs);
int pl_soft_dummy(void *dev, struct pinl_mapping *m, void *pages, size_t len);
int pl_soft_far_access(struct pl_soft *s, unsigned char *at, unsigned char *buf, size_t len, int write);
void pl_soft_far_leave(struct pl_soft *s, struct pl_soft_map *map);
void pl_soft_far_free(struct pl_soft_far *far);

int pl_soft_stop(void *dev, struct pinl_mapping *m);
int pl_soft_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns);
int pl_soft_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf);
void pl_soft_drop(void *dev, struct pinl_mapping *m);
int pl_soft_retarget(void *dev, struct pinl_mapping *m);
int pl_soft_invalidate(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end);
int pl_soft_protect(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end);
int pl_soft_dirty(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end, uint8_t *dirty);

#endif
