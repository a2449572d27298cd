/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is pinned: in DIR a folder for each process, named PID-WHEN, with its links and its state. So a
 * new pinleased, also one of another version, needs to know nothing of an old one's programs: both guard
 * side by side until the old ones' time is over. Nothing is believed, and nothing removed, in a place
 * where others than root and our own user may write.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "daemon/gate_load.h"
#include "daemon/gate_stop.h"
#include "os/clock.h"
#include "os/task.h"
#include "pinlease/device.h"

#define BPF_FS	   0xcafe4a11
#define PATH_LEN   512
#define MAKE_TRIES 10
#define STATE_ROOM                                                                                      \
	256 /* another version's may be longer, or shorter; until_ns comes first in all of them */

/* A directory that nobody else has a hand in; -errno and a sentence. */
static int open_own(int at, const char *path)
{
	int fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), err;
	struct stat st;

	if (fd < 0)
		return pinl_set_error(-errno, "%s can't be looked at: %s", path, strerror(errno));
	if (!fstat(fd, &st) && (!st.st_uid || st.st_uid == geteuid()) && !(st.st_mode & 022))
		return fd;
	err = pinl_set_error(-EPERM,
			     "%s belongs to user %u and has mode %o: it must be pinleased's, or root's, "
			     "and no others may write there",
			     path, st.st_uid, st.st_mode & 07777);
	close(fd);
	return err;
}

/* All of it, one level deep. */
static void remove_folder(int dir, const char *name)
{
	int fd = open_own(dir, name);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (*e->d_name != '.')
			unlinkat(fd, e->d_name, 0);
	if (d)
		closedir(d);
	else if (fd >= 0)
		close(fd);
	unlinkat(dir, name, AT_REMOVEDIR);
}

static int no_bpf_fs(const char *dir)
{
	return pinl_set_error(-ENODEV,
			      "%s is on no BPF file system; mount one (mount -t bpf -o mode=700 "
			      "bpf /sys/fs/bpf)",
			      dir);
}

static int cant_make(const char *path, int err)
{
	return pinl_set_error(err, "%s can't be made: %s", path, strerror(-err));
}

/* Other file systems than that have reasons of their own, which help nobody. */
static int cant_make_dir(const char *dir, int err)
{
	char parent[PATH_LEN];
	struct statfs fs;

	snprintf(parent, sizeof parent, "%s", dir);
	*(strrchr(parent, '/') + 1) = 0;
	return !statfs(parent, &fs) && fs.f_type == BPF_FS ? cant_make(dir, err) : no_bpf_fs(dir);
}

/* -ENOENT: another process has just removed what it found empty. */
static int make_folder(const char *dir, const char *own)
{
	struct statfs fs;
	int fd, err;

	if (mkdir(dir, 0700) && errno != EEXIST)
		return cant_make_dir(dir, -errno);
	fd = open_own(AT_FDCWD, dir);
	if (fd < 0)
		return fd;
	err = fstatfs(fd, &fs) || fs.f_type != BPF_FS ? no_bpf_fs(dir) : 0;
	close(fd);
	return !err && mkdir(own, 0700) ? cant_make(own, -errno) : err;
}

int gate_pin_begin(const char *dir, char *own, unsigned long size)
{
	int err = -ENOENT;

	snprintf(own, size, "%s/%d-%llu", dir, getpid(), (unsigned long long)pl_clock_ns());
	for (int i = 0; i < MAKE_TRIES && err == -ENOENT; i++)
		err = make_folder(dir, own);
	return err;
}

bool gate_pin_is_there(const char *own)
{
	char path[PATH_LEN];

	snprintf(path, sizeof path, "%s/state", own);
	return !faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW);
}

/* Not by libbpf's functions for links and maps, which pin each only once. */
static int pin(const char *own, const char *name, int fd)
{
	char path[PATH_LEN];

	snprintf(path, sizeof path, "%s/%s", own, name);
	return bpf_obj_pin(fd, path)
		       ? pinl_set_error(-errno, "%s can't be pinned: %s", path, strerror(errno))
		       : 0;
}

int gate_pin_link(const char *own, const char *name, struct bpf_link *link)
{
	return pin(own, name, bpf_link__fd(link));
}

/* Not bpf_link__unpin(), which calls unlink(2), and takes a link for unpinned whatever came of that. */
int gate_pin_remove(const char *own, const char *name)
{
	char path[PATH_LEN];

	snprintf(path, sizeof path, "%s/%s", own, name);
	if (!unlinkat(AT_FDCWD, path, 0) || errno == ENOENT)
		return 0;
	return pinl_set_error(-errno, "%s can't be removed: %s", path, strerror(errno));
}

int gate_pin_map(const char *own, const char *name, struct bpf_map *map)
{
	return pin(own, name, bpf_map__fd(map));
}

void gate_pin_end(const char *own)
{
	char dir[PATH_LEN], *name;
	int fd;

	snprintf(dir, sizeof dir, "%s", own);
	name = strrchr(dir, '/');
	if (!name)
		return;
	*name++ = 0;
	fd = open_own(AT_FDCWD, dir);
	if (fd < 0)
		return;
	remove_folder(fd, name);
	close(fd);
	unlinkat(AT_FDCWD, dir, AT_REMOVEDIR); /* others' may be there */
}

/* 0: it is none. */
static size_t size_of_state(int fd)
{
	struct bpf_map_info info = {0};
	__u32 len = sizeof info;

	return !bpf_obj_get_info_by_fd(fd, &info, &len) && info.type == BPF_MAP_TYPE_ARRAY &&
			       info.key_size == sizeof(__u32) && info.value_size >= sizeof(__u64) &&
			       info.value_size <= STATE_ROOM
		       ? info.value_size
		       : 0;
}

/* True if its time is over, which it is at `until` at the latest; or if it never was whole. Nobody waits
 * there any more, as nobody would let him go: its guard may say so meanwhile, and this mustn't undo it.
 */
static bool ends_by(int fd, uint64_t until)
{
	union {
		struct gate_state s;
		char room[STATE_ROOM];
	} u;
	size_t size = size_of_state(fd);
	__u32 zero = 0;

	if (!size || bpf_map_lookup_elem(fd, &zero, &u))
		return true;
	if (u.s.until_ns > until) {
		u.s.until_ns = until;
		if (size == sizeof u.s)
			u.s.waits_until_ns = u.s.pages = 0;
		bpf_map_update_elem(fd, &zero, &u, BPF_ANY);
	}
	return u.s.until_ns <= pl_clock_ns();
}

static bool is_stops(int fd)
{
	struct bpf_map_info info = {0};
	__u32 len = sizeof info;

	return !bpf_obj_get_info_by_fd(fd, &info, &len) && info.type == BPF_MAP_TYPE_HASH &&
	       info.key_size == sizeof(struct gate_stop_key) && info.value_size == sizeof(__u64);
}

/* Nobody else does it where the dead one's guard died with it. */
static void let_go(const char *folder)
{
	char path[PATH_LEN + 8];
	int fd;

	snprintf(path, sizeof path, "%s/stops", folder);
	fd = bpf_obj_get(path);
	if (fd < 0)
		return;
	if (is_stops(fd))
		gate_stop_let_go(fd);
	close(fd);
}

/* A process that lives renews its own, and may be about to make it; or the number is another's now. */
static bool is_over(const char *folder, bool lives, uint64_t until)
{
	char path[PATH_LEN + 8];
	bool over;
	int fd;

	snprintf(path, sizeof path, "%s/state", folder);
	fd = bpf_obj_get(path);
	if (fd < 0)
		return errno == ENOENT && !lives;
	over = ends_by(fd, lives ? UINT64_MAX : until);
	close(fd);
	return over;
}

/* One of a pinleased's: is it of one that lives? */
static bool is_folder(const char *name, bool *lives)
{
	char *end;
	pid_t pid = isdigit((unsigned char)*name) ? strtol(name, &end, 10) : 0;

	if (pid <= 0 || *end != '-')
		return false;
	*lives = pid != getpid() && pl_task_is_there(pid);
	return true;
}

unsigned gate_pin_sweep(const char *dir, const char *own,
			bool (*over)(const char *folder, bool lives, uint64_t until), uint64_t until)
{
	int fd = open_own(AT_FDCWD, dir);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	char path[PATH_LEN];
	struct dirent *e;
	unsigned left = 0;
	bool lives;

	while (d && (e = readdir(d))) {
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (!is_folder(e->d_name, &lives) || (own && !strcmp(path, own)))
			continue;
		if (over(path, lives, until))
			remove_folder(fd, e->d_name);
		left += !faccessat(fd, e->d_name, F_OK, AT_SYMLINK_NOFOLLOW);
	}
	if (d)
		closedir(d);
	else if (fd >= 0)
		close(fd);
	return left;
}

static bool gate_is_over(const char *folder, bool lives, uint64_t until)
{
	if (!lives)
		let_go(folder);
	return is_over(folder, lives, until);
}

unsigned gate_take_over(const char *dir, const char *own, uint64_t until_ns)
{
	return gate_pin_sweep(dir, own, gate_is_over, until_ns);
}
