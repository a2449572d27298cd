/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ibv_reg_mr() and ibv_dereg_mr() in front of libibverbs': the only place where it can be seen what UCX
 * registers, since its modules are loaded with symbols bound to the first definition in the process.
 *
 * A region is put on its node before its pages are pinned, and comes off it when it is deregistered.
 * What happens in between is told (bridge/common/nodes.c): by the worker while who changes it is held,
 * before it gets to the pages; and by who registers, if the node isn't current any more when the pages
 * are pinned. So UCX's next lookup after a change finds nothing.
 *
 * Most registrations are made and ended under UCX's lock of a cache, which nobody needs who tells it.
 */
#include "regions.h"

#include <dlfcn.h>
#include <errno.h>
#include <infiniband/verbs.h>
#include <pinlease/device.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "../common/nodes.h"

#undef ibv_reg_mr
#undef ibv_reg_mr_iova

#define BUCKETS	    4096u
#define MAX_REGIONS 1048576 /* beyond it those that are used are registered again and again */

#define EXPORTED __attribute__((visibility("default")))

struct region {
	struct pl_watched on; /* the first member */
	const struct ibv_mr *mr;
	struct region *next; /* in its bucket */
};

enum { OFF, LATER, ON, OVER };

static struct region *bucket[BUCKETS]; /* pl_nodes_lock */
static atomic_int state;
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
/* Read by who registers, UCX's own thread too, as long as he uses the nodes; written by who starts and
 * stops. Before `opening`. */
static pthread_rwlock_t changing = PTHREAD_RWLOCK_INITIALIZER;
static pl_forget_fn forget;

static struct {
	pthread_once_t once;
	struct ibv_mr *(*reg)(struct ibv_pd *, void *, size_t, int);
	struct ibv_mr *(*reg_iova)(struct ibv_pd *, void *, size_t, uint64_t, int);
	struct ibv_mr *(*reg_iova2)(struct ibv_pd *, void *, size_t, uint64_t, unsigned);
	int (*dereg)(struct ibv_mr *);
} real = {.once = PTHREAD_ONCE_INIT};

/* ------------------------------------------------------------------------------- libibverbs' -- */

static void *next(void *verbs, const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);

	return found || !verbs ? found : dlsym(verbs, name);
}

/* It may be loaded where RTLD_NEXT doesn't look. */
static void find_real(void)
{
	void *verbs = dlopen("libibverbs.so.1", RTLD_LAZY);

	real.reg = next(verbs, "ibv_reg_mr");
	real.reg_iova = next(verbs, "ibv_reg_mr_iova");
	real.reg_iova2 = next(verbs, "ibv_reg_mr_iova2");
	real.dereg = next(verbs, "ibv_dereg_mr");
}

/* -------------------------------------------------------------------------------- the table -- */

static struct region **find(const struct ibv_mr *mr)
{
	uint64_t hash = (uintptr_t)mr * 0x9e3779b97f4a7c15ull;
	struct region **p = &bucket[hash >> 52];

	while (*p && (*p)->mr != mr)
		p = &(*p)->next;
	return p;
}

static void insert(struct region *r, const struct ibv_mr *mr)
{
	struct region **p;

	pthread_mutex_lock(&pl_nodes_lock);
	r->mr = mr;
	p = find(mr);
	r->next = *p;
	*p = r;
	pthread_mutex_unlock(&pl_nodes_lock);
}

/* NULL: it isn't watched. */
static struct region *take_out(const struct ibv_mr *mr)
{
	struct region **p, *r;

	pthread_mutex_lock(&pl_nodes_lock);
	p = find(mr);
	r = *p;
	if (r) {
		*p = r->next;
		pl_node_detach(&r->on);
	}
	pthread_mutex_unlock(&pl_nodes_lock);
	return r;
}

/* -------------------------------------------------------------------------------- the watch -- */

static void tell(struct pl_watched *w, const void *addr, size_t len)
{
	forget(addr, len);
}

/* Who changes leased memory is held for nothing but `tell`. */
static const struct pl_nodes_opts opts = {
	.device = "ucx",
	.why = "it only watches for UCX",
	.policy = {.size = sizeof opts.policy, .kind = PINL_RECALL, .then = PINL_THEN_FAIL},
	.max_regions = MAX_REGIONS,
	.tell = tell,
};

static bool is_on(void)
{
	int err;

	if (atomic_load(&state) != LATER)
		return atomic_load(&state) == ON;
	pthread_mutex_lock(&opening);
	if (atomic_load(&state) == LATER) {
		err = pl_nodes_open(NULL, &opts);
		if (err)
			fprintf(stderr, "pinlease: UCX registers without a cache: %s\n", pinl_error());
		atomic_store(&state, err ? OVER : ON);
	}
	pthread_mutex_unlock(&opening);
	return atomic_load(&state) == ON;
}

struct watching {
	struct region *region; /* NULL: it isn't watched */
	struct pl_node *node;
	const struct pinl_reg *reg; /* held meanwhile, so that the node stays */
};

/* Until end(). */
static void begin(struct watching *w, const void *addr, size_t len)
{
	struct region *r;

	*w = (struct watching){0};
	pthread_rwlock_rdlock(&changing);
	if (!is_on())
		return;
	r = calloc(1, sizeof *r);
	if (!r)
		return;
	if (pl_node_get(addr, len, &w->reg, &w->node)) {
		free(r);
		return;
	}
	r->on = (struct pl_watched){.addr = addr, .len = len};
	pthread_mutex_lock(&pl_nodes_lock);
	pl_node_attach(w->node, &r->on);
	pthread_mutex_unlock(&pl_nodes_lock);
	w->region = r;
}

static void not_registered(struct watching *w)
{
	pthread_mutex_lock(&pl_nodes_lock);
	pl_node_detach(&w->region->on);
	pthread_mutex_unlock(&pl_nodes_lock);
	free(w->region);
}

static struct ibv_mr *end(struct watching *w, struct ibv_mr *mr, const void *addr, size_t len)
{
	int err = errno;

	if (mr && w->region)
		insert(w->region, mr);
	else if (w->region)
		not_registered(w);
	if (mr && !pl_node_is(w->node, addr, len))
		forget(addr, len);
	if (w->reg)
		pinl_put(w->reg);
	pthread_rwlock_unlock(&changing);
	errno = err;
	return mr;
}

/* The kernel keeps on-demand regions right. */
static bool concerns_us(size_t len, unsigned access)
{
	return atomic_load(&state) != OFF && len && !(access & IBV_ACCESS_ON_DEMAND);
}

/* -------------------------------------------------------------------------------- the calls -- */

EXPORTED struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
	struct watching w;

	pthread_once(&real.once, find_real);
	if (!concerns_us(len, access))
		return real.reg(pd, addr, len, access);
	begin(&w, addr, len);
	return end(&w, real.reg(pd, addr, len, access), addr, len);
}

EXPORTED struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova,
					int access)
{
	struct watching w;

	pthread_once(&real.once, find_real);
	if (!concerns_us(len, access))
		return real.reg_iova(pd, addr, len, iova, access);
	begin(&w, addr, len);
	return end(&w, real.reg_iova(pd, addr, len, iova, access), addr, len);
}

EXPORTED struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova,
					 unsigned access)
{
	struct watching w;

	pthread_once(&real.once, find_real);
	if (!concerns_us(len, access))
		return real.reg_iova2(pd, addr, len, iova, access);
	begin(&w, addr, len);
	return end(&w, real.reg_iova2(pd, addr, len, iova, access), addr, len);
}

/* Out of the table first: another region may have the same address as soon as this one is gone. */
EXPORTED int ibv_dereg_mr(struct ibv_mr *mr)
{
	struct region *r = NULL;
	int err;

	pthread_once(&real.once, find_real);
	if (atomic_load(&state) != OFF)
		r = take_out(mr);
	err = real.dereg(mr);
	if (err && r) /* nobody watches it any more */
		forget(r->on.addr, r->on.len);
	free(r);
	return err;
}

/* This one, whoever is first in the process. */
extern __typeof__(ibv_reg_mr_iova2) ours
	__attribute__((alias("ibv_reg_mr_iova2"), visibility("hidden")));

/* --------------------------------------------------------------------------- start and stop -- */

int pl_regions_start(struct pinl_ctx *ctx, bool later, pl_forget_fn fn)
{
	int err = 0;

	if (dlsym(RTLD_DEFAULT, "ibv_reg_mr_iova2") != (void *)ours)
		return pinl_set_error(
			-ENOSYS, "UCX's calls of ibv_reg_mr() don't come to pinlease: link the program "
				 "with -lpinlease-ucx before -libverbs, or preload it");
	pthread_rwlock_wrlock(&changing);
	forget = fn;
	if (!later)
		err = pl_nodes_open(ctx, &opts);
	if (!err)
		atomic_store(&state, later ? LATER : ON);
	pthread_rwlock_unlock(&changing);
	return err;
}

/* What is registered still is told when its lease ends. */
void pl_regions_stop(void)
{
	pthread_rwlock_wrlock(&changing);
	pthread_mutex_lock(&opening);
	if (atomic_exchange(&state, OVER) == ON)
		pl_nodes_close();
	pthread_mutex_unlock(&opening);
	pthread_rwlock_unlock(&changing);
}
