/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kinds of memory this machine has, and fresh pieces of them. Nothing has a name in a file system
 * for longer than it takes to unlink it, so nothing can stay behind.
 */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <mntent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE	   4096u
#define PAGES	   4u
#define HUGE_PAGES 2u

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#ifndef STATX_ATTR_DAX
#define STATX_ATTR_DAX 0x00200000
#endif

/* ------------------------------------------------------------------------------------- one piece -- */

static int file_without_name(const char *dir)
{
	char path[240];
	int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd >= 0)
		return fd;
	snprintf(path, sizeof(path), "%s/pinlease-doctor-XXXXXX", dir);
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0)
		unlink(path);
	return fd;
}

/* The submission entries of a ring nobody submits to: a driver's memory that every machine has. */
static int make_device(struct doctor_sample *s)
{
	int err = io_uring_queue_init(256, &s->ring, 0);

	if (err)
		return err;
	s->has_ring = true;
	s->map = (char *)s->ring.sq.sqes;
	return 0;
}

static int make_fd(struct doctor_sample *s)
{
	switch (s->memory->how) {
	case HOW_MEMFD:
		return memfd_create("pinlease-doctor", MFD_CLOEXEC);
	case HOW_HUGETLB:
		return memfd_create("pinlease-doctor", MFD_CLOEXEC | MFD_HUGETLB);
	case HOW_SECRET:
		return (int)syscall(SYS_memfd_secret, O_CLOEXEC);
	case HOW_FILE:
		return file_without_name(s->memory->dir);
	case HOW_ANON:
	case HOW_DEVICE:
		break;
	}
	return -1;
}

/* Through the descriptor where that works: pages of a private mapping are then still the file's. */
static int fill(struct doctor_sample *s)
{
	bool by_map = s->memory->how != HOW_FILE && s->memory->how != HOW_MEMFD;
	char page[PAGE];

	for (size_t at = 0; at < s->size; at += PAGE) {
		int letter = 'a' + (int)(at / s->unit);

		if (by_map)
			memset(s->map + at, letter, PAGE);
		memset(page, letter, sizeof(page));
		if (!by_map && pwrite(s->fd, page, sizeof(page), (off_t)at) != (ssize_t)sizeof(page))
			return errno ? -errno : -ENOSPC;
	}
	return 0;
}

/* A place of its own for the mapping to be moved to, aligned for huge pages. */
static int reserve(struct doctor_sample *s)
{
	size_t room = s->size + s->unit;

	s->reserved = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s->reserved == MAP_FAILED) {
		s->reserved = NULL;
		return -errno;
	}
	s->elsewhere = s->reserved + (s->unit - (uintptr_t)s->reserved % s->unit) % s->unit;
	return 0;
}

static int map(struct doctor_sample *s)
{
	int flags = s->fd < 0		? MAP_PRIVATE | MAP_ANONYMOUS
		    : s->memory->shared ? MAP_SHARED
					: MAP_PRIVATE;

	s->map = mmap(NULL, s->size, PROT_READ | PROT_WRITE, flags, s->fd, 0);
	if (s->map != MAP_FAILED)
		return 0;
	s->map = NULL;
	return -errno;
}

static int make(struct doctor_sample *s)
{
	struct stat st;
	int err = 0;

	s->other = memfd_create("pinlease-doctor-look", MFD_CLOEXEC);
	if (s->other < 0)
		return -errno;
	if (s->memory->how == HOW_DEVICE)
		err = make_device(s);
	else if (s->memory->how != HOW_ANON && (s->fd = make_fd(s)) < 0)
		err = -errno;
	if (err)
		return err;
	if (s->memory->how == HOW_HUGETLB && !fstat(s->fd, &st))
		s->unit = (size_t)st.st_blksize;
	s->size = s->unit * (s->memory->how == HOW_HUGETLB ? HUGE_PAGES : PAGES);
	if (s->fd >= 0 && ftruncate(s->fd, (off_t)s->size))
		return -errno;
	err = s->map ? 0 : map(s);
	if (!err)
		err = reserve(s);
	return err ? err : fill(s);
}

int doctor_sample_make(const struct doctor_memory *memory, struct doctor_sample *s)
{
	int err;

	*s = (struct doctor_sample){.memory = memory, .fd = -1, .other = -1, .unit = PAGE};
	err = make(s);
	if (err)
		doctor_sample_drop(s);
	return err;
}

/* Where the mapping was there may be somebody else's by now: only what is still ours is unmapped. */
void doctor_sample_drop(struct doctor_sample *s)
{
	if (s->map && !s->has_ring)
		munmap(s->map, s->size);
	if (s->reserved)
		munmap(s->reserved, s->size + s->unit);
	if (s->has_ring && s->map) {
		io_uring_queue_exit(&s->ring);
	} else if (s->has_ring) {
		munmap(s->ring.sq.ring_ptr, s->ring.sq.ring_sz);
		close(s->ring.ring_fd);
	}
	if (s->fd >= 0)
		close(s->fd);
	if (s->other >= 0)
		close(s->other);
	*s = (struct doctor_sample){.fd = -1, .other = -1};
}

bool doctor_sample_reads(const struct doctor_sample *s, const char *at, char letter)
{
	char page[PAGE];

	return !tool_peek(s->other, at, page, sizeof(page)) && page[0] == letter &&
	       !memcmp(page, page + 1, sizeof(page) - 1);
}

bool doctor_sample_intact(const struct doctor_sample *s)
{
	for (size_t i = 0; i < s->size / s->unit; i++)
		if (!s->map || !doctor_sample_reads(s, s->map + i * s->unit, (char)('a' + i)))
			return false;
	return true;
}

/* ---------------------------------------------------------------------------------- what there is -- */

/* Tried, not assumed. */
static void probe(struct doctor_memory *m)
{
	struct doctor_sample s;
	int err = doctor_sample_make(m, &s);

	if (!err) {
		doctor_sample_drop(&s);
		return;
	}
	if (m->how == HOW_HUGETLB && err == -ENOMEM)
		snprintf(m->why, sizeof(m->why), "no huge page is free; reserve some (vm.nr_hugepages)");
	else if (m->how == HOW_SECRET && err == -ENOSYS)
		snprintf(m->why, sizeof(m->why), "the kernel has no memfd_secret (secretmem.enable)");
	else if (m->how == HOW_FILE)
		snprintf(m->why, sizeof(m->why), "can't make a file in %s: %s", m->dir, strerror(-err));
	else
		snprintf(m->why, sizeof(m->why), "can't be made: %s", strerror(-err));
}

static struct doctor_memory *add(struct doctor_memory *all, unsigned *n, enum doctor_how how,
				 bool shared, const char *name)
{
	struct doctor_memory *m = &all[*n];

	if (*n == DOCTOR_MAX_ROWS)
		return NULL;
	*m = (struct doctor_memory){.how = how, .shared = shared};
	snprintf(m->name, sizeof(m->name), "%s", name);
	if (how != HOW_FILE)
		probe(m);
	(*n)++;
	return m;
}

static void add_file(struct doctor_memory *all, unsigned *n, bool shared, const char *fs,
		     const char *dir)
{
	char name[DOCTOR_LABEL];
	struct doctor_memory *m;

	if (shared && !strcmp(fs, "tmpfs"))
		snprintf(name, sizeof(name), "tmpfs");
	else
		snprintf(name, sizeof(name), "%.9s %s", fs, shared ? "shared" : "private");
	for (unsigned i = 0; i < *n; i++)
		if (!strcmp(all[i].name, name))
			return;
	m = add(all, n, HOW_FILE, shared, name);
	if (!m)
		return;
	snprintf(m->dir, sizeof(m->dir), "%s", dir);
	probe(m);
}

static bool is_dax(const char *dir)
{
	struct statx sx = {0};
	int fd = file_without_name(dir);
	bool dax = fd >= 0 && !statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &sx) &&
		   (sx.stx_attributes & STATX_ATTR_DAX);

	if (fd >= 0)
		close(fd);
	return dax;
}

static int cant_make_file(const char *dir)
{
	int err = tool_cant_use(dir), fd = err ? -1 : file_without_name(dir);

	if (!err && fd < 0)
		err = -errno;
	if (fd >= 0)
		close(fd);
	return err;
}

static int add_dir(struct doctor_memory *all, unsigned *n, const char *dir, bool *dax)
{
	int err = dir ? tool_cant_use(dir) : -ENOENT;
	const char *fs = err ? NULL : tool_fs_name(dir);
	char name[DOCTOR_LABEL];

	if (err)
		return err;
	if (!fs)
		return -errno;
	if (strlen(dir) >= sizeof(all->dir))
		return -ENAMETOOLONG;
	*dax |= is_dax(dir);
	snprintf(name, sizeof(name), "%s%s", strchr(fs, ' ') ? "other" : fs, is_dax(dir) ? " DAX" : "");
	add_file(all, n, true, name, dir);
	add_file(all, n, false, name, dir);
	return 0;
}

/* Disks and DAX, wherever they are mounted; the first of each kind. */
static void add_mounts(struct doctor_memory *all, unsigned *n, bool *dax)
{
	FILE *mounts = setmntent("/proc/self/mounts", "re");
	struct mntent *m;

	while (mounts && (m = getmntent(mounts)))
		if (!strcmp(m->mnt_type, "ext4") || !strcmp(m->mnt_type, "xfs") ||
		    !strcmp(m->mnt_type, "btrfs"))
			add_dir(all, n, m->mnt_dir, dax);
	if (mounts)
		endmntent(mounts);
}

int doctor_memories(const char *const *dirs, unsigned n_dirs, struct doctor_memory *all, unsigned *n)
{
	const char *const candidates[] = {"/dev/shm",
					  getenv("XDG_RUNTIME_DIR"),
					  getenv("TMPDIR"),
					  "/var/tmp",
					  "/tmp",
					  getenv("HOME"),
					  "."};
	bool dax = false;

	*n = 0;
	add(all, n, HOW_ANON, false, "anonymous");
	add(all, n, HOW_MEMFD, true, "memfd");
	add(all, n, HOW_HUGETLB, true, "hugetlb");
	for (unsigned i = 0; i < n_dirs; i++) {
		int err = cant_make_file(dirs[i]);

		if (!err)
			err = add_dir(all, n, dirs[i], &dax);
		if (err) {
			fprintf(stderr,
				"pinlease doctor: can't make files in \"%s\": %s; name a directory "
				"that you can write to\n",
				dirs[i], strerror(-err));
			return err;
		}
	}
	for (size_t i = 0; i < sizeof(candidates) / sizeof(*candidates); i++)
		add_dir(all, n, candidates[i], &dax);
	add_mounts(all, n, &dax);
	if (!dax && *n < DOCTOR_MAX_ROWS) {
		struct doctor_memory *m = &all[(*n)++];

		*m = (struct doctor_memory){.name = "DAX", .how = HOW_FILE, .shared = true};
		snprintf(m->why, sizeof(m->why),
			 "no file system that can be written to is mounted with DAX (mount -o "
			 "dax=always)");
	}
	add(all, n, HOW_DEVICE, true, "driver's mapping");
	add(all, n, HOW_SECRET, true, "secret memory");
	return 0;
}
