/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A lease, and all that may be said of one. What covers its fields: ctx.h. */
#ifndef PL_CORE_LEASE_H
#define PL_CORE_LEASE_H

#include <pinlease/device.h>
#include <pinlease/source.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include "core/index.h"
#include "core/more.h"
#include "core/policy.h"
#include "core/revoke.h"

#define PL_MAX_DETACHED 8

struct pl_cached;
struct pl_inode;
struct pl_pool;
struct pl_stage;

struct pl_range {
	uintptr_t start, end;
};

/* Pages the device still has although file or mapping let them go. */
struct pl_orphan {
	struct pl_node node; /* in lease->more->known */
	struct pl_orphan *next;
	struct pl_range va;
	enum pinl_op op;
	uint64_t since_ns;
	pid_t actor;
	void *baseline; /* their content when found; NULL: that isn't known */
};

struct pl_recall {
	struct pl_range va; /* union of the changes' overlaps */
	enum pinl_op op;
	unsigned also; /* for who is told elsewhere: what else the first change may be */
	enum pl_effect effect;
	bool late;     /* the pages were detached before the notice */
	bool held;     /* the first actor waits, so it is looked at again after a force */
	bool again;    /* noticed before, and a force hasn't done it: not one more recall */
	bool quiesced; /* by the holder */
	bool part;     /* and only va of it, ending in `outcome`: a foreign one's answer */
	enum pinl_outcome outcome;
	struct pl_range gone;			  /* these addresses are no longer mapped by it */
	uint64_t deadline_ns, change_id, last_id; /* of the first change, of the last */
	uint64_t since_ns;			  /* a change waits for it since then */
	uint64_t ceiling_ns;			  /* of the first: no answer moves the deadline beyond */
	uint64_t force_ns;			  /* by an order: when its holder's library forces */
	uint64_t lost_ns;			  /* heard of late: the pages went then; else 0 */
	uint64_t outside_ns;			  /* as in pinl_change */
	uint64_t late_ns; /* its deadline was found to be over after that; 0: it wasn't */
	pid_t actor_pid, actor_tid;
	const char *source;
};

/* What was lost and to whom, until the worker has taken the baseline; lost.c. */
struct pl_lost {
	struct pl_lost *next;
	struct pl_recall recall;
};

struct pl_lost_list {
	struct pl_lost *first, *last;
	struct pl_recall crowd; /* merged: what there was no record for; va empty: nothing */
};

#define PL_JOB_ORPHAN 1u
#define PL_JOB_FOLLOW 2u
#define PL_JOB_TAKE   4u
#define PL_JOB_PARTED 8u

struct pl_import;

/* What a lease stands on. A lease of the cache has the one of its extent, which doesn't change; `start`
 * and `end` of its mem mean nothing then. */
struct pl_ground {
	struct pinl_memory mem;
	uint8_t coverage[PINL_OP_NR];
	uint8_t supervised[PINL_OP_NR]; /* beyond that, for changes by processes under `pinlease run` */
	unsigned counted;		/* PINL_OPBIT()s: told of by the counting source only */
	unsigned watched;		/* bit per source */
	size_t users;			/* of an extent's: the leases and the extent; ctx->lock */
	struct pl_ground *next;		/* without any: on ctx->grounds */
};

/*
 * What most leases of the cache never need: about files, and what happens to a lease after it was made.
 * Who reads finds zeroes until somebody writes, who gets it by pl_more() (more.c); what covers a field
 * of the lease covers one here.
 */
struct pl_more {
	struct pinl_lease *lease;
	struct pl_more *next_free;
	struct pl_ground ground;     /* its own */
	struct pl_node file_node;    /* inode->leases, by file offset */
	struct pl_inode *inode;	     /* NULL: no file */
	struct pl_node notice_node;  /* ctx->noticed, by deadline: while NOTICED */
	struct pinl_lease *job_next; /* leases with work for the worker */
	struct pl_stage *stage;	     /* set with the lock; used by whoever has the lease busy */
	struct pl_import *import;    /* device memory; NULL: ordinary. Set before the lease is visible */
	pid_t owner;		     /* foreign */
	struct timespec ctime;	     /* of the file when it was pinned */
	int64_t blocks;		     /* and its blocks, of 512 bytes */
	bool translated;	     /* by an IOMMU, at these addresses: */
	uint64_t iova;
	bool seen, stopped; /* by the look ahead for this force; the device has been stopped then */
	bool drained;	    /* foreign: to drain it waits for nothing any more */
	int stop_err;
	uint64_t drain_by, look_ns;
	struct pl_recall recall;
	struct pl_recall next; /* late changes that came while FORCING */
	bool has_next;
	struct pl_recall late; /* told of too late: noticed as soon as the orphan's baseline is taken */
	bool has_late;
	bool resumed;	   /* foreign: older than the changes that are under way */
	bool stuck;	   /* foreign: a force hasn't done it; its holder's answer or a cut will */
	bool killed;	   /* foreign: its holder has been, for this lease; lease busy */
	bool gone;	   /* foreign: it ends because its holder has */
	bool unproven;	   /* the device isn't known to be off what was taken last */
	uint64_t taken_ns; /* when that was */
	uint64_t followed; /* foreign: changes up to this one it has followed */
	struct pl_range detached[PL_MAX_DETACHED];
	int n_detached;
	atomic_bool va_lost;	   /* part of the addresses went: what is there is not ours to pin. As
				      `changed`. */
	atomic_bool taken_outside; /* all of it, which is yet to be told: it ends by that */
	struct pl_range follow;	   /* PL_JOB_FOLLOW */
	struct pl_lost_list lost;  /* PL_JOB_ORPHAN */
	struct pl_recall parted;   /* PL_JOB_PARTED: a copy that the program has discarded */
	struct pl_orphan *orphans, unrecorded; /* newest first */
	struct pl_index known;		       /* orphans, by address */
	struct pl_pool *pool;		       /* where they are; orphan.c */
	size_t orphan_bytes;
};

/* There may be a million. */
struct pinl_lease {
	union {
		struct pl_node node;
		struct pl_range m; /* the leased range */
	};
	struct pinl_lease *dev_next, **dev_prev; /* dev->leases */
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_mapping dm; /* what the backend is given: the leased range, or the stage's copy */
	const struct pl_ground *on;
	const struct pl_more *_Atomic more;
	struct pinl_policy policy;
	unsigned flags;
	pid_t owner_thread;
	struct pl_cached *cached; /* a registration of the cache's; cached.h */
	uint64_t id, since_ns;
	const void *caller;
	void *_Atomic cookie; /* read and set without a lock */
	uint64_t inside_ns;   /* a thread makes or ends it since; 0: none does */
	enum pinl_state state;
	enum pinl_outcome outcome;
	uint8_t jobs;	/* to do by the worker */
	bool by_extent; /* it is watched without this lease; `on` is the extent's */
	bool in_slab;
	bool alone; /* it isn't in ctx->others */
	bool busy, queued, ending;
	/* Written to without the lock, and a compiler may read all of the above at once. */
	_Alignas(8) atomic_bool idle; /* changed with no user of it */
	atomic_bool changed; /* not all of it is as it was pinned; stays. Read without the lock. */
};

_Static_assert(sizeof(struct pinl_lease) <= 256, "four cache lines");

static inline struct pinl_lease *pl_lease_of_notice_node(struct pl_node *node)
{
	return node ? ((struct pl_more *)((char *)node - offsetof(struct pl_more, notice_node)))->lease
		    : NULL;
}

static inline struct pinl_lease *pl_lease_of_file_node(struct pl_node *node)
{
	return node ? ((struct pl_more *)((char *)node - offsetof(struct pl_more, file_node)))->lease
		    : NULL;
}

/* By its own ground: whoever watches for itself has that. */
static inline struct pinl_lease *pl_lease_of_memory(const struct pinl_memory *mem)
{
	return ((struct pl_more *)((char *)mem - offsetof(struct pl_more, ground.mem)))->lease;
}

static inline bool pl_has_more(const struct pinl_lease *lease)
{
	return lease->more != &pl_more_none;
}

/* What the device may do with the memory. */
static inline unsigned pl_lease_access(const struct pinl_lease *lease)
{
	return lease->flags & (PINL_WRITE | PINL_PIN);
}

#endif
