/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Invariant: whatever the kernel asks is answered at once, but reads, which are who waits. */
#include "daemon/gate_page.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pinlease/device.h"

#define THREADS (1ull << 22) /* PID_MAX_LIMIT */

struct request {
	struct fuse_in_header head;
	union {
		struct fuse_read_in read;
		struct fuse_interrupt_in interrupt;
		char room[FUSE_MIN_READ_BUFFER];
	};
};

static uint64_t size_of_all(void)
{
	return THREADS * sysconf(_SC_PAGESIZE);
}

/* ------------------------------------------------------------------------------------- answering -- */

static void answer(const struct gate_page *p, uint64_t id, int err, const void *data, size_t len)
{
	struct fuse_out_header h = {.len = sizeof h + len, .error = err, .unique = id};
	struct iovec parts[] = {{&h, sizeof h}, {(void *)data, len}};

	while (writev(p->device, parts, len ? 2 : 1) < 0 && errno == EINTR)
		;
}

static void answer_init(const struct gate_page *p, uint64_t id)
{
	struct fuse_init_out o = {.major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 4096};

	answer(p, id, 0, &o, sizeof o);
}

static void answer_attr(const struct gate_page *p, uint64_t id)
{
	struct fuse_attr_out o = {.attr_valid = UINT32_MAX,
				  .attr = {.ino = FUSE_ROOT_ID,
					   .size = size_of_all(),
					   .mode = S_IFREG | 0400,
					   .nlink = 1,
					   .uid = getuid(),
					   .gid = getgid(),
					   .blksize = sysconf(_SC_PAGESIZE)}};

	answer(p, id, 0, &o, sizeof o);
}

/* It is somebody who waits. */
static bool is_visit(const struct gate_page *p, const struct request *r, struct gate_visit *v)
{
	struct fuse_open_out open = {.fh = 1};

	switch (r->head.opcode) {
	case FUSE_READ:
		v->id = r->head.unique;
		v->thread = (pid_t)(r->read.offset / sysconf(_SC_PAGESIZE));
		return true;
	case FUSE_INTERRUPT:
		v->id = r->interrupt.unique;
		v->is_called = true;
		return true;
	case FUSE_INIT:
		answer_init(p, r->head.unique);
		break;
	case FUSE_GETATTR:
		answer_attr(p, r->head.unique);
		break;
	case FUSE_OPEN:
		answer(p, r->head.unique, 0, &open, sizeof open);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET: /* these want none */
		break;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		answer(p, r->head.unique, 0, NULL, 0);
		break;
	default:
		answer(p, r->head.unique, -ENOSYS, NULL, 0);
	}
	return false;
}

bool gate_page_next(const struct gate_page *p, struct gate_visit *v)
{
	struct request r;
	ssize_t n;

	for (;;) {
		memset(v, 0, sizeof *v);
		n = read(p->device, &r, sizeof r);
		if (n < 0 &&
		    (errno == EINTR || errno == ENOENT)) /* ENOENT: it has been killed just now */
			continue;
		if (n < (ssize_t)sizeof r.head)
			return false;
		if (is_visit(p, &r, v))
			return true;
	}
}

void gate_page_let_go(const struct gate_page *p, uint64_t id)
{
	answer(p, id, -EINTR, NULL, 0);
}

/* -------------------------------------------------------------------------------------- the file -- */

static int set(int fs, const char *name, const char *format, unsigned value)
{
	char text[16];

	snprintf(text, sizeof text, format, value);
	return (int)syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, name, text, 0);
}

/* Its mount is in no directory. */
static int mount_it(struct gate_page *p)
{
	int fs = (int)syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC), err = 0;

	if (fs < 0)
		return -errno;
	if (set(fs, "fd", "%u", p->device) || set(fs, "rootmode", "%o", S_IFREG | 0400) ||
	    set(fs, "user_id", "%u", geteuid()) || set(fs, "group_id", "%u", getegid()) ||
	    syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		err = -errno;
	if (!err)
		p->mount = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	if (!err && p->mount < 0)
		err = -errno;
	close(fs);
	return err;
}

int gate_page_open(struct gate_page *p)
{
	int err;

	p->mount = -1;
	p->device = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (p->device < 0)
		return pinl_set_error(-errno, "/dev/fuse can't be opened: %s", strerror(errno));
	err = mount_it(p);
	if (!err)
		return 0;
	gate_page_close(p);
	return pinl_set_error(err, "no file to wait at can be made by FUSE: %s", strerror(-err));
}

void gate_page_close(struct gate_page *p)
{
	if (p->mount >= 0)
		close(p->mount);
	if (p->device >= 0)
		close(p->device);
	p->mount = p->device = -1;
}

uintptr_t gate_page_map(const struct gate_page *p)
{
	void *at = MAP_FAILED;
	struct stat st;
	char path[32];
	int fd;

	snprintf(path, sizeof path, "/proc/self/fd/%d", p->mount);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (!fstat(fd, &st) &&
	    (uint64_t)st.st_size == size_of_all()) /* the kernel has its size by that */
		at = mmap(NULL, size_of_all(), PROT_READ, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED || madvise(at, size_of_all(), MADV_RANDOM))
		return 0;
	return (uintptr_t)at;
}
