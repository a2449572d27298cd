/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside of the notify source: notify.c has the watches, notify_thread.c waits for
 * something to happen, notify_scan.c looks what has.
 */
#ifndef PL_SOURCE_NOTIFY_H
#define PL_SOURCE_NOTIFY_H

#include <pinlease/source.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/queue.h>
#include <sys/stat.h>

#include "core/index.h"
#include "os/aside.h"

#define PL_NOTIFY_POOL 256

/* One report to the core. */
struct pl_told {
	struct pinl_change change;
	struct pl_told *next; /* free (lock), or found in this scan (thread) */
	struct pl_notify *src;
};

/* A leased part of a file. */
struct pl_noted_range {
	struct pl_node node;		    /* noted->by_va: how its lease finds it */
	struct pl_noted_range *next, *prev; /* in a circle with the others of the inode */
	uint64_t offset, pages;
	int64_t blocks; /* st_blocks of the file when last looked at */
	enum pinl_memory_kind kind;
	unsigned unborn; /* bits set in `absent`: pages that had no page under them from the start */
	unsigned long *absent;
	unsigned long *gone;  /* reported; never reported again */
	unsigned long bits[]; /* both */
};

/*
 * A watched inode. What a scan uses (fd, seen, st, ranges, left) may be touched only by who has it in
 * `scanning`, or under the lock while it isn't there; the rest is under the lock.
 *
 * A scan looks at some ranges and goes on where it was: `left` of them, from `ranges` on, have not been
 * looked at since the file was as in `st`. So neither a new range nor running out of reports starts it
 * over.
 */
struct pl_noted {
	struct pl_node node;	/* notify->noted, by inode number */
	struct pl_node wd_node; /* notify->by_wd */
	TAILQ_ENTRY(pl_noted) dirty_link;
	LIST_ENTRY(pl_noted) often_link;
	uint64_t dev, ino;
	int wd;		      /* inotify; -1: none */
	int fd;		      /* the leases', O_PATH */
	int real;	      /* theirs aside */
	bool periodic;	      /* inotify doesn't tell everything */
	bool dirty;	      /* to be scanned: in notify->dirty */
	bool often;	      /* in notify->often */
	uint64_t young_until; /* pages may be born until then: look often */
	bool seen;	      /* st is valid */
	struct stat st;
	unsigned refs, left; /* ranges */
	struct pl_noted_range *ranges;
	struct pl_index by_va;
};

struct pl_notify {
	struct pinl_ctx *ctx;
	pthread_t thread;
	int inotify, timer, wake;

	pthread_mutex_t lock; /* all below; not held when the core or a scan is called */
	pthread_cond_t idle;  /* scanning has changed, or nobody waits for it any more */
	struct pl_index noted, by_wd;
	TAILQ_HEAD(, pl_noted) dirty;
	LIST_HEAD(, pl_noted) often; /* periodic or young */
	struct pl_noted *scanning;
	unsigned waiting; /* for scanning to change: the thread lets them */
	struct pl_told *free;
	unsigned n_periodic;
	uint64_t young_until; /* the latest of all */
	bool stop;
	struct pl_told pool[PL_NOTIFY_POOL];
};

static inline struct pl_noted *pl_noted_of_wd(struct pl_node *node)
{
	return (struct pl_noted *)((char *)node - offsetof(struct pl_noted, wd_node));
}

/* lock held. */
static inline void pl_noted_dirty(struct pl_notify *s, struct pl_noted *n)
{
	if (!n->dirty)
		TAILQ_INSERT_TAIL(&s->dirty, n, dirty_link);
	n->dirty = true;
}

void *pl_notify_thread(void *src);
void pl_notify_wake(struct pl_notify *s);

/* What a range of the file has no page for at the start. */
void pl_noted_baseline(struct pl_aside *aside, int fd, int real, struct pl_noted_range *r);

/*
 * Look for what has gone since, in a bounded number of ranges. Takes reports from *free and puts those
 * found on *found.
 */
enum pl_scanned { PL_SCANNED, PL_SCAN_MORE, PL_SCAN_NO_REPORTS };
enum pl_scanned pl_noted_scan(struct pl_aside *aside, struct pl_noted *n, struct pl_told **free,
			      struct pl_told **found);

#endif
