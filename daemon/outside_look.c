/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the kernel says of rings and pins, in /proc. Nothing here waits: fdinfo shows a ring's tables
 * only if it gets the ring's lock at once, and -EAGAIN says that it didn't.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "outside_int.h"

#define RING_NAME "anon_inode:[io_uring]"
#define MAX_RINGS 128 /* of one process */

static bool names_ring(int dir, const char *link)
{
	char name[sizeof RING_NAME] = "";

	return readlinkat(dir, link, name, sizeof name) == sizeof RING_NAME - 1 &&
	       !memcmp(name, RING_NAME, sizeof RING_NAME - 1);
}

bool pl_look_is_ring(int fd)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return names_ring(AT_FDCWD, path);
}

uint64_t pl_look_ino(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

bool pl_look_ended(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* --------------------------------------------------------------------------------------- one ring -- */

static uint64_t mix(uint64_t h, uint64_t v)
{
	h = (h ^ v) * 0x9e3779b97f4a7c15u;
	return h ^ (h >> 29);
}

uint64_t pl_look_slot_sum(uint64_t ino, const struct pl_outside_buf *b)
{
	return b->end > b->start ? mix(mix(mix(mix(1, ino), b->slot), b->start), b->end) : 0;
}

static uint64_t pages_of(const struct pl_outside_buf *b)
{
	return (b->end + PL_PAGE - 1) / PL_PAGE - b->start / PL_PAGE;
}

/* A line of the table of buffers. */
static bool parse_slot(const char *line, struct pl_outside_buf *b)
{
	uint64_t start, len;

	if (sscanf(line, " %u: 0x%" SCNx64 "/%" SCNu64, &b->slot, &start, &len) != 3)
		return false;
	b->start = start;
	b->end = start + len;
	return true;
}

static FILE *open_fdinfo(pid_t pid, const char *fd)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/fdinfo/%s", pid, fd);
	return fopen(path, "re");
}

/* b: the slot that is ours in the ring with inode own; NULL: only count. */
static int add_ring(FILE *f, uint64_t ino, uint64_t own, const struct pl_outside_buf *b,
		    struct pl_tables *t)
{
	struct pl_outside_buf have;
	bool listed = false;
	char line[256];

	while (fgets(line, sizeof line, f)) {
		listed |= !strncmp(line, "UserBufs:", 9);
		if (!listed || !parse_slot(line, &have))
			continue;
		t->pages += pages_of(&have);
		t->sum += pl_look_slot_sum(ino, &have);
		if (have.start < b->end && b->start < have.end && (ino != own || have.slot != b->slot))
			t->shared = true;
	}
	return listed ? 0 : -EAGAIN;
}

int pl_look_slot(int ring, struct pl_outside_buf *b, bool *tag_seen)
{
	struct pl_outside_buf have = {0}, found = *b;
	bool listed = false;
	char line[256], fd[16];
	uint64_t tag;
	FILE *f;

	snprintf(fd, sizeof fd, "%d", ring);
	f = open_fdinfo(getpid(), fd);
	if (!f)
		return -errno;
	found.start = found.end = 0;
	*tag_seen = false;
	while (fgets(line, sizeof line, f)) {
		listed |= !strncmp(line, "UserBufs:", 9);
		if (listed && parse_slot(line, &have) && have.slot == b->slot)
			found = (struct pl_outside_buf){b->slot, have.start, have.end, b->tag};
		if (sscanf(line, " %*u: user_data:%" SCNu64, &tag) == 1 ||
		    sscanf(line, " user_data=%" SCNu64, &tag) == 1)
			*tag_seen |= b->tag && tag == b->tag;
	}
	fclose(f);
	if (!listed)
		return -EAGAIN;
	*b = found;
	return 0;
}

/* ---------------------------------------------------------------------------------- all of a process --
 */

struct seen {
	uint64_t ino[MAX_RINGS];
	int n;
};

static int add_once(struct seen *s, uint64_t ino)
{
	for (int i = 0; i < s->n; i++)
		if (s->ino[i] == ino)
			return 0;
	if (s->n == MAX_RINGS)
		return -E2BIG;
	s->ino[s->n++] = ino;
	return 1;
}

static int add_fd(pid_t pid, const char *fd, uint64_t ino, struct seen *seen, uint64_t own,
		  const struct pl_outside_buf *b, struct pl_tables *t)
{
	int ret = add_once(seen, ino);
	FILE *f;

	if (ret <= 0)
		return ret;
	f = open_fdinfo(pid, fd);
	if (!f)
		return -EAGAIN; /* just closed */
	ret = add_ring(f, ino, own, b, t);
	fclose(f);
	return ret;
}

static DIR *open_fds(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	return opendir(path);
}

int pl_look_tables(pid_t pid, int ring, const struct pl_outside_buf *b, struct pl_tables *out)
{
	uint64_t own = pl_look_ino(ring);
	struct pl_tables t = {0};
	struct seen seen = {0};
	struct dirent *e;
	struct stat st;
	char name[16];
	DIR *dir;
	int err;

	snprintf(name, sizeof name, "%d", ring);
	err = add_fd(getpid(), name, own, &seen, own, b, &t);
	dir = err < 0 ? NULL : open_fds(pid);
	if (!dir)
		return err < 0 ? err : -errno;
	err = 0;
	while (err >= 0 && (e = readdir(dir)))
		if (names_ring(dirfd(dir), e->d_name) && !fstatat(dirfd(dir), e->d_name, &st, 0))
			err = add_fd(pid, e->d_name, st.st_ino, &seen, own, b, &t);
	closedir(dir);
	if (err < 0)
		return err;
	*out = t;
	return 0;
}

char pl_look_state(pid_t pid, pid_t tid)
{
	char path[64], line[256], state = '?';
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "State: %c", &state) == 1)
			break;
	if (f)
		fclose(f);
	return state;
}

static int number_in(const char *path, const char *format, int64_t *out)
{
	FILE *f = fopen(path, "re");
	char line[256];
	int err = -ENODATA;

	if (!f)
		return -errno;
	while (err && fgets(line, sizeof line, f))
		if (sscanf(line, format, out) == 1)
			err = 0;
	fclose(f);
	return err;
}

int pl_look_vmpin(pid_t pid, int64_t *pages)
{
	char path[64];
	int64_t kib;
	int err;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	err = number_in(path, "VmPin: %" SCNd64, &kib);
	if (!err)
		*pages = kib / 4;
	return err == -ENOENT || err == -ENODATA ? -ESRCH : err; /* a zombie has no such line */
}

/* Reading stat_refresh collects what each processor has counted for itself. */
int pl_look_all_pins(int64_t *pages)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_RDONLY | O_CLOEXEC);
	int64_t got, let;
	char c;
	int err;

	if (fd >= 0) {
		if (read(fd, &c, 1) < 0)
			errno = 0; /* then the counts come late, as without the right to open it */
		close(fd);
	}
	err = number_in("/proc/vmstat", "nr_foll_pin_released %" SCNd64, &let);
	if (!err)
		err = number_in("/proc/vmstat", "nr_foll_pin_acquired %" SCNd64, &got);
	if (!err)
		*pages = got - let;
	return err;
}

/* --------------------------------------------------------------------------------------------- heirs --
 */

static bool has_fd(const struct pl_outside *o, pid_t pid)
{
	DIR *dir = open_fds(pid);
	struct dirent *e;
	struct stat st;
	bool has = false;

	while (dir && !has && (e = readdir(dir))) {
		if (fstatat(dirfd(dir), e->d_name, &st, 0) || st.st_ino != o->ino ||
		    !names_ring(dirfd(dir), e->d_name))
			continue;
		/* Inode numbers of 32 bits come back one day. */
		has = o->ring < 0 ||
		      syscall(SYS_kcmp, getpid(), pid, KCMP_FILE, o->ring, atoi(e->d_name)) <= 0;
	}
	if (dir)
		closedir(dir);
	return has;
}

static bool has_map(const struct pl_outside *o, pid_t pid)
{
	char path[64], line[512];
	bool has = false;
	uint64_t ino;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	f = fopen(path, "re");
	while (f && !has && fgets(line, sizeof line, f))
		has = sscanf(line, "%*x-%*x %*s %*x %*x:%*x %" SCNu64, &ino) == 1 && ino == o->ino &&
		      strstr(line, RING_NAME);
	if (f)
		fclose(f);
	return has;
}

static void name_of(pid_t pid, char *name, size_t size)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/comm", pid);
	f = fopen(path, "re");
	if (!f || !fgets(name, size, f))
		snprintf(name, size, "?");
	name[strcspn(name, "\n")] = 0;
	if (f)
		fclose(f);
}

int pl_outside_heirs(const struct pl_outside *o, struct pl_outside_heir *heirs, int n)
{
	DIR *proc = opendir("/proc");
	struct dirent *e;
	int found = 0;

	if (!proc)
		return -errno;
	while ((e = readdir(proc))) {
		pid_t pid = atoi(e->d_name);
		bool fd;

		if (pid <= 0 || pid == getpid() || pid == o->pid ||
		    (o->child.stuck >= 0 && pid == o->child.pid))
			continue;
		fd = has_fd(o, pid);
		if (!fd && !has_map(o, pid))
			continue;
		if (found < n) {
			heirs[found] = (struct pl_outside_heir){.pid = pid, .mapped_only = !fd};
			name_of(pid, heirs[found].name, sizeof heirs[found].name);
		}
		found++;
	}
	closedir(proc);
	return found;
}
