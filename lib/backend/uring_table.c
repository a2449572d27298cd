/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "backend/uring_table.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "os/compat.h"

#ifndef IORING_RSRC_REGISTER_SPARSE
#define IORING_RSRC_REGISTER_SPARSE 1
#endif

static int reg(int ring, unsigned op, void *arg, unsigned n)
{
	int ret;

	do
		ret = syscall(__NR_io_uring_register, ring, op, arg, n);
	while (ret < 0 && errno == EINTR && op != IORING_REGISTER_SYNC_CANCEL); /* which has a timeout */
	return ret < 0 ? -errno : ret;
}

int pl_table_make(int ring, unsigned slots)
{
	struct io_uring_rsrc_register r = {.nr = slots, .flags = IORING_RSRC_REGISTER_SPARSE};

	return reg(ring, IORING_REGISTER_BUFFERS2, &r, sizeof r);
}

int pl_table_drop(int ring)
{
	return reg(ring, IORING_UNREGISTER_BUFFERS, NULL, 0);
}

int pl_table_size(int ring, unsigned *slots)
{
	char path[64], line[256];
	int err = -ENOENT;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", ring);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (err && fgets(line, sizeof line, f))
		if (sscanf(line, "UserBufs: %u", slots) == 1)
			err = 0;
	fclose(f);
	return err;
}

int pl_slot_set(int ring, unsigned slot, const void *addr, size_t len, uint64_t tag)
{
	struct iovec iov = {(void *)addr, len};
	struct io_uring_rsrc_update2 u = {
		.offset = slot, .data = (uintptr_t)&iov, .tags = (uintptr_t)&tag, .nr = 1};
	int ret = reg(ring, IORING_REGISTER_BUFFERS_UPDATE, &u, sizeof u);

	return ret < 0 ? ret : ret == 1 ? 0 : -EINVAL;
}

int pl_slot_empty(int ring, unsigned slot)
{
	struct timespec pause = {0, 1000000};
	int err;

	for (int i = 0; (err = pl_slot_set(ring, slot, NULL, 0, 0)) == -ENOMEM && i < 100; i++)
		nanosleep(&pause, NULL);
	return err;
}

int pl_slot_clone(int from, unsigned from_slot, int to, unsigned to_slot)
{
	struct pl_io_uring_clone_buffers c = {
		.src_fd = from,
		.flags = PL_IORING_REGISTER_DST_REPLACE,
		.src_off = from_slot,
		.dst_off = to_slot,
		.nr = 1,
	};

	return reg(to, PL_IORING_REGISTER_CLONE_BUFFERS, &c, 1);
}

static int cancel_op(int ring, uint8_t opcode, uint64_t timeout_ns)
{
	struct { /* struct io_uring_sync_cancel_reg with the opcode field of 6.6 */
		uint64_t addr;
		int32_t fd;
		uint32_t flags;
		int64_t sec, nsec;
		uint8_t opcode, pad[7];
		uint64_t pad2[3];
	} c = {.fd = -1, .opcode = opcode};

	c.flags = IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY;
	if (opcode) /* match by opcode only */
		c.flags = IORING_ASYNC_CANCEL_ALL | 32 /* IORING_ASYNC_CANCEL_OP */;
	c.sec = timeout_ns / 1000000000u;
	c.nsec = timeout_ns % 1000000000u;
	return reg(ring, IORING_REGISTER_SYNC_CANCEL, &c, 1);
}

int pl_ring_cancel_fixed(int ring, uint64_t timeout_ns)
{
	static const uint8_t ops[] = {IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED, IORING_OP_SEND_ZC,
				      IORING_OP_URING_CMD};
	int err = 0;

	for (size_t i = 0; i < sizeof ops; i++) {
		err = cancel_op(ring, ops[i], timeout_ns / sizeof ops);
		if (err == -EINVAL) /* before 6.6: no matching by opcode, cancel all */
			return cancel_op(ring, 0, timeout_ns);
	}
	return err;
}
