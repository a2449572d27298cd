/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The file that a holder has shown by a descriptor: what it is, and what it proves. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include "daemon.h"

enum pinl_memory_kind file_kind(long magic, bool shared)
{
	if (magic == TMPFS_MAGIC)
		return PINL_MEM_SHMEM;
	if (magic == HUGETLBFS_MAGIC)
		return PINL_MEM_HUGETLB;
	return shared ? PINL_MEM_FILE_SHARED : PINL_MEM_FILE_PRIVATE;
}

/* R12: the descriptor shows that its owner may do with the file what the device will. */
int file_look(int fd, bool write, struct stat *st, long *magic, bool *reader)
{
	int flags = fcntl(fd, F_GETFL);
	struct statfs fs;

	if (flags < 0 || fstat(fd, st) || fstatfs(fd, &fs))
		return pinl_set_error(-errno, "the file shown can't be looked at: %s", strerror(errno));
	if (!S_ISREG(st->st_mode))
		return pinl_set_error(-EINVAL, "what was shown is no regular file");
	if (flags & O_PATH)
		return pinl_set_error(-EACCES,
				      "a descriptor made with O_PATH shows no right to the file");
	if (!write && (flags & O_ACCMODE) == O_WRONLY)
		return pinl_set_error(-EACCES, "the device reads, and the descriptor that was shown is "
					       "open for writing only");
	if (write && (flags & O_ACCMODE) == O_RDONLY)
		return pinl_set_error(-EACCES, "the device writes, and the descriptor that was shown is "
					       "open for reading only");
	*magic = fs.f_type;
	*reader = (flags & O_ACCMODE) == O_RDONLY;
	return 0;
}

/* So that nothing of the file is kept open but its name: no lock, lease or text segment minds that. */
int file_path_only(int fd)
{
	char path[32];
	int p;

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	p = open(path, O_PATH | O_CLOEXEC);
	return p < 0 ? pinl_set_error(-errno, "no descriptor left in pinleased: %s", strerror(errno))
		     : p;
}
