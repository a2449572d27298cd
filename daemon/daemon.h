/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pinleased, the arbiter: the library's core with leases of other processes in it.
 *
 *	fanotify -> source "files" -> core -> tell() -> notices -> main loop -> NOTICE -> holder
 *	                               |                                          |
 *	                               +<- pl_foreign_answer() <- main loop <- RELEASED
 *	                               +-> device ops: force from outside, at the deadline
 *
 * Threads: the main loop (sd-event) has the sockets and everything in here but what `lock` says; the
 * core's worker forces; the reaper ends the leases of holders that are gone. Nobody waits in the main
 * loop for a holder: sockets don't block, and what ends slowly goes to the reaper.
 */
#ifndef PL_DAEMON_H
#define PL_DAEMON_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <systemd/sd-event.h>

#include "core/order.h"
#include "core/foreign.h"
#include "outside.h"
#include "proto/wire.h"
#include "store.h"

struct limits {
	uint64_t leases, bytes; /* of one user */
	unsigned connections;	/* of one user */
	unsigned ceiling_ms;
	bool closed;	  /* after a crash who waits, and whoever comes, waits for the restart */
	unsigned hold_ms; /* of a minute, that one user's leases hold changes; 0: three ceilings */
	unsigned notices; /* a minute, of one user's leases */
	bool may_kill;	  /* holders whose policy asks for it */
	bool gate;
	const char *gate_dir;  /* where its programs are pinned */
	unsigned gate_keep_ms; /* how long it refuses after a crash */
};

/* share.c: what runs out of it in a minute is its size */
struct bucket {
	uint64_t level, at_ns;
};

/* What one user has here; as long as he has a connection or a lease. Main loop and reaper: lock. */
struct user {
	LIST_ENTRY(user) link;
	uid_t uid;
	unsigned refs;
	uint64_t leases, bytes;
	uint64_t guarded; /* of the gate's places */
	unsigned connections, laters, changes;
	unsigned adopted;   /* of the connections: none yet, but whose process may make one to go on */
	struct bucket work; /* lock: of the worker's time */
	struct bucket hold, notices; /* this and the next two: ctx->lock */
	uint64_t held_until_ns, complained_ns, gone_ns;
	uint64_t stuck_ns; /* main loop: when the log last had it */
	atomic_bool complain;
};

/* One of a holder's rings, or the address space of its devices. `lock` keeps the main loop, the worker
 * and the reaper apart. */
struct ring {
	struct ring *next;
	pthread_mutex_t lock;
	int fd; /* in the holder's table */
	enum pl_outside_kind kind;
	struct pl_outside *outside;
	unsigned refs; /* leases; main loop, then reaper */
};

/* A lease of a holder's. */
struct held_lease {
	struct pl_node node; /* holder->leases, by the holder's number */
	struct holder *holder;
	struct pinl_lease *lease;
	uint64_t number, bytes;
	enum pinl_then then;
	char device[16];
	struct ring *_Atomic
		ring; /* buf is set before; by which it can be taken from outside; NULL: by none */
	struct pl_outside_buf buf;
	int stopped;	 /* device.c: what has come of stopping it */
	bool drains;	 /* device.c: since then; lease busy, as the next */
	bool drained;	 /* it was waited for to the end */
	bool made;	 /* the device has it */
	bool told;	 /* on this connection */
	bool answers;	 /* gate.c: so its process isn't stopped */
	bool shown;	 /* watch.c: to who watches; main loop, as the next */
	unsigned unseen; /* PINL_OPBIT()s, to be told then */
	struct stored_lease *stored;
	uint32_t grace_ms, agent_ms; /* as the holder has said */
	struct {		     /* for those who watch, when holder and lease are gone */
		pid_t pid;
		uid_t uid;
		char name[32];
		uint64_t dev, ino, offset, start;
	} of;
	struct held_lease *ended_next, *end_next;
	bool ending;	    /* it is in no index any more */
	bool gone;	    /* `lease` is, or is about to be; server->reaping */
	struct notice *own; /* where what finds no room is merged; ctx->lock, as the next two */
	LIST_ENTRY(held_lease) no_more; /* the gate is to be told that it was taken */
	bool refuses_no_more;		/* it is in that list */
	uint64_t taken_id;		/* of `lease`, then, which may be gone */
};

/* To be told to a holder; ctx->lock. */
struct notice {
	TAILQ_ENTRY(notice) link;
	struct held_lease *hl; /* NULL: free */
	enum pl_notice_what what;
	const char *source;
	uint64_t seq, deadline_ns, since_ns, gone_ns, force_ns, taken_ns;
	struct pl_range va;
	enum pinl_op op;
	unsigned also;
	pid_t actor_pid, actor_tid;
	bool at_gate; /* who waits does so there */
};

TAILQ_HEAD(notices, notice);

/* A connection, and its process. */
struct holder {
	LIST_ENTRY(holder) link;
	struct server *server;
	sd_event_source *io, *exit, *patience;
	int sock, pidfd;
	pid_t pid;
	struct user *user;
	char name[32];
	uint64_t session;
	struct stored_holder *stored; /* from its first lease on */
	bool welcome;		      /* HELLO has come */
	bool tells_again;	      /* STILL wasn't enough: one more ALL_TOLD comes */
	bool returning;	    /* its leases may be older than the changes under way, until ALL_TOLD */
	atomic_bool left;   /* its connection is over, and it lives: what it has is its own affair */
	unsigned absent_ms; /* absent.c: until it is looked at again */
	bool full;	    /* the socket takes no more, until it says so */
	unsigned endings;   /* leases that the reaper ends; it stays till then */
	bool leaves;	    /* and leaves then */
	unsigned unforced;  /* leases that can't be forced from outside */
	bool weaker;	    /* it has leases that are refused for no more: that was said */
	bool nameless;	    /* the same of PINL_KEEP_NAME */
	struct killing *_Atomic killing; /* since its first lease with KILL */
	uint64_t end_by, look_ns; /* reaper: how long its pins are waited for, when it looks again */
	struct pinl_device *device;
	struct pl_index leases;
	struct ring *rings;
	struct listing *listing;   /* being sent to it; NULL: none */
	struct request *request;   /* a recall it has asked for; NULL: none */
	struct watcher *watcher;   /* NULL: it doesn't watch */
	struct held_lease *making; /* for the backend's map */
	struct door *door;	   /* door.c; NULL: no connection */
	TAILQ_ENTRY(holder) at_link;
	struct pl_head shown;		/* at the door: of the message */
	bool at_door;			/* not read from */
	bool vetted;			/* its first message may come in */
	bool adopted;			/* it is in user->adopted */
	struct notices notices, unused; /* ctx->lock; so the next two: */
	const struct held_lease *cut;	/* a change of it was let go; to be said */
	bool cut_pinned;		/* its device has pages of its own */
	uint64_t cut_said_ns;
	struct notice *pool;
	LIST_HEAD(, change) changes; /* change.c: main loop */
	struct holder *reap_next;    /* lock */
};

struct server {
	struct pinl_ctx *ctx;
	sd_event *event;
	struct limits limits;
	uint64_t boot;
	struct store store;
	struct holder *husk;
	int given;			      /* the service manager's socket; -1: none */
	int wake;			      /* eventfd: notices have come */
	LIST_HEAD(, holder) holders, leaving; /* leaving: no connection, may be about to end */
	pthread_mutex_t reaping;	      /* the next, and their leases' `gone` */
	LIST_HEAD(, holder) reaped;	      /* the reaper's; their leases are there till it is done */
	uint64_t since_ns;
	LIST_HEAD(, request) requests;
	LIST_HEAD(, watcher) watchers;
	sd_event_source *events; /* the core's; NULL: nobody has ever watched */
	struct held_lease *ending;
	uint64_t events_lost; /* by watchers */
	uint64_t outside;     /* leases forced from there, ever; ctx->lock, as the next two */
	uint64_t merged;      /* refusals that are told with others' */
	LIST_HEAD(, held_lease) refuse_no_more;
	atomic_bool cut; /* a holder has one to be said */
	unsigned n_watchers, n_endings;
	bool all_resumed;
	uint64_t gate_until_ns; /* until then an earlier one's gate refuses */
	sd_event_source *gate_tick;
	struct laters *laters;
	struct doors *doors;
	struct generations *generations; /* NULL: nobody has asked */
	LIST_HEAD(, change)
	alone; /* changes whose connection is over, or who are not heard of any more */
	pthread_t main;
	pthread_mutex_t answers; /* the next one; nothing is called under it */
	struct change *answered;
	int spare;	  /* let go to turn somebody away where there is no other descriptor; -1 */
	atomic_bool ends; /* holders are let go because of that */

	pthread_mutex_t lock; /* the users, the reaper's list, and up to `ended` */
	struct target *done;  /* recalls that are over and not told yet */
	bool watched;
	struct held_lease *endings, *unmapped;
	struct held_lease *ended; /* their events may be there still */
	pthread_cond_t work;
	LIST_HEAD(, user) users;
	uint64_t guarded;		  /* by the gate, of all of them */
	struct holder *reap, *unfinished; /* unfinished: the reaper's own */
	bool stop;
	pthread_t reaper;
};

/* For sentences: "1 lease", "2 leases". */
static inline const char *s_of(uint64_t n)
{
	return n == 1 ? "" : "s";
}

/* server.c */
int server_new(sd_event *event, const struct limits *limits, struct server **out);
int server_listen(struct server *s, int sock); /* takes it */
void server_free(struct server *s);

/* listen.c: a socket; -errno with a sentence */
int listen_socket(const char *path);
int listen_given(int sock);

/* holder.c: main loop, but for what it says */
struct holder *holder_new(struct server *s, int sock); /* takes it; NULL: refused, and said so */
void holder_refuse(int sock);			       /* says that there are too many */
void holder_gone(struct holder *h);		       /* its connection is over */
void holder_leave(struct holder *h);		       /* and waited for no more */
void holder_end(struct holder *h);		       /* reaper */
int holder_receive(struct holder *h);		       /* 0; -errno: it is to go */

/* holder.c, for resume.c: main loop */
struct holder *holder_alloc(struct server *s, uid_t uid, bool besides, pid_t pid,
			    int pidfd); /* takes pidfd */
void holder_free(struct holder *h);
bool holder_watch_exit(struct holder *h);

/* door.c: main loop */
int doors_new(struct server *s);
void doors_free(struct server *s);
int door_come(struct holder *h, uid_t uid);   /* 0; -errno: not now */
void door_leave(struct holder *h);	      /* takes its socket */
void door_refuse(struct server *s, int sock); /* takes it; of one who is not let in */
int door_pass(struct holder *h);	      /* 0: receive; -EAGAIN: not yet; -errno: it is to go */

/* door_take.c: main loop. A ring or address space of the holder's: a descriptor, or -errno */
int door_take(struct holder *h, enum pl_outside_kind kind, int fd, uint64_t deadline_ns);

/* lease.c: main loop, but for lease_forget: reaper, too */
int lease_message(struct holder *h, const union pl_message *m, int fd); /* as holder_receive() */
int lease_adopt(struct holder *h, struct stored_lease *l, int fd);	/* fd: as in struct pl_foreign */
int lease_take_handle(struct held_lease *hl, const struct pl_handle_msg *m);
void lease_end(struct held_lease *hl);
void lease_forget(struct holder *h, struct held_lease *hl); /* the core has ended it */
struct held_lease *lease_find(struct holder *h, uint64_t number);

/* absent.c: main loop; until it comes back (h->patience) */
void absent_watch(struct holder *h);

/* ending.c */
void lease_end_later(struct held_lease *hl); /* main loop; it is in no index any more */
void endings_do(struct server *s);	     /* reaper */
void endings_finish(struct server *s);	     /* main loop */
void endings_await(struct server *s);	     /* main loop, at the end */

/* resume.c: main loop */
bool resume_all(struct server *s); /* true: all that may live still has its leases */
struct holder *resume_session(struct holder *h, uint64_t session); /* NULL: there is none */
void resume_told(struct holder *h);
void resume_bury(struct server *s); /* what is left of a connection that is another holder's now */

/* notice.c: main loop, or reaper */
extern const struct pl_foreign_ops holder_foreign_ops; /* of the core's: ctx->lock held */
int notices_init(struct holder *h);
int holder_send_notices(struct holder *h); /* 0; -errno: it is to go */
void notices_send(struct server *s);	   /* main loop: to all; what can't be sent stays there */
void notices_drop(struct holder *h, struct held_lease *hl);
void notice_weaker(struct held_lease *hl,
		   unsigned ops);	 /* PINL_OPBIT()s: it may have counted on these */
void notices_complain(struct server *s); /* main loop: of changes that were let go */

/* file.c: any thread */
enum pinl_memory_kind file_kind(long magic, bool shared);
int file_look(int fd, bool write, struct stat *st, long *magic, bool *reader);
int file_path_only(int fd); /* a descriptor; the caller's */

/* user.c: any thread */
struct user *user_get(struct server *s, uid_t uid,
		      bool besides); /* NULL: no memory, or too many connections; not if `besides` */
bool user_may_come(struct server *s, const struct user *u, uint32_t role); /* in a place for commands */
bool user_is_locked_out(struct server *s,
			uid_t uid);		  /* root, or our own user, of his commands' places */
void user_keep(struct server *s, struct user *u); /* till user_put(..., false) */
void user_put(struct server *s, struct user *u, bool connection);
void user_adopted(struct holder *h, bool is);
void users_free(struct server *s);		   /* at the end */
int user_change(struct server *s, struct user *u); /* one more of his under way; -EDQUOT */
void user_changed(struct server *s, struct user *u);
int user_charge(struct server *s, struct user *u, uint64_t bytes);
void user_discharge(struct server *s, struct user *u, uint64_t bytes);

/* list.c: main loop */
int list_begin(struct holder *h, const struct pl_list_msg *m);
void list_send(struct holder *h);
void list_free(struct listing *list);

struct listing *list_new(uint64_t serial); /* then list_add(), and into holder->listing */
int list_add(struct listing *list, const union pl_message *m);
void list_path(const struct held_lease *hl, char *path, size_t len); /* its end, if it is too long */
void list_entry(const struct held_lease *hl, union pl_message *m);

/* recall.c: main loop */
int recall_begin(struct holder *h, const struct pl_recall_msg *m);
void recall_send(struct holder *h); /* it takes messages again */
void recall_gone(struct holder *h); /* its connection; it is in its list still */
void recall_pass(struct holder *h); /* it is to leave its list */
void recall_go_on(struct server *s);

/* watch.c: main loop, but for watch_ended */
int watch_begin(struct holder *h, const struct pl_watch_msg *m);
void watch_send(struct holder *h); /* it takes messages again */
void watch_gone(struct holder *h);
void watch_leased(struct held_lease *hl);	/* it is whole */
void watch_ending(const struct held_lease *hl); /* it is there still */
void watch_ended(struct held_lease *hl, struct server *s);
void watch_catch_up(struct server *s); /* with what has happened till now */
void watch_stop(struct server *s);

/* status.c: main loop */
int status_begin(struct holder *h, const struct pl_ask_status_msg *m);

/* holder.c, for those that answer: main loop */
int holder_send(struct holder *h, const union pl_message *m);
void holder_copy_text(char *to, const char *from, size_t len); /* for logs and terminals */
int holder_reply(struct holder *h, const struct pl_head *to, int err, uint64_t value);
int holder_reply_to(struct holder *h, uint64_t serial, int err, uint64_t value);

/* share.c; the first three: ctx->lock held */
uint64_t share_grace(struct pinl_lease *l, uint64_t now);
void share_held(struct pinl_lease *l, uint64_t since_ns);
void share_noticed(struct user *u);
int share_may_lease(struct server *s, struct user *u);
int share_descriptor(struct server *s, struct user *u, int fd);	    /* one more; -EDQUOT */
int share_guard(struct server *s, struct user *u, uint64_t places); /* one more; -EDQUOT */
void share_unguard(struct server *s, struct user *u);
void share_complain(struct server *s); /* main loop */
unsigned share_hold_ms(const struct server *s);
void share_used(struct server *s, const struct user *u, uint64_t *hold_ns, uint64_t *notices);
uint64_t share_work(struct holder *h, uint64_t deadline_ns);
uint64_t share_patience(struct holder *h, uint64_t ns); /* the same, and not a moment beyond his share */
void share_worked(struct holder *h, uint64_t since_ns);

/* later.c: main loop */
int laters_new(struct server *s);
void laters_free(struct server *s);
void laters_look(struct server *s);
void laters_forget(struct server *s, const struct holder *h); /* it is told no more */
int later_take(struct holder *h, const struct pl_truncate_msg *m, int fd);
void later_begin(struct server *s); /* the one taken last */

/* change.c: main loop */
int change_begin(struct holder *h, const struct pl_change_msg *m, int fd);
void change_done(struct holder *h, const struct pl_done_msg *m);
void changes_answer(struct server *s); /* those that the core has answered */
void changes_leave(struct holder *h);  /* its connection is over */
void changes_free(struct server *s);   /* the core is closed */
bool change_under_way(struct server *s, const struct pl_lease_msg *m, const struct stat *st);

/* ring.c: main loop, or reaper */
int ring_get(struct holder *h, enum pl_outside_kind kind, int fd, struct ring **out);
void ring_put(struct holder *h, struct ring *ring);

/* kill.c: R10 */
struct killing;
int kill_prepare(struct holder *h); /* main loop: before its first lease with KILL */
int kill_holder(struct held_lease *hl, struct pinl_mapping *m); /* worker: and its pins are gone */
bool kill_pins_gone(struct holder *h); /* reaper: has somebody inherited pins of leases with KILL? */
void kill_free(struct killing *k);

/* device.c */
extern const struct pinl_device_ops holder_device_ops; /* arg: the holder */
int holder_drained(struct pinl_lease *l, uint64_t deadline_ns);

#endif
