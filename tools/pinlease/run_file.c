/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file of a stopped call: a descriptor of it, open for writing, which shows pinleased that the actor
 * may change it. Invariants: nothing but a regular file of tmpfs or hugetlbfs is ever opened but by
 * O_PATH, so nothing happens by that and nobody can make it hang; and it is opened with the actor's ids.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "run.h"

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif
#define MAX_GROUPS 1024

static const char unseen[] = "it can't be looked into (another user's, not dumpable, or "
			     "kernel.yama.ptrace_scope)";

static int set_why(const char **why, const char *sentence)
{
	*why = sentence;
	return -EXFULL;
}

int run_read(pid_t tid, uint64_t at, void *buf, size_t len)
{
	char path[32];
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/mem", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = pread(fd, buf, len, (off_t)at);
	if (n < 0)
		n = -errno;
	close(fd);
	return (int)n;
}

int run_proc(pid_t tid, const char *name, char *buf, size_t len)
{
	char path[48];
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/%s", tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, buf, len - 1);
	if (n < 0)
		n = -errno;
	if (fd >= 0)
		close(fd);
	buf[n > 0 ? n : 0] = 0;
	return n < 0 ? (int)n : 0;
}

pid_t run_process_of(pid_t tid)
{
	char buf[512], *at;

	if (run_proc(tid, "status", buf, sizeof buf))
		return 0;
	at = strstr(buf, "\nTgid:");
	return at ? atoi(at + 6) : 0;
}

static bool in_memory(int fd)
{
	struct statfs fs;
	struct stat st;

	return !fstat(fd, &st) && S_ISREG(st.st_mode) && !fstatfs(fd, &fs) &&
	       (fs.f_type == TMPFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC);
}

static bool is_writable(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && !(flags & O_PATH) && (flags & O_ACCMODE) != O_RDONLY;
}

/* ---------------------------------------------------------------------------------------- descriptors
 * -- */

static int open_pidfd(pid_t tid)
{
	int fd = syscall(SYS_pidfd_open, tid, PIDFD_THREAD);

	if (fd < 0 &&
	    errno == EINVAL) /* before 6.9: of the process, whose table is the thread's as a rule */
		fd = syscall(SYS_pidfd_open, run_process_of(tid), 0);
	return fd < 0 ? -errno : fd;
}

static int get(pid_t tid, int number)
{
	int pidfd = open_pidfd(tid), fd;

	if (pidfd < 0)
		return pidfd;
	fd = syscall(SYS_pidfd_getfd, pidfd, number, 0);
	if (fd < 0)
		fd = -errno;
	close(pidfd);
	return fd;
}

int run_file_of_fd(pid_t tid, int number, const char **why)
{
	int fd = get(tid, number);

	if (fd == -EPERM || fd == -ENOSYS)
		return set_why(why, unseen);
	if (fd < 0)
		return fd;
	if (in_memory(fd) && is_writable(fd))
		return fd;
	close(fd);
	return -EINVAL;
}

/* --------------------------------------------------------------------------------- opening as the actor
 * --
 */

struct ids {
	uid_t uid;
	gid_t gid, groups[MAX_GROUPS];
	int n;
};

/* Of the file system, which is what counts. */
static int ids_of(pid_t tid, struct ids *ids)
{
	char buf[16384], *at, *end;

	if (run_proc(tid, "status", buf, sizeof buf))
		return -ESRCH;
	at = strstr(buf, "\nUid:");
	if (!at || sscanf(at, "\nUid: %*u %*u %*u %u", &ids->uid) != 1)
		return -ESRCH;
	at = strstr(buf, "\nGid:");
	if (!at || sscanf(at, "\nGid: %*u %*u %*u %u", &ids->gid) != 1)
		return -ESRCH;
	at = strstr(buf, "\nGroups:");
	for (at = at ? at + 8 : buf + strlen(buf); ids->n < MAX_GROUPS; at = end) {
		gid_t gid = strtoul(at, &end, 10);

		if (end == at)
			break;
		ids->groups[ids->n++] = gid;
	}
	return 0;
}

/* Who has other ids than this process. A user that is not root has one only. */
static int reopen_as(pid_t tid, const char *path, int flags)
{
	gid_t mine[MAX_GROUPS];
	uid_t uid = setfsuid(-1);
	gid_t gid = setfsgid(-1);
	struct ids ids = {0};
	int fd, n;

	if (ids_of(tid, &ids))
		return -ESRCH;
	if (ids.uid == uid && ids.gid == gid)
		return open(path, flags);
	n = getgroups(MAX_GROUPS, mine);
	if (n < 0 || syscall(SYS_setgroups, (size_t)ids.n, ids.groups))
		return -EPERM;
	setfsgid(ids.gid);
	setfsuid(ids.uid);
	fd = setfsuid(-1) == (int)ids.uid ? open(path, flags) : -1;
	setfsuid(uid);
	setfsgid(gid);
	syscall(SYS_setgroups, (size_t)n, mine);
	return fd;
}

static int reopen(pid_t tid, int look)
{
	char path[32];
	int fd = -EINVAL;

	snprintf(path, sizeof path, "/proc/self/fd/%d", look);
	if (in_memory(look))
		fd = reopen_as(tid, path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	close(look);
	return fd < 0 ? -EACCES : fd; /* then the actor can't either */
}

/* ---------------------------------------------------------------------------------------------- paths
 * -- */

/* Names that mean who asks: here they mean the actor. */
static void translate(pid_t tid, const char *path, char *out, size_t len)
{
	static const struct {
		const char *from, *to;
	} names[] = {{"/proc/self/", ""},    {"/proc/thread-self/", ""}, {"/dev/fd/", "fd/"},
		     {"/dev/stdin", "fd/0"}, {"/dev/stdout", "fd/1"},	 {"/dev/stderr", "fd/2"}};

	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		size_t n = strlen(names[i].from);

		if (strncmp(path, names[i].from, n))
			continue;
		snprintf(out, len, "/proc/%d/%s%s", tid, names[i].to, path + n);
		return;
	}
	snprintf(out, len, "%s", path);
}

static bool same(const char *a, const char *b)
{
	struct stat x, y;

	return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool has_our_root(pid_t tid)
{
	char root[32], mnt[32];

	snprintf(root, sizeof root, "/proc/%d/root", tid);
	snprintf(mnt, sizeof mnt, "/proc/%d/ns/mnt", tid);
	return same(root, "/") && same(mnt, "/proc/self/ns/mnt");
}

static int open_dir(pid_t tid, const char *path, int dir)
{
	char name[48];

	if (*path == '/')
		snprintf(name, sizeof name, "/proc/%d/root", tid);
	else if (dir == AT_FDCWD)
		snprintf(name, sizeof name, "/proc/%d/cwd", tid);
	else
		snprintf(name, sizeof name, "/proc/%d/fd/%d", tid, dir);
	return open(name, O_PATH | O_CLOEXEC);
}

/* As the actor would find it. A link to an absolute path is followed in his root, unless he has another
 * one and the path is relative: then it can be another file, and no lease is found. */
static int look_up(pid_t tid, int dir, const char *path, uint64_t flags, uint64_t resolve)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC | (flags & O_NOFOLLOW),
			       .resolve = resolve & ~(uint64_t)RESOLVE_CACHED};
	int base, fd;

	if (!strncmp(path, "/proc/", 6) && !resolve)
		return open(path, how.flags);
	base = open_dir(tid, path, dir);
	if (base < 0)
		return -1;
	if (*path == '/' && !resolve && !has_our_root(tid))
		how.resolve = RESOLVE_IN_ROOT;
	fd = syscall(SYS_openat2, base, path, &how, sizeof how);
	close(base);
	return fd;
}

int run_file_of_path(pid_t tid, int dir, uint64_t at, uint64_t flags, uint64_t resolve, const char **why)
{
	char path[4096], real[4096 + 32];
	int n = run_read(tid, at, path, sizeof path), fd;

	if (n == -EACCES || n == -EPERM)
		return set_why(why, unseen);
	if (n <= 0 || !memchr(path, 0, n))
		return -EFAULT;
	translate(tid, path, real, sizeof real);
	fd = look_up(tid, dir, real, flags, resolve);
	return fd < 0 ? -ENOENT : reopen(tid, fd);
}

/* ------------------------------------------------------------------------------------------- mappings
 * -- */

struct mapping {
	uint64_t start, end, offset, ino;
	dev_t dev;
	char mode[5];
};

static bool is_it(int fd, const struct mapping *m)
{
	struct stat st;

	return !fstat(fd, &st) && st.st_dev == m->dev && st.st_ino == m->ino;
}

/* By its own name, which the privileged only may use, or by its path. */
static int open_mapped(pid_t tid, const struct mapping *m, const char *path)
{
	char name[96];
	int fd;

	snprintf(name, sizeof name, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, tid, m->start, m->end);
	fd = open(name, O_PATH | O_CLOEXEC);
	if (fd < 0 && *path == '/')
		fd = look_up(tid, AT_FDCWD, path, 0, 0);
	if (fd < 0 || is_it(fd, m))
		return fd < 0 ? -ENOENT : reopen(tid, fd);
	close(fd);
	return -ENOENT;
}

/* By any descriptor of the actor's. */
static int open_among(pid_t tid, const struct mapping *m)
{
	for (int number = 0; number < 1024; number++) {
		char name[48];
		struct stat st;
		int fd;

		snprintf(name, sizeof name, "/proc/%d/fd/%d", tid, number);
		if (stat(name, &st) || st.st_dev != m->dev || st.st_ino != m->ino)
			continue;
		fd = get(tid, number);
		if (fd >= 0 && is_it(fd, m) && in_memory(fd) && is_writable(fd))
			return fd;
		if (fd >= 0)
			close(fd);
	}
	return -ENOENT;
}

static bool parse(const char *line, struct mapping *m, const char **path)
{
	unsigned major, minor;
	int at = 0;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &m->start,
		   &m->end, m->mode, &m->offset, &major, &minor, &m->ino, &at) < 7)
		return false;
	m->dev = makedev(major, minor);
	*path = line + at;
	return true;
}

/* The part of the mapping that lies in [at, end); false: none, or not of a shared file. */
static bool part_of(const struct mapping *m, uint64_t at, uint64_t end, struct run_part *part)
{
	uint64_t from = at > m->start ? at : m->start, to = end < m->end ? end : m->end;

	if (from >= to || !m->ino || m->mode[3] != 's')
		return false;
	*part = (struct run_part){.fd = -1,
				  .op = PINL_OP_REMOVE,
				  .start = m->offset + (from - m->start),
				  .end = m->offset + (to - m->start)};
	return true;
}

int run_files_of_memory(pid_t tid, uint64_t at, uint64_t len, struct run_part parts[RUN_PARTS],
			const char **why)
{
	char name[32], *line = NULL;
	size_t room = 0;
	struct mapping m;
	const char *path;
	uint64_t end = at + ((len + 4095) & ~4095ull);
	int n = 0;
	FILE *f;

	snprintf(name, sizeof name, "/proc/%d/maps", tid);
	f = fopen(name, "re");
	if (!f) {
		*why = unseen;
		return 0;
	}
	while (n < RUN_PARTS && getline(&line, &room, f) > 0) {
		line[strcspn(line, "\n")] = 0;
		if (!parse(line, &m, &path) || !part_of(&m, at, end, &parts[n]))
			continue;
		parts[n].fd = open_mapped(tid, &m, path);
		if (parts[n].fd < 0)
			parts[n].fd = open_among(tid, &m);
		if (parts[n].fd >= 0)
			n++;
	}
	free(line);
	fclose(f);
	return n;
}
