/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What each user may have of the time of others: how long his leases hold changes up, how often they are
 * recalled, how long the worker is at his rings. Each is a bucket that is filled by use and runs dry in
 * a minute: when it is full, he gets the least there is, and the others what they had. (I7)
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/resource.h>

#include "daemon.h"
#include "os/clock.h"
#include "os/wake.h"

#define MINUTE_NS     60000000000ull
#define LEAST_HOLD_NS 50000000ull
#define LEAST_WORK_NS 10000000ull

/* What is left of it. */
static uint64_t left(struct bucket *b, uint64_t room, uint64_t now)
{
	uint64_t since = now - b->at_ns < MINUTE_NS ? now - b->at_ns : MINUTE_NS;
	uint64_t run = (unsigned __int128)room * since / MINUTE_NS;

	b->level = b->level < room ? b->level : room;
	b->level = b->level > run ? b->level - run : 0;
	b->at_ns = now;
	return b->level < room ? room - b->level : 0;
}

/* ------------------------------------------------------------------------ changes; ctx->lock held -- */

unsigned share_hold_ms(const struct server *s)
{
	return s->limits.hold_ms ? s->limits.hold_ms : 3 * s->limits.ceiling_ms;
}

static uint64_t hold_room(const struct server *s)
{
	return share_hold_ms(s) * 1000000ull;
}

/* Once a minute, by the main loop. */
static void complain(struct server *s, struct user *u, uint64_t now)
{
	if (u->complained_ns && now - u->complained_ns < MINUTE_NS)
		return;
	u->complained_ns = now;
	atomic_store(&u->complain, true);
	pl_wake(s->wake);
}

uint64_t share_grace(struct pinl_lease *l, uint64_t now)
{
	struct held_lease *hl = l->cookie;
	struct server *s = hl->holder->server;
	struct user *u = hl->holder->user;
	uint64_t grace = l->policy.grace_ms * 1000000ull, room = left(&u->hold, hold_room(s), now);

	if (grace <= room)
		return grace;
	if (room > LEAST_HOLD_NS)
		return room;
	complain(s, u, now);
	return grace < LEAST_HOLD_NS ? grace : LEAST_HOLD_NS;
}

/* Time in which several of his leases hold changes counts once. */
void share_held(struct pinl_lease *l, uint64_t since)
{
	struct held_lease *hl = l->cookie;
	struct user *u = hl->holder->user;
	uint64_t now = pl_clock_ns();

	left(&u->hold, hold_room(hl->holder->server), now);
	since = since > u->held_until_ns ? since : u->held_until_ns;
	if (since < hl->holder->server->since_ns) /* before that he wasn't asked */
		since = hl->holder->server->since_ns;
	u->hold.level += now > since ? now - since : 0;
	u->held_until_ns = now;
}

void share_noticed(struct user *u)
{
	u->notices.level++;
}

int share_may_lease(struct server *s, struct user *u)
{
	uint64_t room;

	pthread_mutex_lock(&s->ctx->lock);
	room = left(&u->notices, s->limits.notices, pl_clock_ns());
	pthread_mutex_unlock(&s->ctx->lock);
	return room ? 0
		    : pinl_set_error(
			      -EDQUOT,
			      "leases of user %u are recalled more than %u times a minute; wait a "
			      "little, or have pinleased's limits raised",
			      u->uid, s->limits.notices);
}

/* What he has used up of the two. Asking runs nothing dry. */
void share_used(struct server *s, const struct user *u, uint64_t *hold_ns, uint64_t *notices)
{
	uint64_t now = pl_clock_ns();
	struct bucket hold, recalls;

	pthread_mutex_lock(&s->ctx->lock);
	hold = u->hold;
	recalls = u->notices;
	pthread_mutex_unlock(&s->ctx->lock);
	*hold_ns = hold_room(s) - left(&hold, hold_room(s), now);
	*notices = s->limits.notices - left(&recalls, s->limits.notices, now);
}

/*
 * The kernel gives out the lowest number, so a high one says that few are left. Then nobody gets more
 * than an equal share, one of which is kept for who comes next. A file with leases takes one, a
 * connection two; that several leases may share one doesn't help him then.
 */
int share_descriptor(struct server *s, struct user *u, int fd)
{
	uint64_t his, users = 1;
	struct rlimit r;
	struct user *it;

	if (getrlimit(RLIMIT_NOFILE, &r) || (rlim_t)fd < r.rlim_cur / 4 * 3)
		return 0;
	pthread_mutex_lock(&s->lock);
	his = u->leases + 2 * u->connections + u->laters;
	LIST_FOREACH(it, &s->users, link)
	users += it->refs > 0;
	pthread_mutex_unlock(&s->lock);
	if (his <= r.rlim_cur / users)
		return 0;
	return pinl_set_error(-EDQUOT,
			      "pinleased has few descriptors left, and user %u has his share; end some "
			      "leases, or have LimitNOFILE= raised",
			      u->uid);
}

/* Places of the gate are given as descriptors are. Any thread. */
int share_guard(struct server *s, struct user *u, uint64_t places)
{
	uint64_t users = 1;
	struct user *it;
	bool may;

	pthread_mutex_lock(&s->lock);
	LIST_FOREACH(it, &s->users, link)
	users += it->guarded > 0;
	may = s->guarded < places / 4 * 3 || (u->guarded < places / users && s->guarded < places);
	s->guarded += may;
	u->guarded += may;
	pthread_mutex_unlock(&s->lock);
	return may ? 0
		   : pinl_set_error(
			     -EDQUOT,
			     "of the gate's %lu places few are left, and user %u has his share; end "
			     "some leases with REFUSE, or lease in larger pieces",
			     places, u->uid);
}

void share_unguard(struct server *s, struct user *u)
{
	pthread_mutex_lock(&s->lock);
	s->guarded--;
	u->guarded--;
	pthread_mutex_unlock(&s->lock);
}

/* Main loop. */
void share_complain(struct server *s)
{
	struct user *u;

	pthread_mutex_lock(&s->lock);
	LIST_FOREACH(u, &s->users, link)
	if (atomic_exchange(&u->complain, false))
		fprintf(stderr,
			"pinleased: leases of user %u have held changes up for more than %lu ms of a "
			"minute: for now they are given %llu ms\n",
			u->uid, hold_room(s) / 1000000, LEAST_HOLD_NS / 1000000);
	pthread_mutex_unlock(&s->lock);
}

/* ---------------------------------------------------------------------- work at rings; any thread -- */

static uint64_t work_room(const struct server *s)
{
	return 10 * s->ctx->opts.drain_ms * 1000000ull;
}

/* The deadline for some of it, not later than `deadline`. */
uint64_t share_work(struct holder *h, uint64_t deadline)
{
	struct server *s = h->server;
	uint64_t now = pl_clock_ns(), room;

	pthread_mutex_lock(&s->lock);
	room = left(&h->user->work, work_room(s), now);
	pthread_mutex_unlock(&s->lock);
	room = room > LEAST_WORK_NS ? room : LEAST_WORK_NS;
	return deadline < now + room ? deadline : now + room;
}

uint64_t share_patience(struct holder *h, uint64_t ns)
{
	struct server *s = h->server;
	uint64_t now = pl_clock_ns(), room;

	pthread_mutex_lock(&s->lock);
	room = left(&h->user->work, work_room(s), now);
	pthread_mutex_unlock(&s->lock);
	return now + (room < ns ? room : ns);
}

void share_worked(struct holder *h, uint64_t since)
{
	struct server *s = h->server;

	pthread_mutex_lock(&s->lock);
	h->user->work.level += pl_clock_ns() - since;
	pthread_mutex_unlock(&s->lock);
}
