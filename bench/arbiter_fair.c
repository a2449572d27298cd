/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Many actors are held at once, each on a file of its own, and when all are there the holder answers in
 * order. How long after its own answer does each go on? The floor does the same with a bare
 * fanotify group: it reads all events, then allows them in order.
 */
#include "arbiter.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif
#define MAX_ACTORS 100
#define LEASED	   (16 * KIB)
#define GRACE_MS   60000

struct shared {
	uint64_t end[MAX_ACTORS];
	int err[MAX_ACTORS];
};

struct scene {
	const struct bench *b;
	int n;
	struct shared *shared;
	struct rig rig;
	char *at[MAX_ACTORS];
	struct pinl_lease *lease[MAX_ACTORS];
	int fd[MAX_ACTORS];
	ino_t ino[MAX_ACTORS];
	char path[MAX_ACTORS][128];
	uint64_t answered[MAX_ACTORS]; /* when it was begun */
	struct samples own, all, last;
};

/* ------------------------------------------------------------------------------------- the actors -- */

struct truncating {
	struct scene *s;
	int i;
};

static void *truncate_one(void *arg)
{
	struct truncating *t = arg;
	struct shared *sh = t->s->shared;

	sh->err[t->i] = truncate(t->s->path[t->i], PAGE) ? errno : 0;
	sh->end[t->i] = now_ns();
	return NULL;
}

static void __attribute__((noreturn)) act(struct scene *s)
{
	struct truncating t[MAX_ACTORS];
	pthread_t thread[MAX_ACTORS];

	pin_to(s->b->actor_cpu);
	for (int i = 0; i < s->n; i++) {
		t[i] = (struct truncating){s, i};
		must(-pthread_create(&thread[i], NULL, truncate_one, &t[i]), "pthread_create");
	}
	for (int i = 0; i < s->n; i++)
		pthread_join(thread[i], NULL);
	_exit(0);
}

/* A process of its own; its threads are held and read nothing of what others have. */
static pid_t actors(struct scene *s)
{
	pid_t pid;

	fflush(stdout);
	pid = must(fork(), "fork");
	if (!pid)
		act(s);
	return pid;
}

static void collect(struct scene *s, pid_t pid)
{
	uint64_t last = 0;

	waitpid(pid, NULL, 0);
	for (int i = 0; i < s->n; i++) {
		uint64_t extra = s->shared->end[i] - s->answered[i];

		must(-s->shared->err[i], "truncate");
		sample(&s->own, extra);
		sample(&s->all, s->shared->end[i] - s->answered[0]);
		last = extra > last ? extra : last;
	}
	sample(&s->last, last);
}

static void results(struct scene *s, const char *variant)
{
	result(s->b, "held at once", variant, "own", &s->own, 1);
	result(s->b, "held at once", variant, "all", &s->all, 1);
	result(s->b, "held at once", variant, "longest", &s->last, 1);
}

/* -------------------------------------------------------------------------------------- the floor -- */

static int number_of(const struct scene *s, int fd)
{
	struct stat st;

	must(fstat(fd, &st), "fstat");
	for (int i = 0; i < s->n; i++)
		if (s->ino[i] == st.st_ino)
			return i;
	fail("an event of a file that was not marked");
}

/* fd[i]: of the event of file i. */
static void gather(struct scene *s, int group, int *fd)
{
	for (int seen = 0; seen < s->n;) {
		struct fanotify_event_metadata ev[8];
		struct pollfd p = {group, POLLIN, 0};
		ssize_t len = poll(&p, 1, -1) == 1 ? read(group, ev, sizeof ev) : 0;

		for (struct fanotify_event_metadata *m = ev; FAN_EVENT_OK(m, len);
		     m = FAN_EVENT_NEXT(m, len)) {
			fd[number_of(s, m->fd)] = m->fd;
			seen++;
		}
	}
}

static void once_floor(struct scene *s, int group)
{
	int fd[MAX_ACTORS];
	pid_t pid = actors(s);

	gather(s, group, fd);
	pin_to(s->b->lib_cpu);
	for (int i = 0; i < s->n; i++) {
		struct fanotify_response r = {fd[i], FAN_ALLOW};

		s->answered[i] = now_ns();
		must(write(group, &r, sizeof r) - (ssize_t)sizeof r, "fanotify");
	}
	for (int i = 0; i < s->n; i++)
		close(fd[i]);
	pin_to(s->b->actor_cpu);
	collect(s, pid);
}

static void fill(struct scene *s)
{
	for (int i = 0; i < s->n; i++)
		file_fill(s->fd[i], PAGE + LEASED);
}

static void measure_floor(struct scene *s, unsigned n)
{
	int group = must(
		fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC),
		"fanotify_init");

	for (unsigned k = 0; k < n; k++) {
		fill(s);
		for (int i = 0; i < s->n; i++)
			must(fanotify_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, s->path[i]),
			     "mark");
		once_floor(s, group);
		fanotify_mark(group, FAN_MARK_FLUSH, 0, AT_FDCWD, NULL);
	}
	close(group);
	results(s, "floor");
}

/* ----------------------------------------------------------------------------------- the arbiter -- */

static void lease_all(struct scene *s)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, PINL_THEN_FAIL);
	int err;

	policy.grace_ms = GRACE_MS;
	for (int i = 0; i < s->n; i++) {
		while ((err = lease_on(s->rig.soft, s->at[i], LEASED, PINL_WRITE, &policy,
				       &s->lease[i])) == -EBUSY)
			usleep(200);
		if (err)
			fail("lease: %s", pinl_error());
	}
}

static void once(struct scene *s)
{
	pid_t pid;

	lease_all(s);
	pid = actors(s);
	for (int i = 0; i < s->n; i++)
		rig_await(&s->rig, PINL_EV_NOTICE);
	pin_to(s->b->lib_cpu);
	for (int i = 0; i < s->n; i++) {
		s->answered[i] = now_ns();
		pinl_quiesced(s->lease[i]);
	}
	pin_to(s->b->actor_cpu);
	collect(s, pid);
	for (int i = 0; i < s->n; i++)
		rig_end(&s->rig, s->lease[i]);
}

static void measure(struct scene *s, unsigned n)
{
	struct arbiter a;

	fill(s);
	for (int i = 0; i < s->n; i++)
		s->at[i] = must_map(
			mmap(NULL, LEASED, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd[i], PAGE), "mmap");
	arbiter_start(s->b, &a, "60000");
	arbiter_rig(s->b, &s->rig, false);
	for (unsigned k = 0; k < n; k++) {
		fill(s);
		once(s);
	}
	rig_close(&s->rig);
	arbiter_stop(&a);
	for (int i = 0; i < s->n; i++)
		munmap(s->at[i], LEASED);
	results(s, "pinleased");
}

void group_arbiter_fair(const struct bench *b)
{
	struct scene s = {.b = b, .n = b->few < MAX_ACTORS / 4 ? 8 : MAX_ACTORS};
	const char *why = arbiter_missing(b);
	unsigned n = b->few / 20 + 1;
	struct stat st;

	if (why) {
		left_out(b, "pinleased: many held at once", why);
		return;
	}
	s.shared = must_map(
		mmap(NULL, sizeof *s.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0),
		"mmap");
	for (int i = 0; i < s.n; i++) {
		s.fd[i] = must(file_new(b, s.path[i], PAGE + LEASED), b->dir);
		must(fstat(s.fd[i], &st), "fstat");
		s.ino[i] = st.st_ino;
	}
	measure_floor(&s, n);
	measure(&s, n);
	for (int i = 0; i < s.n; i++) {
		close(s.fd[i]);
		unlink(s.path[i]);
	}
	munmap(s.shared, sizeof *s.shared);
	free(s.own.ns);
	free(s.all.ns);
	free(s.last.ns);
}
