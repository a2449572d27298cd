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

static const char *const lost_names[] = {
	[LIVE_LOST_EVENTS] = "events",	   [LIVE_LOST_FOLIOS] = "folios",
	[LIVE_LOST_SITES] = "sites",	   [LIVE_LOST_STACKS] = "stacks",
	[LIVE_LOST_HOLDERS] = "holders",   [LIVE_LOST_RETURNS] = "returns",
	[LIVE_LOST_RELEASES] = "releases",
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

static uint64_t lost(const struct live *l)
{
	uint64_t n = l->cost.missed;

	for (int i = LIVE_LOST_EVENTS; i <= LIVE_LOST_RELEASES; i++)
		n += l->counts[i];
	return n;
}

static void print_losses(const struct live *l)
{
	char words[512] = "LOST:";

	if (!lost(l)) {
		live_put(
			live_knows_missed(l)
				? "Nothing was lost."
				: "Nothing is known to be lost (what kprobes miss isn't counted here).");
		return;
	}
	for (int i = LIVE_LOST_EVENTS; i <= LIVE_LOST_RELEASES; i++)
		if (l->counts[i])
			tool_append(words, sizeof words, " %" PRIu64 " %s,", l->counts[i],
				    lost_names[i]);
	live_put("%s %" PRIu64 " calls not seen (interrupted a program%s).", words, l->cost.missed,
		 live_knows_missed(l) ? "" : "; what kprobes miss isn't counted here");
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
	uint64_t held = held_bytes(l), rest = less(l->at_end.bytes, held),
		 more = less(rest, l->already.bytes);
	char found[24], of_held[24], before[24], came[24];

	tool_size_words(l->at_end.bytes, l->o->exact, found, sizeof found);
	tool_size_words(held, l->o->exact, of_held, sizeof of_held);
	tool_size_words(rest - more, l->o->exact, before, sizeof before);
	tool_size_words(more, l->o->exact, came, sizeof came);
	if (!rest)
		live_put("The census finds %s pinned; HELD is %s.", found, of_held);
	else if (!more)
		live_put("The census finds %s pinned; HELD is %s, %s was pinned before.", found, of_held,
			 before);
	else
		live_put("The census finds %s pinned; HELD is %s, %s may have been pinned before, so %s "
			 "came and isn't in HELD: it wasn't seen, or is I/O under way.",
			 found, of_held, before, came);
}

void live_print_census(const struct live *l)
{
	if (l->confirmed + l->unseen)
		live_put("Of %" PRIu64 " that are held long-term, the census finds %" PRIu64
			 " pinned; of %" PRIu64 " the release was not seen.",
			 l->confirmed + l->unseen, l->confirmed, l->unseen);
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
	json_object_object_add(o, key, l->have_kernel ? json_object_new_uint64(n) : NULL);
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

	for (int i = LIVE_LOST_EVENTS; i <= LIVE_LOST_RELEASES; i++)
		tool_add_number(o, lost_names[i], l->counts[i]);
	tool_add_number(o, "calls", l->cost.missed);
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
