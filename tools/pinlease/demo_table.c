/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The terminal: a line of progress per case while it runs, and the table. Colours on a terminal only. */
#include "demo.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NR_COLUMNS 6
#define GAP	   2

#define RED    "31"
#define GREEN  "32"
#define YELLOW "33"
#define BOLD   "1"

struct table {
	FILE *out;
	bool colours;
	int width, columns[NR_COLUMNS];
};

static const char *const titles[NR_COLUMNS] = {"",
					       "policy",
					       "the actor",
					       "the holder was told, ms",
					       "device wrote to: before, during, after",
					       "lost"};

static void colour(const struct table *t, const char *code)
{
	if (t->colours && code)
		fprintf(t->out, "\033[%sm", code);
}

static void measure(struct table *t)
{
	static const int shares[NR_COLUMNS] = {0, 17, 15, 30, 19, 19};
	int rest;

	t->colours = isatty(fileno(t->out)) && !getenv("NO_COLOR");
	t->width = tool_width(t->out, 110);
	t->columns[0] = 8;
	rest = t->width - t->columns[0] - GAP * (NR_COLUMNS - 1);
	for (int i = 1; i < NR_COLUMNS; i++)
		t->columns[i] = rest * shares[i] / 100;
}

static void cells(const struct table *t, const char *const texts[NR_COLUMNS], const char *first_colour)
{
	const char *rest[NR_COLUMNS];
	bool more = true;

	memcpy(rest, texts, sizeof(rest));
	while (more) {
		more = false;
		for (int i = 0; i < NR_COLUMNS; i++) {
			const char *text = rest[i];
			int n = tool_cut(text, t->columns[i], &rest[i]);
			bool last = i == NR_COLUMNS - 1;
			bool coloured = !i && n && first_colour;

			colour(t, coloured ? first_colour : NULL);
			fprintf(t->out, "%.*s", n, text);
			colour(t, coloured ? "0" : NULL);
			fprintf(t->out, "%*s", last ? 0 : t->columns[i] - n + GAP, "");
			more |= *rest[i] != '\0';
		}
		fputc('\n', t->out);
	}
}

static void span(const struct table *t, const char *text)
{
	int indent = t->columns[0] + GAP;

	while (*text) {
		const char *line = text;
		int n = tool_cut(line, t->width - indent, &text);

		fprintf(t->out, "%*s%.*s\n", indent, "", n, line);
	}
}

/* A row without anything in its cells. */
static void wide(const struct table *t, const char *verdict, const char *name, const char *code)
{
	colour(t, code);
	fprintf(t->out, "%-*s", t->columns[0] + GAP, verdict);
	colour(t, "0");
	fprintf(t->out, "%s\n", name);
}

static void rule(const struct table *t)
{
	for (int i = 0; i < t->width; i++)
		fputc('-', t->out);
	fputc('\n', t->out);
}

static const char *colour_of(const struct demo_result *r)
{
	if (r->verdict == FAILED)
		return RED;
	if (r->verdict == WENT_WELL)
		return GREEN;
	return YELLOW;
}

static void why(const struct table *t, const struct demo_result *r, const struct demo_result *before)
{
	char line[700];

	if (r->weaker[0] && before && !strcmp(r->weaker, before->weaker)) {
		span(t, "Leased with PINL_COOPERATIVE, as above.");
	} else if (r->weaker[0]) {
		snprintf(line, sizeof(line), "%s. So leased with PINL_COOPERATIVE, which accepts that.",
			 r->weaker);
		span(t, line);
	}
	if (!r->reason[0])
		return;
	if (before && !strcmp(r->reason, before->reason))
		snprintf(line, sizeof(line), "The same.");
	else
		snprintf(line, sizeof(line), "%s.", r->reason);
	span(t, line);
}

static void notes(const struct table *t, const struct demo_result *r)
{
	char line[200], summary[sizeof(r->summary)], *rest = summary, *part;

	for (unsigned i = 0; i < r->n_checks; i++) {
		if (r->checks[i].kept)
			continue;
		snprintf(line, sizeof(line), "NOT KEPT: %s", r->checks[i].promise);
		span(t, line);
	}
	if (r->plan->policy != PINL_KEEP || r->plan->run != RUN_URING)
		return;
	memcpy(summary, r->summary, sizeof(summary));
	while ((part = strsep(&rest, "\n")))
		span(t, part);
}

static void row(const struct table *t, const struct demo_result *r, const struct demo_result *before)
{
	struct demo_words w;

	demo_words(r, &w);
	if (r->reported)
		cells(t,
		      (const char *const[]){w.verdict, r->plan->name, w.actor, w.holder, w.device,
					    w.lost},
		      colour_of(r));
	else
		wide(t, w.verdict, r->plan->name, colour_of(r));
	why(t, r, before);
	notes(t, r);
}

static void heading(const struct table *t, const struct demo_results *all, unsigned first)
{
	const char *note = demo_group_note(all, first);
	char line[300];

	demo_group_words(all->env, all->rows[first].plan, line, sizeof(line));
	fputc('\n', t->out);
	colour(t, BOLD);
	fprintf(t->out, "%s", line);
	colour(t, "0");
	fprintf(t->out, "\n%s%s", note, *note ? "\n" : "");
}

unsigned demo_count(const struct demo_results *all, enum demo_verdict verdict)
{
	unsigned n = 0;

	for (unsigned i = 0; i < all->n; i++)
		n += all->rows[i].verdict == verdict;
	return n;
}

static void legend(const struct table *t)
{
	static const char text[] =
		"What the device wrote is: file: in the file. mapping: in the private pages of the "
		"mapping, as for any store. orphan: in pages only the device has. nowhere: the device "
		"said 4096, nobody can find them. -: no write. Times are ms after the truncating call "
		"began.";
	const char *rest = text;

	while (*rest) {
		const char *line = rest;
		int n = tool_cut(line, t->width, &rest);

		fprintf(t->out, "%.*s\n", n, line);
	}
	fputc('\n', t->out);
}

static void sum(const struct table *t, const struct demo_results *all)
{
	unsigned failed = demo_count(all, FAILED);

	fputc('\n', t->out);
	colour(t, failed ? RED : GREEN);
	if (failed)
		fprintf(t->out, "%u of %u rows FAILED", failed, all->n);
	else
		fprintf(t->out, "Every promise was kept");
	colour(t, "0");
	fprintf(t->out,
		". Rows: %u kept, %u shown without pinlease, %u not here (named above), %u failed; %.1f "
		"s\n",
		demo_count(all, WENT_WELL), demo_count(all, SHOWN), demo_count(all, NOT_HERE), failed,
		(double)all->took_ns / 1e9);
}

void demo_table(FILE *out, const struct demo_results *all)
{
	struct table t = {.out = out};

	measure(&t);
	fprintf(out, "%s\n", all->sources);
	legend(&t);
	cells(&t, titles, NULL);
	rule(&t);
	for (unsigned i = 0; i < all->n; i++) {
		if (!i || !demo_same_group(all->rows[i].plan, all->rows[i - 1].plan))
			heading(&t, all, i);
		row(&t, &all->rows[i], i ? &all->rows[i - 1] : NULL);
	}
	sum(&t, all);
}

void demo_progress(unsigned at, const struct demo_env *env, const struct demo_plan *plan)
{
	fprintf(stderr, "%2u/%u %s, %s, %s ... ", at + 1, demo_nr_plans, env->fs_name[plan->fs],
		plan->actor == BY_PROCESS ? "second process" : "pinl_ftruncate", plan->name);
	fflush(stderr);
}

void demo_progress_end(const struct demo_result *r)
{
	struct demo_words w;

	demo_words(r, &w);
	fprintf(stderr, isatty(STDERR_FILENO) && r->verdict != FAILED ? "%s\r\033[K" : "%s\n",
		w.verdict);
}
