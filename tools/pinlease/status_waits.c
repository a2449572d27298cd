/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who waits for leases, of each lease who does so longest: whoever wonders why his program stands still
 * finds it. */
#include <json-c/json.h>
#include <limits.h>
#include <string.h>

#include "common.h"
#include "status.h"

#define LINES 16

/* Who has had a change deferred doesn't stand still. */
static bool is_waited_for(const struct pl_entry_msg *e)
{
	return ps_is_recalled(e) && e->held && e->actor_pid && strcmp(e->source, "later");
}

/* Of one who waits for several leases the first is enough. */
static bool is_first(const struct ps_found *f, size_t i)
{
	const struct pl_entry_msg *e = &f->entries[i];

	for (size_t k = 0; is_waited_for(e) && k < i; k++)
		if (is_waited_for(&f->entries[k]) && f->entries[k].actor_pid == e->actor_pid &&
		    f->entries[k].actor_tid == e->actor_tid)
			return false;
	return is_waited_for(e);
}

static uint64_t waited_ns(const struct pl_entry_msg *e)
{
	uint64_t now = tool_now();

	return e->held_ns && now > e->held_ns ? now - e->held_ns : 0;
}

static void print_one(const struct pl_entry_msg *e)
{
	char who[96], path[PATH_MAX], holder[64];

	ps_actor_name(e, who, sizeof who);
	tool_path_words(e->path, INT_MAX, path, sizeof path);
	tool_path_words(e->program, INT_MAX, holder, sizeof holder);
	status_put("waits", "process %d %s, for %.1fs, %s: %s of %s, for lease %lu of %s (%d)",
		   e->actor_pid, *who ? who : "?", (double)waited_ns(e) / 1e9,
		   strcmp(e->source, "gate") ? e->source : "at the gate",
		   e->op < PINL_OP_NR ? pinl_op_name(e->op) : "recall", path, (unsigned long)e->lease,
		   holder, e->pid);
}

void status_print_waits(const struct ps_found *f)
{
	unsigned n = 0;

	for (size_t i = 0; i < f->n; i++)
		if (is_first(f, i) && n++ < LINES)
			print_one(&f->entries[i]);
	if (n > LINES)
		status_put("waits", "%u more: see pinlease ps", n - LINES);
}

struct json_object *status_waits_json(const struct ps_found *f)
{
	struct json_object *all = json_object_new_array(), *o;
	char who[96];

	for (size_t i = 0; i < f->n; i++) {
		const struct pl_entry_msg *e = &f->entries[i];

		if (!is_first(f, i))
			continue;
		ps_actor_name(e, who, sizeof who);
		o = json_object_new_object();
		tool_add_number(o, "pid", e->actor_pid);
		tool_add_number(o, "tid", e->actor_tid);
		tool_add_text(o, "program", who);
		tool_add_number(o, "waited_ns", waited_ns(e));
		tool_add_text(o, "source", e->source);
		tool_add_text(o, "by", e->op < PINL_OP_NR ? pinl_op_name(e->op) : "recall");
		tool_add_text(o, "path", e->path);
		tool_add_number(o, "lease", e->lease);
		tool_add_number(o, "holder_pid", e->pid);
		tool_add_text(o, "holder", e->program);
		json_object_array_add(all, o);
	}
	return all;
}
