/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From a result to the moments of its timeline, in the order of time. Who did it decides the lane. */
#include "demo.h"

#include <errno.h>
#include <string.h>

struct line {
	struct demo_moment *moments;
	unsigned n;
};

static struct demo_moment *add(struct line *line, uint64_t time_ns, enum demo_lane lane,
			       const char *kind)
{
	static struct demo_moment overflow;
	unsigned at = line->n;

	if (!time_ns || line->n == DEMO_MAX_MOMENTS)
		return &overflow;
	for (; at > 0 && line->moments[at - 1].time_ns > time_ns; at--)
		line->moments[at] = line->moments[at - 1];
	line->n++;
	line->moments[at] = (struct demo_moment){.time_ns = time_ns, .lane = lane, .kind = kind};
	return &line->moments[at];
}

static void label(struct demo_moment *m, const char *first, const char *second)
{
	snprintf(m->label[0], sizeof(m->label[0]), "%s", first);
	snprintf(m->label[1], sizeof(m->label[1]), "%s", second ? second : "");
}

/* -------------------------------------------------------------------------- device and actor -- */

static const char *write_title(const struct demo_write *w)
{
	static const char *const titles[] = {
		[IN_FILE] = "the bytes are in the file",
		[IN_MAPPING] = "the bytes are in the private page of the mapping",
		[IN_SCRATCH] = "the bytes are in scratch memory",
		[IN_COPY] = "the bytes are in the private copy",
		[IN_ORPHAN] =
			"the bytes are in an orphan page: pinl_lease_read() finds them, nobody else",
		[NOWHERE] = "nobody can find the bytes",
	};

	return titles[w->place];
}

static void add_write(struct line *line, const struct demo_result *r, enum demo_when when)
{
	const struct demo_write *w = &r->writes[when];
	struct demo_moment *m;
	char where[24];

	if (w->place == NOT_DONE)
		return;
	m = add(line, w->time_ns, LANE_DEVICE, demo_place_name(w->place));
	snprintf(where, sizeof(where), "to %s", demo_place_name(w->place));
	if (w->place == GOT_ERROR) {
		label(m, "write fails", tool_errno_name(w->res));
		snprintf(m->title, sizeof(m->title), "the request ended with %s",
			 tool_errno_name(w->res));
	} else {
		label(m, "writes", w->place == NOWHERE ? "to nowhere" : where);
		snprintf(m->title, sizeof(m->title), "the device reports %d bytes; %s", w->res,
			 write_title(w));
	}
}

static void add_actor(struct line *line, const struct demo_result *r)
{
	const char *call = r->plan->actor == BY_PROCESS ? "ftruncate" : "pinl_ftruncate";
	struct demo_moment *m = add(line, r->actor.start_ns, LANE_ACTOR, "call");

	label(m, call, "to 0");
	snprintf(m->title, sizeof(m->title), "%s calls %s(fd, 0)",
		 r->plan->actor == BY_PROCESS ? "the second process" : "a thread of the holder", call);
	m = add(line, r->actor.end_ns, LANE_ACTOR, r->actor.err ? "error" : "call");
	label(m, r->actor.err ? "fails" : "returns", r->actor.err ? tool_errno_name(r->actor.err) : "0");
	snprintf(m->title, sizeof(m->title), "the call returns after %.3f ms: %s", demo_waited_ms(r),
		 r->actor.err ? tool_errno_name(r->actor.err) : "done");
}

/* -------------------------------------------------------------------------------- the events -- */

static const struct {
	enum demo_lane lane;
	const char *kind, *label;
} shapes[] = {
	[PINL_EV_NOTICE] = {LANE_HOLDER, "notice", "notice"},
	[PINL_EV_QUIESCED] = {LANE_PINLEASE, "done", "answer taken"},
	[PINL_EV_FORCED] = {LANE_PINLEASE, "forced", "forced"},
	[PINL_EV_RELEASED] = {LANE_PINLEASE, "done", "released"},
	[PINL_EV_ANSWERED] = {LANE_PINLEASE, "done", "lets go"},
	[PINL_EV_REFUSED] = {LANE_PINLEASE, "forced", "refuses"},
	[PINL_EV_FOLLOWED] = {LANE_PINLEASE, "done", "invalidates"},
	[PINL_EV_ORPHAN] = {LANE_HOLDER, "orphan", "told: orphan"},
	[PINL_EV_ORPHAN_END] = {LANE_HOLDER, "orphan", "told: end"},
	[PINL_EV_DEGRADED] = {LANE_HOLDER, "orphan", "told: too late"},
	[PINL_EV_LEAK] = {LANE_PINLEASE, "error", "leak"},
	[PINL_EV_DROPPED] = {LANE_PINLEASE, "error", "dropped"},
};

/* Not drawn: what was said when the lease was made, and answers to reports of what had happened. */
static bool skipped(const struct demo_result *r, const struct pinl_event *ev)
{
	if (ev->type == PINL_EV_ANSWERED)
		return !r->held || ev != demo_event(r, PINL_EV_ANSWERED);
	return ev->type == PINL_EV_DEGRADED && ev->err == -EOPNOTSUPP;
}

static void add_event(struct line *line, const struct demo_result *r, const struct demo_event *e)
{
	enum pinl_event_type type = e->ev.type;
	struct demo_moment *m;
	char second[24] = "";

	if ((unsigned)type >= sizeof(shapes) / sizeof(*shapes) || skipped(r, &e->ev))
		return;
	if (type == PINL_EV_FORCED)
		snprintf(second, sizeof(second), "to %s", pinl_outcome_name(e->ev.outcome));
	else if (type == PINL_EV_ORPHAN_END && !e->ev.err)
		snprintf(second, sizeof(second), "%lu bytes", (unsigned long)e->ev.bytes);
	else if (type == PINL_EV_NOTICE)
		snprintf(second, sizeof(second), "by %s", e->ev.source);
	m = add(line, e->ev.time_ns, shapes[type].lane, shapes[type].kind);
	label(m, shapes[type].label, second);
	snprintf(m->title, sizeof(m->title), "%s", e->text);
}

static void add_deadline(struct line *line, const struct demo_result *r)
{
	const struct pinl_event *notice = demo_event(r, PINL_EV_NOTICE);
	struct demo_moment *m;

	if (!notice || !demo_event(r, PINL_EV_FORCED))
		return;
	m = add(line, notice->deadline_ns, LANE_PINLEASE, "forced");
	label(m, "deadline", NULL);
	snprintf(m->title, sizeof(m->title), "the grace of %u ms is over", r->plan->grace_ms);
}

unsigned demo_timeline(const struct demo_result *r, struct demo_moment moments[DEMO_MAX_MOMENTS])
{
	struct line line = {.moments = moments};
	struct demo_moment *m;

	for (int i = 0; i < NR_WRITES; i++)
		add_write(&line, r, i);
	add_actor(&line, r);
	for (unsigned i = 0; i < r->n_events; i++)
		add_event(&line, r, &r->events[i]);
	add_deadline(&line, r);
	m = add(&line, r->answer_ns, LANE_HOLDER, "done");
	label(m, "answers", NULL);
	snprintf(m->title, sizeof(m->title), "the holder calls pinl_quiesced()");
	return line.n;
}
