/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Another process that changes files, one order at a time, and takes the times itself: the monotonic
 * clock is the same in all processes. It is forked before any context is there and dies with its pipe.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BATCH 16 /* reads or writes between two looks at the clock */

struct order {
	enum act act;
	int file;
	unsigned n;
	char path[128];
};

struct shared {
	uint64_t begin, end;
	int err;
	uint64_t ns[MAX_OP_LOG];
};

struct actor {
	pid_t pid;
	int to, from;
	struct shared *shared;
};

/* All but the first page: a file that was empty once is written out by ext4 when anybody closes it. */
static int one(struct shared *sh, enum act act, int fd)
{
	int ret;

	sh->begin = now_ns();
	if (act == ACT_TRUNCATE)
		ret = ftruncate(fd, PAGE);
	else
		ret = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, 64 * KIB);
	sh->end = now_ns();
	return ret ? -errno : 0;
}

static int input_output(struct shared *sh, enum act act, int fd, unsigned n)
{
	static char page[PAGE];

	for (unsigned i = 0; i < n; i++) {
		uint64_t t = now_ns();

		for (int j = 0; j < BATCH; j++) {
			ssize_t len = act == ACT_READS ? pread(fd, page, PAGE, j * PAGE)
						       : pwrite(fd, page, PAGE, j * PAGE);

			if (len != (ssize_t)PAGE)
				return -errno;
		}
		sh->ns[i] = (now_ns() - t) / BATCH;
	}
	return 0;
}

/* Off with the last page, which no lease has; it is written again outside of the time. */
static int truncates(struct shared *sh, int fd, unsigned n)
{
	static char page[PAGE];
	off_t size = lseek(fd, 0, SEEK_END);

	for (unsigned i = 0; i < n; i++) {
		uint64_t t = now_ns();

		if (ftruncate(fd, size - PAGE))
			return -errno;
		sh->ns[i] = now_ns() - t;
		if (pwrite(fd, page, PAGE, size - PAGE) != (ssize_t)PAGE)
			return -errno;
	}
	return 0;
}

static int obey(struct shared *sh, const struct order *o, int *fd)
{
	unsigned n = o->n < MAX_OP_LOG ? o->n : MAX_OP_LOG;

	switch (o->act) {
	case ACT_OPEN:
		*fd = open(o->path, O_RDWR | O_CLOEXEC);
		return *fd < 0 ? -errno : 0;
	case ACT_CLOSE:
		return close(*fd);
	case ACT_TRUNCATE:
	case ACT_PUNCH:
		return one(sh, o->act, *fd);
	case ACT_TRUNCATES:
		return truncates(sh, *fd, n);
	default:
		return input_output(sh, o->act, *fd, n);
	}
}

static void __attribute__((noreturn)) live(const struct bench *b, struct shared *sh, int from, int to)
{
	int fd[FILES];
	struct order o;

	pin_to(b->actor_cpu);
	while (read(from, &o, sizeof o) == sizeof o) {
		sh->err = obey(sh, &o, &fd[o.file]);
		if (write(to, "", 1) != 1)
			break;
	}
	_exit(0);
}

struct actor *actor_new(const struct bench *b)
{
	struct actor *a = calloc(1, sizeof *a);
	int to[2], from[2];

	if (!a)
		fail("out of memory");
	a->shared = must_map(
		mmap(NULL, sizeof *a->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0),
		"mmap");
	must(pipe2(to, O_CLOEXEC), "pipe");
	must(pipe2(from, O_CLOEXEC), "pipe");
	fflush(stdout);
	a->pid = must(fork(), "fork");
	if (!a->pid) {
		close(to[1]);
		close(from[0]);
		live(b, a->shared, to[0], from[1]);
	}
	close(to[0]);
	close(from[1]);
	a->to = to[1];
	a->from = from[0];
	return a;
}

void actor_end(struct actor *a)
{
	close(a->to);
	close(a->from);
	waitpid(a->pid, NULL, 0);
	munmap(a->shared, sizeof *a->shared);
	free(a);
}

void actor_order(struct actor *a, enum act act, int file, const char *path, unsigned n)
{
	struct order o = {.act = act, .file = file, .n = n};

	snprintf(o.path, sizeof o.path, "%s", path ? path : "");
	if (write(a->to, &o, sizeof o) != sizeof o)
		fail("the actor is gone");
}

int actor_reply(struct actor *a)
{
	char c;

	if (read(a->from, &c, 1) != 1)
		fail("the actor is gone");
	return a->shared->err;
}

int actor_do(struct actor *a, enum act act, int file, const char *path, unsigned n)
{
	actor_order(a, act, file, path, n);
	return actor_reply(a);
}

uint64_t actor_begin(const struct actor *a)
{
	return a->shared->begin;
}

uint64_t actor_ended(const struct actor *a)
{
	return a->shared->end;
}

void actor_samples(const struct actor *a, unsigned n, struct samples *s)
{
	for (unsigned i = 0; i < n && i < MAX_OP_LOG; i++)
		sample(s, a->shared->ns[i]);
}
