/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The last look before a lease ends: was anything let go that no source told of? Runs in the thread that
 * ends the lease, with the lease busy and no lock.
 *
 * Cheap tests first: a hole in tmpfs, an empty entry in the page table. They miss pages that were let go
 * and touched again. If the file changed since it was pinned (its ctime says so) and not every change of
 * it is held, device and CPU are compared word by word. A word that differs is read again: only one that
 * stays the same on the CPU's side and different on the device's is an orphan's, so stores going on
 * don't mislead. Equal content is no loss.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/ctx.h"
#include "os/compat.h"
#include "os/holes.h"
#include "os/vma.h"

#define PAGE  4096ul
#define WORDS (PAGE / sizeof(uint64_t))

static void found(struct pinl_lease *l, uintptr_t start, uintptr_t end, enum pinl_op op)
{
	struct pl_recall lost = {.va = {start, end}, .op = op, .source = "check"};

	pl_lost_live(l, &lost);
}

struct search {
	int fd;
	off_t at, end, size;
	off_t from, to; /* found */
};

static long first_hole(void *arg)
{
	struct search *s = arg;

	return pl_first_hole(s->fd, s->at, s->end, s->size, &s->from, &s->to);
}

/* Pinned pages of tmpfs are in its page cache: a hole, or the end of the file, means they were let go.
 */
static void check_shmem(struct pinl_lease *l)
{
	off_t first = l->on->mem.offset, last = first + (l->m.end - l->m.start);
	struct search s;
	struct stat st;

	if (l->on->mem.fd < 0 || fstat(l->on->mem.fd, &st) ||
	    (pl_all_present(l->m.start, l->m.end) &&
	     pl_vma_same(l->ctx->maps, &l->on->mem, l->m.start, l->m.end)))
		return;
	st.st_size = (st.st_size + PAGE - 1) & ~(off_t)(PAGE - 1);
	if (st.st_size < last) {
		off_t from = st.st_size > first ? st.st_size : first;

		found(l, l->m.start + (from - first), l->m.end, PINL_OP_TRUNCATE);
		last = from;
	}
	s = (struct search){.fd = l->more->inode->real, .at = first, .end = last, .size = st.st_size};
	for (; pl_aside_run(l->ctx->aside, first_hole, &s); s.at = s.to)
		found(l, l->m.start + (s.from - first), l->m.start + (s.to - first), PINL_OP_PUNCH);
}

/* A guard looks like a page in swap, where pinned pages never are for long; but nobody can read it. */
static bool is_there(uint64_t entry, uintptr_t at)
{
	struct iovec to = {&(char){0}, 1}, from = {(void *)at, 1};

	if (entry >> 63)
		return true;
	return entry >> 62 && process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

/* Pinned private pages and huge ones stay in the page table: an empty entry means they were let go. */
static void check_entries(struct pinl_lease *l, int fd, uintptr_t at, uintptr_t end)
{
	uint64_t entries[512];
	uintptr_t gone = 0;

	while (at < end) {
		size_t pages = (end - at) / PAGE, n = pages < 512 ? pages : 512;

		if (pread(fd, entries, n * 8, at / PAGE * 8) != (ssize_t)(n * 8))
			break;
		for (size_t i = 0; i < n; i++, at += PAGE) {
			bool present = is_there(entries[i], at);

			if (!present && !gone)
				gone = at;
			if (present && gone) {
				found(l, gone, at, PINL_OP_NR);
				gone = 0;
			}
		}
	}
	if (gone)
		found(l, gone, at, PINL_OP_NR);
}

/* The first run of present pages from `at` on; where the kernel doesn't say, and if there is none,
 * `end`.
 */
static void next_present(int fd, uintptr_t at, uintptr_t end, struct pl_page_region *r)
{
	struct pl_pagemap_scan scan = {
		.size = sizeof scan,
		.start = at,
		.end = end,
		.vec = (uintptr_t)r,
		.vec_len = 1,
		.category_mask = PL_PAGE_IS_PRESENT,
		.return_mask = PL_PAGE_IS_PRESENT,
	};

	if (ioctl(fd, PL_PAGEMAP_SCAN, &scan) <= 0)
		*r = (struct pl_page_region){end, end, 0};
}

/* What is present is soon found: a third of the time that its entries take, and nothing if it is huge.
 */
static void check_entries_of(struct pinl_lease *l)
{
	struct pl_page_region present;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	for (uintptr_t at = l->m.start; at < l->m.end; at = present.end) {
		next_present(fd, at, l->m.end, &present);
		check_entries(l, fd, at, present.start);
	}
	close(fd);
}

struct views {
	uint64_t device[WORDS], cpu[WORDS];
};

/* 0; 1: the CPU can't reach the page any more; -errno: the device can't be read. */
static int look(struct pinl_lease *l, uintptr_t at, struct views *v)
{
	struct iovec to = {v->cpu, PAGE}, from = {(void *)at, PAGE};
	int err = l->dev->ops.read(l->dev->priv, &l->dm, at - l->m.start, PAGE, v->device);

	if (err)
		return err;
	return process_vm_readv(getpid(), &to, 1, &from, 1, 0) != (ssize_t)PAGE;
}

static bool differs(struct pinl_lease *l, uintptr_t at, struct views v[2])
{
	int err = look(l, at, &v[0]);

	if (err)
		return err > 0;
	if (!memcmp(v[0].device, v[0].cpu, PAGE) || look(l, at, &v[1]))
		return false;
	for (size_t i = 0; i < WORDS; i++)
		if (v[0].cpu[i] == v[1].cpu[i] && v[0].device[i] != v[0].cpu[i] &&
		    v[1].device[i] != v[1].cpu[i])
			return true;
	return false;
}

/* Whose changes are held can't have lost anything; but a truncation through an overlay isn't, and takes
 * private pages. */
static bool is_suspect(const struct pinl_lease *l)
{
	return !(l->on->coverage[PINL_OP_TRUNCATE] & PINL_CAN_HOLD) ||
	       l->on->mem.kind == PINL_MEM_FILE_PRIVATE;
}

static void check_content(struct pinl_lease *l)
{
	struct views v[2];
	uintptr_t gone = 0, at;
	struct stat st;

	if (l->on->mem.fd < 0 || !is_suspect(l) || fstat(l->on->mem.fd, &st) ||
	    !memcmp(&st.st_ctim, &l->more->ctime, sizeof l->more->ctime))
		return;
	for (at = l->m.start; at < l->m.end; at += PAGE) {
		bool orphan = differs(l, at, v);

		if (orphan && !gone)
			gone = at;
		if (!orphan && gone) {
			found(l, gone, at, PINL_OP_NR);
			gone = 0;
		}
	}
	if (gone)
		found(l, gone, at, PINL_OP_NR);
}

/*
 * Another process has recalled the lease, which has been told of a change that is held, and hears of
 * that later. Else pages could have become orphans before the device was off them.
 */
static bool is_taken(struct pinl_lease *l)
{
	return atomic_load(&l->changed) && (l->on->coverage[PINL_OP_TRUNCATE] & PINL_CAN_HOLD) &&
	       !l->dev->ops.holds(l->dev->priv, &l->dm);
}

/* A hole that is made in a file of hugetlbfs leaves its ctime as it is, but not its blocks. */
static bool has_shrunk(const struct pinl_lease *l)
{
	struct stat st;

	return l->on->mem.fd >= 0 && !fstat(l->on->mem.fd, &st) && st.st_blocks < l->more->blocks;
}

void pl_orphan_check(struct pinl_lease *l)
{
	if (!(l->flags & PINL_PIN) || l->more->stage || is_taken(l) ||
	    l->dev->foreign) /* a stage finds out when it writes back */
		return;
	if (l->on->mem.kind == PINL_MEM_SHMEM && l->on->mem.shared)
		check_shmem(l);
	else if (l->on->mem.kind == PINL_MEM_ANON || l->on->mem.kind == PINL_MEM_FILE_PRIVATE ||
		 (l->on->mem.kind == PINL_MEM_HUGETLB && has_shrunk(l)))
		check_entries_of(l);
	check_content(l);
}

void pl_orphan_mark(struct pinl_lease *l)
{
	struct stat st;

	if (l->on->mem.fd >= 0 && !fstat(l->on->mem.fd, &st)) {
		pl_more(l)->ctime = st.st_ctim;
		pl_more(l)->blocks = st.st_blocks;
	}
}
