/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * matrix_actor ACT UNIT PATH OTHER - opens PATH, says so, and when told to (a byte) does ACT to it; then
 * prints 0 or -errno. OTHER is a file with the same content beside it. UNIT: bytes of a page.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "matrix_acts.h"

#define URING_OP_FTRUNCATE 55 /* Debian 12's liburing is older than it */

static unsigned long unit;
static int fd, other;
static const char *path, *other_path;

static int open_truncating(void)
{
	int opened = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);

	return opened < 0 ? -1 : close(opened);
}

static int by_ring(const char *what)
{
	struct io_uring ring;
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	int res = io_uring_queue_init(2, &ring, 0);

	if (res)
		return errno = -res, -1;
	sqe = io_uring_get_sqe(&ring);
	if (!strcmp(what, "io_uring punch")) {
		io_uring_prep_fallocate(sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * unit,
					unit);
	} else if (!strcmp(what, "io_uring ftruncate")) {
		memset(sqe, 0, sizeof *sqe);
		sqe->opcode = URING_OP_FTRUNCATE;
		sqe->fd = fd;
		sqe->off = 3 * unit;
	} else {
		io_uring_prep_openat(sqe, AT_FDCWD, path, O_RDWR | O_TRUNC, 0);
	}
	io_uring_submit(&ring);
	res = io_uring_wait_cqe(&ring, &cqe) ? -EIO : cqe->res;
	io_uring_queue_exit(&ring);
	return res < 0 ? (errno = -res, -1) : 0;
}

static int discard(void)
{
	char *m = mmap(NULL, UNITS * unit, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return m == MAP_FAILED ? -1 : madvise(m + 3 * unit, unit, MADV_REMOVE);
}

static int clone_over(void)
{
	struct file_clone_range r = {
		.src_fd = other, .src_offset = 3 * unit, .src_length = unit, .dest_offset = 3 * unit};

	return ioctl(fd, FICLONERANGE, &r);
}

/* The same content, so that it can be one; what says that it isn't is an error, too. */
static int dedupe(void)
{
	struct {
		struct file_dedupe_range r;
		struct file_dedupe_range_info to;
	} d = {.r = {.src_offset = 3 * unit, .src_length = unit, .dest_count = 1},
	       .to = {.dest_fd = fd, .dest_offset = 3 * unit}};

	if (ioctl(other, FIDEDUPERANGE, &d))
		return -1;
	if (d.to.status == FILE_DEDUPE_RANGE_SAME)
		return 0;
	errno = d.to.status < 0 ? -d.to.status : EILSEQ;
	return -1;
}

static int copy_over(void)
{
	off_t from = 3 * unit, to = 3 * unit;

	return copy_file_range(other, &from, fd, &to, unit, 0) < 0 ? -1 : 0;
}

static int act(const char *a)
{
	const unsigned long at = 3 * unit, keep = FALLOC_FL_KEEP_SIZE;

	if (!strcmp(a, "truncate"))
		return truncate(path, at);
	if (!strncmp(a, "ftruncate", 9))
		return ftruncate(fd, at);
	if (!strcmp(a, "open O_TRUNC"))
		return open_truncating();
	if (!strncmp(a, "io_uring", 8))
		return by_ring(a);
	if (!strncmp(a, "punch", 5))
		return fallocate(fd, FALLOC_FL_PUNCH_HOLE | keep, at, unit);
	if (!strcmp(a, "zero"))
		return fallocate(fd, FALLOC_FL_ZERO_RANGE, at, unit);
	if (!strcmp(a, "collapse"))
		return fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, at, unit);
	if (!strcmp(a, "insert"))
		return fallocate(fd, FALLOC_FL_INSERT_RANGE, at, unit);
	if (!strcmp(a, "MADV_REMOVE"))
		return discard();
	if (!strcmp(a, "clone into it"))
		return clone_over();
	if (!strcmp(a, "dedupe"))
		return dedupe();
	if (!strcmp(a, "copy_file_range into it"))
		return copy_over();
	if (!strcmp(a, "write"))
		return pwrite(fd, "x", 1, at) == 1 ? 0 : -1;
	if (!strcmp(a, "rename over it"))
		return rename(other_path, path);
	if (!strcmp(a, "unlink"))
		return unlink(path);
	errno = ENOSYS;
	return -1;
}

int main(int argc, char **argv)
{
	char go;

	if (argc != 5)
		return 2;
	unit = strtoul(argv[2], NULL, 10);
	path = argv[3];
	other_path = argv[4];
	fd = open(path, O_RDWR | O_CLOEXEC);
	other = open(other_path, O_RDWR | O_CLOEXEC);
	printf("%d\n", fd < 0 || other < 0 ? -errno : 0);
	fflush(stdout);
	if (fd < 0 || other < 0 || read(0, &go, 1) != 1)
		return 1;
	printf("%d\n", act(argv[1]) ? -errno : 0);
	return 0;
}
