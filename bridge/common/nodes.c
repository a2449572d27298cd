/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A device that has no memory: it gives each lease a node, which stands for this life of its addresses.
 * A range is as it was as long as pinl_get() finds the node that it was put on.
 *
 * What is on a node that has ended is told in one of two ways. By a thread that nobody waits for, the
 * teller: the library that is told may have a lock that who changes memory holds. Or at once, while who
 * changes memory is held (a policy with RECALL): then the library has to take it without waiting for
 * anybody.
 */
#include "nodes.h"

#include <errno.h>
#include <pinlease/device.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096ul

struct pl_node {
	struct pl_watched *first;
	struct pl_node *next; /* dead */
};

pthread_mutex_t pl_nodes_lock = PTHREAD_MUTEX_INITIALIZER;

static struct {
	const struct pl_nodes_opts *opts;
	struct pl_node *_Atomic dead;
	sem_t bell;
	atomic_bool stop;
	pthread_t teller;
	struct pinl_ctx *own; /* NULL: it is the program's */
	struct pinl_device *dev;
} nodes;

/* -------------------------------------------------------------------------------- the ranges -- */

void pl_node_attach(struct pl_node *node, struct pl_watched *w)
{
	w->node = node;
	w->after = node->first;
	w->before = &node->first;
	if (w->after)
		w->after->before = &w->after;
	node->first = w;
}

void pl_node_detach(struct pl_watched *w)
{
	if (!w->node)
		return;
	w->node = NULL;
	*w->before = w->after;
	if (w->after)
		w->after->before = w->before;
}

/* The node's first range, which its owner may free from here on unless `gone` says otherwise. */
static struct pl_watched *take(struct pl_node *node, const void **addr, size_t *len)
{
	struct pl_watched *w;

	pthread_mutex_lock(&pl_nodes_lock);
	w = node->first;
	if (w) {
		*addr = w->addr;
		*len = w->len;
		pl_node_detach(w);
		if (nodes.opts->gone)
			nodes.opts->gone(w);
	}
	pthread_mutex_unlock(&pl_nodes_lock);
	return w;
}

static void tell(struct pl_node *node)
{
	struct pl_watched *w;
	const void *addr;
	size_t len;

	while ((w = take(node, &addr, &len)))
		nodes.opts->tell(w, addr, len);
}

/* ------------------------------------------------------------------------------- the device -- */

static int dev_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	const struct pl_nodes_opts *opts = arg;

	*info = (struct pinl_device_info){
		.device_class = PINL_DEV_FAULTING, .caps = PINL_DEVCAP_ONDEMAND, .why = opts->why};
	*dev = NULL;
	return 0;
}

static void dev_close(void *dev)
{
}

static int dev_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	struct pl_node *node = calloc(1, sizeof *node);

	if (!node)
		return pinl_set_error(-ENOMEM, "out of memory for a range of %s's", nodes.opts->device);
	m->priv = node;
	for (size_t i = 0; addrs && i < (m->end - m->start) / PAGE; i++)
		addrs[i] = (struct pinl_addr){.addr = (uintptr_t)node + i * PAGE};
	return 0;
}

static void tell_now(struct pinl_mapping *m)
{
	if (!nodes.opts->teller)
		tell(m->priv);
}

/* By whoever ends the lease, a thread in the middle of pl_node_get() perhaps. What is on the node is
 * told also when nothing has changed: nobody watches it any more. */
static void dev_unmap(void *dev, struct pinl_mapping *m)
{
	tell_now(m);
}

static void dev_forget(void *dev, struct pinl_mapping *m)
{
	struct pl_node *node = m->priv;

	if (!nodes.opts->teller) {
		free(node);
		return;
	}
	node->next = atomic_load(&nodes.dead);
	while (!atomic_compare_exchange_weak(&nodes.dead, &node->next, node))
		;
	sem_post(&nodes.bell);
}

static int dev_stop(void *dev, struct pinl_mapping *m)
{
	tell_now(m);
	return 0;
}

static int dev_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	return 0;
}

/* The cache has let go of it already. */
static int dev_invalidate(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end)
{
	return 0;
}

/* ------------------------------------------------------------------------------- the teller -- */

static void tell_all(void)
{
	struct pl_node *node, *next;

	for (node = atomic_exchange(&nodes.dead, NULL); node; node = next) {
		next = node->next;
		tell(node);
		free(node);
	}
}

static void *teller(void *arg)
{
	while (!atomic_load(&nodes.stop)) {
		while (sem_wait(&nodes.bell))
			;
		tell_all();
	}
	return NULL;
}

static int teller_start(void)
{
	sigset_t all, before;
	int err;

	atomic_store(&nodes.stop, false);
	sem_init(&nodes.bell, 0, 0);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&nodes.teller, NULL, teller, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err)
		return pinl_set_error(-err, "no thread for %s's notices: %s", nodes.opts->device,
				      strerror(err));
	pthread_setname_np(nodes.teller, nodes.opts->teller);
	return 0;
}

static void teller_stop(void)
{
	atomic_store(&nodes.stop, true);
	sem_post(&nodes.bell);
	pthread_join(nodes.teller, NULL);
	tell_all();
	sem_destroy(&nodes.bell);
}

/* --------------------------------------------------------------------------- open and close -- */

static int open_device(struct pinl_ctx *ctx)
{
	static struct pinl_device_ops ops = {
		.size = sizeof ops,
		.open = dev_open,
		.close = dev_close,
		.map = dev_map,
		.unmap = dev_unmap,
		.forget = dev_forget,
		.stop = dev_stop,
		.drain = dev_drain,
		.invalidate = dev_invalidate,
	};
	struct pinl_cache_opts opts = {.size = sizeof opts,
				       .policy = nodes.opts->policy,
				       .max_merge = 1,
				       .no_huge = 1,
				       .max_regions = nodes.opts->max_regions};
	struct pinl_device *dev;
	int err;

	ops.name = nodes.opts->device;
	err = pinl_device_open_ops(ctx, &ops, nodes.opts, &dev);
	if (err)
		return err;
	err = pinl_cache_open(dev, &opts);
	if (!err && nodes.opts->teller)
		err = teller_start();
	if (err)
		pinl_device_close(dev);
	else
		nodes.dev = dev;
	return err;
}

int pl_nodes_open(struct pinl_ctx *ctx, const struct pl_nodes_opts *opts)
{
	struct pinl_opts plain = {.size = sizeof plain, .summary_fd = -1};
	struct pinl_ctx *own = NULL;
	int err = ctx ? 0 : pinl_open(&plain, &own);

	if (err)
		return err;
	nodes.opts = opts;
	err = open_device(ctx ? ctx : own);
	if (err)
		pinl_close(own);
	else
		nodes.own = own;
	return err;
}

void pl_nodes_close(void)
{
	pinl_device_close(nodes.dev);
	if (nodes.opts->teller)
		teller_stop();
	pinl_close(nodes.own);
	nodes.own = NULL;
	nodes.dev = NULL;
}

struct pinl_device *pl_nodes_device(void)
{
	return nodes.dev;
}

/* ------------------------------------------------------------------------------- the lookup -- */

int pl_node_get(const void *addr, size_t len, const struct pinl_reg **reg, struct pl_node **node)
{
	int err = pinl_get(nodes.dev, addr, len, 0, reg);

	if (!err)
		*node = (struct pl_node *)(uintptr_t)(*reg)->addr;
	return err;
}

bool pl_node_is(const struct pl_node *node, const void *addr, size_t len)
{
	const struct pinl_reg *reg;
	struct pl_node *now;

	if (!node || pl_node_get(addr, len, &reg, &now))
		return false;
	pinl_put(reg);
	return now == node;
}
