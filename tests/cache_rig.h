/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A device that remembers what it was given: the key of a registration is the first word of its memory
 * at the moment when it was made. So a registration of memory that is no longer there shows itself, also
 * if the addresses have been used again. It can be told to be full, and counts.
 */
#ifndef CACHE_RIG_H
#define CACHE_RIG_H

#include <pinlease/cache.h>
#include <pinlease/device.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul

struct tagger {
	size_t room;		   /* bytes; 0: any number */
	bool tagged;		   /* memory without a tag isn't taken: it is about to get one */
	int full;		   /* what it says when they are used up */
	void (*pinned)(void *arg); /* called as soon as it has the memory */
	void *arg;
	atomic_size_t used, maps, unmaps, mapped; /* used, mapped: bytes, now and ever */
};

static int tagger_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	*info = (struct pinl_device_info){.device_class = PINL_DEV_REVOCABLE, .caps = PINL_DEVCAP_PIN};
	*dev = (void *)arg;
	return 0;
}

static void tagger_close(void *dev)
{
}

static int tagger_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	struct tagger *g = dev;
	size_t len = m->end - m->start;
	uint32_t tag;
	struct iovec to = {&tag, sizeof tag}, from = {(void *)m->start, sizeof tag};

	if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != sizeof tag)
		return pinl_set_error(-EFAULT, "nothing is mapped at %#lx", m->start);
	if (g->tagged && !tag)
		return pinl_set_error(-EFAULT, "no tag yet at %#lx", m->start);
	if (atomic_fetch_add(&g->used, len) + len > g->room && g->room) {
		atomic_fetch_sub(&g->used, len);
		return pinl_set_error(g->full, "the tagger is full");
	}
	if (g->pinned)
		g->pinned(g->arg);
	atomic_fetch_add(&g->maps, 1);
	atomic_fetch_add(&g->mapped, len);
	m->key = tag;
	for (size_t i = 0; i < len / PAGE; i++)
		addrs[i] = (struct pinl_addr){m->start + i * PAGE, tag, 0};
	return 0;
}

static void tagger_unmap(void *dev, struct pinl_mapping *m)
{
	struct tagger *g = dev;

	atomic_fetch_sub(&g->used, m->end - m->start);
	atomic_fetch_add(&g->unmaps, 1);
}

static int tagger_stop(void *dev, struct pinl_mapping *m)
{
	return 0;
}

static int tagger_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	return 0;
}

static const struct pinl_device_ops tagger_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "tagger",
	.open = tagger_open,
	.close = tagger_close,
	.map = tagger_map,
	.unmap = tagger_unmap,
	.stop = tagger_stop,
	.drain = tagger_drain,
};

struct rig {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct tagger tagger;
};

/* PINLEASE_TEST_SOURCES=N: these (PINL_SOURCE_*), as they are in a virtual machine. */
static inline unsigned rig_sources(void)
{
	const char *sources = getenv("PINLEASE_TEST_SOURCES");

	return sources ? strtoul(sources, NULL, 0) : 0;
}

/* Of what userfaultfd alone does. */
static inline void rig_needs_uffd(void)
{
	if (!rig_sources() || (rig_sources() & PINL_SOURCE_UFFD))
		return;
	print_message("skip: it is about userfaultfd\n");
	skip();
}

static inline void rig_open(struct rig *r, const struct pinl_cache_opts *opts)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = rig_sources()};

	memset(r, 0, sizeof *r);
	r->tagger.full = -ENOMEM;
	assert_ok(pinl_open(&o, &r->ctx));
	assert_ok(pinl_device_open_ops(r->ctx, &tagger_ops, &r->tagger, &r->dev));
	if (opts)
		assert_ok(pinl_cache_open(r->dev, opts));
}

/* Everything balances: what was mapped is unmapped, and no orphan or leak was found. */
static inline void rig_close(struct rig *r)
{
	struct pinl_counters counters = {.size = sizeof counters};

	assert_ok(pinl_counters(r->ctx, &counters));
	assert_int_equal(counters.leaks, 0);
	pinl_device_close(r->dev);
	assert_int_equal(r->tagger.maps, r->tagger.unmaps);
	assert_int_equal(r->tagger.used, 0);
	assert_ok(pinl_counters(r->ctx, &counters));
	assert_int_equal(counters.leases, 0);
	pinl_close(r->ctx);
}

static inline uint64_t stat_of(struct rig *r, const char *name)
{
	uint64_t value = 0;

	assert_ok(pinl_cache_stat(r->dev, name, &value));
	return value;
}

static inline char *pages_new(size_t pages)
{
	char *at = with_room(pages * PAGE);

	madvise(at, pages * PAGE, MADV_NOHUGEPAGE);
	return at;
}

/* Not to be merged with its neighbours. */
static inline const struct pinl_cache_opts *unmerged(void)
{
	static const struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1};

	return &opts;
}

static inline char *map_at(char *at, int fixed)
{
	return mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
}

/* Far below where anybody maps unasked, and each time elsewhere: a hole there stays one until its slot
 * is mapped again. */
static inline char *map_fresh(void)
{
	static _Atomic uintptr_t next;

	if (!next) {
		char *others = map_at(NULL, 0);

		next = (uintptr_t)others - (64ul << 30);
		munmap(others, PAGE);
	}
	return map_at((char *)atomic_fetch_add(&next, 2 * PAGE), MAP_FIXED_NOREPLACE);
}

/* Until the changes of before are applied: on a busy machine that takes longer than pinl_get() waits. */
static inline const struct pinl_reg *got_of(struct pinl_device *dev, const void *at, size_t len,
					    unsigned access)
{
	const struct pinl_reg *reg = NULL;
	int err;

	do
		err = pinl_get(dev, at, len, access, &reg);
	while (err == -EAGAIN);
	assert_ok(err);
	return reg;
}

static inline const struct pinl_reg *got(struct rig *r, const void *at, size_t len, unsigned access)
{
	const struct pinl_reg *reg = got_of(r->dev, at, len, access);

	assert_true(reg->start <= (uintptr_t)at && (uintptr_t)at + len <= reg->end);
	return reg;
}

/* Got and put, as most users do. */
static inline uint32_t tag_at(struct rig *r, const void *at)
{
	const struct pinl_reg *reg = got(r, at, 8, 0);
	uint32_t tag = reg->key;

	pinl_put(reg);
	return tag;
}

static inline void set_tag(void *at, uint32_t tag)
{
	*(uint32_t *)at = tag;
}

/* -EAGAIN: the machine is so busy that a change takes more than 100 ms to be applied. */
static inline void dropped(struct rig *r, void *at, size_t len)
{
	int err;

	do
		err = pinl_cache_drop(r->dev, at, len);
	while (err == -EAGAIN);
	assert_ok(err);
}

/* The cleaner works aside: a test waits for it to be through. */
static inline void settled(struct rig *r)
{
	dropped(r, (void *)PAGE, PAGE); /* where nothing is */
	while (stat_of(r, "parted"))
		sched_yield();
}

#endif
