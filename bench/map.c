/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A lease on a ring against what the ring alone does: filling a slot of its buffer table and emptying
 * it. Sample by sample in turn, each on memory of its own, touched just before: the end of a lease on a
 * file mapping write-protects its pages, and nobody else is to pay for that.
 */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum kind { ANON, HUGE, MEMFD, KINDS };

static const char *const kind_names[] = {"anon", "anon huge", "memfd"};
static const size_t sizes[] = {4 * KIB, 64 * KIB, MIB, 16 * MIB, 256 * MIB, 1024 * MIB};

struct costs {
	struct samples fill, clear, map, unmap;
};

/* Ours to empty: nothing else is in this ring. */
static void plain_once(struct io_uring *ring, char *at, size_t size, struct costs *c)
{
	struct iovec iov = {at, size}, none = {NULL, 0};
	__u64 tag = 7, no_tag = 0;
	uint64_t t0 = now_ns(), t1;
	struct io_uring_cqe *cqe;
	int ret = io_uring_register_buffers_update_tag(ring, 0, &iov, &tag, 1);

	t1 = now_ns();
	must(ret, "IORING_REGISTER_BUFFERS_UPDATE");
	sample(&c->fill, t1 - t0);
	t0 = now_ns();
	ret = io_uring_register_buffers_update_tag(ring, 0, &none, &no_tag, 1);
	t1 = now_ns();
	must(ret, "IORING_REGISTER_BUFFERS_UPDATE");
	sample(&c->clear, t1 - t0);
	must(io_uring_wait_cqe(ring, &cqe), "the tag's completion");
	io_uring_cqe_seen(ring, cqe);
}

static void lease_once(struct rig *r, char *at, size_t size, struct costs *c)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	uint64_t t0 = now_ns(), t1;
	int err = lease_on(r->uring, at, size, PINL_WRITE | PINL_PIN, &policy, &lease);

	t1 = now_ns();
	if (err)
		fail("lease of %zu KiB: %s", size / KIB, pinl_error());
	sample(&c->map, t1 - t0);
	t0 = now_ns();
	pinl_unmap_range(lease);
	sample(&c->unmap, now_ns() - t0);
	rig_end(r, NULL);
}

static unsigned repeats(const struct bench *b, size_t size)
{
	if (size <= MIB)
		return b->few;
	return size <= 16 * MIB ? b->few / 10 + 1 : 3;
}

/* *fd stays open: without privilege it is how the library finds the file. */
static char *memory_new(enum kind kind, size_t size, int *fd)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *p;

	if (kind == MEMFD) {
		*fd = must(memfd_create("bench", MFD_CLOEXEC), "memfd_create");
		must(ftruncate(*fd, size), "ftruncate");
		flags = MAP_SHARED;
	}
	p = must_map(mmap(NULL, size, PROT_READ | PROT_WRITE, flags, *fd, 0), "mmap");
	if (kind != MEMFD)
		madvise(p, size, kind == HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	touch(p, size);
	return p;
}

/* 0, or why the ring can't have that much. */
static const char *too_much(struct io_uring *ring, char *at, size_t size)
{
	struct iovec iov = {at, size};
	__u64 tag = 0;
	int ret = io_uring_register_buffers_update_tag(ring, 0, &iov, &tag, 1);

	iov = (struct iovec){NULL, 0};
	if (ret >= 0)
		io_uring_register_buffers_update_tag(ring, 0, &iov, &tag, 1);
	return ret >= 0 ? NULL : ret == -ENOMEM ? "RLIMIT_MEMLOCK (ulimit -l)" : strerror(-ret);
}

static void size_text(char text[32], enum kind kind, size_t size)
{
	const char *unit = size >= 1024 * MIB ? "GiB" : size >= MIB ? "MiB" : "KiB";
	size_t n = size >= 1024 * MIB ? size >> 30 : size >= MIB ? size >> 20 : size >> 10;

	snprintf(text, 32, "%s %zu %s", kind_names[kind], n, unit);
}

static bool room_for(size_t size)
{
	return (size_t)sysconf(_SC_AVPHYS_PAGES) * PAGE > 2 * size + 1024 * MIB;
}

static void measure(const struct bench *b, struct rig *r, struct io_uring *plain, enum kind kind,
		    size_t size, struct costs *c)
{
	int fd = -1, leased_fd = -1;
	char what[32], *at, *leased;
	const char *why;

	size_text(what, kind, size);
	if (!room_for(size)) {
		left_out(b, what, "not enough free memory");
		return;
	}
	at = memory_new(kind, size, &fd);
	leased = memory_new(kind, size, &leased_fd);
	why = too_much(plain, at, size);
	if (why)
		left_out(b, what, why);
	for (unsigned i = 0; !why && i < repeats(b, size); i++) {
		touch(at, size);
		plain_once(plain, at, size, c);
		touch(leased, size);
		lease_once(r, leased, size, c);
	}
	if (!why) {
		result(b, what, "plain", "map", &c->fill, 1);
		result(b, what, "pinlease", "map", &c->map, 1);
		result(b, what, "plain", "unmap", &c->clear, 1);
		result(b, what, "pinlease", "unmap", &c->unmap, 1);
	}
	munmap(at, size);
	munmap(leased, size);
	if (kind == MEMFD) {
		close(fd);
		close(leased_fd);
	}
}

void group_map(const struct bench *b)
{
	struct io_uring plain;
	struct costs c = {0};
	struct rig r;

	rig_open(b, &r, false);
	must(io_uring_queue_init(8, &plain, 0), "io_uring_queue_init");
	must(io_uring_register_buffers_sparse(&plain, 1024), "io_uring_register_buffers_sparse");
	for (int kind = ANON; kind < KINDS; kind++)
		for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
			if (sizes[i] <= b->max_size && (kind != HUGE || sizes[i] >= 16 * MIB))
				measure(b, &r, &plain, kind, sizes[i], &c);
	io_uring_queue_exit(&plain);
	rig_close(&r);
	free(c.fill.ns);
	free(c.clear.ns);
	free(c.map.ns);
	free(c.unmap.ns);
}
