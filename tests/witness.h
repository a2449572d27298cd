/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A ring of its own that has pinned a range's pages as they were, so that they can be read and written
 * after file and mapping have let them go. */
#ifndef WITNESS_H
#define WITNESS_H

#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <unistd.h>

static inline void witness_open(struct io_uring *ring, void *va, size_t len)
{
	struct iovec iov = {va, len};

	assert_int_equal(io_uring_queue_init(4, ring, 0), 0);
	assert_int_equal(io_uring_register_buffers(ring, &iov, 1), 0);
}

/* Between buf and all of the pages. */
static inline void witness_move(struct io_uring *ring, void *va, size_t len, void *buf, bool write)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	int fd = memfd_create("witness", MFD_CLOEXEC);
	struct io_uring_cqe *cqe;

	assert_int_equal(ftruncate(fd, len), 0);
	if (write) {
		assert_int_equal(pwrite(fd, buf, len, 0), len);
		io_uring_prep_read_fixed(sqe, fd, va, len, 0, 0);
	} else {
		io_uring_prep_write_fixed(sqe, fd, va, len, 0, 0);
	}
	assert_int_equal(io_uring_submit(ring), 1);
	assert_int_equal(io_uring_wait_cqe(ring, &cqe), 0);
	assert_int_equal(cqe->res, len);
	io_uring_cqe_seen(ring, cqe);
	if (!write)
		assert_int_equal(pread(fd, buf, len, 0), len);
	close(fd);
}

#endif
