/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The io_uring backend's own objects; shared by uring.c and uring_drain.c. */
#ifndef PL_BACKEND_URING_H
#define PL_BACKEND_URING_H

#include <liburing.h>
#include <pinlease/device.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "backend/ring_move.h"

/*
 * Tags: user_data of the completions that say "the last request on this slot's old content has ended".
 * The upper half marks them as ours, the lower half counts.
 */
#define PL_URING_TAG ((uint64_t)0x70696e6c << 32)

#define URING_WAITING 8

/* A tag whose completion has not been seen: requests may use the content it stood for still. */
struct uring_tag {
	struct uring_tag *next; /* of uring_dev.tags */
	struct uring_map *map;	/* NULL: free */
	uint64_t tag;
};

struct uring_map {
	struct pinl_mapping *m;
	unsigned slot; /* in the program's ring, and minus first in the private one */
	uint64_t tag;  /* of what is in the slot now; 0: slot is empty */
	struct uring_tag waiting[URING_WAITING];
	int n_waiting;
	bool lost;    /* more than fit: never confirmed */
	bool stopped; /* slot empty for good (once tag is 0), until retarget */
	bool held;    /* the private ring shares the old content, for read */
};

/* The program's completion ring, mapped a second time: ours whatever the program does with its own. */
struct uring_cq {
	void *map;
	size_t len;
	unsigned *head, *tail, mask, shift;
	unsigned *flags; /* of the submission side: says that completions overflowed; may be NULL */
	struct io_uring_cqe *cqes;
	unsigned looked;     /* the tags before this one of the queue have been noted */
	bool stuck;	     /* it was full for a whole drain, */
	unsigned stuck_head; /* with this entry the next to be taken out */
};

struct uring_dev {
	pthread_mutex_t lock; /* covers all below that changes */
	int ring;	      /* our duplicate of the ring's descriptor */
	int given;	      /* the program's descriptor, to see that it is still the same ring */
	unsigned first, nr;   /* slots that leases may use */
	bool own_table;
	unsigned *free; /* slots: nr_free of them, from next_free on, around */
	unsigned next_free, nr_free;
	bool left_full;		 /* a free slot may have something in it, here or in the private ring */
	struct uring_tag **tags; /* nr chains, by tag */
	struct uring_cq cq;
	struct pl_mover priv; /* reads what leases pin, through clones of their slots; if can_read */
	bool can_read;
};

int pl_uring_cq_open(struct uring_dev *d, const struct io_uring *ring);
void pl_uring_cq_close(struct uring_dev *d);

/* dev->lock held: note the tags that stand unread in the completion ring. */
void pl_uring_cq_look(struct uring_dev *d);
bool pl_uring_tag_seen(struct uring_dev *d, uint64_t user_data);
void pl_uring_tag_wait(struct uring_dev *d, struct uring_map *u, uint64_t tag);
void pl_uring_tags_drop(struct uring_dev *d, struct uring_map *u);

int pl_uring_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns);
int pl_uring_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf);

/* dev->lock held: take the lease's pages out of the program's slot. */
void pl_uring_empty(struct uring_dev *d, struct uring_map *u);

/* dev->lock held: share the slot's content with the private ring, or let go of it. */
int pl_uring_hold(struct uring_dev *d, struct uring_map *u);
void pl_uring_let_go(struct uring_dev *d, struct uring_map *u);

#endif
