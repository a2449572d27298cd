/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of the files source that calls the core. Invariant: what the gate reports is submitted
 * once, in order, and its end is told once, after its answer; the core's answers come from any thread
 * and go back to the gate, which alone can pass them on.
 *
 * `lock` covers reports and answered. It isn't held when the core is called. Nothing is allocated here.
 */
#include "source/files.h"

#include <sys/prctl.h>

#include "core/change.h"

static void give_back(struct pl_files *s, struct pl_held *h, int err)
{
	pthread_mutex_lock(&s->lock);
	h->err = err;
	h->next = s->answered;
	s->answered = h;
	pl_files_wake(s);
	pthread_mutex_unlock(&s->lock);
}

/* From any thread, and from inside pinl_change_submit(). */
static void answer(struct pinl_change *change, int err)
{
	struct pl_held *h = change->arg;

	give_back(h->src, h, err);
}

static void tell_core(struct pl_files *s, struct pl_held *h)
{
	uint64_t since;

	if (h->state == PL_HELD_DONE) {
		pinl_change_done(s->ctx, h->change.id);
		give_back(s, h, 0);
		return;
	}
	h->change.answer = answer;
	h->change.arg = h;
	since = h->change.since_ns ? h->change.since_ns : UINT64_MAX; /* with an earlier process */
	pl_change_submit_since(s->ctx, &h->change, since); /* from here on it may be the gate's again */
}

void pl_files_report(struct pl_files *s, struct pl_held *h)
{
	h->next = NULL;
	pthread_mutex_lock(&s->lock);
	*s->reports_tail = h;
	s->reports_tail = &h->next;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

/* The oldest report, or NULL when it is time to stop. What is left then, the gate lets go. */
static struct pl_held *next_report(struct pl_files *s)
{
	struct pl_held *h = NULL;

	pthread_mutex_lock(&s->lock);
	while (!s->stop && !s->reports)
		pthread_cond_wait(&s->work, &s->lock);
	if (!s->stop) {
		h = s->reports;
		s->reports = h->next;
		if (!s->reports)
			s->reports_tail = &s->reports;
	}
	pthread_mutex_unlock(&s->lock);
	return h;
}

void *pl_files_reporter(void *src)
{
	struct pl_files *s = src;
	struct pl_held *h;

	prctl(PR_SET_NAME, "pinl-files");
	while ((h = next_report(s)))
		tell_core(s, h);
	return NULL;
}
