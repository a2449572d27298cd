/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which processes map the pages that were found. Not all of their memory is looked at: a page's index
 * says where it can be in a mapping, and the process' page table whether it is there. So the cost
 * follows the pins, not the memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "pins.h"

#define HUGETLBFS_MAGIC 0x958458f6
#define BLOCK		512 /* entries of a page table that are read at once */

struct view { /* of the task at hand */
	int32_t tid;
	int pagemap;
	uint64_t block; /* number of the one that is there; ~0: none */
	uint64_t entries[BLOCK];
};

static const struct census_pin *sorted; /* what the numbers mean that are sorted */

static int compare(const struct census_pin *x, const struct census_pin *y)
{
	if (x->memory != y->memory)
		return x->memory < y->memory ? -1 : 1;
	if (x->dev != y->dev)
		return x->dev < y->dev ? -1 : 1;
	if (x->ino != y->ino)
		return x->ino < y->ino ? -1 : 1;
	return x->index != y->index ? (x->index < y->index ? -1 : 1) : 0;
}

static int by_index(const void *a, const void *b)
{
	return compare(&sorted[*(const uint32_t *)a], &sorted[*(const uint32_t *)b]);
}

static uint64_t entry(struct view *view, uint64_t addr)
{
	uint64_t number = addr / PINS_PAGE, block = number / BLOCK;

	if (view->block != block) {
		memset(view->entries, 0, sizeof view->entries);
		if (view->pagemap < 0 ||
		    pread(view->pagemap, view->entries, sizeof view->entries, block * BLOCK * 8) <= 0)
			memset(view->entries, 0, sizeof view->entries);
		view->block = block;
	}
	return view->entries[number % BLOCK];
}

static bool is_frame(uint64_t entry, uint64_t pfn)
{
	return entry >> 63 && (entry & ((1ull << 55) - 1)) == pfn;
}

/* Nothing is there, nor swapped out, nor a guard (Linux 6.15): the file's page is, when it is touched.
 */
static bool is_empty(uint64_t entry)
{
	return !(entry >> 62) && !(entry >> 58 & 1);
}

static void look_at(struct view *view, int32_t tid)
{
	if (view->tid == tid)
		return;
	if (view->pagemap >= 0)
		close(view->pagemap);
	*view = (struct view){.tid = tid, .pagemap = tid ? pins_pagemap(tid) : -1, .block = ~0ull};
}

/* The first page of it, which has this index, that is mapped by this VMA, rather one that was touched.
 */
static void match(struct census *c, struct view *view, const struct census_vma *v, uint32_t number,
		  uint64_t index)
{
	const struct census_pin *p = pins_at(&c->pins, struct census_pin, number);
	uint64_t len = (v->end - v->start) / PINS_PAGE, page = index < v->pgoff ? v->pgoff - index : 0;
	struct pins_map map = {.pin = number, .pid = v->pid};

	look_at(view, v->tid);
	for (; page < p->nr_pages && index + page < v->pgoff + len && !map.touched; page++) {
		uint64_t addr = v->start + (index + page - v->pgoff) * PINS_PAGE,
			 found = entry(view, addr);

		map.touched = is_frame(found, p->pfn + page);
		if (map.touched || (p->memory == CENSUS_FILE && !map.addr && is_empty(found))) {
			map.addr = addr;
			map.page = page;
		}
	}
	if (map.addr)
		pins_add(&c->maps, &map);
}

/* Those of one kind of memory that this VMA could have; `longest` is that of any folio. */
static void candidates(struct census *c, struct view *view, const struct census_vma *v,
		       const uint32_t *order, struct census_pin key, uint64_t longest)
{
	size_t low = 0, high = c->pins.n;

	key.index = v->pgoff > longest ? v->pgoff - longest : 0;
	while (low < high) {
		size_t mid = (low + high) / 2;

		if (compare(&sorted[order[mid]], &key) < 0)
			low = mid + 1;
		else
			high = mid;
	}
	for (; low < c->pins.n; low++) {
		const struct census_pin *p = &sorted[order[low]];

		key.index = p->index;
		if (compare(p, &key) || p->index >= v->pgoff + (v->end - v->start) / PINS_PAGE)
			return;
		match(c, view, v, order[low], p->index);
	}
}

/* Private copies of pages of hugetlbfs, of which nothing says that they are: few, so each is tried. */
static void private_huge(struct census *c, struct view *view, const struct census_vma *v,
			 const uint32_t *order)
{
	for (size_t i = 0; i < c->pins.n; i++) {
		const struct census_pin *p = &sorted[order[i]];

		if (p->memory == CENSUS_ANON && p->nr_pages >= BLOCK && p->index)
			match(c, view, v, order[i], p->index * p->nr_pages);
	}
}

/* Until Linux 6.6 the index of a page in hugetlbfs counted huge pages. */
static bool counts_huge(const struct census *c)
{
	return pins_has_function(c, "hugetlb_basepage_index");
}

static void normalise(struct census *c)
{
	long sb = pins_offset(c, "inode", "i_sb"), magic = pins_offset(c, "super_block", "s_magic");

	for (size_t i = 0; i < c->pins.n; i++) {
		struct census_pin *p = pins_at(&c->pins, struct census_pin, i);

		if (p->nr_pages >= BLOCK && p->inode &&
		    pins_word(c, pins_word(c, p->inode + sb) + magic) == HUGETLBFS_MAGIC)
			p->index *= p->nr_pages;
	}
}

static int by_pin(const void *a, const void *b)
{
	const struct pins_map *x = a, *y = b;

	if (x->pin != y->pin)
		return x->pin < y->pin ? -1 : 1;
	if (x->pid != y->pid)
		return x->pid < y->pid ? -1 : 1;
	if (x->touched != y->touched)
		return y->touched - x->touched;
	return x->addr != y->addr ? (x->addr < y->addr ? -1 : 1) : 0;
}

/* Threads with descriptors of their own come with the same mappings. */
int pins_list_maps(struct census *c)
{
	uint32_t *order = calloc(c->pins.n + 1, sizeof *order);
	struct view view = {.pagemap = -1};
	bool old = counts_huge(c);
	uint64_t longest = 1;

	if (!order)
		return -ENOMEM;
	if (old)
		normalise(c);
	for (uint32_t i = 0; i < c->pins.n; i++) {
		order[i] = i;
		if (pins_at(&c->pins, struct census_pin, i)->nr_pages > longest)
			longest = pins_at(&c->pins, struct census_pin, i)->nr_pages;
	}
	sorted = c->pins.items;
	qsort(order, c->pins.n, sizeof *order, by_index);
	for (size_t i = 0; i < c->vmas.n && c->pins.n; i++) {
		const struct census_vma *v = pins_at(&c->vmas, struct census_vma, i);

		if (v->anon)
			candidates(c, &view, v, order, (struct census_pin){.memory = CENSUS_ANON},
				   longest);
		if (v->anon && v->dev && old)
			private_huge(c, &view, v, order);
		if (v->dev) /* the first System V segment is inode 0 */
			candidates(
				c, &view, v, order,
				(struct census_pin){.memory = CENSUS_FILE, .dev = v->dev, .ino = v->ino},
				longest);
	}
	look_at(&view, 0);
	free(order);
	pins_order(&c->maps, by_pin);
	pins_drop_doubles(&c->maps, by_pin);
	return 0;
}
