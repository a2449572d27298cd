/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What each user may have here, so that none can take everything from the others (I7). */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon.h"
#include "os/clock.h"

#define MEMORY_NS 60000000000ull /* as long as the slowest of his buckets */
#define RESERVED  16		 /* connections of root's and our own user's, for commands */

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

static bool is_operator(uid_t uid)
{
	return !uid || uid == geteuid();
}

/* Whoever runs this can always look at it: his own programs don't take his commands' places. */
static unsigned places(const struct server *s, uid_t uid)
{
	unsigned n = s->limits.connections;

	return is_operator(uid) && n <= UINT_MAX - RESERVED ? n + RESERVED : n;
}

bool user_may_come(struct server *s, const struct user *u, uint32_t role)
{
	bool may;

	pthread_mutex_lock(&s->lock);
	may = role == PL_ROLE_COMMAND || u->connections - u->adopted <= s->limits.connections;
	pthread_mutex_unlock(&s->lock);
	return may;
}

bool user_is_locked_out(struct server *s, uid_t uid)
{
	const struct user *u;
	bool full;

	if (!is_operator(uid))
		return false;
	pthread_mutex_lock(&s->lock);
	LIST_FOREACH(u, &s->users, link)
	if (u->uid == uid)
		break;
	full = u && u->connections - u->adopted >= places(s, uid);
	pthread_mutex_unlock(&s->lock);
	return full;
}

struct user *user_get(struct server *s, uid_t uid, bool besides)
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
	if (u && !besides && u->connections - u->adopted >= places(s, uid)) {
		u = NULL;
	} else if (u) {
		u->connections++;
		u->refs++;
	}
	pthread_mutex_unlock(&s->lock);
	return u;
}

/* Who comes back needs a place beside the one that is kept for him. */
void user_adopted(struct holder *h, bool is)
{
	pthread_mutex_lock(&h->server->lock);
	h->user->adopted += is - h->adopted;
	h->adopted = is;
	pthread_mutex_unlock(&h->server->lock);
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
			"user %u has %lu lease%s of %lu bytes here and may have %lu of %lu; end "
			"some, or have pinleased's limits raised",
			u->uid, u->leases, s_of(u->leases), u->bytes, s->limits.leases, s->limits.bytes);
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
