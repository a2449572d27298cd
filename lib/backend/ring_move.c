/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: at most one request in the ring does anything. A request that the kernel wouldn't take
 * stays in the queue and goes with the next one, so it is turned into a NOP; and completions are told
 * apart by a number, so that one nobody waited for is not taken for the next.
 *
 * A lane is whoever's took it: the caller's buffer is copied from or to there without a lock. When all
 * are taken, by callers who wait in a fault maybe, lane 0 is there, for as long as the lock is held;
 * then the caller's buffer and the lane meet in a few bytes on the stack.
 */
#include "backend/ring_move.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "backend/uring_table.h"
#include "os/forked.h"

#define TRIES 100 /* 1 ms apart, while memory is short */
#define LANES 4
#define LANE  (256ul << 10) /* bytes one request moves */
#define SMALL 4096ul

static bool try_again(int err, int *tries)
{
	struct timespec pause = {0, 1000000};

	if (err == -EINTR)
		return true;
	if ((err != -ENOMEM && err != -EAGAIN && err != -EBUSY) || ++*tries > TRIES)
		return false;
	nanosleep(&pause, NULL);
	return true;
}

static int submit(struct io_uring *ring)
{
	int tries = 0, ret;

	do
		ret = io_uring_submit(ring);
	while (ret < 0 && try_again(ret, &tries));
	return ret;
}

static int await(struct io_uring *ring, uint64_t number)
{
	struct io_uring_cqe *cqe;
	int tries = 0, ret;
	uint64_t got;

	for (;;) {
		ret = io_uring_wait_cqe(ring, &cqe);
		if (ret < 0 && try_again(ret, &tries))
			continue;
		if (ret < 0)
			return ret;
		got = cqe->user_data;
		ret = cqe->res;
		io_uring_cqe_seen(ring, cqe);
		if (got == number)
			return ret;
	}
}

struct part {
	void *at;
	unsigned len, slot;
	uint64_t offset; /* in the memfd */
};

/* Bytes moved, or -errno. */
static int ring_move(struct io_uring *ring, bool to_pages, int fd, const struct part *p)
{
	static atomic_uint_fast64_t numbers;
	uint64_t number = atomic_fetch_add(&numbers, 1) + 1;
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	int err;

	if (!sqe) { /* full of NOPs */
		submit(ring);
		sqe = io_uring_get_sqe(ring);
	}
	if (!sqe)
		return -EAGAIN;
	if (to_pages)
		io_uring_prep_read_fixed(sqe, fd, p->at, p->len, p->offset, p->slot);
	else
		io_uring_prep_write_fixed(sqe, fd, p->at, p->len, p->offset, p->slot);
	sqe->user_data = number;
	err = submit(ring);
	if (err < 0) {
		io_uring_prep_nop(sqe);
		sqe->user_data = 0;
		return err;
	}
	return await(ring, number);
}

/* 0: all are taken. */
static unsigned take_lane(struct pl_mover *m)
{
	for (unsigned i = 1; i < LANES; i++)
		if (!(atomic_fetch_or(&m->taken, 1u << i) & (1u << i)))
			return i;
	return 0;
}

static void give_lane(struct pl_mover *m, unsigned lane)
{
	if (lane)
		atomic_fetch_and(&m->taken, ~(1u << lane));
}

/* As much as a lane takes. Bytes moved, or -errno. */
static int move_some(struct pl_mover *m, bool to_pages, uintptr_t at, unsigned slot, void *buf,
		     size_t len)
{
	unsigned char small[SMALL], *mine;
	unsigned lane = take_lane(m);
	unsigned char *there = m->lanes + lane * LANE;
	size_t most = lane ? LANE : SMALL;
	struct part p = {(void *)at, len < most ? len : most, slot, lane * LANE};
	int ret;

	mine = lane ? there : small;
	if (to_pages)
		memcpy(mine, buf, p.len);
	pthread_mutex_lock(&m->lock);
	if (to_pages && !lane)
		memcpy(there, small, p.len);
	ret = ring_move(&m->ring, to_pages, m->fd, &p);
	if (!to_pages && !lane && ret > 0)
		memcpy(small, there, ret);
	pthread_mutex_unlock(&m->lock);
	if (!to_pages && ret > 0)
		memcpy(buf, mine, ret);
	give_lane(m, lane);
	return ret ? ret : -EIO;
}

int pl_mover_move(struct pl_mover *m, bool to_pages, uintptr_t at, unsigned slot, void *buf, size_t len)
{
	for (size_t done = 0; done < len;) {
		int ret = move_some(m, to_pages, at + done, slot, (char *)buf + done, len - done);

		if (ret < 0)
			return ret;
		done += ret;
	}
	return 0;
}

static int make_lanes(struct pl_mover *m)
{
	void *map;
	int err;

	m->fd = memfd_create("pinlease-bounce", MFD_CLOEXEC);
	if (m->fd < 0)
		return -errno;
	if (ftruncate(m->fd, LANES * LANE))
		goto fail;
	map = mmap(NULL, LANES * LANE, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	if (map == MAP_FAILED)
		goto fail;
	m->lanes = map;
	return 0;
fail:
	err = -errno;
	close(m->fd);
	return err;
}

static void ring_exit(struct pl_mover *m)
{
	pl_forked_remove(m->ring.ring_fd);
	io_uring_queue_exit(&m->ring);
}

/* A mapping of a ring in a child would keep the pins just as a descriptor does. */
int pl_mover_open(struct pl_mover *m, unsigned slots)
{
	int err = io_uring_queue_init(4, &m->ring, 0);

	if (err)
		return err;
	err = pl_forked_add(m->ring.ring_fd);
	if (!err)
		err = io_uring_ring_dontfork(&m->ring);
	if (!err)
		err = pl_table_make(m->ring.ring_fd, slots);
	if (!err)
		err = make_lanes(m);
	if (err) {
		ring_exit(m);
		return err;
	}
	atomic_init(&m->taken, 0);
	pthread_mutex_init(&m->lock, NULL);
	return 0;
}

void pl_mover_close(struct pl_mover *m)
{
	ring_exit(m);
	munmap(m->lanes, LANES * LANE);
	close(m->fd);
	pthread_mutex_destroy(&m->lock);
}
