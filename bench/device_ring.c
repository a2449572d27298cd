/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What every machine has: the soft device, and a ring with fixed buffers. group_map has its leases. */
#include "device.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (64 * KIB)

static int soft_move(struct target *t, const struct pinl_addr *addrs)
{
	return pinl_soft_dma(t->dev, addrs[0].addr, t->priv, SIZE, 1);
}

/* The completion of the load's own request; the library's are passed on. */
static int wait_own(struct target *t)
{
	struct io_uring *ring = &t->rig->ring;

	for (;;) {
		struct io_uring_cqe *cqe;
		bool theirs;
		int res;

		must(io_uring_wait_cqe(ring, &cqe), "io_uring_wait_cqe");
		theirs = pinl_uring_cqe(t->dev, cqe->user_data);
		res = cqe->res;
		io_uring_cqe_seen(ring, cqe);
		if (!theirs)
			return res == (int)SIZE ? 0 : -EFAULT;
	}
}

static int uring_move(struct target *t, const struct pinl_addr *addrs)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->rig->ring);
	const int *fd = t->priv;

	io_uring_prep_read_fixed(sqe, *fd, (void *)(uintptr_t)addrs[0].addr, SIZE, 0, addrs[0].key);
	io_uring_sqe_set_data64(sqe, 1);
	must(io_uring_submit(&t->rig->ring), "io_uring_submit");
	return wait_own(t);
}

void group_device_ring(const struct bench *b)
{
	static char data[SIZE];
	int fd = must(memfd_create("source", MFD_CLOEXEC), "memfd_create");
	struct target soft = {.name = "soft",
			      .flags = PINL_WRITE | PINL_PIN,
			      .size = SIZE,
			      .priv = data,
			      .move = soft_move};
	struct target uring = {.name = "uring",
			       .flags = PINL_WRITE | PINL_PIN,
			       .size = SIZE,
			       .priv = &fd,
			       .move = uring_move};
	struct rig r;

	memset(data, 'W', sizeof data);
	if (write(fd, data, sizeof data) != (ssize_t)sizeof data)
		fail("can't write to a memfd");
	rig_open(b, &r, false);
	soft.rig = uring.rig = &r;
	soft.dev = r.soft;
	uring.dev = r.uring;
	device_revoke(b, &soft);
	device_revoke(b, &uring);
	rig_close(&r);
	close(fd);
}
