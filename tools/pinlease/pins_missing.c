/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What isn't in the picture: what was pinned before anything was followed, what was lost, and what a
 * census at the end finds besides. Bytes are compared, since a huge page has one pin or one for each
 * page, as the kernel likes.
 */
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>

#include "common.h"
#include "pins_live.h"

/* One of them; more have an "s". */
static const char *const lost_names[] = {
	[LIVE_LOST_EVENTS] = "event",	  [LIVE_LOST_FOLIOS] = "folio",	  [LIVE_LOST_SITES] = "site",
	[LIVE_LOST_STACKS] = "stack",	  [LIVE_LOST_HOLDERS] = "holder", [LIVE_LOST_RETURNS] = "return",
	[LIVE_LOST_RELEASES] = "release",
};

bool live_is_filtered(const struct live *l)
{
	return l->o->filter.pid || l->o->filter.by_file || l->o->filter.device >= 0;
}

/* What a pipe has isn't pinned. */
struct live_sum live_sum_of(const struct census *c)
{
	struct live_sum sum = {0};

	for (size_t i = 0; i < c->rows.n; i++) {
		const struct pins_row *r = pins_at(&c->rows, struct pins_row, i);

		sum.pins += r->pins;
		sum.bytes += r->pins ? r->bytes : 0;
	}
	return sum;
}

static uint64_t less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static uint64_t held_bytes(const struct live *l)
{
	int64_t pages = 0;

	for (int d = 0; d < PINS_NR_DEVICES; d++)
		pages += l->groups[d][0].held_pages + l->groups[d][1].held_pages;
	return pages > 0 ? (uint64_t)pages * PINS_PAGE : 0;
}

/* Programs are attached by now, so that nothing comes between: what they have seen is taken off. */
int live_find_already(struct live *l)
{
	struct census census;
	int err = live_look(l);
	uint64_t held = held_bytes(l);

	pins_start(&census);
	if (!err)
		err = pins_take(&census, &l->o->filter);
	if (!err) {
		l->already = live_sum_of(&census);
		l->already.pins = less(l->already.pins, held / PINS_PAGE);
		l->already.bytes = less(l->already.bytes, held);
	}
	pins_end(&census);
	return err;
}

void live_print_already(const struct live *l)
{
	char size[24];

	tool_size_words(l->already.bytes, l->o->exact, size, sizeof size);
	if (l->already.bytes)
		live_put("Not in this: %s (%" PRIu64
			 " pin%s) that %s pinned before; pinlease pins shows "
			 "what is left.",
			 size, l->already.pins, tool_s(l->already.pins),
			 l->already.pins == 1 ? "was" : "were");
}

/* Pins that the kernel has counted and no program has seen: at most so many, as some come between. */
static uint64_t unseen_pins(const struct live *l)
{
	return l->have_kernel ? less(l->kernel_now.acquired - l->kernel.acquired,
				     live_seen(l).pinned - l->seen.pinned)
			      : 0;
}

static void add_loss(char *words, size_t len, uint64_t n, const char *what)
{
	if (n)
		tool_append(words, len, "%s %" PRIu64 " %s%s", *words ? "," : "LOST:", n, what,
			    tool_s(n));
}

/* What it means: sums of calls and pages lack them, too. */
static void print_unseen(const struct live *l)
{
	uint64_t pins = unseen_pins(l);
	char size[24];

	tool_size_words(pins * PINS_PAGE, l->o->exact, size, sizeof size);
	if (!l->have_kernel)
		live_put("What they pinned is in no line; pinlease pins shows all that is pinned.");
	else if (pins)
		live_put("So HELD, of all that is followed, may be up to %s (%" PRIu64
			 " pin%s) too low, and a leak be missing; pinlease pins shows all that is "
			 "pinned.",
			 size, pins, tool_s(pins));
	else
		live_put("By the kernel's count none of them pinned: HELD lacks nothing.");
}

static void print_losses(const struct live *l)
{
	const char *kprobes = live_knows_missed(l) ? "" : " (what kprobes miss isn't counted here)";
	char words[512] = "";

	for (int i = LIVE_LOST_EVENTS; i <= LIVE_LOST_RELEASES; i++)
		add_loss(words, sizeof words, l->counts[i], lost_names[i]);
	add_loss(words, sizeof words, l->cost.missed, "call");
	if (l->cost.missed)
		tool_append(words, sizeof words,
			    " not seen, as a program of this command was at work on that processor");
	if (*words)
		live_put("%s%s.", words, kprobes);
	else
		live_put("Nothing %s lost%s.", live_knows_missed(l) ? "was" : "is known to be", kprobes);
	if (l->cost.missed || (!live_knows_missed(l) && unseen_pins(l)))
		print_unseen(l);
}

/* Any loss shows here, whatever its reason. */
static void print_kernel(const struct live *l)
{
	struct live_seen seen = live_seen(l);

	if (l->have_kernel)
		live_put("The kernel counts %" PRIu64 " pins acquired, %" PRIu64
			 " released; seen: %" PRIu64 ", %" PRIu64 ".",
			 l->kernel_now.acquired - l->kernel.acquired,
			 l->kernel_now.released - l->kernel.released, seen.pinned - l->seen.pinned,
			 seen.unpinned - l->seen.unpinned);
}

void live_print_lost(const struct live *l)
{
	print_losses(l);
	print_kernel(l);
}

/* Transient pins that weren't chosen to be followed are in HELD not at all. */
static void print_found(const struct live *l)
{
	uint64_t held = held_bytes(l), known = held + l->already.bytes;
	char words[256], size[24];

	tool_size_words(l->at_end.bytes, l->o->exact, size, sizeof size);
	snprintf(words, sizeof words, "The census finds %s pinned; HELD is", size);
	tool_size_words(held, l->o->exact, size, sizeof size);
	tool_append(words, sizeof words, " %s", size);
	tool_size_words(l->already.bytes, l->o->exact, size, sizeof size);
	if (l->already.bytes)
		tool_append(words, sizeof words, ", %s was pinned before", size);
	tool_size_words(less(l->at_end.bytes, known), l->o->exact, size, sizeof size);
	if (l->at_end.bytes > known)
		tool_append(words, sizeof words,
			    ": %s came and isn't in HELD, as it wasn't seen%s, or is I/O under way",
			    size, l->o->filter.pid ? ", another process pinned it" : "");
	live_put("%s.", words);
}

void live_print_census(const struct live *l)
{
	uint64_t all = l->confirmed + l->unseen;

	if (all)
		live_put("Of %" PRIu64 " %s that %s held long-term, the census finds %" PRIu64
			 " pinned; of %" PRIu64 " the release was not seen.",
			 all,
			 l->o->followed ? all == 1 ? "page" : "pages"
			 : all == 1	? "call"
					: "calls",
			 all == 1 ? "is" : "are", l->confirmed, l->unseen);
	print_found(l);
}

/* ------------------------------------------------------------------------------------------ JSON -- */

static struct json_object *sum_json(const struct live_sum *sum)
{
	struct json_object *o = json_object_new_object();

	tool_add_number(o, "pins", sum->pins);
	tool_add_number(o, "bytes", sum->bytes);
	return o;
}

static void add_counter(struct json_object *o, const struct live *l, const char *key, uint64_t n)
{
	tool_add_known(o, key, l->have_kernel, n);
}

static struct json_object *kernel(const struct live *l)
{
	struct json_object *o = json_object_new_object();
	struct live_seen seen = live_seen(l);

	add_counter(o, l, "acquired", l->kernel_now.acquired - l->kernel.acquired);
	add_counter(o, l, "released", l->kernel_now.released - l->kernel.released);
	tool_add_number(o, "acquired_seen", seen.pinned - l->seen.pinned);
	tool_add_number(o, "released_seen", seen.unpinned - l->seen.unpinned);
	return o;
}

static struct json_object *losses(const struct live *l)
{
	struct json_object *o = json_object_new_object();

	char key[24];

	for (int i = LIVE_LOST_EVENTS; i <= LIVE_LOST_RELEASES; i++) {
		snprintf(key, sizeof key, "%ss", lost_names[i]);
		tool_add_number(o, key, l->counts[i]);
	}
	tool_add_number(o, "calls", l->cost.missed);
	add_counter(o, l, "pins", unseen_pins(l));
	return o;
}

void live_add_missing(struct json_object *o, const struct live *l, bool last)
{
	json_object_object_add(o, "pinned_before", sum_json(&l->already));
	tool_add_number(o, "held_confirmed", l->confirmed);
	tool_add_number(o, "release_not_seen", l->unseen);
	if (last)
		json_object_object_add(o, "census", sum_json(&l->at_end));
	json_object_object_add(o, "lost", losses(l));
	json_object_object_add(o, "kernel", kernel(l));
}
