/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A B+tree of disjoint ranges by their start, for one writer at a time (its caller's lock) and any
 * number of readers without a lock. Readers write nothing: each node has a version that is odd while it
 * is being changed, and what was read from it counts if the version was even and is still the same.
 * Nodes are never given back, only used again, so a reader may look at one that is no longer in the
 * tree; the version tells.
 */
#ifndef PL_CACHE_TREE_H
#define PL_CACHE_TREE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pl_tnode;

struct pl_tree {
	struct pl_tnode *_Atomic root;
	struct pl_tnode *free;
	void *chunks;
	size_t n_free, fresh; /* fresh: from there on the first chunk was never used */
};

int pl_tree_init(struct pl_tree *tree);
void pl_tree_end(struct pl_tree *tree);

/* What has the greatest start <= at. NULL: nothing; or a change got in the way, ask the writer then. Any
 * thread; with the writer's lock it is exact. */
void *pl_tree_find(const struct pl_tree *tree, uintptr_t at);

/* Writer. What has the smallest start >= at; NULL: nothing. */
void *pl_tree_next(const struct pl_tree *tree, uintptr_t at);

/* Writer. [start, end) overlaps nothing that is in the tree. -ENOMEM. */
int pl_tree_insert(struct pl_tree *tree, uintptr_t start, uintptr_t end, void *item);
void pl_tree_remove(struct pl_tree *tree, uintptr_t start);

#endif
