/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For the tests of traps: a context with all sources, one device of either kind, leases on parts of any
 * memory, the device's own reads and writes page by page, and a thread that makes one raw change.
 */
#ifndef TRAPS_RIG_H
#define TRAPS_RIG_H

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include <pinlease/pinlease.h>

#include "check.h"

#define PG     4096ul
#define PINNED (PINL_WRITE | PINL_PIN)
#define HANG_S 120   /* a test that takes longer hangs */
#define LONG   20000 /* ms: nothing takes as long */

enum { SOFT, URING, DEVICES };

struct trap {
	int kind; /* of device */
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct io_uring ring;
	int bounce;
};

/* A lease and its pages' device addresses. */
struct lent {
	struct pinl_lease *lease;
	char *va;
	struct pinl_addr addr[1024];
};

static inline struct pinl_policy keep(void)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy), .kind = PINL_KEEP};
}

static inline struct pinl_policy recall(enum pinl_then then, unsigned grace_ms)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy),
				    .kind = PINL_RECALL,
				    .then = then,
				    .grace_ms = grace_ms};
}

static inline void trap_open_with(struct trap *t, int kind, unsigned sources)
{
	struct pinl_opts opts = {.size = sizeof opts,
				 .summary_fd = -1,
				 .ceiling_ms = 3 * LONG,
				 .drain_ms = LONG,
				 .sources = sources};
	struct pinl_uring_arg uring = {.size = sizeof uring, .ring = &t->ring, .slots = 16};

	alarm(HANG_S);
	memset(t, 0, sizeof *t);
	t->kind = kind;
	assert_ok(pinl_open(&opts, &t->ctx));
	t->bounce = memfd_create("bounce", MFD_CLOEXEC);
	assert_int_equal(ftruncate(t->bounce, PG), 0);
	if (kind == URING)
		assert_int_equal(io_uring_queue_init(8, &t->ring, 0), 0);
	assert_ok(pinl_device_open(t->ctx, kind == URING ? "uring" : "soft",
				   kind == URING ? (void *)&uring : NULL, &t->dev));
}

static inline void trap_open(struct trap *t, int kind)
{
	trap_open_with(t, kind, 0);
}

static inline void trap_close(struct trap *t)
{
	pinl_close(t->ctx);
	if (t->kind == URING)
		io_uring_queue_exit(&t->ring);
	close(t->bounce);
	alarm(0);
}

#define for_each_device(t, i) for (int i = SOFT; trap_next(t, i); i++)

static inline int trap_next(struct trap *t, int i)
{
	if (i > SOFT)
		trap_close(t);
	if (i < DEVICES)
		trap_open(t, i);
	return i < DEVICES;
}

static inline int try_lend(struct trap *t, struct lent *l, char *va, size_t len, unsigned flags,
			   struct pinl_policy policy)
{
	l->va = va;
	l->lease = NULL;
	return pinl_map_range(t->dev, (uintptr_t)va, (uintptr_t)va + len, flags, &policy,
			      len <= sizeof l->addr / sizeof *l->addr * PG ? l->addr : NULL, &l->lease);
}

static inline void lend(struct trap *t, struct lent *l, char *va, size_t len, unsigned flags,
			struct pinl_policy policy)
{
	assert_ok(try_lend(t, l, va, len, flags, policy));
}

static inline void end(struct lent *l)
{
	pinl_unmap_range(l->lease);
	l->lease = NULL;
}

/* ------------------------------------------------------------------------ the device at work -- */

static inline int uring_io(struct trap *t, const struct pinl_addr *a, char *buf, int write)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);
	void *at = (void *)(uintptr_t)a->addr;
	struct io_uring_cqe *cqe;
	uint64_t tag;
	int res;

	if (write) {
		assert_int_equal(pwrite(t->bounce, buf, PG, 0), PG);
		io_uring_prep_read_fixed(sqe, t->bounce, at, PG, 0, a->key);
	} else {
		io_uring_prep_write_fixed(sqe, t->bounce, at, PG, 0, a->key);
	}
	sqe->user_data = 1;
	assert_int_equal(io_uring_submit(&t->ring), 1);
	do {
		assert_int_equal(io_uring_wait_cqe(&t->ring, &cqe), 0);
		tag = cqe->user_data;
		res = cqe->res;
		io_uring_cqe_seen(&t->ring, cqe);
	} while (pinl_uring_cqe(t->dev, tag));
	if (res < 0)
		return res;
	assert_int_equal(res, PG);
	return write || pread(t->bounce, buf, PG, 0) == PG ? 0 : -EIO;
}

static inline int page_io(struct trap *t, struct lent *l, unsigned page, char *buf, int write)
{
	const struct pinl_addr *a = &l->addr[page];

	return t->kind == URING ? uring_io(t, a, buf, write)
				: pinl_soft_dma(t->dev, a->addr, buf, PG, write);
}

/* The device fills a page. */
static inline int put(struct trap *t, struct lent *l, unsigned page, char c)
{
	char buf[PG];

	memset(buf, c, sizeof buf);
	return page_io(t, l, page, buf, 1);
}

/* What the device reads in a page, or -errno. */
static inline int get(struct trap *t, struct lent *l, unsigned page)
{
	char buf[PG];
	int err = page_io(t, l, page, buf, 0);

	if (err)
		return err;
	assert_memory_equal(buf, buf + 1, PG - 1);
	return buf[0];
}

static inline void assert_page(const char *at, char c)
{
	for (size_t i = 0; i < PG; i++)
		if (at[i] != c)
			fail_msg("byte %zu is %#x, not %#x", i, at[i] & 255, c & 255);
}

/* CPU and device see each other's stores: nothing is lost. */
static inline void assert_coherent(struct trap *t, struct lent *l, unsigned first, unsigned last)
{
	for (unsigned i = first; i < last; i++) {
		assert_ok(put(t, l, i, 'D'));
		assert_page(l->va + i * PG, 'D');
		memset(l->va + i * PG, 'C', PG);
		assert_int_equal(get(t, l, i), 'C');
	}
}

/* ------------------------------------------------------------------------------------ events -- */

static inline int next_event(struct trap *t, struct pinl_event *ev, int ms)
{
	struct pollfd p = {pinl_fd(t->ctx), POLLIN, 0};

	ev->size = sizeof *ev;
	while (pinl_next_event(t->ctx, ev))
		if (poll(&p, 1, ms) <= 0)
			return -EAGAIN;
	return 0;
}

/* The next event of this type; the others are printed. */
static inline struct pinl_event await(struct trap *t, enum pinl_event_type type)
{
	struct pinl_event ev;
	char line[256];

	for (;;) {
		if (next_event(t, &ev, LONG))
			fail_msg("no event %d came", type);
		if (ev.type == type)
			return ev;
		pinl_event_format(&ev, line, sizeof line);
		print_message("# %s\n", line);
	}
}

/* No event so far; and none is on its way, because a change that is through the core is shown first. */
static inline void assert_no_event(struct trap *t)
{
	struct pinl_event ev;
	char line[256] = "";

	if (!next_event(t, &ev, 0))
		pinl_event_format(&ev, line, sizeof line);
	assert_string_equal(line, "");
}

/* ----------------------------------------------------------------- changes by another thread -- */

struct raw {
	pthread_t thread;
	void (*fn)(struct raw *);
	char *at, *to;
	size_t len;
	int how;
	void *got;
	int err;
	atomic_int done;
};

static inline void *raw_thread(void *arg)
{
	struct raw *r = arg;

	errno = 0;
	r->fn(r);
	r->err = errno;
	r->done = 1;
	return NULL;
}

static inline void raw_start(struct raw *r)
{
	r->done = 0;
	assert_int_equal(pthread_create(&r->thread, NULL, raw_thread, r), 0);
}

static inline void raw_join(struct raw *r)
{
	pthread_join(r->thread, NULL);
	assert_int_equal(r->err, 0);
}

static inline void raw_advise(struct raw *r)
{
	if (madvise(r->at, r->len, r->how))
		return;
	errno = 0;
}

static inline void raw_unmap(struct raw *r)
{
	if (!munmap(r->at, r->len))
		errno = 0;
}

static inline char *anon_at(char *at, size_t len, int flags)
{
	char *va = mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	assert_ptr_not_equal(va, MAP_FAILED);
	return va;
}

/* Whose holes nobody else maps into. */
static inline char *anon(size_t len)
{
	return memset(with_room(len), 'a', len);
}

static inline int madvise_by_other(char *at, size_t len, int how)
{
	struct raw r = {.fn = raw_advise, .at = at, .len = len, .how = how};

	raw_start(&r);
	pthread_join(r.thread, NULL);
	return r.err;
}

#endif
