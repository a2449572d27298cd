/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#define URING_FTRUNCATE 55 /* IORING_OP_FTRUNCATE, Linux 6.9 */

const char *const gate_place_names[] = {"memfd", "hugetlbfs", "directory", "tmpfs"};

static int result(long r)
{
	return r < 0 ? -errno : 0;
}

/* ------------------------------------------------------------------------------------------ files -- */

static const char *directory(void)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");

	return dir ? dir : "/var/tmp";
}

static int new_file(enum gate_place place, char *named, size_t len)
{
	int fd;

	*named = 0;
	if (place == PLACE_MEMFD)
		return memfd_create("gate", MFD_CLOEXEC);
	if (place == PLACE_HUGE)
		return memfd_create("gate", MFD_CLOEXEC | MFD_HUGETLB);
	snprintf(named, len, "%s/pinlease-gate.XXXXXX", place == PLACE_TMPFS ? "/dev/shm" : directory());
	fd = mkostemp(named, O_CLOEXEC);
	return fd;
}

/* False: there are no huge pages. */
static bool fill(int fd, size_t page, char **mem)
{
	size_t len = GATE_PAGES * page;

	*mem = ftruncate(fd, len) ? MAP_FAILED
				  : mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (*mem == MAP_FAILED)
		return false;
	memset(*mem, 7, len);
	return !fsync(fd);
}

bool gate_target_open(enum gate_place place, struct gate_target *t)
{
	char named[sizeof t->named], *mem;

	*t = (struct gate_target){.page = place == PLACE_HUGE ? 2 << 20 : 4096};
	t->fd = new_file(place, t->named, sizeof t->named);
	t->source = place == PLACE_HUGE ? -1 : new_file(place, named, sizeof named);
	if (t->fd < 0 || !fill(t->fd, t->page, &t->mem))
		return false;
	if (t->source >= 0) {
		if (!fill(t->source, t->page, &mem))
			return false;
		munmap(mem, GATE_PAGES * t->page);
		if (*named)
			unlink(named);
		t->clones = !ioctl(t->fd, FICLONE, t->source);
	}
	snprintf(t->path, sizeof t->path, "/proc/%d/fd/%d", getpid(), t->fd);
	return true;
}

void gate_target_close(struct gate_target *t)
{
	munmap(t->mem, GATE_PAGES * t->page);
	close(t->fd);
	if (t->source >= 0)
		close(t->source);
	if (*t->named)
		unlink(t->named);
}

bool gate_may_lack(const struct gate_target *t, const char *op)
{
	struct statfs fs;

	return fstatfs(t->fd, &fs) || fs.f_type != XFS_SUPER_MAGIC || !strcmp(op, "io_uring ftruncate");
}

/* -------------------------------------------------------------------------------------- operations --
 */

static int op_ftruncate(const struct gate_target *t, off_t at)
{
	return result(ftruncate(t->fd, at));
}

static int op_truncate(const struct gate_target *t, off_t at)
{
	return result(truncate(t->path, at));
}

static int op_open(const struct gate_target *t, off_t at)
{
	int fd = open(t->path, O_RDWR | O_TRUNC | O_CLOEXEC), err = result(fd);

	if (fd >= 0)
		close(fd);
	return err;
}

static int op_punch(const struct gate_target *t, off_t at)
{
	return result(fallocate(t->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, t->page));
}

static int op_zero(const struct gate_target *t, off_t at)
{
	return result(fallocate(t->fd, FALLOC_FL_ZERO_RANGE, at, t->page));
}

static int op_collapse(const struct gate_target *t, off_t at)
{
	return result(fallocate(t->fd, FALLOC_FL_COLLAPSE_RANGE, at, t->page));
}

static int op_insert(const struct gate_target *t, off_t at)
{
	return result(fallocate(t->fd, FALLOC_FL_INSERT_RANGE, at, t->page));
}

static int op_remove(const struct gate_target *t, off_t at)
{
	char *mem = mmap(NULL, t->page, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, at);
	int err;

	if (mem == MAP_FAILED)
		return -errno;
	err = result(madvise(mem, t->page, MADV_REMOVE));
	munmap(mem, t->page);
	return err;
}

static int op_clone(const struct gate_target *t, off_t at)
{
	struct file_clone_range r = {
		.src_fd = t->source, .src_offset = at, .src_length = t->page, .dest_offset = at};

	return t->source < 0 ? -EOPNOTSUPP : result(ioctl(t->fd, FICLONERANGE, &r));
}

static int op_dedupe(const struct gate_target *t, off_t at)
{
	struct {
		struct file_dedupe_range r;
		struct file_dedupe_range_info to;
	} d = {{.src_offset = at, .src_length = t->page, .dest_count = 1},
	       {.dest_fd = t->fd, .dest_offset = at}};
	int err = t->source < 0 ? -EOPNOTSUPP : result(ioctl(t->source, FIDEDUPERANGE, &d));

	return err ? err : d.to.status < 0 ? d.to.status : 0;
}

static int op_copy(const struct gate_target *t, off_t at)
{
	off_t from = at, to = at;

	return t->source < 0 ? -EOPNOTSUPP
			     : result(copy_file_range(t->source, &from, t->fd, &to, t->page, 0));
}

static int by_ring(void (*prepare)(struct io_uring_sqe *sqe, const struct gate_target *t, off_t at),
		   const struct gate_target *t, off_t at)
{
	struct io_uring_cqe *cqe;
	struct io_uring ring;
	int err = io_uring_queue_init(4, &ring, 0);

	if (err)
		return err;
	prepare(io_uring_get_sqe(&ring), t, at);
	io_uring_submit(&ring);
	err = io_uring_wait_cqe(&ring, &cqe);
	if (!err)
		err = cqe->res < 0 ? cqe->res : 0;
	io_uring_queue_exit(&ring);
	return err;
}

static void prepare_punch(struct io_uring_sqe *sqe, const struct gate_target *t, off_t at)
{
	io_uring_prep_fallocate(sqe, t->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, t->page);
}

static void prepare_truncate(struct io_uring_sqe *sqe, const struct gate_target *t, off_t at)
{
	*sqe = (struct io_uring_sqe){.opcode = URING_FTRUNCATE, .fd = t->fd, .off = at};
}

static int op_ring_punch(const struct gate_target *t, off_t at)
{
	return by_ring(prepare_punch, t, at);
}

static int op_ring_truncate(const struct gate_target *t, off_t at)
{
	return by_ring(prepare_truncate, t, at);
}

const struct gate_op gate_ops[] = {
	{"ftruncate", PINL_OP_TRUNCATE, op_ftruncate, false, false},
	{"truncate", PINL_OP_TRUNCATE, op_truncate, false, false},
	{"open O_TRUNC", PINL_OP_TRUNCATE, op_open, true, false},
	{"io_uring ftruncate", PINL_OP_TRUNCATE, op_ring_truncate, false, false},
	{"punch", PINL_OP_PUNCH, op_punch, false, false},
	{"io_uring punch", PINL_OP_PUNCH, op_ring_punch, false, false},
	{"MADV_REMOVE", PINL_OP_REMOVE, op_remove, false, false},
	{"zero", PINL_OP_ZERO, op_zero, false, false},
	{"collapse", PINL_OP_COLLAPSE, op_collapse, false, false},
	{"insert", PINL_OP_INSERT, op_insert, false, false},
	{"clone", PINL_OP_ZERO, op_clone, false, false},
	{"dedupe", PINL_OP_ZERO, op_dedupe, false, false},
	{"copy_file_range", PINL_OP_ZERO, op_copy, false, true},
};

const unsigned gate_n_ops = sizeof gate_ops / sizeof *gate_ops;

void gate_need_not(enum gate_place place, const struct gate_op *op)
{
	struct gate_target t;

	assert_true(gate_target_open(place, &t));
	if (!gate_may_lack(&t, op->name))
		fail_msg("no %s on XFS: so it wasn't tried", op->name);
	gate_target_close(&t);
}

/* ------------------------------------------------------------------------------------------- pins -- */

unsigned gate_entries(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	unsigned n = 0;

	while (d && (e = readdir(d)))
		n += *e->d_name != '.';
	if (d)
		closedir(d);
	return n;
}

unsigned gate_pins(const char *directory)
{
	char path[512];
	DIR *d = opendir(directory);
	struct dirent *e;
	unsigned n = 0;

	while (d && (e = readdir(d)))
		if (*e->d_name != '.') {
			snprintf(path, sizeof path, "%s/%s", directory, e->d_name);
			n += gate_entries(path);
		}
	if (d)
		closedir(d);
	return n;
}
