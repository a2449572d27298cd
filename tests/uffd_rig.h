/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For the tests of the userfaultfd source: one context with that source only, a soft device, a mapping
 * of some kind, and an actor: a thread that does one thing to the mapping and notes what it saw.
 */
#ifndef UFFD_RIG_H
#define UFFD_RIG_H

#include <errno.h>
#include <fcntl.h>
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

#define PAGE	4096ul
#define PAGES	16ul
#define SIZE	(PAGES * PAGE)
#define HANG_S	120		    /* a test that takes longer hangs */
#define LONG	(5 * HANG_S * 1000) /* ms of grace or ceiling */
#define MAX_EVS 64

/* What a kind of memory is, and what can be done to it. */
struct kind {
	const char *name, *dir; /* dir: of the file; "": memfd; NULL: anonymous */
	int map_flags;
	unsigned lease_flags;
	unsigned ops; /* PINL_OPBIT()s that change it */
};

#define VA_OPS (PINL_OPBIT(PINL_OP_UNMAP) | PINL_OPBIT(PINL_OP_OVERMAP) | PINL_OPBIT(PINL_OP_REMAP))
#define PINNED (PINL_WRITE | PINL_PIN)

static const struct kind kinds[] = {
	{"anonymous", NULL, MAP_PRIVATE | MAP_ANONYMOUS, PINNED,
	 VA_OPS | PINL_OPBIT(PINL_OP_DONTNEED) | PINL_OPBIT(PINL_OP_FREE)},
	{"memfd", "", MAP_SHARED, PINNED | PINL_COOPERATIVE, VA_OPS | PINL_OPBIT(PINL_OP_REMOVE)},
	{"tmpfs", "/dev/shm", MAP_SHARED, PINNED | PINL_COOPERATIVE,
	 VA_OPS | PINL_OPBIT(PINL_OP_REMOVE)},
	{"shared file", "/var/tmp", MAP_SHARED, PINL_WRITE | PINL_COOPERATIVE,
	 VA_OPS | PINL_OPBIT(PINL_OP_REMOVE)},
	{"private file", "/var/tmp", MAP_PRIVATE, PINNED | PINL_COOPERATIVE,
	 VA_OPS | PINL_OPBIT(PINL_OP_DONTNEED)},
};
#define ANON   (&kinds[0])
#define MEMFD  (&kinds[1])
#define NKINDS (sizeof kinds / sizeof *kinds)

struct rig {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_addr addrs[PAGES];
	const struct kind *kind;
	int fd;
	char *va;
	struct pinl_event evs[MAX_EVS]; /* seen so far, oldest first */
	int n_evs;
};

/* One thing done by a thread of its own. */
struct actor {
	pthread_t thread;
	enum pinl_op op;
	char *va, *target;
	size_t len;
	int err;
	_Atomic pid_t tid;
	atomic_int *allowed; /* what it holds when the actor goes on is noted in `was_allowed` */
	int was_allowed;
	atomic_int done;
};

static inline int make_file(const char *dir)
{
	int fd = *dir ? open(dir, O_TMPFILE | O_RDWR, 0600) : memfd_create("uffd-test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	return fd;
}

static inline void rig_map_memory(struct rig *r, const struct kind *kind)
{
	r->kind = kind;
	r->fd = kind->dir ? make_file(kind->dir) : -1;
	r->va = map_alone(SIZE, kind->map_flags, r->fd);
	assert_true(r->va != MAP_FAILED);
	memset(r->va, 'a', SIZE);
}

static inline void rig_open(struct rig *r, const struct kind *kind, const struct pinl_opts *more)
{
	struct pinl_opts opts = {0};

	if (more)
		opts = *more;
	opts.size = sizeof opts;
	if (!opts.ceiling_ms)
		opts.ceiling_ms = LONG;
	opts.sources = PINL_SOURCE_UFFD;
	opts.summary_fd = -1;
	memset(r, 0, sizeof *r);
	alarm(HANG_S);
	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	rig_map_memory(r, kind);
}

static inline int rig_lease(struct rig *r, enum pinl_policy_kind kind, unsigned grace_ms)
{
	struct pinl_policy policy = {
		.size = sizeof policy, .kind = kind, .then = PINL_THEN_FAIL, .grace_ms = grace_ms};

	return pinl_map_range(r->dev, (uintptr_t)r->va, (uintptr_t)r->va + SIZE, r->kind->lease_flags,
			      &policy, r->addrs, &r->lease);
}

/* The memory stays: a test may have unmapped it, and it would be another's that is unmapped here. */
static inline void rig_close(struct rig *r)
{
	if (r->lease)
		pinl_unmap_range(r->lease);
	pinl_device_close(r->dev);
	pinl_close(r->ctx);
	if (r->fd >= 0)
		close(r->fd);
	alarm(0);
}

/* The next event of the type, and all before it into r->evs. */
static inline struct pinl_event await(struct rig *r, enum pinl_event_type type)
{
	struct pollfd p = {.fd = pinl_fd(r->ctx), .events = POLLIN};

	for (;;) {
		struct pinl_event ev = {.size = sizeof ev};

		while (pinl_next_event(r->ctx, &ev))
			poll(&p, 1, -1);
		assert_true(r->n_evs < MAX_EVS);
		r->evs[r->n_evs++] = ev;
		if (ev.type == type)
			return ev;
	}
}

static inline int do_op(enum pinl_op op, char *va, size_t len, char *target)
{
	void *got = va;
	int err = 0;

	switch (op) {
	case PINL_OP_UNMAP:
		err = munmap(va, len);
		break;
	case PINL_OP_OVERMAP:
		got = mmap(va, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			   0);
		break;
	case PINL_OP_REMAP:
		got = mremap(va, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, target);
		break;
	case PINL_OP_DONTNEED:
		err = madvise(va, len, MADV_DONTNEED);
		break;
	case PINL_OP_FREE:
		err = madvise(va, len, MADV_FREE);
		break;
	case PINL_OP_REMOVE:
		err = madvise(va, len, MADV_REMOVE);
		break;
	default:
		err = -1;
		errno = ENOSYS;
	}
	return err || got == MAP_FAILED ? -errno : 0;
}

static inline void *act(void *arg)
{
	struct actor *a = arg;

	a->tid = gettid();
	a->err = do_op(a->op, a->va, a->len, a->target);
	a->was_allowed = a->allowed ? *a->allowed : 0;
	a->done = 1;
	return NULL;
}

static inline void actor_start(struct actor *a, enum pinl_op op, char *va, size_t len,
			       atomic_int *allowed)
{
	memset(a, 0, sizeof *a);
	a->op = op;
	a->va = va;
	a->len = len;
	a->allowed = allowed;
	if (op == PINL_OP_REMAP)
		a->target = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(pthread_create(&a->thread, NULL, act, a), 0);
}

static inline void actor_join(struct actor *a)
{
	pthread_join(a->thread, NULL);
	if (a->target)
		munmap(a->target, a->len);
	assert_int_equal(a->err, 0);
}

#endif
