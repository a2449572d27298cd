/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside of the notify source: notify.c has the watches, notify_thread.c waits for
 * something to happen, notify_scan.c looks what has.
 */
#ifndef PL_SOURCE_NOTIFY_H
#define PL_SOURCE_NOTIFY_H

#include <pinlease/source.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/stat.h>

#define PL_NOTIFY_POOL 256

/* One report to the core. */
struct pl_told {
	struct pinl_change change;
	struct pl_told *next; /* free (lock), or found in this scan (thread) */
	struct pl_notify *src;
};

/* A leased part of a file. */
struct pl_noted_range {
	struct pl_noted_range *next;
	uintptr_t va;
	uint64_t offset, pages;
	int64_t blocks; /* st_blocks of the file when last looked at */
	enum pinl_memory_kind kind;
	unsigned unborn; /* bits set in `absent`: pages that had no page under them from the start */
	unsigned long *absent;
	unsigned long *gone;  /* reported; never reported again */
	unsigned long bits[]; /* both */
};

/* A watched inode. Everything but refs, dirty and next may be touched only by who has it in `scanning`,
 * or under the lock while it isn't there. */
struct pl_noted {
	struct pl_noted *next;
	uint64_t dev, ino;
	int wd;		/* inotify; -1: none */
	int fd;		/* a description of our own; -1: none, then ask is `size_fd` */
	int size_fd;	/* to fstat */
	bool periodic;	/* inotify doesn't tell everything */
	bool dirty;	/* to be scanned */
	bool seen;	/* st is valid */
	struct stat st; /* when last scanned */
	unsigned refs;
	struct pl_noted_range *ranges;
};

struct pl_notify {
	struct pinl_ctx *ctx;
	pthread_t thread;
	int inotify, timer, wake;

	pthread_mutex_t lock; /* all below; not held when the core or a scan is called */
	pthread_cond_t idle;  /* scanning has changed */
	struct pl_noted *noted, *scanning;
	struct pl_told *free;
	unsigned n_periodic;
	uint64_t young_until; /* pages may be born until then: look often */
	bool stop;
	struct pl_told pool[PL_NOTIFY_POOL];
};

void *pl_notify_thread(void *src);
void pl_notify_wake(struct pl_notify *s);

/* What a range has no page for at the start. */
void pl_noted_baseline(struct pl_noted *n, struct pl_noted_range *r);

/*
 * Look for what has gone since. Takes reports from *free and puts those found on *found; true: ran out
 * of them, scan again.
 */
bool pl_noted_scan(struct pl_noted *n, struct pl_told **free, struct pl_told **found);

#endif
