/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: at most one request in the ring does anything. A request that the kernel wouldn't take
 * stays in the queue and goes with the next one, so it is turned into a NOP; and completions are told
 * apart by a number, so that one nobody waited for is not taken for the next.
 */
#include "backend/ring_move.h"

#include <errno.h>
#include <stdatomic.h>
#include <time.h>

#define TRIES 100 /* 1 ms apart, while memory is short */

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

int pl_ring_move(struct io_uring *ring, bool to_pages, int fd, void *at, unsigned len, unsigned slot)
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
		io_uring_prep_read_fixed(sqe, fd, at, len, 0, slot);
	else
		io_uring_prep_write_fixed(sqe, fd, at, len, 0, slot);
	sqe->user_data = number;
	err = submit(ring);
	if (err < 0) {
		io_uring_prep_nop(sqe);
		sqe->user_data = 0;
		return err;
	}
	return await(ring, number);
}
