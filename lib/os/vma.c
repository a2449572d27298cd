/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VMA classification (M1, M2): PROCMAP_QUERY (6.11) where the kernel has it, /proc/self/maps elsewhere.
 * A range may cross VMAs only if they continue each other: same file and kind, contiguous offsets.
 * Invariants: the descriptor found is verified to be the mapped file (device and inode), never just a
 * name that happens to exist. In the program's table, files are only opened with O_PATH (see aside.h).
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
#include "os/text.h"

#define HUGETLBFS 0x958458f6
#define TMPFS	  0x01021994
#define SECRETMEM 0x5345434d
#define SYSFS	  0x62656572
#define PROCFS	  0x9fa0
#define DEBUGFS	  0x64626720
#define DMABUF	  0x444d4142

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
	struct pl_text t;
	char line[1024], perms[8];
	int err = pl_text_open(&t, "/proc/self/maps"), pos;

	if (err)
		return err == -ENOENT ? -ENOSYS : err;
	while (!(err = pl_text_line(&t, line, sizeof line))) {
		pos = 0;
		if (sscanf(line, "%lx-%lx %7s %lx %x:%x %lu %n", &v->start, &v->end, perms, &v->offset,
			   &v->major, &v->minor, &v->ino, &pos) < 7 ||
		    v->end <= at)
			continue;
		snprintf(v->name, sizeof v->name, "%.500s", pos ? line + pos : "");
		v->writable = perms[1] == 'w';
		v->shared = perms[3] == 's';
		break;
	}
	pl_text_close(&t);
	return err;
}

/* The one there, or the next. */
static int vma_from(int maps, uintptr_t at, struct vma *v)
{
	int err = maps < 0 ? -ENOTTY : query_ioctl(maps, at, v);

	if (err == -ENOTTY || err == -EINVAL)
		err = query_text(at, v);
	if (err == -ENAMETOOLONG) /* the name is only a help */
		err = query_text(at, v);
	return err;
}

static int vma_at(int maps, uintptr_t at, struct vma *v)
{
	int err = vma_from(maps, at, v);

	return !err && v->start > at ? -ENOENT : err;
}

static bool may_be_file(int fd, const struct vma *v, struct stat *st)
{
	return !fstat(fd, st) && st->st_ino == v->ino;
}

/* btrfs gives every subvolume a st_dev that /proc/self/maps doesn't know: map a page and see what it
 * says. */
static bool maps_as(struct pl_aside *aside, int real, const struct vma *v)
{
	void *page = pl_aside_map(aside, real, PROT_READ, v->offset, 4096);
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

/* A file being looked for: what is known of it, what is found. */
struct search {
	const struct vma *v;
	struct pl_aside *aside;
	struct stat st;
	int real;
};

/* 0 if the file behind p is the mapped one; a regular file is then open aside, too. */
static int confirm(struct search *s, int p, bool exact)
{
	bool same_dev;
	int fd;

	errno = 0;
	if (!may_be_file(p, s->v, &s->st))
		return shortage_or_none();
	same_dev = s->st.st_dev == makedev(s->v->major, s->v->minor);
	if (!S_ISREG(s->st.st_mode)) /* opening must not reach a device */
		return same_dev || exact ? 0 : -ENOENT;
	fd = pl_aside_open(s->aside, p, O_RDONLY);
	if (fd == -EACCES)
		fd = pl_aside_open(s->aside, p, O_WRONLY);
	if (fd < 0)
		return is_shortage(fd) ? fd : -ENOENT;
	if (!same_dev && !exact && !maps_as(s->aside, fd, s->v)) {
		pl_aside_close(s->aside, fd);
		return -ENOENT;
	}
	s->real = fd;
	return 0;
}

static int try_path(struct search *s, const char *path, bool exact)
{
	int p = open(path, O_PATH | O_CLOEXEC), err;

	if (p < 0)
		return shortage_or_none();
	err = confirm(s, p, exact);
	if (!err)
		return p;
	close(p);
	return err;
}

/*
 * The program's own descriptors: for memfds and unlinked files, without privilege. Each is opened anew
 * before it is looked at: another thread may close it and get the number for something else. Not even a
 * duplicate of one may be closed.
 */
static int try_own_fds(struct search *s)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	char path[64];
	int fd = d ? -ENOENT : shortage_or_none();

	while (d && fd == -ENOENT && (e = readdir(d))) {
		snprintf(path, sizeof path, "/proc/self/fd/%.16s", e->d_name);
		if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(d))
			fd = try_path(s, path, false);
	}
	closedir(d);
	return fd;
}

/* An O_PATH descriptor. -ENOENT: not to be had; else a shortage. */
static int file_of(struct search *s)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", s->v->start, s->v->end);
	fd = try_path(s, path, true);
	if (fd == -ENOENT && s->v->name[0] == '/')
		fd = try_path(s, s->v->name, false);
	if (fd == -ENOENT)
		fd = try_own_fds(s);
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
	if (!strncmp(v->name, "anon_inode:", 11) || !strncmp(v->name, "/dmabuf:", 8))
		return PINL_MEM_DEVICE;
	if (!strncmp(v->name, "/anon_hugepage", 14))
		return PINL_MEM_HUGETLB;
	if (!strncmp(v->name, "/memfd:", 7) || !strncmp(v->name, "/dev/zero", 9) ||
	    !strncmp(v->name, "/SYSV", 5) || !strncmp(v->name, "/dev/shm/", 9))
		return v->shared ? PINL_MEM_SHMEM : PINL_MEM_FILE_PRIVATE;
	if (!strncmp(v->name, "/dev/", 5))
		return PINL_MEM_DEVICE;
	return v->shared ? PINL_MEM_FILE_SHARED : PINL_MEM_FILE_PRIVATE;
}

/* Files whose mappings are a driver's, not the page cache's: BARs in sysfs, and the like. */
static bool is_of_drivers(long fs_magic)
{
	return fs_magic == SYSFS || fs_magic == PROCFS || fs_magic == DEBUGFS;
}

enum pinl_exporter_kind pl_exporter_kind_of(const char *name, long fs_magic)
{
	if (fs_magic == DMABUF || !strncmp(name, "/dmabuf:", 8))
		return PINL_EXPORTER_DMABUF;
	if (!strncmp(name, "anon_inode:[vfio-device]", 24) || !strncmp(name, "/[vfio-device]", 14) ||
	    !strncmp(name, "/dev/vfio/devices/", 18))
		return PINL_EXPORTER_VFIO;
	if (!strncmp(name, "/dev/dax", 8))
		return PINL_EXPORTER_DAX;
	if (!strncmp(name, "/proc/bus/pci/", 14) ||
	    (!strncmp(name, "/sys/devices/", 13) && strstr(name, "/resource")))
		return PINL_EXPORTER_PCI;
	return PINL_EXPORTER_OTHER;
}

static int say_none_left(int err)
{
	return pinl_set_error(err, "no file descriptors left%s; every file with leases needs one",
			      err == -EMFILE ? ": raise ulimit -n"
					     : " in the system: raise fs.file-max");
}

/* What is known has a descriptor open, so the numbers can't have come to another file. */
static int known_file(const struct pl_vma_how *how, struct search *s)
{
	int fd = how->known(how->arg, makedev(s->v->major, s->v->minor), s->v->ino);

	return fd >= 0 && fstat(fd, &s->st) ? -errno : fd;
}

static void let_go(struct search *s, int fd)
{
	close(fd);
	if (s->real >= 0)
		pl_aside_close(s->aside, s->real);
}

/* The inode number alone doesn't say: System V's first segment has 0, its identifier. */
static bool is_file(const struct vma *v)
{
	return v->ino || v->major || v->minor;
}

static int classify(const struct vma *v, const struct pl_vma_how *how, struct pinl_memory *m, int *real)
{
	struct search s = {.v = v, .aside = how->aside, .real = -1};
	struct statfs fs = {0};
	bool mine;

	m->shared = v->shared;
	m->writable = v->writable;
	if (!is_file(v)) {
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
	m->is_sysv = !strncmp(v->name, "/SYSV", 5);
	if (!v->ino) /* elsewhere that stands for no file; nobody truncates a segment */
		return 0;
	m->fd = known_file(how, &s);
	mine = m->fd == -1;
	if (mine)
		m->fd = file_of(&s);
	if (m->fd < 0) {
		int err = m->fd == -ENOENT ? 0 : m->fd;

		m->fd = -1;
		return err;
	}
	m->dev = s.st.st_dev;
	if (fstatfs(m->fd, &fs)) { /* without it the kind would be a guess */
		int err = -errno;

		if (mine)
			let_go(&s, m->fd);
		return err;
	}
	m->fs_magic = fs.f_type;
	if (!S_ISREG(s.st.st_mode) || fs.f_type == SECRETMEM || is_of_drivers(fs.f_type)) {
		m->kind = fs.f_type == SECRETMEM ? PINL_MEM_SECRET : PINL_MEM_DEVICE;
		let_go(&s, m->fd);
		m->fd = s.real = -1;
	} else if (fs.f_type == HUGETLBFS) {
		m->kind = PINL_MEM_HUGETLB;
	} else if (fs.f_type == TMPFS) {
		m->kind = v->shared ? PINL_MEM_SHMEM : PINL_MEM_FILE_PRIVATE;
	} else {
		m->kind = disk_kind(m->fd, v);
	}
	*real = s.real;
	return 0;
}

static bool continues(const struct vma *a, const struct vma *b)
{
	return a->end == b->start && a->ino == b->ino && a->major == b->major && a->minor == b->minor &&
	       a->shared == b->shared && (!is_file(a) || a->offset + (a->end - a->start) == b->offset) &&
	       (is_file(a) || (a->name[0] == '[') == (b->name[0] == '['));
}

static struct pl_vma_whose whose(const struct vma *v, const struct pinl_memory *m)
{
	struct pl_vma_whose w = {.kind = pl_exporter_kind_of(v->name, m->fs_magic)};

	snprintf(w.name, sizeof w.name, "%.63s", v->name);
	return w;
}

int pl_vma_query(const struct pl_vma_how *how, uintptr_t start, uintptr_t end, struct pinl_memory *out,
		 int *real)
{
	struct pinl_memory m = {.start = start, .end = end, .fd = -1};
	struct vma first, v;
	bool writable;
	int err, opened = -1;

	err = vma_at(how->maps, start, &first);
	v = first;
	writable = first.writable;
	while (!err && v.end < end) {
		struct vma before = v;

		err = vma_at(how->maps, before.end, &v);
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
		err = classify(&first, how, &m, &opened);
	if (err == -EMFILE || err == -ENFILE)
		return say_none_left(err);
	if (err)
		return pinl_set_error(err, "can't find out what is mapped at [%#lx, %#lx): %s", start,
				      end, strerror(-err));
	m.writable = writable;
	m.vma_start = first.start;
	m.vma_end = v.end;
	m.offset = m.ino ? first.offset + (start - first.start) : 0;
	if (how->whose && m.kind == PINL_MEM_DEVICE)
		*how->whose = whose(&first, &m);
	*out = m;
	*real = opened;
	return 0;
}

static bool is_of(const struct vma *v, const struct pinl_memory *m)
{
	return v->ino == m->ino && v->shared == (bool)m->shared &&
	       (!m->ino || (makedev(v->major, v->minor) == m->map_dev &&
			    v->offset - v->start == m->offset - m->start));
}

enum pl_vma_now pl_vma_look(int maps, const struct pinl_memory *m, uintptr_t at, uintptr_t *end)
{
	enum pl_vma_now first = PL_VMA_HOLE, now;
	struct vma v;

	for (uintptr_t start = at; at < *end; at = v.end) {
		v = (struct vma){0};
		now = PL_VMA_HOLE;
		if (!vma_at(maps, at, &v))
			now = is_of(&v, m) ? PL_VMA_SAME : PL_VMA_OTHER;
		else
			v.end = v.start > at ? v.start : *end;
		if (at == start)
			first = now;
		else if (now != first)
			break;
	}
	if (at < *end)
		*end = at;
	return first;
}

bool pl_vma_same(int maps, const struct pinl_memory *m, uintptr_t start, uintptr_t end)
{
	struct vma v;
	bool same = true;

	for (; same && start < end; start = v.end)
		same = !vma_at(maps, start, &v) && is_of(&v, m);
	return same;
}

bool pl_vma_mapped(int maps, uintptr_t start, uintptr_t end)
{
	struct vma v;

	while (start < end && !vma_at(maps, start, &v))
		start = v.end;
	return start >= end;
}

bool pl_vma_one(int maps, const struct pinl_memory *m)
{
	struct vma v;

	return !vma_at(maps, m->vma_start, &v) && v.end >= m->vma_end && is_of(&v, m);
}

int pl_vma_run(int maps, uintptr_t *start, uintptr_t *end)
{
	struct vma last, v;
	int err = vma_from(maps, *start, &v);

	if (!err && v.start >= *end)
		err = -ENOENT;
	if (err)
		return err;
	if (v.start > *start)
		*start = v.start;
	do
		last = v;
	while (last.writable && last.end < *end && !vma_at(maps, last.end, &v) && v.writable &&
	       continues(&last, &v));
	if (last.end < *end)
		*end = last.end;
	return 0;
}
