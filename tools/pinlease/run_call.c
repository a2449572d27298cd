/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a stopped call would do. Registers can't change while it is stopped; what is behind a pointer
 * can, by another thread: run guards against accidents, not against a program that wants to get by.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "run.h"

/* Which mode is which operation; the first that fits. */
static const struct {
	unsigned mode;
	enum pinl_op op;
} modes[] = {
	{FALLOC_FL_PUNCH_HOLE, PINL_OP_PUNCH},	  {FALLOC_FL_COLLAPSE_RANGE, PINL_OP_COLLAPSE},
	{FALLOC_FL_INSERT_RANGE, PINL_OP_INSERT}, {FALLOC_FL_ZERO_RANGE, PINL_OP_ZERO},
	{0x80 /* WRITE_ZEROES */, PINL_OP_ZERO},
};

static int one(struct run_part *part, int fd, enum pinl_op op, uint64_t start, uint64_t end)
{
	if (fd < 0)
		return 0;
	*part = (struct run_part){fd, op, start, end};
	if (op == PINL_OP_TRUNCATE ? start <= INT64_MAX : start < end && end <= INT64_MAX)
		return 1;
	close(fd); /* the kernel will say EINVAL */
	return 0;
}

static uint64_t two(const __u64 *args)
{
	return (uint32_t)args[0] | (uint64_t)(uint32_t)args[1] << 32;
}

static int truncation_of_fd(const struct seccomp_notif *n, uint64_t size, struct run_part *part,
			    const char **why)
{
	int fd = run_file_of_fd(n->pid, (int)n->data.args[0], why);

	return one(part, fd, PINL_OP_TRUNCATE, size, 0);
}

static int truncation_of_path(const struct seccomp_notif *n, uint64_t size, struct run_part *part,
			      const char **why)
{
	int fd = run_file_of_path(n->pid, AT_FDCWD, n->data.args[0], O_WRONLY, 0, why);

	return one(part, fd, PINL_OP_TRUNCATE, size, 0);
}

static int allocation(const struct seccomp_notif *n, struct run_part *part, const char **why)
{
	const __u64 *args = n->data.args;
	bool halves = run_is_32bit(&n->data);
	uint64_t start = halves ? two(args + 2) : args[2], len = halves ? two(args + 4) : args[3];
	size_t i = 0;

	while (i < sizeof modes / sizeof *modes - 1 && !(args[1] & modes[i].mode))
		i++;
	if (start > INT64_MAX || len > INT64_MAX - start)
		return 0;
	return one(part, run_file_of_fd(n->pid, (int)args[0], why), modes[i].op, start, start + len);
}

static int opening(const struct seccomp_notif *n, int dir, uint64_t path, const struct open_how *how,
		   struct run_part *part, const char **why)
{
	bool is_new = (how->flags & O_CREAT) && (how->flags & O_EXCL);

	if (!(how->flags & O_TRUNC) || (how->flags & O_PATH) || is_new)
		return 0;
	return one(part, run_file_of_path(n->pid, dir, path, how->flags, how->resolve, why),
		   PINL_OP_TRUNCATE, 0, 0);
}

static int opening2(const struct seccomp_notif *n, struct run_part *part, const char **why)
{
	struct open_how how = {0};
	uint64_t size = n->data.args[3];

	if (size > sizeof how)
		size = sizeof how;
	if (run_read(n->pid, n->data.args[2], &how, size) < (int)size) {
		*why = "its memory can't be read";
		return 0;
	}
	return opening(n, (int)n->data.args[0], n->data.args[1], &how, part, why);
}

/* XFS's struct xfs_flock64. The offset may be meant from the current position or the end. */
struct space {
	int16_t type, whence;
	int64_t start, len;
	int32_t sysid;
	uint32_t pid;
	int32_t pad[4];
};

static int space_call(const struct seccomp_notif *n, struct run_part *part, const char **why)
{
	bool zero = (n->data.args[1] & 0xff) == 57;
	struct space s;
	int64_t from;
	int fd;

	if (run_read(n->pid, n->data.args[2], &s, sizeof s) < (int)sizeof s)
		return 0;
	fd = run_file_of_fd(n->pid, (int)n->data.args[0], why);
	if (fd < 0)
		return 0;
	from = s.whence == SEEK_SET ? 0 : lseek(fd, 0, SEEK_CUR);
	if (s.whence == SEEK_END) {
		struct stat st;

		from = fstat(fd, &st) ? -1 : st.st_size;
	}
	if (from < 0 || s.len < 0 || s.start > INT64_MAX - from || s.start + from < 0 ||
	    s.len > INT64_MAX - (s.start + from)) {
		close(fd);
		return 0;
	}
	return one(part, fd, zero ? PINL_OP_ZERO : PINL_OP_PUNCH, s.start + from,
		   s.start + from + s.len);
}

int run_look(const struct seccomp_notif *n, struct run_part parts[RUN_PARTS], const char **why)
{
	const __u64 *a = n->data.args;
	struct open_how how = {.flags = O_CREAT | O_WRONLY | O_TRUNC};

	switch (run_what(&n->data)) {
	case RUN_FTRUNCATE:
		return truncation_of_fd(n, a[1], parts, why);
	case RUN_FTRUNCATE64:
		return truncation_of_fd(n, two(a + 1), parts, why);
	case RUN_TRUNCATE:
		return truncation_of_path(n, a[1], parts, why);
	case RUN_TRUNCATE64:
		return truncation_of_path(n, two(a + 1), parts, why);
	case RUN_FALLOCATE:
		return allocation(n, parts, why);
	case RUN_CREAT:
		return opening(n, AT_FDCWD, a[0], &how, parts, why);
	case RUN_OPEN:
		how.flags = (uint32_t)a[1];
		return opening(n, AT_FDCWD, a[0], &how, parts, why);
	case RUN_OPENAT:
		how.flags = (uint32_t)a[2];
		return opening(n, (int)a[0], a[1], &how, parts, why);
	case RUN_OPENAT2:
		return opening2(n, parts, why);
	case RUN_MADVISE:
		return run_files_of_memory(n->pid, a[0], a[1], parts, why);
	case RUN_IOCTL:
		return space_call(n, parts, why);
	default:
		return 0;
	}
}
