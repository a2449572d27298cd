/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whose changes are counted, for how long, and what becomes of it.
 *
 *	COUNT -> ASKED -> worker: loads the programs, enters -> ENTERED, FAILED -> REPLY: TOLD
 *	connection over, or FAILED told: LEFT -> worker: leaves, frees
 *
 * Loading takes seconds and leaving waits for the kernel, so the main loop does neither. The worker also
 * looks whether changes were missed, ends what a killed pinleased has left, keeps the programs from
 * ending by themselves, and unloads them when nobody has wanted them for a while.
 *
 * `lock` covers all but what is the worker's own.
 */
#include "daemon/generation.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/generation_load.h"
#include "daemon/generation_pin.h"
#include "os/clock.h"
#include "os/thread.h"
#include "os/wake.h"

#define MS	  1000000ull
#define BUSY_NS	  (500 * MS)
#define LOOK_NS	  (100 * MS)   /* for missed changes */
#define RETURN_NS (3000 * MS)  /* holders of before have asked again by then */
#define IDLE_NS	  (10000 * MS) /* nobody is counted */
#define AGAIN_NS  (10000 * MS) /* what couldn't be loaded is tried again */

struct counted {
	LIST_ENTRY(counted) link;
	enum { ASKED, ENTERED, FAILED, TOLD, LEFT } stage;
	struct holder *holder; /* main loop's; NULL: gone */
	uint64_t serial, since_ns;
	uint64_t next_ns; /* ASKED: then it is tried */
	pid_t pid;
	uid_t uid;
	int pidfd; /* its own */
	int err;
	char why[sizeof((struct pl_reply *)0)->text];
	struct generation_space space;
};

struct generations {
	struct server *server;
	pthread_t worker;
	pthread_mutex_t lock;
	pthread_cond_t work;
	bool stop;
	LIST_HEAD(, counted) all;
	unsigned n;
	uint64_t missed;
	char state[PL_SOURCE_TEXT - 16]; /* for people */

	/* The worker's own. */
	struct generation_programs *programs;
	bool takes_over;
	uint64_t take_over_ns, idle_ns, passed, unforgotten;
	struct {
		int err;
		uint64_t again_ns;
		char why[PL_SOURCE_TEXT - 16];
	} unloadable;
	bool slot[GENERATION_SPACES];
};

/* -------------------------------------------------------------------------------- the worker -- */

static void sleep_on(struct generations *g, uint64_t ns)
{
	uint64_t until = pl_clock_ns() + ns;
	struct timespec t = {until / 1000000000u, until % 1000000000u};

	pthread_cond_timedwait(&g->work, &g->lock, &t);
}

static const char *dir_of(const struct server *s)
{
	return s->limits.gate ? s->limits.gate_dir : NULL;
}

/* lock held */
static void say_state(struct generations *g)
{
	const char *unpinned = g->programs ? generation_unpinned(g->programs) : NULL;

	if (!g->programs)
		return;
	snprintf(g->state, sizeof g->state, "running: changes of %u process%s are counted%s%s", g->n,
		 g->n == 1 ? "" : "es",
		 unpinned ? "; not beyond a crash of pinleased, as the programs can't be pinned: " : "",
		 unpinned ? unpinned : "");
	if (g->missed) {
		size_t used = strlen(g->state);

		snprintf(g->state + used, sizeof g->state - used,
			 "; %lu time%s the kernel passed over a change: all that was registered was "
			 "dropped then",
			 (unsigned long)g->missed, g->missed == 1 ? "" : "s");
	}
}

/* What may be there a moment later. */
static bool is_passing(int err)
{
	return err == -ENOMEM || err == -EMFILE || err == -ENFILE || err == -EBUSY || err == -EAGAIN;
}

/* Who asks all the time doesn't have it tried all the time. */
static int load(struct generations *g)
{
	int err;

	if (g->programs)
		return 0;
	if (pl_clock_ns() < g->unloadable.again_ns)
		return pinl_set_error(g->unloadable.err, "%s", g->unloadable.why);
	err = generation_load(dir_of(g->server), &g->programs);
	if (is_passing(err))
		return err;
	if (err) {
		g->unloadable.err = err;
		g->unloadable.again_ns = pl_clock_ns() + AGAIN_NS;
		snprintf(g->unloadable.why, sizeof g->unloadable.why, "%s", pinl_error());
		return err;
	}
	g->passed = generation_passed(g->programs);
	g->unforgotten = generation_unforgotten(g->programs);
	return 0;
}

static bool has_ended(const struct counted *c)
{
	struct pollfd p = {.fd = c->pidfd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* Who runs another one's program by now isn't told what that does. The folder itself is its effective
 * user's also then. */
static bool may_see(const struct counted *c)
{
	char path[32];
	struct stat st;

	snprintf(path, sizeof path, "/proc/%d/stat", c->pid);
	return !c->uid || (!stat(path, &st) && st.st_uid == c->uid);
}

static int take_slot(struct generations *g, struct counted *c)
{
	for (unsigned i = 0; i < GENERATION_SPACES; i++)
		if (!g->slot[i]) {
			g->slot[i] = true;
			c->space.slot = i;
			return 0;
		}
	return pinl_set_error(
		-EDQUOT,
		"changes of %d processes are counted already, and of no more: end one, or do "
		"without PINL_SOURCE_GENERATION",
		GENERATION_SPACES);
}

static int check_entered(struct generations *g, struct counted *c)
{
	int err = 0;

	if (!may_see(c))
		err = pinl_set_error(-EPERM, "process %d runs a program that user %u may not look into",
				     c->pid, c->uid);
	if (has_ended(c) || !generation_is_of(g->programs, c->pid, &c->space))
		err = pinl_set_error(-EPERM, "process %d has ended, or runs another program", c->pid);
	if (err)
		generation_leave(g->programs, &c->space);
	return err;
}

/* The number is its process's as long as that lives: so it is looked at last. */
static int enter(struct generations *g, struct counted *c)
{
	int err = load(g);

	if (!err)
		err = take_slot(g, c);
	if (err)
		return err;
	err = generation_enter(g->programs, c->pid, &c->space);
	if (!err)
		err = check_entered(g, c);
	if (err)
		g->slot[c->space.slot] = false;
	return err == -EEXIST ? -EBUSY : err;
}

/* lock held, dropped meanwhile. Its connection of before may be about to be seen to be over. */
static void enter_one(struct generations *g, struct counted *c)
{
	int err;

	pthread_mutex_unlock(&g->lock);
	err = enter(g, c);
	pthread_mutex_lock(&g->lock);
	if (err == -EBUSY && pl_clock_ns() < c->since_ns + BUSY_NS) {
		c->next_ns = pl_clock_ns() + BUSY_NS / 10; /* the others' turn */
		return;
	}
	c->err = err;
	if (err)
		snprintf(c->why, sizeof c->why, "%s", pinl_error());
	if (err && !g->programs)
		snprintf(g->state, sizeof g->state, "missing: %s", c->why);
	if (c->stage == ASKED)
		c->stage = err ? FAILED : ENTERED;
	say_state(g);
	pl_wake(g->server->wake);
}

static void counted_free(struct counted *c)
{
	close(c->pidfd);
	free(c);
}

/* lock held, dropped meanwhile; off the list. */
static void leave_one(struct generations *g, struct counted *c)
{
	LIST_REMOVE(c, link);
	g->n--;
	pthread_mutex_unlock(&g->lock);
	if (c->space.mapped) {
		generation_leave(g->programs, &c->space);
		g->slot[c->space.slot] = false;
	}
	counted_free(c);
	pthread_mutex_lock(&g->lock);
	say_state(g);
}

/* The first that came. */
static struct counted *next_of(struct generations *g, int stage)
{
	struct counted *c, *next = NULL;
	uint64_t now = pl_clock_ns();

	LIST_FOREACH(c, &g->all, link)
	if ((int)c->stage == stage && now >= c->next_ns)
		next = c;
	return next;
}

/* lock held. Where both programs of a kind weren't run for a change, nobody knows which it was. */
static void look_for_missed(struct generations *g)
{
	uint64_t passed = generation_passed(g->programs);
	struct counted *c;

	if (passed == g->passed)
		return;
	g->passed = passed;
	g->missed++;
	LIST_FOREACH(c, &g->all, link)
	if (c->space.mapped) {
		generation_tell_all(c->space.mapped);
		__atomic_add_fetch(&c->space.mapped->missed, 1, __ATOMIC_SEQ_CST);
	}
	say_state(g);
}

/* lock held, dropped meanwhile; it stays on the list, as only the worker takes off. */
static void end_other(struct generations *g, struct counted *c)
{
	bool own;

	pthread_mutex_unlock(&g->lock);
	own = !has_ended(c) && generation_is_of(g->programs, c->pid, &c->space);
	pthread_mutex_lock(&g->lock);
	if (own)
		return;
	if (c->stage == ENTERED) { /* and hasn't been given its maps */
		c->stage = FAILED;
		c->err = -EPERM;
		snprintf(c->why, sizeof c->why, "process %d has ended, or runs another program", c->pid);
	}
	pthread_mutex_unlock(&g->lock);
	generation_leave(g->programs, &c->space);
	g->slot[c->space.slot] = false;
	pthread_mutex_lock(&g->lock);
}

/* The same. Where both programs weren't run for the end of an address space, what is at its address by
 * now is another's, whose changes are none of the holder's business. */
static void look_for_unforgotten(struct generations *g)
{
	uint64_t unforgotten = generation_unforgotten(g->programs);
	struct counted *c;

	if (unforgotten == g->unforgotten)
		return;
	g->unforgotten = unforgotten;
	LIST_FOREACH(c, &g->all, link)
	if (c->space.mapped)
		end_other(g, c);
}

/* lock held, dropped meanwhile. */
static void take_over(struct generations *g)
{
	uint64_t now = pl_clock_ns();

	if (!g->takes_over || now < g->take_over_ns)
		return;
	g->takes_over = false;
	pthread_mutex_unlock(&g->lock);
	generation_take_over(g->server->limits.gate_dir,
			     g->programs ? generation_own(g->programs) : NULL);
	pthread_mutex_lock(&g->lock);
}

/* lock held, dropped meanwhile. */
static void unload_if_idle(struct generations *g)
{
	uint64_t now = pl_clock_ns();

	if (!g->programs || g->n)
		g->idle_ns = now;
	if (now < g->idle_ns + IDLE_NS)
		return;
	pthread_mutex_unlock(&g->lock);
	generation_unload(g->programs);
	pthread_mutex_lock(&g->lock);
	g->programs = NULL;
	*g->state = 0;
}

static void *worker(void *arg)
{
	struct generations *g = arg;
	struct counted *c;

	pthread_mutex_lock(&g->lock);
	g->idle_ns = pl_clock_ns();
	while (!g->stop) {
		if ((c = next_of(g, LEFT)))
			leave_one(g, c);
		else if ((c = next_of(g, ASKED)))
			enter_one(g, c);
		else if (g->programs || g->takes_over)
			sleep_on(g, LOOK_NS);
		else
			pthread_cond_wait(&g->work, &g->lock);
		if (g->programs) {
			generation_renew(g->programs);
			look_for_missed(g);
			look_for_unforgotten(g);
		}
		take_over(g);
		unload_if_idle(g);
	}
	pthread_mutex_unlock(&g->lock);
	return NULL;
}

/* ----------------------------------------------------------------------------- the main loop -- */

static struct generations *start(struct server *s)
{
	struct generations *g = s->generations;
	pthread_condattr_t attr;

	if (g)
		return g;
	g = calloc(1, sizeof *g);
	if (!g)
		return NULL;
	g->server = s;
	pthread_mutex_init(&g->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&g->work, &attr);
	pthread_condattr_destroy(&attr);
	g->takes_over = generation_is_left(s->limits.gate_dir, NULL);
	g->take_over_ns = pl_clock_ns() + RETURN_NS;
	if (pl_thread_start(&g->worker, worker, g)) {
		free(g);
		return NULL;
	}
	s->generations = g;
	return g;
}

void generation_start(struct server *s)
{
	if (generation_is_left(s->limits.gate_dir, NULL))
		start(s);
}

static int refuse(struct holder *h, const struct pl_count_msg *m, int err, const char *why)
{
	pinl_set_error(err, "%s", why);
	return holder_reply(h, &m->head, err, 0);
}

/* lock held */
static int check_share(struct generations *g, const struct holder *h)
{
	struct counted *c;
	unsigned n = 0;

	LIST_FOREACH(c, &g->all, link)
	{
		if (c->holder == h)
			return pinl_set_error(-EBUSY, "this connection has its changes counted already");
		n += c->stage != LEFT && c->uid == h->user->uid;
	}
	if (n >= GENERATION_OF_USER)
		return pinl_set_error(
			-EDQUOT,
			"changes of %d processes of user %u are counted already, and of no "
			"more: end one, or do without PINL_SOURCE_GENERATION",
			GENERATION_OF_USER, h->user->uid);
	return 0;
}

int generation_ask(struct holder *h, const struct pl_count_msg *m)
{
	struct generations *g = start(h->server);
	struct counted *c = g ? calloc(1, sizeof *c) : NULL;
	int err;

	if (!c)
		return refuse(h, m, -ENOMEM, "pinleased is out of memory");
	c->holder = h;
	c->serial = m->head.serial;
	c->since_ns = pl_clock_ns();
	c->pid = h->pid;
	c->uid = h->user->uid;
	c->pidfd = h->pidfd < 0 ? -1 : fcntl(h->pidfd, F_DUPFD_CLOEXEC, 0);
	if (c->pidfd < 0) {
		free(c);
		return refuse(h, m, -EMFILE, "no descriptor left in pinleased");
	}
	pthread_mutex_lock(&g->lock);
	err = check_share(g, h);
	if (!err) {
		LIST_INSERT_HEAD(&g->all, c, link);
		g->n++;
		pthread_cond_signal(&g->work);
	}
	pthread_mutex_unlock(&g->lock);
	if (!err)
		return 0;
	counted_free(c);
	return holder_reply(h, &m->head, err, 0);
}

static int send_map(const struct counted *c, enum pl_counted_map map, uint64_t size, int fd)
{
	union pl_message m;

	pl_message_init(&m, PL_COUNTED);
	m.head.serial = c->serial;
	m.counted.map = map;
	m.counted.size = size;
	return pl_message_send(c->holder->sock, &m, fd);
}

/* 0; -errno: it is to go. */
static int tell(struct counted *c)
{
	int err = c->err;

	if (!err) {
		err = send_map(c, PL_COUNTED_COUNTS, sizeof(struct generation_counts), c->space.counts);
		if (!err)
			err = send_map(c, PL_COUNTED_RING, GENERATION_RING, c->space.ring);
		return err ? err : holder_reply_to(c->holder, c->serial, 0, 0);
	}
	pinl_set_error(err, "%s", c->why);
	return holder_reply_to(c->holder, c->serial, err, 0);
}

/* Who has asked and takes no answer is let go. */
void generation_answer(struct server *s)
{
	struct generations *g = s->generations;
	struct counted *c;
	struct holder *gone;

	if (!g)
		return;
	do {
		gone = NULL;
		pthread_mutex_lock(&g->lock);
		LIST_FOREACH(c, &g->all, link)
		{
			if (gone || (c->stage != ENTERED && c->stage != FAILED))
				continue;
			gone = tell(c) ? c->holder : NULL;
			if (c->stage == FAILED) {
				c->holder = NULL;
				c->stage = LEFT;
				pthread_cond_signal(&g->work);
			} else {
				c->stage = TOLD;
			}
		}
		pthread_mutex_unlock(&g->lock);
		if (gone)
			holder_gone(gone);
	} while (gone);
}

void generation_forget(struct holder *h)
{
	struct generations *g = h->server->generations;
	struct counted *c;

	if (!g)
		return;
	pthread_mutex_lock(&g->lock);
	LIST_FOREACH(c, &g->all, link)
	if (c->holder == h) {
		c->holder = NULL;
		c->stage = LEFT;
		pthread_cond_signal(&g->work);
	}
	pthread_mutex_unlock(&g->lock);
}

void generation_describe(struct server *s, char *text, size_t len)
{
	struct generations *g = s->generations;

	*text = 0;
	if (!g)
		return;
	pthread_mutex_lock(&g->lock);
	if (*g->state)
		snprintf(text, len, "generation: %s", g->state);
	pthread_mutex_unlock(&g->lock);
}

void generation_stop(struct server *s)
{
	struct generations *g = s->generations;
	struct counted *c;

	if (!g)
		return;
	pthread_mutex_lock(&g->lock);
	g->stop = true;
	pthread_cond_signal(&g->work);
	pthread_mutex_unlock(&g->lock);
	pthread_join(g->worker, NULL);
	while ((c = LIST_FIRST(&g->all))) {
		LIST_REMOVE(c, link);
		if (c->space.mapped)
			generation_leave(g->programs, &c->space);
		counted_free(c);
	}
	generation_unload(g->programs);
	if (g->takes_over) /* of one that was killed just before */
		generation_take_over(s->limits.gate_dir, NULL);
	free(g);
	s->generations = NULL;
}
