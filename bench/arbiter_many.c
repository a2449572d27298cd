/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Many leases, LEASES of a page on each of many files: what one costs in time, what pinleased needs in
 * memory for it, and how long a pinleased that was killed takes to know all of them again. The floor is
 * the same without pinleased, with a tenth of the files: what the library does for itself.
 */
#include "arbiter.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEASES	  10
#define FILE_SIZE (LEASES * PAGE)

struct scene {
	const struct bench *b;
	char dir[128];
	unsigned files;
	char **at;
	struct pinl_lease **lease;
	struct rig rig;
	struct samples s;
	char what[64];
};

static void name_of(const struct scene *s, unsigned i, char *path)
{
	snprintf(path, 160, "%s/%u", s->dir, i);
}

/* Mapped, and no descriptor of it is left. */
static char *map_file(const struct scene *s, unsigned i)
{
	char path[160], *at;
	int fd;

	name_of(s, i, path);
	fd = must(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), path);
	file_fill(fd, FILE_SIZE);
	at = must_map(mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), "mmap");
	close(fd);
	return at;
}

static void make_files(struct scene *s)
{
	snprintf(s->dir, sizeof s->dir, "%.90s/many-XXXXXX", s->b->dir);
	if (!mkdtemp(s->dir))
		fail("%s: %s", s->dir, strerror(errno));
	s->at = calloc(s->files, sizeof *s->at);
	s->lease = calloc((size_t)s->files * LEASES, sizeof(*s->lease));
	if (!s->at || !s->lease)
		fail("out of memory");
	for (unsigned i = 0; i < s->files; i++)
		s->at[i] = map_file(s, i);
}

static void remove_files(struct scene *s)
{
	char path[160];

	for (unsigned i = 0; i < s->files; i++) {
		munmap(s->at[i], FILE_SIZE);
		name_of(s, i, path);
		unlink(path);
	}
	rmdir(s->dir);
	free(s->at);
	free(s->lease);
}

/* ------------------------------------------------------------------------------------- measuring -- */

/* The first of a file is dearer: the file is looked at and marked. So the average per lease. */
static uint64_t lease_all(struct scene *s, unsigned files)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, PINL_THEN_FAIL);
	uint64_t began = now_ns();

	for (unsigned i = 0; i < files * LEASES; i++)
		if (lease_on(s->rig.soft, s->at[i / LEASES] + i % LEASES * PAGE, PAGE, PINL_WRITE,
			     &policy, &s->lease[i]))
			fail("lease %u: %s", i, pinl_error());
	return now_ns() - began;
}

/* Until pinleased has handled all that it has been told before. */
static void await_all(struct scene *s)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	char *at = map_file(s, s->files), path[160];
	int err;

	while ((err = lease_on(s->rig.soft, at, PAGE, PINL_WRITE, &policy, &lease)) == -EBUSY)
		usleep(1000);
	if (err)
		fail("one more lease: %s", pinl_error());
	pinl_unmap_range(lease);
	munmap(at, FILE_SIZE);
	name_of(s, s->files, path);
	unlink(path);
}

static uint64_t release_all(struct scene *s, unsigned files)
{
	uint64_t began = now_ns();

	for (unsigned i = 0; i < files * LEASES; i++)
		pinl_unmap_range(s->lease[i]);
	await_all(s);
	return now_ns() - began;
}

static void one_number(struct scene *s, const char *variant, const char *metric, uint64_t value,
		       unsigned per)
{
	sample(&s->s, value);
	result(s->b, s->what, variant, metric, &s->s, per);
}

static void measure_alone(struct scene *s)
{
	unsigned files = s->files / 10 + 1, n = files * LEASES;
	uint64_t before;

	rig_open(s->b, &s->rig, false);
	must(pinl_watch_fs(s->rig.ctx, s->b->dir), "pinl_watch_fs");
	before = own_memory(getpid());
	one_number(s, "alone", "lease", lease_all(s, files), n);
	one_number(s, "alone", "memory", own_memory(getpid()) - before, n);
	one_number(s, "alone", "release", release_all(s, files), n);
	rig_close(&s->rig);
}

static void restart(struct scene *s, struct arbiter *a)
{
	unsigned n = s->files * LEASES;

	arbiter_restart(a);
	if (a->resumed != n)
		fail("pinleased goes on with %u leases of %u; its log is in %s", a->resumed, n, a->dir);
	one_number(s, "pinleased", "restart", a->ready - a->began, 1);
	one_number(s, "pinleased", "restart each", a->ready - a->began, n);
	await_all(s);
	one_number(s, "pinleased", "told", now_ns() - a->began, 1);
}

static void measure(struct scene *s)
{
	unsigned n = s->files * LEASES;
	struct arbiter a;
	uint64_t before;

	arbiter_start(s->b, &a, "10000");
	arbiter_rig(s->b, &s->rig, false);
	before = own_memory(a.pid);
	one_number(s, "pinleased", "lease", lease_all(s, s->files), n);
	one_number(s, "pinleased", "memory", own_memory(a.pid) - before, n);
	restart(s, &a);
	one_number(s, "pinleased", "release", release_all(s, s->files), n);
	rig_close(&s->rig);
	arbiter_stop(&a);
}

/* With a heap that nothing has grown before. */
static void in_child(struct scene *s, void (*measuring)(struct scene *s))
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = must(fork(), "fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		measuring(s);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if (status)
		exit(1); /* it has said why */
}

void group_arbiter_many(const struct bench *b)
{
	struct scene s = {.b = b, .files = b->n * 10};
	const char *why = arbiter_missing(b);

	if (why) {
		left_out(b, "pinleased: many leases", why);
		return;
	}
	snprintf(s.what, sizeof s.what, "%u leases on %u files", s.files * LEASES, s.files);
	make_files(&s);
	for (int i = 0; i < 2; i++)
		in_child(&s, i == b->backwards ? measure_alone : measure);
	remove_files(&s);
	free(s.s.ns);
}
