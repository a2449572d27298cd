/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "source/uffd_mark.h"

#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/ctx.h"
#include "os/forked.h"

#define TRIES 4
#define FLAGS (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG)

static bool arm(struct pl_uffd_mark *m)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&m->ring);

	if (!sqe)
		return false;
	io_uring_prep_poll_multishot(sqe, m->fd, POLLIN);
	return io_uring_submit(&m->ring) == 1;
}

bool pl_uffd_mark_is_set(const struct pl_uffd_mark *m)
{
	return m->open && m->failures < TRIES &&
	       (__atomic_load_n(m->ring.sq.kflags, __ATOMIC_ACQUIRE) & IORING_SQ_TASKRUN);
}

/* Runs what the flag is about. False: the poll has ended, or this doesn't work. */
static bool run(struct pl_uffd_mark *m)
{
	struct io_uring_cqe *cqe;
	bool armed = true;

	if (syscall(SYS_io_uring_enter, m->ring.ring_fd, 0, 0, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		m->failures++;
	else
		m->failures = 0;
	while (!io_uring_peek_cqe(&m->ring, &cqe)) {
		armed &= (cqe->flags & IORING_CQE_F_MORE) != 0;
		io_uring_cqe_seen(&m->ring, cqe);
	}
	return armed;
}

void pl_uffd_mark_open(struct pl_uffd_mark *m, struct pinl_ctx *ctx, int fd)
{
	struct io_uring_params params = {.flags = FLAGS};

	m->fd = fd;
	if (io_uring_queue_init_params(8, &m->ring, &params))
		return;
	if (pl_forked_add(m->ring.ring_fd) || io_uring_ring_dontfork(&m->ring) || !arm(m)) {
		pl_forked_remove(m->ring.ring_fd);
		io_uring_queue_exit(&m->ring);
		return;
	}
	m->open = true;
	pl_mark_set(ctx, (const _Atomic(unsigned) *)m->ring.sq.kflags, IORING_SQ_TASKRUN);
}

/*
 * If the flag can't be taken down, lookups would wait for ever: they do without. The ring stays mapped
 * until the end, because one may be looking.
 */
void pl_uffd_mark_take(struct pl_uffd_mark *m, struct pinl_ctx *ctx)
{
	if (!pl_uffd_mark_is_set(m))
		return;
	if (!run(m) && !arm(m))
		m->failures = TRIES;
	if (m->failures == TRIES)
		pl_mark_set(ctx, NULL, 0);
}

/* The ring has the userfaultfd open, which must end with the reader: so the poll ends first. */
void pl_uffd_mark_close(struct pl_uffd_mark *m, struct pinl_ctx *ctx)
{
	struct io_uring_sync_cancel_reg all = {.fd = -1,
					       .flags =
						       IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL,
					       .timeout = {-1, -1}};

	if (!m->open)
		return;
	pl_mark_set(ctx, NULL, 0);
	io_uring_register_sync_cancel(&m->ring, &all);
	run(m);
	pl_forked_remove(m->ring.ring_fd);
	io_uring_queue_exit(&m->ring);
	m->open = false;
}
