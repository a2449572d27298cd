/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What each user may have here, so that none can take everything from the others (I7). */
#include <errno.h>
#include <stdlib.h>

#include "daemon.h"
#include "os/clock.h"

#define MEMORY_NS 60000000000ull /* as long as the slowest of his buckets */

/* Who has gone takes nothing with him for a minute: else he would be back with all that he has used up.
 */
static void forget_idle(struct server *s, uint64_t now)
{
	struct user *u, *next;

	for (u = LIST_FIRST(&s->users); u; u = next) {
		next = LIST_NEXT(u, link);
		if (u->refs || now - u->gone_ns < MEMORY_NS)
			continue;
		LIST_REMOVE(u, link);
		free(u);
	}
}

void users_free(struct server *s)
{
	struct user *u;

	while ((u = LIST_FIRST(&s->users))) {
		LIST_REMOVE(u, link);
		free(u);
	}
}

void user_keep(struct server *s, struct user *u)
{
	pthread_mutex_lock(&s->lock);
	u->refs++;
	pthread_mutex_unlock(&s->lock);
}

struct user *user_get(struct server *s, uid_t uid)
{
	struct user *u;

	pthread_mutex_lock(&s->lock);
	forget_idle(s, pl_clock_ns());
	LIST_FOREACH(u, &s->users, link)
	if (u->uid == uid)
		break;
	if (!u && (u = calloc(1, sizeof *u))) {
		u->uid = uid;
		LIST_INSERT_HEAD(&s->users, u, link);
	}
	if (u && u->connections == s->limits.connections) {
		u = NULL;
	} else if (u) {
		u->connections++;
		u->refs++;
	}
	pthread_mutex_unlock(&s->lock);
	return u;
}

void user_put(struct server *s, struct user *u, bool connection)
{
	pthread_mutex_lock(&s->lock);
	u->connections -= connection;
	if (--u->refs == 0)
		u->gone_ns = pl_clock_ns();
	pthread_mutex_unlock(&s->lock);
}

/* Each may close a range to new leases, of which the core knows 2048 for all users. */
#define CHANGES 512

int user_change(struct server *s, struct user *u)
{
	int err = 0;

	pthread_mutex_lock(&s->lock);
	if (u->changes == CHANGES) {
		err = pinl_set_error(-EDQUOT,
				     "user %u has %d changes under way here and may have no more",
				     u->uid, CHANGES);
	} else {
		u->changes++;
		u->refs++;
	}
	pthread_mutex_unlock(&s->lock);
	return err;
}

void user_changed(struct server *s, struct user *u)
{
	pthread_mutex_lock(&s->lock);
	u->changes--;
	pthread_mutex_unlock(&s->lock);
	user_put(s, u, false);
}

int user_charge(struct server *s, struct user *u, uint64_t bytes)
{
	int err = 0;

	pthread_mutex_lock(&s->lock);
	if (u->leases == s->limits.leases || bytes > s->limits.bytes - u->bytes) {
		err = pinl_set_error(
			-EDQUOT,
			"user %u has %lu leases of %lu bytes here and may have %lu of %lu; end "
			"some, or have pinleased's limits raised",
			u->uid, u->leases, u->bytes, s->limits.leases, s->limits.bytes);
	} else {
		u->leases++;
		u->bytes += bytes;
		u->refs++;
	}
	pthread_mutex_unlock(&s->lock);
	return err;
}

void user_discharge(struct server *s, struct user *u, uint64_t bytes)
{
	pthread_mutex_lock(&s->lock);
	u->leases--;
	u->bytes -= bytes;
	pthread_mutex_unlock(&s->lock);
	user_put(s, u, false);
}
