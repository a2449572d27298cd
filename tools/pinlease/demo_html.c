/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The result as one page: the table, and for each row what was promised and its timeline. */
#include "demo.h"

#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

void demo_html_text(FILE *out, const char *text)
{
	for (; *text; text++) {
		if (*text == '<')
			fputs("&lt;", out);
		else if (*text == '>')
			fputs("&gt;", out);
		else if (*text == '&')
			fputs("&amp;", out);
		else if (*text == '"')
			fputs("&quot;", out);
		else
			fputc(*text, out);
	}
}

static void element(FILE *out, const char *tag, const char *class, const char *text)
{
	fprintf(out, "<%s class=\"%s\">", tag, class);
	demo_html_text(out, text);
	fprintf(out, "</%s>\n", tag);
}

static bool is_lost(const struct demo_result *r)
{
	return r->plan->run == RUN_BARE && r->verdict == SHOWN;
}

static const char *class_of(const struct demo_result *r)
{
	if (is_lost(r))
		return "lost";
	if (r->verdict == FAILED)
		return "failed";
	return r->verdict == WENT_WELL ? "kept" : "other";
}

static void badge(FILE *out, const struct demo_result *r)
{
	struct demo_words w;

	demo_words(r, &w);
	fprintf(out, "<span class=\"badge %s\">%s</span> ", class_of(r), w.verdict);
}

/* ----------------------------------------------------------------------------------- the top -- */

static void facts(FILE *out, const struct demo_results *all)
{
	struct utsname u;
	time_t now = time(NULL);
	char date[32];

	uname(&u);
	strftime(date, sizeof(date), "%Y-%m-%d %H:%M", localtime(&now));
	fprintf(out, "<p class=\"soft\">%s %s, %s, %s, %s; %.1f s in all.</p>\n<pre class=\"soft\">",
		u.sysname, u.release, u.machine, geteuid() ? "an ordinary user" : "root", date,
		(double)all->took_ns / 1e9);
	demo_html_text(out, all->sources);
	fputs("</pre>\n", out);
}

static void top(FILE *out, const struct demo_results *all)
{
	unsigned failed = demo_count(all, FAILED);

	fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
	      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>pinlease "
	      "demo</title>\n<style>",
	      out);
	fputs(demo_style, out);
	fputs("</style></head><body><main>\n<h1>Truncating a file that a device writes to</h1>\n"
	      "<p>An io_uring ring has a file mapping as a fixed buffer: its pages are pinned. Somebody "
	      "truncates the file. Without pinlease the ring goes on writing, reports success, and the "
	      "bytes are gone. Below is the same program with a lease, under each policy, as it just "
	      "ran on this machine.</p>\n",
	      out);
	fprintf(out, "<p class=\"big %s\">", failed ? "failed" : "");
	if (failed)
		fprintf(out, "%u of %u rows failed.", failed, all->n);
	else
		fprintf(out, "Every promise was kept. Rows: %u kept, %u without pinlease, %u not here.",
			demo_count(all, WENT_WELL), demo_count(all, SHOWN), demo_count(all, NOT_HERE));
	fputs("</p>\n", out);
	facts(out, all);
}

static void group_row(FILE *out, const struct demo_results *all, unsigned first)
{
	char words[300];

	demo_group_words(all->env, all->rows[first].plan, words, sizeof(words));
	fputs("<tr class=\"group\"><td colspan=\"6\">", out);
	demo_html_text(out, words);
	element(out, "div", "soft light", demo_group_note(all, first));
	fputs("</td></tr>\n", out);
}

static void table_row(FILE *out, const struct demo_result *r, unsigned id)
{
	struct demo_words w;

	demo_words(r, &w);
	fputs("<tr><td>", out);
	badge(out, r);
	fprintf(out, "</td><td><a href=\"#case%u\">%s</a></td>", id, r->plan->name);
	if (!r->reported) {
		fputs("<td colspan=\"4\" class=\"soft\">", out);
		demo_html_text(out, r->reason);
		fputs("</td></tr>\n", out);
		return;
	}
	element(out, "td", "n", w.actor);
	element(out, "td", "", w.holder);
	element(out, "td", "", w.device);
	element(out, "td", "", w.lost);
	fputs("</tr>\n", out);
}

static void overview(FILE *out, const struct demo_results *all)
{
	fputs("<div class=\"card scroll\"><table><tr><th></th><th>policy</th><th>the actor</th><th>the "
	      "holder was told, after ms</th>"
	      "<th>device wrote to: before, during, after</th><th>lost</th></tr>\n",
	      out);
	for (unsigned i = 0; i < all->n; i++) {
		if (!i || !demo_same_group(all->rows[i].plan, all->rows[i - 1].plan))
			group_row(out, all, i);
		table_row(out, &all->rows[i], i);
	}
	fputs("</table></div>\n", out);
}

static void legend(FILE *out)
{
	static const char *const items[][2] = {
		{"p-file", "pages of the file or its mapping"},
		{"p-copy", "private copy"},
		{"p-scratch", "scratch"},
		{"p-orphan", "orphans: nobody else can reach them, reported"},
		{"p-nowhere", "the same, without pinlease: lost"},
		{"p-fail", "no pages: requests fail"},
		{"waits", "the actor waits"},
		{"grace", "grace of the holder"},
	};

	fputs("<h2>Reading the timelines</h2><div class=\"card\"><p>The line of the <b>device</b> shows "
	      "which pages it reaches, each dot on it is a write. <b>actor</b> is who truncates, "
	      "<b>holder</b> who has the lease, <b>pinlease</b> what the library does. Times are "
	      "milliseconds after the truncating call began; moments that are close together are "
	      "drawn apart. Point at anything for its details.</p><div class=\"legend\">\n",
	      out);
	for (size_t i = 0; i < sizeof(items) / sizeof(*items); i++)
		fprintf(out, "<span><i class=\"%s\"></i>%s</span>\n", items[i][0], items[i][1]);
	fputs("</div></div>\n", out);
}

/* ---------------------------------------------------------------------------------- the rows -- */

static void checks(FILE *out, const struct demo_result *r)
{
	unsigned kept = 0;

	if (!r->n_checks)
		return;
	for (unsigned i = 0; i < r->n_checks; i++)
		kept += r->checks[i].kept;
	fprintf(out, "<details%s><summary>%u of %u checks passed</summary><ul>\n",
		kept < r->n_checks ? " open" : "", kept, r->n_checks);
	for (unsigned i = 0; i < r->n_checks; i++)
		element(out, "li", r->checks[i].kept ? "kept" : "broken", r->checks[i].promise);
	fputs("</ul></details>\n", out);
}

static void outcome(FILE *out, const struct demo_result *r)
{
	struct demo_words w;

	if (!r->reported)
		return;
	demo_words(r, &w);
	fprintf(out, "<span class=\"out\">the actor: <b>%s</b> &ensp; lost: <b>%s</b></span>\n", w.actor,
		w.lost);
}

static void details(FILE *out, const struct demo_result *r)
{
	if (!r->lease[0])
		return;
	fputs("<details><summary>The lease in words, and its events</summary><pre>", out);
	demo_html_text(out, r->lease);
	fputs("</pre>\n<pre>", out);
	for (unsigned i = 0; i < r->n_events; i++) {
		fprintf(out, "%+10.3f ms  ", demo_ms(r, r->events[i].ev.time_ns));
		demo_html_text(out, r->events[i].text);
		fputc('\n', out);
	}
	fputs("</pre></details>\n", out);
}

static void why(FILE *out, const struct demo_result *r)
{
	char line[600];

	if (r->weaker[0]) {
		snprintf(line, sizeof(line), "%s. So leased with PINL_COOPERATIVE, which accepts that.",
			 r->weaker);
		element(out, "p", "", line);
	}
	if (r->reason[0]) {
		snprintf(line, sizeof(line), "%s.", r->reason);
		element(out, "p", "", line);
	}
}

static void card(FILE *out, const struct demo_result *r, unsigned id)
{
	fprintf(out, "<div class=\"card %s\" id=\"case%u\">", class_of(r), id);
	badge(out, r);
	element(out, "h3", "", r->plan->name);
	outcome(out, r);
	element(out, "p", "soft", demo_story(r->plan));
	why(out, r);
	if (r->reported)
		demo_svg(out, r);
	if (r->summary[0]) {
		fputs("<p>What pinl_close() wrote to the program's stderr:</p>", out);
		element(out, "pre", "", r->summary);
	}
	checks(out, r);
	details(out, r);
	fputs("</div>\n", out);
}

void demo_html(FILE *out, const struct demo_results *all)
{
	char words[300];

	top(out, all);
	overview(out, all);
	legend(out);
	for (unsigned i = 0; i < all->n; i++) {
		if (!i || !demo_same_group(all->rows[i].plan, all->rows[i - 1].plan)) {
			demo_group_words(all->env, all->rows[i].plan, words, sizeof(words));
			element(out, "h2", "", words);
			element(out, "p", "soft", demo_group_note(all, i));
		}
		card(out, &all->rows[i], i);
	}
	fputs("</main></body></html>\n", out);
}
