/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file that a stopped call is about, by way of its task. Path and numbers may mean anything by now,
 * so all of this may wait for somebody's server: only files_peek.c's child does it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <linux/magic.h>

#include "os/compat.h"
#include "source/files_look.h"

/* The path in the task's memory as this process can open it. */
static int path_of(pid_t tid, int dirfd, uintptr_t at, char *path, size_t len)
{
	struct iovec to = {path + len / 2, len / 2 - 1}, from = {(void *)at, len / 2 - 1};
	long n = process_vm_readv(tid, &to, 1, &from, 1, 0);
	char *given = path + len / 2, where[64];

	if (n <= 0 && (from.iov_len = 4096 - at % 4096)) /* it may end with its page */
		n = process_vm_readv(tid, &to, 1, &from, 1, 0);
	if (n <= 0)
		return -ENOENT;
	given[n] = 0;
	if (*given == '/')
		snprintf(where, sizeof where, "/proc/%d/root", tid);
	else if (dirfd == AT_FDCWD)
		snprintf(where, sizeof where, "/proc/%d/cwd/", tid);
	else
		snprintf(where, sizeof where, "/proc/%d/fd/%d/", tid, dirfd);
	if (strlen(where) + strlen(given) >= len / 2)
		return -ENAMETOOLONG;
	memcpy(path, where, strlen(where) + 1);
	memmove(path + strlen(where), given, strlen(given) + 1);
	return 0;
}

/* By which way the task has the file that it is about to change. */
static int way_to(pid_t tid, const struct pl_syscall *sc, char *path, size_t len)
{
	int fd = pl_file_target_fd(sc);

	switch (sc->nr) {
	case SYS_ftruncate:
	case SYS_fallocate:
		fd = sc->args[0];
		break;
	case SYS_openat:
	case SYS_openat2:
		return path_of(tid, (int)sc->args[0], sc->args[1], path, len);
#ifdef SYS_open
	case SYS_open:
	case SYS_creat:
#endif
	case SYS_truncate:
		return path_of(tid, AT_FDCWD, sc->args[0], path, len);
	}
	if (fd < 0)
		return -ENOENT;
	snprintf(path, len, "/proc/%d/fd/%d", tid, fd);
	return 0;
}

/* Others are never held, and may ask a server where the gate looks at them. */
static bool can_be_held(int fd)
{
	struct statfs fs;

	return !syscall(SYS_fstatfs, fd, &fs) &&
	       (fs.f_type == EXT4_SUPER_MAGIC || fs.f_type == XFS_SUPER_MAGIC ||
		fs.f_type == BTRFS_SUPER_MAGIC);
}

int pl_files_open_target(pid_t tid, const struct pl_syscall *sc)
{
	char path[2048];
	int err = way_to(tid, sc, path, sizeof path), fd;

	if (err)
		return err;
	fd = syscall(SYS_openat, AT_FDCWD, path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (can_be_held(fd))
		return fd;
	syscall(SYS_close, fd);
	return -EOPNOTSUPP;
}
