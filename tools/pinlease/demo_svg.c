/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One timeline as SVG. Each moment has a column of its own, at least COLUMN wide, so that what is
 * microseconds apart can be read; what is left of the width is given out in proportion to time, so that
 * a long wait looks long. The axis says each moment's time. Colours come from the page's style.
 */
#include "demo.h"

#define LEFT   104
#define RIGHT  64
#define COLUMN 76
#define WIDTH  1090
#define LANE   62
#define TOP    30

struct drawing {
	FILE *out;
	const struct demo_result *r;
	struct demo_moment moments[DEMO_MAX_MOMENTS];
	double x[DEMO_MAX_MOMENTS];
	unsigned n;
	double width;
};

static int lane_y(enum demo_lane lane)
{
	return TOP + LANE * (int)lane;
}

/* The device's first write comes when it comes; time is shown from the call on. */
static double part_of(const struct drawing *d, uint64_t time_ns)
{
	uint64_t first = d->r->actor.start_ns, last = d->moments[d->n - 1].time_ns;

	return time_ns > first && last > first ? (double)(time_ns - first) / (double)(last - first) : 0;
}

static void place(struct drawing *d)
{
	double fixed = (double)(d->n - 1) * COLUMN, rest;

	d->width = LEFT + fixed + RIGHT > WIDTH ? LEFT + fixed + RIGHT : WIDTH;
	rest = d->width - LEFT - RIGHT - fixed;
	for (unsigned i = 0; i < d->n; i++)
		d->x[i] = LEFT + i * COLUMN + part_of(d, d->moments[i].time_ns) * rest;
}

/* Any time, also between moments. */
static double x_of(const struct drawing *d, uint64_t time_ns)
{
	unsigned i = 1;
	double span, part;

	if (time_ns <= d->moments[0].time_ns)
		return d->x[0];
	while (i < d->n && d->moments[i].time_ns < time_ns)
		i++;
	if (i == d->n)
		return d->x[d->n - 1];
	span = (double)(d->moments[i].time_ns - d->moments[i - 1].time_ns);
	part = (double)(time_ns - d->moments[i - 1].time_ns) / (span > 0 ? span : 1);
	return d->x[i - 1] + part * (d->x[i] - d->x[i - 1]);
}

static void text(const struct drawing *d, double x, double y, const char *class, const char *words)
{
	fprintf(d->out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, class);
	demo_html_text(d->out, words);
	fputs("</text>\n", d->out);
}

static void bar(const struct drawing *d, double from, double to, double y, double height,
		const char *class, const char *title)
{
	fprintf(d->out,
		"<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"3\" "
		"class=\"%s\"><title>",
		from, y - height / 2, to > from ? to - from : 1, height, class);
	demo_html_text(d->out, title);
	fputs("</title></rect>\n", d->out);
}

static void lanes(const struct drawing *d)
{
	static const char *const names[NR_LANES] = {"actor", "holder", "device", "pinlease"};

	for (int i = 0; i < NR_LANES; i++) {
		fprintf(d->out, "<line x1=\"%d\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" class=\"lane\"/>\n",
			LEFT - 14, d->width - 8, lane_y(i), lane_y(i));
		text(d, LEFT - 24, lane_y(i) + 4, "name", names[i]);
	}
}

/* Where much time takes little room. */
static void quiet(const struct drawing *d, unsigned i, double y)
{
	double ms = (double)(d->moments[i].time_ns - d->moments[i - 1].time_ns) / 1e6;
	char words[40];

	if (ms < 5 || d->x[i] - d->x[i - 1] < 130)
		return;
	snprintf(words, sizeof(words), "\u00b7 \u00b7 \u00b7 %.0f ms \u00b7 \u00b7 \u00b7", ms);
	text(d, (d->x[i] + d->x[i - 1]) / 2, y, "time", words);
}

static void axis(const struct drawing *d)
{
	double bottom = lane_y(NR_LANES) - 2;
	char time[24];

	for (unsigned i = 0; i < d->n; i++) {
		fprintf(d->out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%.1f\" class=\"tick\"/>\n",
			d->x[i], d->x[i], lane_y(d->moments[i].lane) + 34, bottom - 12);
		snprintf(time, sizeof(time), "%.2f", demo_ms(d->r, d->moments[i].time_ns));
		text(d, d->x[i], bottom, "time", time);
		if (i)
			quiet(d, i, bottom);
	}
	text(d, LEFT - 24, bottom, "name unit", "ms");
}

/* -------------------------------------------------------------------------------------- bars -- */

static void actor_bar(const struct drawing *d)
{
	double from = x_of(d, d->r->actor.start_ns), to = x_of(d, d->r->actor.end_ns);
	bool waits = d->r->held && d->r->plan->policy == PINL_RECALL;
	char words[40];

	snprintf(words, sizeof(words), waits ? "waits %.2f ms" : "%.2f ms", demo_waited_ms(d->r));
	bar(d, from, to, lane_y(LANE_ACTOR), 18, waits ? "waits" : "runs", words);
	if (to - from > 200)
		text(d, (from + to) / 2, lane_y(LANE_ACTOR) + 4, "inside", words);
}

static void grace_bar(const struct drawing *d)
{
	const struct pinl_event *notice = demo_event(d->r, PINL_EV_NOTICE);
	uint64_t end = d->r->answer_ns;
	char words[40];
	double from, to;

	if (!notice)
		return;
	if (!end)
		end = notice->deadline_ns;
	from = x_of(d, notice->time_ns);
	to = x_of(d, end);
	snprintf(words, sizeof(words), "grace: %u ms", d->r->plan->grace_ms);
	bar(d, from, to, lane_y(LANE_HOLDER), 12, "grace", words);
	if (to - from > 260 && !d->r->answer_ns)
		text(d, to - 54, lane_y(LANE_HOLDER) + 4, "inside", words);
}

/* What the device's requests reach, from when to when. */
static void pages_bar(const struct drawing *d, uint64_t from, uint64_t to, const char *class,
		      const char *title)
{
	if (to > from)
		bar(d, x_of(d, from), x_of(d, to), lane_y(LANE_DEVICE), 8, class, title);
}

static uint64_t released_at(const struct demo_result *r)
{
	const struct pinl_event *ev = demo_event(r, PINL_EV_RELEASED);

	if (!ev)
		ev = demo_event(r, PINL_EV_ORPHAN_END);
	return ev ? ev->time_ns : 0;
}

/* When the pages left file and mapping: as early as anyone can have known. */
static uint64_t gone_at(const struct demo_result *r)
{
	const struct pinl_event *late = demo_event(r, PINL_EV_DEGRADED),
				*orphan = demo_event(r, PINL_EV_ORPHAN);
	const struct pinl_event *answered = demo_event(r, PINL_EV_ANSWERED);
	uint64_t gone = r->actor.end_ns, released = released_at(r);

	if (r->held && answered && answered->time_ns < gone)
		gone = answered->time_ns;
	if (!r->held && late && late->time_ns > r->actor.start_ns && late->time_ns < gone)
		gone = late->time_ns;
	if (!r->held && orphan && orphan->time_ns < gone)
		gone = orphan->time_ns;
	return released && released < gone ? released : gone;
}

static void device_bars(const struct drawing *d)
{
	const struct demo_result *r = d->r;
	uint64_t first = d->moments[0].time_ns, last = d->moments[d->n - 1].time_ns;
	uint64_t gone = gone_at(r), released = released_at(r);
	const struct pinl_event *forced = demo_event(r, PINL_EV_FORCED);
	enum pinl_outcome outcome = forced ? forced->outcome : PINL_OUT_QUIESCED;

	if (r->actor.err || r->plan->run == RUN_SOFT) {
		pages_bar(d, first, last, "p-file",
			  "the device reaches the file's pages, now and later");
		return;
	}
	pages_bar(d, first, gone, "p-file", "the device reaches the pages of file and mapping");
	pages_bar(d, gone, released ? released : last,
		  r->plan->run == RUN_BARE ? "p-nowhere" : "p-orphan",
		  "the device reaches pages that nobody else can reach");
	if (!released || r->plan->policy != PINL_RECALL)
		return;
	if (outcome == PINL_OUT_SCRATCH)
		pages_bar(d, released, last, "p-scratch", "the device reaches scratch memory");
	else if (outcome == PINL_OUT_COPY)
		pages_bar(d, released, last, "p-copy", "the device reaches the private copy");
	else
		pages_bar(d, released, last, "p-fail", "the device reaches nothing");
}

/* ------------------------------------------------------------------------------------- marks -- */

static void mark(const struct drawing *d, unsigned i)
{
	const struct demo_moment *m = &d->moments[i];
	double y = lane_y(m->lane);

	fputs("<g><title>", d->out);
	fprintf(d->out, "%+.3f ms: ", demo_ms(d->r, m->time_ns));
	demo_html_text(d->out, m->title);
	fprintf(d->out, "</title><circle cx=\"%.1f\" cy=\"%.1f\" r=\"6\" class=\"m-%s\"/>\n", d->x[i], y,
		m->kind);
	text(d, d->x[i], y + 20, "label", m->label[0]);
	text(d, d->x[i], y + 32, "label", m->label[1]);
	fputs("</g>\n", d->out);
}

void demo_svg(FILE *out, const struct demo_result *r)
{
	struct drawing d = {.out = out, .r = r};

	d.n = demo_timeline(r, d.moments);
	if (!d.n)
		return;
	place(&d);
	fprintf(out,
		"<div class=\"scroll\"><svg viewBox=\"0 0 %.0f %d\" style=\"min-width:%.0fpx\" "
		"role=\"img\"><title>",
		d.width, lane_y(NR_LANES) + 6, d.width * 0.8);
	demo_html_text(out, r->plan->name);
	fputs("</title>\n", out);
	lanes(&d);
	axis(&d);
	actor_bar(&d);
	grace_bar(&d);
	device_bars(&d);
	for (unsigned i = 0; i < d.n; i++)
		mark(&d, i);
	fputs("</svg></div>\n", out);
}
