/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A treap ordered by (start, address of the node), each node knowing the greatest end below it.
 * Invariant: node->max_end = max(node->end, left->max_end, right->max_end); a parent's priority is
 * not below its children's. Expected depth is logarithmic whatever the order of insertion.
 */
#include "index.h"

#include <stddef.h>

static void update(struct pl_node *n)
{
	n->max_end = n->end;
	if (n->left && n->left->max_end > n->max_end)
		n->max_end = n->left->max_end;
	if (n->right && n->right->max_end > n->max_end)
		n->max_end = n->right->max_end;
}

static int before(const struct pl_node *a, const struct pl_node *b)
{
	return a->start != b->start ? a->start < b->start : (uintptr_t)a < (uintptr_t)b;
}

static void replace_child(struct pl_index *x, struct pl_node *up, struct pl_node *old,
			  struct pl_node *new)
{
	if (!up)
		x->root = new;
	else if (up->left == old)
		up->left = new;
	else
		up->right = new;
	if (new)
		new->up = up;
}

/* Lift n above its parent. */
static void rotate(struct pl_index *x, struct pl_node *n)
{
	struct pl_node *p = n->up;

	replace_child(x, p->up, p, n);
	if (p->left == n) {
		p->left = n->right;
		if (p->left)
			p->left->up = p;
		n->right = p;
	} else {
		p->right = n->left;
		if (p->right)
			p->right->up = p;
		n->left = p;
	}
	p->up = n;
	update(p);
	update(n);
}

/* The last above `near`, or itself, that is before n and has the place of n to its right; `near` is
 * before n. What is left of one that is after n, ends there. */
static struct pl_node *last_before(struct pl_node *near, const struct pl_node *n)
{
	for (struct pl_node *at = near; at->up; at = at->up) {
		if (at->up->right == at)
			continue;
		if (before(n, at->up))
			break;
		near = at->up;
	}
	return near;
}

void pl_index_insert_near(struct pl_index *x, struct pl_node *n, struct pl_node *near)
{
	struct pl_node *p = NULL, **link = &x->root;

	x->seed = x->seed * 1664525u + 1013904223u;
	n->priority = x->seed ^ (x->seed >> 13);
	n->left = n->right = NULL;
	n->max_end = n->end;
	if (near && before(near, n)) {
		near = last_before(near, n);
		for (p = near; p && p->max_end < n->end; p = p->up)
			p->max_end = n->end;
		p = near;
		link = &p->right;
	}
	while (*link) {
		p = *link;
		__builtin_prefetch(p->left); /* which of the two is guessed wrong half of the time */
		__builtin_prefetch(p->right);
		if (p->max_end < n->end)
			p->max_end = n->end;
		link = before(n, p) ? &p->left : &p->right;
	}
	*link = n;
	n->up = p;
	while (n->up && n->up->priority < n->priority)
		rotate(x, n);
}

void pl_index_insert(struct pl_index *x, struct pl_node *n)
{
	pl_index_insert_near(x, n, NULL);
}

void pl_index_remove(struct pl_index *x, struct pl_node *n)
{
	struct pl_node *child, *p;
	uintptr_t was;

	while (n->left && n->right)
		rotate(x, n->left->priority > n->right->priority ? n->left : n->right);
	child = n->left ? n->left : n->right;
	p = n->up;
	replace_child(x, p, n, child);
	for (; p; p = p->up) { /* until one knew a greater end, and so do those above */
		was = p->max_end;
		update(p);
		if (p->max_end == was)
			break;
	}
}

static struct pl_node *first_in(struct pl_node *n, uintptr_t start, uintptr_t end)
{
	while (n && n->max_end > start) {
		if (n->left && n->left->max_end > start) {
			struct pl_node *found = first_in(n->left, start, end);

			if (found)
				return found;
		}
		if (n->start >= end)
			return NULL;
		if (n->end > start)
			return n;
		n = n->right;
	}
	return NULL;
}

struct pl_node *pl_index_first(const struct pl_index *x, uintptr_t start, uintptr_t end)
{
	return first_in(x->root, start, end);
}

struct pl_node *pl_index_next(const struct pl_node *n, uintptr_t start, uintptr_t end)
{
	struct pl_node *found = first_in(n->right, start, end);

	if (found)
		return found;
	for (; n->up; n = n->up) {
		if (n->up->left != n)
			continue;
		if (n->up->start >= end)
			return NULL;
		if (n->up->end > start)
			return n->up;
		found = first_in(n->up->right, start, end);
		if (found)
			return found;
	}
	return NULL;
}
