/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of the remote source: files that pinleased watches for all programs. remote.c is the side that
 * the core calls, remote_link.c the thread that talks to the arbiter (the link), remote_report.c the
 * thread that calls the core for it.
 *
 *	pinleased -> link -> reports -> reporter -> core -> answer() -> answers -> link -> pinleased
 *
 * The link has a descriptor table of its own, so that no child inherits the connection, which would keep
 * the holder alive for the arbiter, and so that it can open the leased files to show them without
 * dropping the program's locks (os/aside.h). Therefore it touches descriptors by raw calls, and doesn't
 * call the core.
 *
 * A connection that breaks is made again, and every lease told anew under its old number, until the
 * source is closed; meanwhile changes of files are not held, or still are by what the arbiter has left
 * (docs/protocol.md), and a DEGRADED event says so.
 */
#ifndef PL_SOURCE_REMOTE_H
#define PL_SOURCE_REMOTE_H

#include <pinlease/source.h>
#include <pthread.h>
#include <stdbool.h>

#include "core/order.h"
#include "proto/messages.h"
#include "source/later.h"

#define PL_REMOTE_POOL	     512
#define PL_REMOTE_RESTART_MS 2000 /* an arbiter that is being restarted is waited for */

/* A NOTICE, from its arrival until RELEASED has been sent. */
struct pl_remote_notice {
	struct pl_order order; /* or only its change */
	struct pl_remote *src;
	struct pl_remote_notice *next; /* free, reports or answers; lock */
	uint64_t lease, seq;
	struct pl_range va;
	enum pl_notice_what what;
	char source[12];
	bool whole;
	bool silent; /* not released, as far as is known: KILL, so the arbiter goes on */
	enum pinl_outcome outcome;
	unsigned connection; /* it came by; the answer goes nowhere else */
};

/* A lease the arbiter knows; lock. `fd` is the lease's own. */
struct pl_remote_lease {
	struct pl_node node; /* by number */
	struct pinl_lease *lease;
	struct pl_lease_msg msg;
	int how; /* the file is opened to be shown */
	struct pl_handle_msg handle;
};

/* What a caller wants said, and answered; on his stack. */
struct pl_remote_ask {
	struct pl_remote_ask *next;
	union pl_message m;
	char path[64]; /* a descriptor goes along: the file here, opened with `flags` */
	int flags;
	bool reply; /* is waited for */
	bool done;
	int err;
	uint64_t value;
	char text[216];
};

struct pl_remote_fs {
	uint64_t dev;
	long magic;
	bool known;
	uint64_t coverage;
};

#define PL_REMOTE_FS 16

/* A change that pinleased is to make. The number is taken while it isn't free. */
struct pl_remote_later {
	enum { LATER_FREE, LATER_ASKED, LATER_DONE } state;
	struct pl_later_job job;
	int err;
};

#define PL_REMOTE_LATER 64

struct pl_remote {
	struct pinl_ctx *ctx;
	pthread_t link, reporter;
	int wake; /* eventfd, in both tables */
	char path[108];

	pthread_mutex_t lock; /* all up to `stop`; short, nothing is called under it */
	pthread_cond_t done;  /* an ask is done, the link has started, the connection is there or gone */
	pthread_cond_t work;  /* reports has something */
	struct pl_index leases;
	struct pl_remote_ask *asks, **asks_tail;
	struct pl_remote_notice *free, *reports, **reports_tail, *answers, **answers_tail;
	struct pl_remote_fs fs[PL_REMOTE_FS];
	struct pl_remote_later laters[PL_REMOTE_LATER];
	unsigned next_fs;
	uint64_t
		untold; /* leases from this number on may be older than the connection; the last: none */
	uint64_t silent_until_ns;
	uint64_t lost_ns;     /* when the connection broke; 0: never */
	bool connected, lost; /* lost: to be said by the reporter */
	bool started, stop;
	int start_err;

	/* The link's own. */
	int sock;
	unsigned connection;	/* the same one to the same arbiter counts as one */
	bool resumed;		/* the arbiter knows the leases of before */
	uint64_t boot, session; /* the arbiter's name for us; 0: never connected */
	uint64_t serial;
	struct pl_remote_ask *waiting; /* sent, to be answered */
	struct pl_remote_notice *pool; /* [PL_REMOTE_POOL] */
};

/* The lease of that number, or NULL; lock held. */
struct pl_remote_lease *pl_remote_find(const struct pl_remote *s, uint64_t id);
void pl_remote_wake(struct pl_remote *s);
void *pl_remote_link(void *src);
void *pl_remote_reporter(void *src);

#endif
