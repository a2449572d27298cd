/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The ranges of libfabric's caches. A range is valid as long as pinl_get() finds the node that it was
 * added on (bridge/common/nodes.c).
 *
 * Called under libfabric's one lock by who may wait for nobody that wants this lock. So neither the
 * reader of changes nor the worker nor the cache's cleaner ever calls libfabric: the teller passes on
 * what they find, a thread that nobody waits for. An allocation under libfabric's lock may unmap memory
 * and wait for the reader; that is why it must be so.
 *
 * pl_nodes_lock covers the table, too.
 */
#include "watch.h"

#include <errno.h>
#include <stdlib.h>

#include "../common/nodes.h"

#define BUCKETS	    16384u
#define MAX_REGIONS 65536 /* libfabric has 1024 unless told otherwise; 1.5 KiB each */

/* What libfabric calls a range: it comes back in `valid` exactly as in `subscribe`. */
struct range {
	struct pl_watched on; /* the first member */
	size_t added;	      /* times: two domains may have it */
	struct range *next;   /* in its bucket */
};

static struct range *bucket[BUCKETS];
static pl_changed_fn tell_libfabric;

/* The place that points to it, or to NULL. */
static struct range **find(const void *addr, size_t len)
{
	uint64_t hash = ((uintptr_t)addr ^ len << 20) * 0x9e3779b97f4a7c15ull;
	struct range **p = &bucket[hash >> 50];

	while (*p && ((*p)->on.addr != addr || (*p)->on.len != len))
		p = &(*p)->next;
	return p;
}

/* False: it was there already, fresh isn't needed. */
static bool add(struct range *fresh, struct pl_node *node)
{
	struct range **p = find(fresh->on.addr, fresh->on.len), *r = *p;

	if (r)
		pl_node_detach(&r->on);
	else
		*p = r = fresh;
	r->added++;
	pl_node_attach(node, &r->on);
	return r == fresh;
}

/* Until it is put, the region is alive and so is its node: it isn't told yet. */
int pl_watch_add(const void *addr, size_t len)
{
	struct range *fresh = calloc(1, sizeof *fresh);
	const struct pinl_reg *reg;
	struct pl_node *node;
	bool used = false;
	int err;

	if (!fresh)
		return -ENOMEM;
	fresh->on = (struct pl_watched){.addr = addr, .len = len};
	err = pl_node_get(addr, len, &reg, &node);
	if (!err) {
		pthread_mutex_lock(&pl_nodes_lock);
		used = add(fresh, node);
		pthread_mutex_unlock(&pl_nodes_lock);
		pinl_put(reg);
	}
	if (!used)
		free(fresh);
	return err;
}

void pl_watch_remove(const void *addr, size_t len)
{
	struct range **p, *r;

	pthread_mutex_lock(&pl_nodes_lock);
	p = find(addr, len);
	r = *p;
	if (r && --r->added == 0) {
		*p = r->next;
		pl_node_detach(&r->on);
	} else {
		r = NULL;
	}
	pthread_mutex_unlock(&pl_nodes_lock);
	free(r);
}

bool pl_watch_valid(const void *addr, size_t len)
{
	struct pl_node *node;
	struct range *r;

	pthread_mutex_lock(&pl_nodes_lock);
	r = *find(addr, len);
	node = r ? r->on.node : NULL;
	pthread_mutex_unlock(&pl_nodes_lock);
	return pl_node_is(node, addr, len);
}

/* The range isn't known any more from here on. */
static void gone(struct pl_watched *w)
{
	struct range *r = (struct range *)w;

	*find(w->addr, w->len) = r->next;
}

static void tell(struct pl_watched *w, const void *addr, size_t len)
{
	tell_libfabric(addr, len);
	free(w);
}

int pl_watch_open(struct pinl_ctx *ctx, pl_changed_fn changed)
{
	static const struct pl_nodes_opts opts = {.device = "libfabric",
						  .why = "it only watches for libfabric",
						  .teller = "pinl-libfabric",
						  .max_regions = MAX_REGIONS,
						  .gone = gone,
						  .tell = tell};

	tell_libfabric = changed;
	return pl_nodes_open(ctx, &opts);
}

void pl_watch_close(void)
{
	pl_nodes_close();
}

struct pinl_device *pl_watch_device(void)
{
	return pl_nodes_device();
}
