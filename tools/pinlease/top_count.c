/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Leases added up. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "top.h"

static int order(uint64_t a, uint64_t b)
{
	return a < b ? -1 : a > b;
}

/* What is being taken has no deadline any more, so it comes first. */
static int by_urgency(const void *a, const void *b)
{
	const struct pl_entry_msg *x = a, *y = b;

	if (ps_is_recalled(x) != ps_is_recalled(y))
		return ps_is_recalled(x) ? -1 : 1;
	return order(x->deadline_ns, y->deadline_ns);
}

static int by_holder(const struct pl_entry_msg *x, const struct pl_entry_msg *y)
{
	return order(x->pid, y->pid);
}

static int by_file(const struct pl_entry_msg *x, const struct pl_entry_msg *y)
{
	int o = order(x->file_dev, y->file_dev);

	return o ? o : order(x->file_ino, y->file_ino);
}

static int by_device(const struct pl_entry_msg *x, const struct pl_entry_msg *y)
{
	return strcmp(x->device, y->device);
}

typedef int (*entry_order)(const struct pl_entry_msg *, const struct pl_entry_msg *);
static const entry_order orders[TOP_NR] = {by_holder, by_file, by_device};

static int compare(const void *a, const void *b, void *how)
{
	return (*(const entry_order *)how)(*(const struct pl_entry_msg *const *)a,
					   *(const struct pl_entry_msg *const *)b);
}

static int by_size(const void *a, const void *b)
{
	const struct top_group *x = a, *y = b;

	return x->leased != y->leased ? order(y->leased, x->leased)
				      : order(x->first->pid, y->first->pid);
}

static void add(struct top_group *g, const struct pl_entry_msg *e)
{
	uint64_t bytes = e->end - e->start;

	bytes = e->state == PINL_RELEASED || e->detached > bytes ? 0 : bytes - e->detached;
	g->leases++;
	g->leased += bytes;
	g->pinned += e->flags & PINL_PIN ? bytes : 0;
	g->recalls += ps_is_recalled(e);
	if (e->since_ns < g->oldest_ns)
		g->oldest_ns = e->since_ns;
}

static void group(struct top_picture *p, const struct pl_entry_msg **sorted)
{
	struct top_group *g = NULL;

	p->n_groups = 0;
	for (size_t i = 0; i < p->found.n; i++) {
		if (!g || orders[p->by](g->first, sorted[i])) {
			g = &p->groups[p->n_groups++];
			*g = (struct top_group){.first = sorted[i], .oldest_ns = UINT64_MAX};
		}
		add(g, sorted[i]);
	}
	qsort(p->groups, p->n_groups, sizeof *p->groups, by_size);
}

int top_count(struct top_picture *p)
{
	const struct pl_entry_msg **sorted;
	size_t n = p->found.n;

	p->n_groups = p->n_recalls = 0;
	if (!n)
		return 0;
	free(p->groups);
	p->groups = calloc(n, sizeof *p->groups);
	sorted = calloc(n, sizeof *sorted);
	if (!p->groups || !sorted) {
		free(sorted);
		return -ENOMEM;
	}
	qsort(p->found.entries, n, sizeof *p->found.entries, by_urgency);
	while (p->n_recalls < n && ps_is_recalled(&p->found.entries[p->n_recalls]))
		p->n_recalls++;
	for (size_t i = 0; i < n; i++)
		sorted[i] = &p->found.entries[i];
	qsort_r(sorted, n, sizeof *sorted, compare, (void *)&orders[p->by]);
	group(p, sorted);
	free(sorted);
	return 0;
}
