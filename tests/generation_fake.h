/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The generation source over memory that the test fills as the kernel would: told of a change, its
 * record, which may be late or lost, and what is going.
 */
#ifndef GENERATION_FAKE_H
#define GENERATION_FAKE_H

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "core/cached.h"
#include "source/generation.h"
#include "source/sources.h"

#define RING_PAGE 4096ul
#define BUSY	  (1u << 31)
#define DISCARD	  (1u << 30)

struct fake {
	struct generation_counts *counts;
	char *ring;
	struct pl_generation_given given;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	unsigned long written;
};

/* The data is there twice, so that no record is in two parts. */
static inline char *fake_ring(void)
{
	size_t data = 2 * RING_PAGE, size = GENERATION_RING;
	int fd = memfd_create("ring", MFD_CLOEXEC);
	char *at = mmap(NULL, data + 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int prot = PROT_READ | PROT_WRITE;

	assert_true(fd >= 0 && at != MAP_FAILED);
	assert_int_equal(ftruncate(fd, data + size), 0);
	assert_ptr_equal(mmap(at, data + size, prot, MAP_SHARED | MAP_FIXED, fd, 0), at);
	assert_ptr_equal(mmap(at + data + size, size, prot, MAP_SHARED | MAP_FIXED, fd, data),
			 at + data + size);
	close(fd);
	return at;
}

static inline void fake_open_with(struct fake *f, const struct pinl_opts *opts)
{
	memset(f, 0, sizeof *f);
	f->counts =
		mmap(NULL, sizeof *f->counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(f->counts != MAP_FAILED);
	f->ring = fake_ring();
	f->given = (struct pl_generation_given){f->counts, f->ring};
	assert_ok(pinl_open(opts, &f->ctx));
	assert_ok(pinl_source_add(f->ctx, &pl_generation_ops, &f->given));
}

/* This source tells of all; what else there is are faults of an IOMMU. */
static inline void fake_open(struct fake *f)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = PINL_SOURCE_FAULTS};

	fake_open_with(f, &o);
}

static inline void fake_close(struct fake *f)
{
	pinl_close(f->ctx);
	munmap(f->counts, sizeof *f->counts);
	munmap(f->ring, 2 * RING_PAGE + 2 * GENERATION_RING);
}

static inline bool fake_watches(const struct fake *f, const void *at)
{
	return f->counts->watched[((uintptr_t)at >> GENERATION_AREA_SHIFT) & (GENERATION_AREAS - 1)];
}

/* As bpf_ringbuf_reserve() and _submit(). */
static inline uint32_t *fake_reserve(struct fake *f, struct generation_record r)
{
	char *head = f->ring + 2 * RING_PAGE + f->written % GENERATION_RING;

	r.pid = r.pid ? r.pid : getpid();
	r.tid = r.tid ? r.tid : getpid();
	memcpy(head + 8, &r, sizeof r);
	__atomic_store_n((uint32_t *)head, sizeof r | BUSY, __ATOMIC_RELEASE);
	f->written += (8 + sizeof r + 7) & ~7ul;
	__atomic_store_n((unsigned long *)(f->ring + RING_PAGE), f->written, __ATOMIC_RELEASE);
	return (uint32_t *)head;
}

static inline void fake_submit(uint32_t *head, uint32_t flags)
{
	__atomic_store_n(head, sizeof(struct generation_record) | flags, __ATOMIC_RELEASE);
}

static inline void fake_count(struct fake *f)
{
	__atomic_add_fetch(&f->counts->told, 1, __ATOMIC_SEQ_CST);
}

static inline void fake_tell(struct fake *f, const struct generation_record *r)
{
	fake_count(f);
	fake_submit(fake_reserve(f, *r), 0);
}

static inline void fake_lose(struct fake *f)
{
	fake_count(f);
	__atomic_add_fetch(&f->counts->lost, 1, __ATOMIC_SEQ_CST);
}

/* Who asks the core whether all is told has the source look. */
static inline void fake_await(struct fake *f)
{
	while (__atomic_load_n(&f->counts->applied, __ATOMIC_SEQ_CST) !=
	       __atomic_load_n(&f->counts->told, __ATOMIC_SEQ_CST)) {
		pl_cached_look(f->ctx);
		sched_yield();
	}
}

#endif
