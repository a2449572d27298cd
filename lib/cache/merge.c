/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is registered for a miss. What overlaps is taken in, since no two registrations may be found for
 * one address. What only touches is taken in if it is no larger than what there is without it, so that
 * memory used page by page is registered again a logarithmic number of times, not each time.
 */
#include "cache/merge.h"

static bool is_valid(const struct pl_region *r)
{
	return atomic_load(&r->gen) & PL_GEN_VALID;
}

static unsigned access_of(const struct pl_region *r)
{
	return atomic_load(&r->gen) & PL_GEN_WRITE ? PINL_WRITE : 0;
}

/* The first one in the tree that overlaps the range. */
static struct pl_region *first_over(struct pl_cache *c, const struct pl_range *range)
{
	struct pl_region *r = pl_tree_find(&c->tree, range->start);

	if (r && r->reg.end > range->start)
		return r;
	r = pl_tree_next(&c->tree, range->start);
	return r && r->reg.start < range->end ? r : NULL;
}

static void take_in(struct pl_union *plan, const struct pl_region *r)
{
	struct pl_range range = {r->reg.start, r->reg.end};

	pl_range_widen(&plan->range, &range);
	plan->access |= access_of(r);
}

static void take_overlapping(struct pl_cache *c, struct pl_union *plan)
{
	struct pl_range rest = plan->range;
	struct pl_region *r;

	while (rest.start < rest.end && (r = first_over(c, &rest))) {
		rest.start = r->reg.end;
		if (is_valid(r))
			take_in(plan, r);
		else
			pl_region_unlink(c, r);
	}
}

static bool worth_it(struct pl_cache *c, const struct pl_union *plan, const struct pl_region *r)
{
	size_t len = plan->range.end - plan->range.start, more = r->reg.end - r->reg.start;
	size_t most = c->opts.max_merge ? c->opts.max_merge : PL_MAX_MERGE;

	return is_valid(r) && access_of(r) == plan->access && more <= len && len + more <= most &&
	       !pl_users(c, r);
}

static void take_touching(struct pl_cache *c, struct pl_union *plan)
{
	struct pl_region *left = pl_tree_find(&c->tree, plan->range.start - 1),
			 *right = pl_tree_next(&c->tree, plan->range.end);

	if (left && left->reg.end == plan->range.start && worth_it(c, plan, left))
		take_in(plan, left);
	if (right && right->reg.start == plan->range.end && worth_it(c, plan, right))
		take_in(plan, right);
}

/* The usual case: nothing overlaps or touches it. (What only touches has no address of the range, and is
 * found by one of its own.) */
static bool is_alone(struct pl_cache *c, struct pl_union *plan)
{
	struct pl_region *left = pl_tree_find(&c->tree, plan->range.start - 1), *right;

	if (left && left->reg.end >= plan->range.start)
		return false;
	right = pl_tree_next(&c->tree, plan->range.start);
	if (right && right->reg.start <= plan->range.end)
		return false;
	plan->before = left;
	return true;
}

void pl_union_of(struct pl_cache *c, const struct pl_want *want, struct pl_union *plan)
{
	size_t len = 0;

	*plan = (struct pl_union){.range = {want->start, want->end}, .access = want->access};
	pl_extend_huge(c, &plan->range);
	plan->alone = is_alone(c, plan);
	while (!plan->alone && len != plan->range.end - plan->range.start) {
		len = plan->range.end - plan->range.start;
		take_overlapping(c, plan);
		take_touching(c, plan);
	}
}

struct pl_region *pl_union_used(struct pl_cache *c, const struct pl_union *plan)
{
	struct pl_range rest = plan->range;
	struct pl_region *r = NULL;

	for (; !plan->alone && rest.start < rest.end && (r = first_over(c, &rest));
	     rest.start = r->reg.end)
		if (is_valid(r) && pl_users(c, r))
			return r;
	return NULL;
}

size_t pl_union_clear(struct pl_cache *c, const struct pl_union *plan)
{
	struct pl_region *r;
	size_t n = 0;

	for (; !plan->alone && (r = first_over(c, &plan->range)); n++) {
		if (pl_region_kill(r))
			pl_count(c, merged);
		pl_region_unlink(c, r);
	}
	return n;
}
