/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Notices that the link has got, before the core hears of them: pinleased may have said more of a recall
 * that a stopped holder finds when it moves again, behind it or by the next connection. All of this is
 * the link's own. Invariant: each is in `got`, in `stale`, with the reporter, in `answers` or free.
 */
#include "source/remote.h"

#include <string.h>

void pl_remote_append(struct pl_remote_notice ***tail, struct pl_remote_notice *n)
{
	n->next = NULL;
	**tail = n;
	*tail = &n->next;
}

/*
 * Of a stopped holder's recalls pinleased has said more by the time that it moves again. It is to be
 * known before they are recalls to the core, which would force at once. lock held
 */
void pl_remote_note_over(struct pl_remote *s, const struct pl_notice_msg *m)
{
	uint64_t over = m->taken_ns ? m->taken_ns : m->gone_ns;

	for (struct pl_remote_notice *n = s->got; over && n; n = n->next)
		if (n->what == PL_NOTICE_RECALL && n->lease == m->lease && n->seq <= m->seq &&
		    !n->over_ns)
			n->over_ns = over;
}

static bool is_open(const struct pl_remote_notice *n)
{
	return n->what == PL_NOTICE_RECALL && !n->over_ns;
}

/* To the reporter, if its lease is there still. lock held */
static void report(struct pl_remote *s, struct pl_remote_notice *n)
{
	bool lives = n->what == PL_NOTICE_REFUSED || pl_remote_find(s, n->lease);

	n->order.change.over_ns = n->over_ns;
	pl_remote_append(lives ? &s->reports_tail : &s->answers_tail, n);
	pthread_cond_signal(&s->work);
}

/* Of a connection that is broken not what the next one may say more of. */
void pl_remote_pass_on(struct pl_remote *s, bool broken)
{
	struct pl_remote_notice *n = s->got, *next;

	pthread_mutex_lock(&s->lock);
	s->got = NULL;
	s->got_tail = &s->got;
	for (; n; n = next) {
		next = n->next;
		if (broken && is_open(n))
			pl_remote_append(&s->got_tail, n);
		else
			report(s, n);
	}
	pthread_mutex_unlock(&s->lock);
}

/* pinleased keeps who waits for its own files, and what it has begun itself: the next one tells again.
 */
static bool is_told_again(const struct pl_remote *s, const struct pl_remote_notice *n)
{
	return s->resumed && (!strcmp(n->source, "files") || !strcmp(n->source, "restart"));
}

/*
 * Recalls that an earlier connection has left. A pinleased that knows the leases tells of them again, or
 * has forced them meanwhile and says that; they are kept as long as it may turn out not to know one.
 * For another, and for those who have gone on by themselves, nobody waits any more.
 */
void pl_remote_pass_on_left(struct pl_remote *s)
{
	struct pl_remote_notice *n = s->got, *next, **tail = &s->got;

	s->got = NULL;
	for (; n; n = next) {
		next = n->next;
		if (n->connection != s->connection && is_told_again(s, n)) {
			n->next = s->stale;
			s->stale = n;
			continue;
		}
		if (n->connection != s->connection) {
			n->over_ns = pl_remote_went_on(n, s->lost_ns);
			if (pl_remote_may_be_made(n))
				n->gone_ns = n->over_ns;
		}
		pl_remote_append(&tail, n);
	}
	s->got_tail = tail;
	pl_remote_pass_on(s, false);
}

/* lock held */
void pl_remote_pass_on_stale(struct pl_remote *s)
{
	struct pl_remote_notice *n;

	while ((n = s->stale)) {
		s->stale = n->next;
		report(s, n);
	}
}

static void drop_stale(struct pl_remote *s)
{
	struct pl_remote_notice *n;

	while ((n = s->stale)) {
		s->stale = n->next;
		n->next = s->free;
		s->free = n;
	}
}

/* The next pinleased may be the one that doesn't know a lease, if this one hasn't been told of all. */
void pl_remote_keep_stale(struct pl_remote *s)
{
	struct pl_remote_notice *n;

	if (s->untold == UINT64_MAX)
		drop_stale(s);
	while ((n = s->stale)) {
		s->stale = n->next;
		pl_remote_append(&s->got_tail, n);
	}
}

/* Is there a notice for what comes? */
bool pl_remote_has_room(struct pl_remote *s)
{
	if (!s->free)
		drop_stale(s);
	return s->free;
}
