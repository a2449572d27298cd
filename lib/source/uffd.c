/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The source for changes of mappings: userfaultfd in asynchronous write-protect mode. Nothing is ever
 * write-protected and no fault is served; what is used are the events for munmap, mremap and madvise.
 *
 * Invariant: what a lease watches stays registered from watch to unwatch, apart from suspend. Anonymous
 * memory is registered as whole mappings and stays so (unregistering walks page tables, splitting costs
 * mappings); of files only the leased range, populated first, because a registered file mapping loses
 * fault-around. Staying registered is harmless: the events say nothing new.
 *
 * lock covers: the table of watched file ranges, and registering against unregistering.
 */
#include "source/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "os/compat.h"
#include "os/thread.h"
#include "os/wake.h"
#include "source/sources.h"

static int add_range(struct pl_uffd *u, uintptr_t start, uintptr_t end)
{
	struct uffdio_register reg = {.range = {start, end - start}, .mode = UFFDIO_REGISTER_MODE_WP};

	return ioctl(u->fd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

static void remove_range(struct pl_uffd *u, uintptr_t start, uintptr_t end)
{
	struct uffdio_range range = {start, end - start};

	ioctl(u->fd, UFFDIO_UNREGISTER, &range);
}

/* ------------------------------------------------------------------------------ open, close -- */

static int start_reader(struct pl_uffd *u)
{
	size_t page = sysconf(_SC_PAGESIZE);
	void *probe = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err;

	if (probe == MAP_FAILED)
		return pinl_set_error(-ENOMEM, "out of memory for userfaultfd's probe");
	u->probe = (struct pl_uffd_area){(uintptr_t)probe, (uintptr_t)probe + page};
	u->opener = gettid();
	err = add_range(u, u->probe.start, u->probe.end);
	if (!err) {
		err = pl_thread_start(&u->thread, pl_uffd_reader, u);
		if (err)
			remove_range(u, u->probe.start, u->probe.end);
	}
	munmap(probe, page); /* waits for calibrate() */
	if (err)
		return pinl_set_error(err, "userfaultfd can't start watching: %s", strerror(-err));
	pthread_setname_np(u->thread, "pinl-uffd");
	return 0;
}

static void uffd_free(struct pl_uffd *u)
{
	if (u->fd >= 0)
		pl_uffd_close_fd(u->fd);
	if (u->maps >= 0)
		close(u->maps);
	if (u->pagemap >= 0)
		close(u->pagemap);
	if (u->asks)
		pl_uffd_asks_put(u->asks);
	pl_uffd_going_free(u->going);
	pthread_mutex_destroy(&u->lock);
	free(u);
}

static atomic_int n_open; /* of all contexts */

static int uffd_open(struct pinl_ctx *ctx, const void *arg, void **src)
{
	struct pl_uffd *u = calloc(1, sizeof *u);
	int err;

	if (!u)
		return pinl_set_error(-ENOMEM, "out of memory for the userfaultfd source");
	u->ctx = ctx;
	pthread_mutex_init(&u->lock, NULL);
	u->maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	u->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	u->fd = pl_uffd_open_fd();
	err = u->fd < 0 ? u->fd : 0;
	if (!err && !(u->going = pl_uffd_going_new()))
		err = pinl_set_error(-ENOMEM, "out of memory for the userfaultfd source");
	if (!err) {
		u->asks = u->hold.asks = pl_uffd_asks_new(ctx);
		err = u->asks ? start_reader(u)
			      : pinl_set_error(-errno, "no descriptor or memory for userfaultfd: raise "
						       "ulimit -n");
	}
	if (err) {
		uffd_free(u);
		return err;
	}
	atomic_fetch_add(&n_open, 1);
	*src = u;
	return 0;
}

/* For the mark that nothing is behind, see pl_uffd_reader(). */
static void uffd_look(void *src)
{
	struct pl_uffd *u = src;

	pl_wake(u->asks->kick);
}

/* The reader closes the descriptor, which lets go whoever is blocked. */
static void uffd_close(void *src)
{
	struct pl_uffd *u = src;

	atomic_store(&u->stop, true);
	pl_wake(u->asks->kick);
	pthread_join(u->thread, NULL);
	u->fd = -1;
	uffd_free(u);
	atomic_fetch_sub(&n_open, 1);
}

/* ------------------------------------------------------------------------------------ watch -- */

/* Of most drivers the kernel watches no mapping (VM_IO, VM_PFNMAP, VM_MIXEDMAP), of some it does. */
static bool can_watch_device(struct pl_uffd *u, const struct pinl_memory *mem)
{
	bool can;

	pthread_mutex_lock(&u->lock);
	can = !add_range(u, mem->start, mem->end);
	if (can && !pl_index_first(&u->files, mem->start, mem->end))
		remove_range(u, mem->start, mem->end);
	pthread_mutex_unlock(&u->lock);
	return can;
}

static unsigned device_coverage(struct pl_uffd *u, const struct pinl_memory *mem, enum pinl_op op,
				unsigned hold)
{
	bool gone = op == PINL_OP_UNMAP || op == PINL_OP_OVERMAP || op == PINL_OP_REMAP;

	return gone && can_watch_device(u, mem) ? PINL_CAN_TELL | hold : 0;
}

static unsigned uffd_coverage(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	struct pl_uffd *u = src;
	unsigned hold = atomic_load(&u->can_hold) ? PINL_CAN_HOLD : 0;

	if (mem->kind == PINL_MEM_SECRET)
		return 0;
	if (mem->kind == PINL_MEM_DEVICE)
		return device_coverage(u, mem, op, hold);
	switch (op) {
	case PINL_OP_UNMAP:
		return mem->is_sysv
			       ? 0
			       : PINL_CAN_TELL | hold; /* shmdt() and shmat(SHM_REMAP) make no event */
	case PINL_OP_OVERMAP:
	case PINL_OP_REMAP:
		return PINL_CAN_TELL | hold;
	case PINL_OP_DONTNEED:
	case PINL_OP_FREE:
	case PINL_OP_REMOVE:
		return PINL_CAN_TELL | hold | (hold ? PINL_CAN_BEFORE : 0);
	default:
		return 0;
	}
}

static int explain_watch(int err, const struct pinl_memory *mem)
{
	const char *kind = pinl_memory_name(mem->kind);
	unsigned long at = mem->start;

	if (err == -EBUSY && atomic_load(&n_open) > 1)
		return pinl_set_error(
			err,
			"another userfaultfd owns the mapping at %#lx, most likely that of another "
			"context of pinlease in this process (the program's own, or a bridge to "
			"libfabric "
			"or UCX): give one context to all (pinl_libfabric_import(), pinl_ucx_start()), "
			"or "
			"lease with PINL_COOPERATIVE",
			at);
	switch (err) {
	case -EBUSY:
		return pinl_set_error(
			err,
			"another userfaultfd owns the mapping at %#lx (libfabric's or PSM3's memory "
			"monitor, for example): turn that off, or lease with PINL_COOPERATIVE",
			at);
	case -EPERM:
		return pinl_set_error(
			-EOPNOTSUPP,
			"the file mapped at %#lx was opened read-only and mapped shared, which "
			"userfaultfd doesn't watch: open it O_RDWR or map it private",
			at);
	case -ENOMEM:
		return pinl_set_error(
			err, "no room to watch the mapping at %#lx: raise vm.max_map_count", at);
	}
	return pinl_set_error(-EOPNOTSUPP, "userfaultfd can't watch this memory (%s at %#lx): %s", kind,
			      at, strerror(-err));
}

static struct pl_node *files_find(struct pl_uffd *u, uintptr_t start, uintptr_t end)
{
	struct pl_node *n = pl_index_first(&u->files, start, end);

	while (n && (n->start != start || n->end != end))
		n = pl_index_next(n, start, end);
	return n;
}

/*
 * A mapping goes back to the kernel as a whole and only when nothing in it is watched any more: taking
 * single pages out of the middle would leave the program with a mapping more for each. Anonymous memory
 * put there meanwhile may be somebody's lease and stays.
 */
static void release_mappings(struct pl_uffd *u, uintptr_t start, uintptr_t end)
{
	struct pl_procmap_query q;

	for (; start < end; start = q.vma_end) {
		q = (struct pl_procmap_query){.size = sizeof q,
					      .query_addr = start,
					      .query_flags = PL_PROCMAP_COVERING_OR_NEXT_VMA};
		if (ioctl(u->maps, PL_PROCMAP_QUERY, &q))
			return;
		if (q.vma_start < end && q.inode && !pl_index_first(&u->files, q.vma_start, q.vma_end))
			remove_range(u, q.vma_start, q.vma_end);
	}
}

static int watch_whole(struct pl_uffd *u, const struct pinl_memory *mem)
{
	int err = add_range(u, mem->vma_start, mem->vma_end);

	return err ? add_range(u, mem->start, mem->end) : 0;
}

static int register_memory(struct pl_uffd *u, const struct pinl_memory *mem)
{
	if (mem->kind == PINL_MEM_ANON || mem->kind == PINL_MEM_HUGETLB)
		return watch_whole(u, mem);
	return add_range(u, mem->start, mem->end);
}

static int uffd_watch(void *src, const struct pinl_memory *mem)
{
	struct pl_uffd *u = src;
	struct pl_node *n = NULL;
	int err;

	if (mem->kind == PINL_MEM_SECRET)
		return explain_watch(-EINVAL, mem);
	if (mem->kind != PINL_MEM_ANON && mem->kind != PINL_MEM_HUGETLB) {
		n = calloc(1, sizeof *n);
		if (!n)
			return pinl_set_error(-ENOMEM, "out of memory to watch a mapping");
		n->start = mem->start;
		n->end = mem->end;
		if (mem->kind != PINL_MEM_DEVICE)
			madvise((void *)mem->start, mem->end - mem->start,
				mem->writable && mem->shared ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	}
	pthread_mutex_lock(&u->lock);
	err = register_memory(u, mem);
	if (!err && n)
		pl_index_insert(&u->files, n);
	pthread_mutex_unlock(&u->lock);
	if (err) {
		free(n);
		return explain_watch(err, mem);
	}
	if (mem->shared)
		atomic_fetch_add(&u->ambiguous, 1);
	return 0;
}

static void uffd_unwatch(void *src, const struct pinl_memory *mem)
{
	struct pl_uffd *u = src;
	struct pl_node *n;

	if (mem->shared)
		atomic_fetch_sub(&u->ambiguous, 1);
	if (mem->kind == PINL_MEM_ANON || mem->kind == PINL_MEM_HUGETLB)
		return;
	pthread_mutex_lock(&u->lock);
	n = files_find(u, mem->start, mem->end);
	if (n) {
		pl_index_remove(&u->files, n);
		release_mappings(u, mem->start, mem->end);
	}
	pthread_mutex_unlock(&u->lock);
	free(n);
}

/* If the kernel won't, the worker's change is seen as that of an exempt thread and ends all holding. */
static void uffd_suspend(void *src, uintptr_t start, uintptr_t end, int suspended)
{
	struct pl_uffd *u = src;

	if (suspended)
		remove_range(u, start, end);
	else
		add_range(u, start, end);
}

static int uffd_pending(void *src)
{
	struct pl_uffd *u = src;
	struct pollfd p = {.fd = u->fd, .events = POLLIN};
	struct timespec now = {0, 0};

	return syscall(SYS_ppoll, &p, 1, &now, NULL, 0) > 0; /* no cancellation point */
}

/*
 * The kernel stops the scan at the first mapping without our mode; it looks at no page of the others. A
 * process that isn't dumpable has no pagemap to ask.
 */
static int uffd_watching(void *src, const struct pinl_memory *mem)
{
	struct pl_uffd *u = src;
	struct pl_page_region found;
	struct pl_pagemap_scan scan = {
		.size = sizeof scan,
		.flags = PL_PM_SCAN_CHECK_WPASYNC,
		.start = mem->start,
		.end = mem->end,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_inverted = PL_PAGE_IS_WPALLOWED,
		.category_mask = PL_PAGE_IS_WPALLOWED,
		.return_mask = PL_PAGE_IS_WPALLOWED,
	};
	int ret = mem->kind == PINL_MEM_DEVICE ? 0 : ioctl(u->pagemap, PL_PAGEMAP_SCAN, &scan);

	return ret == 0 || (ret < 0 && errno != EPERM);
}

static int uffd_going(void *src, uintptr_t start, uintptr_t end, int look)
{
	struct pl_uffd *u = src;

	return pl_uffd_going(u->going, start, end, look);
}

static int uffd_whole(void *src, const struct pinl_memory *mem)
{
	return mem->kind == PINL_MEM_ANON && !add_range(src, mem->vma_start, mem->vma_end);
}

const struct pinl_source_ops pl_uffd_ops = {
	.size = sizeof pl_uffd_ops,
	.name = "uffd",
	.open = uffd_open,
	.close = uffd_close,
	.coverage = uffd_coverage,
	.watch = uffd_watch,
	.unwatch = uffd_unwatch,
	.suspend = uffd_suspend,
	.pending = uffd_pending,
	.watching = uffd_watching,
	.going = uffd_going,
	.look = uffd_look,
	.whole = uffd_whole,
};
