/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The promises of each row, checked. What must hold follows from the policy and from what the lease said
 * of itself: whether this change is held or only told afterwards. One broken promise fails the row, and
 * the demo.
 */
#include "demo.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#define SLACK_MS 1000 /* for a slow machine; the bound is what counts, not its size */

const struct pinl_event *demo_event(const struct demo_result *r, enum pinl_event_type type)
{
	for (unsigned i = 0; i < r->n_events; i++)
		if (r->events[i].ev.type == type)
			return &r->events[i].ev;
	return NULL;
}

unsigned demo_count_events(const struct demo_result *r, enum pinl_event_type type)
{
	unsigned n = 0;

	for (unsigned i = 0; i < r->n_events; i++)
		n += r->events[i].ev.type == type;
	return n;
}

double demo_ms(const struct demo_result *r, uint64_t time_ns)
{
	return (double)((int64_t)time_ns - (int64_t)r->actor.start_ns) / 1e6;
}

double demo_waited_ms(const struct demo_result *r)
{
	return demo_ms(r, r->actor.end_ns);
}

void demo_promise(struct demo_result *r, bool kept, const char *fmt, ...)
{
	struct demo_check *c = &r->checks[r->n_checks];
	va_list ap;

	if (!kept)
		r->verdict = FAILED;
	if (r->n_checks == sizeof(r->checks) / sizeof(*r->checks))
		return;
	r->n_checks++;
	c->kept = kept;
	va_start(ap, fmt);
	vsnprintf(c->promise, sizeof(c->promise), fmt, ap);
	va_end(ap);
}

static void say(struct demo_result *r, enum demo_verdict verdict, const char *fmt, va_list ap)
{
	r->verdict = verdict;
	vsnprintf(r->reason, sizeof(r->reason), fmt, ap);
}

void demo_fail(struct demo_result *r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(r, FAILED, fmt, ap);
	va_end(ap);
}

void demo_not_here(struct demo_result *r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(r, NOT_HERE, fmt, ap);
	va_end(ap);
}

/* What the machine or the user's limits don't allow is no promise broken. */
void demo_cant(struct demo_result *r, int err, const char *fmt, ...)
{
	bool limits = err == -EPERM || err == -EACCES || err == -ENOSYS || err == -ENOMEM ||
		      err == -EOPNOTSUPP;
	va_list ap;

	va_start(ap, fmt);
	say(r, limits ? NOT_HERE : FAILED, fmt, ap);
	va_end(ap);
}

/* ------------------------------------------------------------------------------ parts of promises -- */

static uint64_t time_of(const struct demo_result *r, enum pinl_event_type type)
{
	const struct pinl_event *ev = demo_event(r, type);

	return ev ? ev->time_ns : 0;
}

static bool written_to(const struct demo_write *w, enum demo_place place)
{
	return w->res == (int)DEMO_PAGE && w->place == place;
}

static bool in_place(const struct demo_write *w)
{
	return written_to(w, IN_FILE) || written_to(w, IN_MAPPING);
}

/* With kernels before 6.13 the device's own pages can't be looked at: then it is reported without a
 * number. */
static bool orphan_reported(const struct demo_result *r, uint64_t bytes)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < r->n_events; i++) {
		const struct pinl_event *ev = &r->events[i].ev;

		if (ev->type == PINL_EV_ORPHAN_END && ev->err)
			return ev->err == -EOPNOTSUPP;
		if (ev->type == PINL_EV_ORPHAN_END)
			sum += ev->bytes;
	}
	return sum == bytes;
}

static bool in_summary(const struct demo_result *r, unsigned bytes)
{
	char words[48];

	snprintf(words, sizeof(words), "it changed %u bytes", bytes);
	return strstr(r->summary, words) || strstr(r->summary, "what it wrote there is not known");
}

static void check_went_through(struct demo_result *r)
{
	demo_promise(r, !r->actor.err, "the truncate was done");
	demo_promise(r, !r->grow_err, "so was the one that gives the size back");
	demo_promise(r, r->file_emptied,
		     "the file is empty, and no byte of the device's came into it since");
}

/* ---------------------------------------------------------------------------------- the rows -- */

static void check_bare(struct demo_result *r)
{
	const struct demo_write *after = &r->writes[AFTER];

	r->verdict = SHOWN;
	check_went_through(r);
	demo_promise(
		r, after->res == (int)DEMO_PAGE && after->end == NOWHERE,
		"the loss shows: the device says %u bytes, and they are in no file and in no mapping",
		DEMO_PAGE);
}

/* No source told of it: then the look at the file when the lease ends has to find it. */
static void check_keep_untold(struct demo_result *r)
{
	demo_promise(r, demo_event(r, PINL_EV_ORPHAN),
		     "at the end of the lease the holder was told that its pages are orphans");
	demo_promise(r, strstr(r->summary, "orphan"), "the summary of the program says so too");
}

static void check_keep_told(struct demo_result *r)
{
	const struct demo_write *during = &r->writes[DURING], *after = &r->writes[AFTER];

	demo_promise(r, demo_event(r, PINL_EV_ORPHAN), "the holder was told that its pages are orphans");
	if (r->held && !r->afar)
		demo_promise(r, time_of(r, PINL_EV_ORPHAN) <= r->actor.end_ns,
			     "and that before the file changed");
	demo_promise(r, during->res == (int)DEMO_PAGE, "the device writes there undisturbed");
	demo_promise(r, orphan_reported(r, 2 * DEMO_PAGE),
		     "at the end it was told that %u bytes went there", 2 * DEMO_PAGE);
	demo_promise(r, in_summary(r, 2 * DEMO_PAGE), "the summary of the program says so too");
	if (after->end == IN_ORPHAN) /* where the device's pages can be read: Linux 6.13 */
		demo_promise(r, during->end == IN_ORPHAN,
			     "until then pinl_lease_read() finds every byte of them");
}

static void check_keep(struct demo_result *r)
{
	check_went_through(r);
	demo_promise(r, r->writes[AFTER].res == (int)DEMO_PAGE, "the device goes on undisturbed");
	if (r->told)
		check_keep_told(r);
	else
		check_keep_untold(r);
}

static bool said_late(const struct demo_result *r)
{
	for (unsigned i = 0; i < r->n_events; i++)
		if (r->events[i].ev.type == PINL_EV_DEGRADED && r->events[i].ev.err == -EALREADY)
			return true;
	return false;
}

static void check_told_late(struct demo_result *r)
{
	demo_promise(r, said_late(r), "it was said that this change could not be held");
	demo_promise(r, demo_event(r, PINL_EV_ORPHAN), "the holder was told that its pages are orphans");
	demo_promise(r, orphan_reported(r, DEMO_PAGE),
		     "at their end it was told that %u bytes went there", DEMO_PAGE);
	demo_promise(r, in_summary(r, DEMO_PAGE), "the summary of the program says so too");
}

static void check_held(struct demo_result *r)
{
	unsigned bound = r->plan->grace_ms + 2 * DEMO_DRAIN_MS + SLACK_MS;
	uint64_t released = time_of(r, PINL_EV_RELEASED);

	demo_promise(r, in_place(&r->writes[DURING]),
		     "the device's write during the grace was done as ever");
	demo_promise(r, released && released <= r->actor.end_ns,
		     "the actor went on only after the device was off the pages");
	demo_promise(r, demo_waited_ms(r) <= bound,
		     "it waited no longer than grace and force take at most (%u ms)", bound);
	demo_promise(r, !demo_event(r, PINL_EV_ORPHAN), "no page was an orphan at any time");
}

static void check_answered(struct demo_result *r)
{
	const struct pinl_event *released = demo_event(r, PINL_EV_RELEASED);

	demo_promise(r, r->answer_ns && !r->answer_err && !demo_event(r, PINL_EV_FORCED),
		     "the holder's answer was taken, nothing was forced");
	demo_promise(r, released && demo_ms(r, released->time_ns) < r->plan->grace_ms,
		     "the device was off the pages long before the deadline");
}

static void check_forced(struct demo_result *r)
{
	static const enum pinl_outcome wanted[] = {[PINL_THEN_FAIL] = PINL_OUT_FAIL,
						   [PINL_THEN_SCRATCH] = PINL_OUT_SCRATCH,
						   [PINL_THEN_COPY] = PINL_OUT_COPY};
	const struct pinl_event *forced = demo_event(r, PINL_EV_FORCED),
				*notice = demo_event(r, PINL_EV_NOTICE);
	enum pinl_outcome outcome = wanted[r->plan->then];

	demo_promise(r, forced && notice && forced->time_ns >= notice->deadline_ns,
		     "nothing was forced before the deadline");
	demo_promise(r, forced && forced->outcome == outcome && !forced->err,
		     "then the device was forced off: %s", pinl_outcome_name(outcome));
}

static void check_outcome(struct demo_result *r)
{
	const struct demo_write *w = r->writes, *after = &w[AFTER];

	if (r->plan->answers || r->plan->then == PINL_THEN_FAIL) {
		demo_promise(r, after->res == -EFAULT,
			     "a request after that fails with EFAULT, so nothing is believed written");
	} else if (r->plan->then == PINL_THEN_SCRATCH) {
		demo_promise(r, written_to(after, IN_SCRATCH),
			     "a request after that succeeds, in memory of no meaning");
		demo_promise(r, !r->quiet_page_kept, "the old content is not in that memory");
	} else {
		demo_promise(r, written_to(after, IN_COPY),
			     "a request after that succeeds, in the copy");
		demo_promise(r, r->quiet_page_kept, "the CPU finds the old content at the old address");
		demo_promise(r, w[BEFORE].end == IN_COPY && w[DURING].end == IN_COPY,
			     "and all that the device wrote before");
	}
}

static void check_recall(struct demo_result *r)
{
	demo_promise(r, demo_event(r, PINL_EV_NOTICE), "the holder got a notice");
	if (r->held)
		check_held(r);
	else
		check_told_late(r);
	if (r->plan->answers)
		check_answered(r);
	else
		check_forced(r);
	check_outcome(r);
	check_went_through(r);
}

static void check_refuse(struct demo_result *r)
{
	demo_promise(r, r->actor.err == -EBUSY, "the actor got EBUSY");
	demo_promise(r, demo_event(r, PINL_EV_REFUSED), "the holder was told");
	demo_promise(r, r->file_intact, "the file is intact");
	demo_promise(r, in_place(&r->writes[AFTER]) && r->writes[BEFORE].end == r->writes[AFTER].end,
		     "the device goes on in the same pages");
}

static void check_follow(struct demo_result *r)
{
	uint64_t followed = time_of(r, PINL_EV_FOLLOWED);

	demo_promise(r, !r->actor.err && !r->grow_err, "the truncate was done");
	demo_promise(r, followed, "the device's page table was invalidated");
	if (r->held)
		demo_promise(r, followed <= r->actor.end_ns, "and that before the actor went on");
	demo_promise(r, written_to(&r->writes[AFTER], IN_FILE),
		     "its next write is in the file's new page");
	demo_promise(r, !demo_event(r, PINL_EV_ORPHAN), "no page was an orphan at any time");
}

static void check_by_policy(struct demo_result *r)
{
	switch (r->plan->policy) {
	case PINL_KEEP:
		check_keep(r);
		break;
	case PINL_RECALL:
		check_recall(r);
		break;
	case PINL_REFUSE:
		check_refuse(r);
		break;
	case PINL_FOLLOW:
		check_follow(r);
		break;
	}
	demo_promise(r, !demo_event(r, PINL_EV_DROPPED) && !demo_event(r, PINL_EV_LEAK),
		     "no event was lost, no lease leaked");
}

/*
 * A refused lease is right where a source is missing. An explicit call needs no source, so there only
 * COPY may be refused: it needs a userfaultfd and a kernel that clones buffers.
 */
static void check_refused_lease(struct demo_result *r)
{
	const struct demo_plan *p = r->plan;
	bool may = p->actor == BY_PROCESS || (p->policy == PINL_RECALL && p->then == PINL_THEN_COPY);

	if (r->lease_err == -EOPNOTSUPP && !may)
		demo_promise(r, false, "a lease with this policy can be had here");
}

void demo_check(struct demo_result *r)
{
	if (r->verdict == NOT_HERE)
		check_refused_lease(r);
	if (r->verdict != WENT_WELL)
		return;
	if (r->timeout) {
		demo_fail(r, r->reported ? "The event that ends the recall did not come within 6 s"
					 : "The actor did not come back within 6 s");
		return;
	}
	demo_promise(r, in_place(&r->writes[BEFORE]),
		     "what the device wrote before the change was there");
	if (r->plan->run == RUN_BARE)
		check_bare(r);
	else
		check_by_policy(r);
}
