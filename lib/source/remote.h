/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of the remote source: files that pinleased watches for all programs. remote.c is the side that
 * the core calls, remote_link.c the thread that talks to the arbiter (the link), remote_send.c what it
 * says, remote_got.c what it has heard, remote_report.c the thread that calls the core for it.
 *
 *	pinleased -> link -> got -> reports -> reporter -> core
 *	pinleased <- link <- answers <- answer() <- core
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
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/order.h"
#include "proto/messages.h"
#include "source/later.h"

#define PL_REMOTE_POOL	     512
#define PL_REMOTE_UNANSWERED 64	   /* of what is told again: pinleased lets go who doesn't read */
#define PL_REMOTE_RESTART_MS 2000  /* an arbiter that is being restarted is waited for, */
#define PL_REMOTE_START_MS   10000 /* and one that listens, then and when a context is opened; */
#define PL_REMOTE_STARTS_MS  60000 /* as often as it has answered and broken off */

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
	bool closed; /* who waits is refused when pinleased has gone without a word */
	bool silent; /* not released, as far as is known: KILL, so the arbiter goes on */
	enum pinl_outcome outcome;
	uint64_t since_ns;   /* the actor waits */
	uint64_t latest_ns;  /* till then: who is recalled in vain is waited for no longer than twice the
				ceiling */
	uint64_t gone_ns;    /* and was let go then; 0: wasn't */
	uint64_t over_ns;    /* recall: since then he waits no more, for whatever reason; 0: he may */
	unsigned connection; /* it came by; the answer to it goes nowhere else */
};

/* What of a lease is off its device by now, as far as has been looked. */
struct pl_remote_taken {
	bool whole;
	enum pinl_outcome outcome;
	struct pl_range parts[PL_MAX_DETACHED];
	int n_parts;
};

/* A lease the arbiter knows; lock. `fd` is the lease's own. */
struct pl_remote_lease {
	struct pl_node node; /* by number */
	struct pinl_lease *lease;
	struct pl_lease_msg msg;
	int how; /* the file is opened to be shown */
	struct pl_handle_msg handle;
	unsigned told;	    /* by which connection last; 0: its first LEASE isn't answered yet */
	uint64_t serial[2]; /* of LEASE and HANDLE when it was told again */
	bool ended;	    /* that was said, or nobody was there */
	unsigned missed;    /* which connection last hasn't been told, or didn't take it */
	bool unguarded;	    /* so: to be said by the reporter */
	bool others;	    /* other processes wait for it, at pinleased's gate */
	struct pl_remote_taken taken;
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
	bool listens;	      /* not connected: somebody does, as a restart keeps what listens */
	bool unsaid; /* lost, but perhaps to be made good by resuming the session; the link's own */
	uint64_t unguarded; /* no lease before this is; the last number: none at all */
	uint64_t unseen;    /* from this one on the reporter is to look what is taken; as above */
	unsigned let_go;    /* 0, or who was held for a connection before that isn't since lost_ns */
	uint64_t read_ns;   /* all that was in the socket then is with the reporter, */
	uint64_t told_ns;   /* or with the core; */
	bool to_catch_up;   /* these are wanted: the link is to read */
	bool started, stop;
	int start_err;
	char refused[sizeof((struct pl_reply *)0)->text]; /* with that, by pinleased */

	/* The link's own. */
	int sock;
	struct pl_remote_notice *got, **got_tail; /* and not with the reporter yet */
	struct pl_remote_notice *stale; /* recalls of before, that the resumed session tells of again */
	unsigned connection;		/* the same one to the same arbiter counts as one */
	unsigned connections;		/* that there have been */
	unsigned unanswered;		/* leases and handles told again */
	uint64_t answered;	/* a lease told again that got a reply: they come in that order */
	bool resumed;		/* the arbiter knows the leases of before */
	bool missing;		/* but not all, so they are told in full after ALL_TOLD */
	uint64_t boot, session; /* the arbiter's name for us; 0: never connected */
	uint64_t ceiling_ns;	/* the arbiter's; 0: unknown */
	uint64_t serial;
	struct pl_remote_ask *waiting; /* sent, to be answered */
	struct pl_remote_notice *pool; /* [PL_REMOTE_POOL] */
};

/* The lease of that number, or NULL; lock held. */
struct pl_remote_lease *pl_remote_find(const struct pl_remote *s, uint64_t id);
void pl_remote_wake(struct pl_remote *s);

/* Who waited for it when the connection broke, at the latest; a stopped process sees that late. */
static inline uint64_t pl_remote_went_on(const struct pl_remote_notice *n, uint64_t lost_ns)
{
	return lost_ns < n->latest_ns ? lost_ns : n->latest_ns;
}

/* So long a restart may take. lock held */
static inline uint64_t pl_remote_restarted_by(const struct pl_remote *s)
{
	return s->lost_ns + (s->listens ? PL_REMOTE_START_MS : PL_REMOTE_RESTART_MS) * 1000000ull;
}

/* He may have done it since: of what is deferred, or waits at a gate that stays closed, nobody has. */
static inline bool pl_remote_may_be_made(const struct pl_remote_notice *n)
{
	return !n->closed && strcmp(n->source, "later");
}

/* Of the link's own table. */
static inline void pl_remote_close_fd(int fd)
{
	syscall(SYS_close, fd);
}

/* The link's own; lock held. */
void pl_remote_finish(struct pl_remote *s, struct pl_remote_ask *a, int err);
void pl_remote_tell_in_full(struct pl_remote *s);
void pl_remote_unguarded(struct pl_remote *s, struct pl_remote_lease *r);

/* remote_got.c: the link's own. With the lock: */
void pl_remote_append(struct pl_remote_notice ***tail, struct pl_remote_notice *n);
void pl_remote_note_over(struct pl_remote *s, const struct pl_notice_msg *m);
void pl_remote_pass_on_stale(struct pl_remote *s);
void pl_remote_keep_stale(struct pl_remote *s); /* the connection is over */
/* Without: */
void pl_remote_pass_on(struct pl_remote *s, bool broken);
void pl_remote_pass_on_left(struct pl_remote *s); /* there is another connection */
bool pl_remote_has_room(struct pl_remote *s);

/* True: something is left that there was no room for. Not with the lock. */
bool pl_remote_send_all(struct pl_remote *s);
void *pl_remote_link(void *src);
void *pl_remote_reporter(void *src);
void pl_remote_answer(struct pinl_change *change, int err); /* of a notice's change, by the core */

/* remote_past.c: the reporter's; no lock. What was let go although a lease was not off its device. */
void pl_remote_gone(struct pl_remote_notice *notice);
bool pl_remote_is_held(struct pl_remote_notice *notice); /* it was told of before, and waits */
void pl_remote_over(struct pl_remote_notice *notice);	 /* what it was told of before was over then */
void pl_remote_let_go(struct pl_remote *s, unsigned connection, uint64_t lost_ns);
void pl_remote_look(struct pl_remote *s); /* at some of the leases, before they are told again */
/* ctx->lock and s->lock held. */
void pl_remote_look_at(struct pl_remote_lease *r);

#endif
