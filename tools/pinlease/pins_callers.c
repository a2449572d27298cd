/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All sites of a function of the kernel, whoever's, in one: what can be done about such pins, by which
 * policy, and how much of them is leased already.
 */
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "common.h"
#include "pins_live.h"

/* What matters most comes first. */
static const int ranks[PINS_NR_CANS] = {[PINS_REVOCABLE] = 0,
					[PINS_NOTIFIED] = 1,
					[PINS_NEVER] = 2,
					[PINS_UNKNOWN] = 3,
					[PINS_TRANSIENT] = 4};

static void add(struct live_caller *c, const struct live_known *k)
{
	c->calls += k->now.calls;
	c->pages += k->now.pages;
	c->held_bytes += (uint64_t)k->held_pages * PINS_PAGE;
	live_add_leased(&c->leased, &k->leased);
	if (k->oldest_ns && (!c->oldest_ns || k->oldest_ns < c->oldest_ns))
		c->oldest_ns = k->oldest_ns;
}

static struct live_caller *find(struct pins_vec *callers, const struct live_known *k)
{
	struct live_caller new = {
		.name = k->name, .device = k->device, .longterm = k->now.key.longterm, .fit = k->fit};

	for (size_t i = 0; i < callers->n; i++) {
		struct live_caller *c = pins_at(callers, struct live_caller, i);

		if (c->device == new.device && c->longterm == new.longterm && !strcmp(c->name, new.name))
			return c;
	}
	return pins_add(callers, &new);
}

static int by_fit(const void *a, const void *b)
{
	const struct live_caller *x = a, *y = b;
	int order = ranks[x->fit->can] - ranks[y->fit->can];

	if (!order)
		order = strcmp(x->fit->policy, y->fit->policy);
	if (order)
		return order;
	if (x->held_bytes != y->held_bytes)
		return x->held_bytes < y->held_bytes ? 1 : -1;
	return strcmp(x->name, y->name);
}

static struct pins_vec all_callers(const struct live *l)
{
	struct pins_vec callers = {.size = sizeof(struct live_caller)};

	for (size_t i = 0; i < l->order.n; i++) {
		const struct live_known *k = *pins_at(&l->order, struct live_known *, i);

		if (k->now.calls && live_wanted(l, k))
			add(find(&callers, k), k);
	}
	pins_order(&callers, by_fit);
	return callers;
}

/* Those from `first` on that the same can be done about. */
static size_t end_of(const struct pins_vec *callers, size_t first)
{
	const struct pins_fit *fit = pins_at(callers, struct live_caller, first)->fit;
	size_t end = first;

	while (end < callers->n && pins_at(callers, struct live_caller, end)->fit == fit)
		end++;
	return end;
}

static struct live_caller sum_of(const struct pins_vec *callers, size_t first, size_t end)
{
	struct live_caller sum = *pins_at(callers, struct live_caller, first);

	for (size_t i = first + 1; i < end; i++) {
		const struct live_caller *c = pins_at(callers, struct live_caller, i);

		sum.calls += c->calls;
		sum.held_bytes += c->held_bytes;
		live_add_leased(&sum.leased, &c->leased);
	}
	return sum;
}

static bool is_lease_known(const struct live *l, const struct live_caller *c)
{
	return live_knows_leased(l, &c->leased, c->held_bytes) && c->fit->can != PINS_TRANSIENT;
}

static uint64_t unleased(const struct live_caller *c)
{
	uint64_t other = c->leased.back + c->leased.kept + c->leased.unknown;

	return c->held_bytes > other ? c->held_bytes - other : 0;
}

static void print_sizes(const struct live *l, const char *what, const struct live_caller *c)
{
	char held[24], leased[24] = "?", other[24] = "?";

	tool_size_words(c->held_bytes, false, held, sizeof held);
	if (is_lease_known(l, c)) {
		tool_size_words(c->leased.back, false, leased, sizeof leased);
		tool_size_words(unleased(c), false, other, sizeof other);
	} else if (c->fit->can == PINS_TRANSIENT) /* is over before it could be */
		strcpy(leased, "-"), strcpy(other, "-");
	printf("%-10s %6s %6s %8s ", what, held, leased, other);
}

static int print_sites(const struct live *l, const struct pins_vec *callers, size_t first, size_t end)
{
	for (size_t i = first; i < end; i++) {
		const struct live_caller *c = pins_at(callers, struct live_caller, i);

		print_sizes(l, "", c);
		printf("  %.30s, %" PRIu64 " call%s\n", c->name, c->calls, tool_s(c->calls));
	}
	return (int)(end - first);
}

int live_print_callers(const struct live *l, int room)
{
	struct pins_vec callers = all_callers(l);
	int lines = 2;

	printf("\n%-10s %6s %6s %8s %s\n", "IS", "HELD", "LEASED", "UNLEASED",
	       "POLICY THAT FITS, SITES");
	for (size_t i = 0, end; i < callers.n; i = end) {
		struct live_caller sum;

		end = end_of(&callers, i);
		sum = sum_of(&callers, i, end);
		print_sizes(l, pins_cans[sum.fit->can], &sum);
		puts(sum.fit->policy);
		lines++;
		if (lines + PINS_NR_CANS + (int)(end - i) <= room) /* the others have their line, too */
			lines += print_sites(l, &callers, i, end);
	}
	pins_free(&callers);
	return lines;
}

static void add_bytes(struct json_object *o, const struct live *l, const struct live_caller *c)
{
	bool known = is_lease_known(l, c);

	tool_add_number(o, "calls", c->calls);
	tool_add_number(o, "held_bytes", c->held_bytes);
	live_put_leased(o, &c->leased, known);
	tool_add_known(o, "unleased_bytes", known, unleased(c));
}

static struct json_object *to_json(const struct live *l, const struct live_caller *c)
{
	struct json_object *o = json_object_new_object();

	tool_add_text(o, "site", c->name);
	tool_add_text(o, "device", pins_classes[c->device].name);
	tool_add_text(o, "term", live_terms[c->longterm]);
	add_bytes(o, l, c);
	tool_add_number(o, "pages", c->pages);
	tool_add_number(o, "oldest_ns", c->oldest_ns ? tool_now() - c->oldest_ns : 0);
	return o;
}

struct json_object *live_callers_json(const struct live *l)
{
	struct json_object *all = json_object_new_array();
	struct pins_vec callers = all_callers(l);

	for (size_t i = 0, end; i < callers.n; i = end) {
		struct json_object *o = json_object_new_object(), *sites = json_object_new_array();
		struct live_caller sum;

		end = end_of(&callers, i);
		sum = sum_of(&callers, i, end);
		tool_add_text(o, "class", pins_cans[sum.fit->can]);
		tool_add_text(o, "fitting_policy", sum.fit->policy);
		add_bytes(o, l, &sum);
		for (; i < end; i++)
			json_object_array_add(sites,
					      to_json(l, pins_at(&callers, struct live_caller, i)));
		json_object_object_add(o, "call_sites", sites);
		json_object_array_add(all, o);
	}
	pins_free(&callers);
	return all;
}
