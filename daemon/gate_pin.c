/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is pinned: in DIR a folder for each process, named by its number, with its links and its state.
 * So a new pinleased, also one of another version, needs to know nothing of an old one's programs: both
 * guard side by side until the old ones' time is over.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "daemon/gate_load.h"
#include "os/clock.h"
#include "pinlease/device.h"

#define BPF_FS	 0xcafe4a11
#define PATH_LEN 512

/* All of it, one level deep. */
static void remove_folder(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	int fd;

	if (!d)
		return;
	fd = dirfd(d);
	while ((e = readdir(d)))
		if (*e->d_name != '.')
			unlinkat(fd, e->d_name, 0);
	closedir(d);
	rmdir(path);
}

int gate_pin_begin(const char *dir, char *own, unsigned long size)
{
	struct statfs fs;

	if (mkdir(dir, 0700) && errno != EEXIST)
		return pinl_set_error(-errno, "%s can't be made: %s", dir, strerror(errno));
	if (statfs(dir, &fs) || fs.f_type != BPF_FS)
		return pinl_set_error(-ENODEV,
				      "%s is on no BPF file system; mount one (mount -t bpf bpf "
				      "/sys/fs/bpf)",
				      dir);
	snprintf(own, size, "%s/%d", dir, getpid());
	remove_folder(own);
	if (mkdir(own, 0700))
		return pinl_set_error(-errno, "%s can't be made: %s", own, strerror(errno));
	return 0;
}

int gate_pin_link(const char *own, const char *name, struct bpf_link *link)
{
	char path[PATH_LEN];
	int err;

	snprintf(path, sizeof path, "%s/%s", own, name);
	err = bpf_link__pin(link, path);
	return err ? pinl_set_error(err, "%s can't be pinned: %s", path, strerror(-err)) : 0;
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

int gate_pin_state(const char *own, struct bpf_map *state)
{
	char path[PATH_LEN];
	int err;

	snprintf(path, sizeof path, "%s/state", own);
	err = bpf_map__pin(state, path);
	return err ? pinl_set_error(err, "%s can't be pinned: %s", path, strerror(-err)) : 0;
}

void gate_pin_end(const char *own)
{
	char dir[PATH_LEN], *end;

	remove_folder(own);
	snprintf(dir, sizeof dir, "%s", own);
	end = strrchr(dir, '/');
	if (end) {
		*end = 0;
		rmdir(dir); /* others' may be there */
	}
}

/* One of a process that is dead: true if its time is over. */
static bool is_over(const char *folder, uint64_t until)
{
	struct gate_state s;
	char path[PATH_LEN + 8];
	__u32 zero = 0;
	bool over;
	int fd;

	snprintf(path, sizeof path, "%s/state", folder);
	fd = bpf_obj_get(path);
	if (fd < 0)
		return true; /* it was never whole */
	over = bpf_map_lookup_elem(fd, &zero, &s) || s.until_ns <= pl_clock_ns();
	if (!over && s.until_ns > until) {
		s.until_ns = until;
		bpf_map_update_elem(fd, &zero, &s, BPF_ANY);
		over = until <= pl_clock_ns();
	}
	close(fd);
	return over;
}

void gate_take_over(const char *dir, unsigned within_ms)
{
	uint64_t until = pl_clock_ns() + within_ms * 1000000ull;
	DIR *d = opendir(dir);
	char path[PATH_LEN];
	struct dirent *e;
	pid_t pid;

	while (d && (e = readdir(d))) {
		pid = isdigit((unsigned char)*e->d_name) ? atoi(e->d_name) : 0;
		if (pid <= 0 || pid == getpid() || !kill(pid, 0) || errno != ESRCH)
			continue;
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (is_over(path, until))
			remove_folder(path);
	}
	if (d)
		closedir(d);
}
