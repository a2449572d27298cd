/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of the files source: files.c is the side that the core calls, files_gate.c the thread that
 * reads and answers fanotify (the gate), files_report.c the thread that calls the core for it. They meet
 * in the lists under `lock`.
 *
 *	blocked task -> gate -> reports -> reporter -> core -> answer() -> answered -> gate -> task
 *
 * The gate has a descriptor table of its own. fanotify lets blocked tasks go when the last descriptor
 * of the group is closed; in a shared table every fork() would copy it, and a child that outlives this
 * process would keep all changes of the files blocked for ever. Nobody can inherit from the gate, and
 * the descriptor that comes with every event doesn't count against the program's limit either.
 * Therefore only the gate touches group_a, group_b and pl_held.fd, and does so by raw system calls,
 * because the sanitizers model one table per process. And therefore it may not call the core, which has
 * descriptors of its own to write to.
 */
#ifndef PL_SOURCE_FILES_H
#define PL_SOURCE_FILES_H

#include <pinlease/source.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/fanotify.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/index.h"
#include "os/compat.h"
#include "os/task.h"
#include "source/files_look.h"
#include "source/files_peek.h"

#define PL_FILES_MAX_HELD 1024
#define PL_FILES_EVENT	  64 /* bytes, and no event that is asked for has more: itself and a range */
#define PL_FILES_EVENTS	  (FAN_PRE_ACCESS | FAN_OPEN_PERM) /* of group B */

/*
 * fanotify knows an event by the number of its descriptor alone, and numbers of an earlier process's
 * events have to stay free for them (files_kept.c): so the gate's own descriptors are above all of those
 * then.
 */
#define PL_FILES_OWN (PL_FILES_MAX_HELD + 64)
enum { PL_FILES_GROUP_A = PL_FILES_OWN, PL_FILES_GROUP_B, PL_FILES_WAKE };

enum pl_held_state {
	PL_HELD_FREE,
	PL_HELD_UNSEEN,	 /* read; its task isn't asleep yet, so what it is about to do isn't known */
	PL_HELD_ASKED,	 /* to be submitted, or submitted and not answered */
	PL_HELD_ALLOWED, /* let go, not known to have happened */
	PL_HELD_DONE,	 /* to be told to the core, then free */
};

/* A task that fanotify has stopped, from its event until its change has happened. */
struct pl_held {
	struct pinl_change change;
	struct pl_files *src;
	struct pl_held *next;	  /* on free, unseen or allowed (gate), reports or answered (lock) */
	enum pl_held_state state; /* gate; read by the reporter while on reports */
	uint64_t order;		  /* grows; gate */
	int fd;			  /* gate */
	int err;		  /* the answer; lock */
	pid_t tid;
	uid_t uid;  /* gate */
	bool known; /* call is what it does */
	struct pl_syscall call;
	int64_t new_size;
	uint64_t allowed_ns;
	bool size_seen;

	/* UNSEEN */
	_Alignas(struct fanotify_event_metadata) char event[PL_FILES_EVENT];
	uint64_t read_ns;
	bool lost; /* an earlier process's: its descriptor isn't the file's any more */
};

/* What of the source outlives the process, in memory that somebody keeps. */
struct pl_files_table {
	uint64_t layout; /* PL_FILES_LAYOUT, or nothing in here is understood */
	_Alignas(struct fanotify_event_metadata) char events[4096]; /* read; the gate's */
	struct pl_held held[PL_FILES_MAX_HELD];
};

#define PL_FILES_LAYOUT ((uint64_t)sizeof(struct pl_files_table) << 32 | sizeof(struct pl_held) << 8 | 1)

/*
 * For open: the groups are PL_FILES_GROUP_A and PL_FILES_GROUP_B in the caller's table, and he may close
 * them after pl_files_go_on(). No event is read before that, and nobody is let go by close.
 */
struct pl_files_kept {
	struct pl_files_table *table;
	bool resumed; /* groups and table are of an earlier process; else new */
};

/* Something a caller wants done with the groups; lives on the caller's stack until done. */
enum pl_files_todo { PL_TODO_PROBE, PL_TODO_MARK_FS, PL_TODO_MARK, PL_TODO_UNMARK };

struct pl_files_ask {
	struct pl_files_ask *next;
	enum pl_files_todo todo;
	char path[64]; /* the file, by a path that works from the gate's table */
	int err;
	bool done; /* lock */
};

struct pl_fs_seen {
	uint64_t dev;
	long magic;
	bool known, can;
	unsigned watched; /* files of it, at most: it is mounted, and marked, as long as there is one */
};

#define PL_FILES_FS 16

struct pl_files {
	struct pinl_ctx *ctx;
	pthread_t gate, reporter;
	int wake; /* eventfd, in both tables: wakes the gate */

	pthread_mutex_t lock; /* the next seven; short, nothing is called under it */
	pthread_cond_t done;  /* an ask is done, the gate has started */
	pthread_cond_t work;  /* reports has something */
	struct pl_files_ask *asks;
	struct pl_held *reports, **reports_tail;
	struct pl_held *answered; /* and those whose end has been told */
	bool stop, started, go_on;

	int start_err; /* written before started */
	const char *start_step;

	pthread_mutex_t
		watch_lock; /* up to groups_here; held while the gate serves an ask, never by the gate */
	struct pl_index watched; /* struct pl_watched */
	struct pl_fs_seen fs[PL_FILES_FS];
	unsigned next_fs;
	bool groups_here; /* until go_on: who has something done with them does it himself */

	struct pl_files_kept kept; /* table NULL: nothing outlives this process */

	/* The gate's own. */
	bool paused; /* until go_on */
	int group_a, group_b;
	atomic_bool fair; /* set once: see crowds_out() */
	struct pl_peek peek;
	struct pl_held *free, *allowed, *unseen;
	unsigned n_free, n_held, poll_ms;
	uint64_t order;
	struct pl_held *held; /* [n_held] */
};

/* files.c; watch_lock held */
bool pl_files_is_watched(struct pl_files *s, uint64_t dev, uint64_t ino);

/* files_gate.c */
void *pl_files_gate(void *src);
int pl_files_make_group(int *group); /* any thread */
bool pl_files_knows_the_event(int group);
void pl_files_wake(struct pl_files *s);
int pl_files_do(struct pl_files *s, const struct pl_files_ask *a); /* gate, or see groups_here */
void pl_files_respond(struct pl_files *s, int fd, int err);
void pl_files_event(struct pl_files *s, const struct fanotify_event_metadata *m);
void pl_files_allowed(struct pl_files *s, struct pl_held *h);
struct pl_held *pl_files_take(struct pl_files *s, const struct fanotify_event_metadata *m);
void pl_files_ask_core(struct pl_files *s, struct pl_held *h, const struct pl_files_seen *seen);
void pl_files_free(struct pl_files *s, struct pl_held *h);

/* files_unseen.c: gate */
int pl_files_defer(struct pl_files *s, const struct fanotify_event_metadata *m, bool lost);
void pl_files_defer_held(struct pl_files *s, struct pl_held *h);
void pl_files_look_again(struct pl_files *s);

/* files_kept.c: gate, but for the first */
void pl_files_close_gates(struct pl_files *s); /* who opens it, while the gate is paused */
void pl_files_take_over(struct pl_files *s);
void pl_files_take_up(struct pl_files *s);

bool pl_files_take_up_event(struct pl_files *s, const struct fanotify_event_metadata *m,
			    enum pl_files_look look);
void pl_files_forget_stale(struct pl_files *s, int fd);

/* files_report.c */
void *pl_files_reporter(void *src);
void pl_files_report(struct pl_files *s, struct pl_held *h); /* gate */

#endif
