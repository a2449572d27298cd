/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A change that was told of stays here until every thread that could be its caller has been seen
 * elsewhere. A thread that is asleep shows its system call; one that runs shows nothing, so it counts
 * until it has used as much processor time as the way into the kernel and the discarding can take. An
 * idle worker of an io_uring shows nothing either and uses none, so after LEAVING_NS nobody counts.
 *
 * lock covers the changes; nothing is called under it, so the reader can take it. look_lock covers the
 * suspects and is held while threads are looked at; outside of lock.
 */
#include "source/uffd_going.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "os/clock.h"
#include "os/compat.h"
#include "os/task.h"

#define CHANGES	   32
#define SUSPECTS   64
#define ENTRY_NS   500000u
#define ZAP_NS	   4000u /* for a page */
#define LEAVING_NS 2000000000u

struct change {
	uintptr_t start, end;
	uint64_t serial, since_ns;
};

/* A thread that runs, and since when. */
struct suspect {
	pid_t tid;
	uint64_t serial, until_thread_ns;
};

struct pl_uffd_going {
	pthread_mutex_t lock, look_lock;
	int n, n_suspects;
	uint64_t serial; /* of the last */
	struct change change[CHANGES];
	struct suspect
		suspect[SUSPECTS]; /* threads that ran when the changes up to `serial` were there */
};

struct pl_uffd_going *pl_uffd_going_new(void)
{
	struct pl_uffd_going *g = calloc(1, sizeof *g);

	if (!g)
		return NULL;
	pthread_mutex_init(&g->lock, NULL);
	pthread_mutex_init(&g->look_lock, NULL);
	return g;
}

void pl_uffd_going_free(struct pl_uffd_going *g)
{
	if (!g)
		return;
	pthread_mutex_destroy(&g->lock);
	pthread_mutex_destroy(&g->look_lock);
	free(g);
}

/* The last one takes in what there is no room for. */
void pl_uffd_going_add(struct pl_uffd_going *g, uintptr_t start, uintptr_t end)
{
	struct change *last = &g->change[CHANGES - 1];

	pthread_mutex_lock(&g->lock);
	g->serial++;
	if (g->n < CHANGES) {
		last = &g->change[g->n++];
		*last = (struct change){.start = start, .end = end};
	}
	last->start = start < last->start ? start : last->start;
	last->end = end > last->end ? end : last->end;
	last->serial = g->serial;
	last->since_ns = pl_clock_ns();
	pthread_mutex_unlock(&g->lock);
}

static uint64_t thread_ns(pid_t tid)
{
	struct timespec t;

	/* the kernel's own form of a thread's clock: clock_getcpuclockid() has it for processes only */
	if (clock_gettime((clockid_t)((~(unsigned)tid << 3) | 6), &t))
		return UINT64_MAX;
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

struct look {
	struct pl_uffd_going *g;
	uint64_t serial;
	size_t pages;
	bool going;
};

static bool touched(const struct pl_uffd_going *g, uintptr_t start, uintptr_t end, size_t *pages)
{
	bool any = false;

	*pages = 0;
	for (int i = 0; i < g->n; i++) {
		any |= g->change[i].start < end && g->change[i].end > start;
		*pages += (g->change[i].end - g->change[i].start) / 4096;
	}
	return any;
}

/* In the system call, and of what was told of. */
static bool discards(struct pl_uffd_going *g, const struct pl_syscall *call)
{
	const unsigned long *a = call->args;
	size_t pages;
	bool any;

	if (call->nr != SYS_madvise)
		return call->nr == SYS_process_madvise;
	if (a[2] != MADV_DONTNEED && a[2] != MADV_DONTNEED_LOCKED && a[2] != MADV_FREE &&
	    a[2] != MADV_REMOVE)
		return false;
	pthread_mutex_lock(&g->lock);
	any = touched(g, a[0], a[0] + a[1], &pages);
	pthread_mutex_unlock(&g->lock);
	return any;
}

/* Of a running thread: is it still what it was suspected of? */
static bool suspected(struct look *l, pid_t tid)
{
	uint64_t now = thread_ns(tid);
	struct suspect *s = l->g->suspect;
	int i = 0;

	while (i < l->g->n_suspects && s[i].tid != tid)
		i++;
	if (i < l->g->n_suspects && s[i].serial >= l->serial)
		return now < s[i].until_thread_ns;
	if (i == SUSPECTS)
		return true;
	s[i] = (struct suspect){tid, l->serial, now + ENTRY_NS + l->pages * ZAP_NS};
	l->g->n_suspects += i == l->g->n_suspects;
	return true;
}

static int look_at(pid_t tid, void *arg)
{
	struct look *l = arg;
	struct pl_syscall call;
	int err = pl_task_syscall(getpid(), tid, &call);

	if (!err)
		l->going |= discards(l->g, &call);
	else if (err != -ESRCH)
		l->going |= suspected(l, tid);
	return 0;
}

/* lock held. */
static void forget(struct pl_uffd_going *g, uint64_t serial, uint64_t before_ns)
{
	int kept = 0;

	for (int i = 0; i < g->n; i++)
		if (g->change[i].serial > serial && g->change[i].since_ns > before_ns)
			g->change[kept++] = g->change[i];
	g->n = kept;
}

static bool any_touched(struct pl_uffd_going *g, uintptr_t start, uintptr_t end, struct look *l)
{
	bool any;

	pthread_mutex_lock(&g->lock);
	any = touched(g, start, end, &l->pages);
	l->serial = g->serial;
	pthread_mutex_unlock(&g->lock);
	return any;
}

bool pl_uffd_going(struct pl_uffd_going *g, uintptr_t start, uintptr_t end, bool look)
{
	struct look l = {.g = g};
	bool touched_now = any_touched(g, start, end, &l);

	if (!touched_now || !look)
		return touched_now;
	pthread_mutex_lock(&g->look_lock);
	pl_task_each_thread(look_at, &l);
	if (!l.going)
		g->n_suspects = 0;
	pthread_mutex_lock(&g->lock);
	forget(g, l.going ? 0 : l.serial, pl_clock_ns() - LEAVING_NS);
	pthread_mutex_unlock(&g->lock);
	pthread_mutex_unlock(&g->look_lock);
	return l.going;
}
