/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Ranges that a library has registered, each on a node, which stands for one life of its addresses. */
#ifndef PL_COMMON_NODES_H
#define PL_COMMON_NODES_H

#include <pinlease/cache.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pl_node;

/* A part of who keeps it. */
struct pl_watched {
	const void *addr;
	size_t len;
	struct pl_node *node; /* NULL: on none */
	struct pl_watched *after, **before;
};

struct pl_nodes_opts {
	const char *device;	   /* its name */
	const char *why;	   /* it does no more: one clause */
	const char *teller;	   /* name of the thread that tells; NULL: told at once, see below */
	struct pinl_policy policy; /* size 0: who changes memory doesn't wait */
	size_t max_regions;
	/* It is on no node any more; pl_nodes_lock held. NULL: that is all. */
	void (*gone)(struct pl_watched *w);
	/*
	 * After that, no lock held: [addr, addr + len) has changed, or isn't known to be unchanged.
	 * Without a teller whoever makes a change waits for this: it may neither allocate nor free nor
	 * wait. What is still w's owner's to say: whether w is there.
	 */
	void (*tell)(struct pl_watched *w, const void *addr, size_t len);
};

/* Covers nodes, what is on them, and the owners' own tables. Nothing is called under it but `gone`. */
extern pthread_mutex_t pl_nodes_lock;

/* One set at a time. ctx NULL: its own. */
int pl_nodes_open(struct pinl_ctx *ctx, const struct pl_nodes_opts *opts);
void pl_nodes_close(void);
struct pinl_device *pl_nodes_device(void);

/* As pinl_get(), of the node that stands for these addresses now; it lives until pinl_put(reg), and as
 * long as nothing changes. */
int pl_node_get(const void *addr, size_t len, const struct pinl_reg **reg, struct pl_node **node);

/* Lock held. */
void pl_node_attach(struct pl_node *node, struct pl_watched *w);
void pl_node_detach(struct pl_watched *w);

/* Nothing had happened to the range since this node was got when this begins. */
bool pl_node_is(const struct pl_node *node, const void *addr, size_t len);

#endif
