/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "backend/uring_table.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "os/compat.h"
#include "os/text.h"

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

/*
 * Also while somebody may be held for the lease, with the allocator's lock. Only the slot's own line
 * says what it has: up to Linux 6.12 the table's head is there without the ring's lock, too, and then no
 * slot.
 */
int pl_slot_get(int ring, unsigned slot, uintptr_t *start, uintptr_t *end)
{
	uint64_t at = 0, len = 0;
	char path[64], line[256];
	bool listed = false;
	struct pl_text text;
	unsigned n;
	int err;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", ring);
	err = pl_text_open(&text, path);
	if (err)
		return err;
	do {
		err = pl_text_line(&text, line, sizeof line);
		listed |= !err && !strncmp(line, "UserBufs:", 9);
	} while (!err && !(listed && sscanf(line, " %u:", &n) == 1 && n == slot));
	pl_text_close(&text);
	if (err)
		return err == -ENOENT ? -EAGAIN : err;
	if (sscanf(line, " %*u: 0x%" SCNx64 "/%" SCNu64, &at, &len) != 2)
		at = len = 0; /* "<none>" */
	*start = at;
	*end = at + len;
	return 0;
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

static const uint8_t buffer_ops[] = {IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED, IORING_OP_SEND_ZC,
				     IORING_OP_URING_CMD};

bool pl_op_uses_buffer(unsigned op)
{
	for (size_t i = 0; i < sizeof buffer_ops; i++)
		if (buffer_ops[i] == op)
			return true;
	return false;
}

int pl_ring_cancel_fixed(int ring, uint64_t timeout_ns)
{
	int err = 0;

	for (size_t i = 0; i < sizeof buffer_ops; i++) {
		err = cancel_op(ring, buffer_ops[i], timeout_ns / sizeof buffer_ops);
		if (err == -EINVAL) /* before 6.6: no matching by opcode, cancel all */
			return cancel_op(ring, 0, timeout_ns);
	}
	return err;
}
