/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The picture of a moment: by device, by site, what leaks, what was lost, what it costs. */
#include <inttypes.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common.h"
#include "pins_live.h"

#define ENDS	    16 /* lines before and after what is of devices, classes and sites */
#define LEAST_SITES 3

const char *const live_terms[2] = {"transient", "long-term"};

/* Bounds of what is shown, as powers of two of ns. */
static const int bounds[] = {10, 14, 18, 22, 26, 30, 34, LIVE_BUCKETS};
static const char *const bound_names[] = {"<1us",  "<16us", "<.3ms", "<4ms",
					  "<67ms", "<1s",   "<17s",  "more"};

static bool is_empty(const struct live_group *g)
{
	return !g->calls && !g->held && !g->released;
}

static int nr_groups(const struct live *l)
{
	int n = 0;

	for (int d = 0; d < PINS_NR_DEVICES; d++)
		n += !is_empty(&l->groups[d][0]) + !is_empty(&l->groups[d][1]);
	return n;
}

static int width(void)
{
	return isatty(STDOUT_FILENO) ? tool_width(stdout, 120) : INT_MAX;
}

void live_put(const char *fmt, ...)
{
	char text[1024];
	const char *at = text;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	while (*at) {
		const char *next;
		int n = tool_cut(at, width(), &next);

		printf("%.*s\n", n, at);
		at = next;
	}
}

static void print_group(const struct live *l, int device, int term)
{
	const struct live_group *g = &l->groups[device][term];
	char pinned[24], held[24], leased[24] = "?", age[24] = "-";

	tool_size_words(g->pages * PINS_PAGE, false, pinned, sizeof pinned);
	tool_size_words((uint64_t)g->held_pages * PINS_PAGE, false, held, sizeof held);
	if (live_knows_leased(l, &g->leased, (uint64_t)g->held_pages * PINS_PAGE))
		tool_size_words(g->leased.back, false, leased, sizeof leased);
	if (g->oldest_ns)
		tool_age_words(tool_now() - g->oldest_ns, age, sizeof age);
	printf("%-9s %-9s %8" PRIu64 " %6s %6s %6" PRId64 " %6s %7s\n", pins_classes[device].name,
	       live_terms[term], g->calls, pinned, held, g->held, leased, age);
}

static int print_groups(const struct live *l)
{
	int lines = 1;

	printf("%-9s %-9s %8s %6s %6s %6s %6s %7s\n", "DEVICE", "TERM", "CALLS", "PINNED", "HELD", "IN",
	       "LEASED", "OLDEST");
	for (int d = 0; d < PINS_NR_DEVICES; d++)
		for (int t = 1; t >= 0; t--)
			if (!is_empty(&l->groups[d][t])) {
				print_group(l, d, t);
				lines++;
			}
	return lines;
}

/* None where the terminal is too low. */
static int print_histograms(const struct live *l, int room)
{
	int lines = 2;

	if (room < nr_groups(l) + lines)
		return 0;
	printf("\n%-9s %-9s", "RELEASED", l->o->followed ? "PAGES" : "CALLS");
	for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++)
		printf(" %6s", bound_names[i]);
	putchar('\n');
	for (int d = 0; d < PINS_NR_DEVICES; d++)
		for (int t = 1; t >= 0; t--) {
			const struct live_group *g = &l->groups[d][t];
			int from = 0;

			if (is_empty(g))
				continue;
			printf("%-9s %-9s", pins_classes[d].name, live_terms[t]);
			for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
				uint64_t n = 0;
				char words[24];

				for (; from < bounds[i]; from++)
					n += g->histogram[from];
				tool_count_words(n, words, sizeof words);
				printf(" %6s", words);
			}
			putchar('\n');
			lines++;
		}
	return lines;
}

static uint64_t untimed(const struct live *l)
{
	uint64_t n = 0;

	for (int d = 0; d < PINS_NR_DEVICES; d++)
		n += l->groups[d][0].untimed + l->groups[d][1].untimed;
	return n;
}

static void print_site(const struct live *l, const struct live_known *k)
{
	char size[24], age[24] = "-", program[24], file[64];
	uint64_t held = (uint64_t)k->held_pages * PINS_PAGE;
	int room = width();

	tool_size_words(held, l->o->exact, size, sizeof size);
	if (k->oldest_ns)
		tool_age_words(tool_now() - k->oldest_ns, age, sizeof age);
	tool_path_words(k->now.program, 16, program, sizeof program);
	room -= printf("%7u %-10.10s %-9s %-9s %*s %7s %6" PRIu64 " ", k->now.key.tgid, program,
		       pins_classes[k->device].name, live_terms[k->now.key.longterm],
		       l->o->exact ? 13 : 4, size, k->gone_ns ? "GONE" : age, (uint64_t)k->now.calls);
	if (width() >= LIVE_WIDE)
		room -= printf("%-22.22s ", k->name);
	tool_put_path(live_file_words(k, file, sizeof file), room);
}

/* Of the terminal, for what a picture has between its first and its last lines. */
static int rows(const struct live *l)
{
	struct winsize size = {0};

	if (!isatty(STDOUT_FILENO))
		return INT_MAX;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_row)
		size.ws_row = 24;
	return size.ws_row - ENDS - 3 * (int)l->leaks.n;
}

static void print_sites(const struct live *l, int room)
{
	size_t left = 0;

	room = room < LEAST_SITES ? LEAST_SITES : room;

	printf("\n%7s %-10s %-9s %-9s %*s %7s %6s %s%s\n", "PID", "PROGRAM", "DEVICE", "TERM",
	       l->o->exact ? 13 : 4, "HELD", "OLDEST", "CALLS",
	       width() >= LIVE_WIDE ? "SITE                   " : "", "FILE");
	for (size_t i = 0; i < l->order.n; i++) {
		const struct live_known *k = *pins_at(&l->order, struct live_known *, i);

		if (!k->now.calls || !live_wanted(l, k))
			continue;
		if (room-- > 0)
			print_site(l, k);
		else
			left++;
	}
	if (left)
		printf("and %zu more\n", left);
}

static double share(const struct live *l, uint64_t ns)
{
	uint64_t all = tool_now() - l->began_ns;

	return all ? 100.0 * (double)ns / (double)all : 0;
}

static double each(const struct live *l, int which)
{
	return l->cost.runs[which] ? (double)l->cost.ns[which] / 1e3 / (double)l->cost.runs[which] : 0;
}

static void print_cost(const struct live *l)
{
	if (l->stats < 0) {
		live_put(
			"Cost: of the programs it isn't known (the kernel refuses its statistics); this "
			"command %.3f %% of one processor.",
			share(l, l->cost.own_ns));
		return;
	}
	live_put("Cost: programs ran at %" PRIu64 " pins, %.2f us each, and at %" PRIu64
		 " releases, %.2f us each: %.3f %% of one processor, trampolines or probes not counted; "
		 "this command %.3f %%.",
		 l->cost.runs[0], each(l, 0), l->cost.runs[1], each(l, 1),
		 share(l, l->cost.ns[0] + l->cost.ns[1]), share(l, l->cost.own_ns));
}

static void add_measured(char *buf, size_t len, const char *what, const uint64_t ns[2])
{
	if (ns[0] && ns[1] > ns[0])
		tool_append(buf, len, "%s %s %.2f us, not %.2f",
			    *buf ? "," : "With all that they take here", what, (double)ns[1] / 1e3,
			    (double)ns[0] / 1e3);
}

/* Once, before anything else was followed. */
static void print_measured(const struct live *l)
{
	char words[256] = "";

	add_measured(words, sizeof words, "a ring's buffer of a page takes", l->longterm_ns);
	add_measured(words, sizeof words, "a page read from a process", l->transient_ns);
	if (*words)
		live_put("%s.", words);
	else if (l->longterm_ns[1] || l->transient_ns[1])
		live_put("With all that they take here no pin was measured to take longer.");
}

static void print_totals(const struct live *l)
{
	char age[24];

	tool_age_words(tool_now() - l->began_ns, age, sizeof age);
	live_put("In %s%s: %" PRIu64 " long-term calls, %" PRIu64 " pages; %" PRIu64
		 " transient calls, %" PRIu64 " pages %s; %" PRIu64 " calls that failed; %" PRIu64
		 " pages unpinned.",
		 age, live_is_filtered(l) ? ", of all processes and files" : "",
		 l->counts[LIVE_LONG_CALLS], l->counts[LIVE_LONG_PAGES], l->counts[LIVE_SHORT_CALLS],
		 l->counts[LIVE_SHORT_PAGES],
		 l->o->followed ? "(all followed)" : "(lines have one call in " TEXT_OF(LIVE_SAMPLE) ")",
		 l->counts[LIVE_FAILED_CALLS], l->counts[LIVE_UNPINNED_PAGES]);
}

void live_print_picture(struct live *l, bool last)
{
	char words[1024];

	if (l->o->json) {
		struct json_object *o = live_picture_json(l, last);

		json_object_object_add(o, "event", json_object_new_string(last ? "end" : "picture"));
		live_put_line(o);
		return;
	}
	print_totals(l);
	live_print_already(l);
	if (nr_groups(l)) {
		int room = (last ? INT_MAX : rows(l)) - LEAST_SITES;

		room -= print_groups(l);
		room -= live_print_callers(l, room);
		room -= print_histograms(l, room);
		print_sites(l, room + LEAST_SITES);
	}
	for (size_t i = 0; i < l->leaks.n && (last || l->o->mode == PINS_WATCH); i++) {
		live_leak_words(l, pins_at(&l->leaks, struct live_leak, i), words, sizeof words);
		live_put("%s", words); /* none: its site is known no more */
	}
	if (untimed(l))
		live_put("%" PRIu64 " release%s of pins that overlap in a folio: not timed.", untimed(l),
			 tool_s(untimed(l)));
	putchar('\n');
	if (last)
		live_print_census(l);
	live_print_lost(l);
	print_cost(l);
	print_measured(l);
}

/* ------------------------------------------------------------------------------------------ JSON -- */

void live_put_leased(struct json_object *o, const struct live_leased *leased, bool known)
{
	tool_add_known(o, "leased_bytes", known, leased->back);
	tool_add_known(o, "kept_bytes", known, leased->kept);
	tool_add_known(o, "lease_unknown_bytes", known, leased->unknown);
}

static struct json_object *histogram(const __u64 *counts)
{
	struct json_object *all = json_object_new_array();

	for (int i = 0; i < LIVE_BUCKETS; i++)
		if (counts[i]) {
			struct json_object *o = json_object_new_object();

			tool_add_number(o, "from_ns", i ? 1ull << i : 0);
			tool_add_number(o, "count", counts[i]);
			json_object_array_add(all, o);
		}
	return all;
}

static struct json_object *group(const struct live *l, int d, int t)
{
	const struct live_group *g = &l->groups[d][t];
	struct json_object *o = json_object_new_object();

	tool_add_text(o, "device", pins_classes[d].name);
	tool_add_text(o, "term", live_terms[t]);
	tool_add_number(o, "calls", g->calls);
	tool_add_number(o, "pages", g->pages);
	tool_add_number(o, "held", (uint64_t)g->held);
	tool_add_number(o, "held_bytes", (uint64_t)g->held_pages * PINS_PAGE);
	tool_add_number(o, "released", g->released);
	tool_add_number(o, "untimed", g->untimed);
	live_put_leased(o, &g->leased,
			live_knows_leased(l, &g->leased, (uint64_t)g->held_pages * PINS_PAGE));
	tool_add_number(o, "oldest_ns", g->oldest_ns ? tool_now() - g->oldest_ns : 0);
	json_object_object_add(o, "histogram", histogram((const __u64 *)g->histogram));
	return o;
}

static struct json_object *site(const struct live *l, const struct live_known *k)
{
	struct json_object *o = json_object_new_object();

	live_add_site(o, k);
	tool_add_number(o, "calls", k->now.calls);
	tool_add_number(o, "pages", k->now.pages);
	tool_add_number(o, "held", (uint64_t)k->held);
	tool_add_number(o, "held_bytes", (uint64_t)k->held_pages * PINS_PAGE);
	live_put_leased(o, &k->leased,
			live_knows_leased(l, &k->leased, (uint64_t)k->held_pages * PINS_PAGE));
	tool_add_number(o, "released", k->now.released);
	tool_add_number(o, "untimed", k->now.untimed);
	json_object_object_add(o, "histogram", histogram(k->now.histogram));
	json_object_object_add(o, "holder_gone", json_object_new_boolean(k->gone_ns != 0));
	tool_add_number(o, "first_ns", k->now.first_ns);
	tool_add_number(o, "last_ns", k->now.last_ns);
	tool_add_number(o, "oldest_ns", k->oldest_ns ? tool_now() - k->oldest_ns : 0);
	tool_add_text(o, "fitting_policy", k->fit->policy);
	return o;
}

static struct json_object *cost(const struct live *l)
{
	struct json_object *o = json_object_new_object();
	bool known = l->stats >= 0;

	tool_add_known(o, "pin_runs", known, l->cost.runs[0]);
	tool_add_known(o, "pin_ns", known, l->cost.ns[0]);
	tool_add_known(o, "release_runs", known, l->cost.runs[1]);
	tool_add_known(o, "release_ns", known, l->cost.ns[1]);
	tool_add_known(o, "longterm_alone_ns", l->longterm_ns[0], l->longterm_ns[0]);
	tool_add_known(o, "longterm_followed_ns", l->longterm_ns[1], l->longterm_ns[1]);
	tool_add_known(o, "transient_alone_ns", l->transient_ns[0], l->transient_ns[0]);
	tool_add_known(o, "transient_followed_ns", l->transient_ns[1], l->transient_ns[1]);
	tool_add_number(o, "own_ns", l->cost.own_ns);
	tool_add_number(o, "elapsed_ns", tool_now() - l->began_ns);
	return o;
}

static struct json_object *totals(const struct live *l)
{
	struct json_object *o = json_object_new_object();

	tool_add_number(o, "longterm_calls", l->counts[LIVE_LONG_CALLS]);
	tool_add_number(o, "longterm_pages", l->counts[LIVE_LONG_PAGES]);
	tool_add_number(o, "transient_calls", l->counts[LIVE_SHORT_CALLS]);
	tool_add_number(o, "transient_pages", l->counts[LIVE_SHORT_PAGES]);
	tool_add_number(o, "failed_calls", l->counts[LIVE_FAILED_CALLS]);
	tool_add_number(o, "unpinned_pages", l->counts[LIVE_UNPINNED_PAGES]);
	return o;
}

struct json_object *live_picture_json(struct live *l, bool last)
{
	struct json_object *all = json_object_new_object(), *groups = json_object_new_array(),
			   *sites = json_object_new_array(), *leaks = json_object_new_array();

	for (int d = 0; d < PINS_NR_DEVICES; d++)
		for (int t = 1; t >= 0; t--)
			if (!is_empty(&l->groups[d][t]))
				json_object_array_add(groups, group(l, d, t));
	for (size_t i = 0; i < l->order.n; i++) {
		const struct live_known *k = *pins_at(&l->order, struct live_known *, i);

		if (k->now.calls && live_wanted(l, k))
			json_object_array_add(sites, site(l, k));
	}
	for (size_t i = 0; i < l->leaks.n; i++)
		json_object_array_add(leaks, live_leak_json(l, pins_at(&l->leaks, struct live_leak, i)));
	json_object_object_add(all, "totals", totals(l));
	json_object_object_add(all, "devices", groups);
	json_object_object_add(all, "classes", live_callers_json(l));
	json_object_object_add(all, "sites", sites);
	json_object_object_add(all, "leaks", leaks);
	live_add_missing(all, l, last);
	json_object_object_add(all, "cost", cost(l));
	return all;
}
