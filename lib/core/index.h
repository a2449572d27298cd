/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Interval index: ranges of addresses, overlapping allowed. Intrusive: inserting allocates nothing. */
#ifndef PL_CORE_INDEX_H
#define PL_CORE_INDEX_H

#include <stdint.h>

struct pl_node {
	uintptr_t start, end; /* [start, end) */
	uintptr_t max_end;    /* greatest end in this subtree */
	uint32_t priority;
	struct pl_node *left, *right, *up;
};

struct pl_index {
	struct pl_node *root;
	uint32_t seed;
};

void pl_index_insert(struct pl_index *index, struct pl_node *node);
/* The same, and quicker the fewer lie between it and another one that is in the index, before it. */
void pl_index_insert_near(struct pl_index *index, struct pl_node *node, struct pl_node *near);
void pl_index_remove(struct pl_index *index, struct pl_node *node);

/* Nodes overlapping [start, end), in order of their start. */
struct pl_node *pl_index_first(const struct pl_index *index, uintptr_t start, uintptr_t end);
struct pl_node *pl_index_next(const struct pl_node *node, uintptr_t start, uintptr_t end);

#endif
