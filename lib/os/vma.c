/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VMA classification (M1, M2): PROCMAP_QUERY (6.11) where the kernel has it, /proc/self/maps elsewhere.
 * A range may cross VMAs only if they continue each other: same file and kind, contiguous offsets.
 * Invariant: the descriptor found is verified to be the mapped file (device and inode), never just a
 * name that happens to exist.
 */
#include "os/vma.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pinlease/device.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "os/compat.h"

#define HUGETLBFS 0x958458f6
#define TMPFS	  0x01021994
#define SECRETMEM 0x5345434d

struct vma {
	uintptr_t start, end;
	uint64_t offset, ino;
	unsigned major, minor;
	bool writable, shared;
	char name[512];
};

static int query_ioctl(int maps, uintptr_t at, struct vma *v)
{
	struct pl_procmap_query q = {
		.size = sizeof q,
		.query_flags = PL_PROCMAP_COVERING_OR_NEXT_VMA,
		.query_addr = at,
		.vma_name_size = sizeof v->name,
		.vma_name_addr = (uintptr_t)v->name,
	};

	v->name[0] = 0;
	while (ioctl(maps, PL_PROCMAP_QUERY, &q))
		if (errno != EINTR)
			return -errno;
	v->start = q.vma_start;
	v->end = q.vma_end;
	v->offset = q.vma_offset;
	v->ino = q.inode;
	v->major = q.dev_major;
	v->minor = q.dev_minor;
	v->writable = q.vma_flags & PL_PROCMAP_WRITABLE;
	v->shared = q.vma_flags & PL_PROCMAP_SHARED;
	return 0;
}

static int query_text(uintptr_t at, struct vma *v)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[1024], perms[8];
	int err = -ENOENT, pos;

	if (!f)
		return errno == ENOENT ? -ENOSYS : -errno;
	while (err && fgets(line, sizeof line, f)) {
		pos = 0;
		if (sscanf(line, "%lx-%lx %7s %lx %x:%x %lu %n", &v->start, &v->end, perms, &v->offset,
			   &v->major, &v->minor, &v->ino, &pos) < 7 ||
		    v->end <= at)
			continue;
		line[strcspn(line, "\n")] = 0;
		snprintf(v->name, sizeof v->name, "%.500s", pos ? line + pos : "");
		v->writable = perms[1] == 'w';
		v->shared = perms[3] == 's';
		err = 0;
	}
	if (err && ferror(f))
		err = -EIO;
	fclose(f);
	return err;
}

static int vma_at(int maps, uintptr_t at, struct vma *v)
{
	int err = maps < 0 ? -ENOTTY : query_ioctl(maps, at, v);

	if (err == -ENOTTY || err == -EINVAL)
		err = query_text(at, v);
	if (err == -ENAMETOOLONG) /* the name is only a help */
		err = query_text(at, v);
	if (!err && v->start > at)
		err = -ENOENT;
	return err;
}

int pl_reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC | O_NONBLOCK);
}

static bool may_be_file(int fd, const struct vma *v, struct stat *st)
{
	return !fstat(fd, st) && st->st_ino == v->ino;
}

/* btrfs gives every subvolume a st_dev that /proc/self/maps doesn't know: map a page and see what it
 * says. */
static bool maps_as(int fd, const struct vma *v)
{
	void *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, v->offset);
	int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	struct vma other;
	bool same = page != MAP_FAILED && !vma_at(maps, (uintptr_t)page, &other) &&
		    other.ino == v->ino && other.major == v->major && other.minor == v->minor;

	if (maps >= 0)
		close(maps);
	if (page != MAP_FAILED)
		munmap(page, 4096);
	return same;
}

/* Nothing is known about the file then, not even that it can't be opened. */
static bool is_shortage(int err)
{
	return err == -EMFILE || err == -ENFILE || err == -ENOMEM;
}

static int shortage_or_none(void)
{
	return is_shortage(-errno) ? -errno : -ENOENT;
}

/* A readable descriptor of the file behind p, if that is the mapped one. Takes no ownership of p. */
static int confirmed(int p, const struct vma *v, struct stat *st, bool exact)
{
	bool same_dev;
	int fd;

	errno = 0;
	if (!may_be_file(p, v, st))
		return shortage_or_none();
	same_dev = st->st_dev == makedev(v->major, v->minor);
	if (!S_ISREG(st->st_mode) && !same_dev && !exact)
		return -ENOENT;
	fd = S_ISREG(st->st_mode) ? pl_reopen(p, O_RDONLY) : fcntl(p, F_DUPFD_CLOEXEC, 0);
	if (fd < 0 && errno == EACCES)
		fd = pl_reopen(p, O_WRONLY);
	if (fd < 0)
		return shortage_or_none();
	if (!S_ISREG(st->st_mode) || same_dev || exact || maps_as(fd, v))
		return fd;
	close(fd);
	return -ENOENT;
}

/* O_PATH first: opening for real must not reach a device or wait for a lease. */
static int try_path(const char *path, const struct vma *v, struct stat *st, bool exact)
{
	int p = open(path, O_PATH | O_CLOEXEC), fd;

	if (p < 0)
		return shortage_or_none();
	fd = confirmed(p, v, st, exact);
	close(p);
	return fd;
}

/* The program's own descriptors: for memfds and unlinked files, without privilege. */
static int try_own_fds(const struct vma *v, struct stat *st)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	int fd = d ? -ENOENT : shortage_or_none();

	while (d && fd == -ENOENT && (e = readdir(d))) {
		int n = atoi(e->d_name);

		if (e->d_name[0] != '.' && n != dirfd(d))
			fd = confirmed(n, v, st, false);
	}
	closedir(d);
	return fd;
}

/* -ENOENT: not to be had; else a shortage. */
static int file_of(const struct vma *v, struct stat *st)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", v->start, v->end);
	fd = try_path(path, v, st, true);
	if (fd == -ENOENT && v->name[0] == '/')
		fd = try_path(v->name, v, st, false);
	if (fd == -ENOENT)
		fd = try_own_fds(v, st);
	return fd;
}

static enum pinl_memory_kind disk_kind(int fd, const struct vma *v)
{
	struct statx sx;

	if (!v->shared)
		return PINL_MEM_FILE_PRIVATE;
	if (!statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &sx) &&
	    (sx.stx_attributes & STATX_ATTR_DAX))
		return PINL_MEM_DAX;
	return PINL_MEM_FILE_SHARED;
}

static enum pinl_memory_kind kind_by_name(const struct vma *v)
{
	if (strstr(v->name, "secretmem"))
		return PINL_MEM_SECRET;
	if (!strncmp(v->name, "/anon_hugepage", 14))
		return PINL_MEM_HUGETLB;
	if (!strncmp(v->name, "/memfd:", 7) || !strncmp(v->name, "/dev/zero", 9) ||
	    !strncmp(v->name, "/SYSV", 5) || !strncmp(v->name, "/dev/shm/", 9))
		return v->shared ? PINL_MEM_SHMEM : PINL_MEM_FILE_PRIVATE;
	if (!strncmp(v->name, "/dev/", 5))
		return PINL_MEM_DEVICE;
	return v->shared ? PINL_MEM_FILE_SHARED : PINL_MEM_FILE_PRIVATE;
}

static int say_none_left(int err)
{
	return pinl_set_error(err, "no file descriptors left%s; every file with leases needs one",
			      err == -EMFILE ? ": raise ulimit -n"
					     : " in the system: raise fs.file-max");
}

/* What is known has a descriptor open, so the numbers can't have come to another file. */
static int known_file(const struct vma *v, pl_vma_known_fn known, void *arg, struct stat *st)
{
	int fd = known(arg, makedev(v->major, v->minor), v->ino);

	return fd >= 0 && fstat(fd, st) ? -errno : fd;
}

static int classify(const struct vma *v, pl_vma_known_fn known, void *arg, struct pinl_memory *m)
{
	struct statfs fs = {0};
	struct stat st;
	bool mine;

	m->shared = v->shared;
	m->writable = v->writable;
	if (!v->ino) {
		m->kind = v->name[0] == '[' && strncmp(v->name, "[heap", 5) &&
					  strncmp(v->name, "[stack", 6) && strncmp(v->name, "[anon", 5)
				  ? PINL_MEM_DEVICE
				  : PINL_MEM_ANON;
		return 0;
	}
	m->dev = m->map_dev = makedev(v->major, v->minor);
	m->ino = v->ino;
	m->kind = kind_by_name(v);
	m->is_memfd = !strncmp(v->name, "/memfd:", 7);
	m->fd = known_file(v, known, arg, &st);
	mine = m->fd == -1;
	if (mine)
		m->fd = file_of(v, &st);
	if (m->fd < 0) {
		int err = m->fd == -ENOENT ? 0 : m->fd;

		m->fd = -1;
		return err;
	}
	m->dev = st.st_dev;
	if (fstatfs(m->fd, &fs)) { /* without it the kind would be a guess */
		int err = -errno;

		if (mine)
			close(m->fd);
		return err;
	}
	m->fs_magic = fs.f_type;
	if (!S_ISREG(st.st_mode) || fs.f_type == SECRETMEM) {
		m->kind = fs.f_type == SECRETMEM ? PINL_MEM_SECRET : PINL_MEM_DEVICE;
		close(m->fd);
		m->fd = -1;
	} else if (fs.f_type == HUGETLBFS) {
		m->kind = PINL_MEM_HUGETLB;
	} else if (fs.f_type == TMPFS) {
		m->kind = v->shared ? PINL_MEM_SHMEM : PINL_MEM_FILE_PRIVATE;
	} else {
		m->kind = disk_kind(m->fd, v);
	}
	return 0;
}

static bool continues(const struct vma *a, const struct vma *b)
{
	return a->end == b->start && a->ino == b->ino && a->major == b->major && a->minor == b->minor &&
	       a->shared == b->shared && (!a->ino || a->offset + (a->end - a->start) == b->offset) &&
	       (a->ino || (a->name[0] == '[') == (b->name[0] == '['));
}

int pl_vma_query(int maps, uintptr_t start, uintptr_t end, pl_vma_known_fn known, void *arg,
		 struct pinl_memory *out)
{
	struct pinl_memory m = {.start = start, .end = end, .fd = -1};
	struct vma first, v;
	bool writable;
	int err;

	err = vma_at(maps, start, &first);
	v = first;
	writable = first.writable;
	while (!err && v.end < end) {
		struct vma before = v;

		err = vma_at(maps, before.end, &v);
		if (!err && !continues(&before, &v))
			err = -EINVAL;
		writable &= v.writable;
	}
	if (err == -EINVAL)
		return pinl_set_error(
			err, "[%#lx, %#lx) crosses mappings of different kinds; lease each by itself",
			start, end);
	if (err == -ENOENT)
		return pinl_set_error(-ENOMEM, "part of [%#lx, %#lx) is not mapped", start, end);
	if (!err)
		err = classify(&first, known, arg, &m);
	if (err == -EMFILE || err == -ENFILE)
		return say_none_left(err);
	if (err)
		return pinl_set_error(err, "can't find out what is mapped at [%#lx, %#lx): %s", start,
				      end, strerror(-err));
	m.writable = writable;
	m.vma_start = first.start;
	m.vma_end = v.end;
	m.offset = m.ino ? first.offset + (start - first.start) : 0;
	*out = m;
	return 0;
}

static bool is_of(const struct vma *v, const struct pinl_memory *m)
{
	return v->ino == m->ino && v->shared == (bool)m->shared &&
	       (!m->ino || (makedev(v->major, v->minor) == m->map_dev &&
			    v->offset - v->start == m->offset - m->start));
}

bool pl_vma_same(int maps, const struct pinl_memory *m, uintptr_t start, uintptr_t end)
{
	struct vma v;
	bool same = true;

	for (; same && start < end; start = v.end)
		same = !vma_at(maps, start, &v) && is_of(&v, m);
	return same;
}
