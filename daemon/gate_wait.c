/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 *	waits --> ASKED --answer--> pass, let go --> GOING --told, or dead, or forgotten--> end
 *	            |                                  |
 *	            +-- goes on for another reason (a signal, a while is over): waits again
 *
 *	refused, as it can't wait --> ASKED --answer--> its process may make it, end
 *
 * Where processes are stopped a SIGCONT lets one go, else the answer to what its thread reads, its
 * visit. Where nothing is held any more there is nothing to wait for, and no pass, which would be good
 * for the next lease, too. For whom there is no room, he is refused.
 *
 * Invariants:
 * - the core has a waiter from ASKED until `answered` is called, and then, as nothing may be leased of
 *   the bytes, until end();
 * - a thread is in `waiters` once. What it is told of anew is another call of its: the one before it has
 *   given up, in a signal handler, and nobody is to hear the answer to that: it is in `alone`;
 * - who was refused is in `refused`, by what he wanted: threads of io_uring come and go, and make all of
 *   its changes. Told again meanwhile it is the same;
 * - each is one of his user's changes (user.c), so that none takes the room of others;
 * - a visit is a waiter's that is ASKED, and no older than VISIT_MS, or answered;
 * - where they are stopped, while one thread of a process is GOING and not in its call yet, each that is
 *   stopped again has the process continued once more: all its threads were.
 */
#include "daemon/gate_wait.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/change.h"
#include "daemon.h"
#include "daemon/gate_stop.h"
#include "os/clock.h"
#include "os/wake.h"

#define FORGET_MS      (GATE_PASS_MS + 1000) /* no pass is good any more */
#define VISITS_AT_ONCE 64
#define VISIT_MS       1000 /* so long the kernel lets go of less, see bpf/gate_page.h */

enum waiter_state { ASKED, GOING, ALONE };

struct waiter {
	struct pl_node node; /* by thread; by the first byte, if it was refused; or alone: */
	struct waiter *alone_next, **alone_at;
	struct waiter *next; /* on `answered` */
	struct gate_waiting *in;
	struct user *user;
	struct gate_refusal call;
	struct pinl_change core;
	enum waiter_state state;
	bool waits; /* else it was refused */
	int pidfd;
	uint64_t visit; /* its number; 0: none */
	sd_event_source *exit, *forget, *leave;
};

/* --------------------------------------------------------------------------------- life of a waiter --
 */

static struct waiter *find(const struct gate_waiting *g, pid_t tid)
{
	return (struct waiter *)pl_index_first(&g->waiters, tid, tid + 1);
}

/* The programs look for passes while there is one. */
static void count(struct gate_waiting *g, int more)
{
	g->n += more;
	__atomic_store_n(&g->stops->state->waiting, g->n, __ATOMIC_SEQ_CST);
}

static void leave_page(struct waiter *w)
{
	if (!w->visit)
		return;
	gate_page_let_go(&w->in->stops->page, w->visit);
	w->visit = 0;
	w->leave = sd_event_source_disable_unref(w->leave);
}

static void leave(struct waiter *w)
{
	if (w->state == ALONE) {
		*w->alone_at = w->alone_next;
		if (w->alone_next)
			w->alone_next->alone_at = w->alone_at;
	} else {
		pl_index_remove(w->waits ? &w->in->waiters : &w->in->refused, &w->node);
	}
}

static void waiter_free(struct waiter *w)
{
	leave(w);
	leave_page(w);
	sd_event_source_disable_unref(w->exit);
	sd_event_source_disable_unref(w->forget);
	if (w->pidfd >= 0)
		close(w->pidfd);
	count(w->in, -1);
	user_changed(w->in->server, w->user);
	free(w);
}

/* It has happened, or won't. */
static void end(struct waiter *w)
{
	if (w->core.id)
		pinl_change_done(w->in->server->ctx, w->core.id);
	if (w->state == GOING) { /* and may have been stopped with others since */
		gate_stop_take_pass(w->in->stops, &w->call);
		gate_stop_is_over(w->in->stops, &w->call);
	}
	waiter_free(w);
}

/* From now on his process isn't kept from that. */
static void may_try_again(struct waiter *w)
{
	if (gate_stop_asked(w->in->stops, &w->call))
		fprintf(stderr, "pinleased: %s\n", pinl_error());
	end(w);
}

/* His pass is of no use: his call has begun anew, and waited elsewhere meanwhile, or has more parts.
 * Waited for once more it might never end. */
static void end_unused(struct waiter *w)
{
	if (w->core.recalled)
		may_try_again(w);
	else
		end(w);
}

static bool is_of(const struct pinl_change *ch, void *arg)
{
	return ch == &((struct waiter *)arg)->core;
}

/* The core has it still. */
static void set_alone(struct waiter *w)
{
	struct gate_waiting *g = w->in;

	pl_change_over(g->server->ctx, is_of, w, pl_clock_ns());
	gate_stop_is_over(g->stops, &w->call);
	leave(w);
	leave_page(w);
	w->exit = sd_event_source_disable_unref(w->exit);
	w->state = ALONE;
	w->alone_next = g->alone;
	w->alone_at = &g->alone;
	if (g->alone)
		g->alone->alone_at = &w->alone_next;
	g->alone = w;
}

static void give_up(struct waiter *w)
{
	if (w->state == GOING)
		end_unused(w);
	else
		set_alone(w);
}

static int on_exit_of(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	give_up(arg);
	return 0;
}

static int on_forget(sd_event_source *source, uint64_t usec, void *arg)
{
	end_unused(arg);
	return 0;
}

/* --------------------------------------------------------------------------------------- going on -- */

/* pidfd: -1 if there is none */
static void have_continued(struct gate_waiting *g, const struct gate_refusal *call, int pidfd)
{
	char why[128];
	long err = pidfd >= 0 ? syscall(SYS_pidfd_send_signal, pidfd, SIGCONT, NULL, 0)
			      : syscall(SYS_tgkill, call->pid, call->tid, SIGCONT);

	if (err && errno != ESRCH && g->stops->tried) {
		snprintf(why, sizeof why, "process %d can't be continued: %s", call->pid,
			 strerror(errno));
		gate_waiting_never(g, why);
	}
	gate_stop_is_over(g->stops, call);
}

static void go_on(struct waiter *w)
{
	if (gate_stop_by_page(w->in->stops))
		leave_page(w);
	else
		have_continued(w->in, &w->call, w->pidfd);
}

/* From any thread, and from inside pinl_change_submit(). */
static void answered(struct pinl_change *core, int err)
{
	struct waiter *w = core->arg;
	struct gate_waiting *g = w->in;

	pthread_mutex_lock(&g->lock);
	w->next = g->answered;
	g->answered = w;
	pthread_mutex_unlock(&g->lock);
	pl_wake(g->server->wake);
}

/* Without a pass it goes on only where nothing is held any more, and else comes again. */
static void let_through(struct waiter *w)
{
	w->state = GOING;
	if (gate_stop_pass(w->in->stops, &w->call, false))
		fprintf(stderr, "pinleased: %s\n", pinl_error());
	go_on(w);
	if (sd_event_add_time_relative(w->in->server->event, &w->forget, CLOCK_MONOTONIC,
				       FORGET_MS * 1000ull, 0, on_forget, w) < 0)
		end(w);
}

void gate_waiting_answer(struct gate_waiting *g)
{
	struct waiter *w, *next;

	pthread_mutex_lock(&g->lock);
	w = g->answered;
	g->answered = NULL;
	pthread_mutex_unlock(&g->lock);
	if (w) /* whose lease has been taken hears it before he can see the change */
		notices_send(g->server);
	for (; w; w = next) {
		next = w->next;
		if (w->state == ASKED && w->waits)
			let_through(w);
		else if (w->state == ASKED)
			may_try_again(w);
		else
			end(w);
	}
}

/* ------------------------------------------------------------------------------------------- coming --
 */

static bool is_same(const struct waiter *w, const struct gate_refusal *call)
{
	return w->call.pid == call->pid && w->call.start == call->start && w->call.end == call->end &&
	       w->call.op == call->op && !memcmp(&w->call.file, &call->file, sizeof call->file);
}

static struct waiter *find_refused(const struct gate_waiting *g, const struct gate_refusal *call)
{
	struct pl_node *n = pl_index_first(&g->refused, call->start, call->start + 1);

	while (n && !is_same((struct waiter *)n, call))
		n = pl_index_next(n, call->start, call->start + 1);
	return (struct waiter *)n;
}

/* With one change more of his; NULL: he has too many. */
static struct user *user_of(struct server *s, uid_t uid)
{
	struct user *u = user_get(s, uid, true);
	int err = u ? user_change(s, u) : -ENOMEM;

	if (u)
		user_put(s, u, true);
	return err ? NULL : u;
}

static struct waiter *waiter_alloc(struct gate_waiting *g, uid_t uid)
{
	struct waiter *w = g->n < GATE_WAITING ? calloc(1, sizeof *w) : NULL;

	if (w)
		w->user = user_of(g->server, uid);
	if (w && w->user)
		return w;
	free(w);
	g->lost++;
	return NULL;
}

static struct waiter *waiter_new(struct gate_waiting *g, const struct gate_refusal *call,
				 const struct pinl_change *change)
{
	struct waiter *w = waiter_alloc(g, call->uid);

	if (!w)
		return NULL;
	w->in = g;
	w->call = *call;
	w->waits = call->what == GATE_WAITS;
	w->pidfd = -1;
	w->core = *change;
	w->core.can = PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD;
	w->core.answer = answered;
	w->core.arg = w;
	w->node.start = w->waits ? (uint64_t)call->tid : call->start;
	w->node.end = w->node.start + 1;
	pl_index_insert(w->waits ? &g->waiters : &g->refused, &w->node);
	count(g, 1);
	return w;
}

static void be_refused(struct gate_waiting *g, const struct gate_refusal *call,
		       const struct pinl_change *change)
{
	struct waiter *w = change && !find_refused(g, call) ? waiter_new(g, call, change) : NULL;

	if (w)
		pl_change_could_not_wait(g->server->ctx, &w->core);
}

/* Nobody is kept for that, and at a page his visit is nobody's. */
static void send_on(struct gate_waiting *g, const struct gate_refusal *call)
{
	if (!gate_stop_by_page(g->stops))
		have_continued(g, call, -1);
}

static void come(struct gate_waiting *g, const struct gate_refusal *call,
		 const struct pinl_change *change)
{
	struct waiter *w = change ? waiter_new(g, call, change) : NULL;
	bool is_dead;

	if (change && !w)
		gate_stop_pass(g->stops, call, true);
	if (!w) {
		send_on(g, call);
		return;
	}
	g->ever++;
	w->pidfd = (int)syscall(SYS_pidfd_open, call->pid, 0);
	is_dead = w->pidfd < 0 && errno == ESRCH;
	if (w->pidfd >= 0)
		sd_event_add_io(g->server->event, &w->exit, w->pidfd, EPOLLIN, on_exit_of, w);
	pinl_change_submit(g->server->ctx, &w->core);
	if (is_dead) /* as if he had been killed a moment later */
		set_alone(w);
}

/* Somebody of the process has been stopped: for all. */
static void wake_others(struct gate_waiting *g, pid_t pid)
{
	for (struct pl_node *n = pl_index_first(&g->waiters, 0, UINTPTR_MAX); n;
	     n = pl_index_next(n, 0, UINTPTR_MAX)) {
		struct waiter *w = (struct waiter *)n;

		if (w->state != GOING || w->call.pid != pid || !gate_stop_may_go(g->stops, &w->call))
			continue;
		go_on(w);
		return;
	}
}

/* Is it what is known of this thread? Who has used his pass makes the same call once more. */
static bool is_known(struct gate_waiting *g, const struct waiter *w, const struct gate_refusal *call)
{
	return call->what == GATE_WAITS && is_same(w, call) &&
	       (w->state == ASKED || gate_stop_may_go(g->stops, call));
}

static void is_stopped_again(struct waiter *w, const struct gate_refusal *call)
{
	gate_stop_is_over(w->in->stops, &w->call);
	w->call.stopped_ns = call->stopped_ns;
}

void gate_waiting_told(struct gate_waiting *g, const struct gate_refusal *call,
		       const struct pinl_change *change)
{
	struct waiter *w = find(g, call->tid);

	if (call->what == GATE_OVER) {
		if (w && w->state == GOING && is_same(w, call))
			end(w);
		return;
	}
	if (w && is_known(g, w, call)) {
		is_stopped_again(w, call);
	} else {
		if (w)
			give_up(w);
		if (call->what == GATE_WAITS)
			come(g, call, change);
		else
			be_refused(g, call, change);
		gate_waiting_answer(g);
	}
	if (call->what == GATE_WAITS && !gate_stop_by_page(g->stops))
		wake_others(g, call->pid);
}

/* ----------------------------------------------------------------------------------------- visits --
 */

static int on_leave(sd_event_source *source, uint64_t usec, void *arg)
{
	leave_page(arg);
	return 0;
}

static void stay(struct waiter *w, uint64_t visit)
{
	leave_page(w); /* of a thread that has been killed, and its number is another's */
	w->visit = visit;
	if (sd_event_add_time_relative(w->in->server->event, &w->leave, CLOCK_MONOTONIC,
				       VISIT_MS * 1000ull, 0, on_leave, w) < 0)
		leave_page(w);
}

/* Who has nothing to wait for makes his call, and so has who is here before his call has been told. */
static void come_to_page(struct gate_waiting *g, const struct gate_visit *v)
{
	struct waiter *w = find(g, v->thread);

	if (!w || w->state != ASKED) {
		g->listen(g->arg);
		w = find(g, v->thread);
	}
	if (w && w->state == ASKED && w->waits)
		stay(w, v->id);
	else
		gate_page_let_go(&g->stops->page, v->id);
}

/* He handles his signal, and makes the call again then, if he lives. */
static void called_from_page(struct gate_waiting *g, uint64_t visit)
{
	for (struct pl_node *n = pl_index_first(&g->waiters, 0, UINTPTR_MAX); n;
	     n = pl_index_next(n, 0, UINTPTR_MAX)) {
		struct waiter *w = (struct waiter *)n;

		if (w->visit == visit) {
			leave_page(w);
			return;
		}
	}
}

static int on_page(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct gate_waiting *g = arg;
	struct gate_visit v;

	if (revents & (EPOLLERR | EPOLLHUP)) {
		gate_waiting_never(g, "its file has been cut off from FUSE (/sys/fs/fuse/connections)");
		return 0;
	}
	for (int i = 0; i < VISITS_AT_ONCE && gate_page_next(&g->stops->page, &v); i++)
		if (v.is_called)
			called_from_page(g, v.id);
		else
			come_to_page(g, &v);
	return 0;
}

bool gate_waiting_under_way(const struct gate_waiting *g, uint64_t dev, uint64_t ino, uint64_t start,
			    uint64_t end, pid_t thread)
{
	for (struct pl_node *n = pl_index_first(&g->waiters, 0, UINTPTR_MAX); n;
	     n = pl_index_next(n, 0, UINTPTR_MAX)) {
		const struct waiter *w = (const struct waiter *)n;

		if (w->state == GOING && w->call.tid != thread && w->core.file_dev == dev &&
		    w->core.file_ino == ino && w->core.file_start < end && w->core.file_end > start)
			return true;
	}
	return false;
}

/* -------------------------------------------------------------------------------------- life, death --
 */

void gate_waiting_init(struct gate_waiting *g, struct server *s, struct gate_stops *stops,
		       void (*listen)(void *arg), void *arg)
{
	g->server = s;
	g->stops = stops;
	g->listen = listen;
	g->arg = arg;
	pthread_mutex_init(&g->lock, NULL);
}

void gate_waiting_start(struct gate_waiting *g)
{
	int err;

	gate_waiting_watch(g);
	err = gate_stop_by_page(g->stops) ? sd_event_add_io(g->server->event, &g->page,
							    g->stops->page.device, EPOLLIN, on_page, g)
					  : 0;
	if (err < 0) /* nobody would let them go */
		gate_waiting_never(g, strerror(-err));
}

/* Their events are gone with the loop; the core still answers. */
void gate_waiting_stop(struct gate_waiting *g)
{
	g->guard = sd_event_source_disable_unref(g->guard);
	g->page = sd_event_source_disable_unref(g->page);
	for (struct pl_node *n = pl_index_first(&g->waiters, 0, UINTPTR_MAX); n;
	     n = pl_index_next(n, 0, UINTPTR_MAX)) {
		struct waiter *w = (struct waiter *)n;

		w->exit = sd_event_source_disable_unref(w->exit);
		w->forget = sd_event_source_disable_unref(w->forget);
		leave_page(w);
	}
}

void gate_waiting_free(struct gate_waiting *g)
{
	while (g->waiters.root)
		waiter_free((struct waiter *)g->waiters.root);
	while (g->refused.root)
		waiter_free((struct waiter *)g->refused.root);
	while (g->alone)
		waiter_free(g->alone);
	pthread_mutex_destroy(&g->lock);
}
