/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A word that the kernel itself sets as soon as there is an event, in the thread that makes it and
 * before that thread sleeps: so a lookup needs no system call to know of changes that the reader hasn't
 * begun to take, however long that takes to wake up. It is the TASKRUN flag of an io_uring that polls
 * the userfaultfd and leaves its work to be asked for.
 *
 * Invariant: while an event is unread, the flag is set or the reader has raised the sequence. The reader
 * raises it, takes the flag down (pl_uffd_mark_take), reads, begins anew while the flag is set again,
 * and lowers it.
 */
#ifndef PL_SOURCE_UFFD_MARK_H
#define PL_SOURCE_UFFD_MARK_H

#include <liburing.h>
#include <pinlease/source.h>
#include <stdbool.h>

struct pl_uffd_mark {
	struct io_uring ring;
	bool open;
	int fd;	      /* what it polls */
	int failures; /* in a row */
};

/* All by the reader thread. Without io_uring it stays closed, which pinl_sources() says. */
void pl_uffd_mark_open(struct pl_uffd_mark *mark, struct pinl_ctx *ctx, int fd);
bool pl_uffd_mark_is_set(const struct pl_uffd_mark *mark);
void pl_uffd_mark_take(struct pl_uffd_mark *mark, struct pinl_ctx *ctx);
void pl_uffd_mark_close(struct pl_uffd_mark *mark, struct pinl_ctx *ctx);

#endif
