/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariants. Inner nodes: key[i] is at most every start below ptr[i], and greater than every start
 * below ptr[i - 1]; key[0] means nothing. No node but the root is empty. No range in the tree reaches
 * beyond the key to its right on any level (insert moves such a key up), so the range that has an
 * address is found by one way down.
 *
 * Memory order: a writer makes the version odd before, and even after, by stores that keep their order
 * with those between (all are release); a reader's loads are all acquire, and it loads the version again
 * after them.
 */
#include "cache/tree.h"

#include <errno.h>

#include "os/chunk.h"

#define FAN	   30
#define NODE	   512ul
#define MAX_LEVELS 16

struct pl_tnode {
	_Atomic uint64_t version;
	_Atomic uint32_t n, level; /* leaf: 0 */
	_Atomic uintptr_t key[FAN];
	void *_Atomic ptr[FAN];
};

_Static_assert(sizeof(struct pl_tnode) <= NODE, "a node has its place");

#define get(place)	 atomic_load_explicit(&(place), memory_order_acquire)
#define set(place, what) atomic_store_explicit(&(place), what, memory_order_release)

static void begin(struct pl_tnode *node)
{
	set(node->version, get(node->version) + 1);
}

#define end_change begin

/* ------------------------------------------------------------------------------------- memory -- */

/* A chunk begins with the address of the one before. */
static int more_nodes(struct pl_tree *t)
{
	char *chunk = pl_chunk_new(t->chunks);

	if (!chunk)
		return -ENOMEM;
	*(void **)chunk = t->chunks;
	t->chunks = chunk;
	t->fresh = NODE;
	return 0;
}

/* An insertion needs no more than MAX_LEVELS, all of them before anything is changed. */
static int reserve(struct pl_tree *t)
{
	return t->n_free >= MAX_LEVELS || t->fresh + MAX_LEVELS * NODE <= PL_CHUNK_SIZE ? 0
											: more_nodes(t);
}

/* Its version is odd: to be ended by who has filled it in. */
static struct pl_tnode *node_new(struct pl_tree *t, unsigned level)
{
	struct pl_tnode *node = t->free;

	if (node) {
		t->free = get(node->ptr[0]);
		t->n_free--;
	} else {
		node = (struct pl_tnode *)((char *)t->chunks + t->fresh);
		t->fresh += NODE;
		set(node->version, 1);
	}
	set(node->n, 0);
	set(node->level, level);
	return node;
}

/* Its version is odd and stays so. */
static void node_free(struct pl_tree *t, struct pl_tnode *node)
{
	set(node->ptr[0], t->free);
	t->free = node;
	t->n_free++;
}

int pl_tree_init(struct pl_tree *t)
{
	struct pl_tnode *root;
	int err = more_nodes(t);

	if (err)
		return err;
	root = node_new(t, 0);
	end_change(root);
	set(t->root, root);
	return 0;
}

void pl_tree_end(struct pl_tree *t)
{
	while (t->chunks) {
		void *chunk = t->chunks;

		t->chunks = *(void **)chunk;
		pl_chunk_free(chunk);
	}
}

/* ------------------------------------------------------------------------------------- readers -- */

/* The last key <= at; -1: none. */
static inline int place(const struct pl_tnode *node, uintptr_t at, unsigned n)
{
	unsigned low = 0;

	while (n > 1) {
		unsigned half = n / 2;

		low = get(node->key[low + half]) <= at ? low + half : low;
		n -= half;
	}
	return n && get(node->key[low]) <= at ? (int)low : -1;
}

/* All of it at once, since the next line to be read isn't known before. */
static inline void fetch(const struct pl_tnode *node)
{
	for (size_t at = 64; at < sizeof *node; at += 64)
		__builtin_prefetch((const char *)node + at);
}

/* For a child: the first one has all that is less than the second key. */
static inline unsigned child_place(const struct pl_tnode *node, uintptr_t at, unsigned n)
{
	int i = place(node, at, n);

	return i < 0 ? 0 : i;
}

void *pl_tree_find(const struct pl_tree *t, uintptr_t at)
{
	struct pl_tnode *node = get(t->root), *child;
	uint64_t version = get(node->version), below;
	void *found;
	int i;

	if ((version & 1) || get(t->root) != node)
		return NULL;
	while (get(node->level)) {
		child = get(node->ptr[child_place(node, at, get(node->n))]);
		if (get(node->version) != version)
			return NULL;
		fetch(child);
		below = get(child->version);
		if ((below & 1) || get(node->version) != version)
			return NULL;
		node = child;
		version = below;
	}
	i = place(node, at, get(node->n));
	found = i < 0 ? NULL : get(node->ptr[i]);
	return get(node->version) == version ? found : NULL;
}

/* -------------------------------------------------------------------------------------- writer -- */

static void *next_below(const struct pl_tnode *node, uintptr_t at)
{
	unsigned n = get(node->n);

	if (!get(node->level)) {
		unsigned i = place(node, at, n) + 1;

		if (i && get(node->key[i - 1]) == at)
			i--;
		return i < n ? get(node->ptr[i]) : NULL;
	}
	for (unsigned i = child_place(node, at, n); i < n; i++) {
		void *found = next_below(get(node->ptr[i]), at);

		if (found)
			return found;
	}
	return NULL;
}

void *pl_tree_next(const struct pl_tree *t, uintptr_t at)
{
	return next_below(get(t->root), at);
}

/* In a node that is being changed and has room. */
static void put_at(struct pl_tnode *node, unsigned i, uintptr_t key, void *ptr)
{
	unsigned n = get(node->n);

	for (unsigned j = n; j > i; j--) {
		set(node->key[j], get(node->key[j - 1]));
		set(node->ptr[j], get(node->ptr[j - 1]));
	}
	set(node->key[i], key);
	set(node->ptr[i], ptr);
	set(node->n, n + 1);
}

static void take_at(struct pl_tnode *node, unsigned i)
{
	unsigned n = get(node->n);

	for (unsigned j = i; j + 1 < n; j++) {
		set(node->key[j], get(node->key[j + 1]));
		set(node->ptr[j], get(node->ptr[j + 1]));
	}
	set(node->n, n - 1);
}

/* The upper half of the full child i goes to a node of its own. Ranges that come in order of their
 * addresses leave full nodes behind. */
static void split(struct pl_tree *t, struct pl_tnode *parent, unsigned i, uintptr_t start)
{
	struct pl_tnode *low = get(parent->ptr[i]), *high = node_new(t, get(low->level));
	unsigned at = start > get(low->key[FAN - 1]) ? FAN - 2 : FAN / 2;

	begin(parent);
	begin(low);
	for (unsigned j = at; j < FAN; j++) {
		set(high->key[j - at], get(low->key[j]));
		set(high->ptr[j - at], get(low->ptr[j]));
	}
	set(high->n, FAN - at);
	set(low->n, at);
	put_at(parent, i + 1, get(high->key[0]), high);
	end_change(high);
	end_change(low);
	end_change(parent);
}

static struct pl_tnode *grow(struct pl_tree *t, uintptr_t start)
{
	struct pl_tnode *old = get(t->root), *root;

	if (get(old->n) < FAN)
		return old;
	root = node_new(t, get(old->level) + 1);
	set(root->key[0], 0);
	set(root->ptr[0], old);
	set(root->n, 1);
	end_change(root);
	split(t, root, 0, start);
	set(t->root, root);
	return root;
}

/* The child for a range, split if it is full. */
static struct pl_tnode *down(struct pl_tree *t, struct pl_tnode *node, uintptr_t start, uintptr_t end)
{
	unsigned i = child_place(node, start, get(node->n));

	if (get(((struct pl_tnode *)get(node->ptr[i]))->n) == FAN) {
		split(t, node, i, start);
		i = child_place(node, start, get(node->n));
	}
	if (i + 1 < get(node->n) && get(node->key[i + 1]) < end) {
		begin(node);
		set(node->key[i + 1], end);
		end_change(node);
	}
	return get(node->ptr[i]);
}

int pl_tree_insert(struct pl_tree *t, uintptr_t start, uintptr_t end, void *item)
{
	struct pl_tnode *node;
	int err = reserve(t);

	if (err)
		return err;
	node = grow(t, start);
	while (get(node->level))
		node = down(t, node, start, end);
	begin(node);
	put_at(node, place(node, start, get(node->n)) + 1, start, item);
	end_change(node);
	return 0;
}

/* True: nothing is left in it, and it is nobody's any more. */
static bool remove_below(struct pl_tree *t, struct pl_tnode *node, uintptr_t start, bool root)
{
	unsigned n = get(node->n);
	int i = get(node->level) ? (int)child_place(node, start, n) : place(node, start, n);

	if (get(node->level)) {
		struct pl_tnode *child = get(node->ptr[i]);

		if (!remove_below(t, child, start, false))
			return false;
		begin(node);
		take_at(node, i);
		node_free(t, child);
	} else {
		begin(node);
		if (i >= 0 && get(node->key[i]) == start)
			take_at(node, i);
	}
	if (!root && !get(node->n))
		return true; /* odd */
	end_change(node);
	return false;
}

void pl_tree_remove(struct pl_tree *t, uintptr_t start)
{
	struct pl_tnode *root = get(t->root);

	remove_below(t, root, start, true);
	while (get(root->level) && get(root->n) == 1) {
		struct pl_tnode *only = get(root->ptr[0]);

		set(t->root, only);
		begin(root);
		node_free(t, root);
		root = only;
	}
}
