/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The reader thread. Invariant: the sequence is raised before an event is read, because reading lets its
 * caller go on, and lowered when the core knows of it. The thread allocates nothing, frees nothing and
 * takes no lock of the source's or of the application's.
 */
#include "source/uffd.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/ctx.h"
#include "os/compat.h"

#define RESCAN_MS 10
#define MAX_READS 64
#define FOREIGN	  16 /* at most, of processes with the same memory */

static void apply(struct pl_uffd *u, const struct uffd_msg *msg, int callers)
{
	struct pl_uffd_range r = {PINL_OP_UNMAP, msg->arg.remove.start, msg->arg.remove.end};
	enum pl_uffd_found found;
	pid_t tid = 0;

	if (msg->event == UFFD_EVENT_REMAP) {
		r.op = PINL_OP_REMAP;
		r.start = msg->arg.remap.from;
		r.end = r.start + msg->arg.remap.len;
	} else if (msg->event == UFFD_EVENT_REMOVE) {
		r.op = PINL_OP_DONTNEED;
	} else if (msg->event != UFFD_EVENT_UNMAP) {
		return;
	}
	/*
	 * A caller that was asked for may have gone on, leased and come back with the same call: what
	 * was leased since is told in any case.
	 */
	found = pl_uffd_hold_find(&u->hold, callers, &r, &tid);
	if (r.op != PINL_OP_UNMAP && r.op != PINL_OP_REMAP)
		pl_uffd_going_add(u->going, r.start, r.end);
	pl_uffd_tell(u->asks, &r, tid);
	if (found == PL_UFFD_UNSEEN && r.op == PINL_OP_DONTNEED) {
		r.op = PINL_OP_REMOVE; /* or this one: the event is the same, and no memory minds both */
		pl_uffd_tell(u->asks, &r, 0);
	}
}

/* Who may be let go now: sets how many messages to read, returns how many known callers these are. */
static int wait_hold(struct pl_uffd *u, unsigned *messages)
{
	struct pollfd kick = {.fd = u->asks->kick, .events = POLLIN};
	eventfd_t n;

	*messages = 0;
	if (!atomic_load(&u->can_hold) || !pinl_wants_hold(u->ctx, PINL_OPS_VA)) {
		if (atomic_load(&u->can_hold) && atomic_load(&u->ambiguous))
			pl_uffd_hold_scan(&u->hold, false);
		u->hold.one = false;
		*messages = MAX_READS;
		return u->hold.nr;
	}
	for (int empty = 0; !atomic_load(&u->stop);) {
		int ready;

		pl_uffd_hold_scan(&u->hold, true);
		ready = u->hold.nr ? pl_uffd_hold_ready(&u->hold) : 0;
		if (!u->hold.nr && ++empty == 3) /* another process's call, or one not understood */
			*messages = 1;
		if (ready)
			*messages = u->hold.one ? 1 : ready;
		if (*messages)
			return ready;
		if (u->hold.nr && poll(&kick, 1, RESCAN_MS) > 0)
			eventfd_read(kick.fd, &n);
	}
	return 0;
}

/* How many; fewer: there was none left. */
static unsigned read_events(struct pl_uffd *u, unsigned messages, int callers)
{
	struct uffd_msg msg;
	unsigned n = 0;

	while (n < messages && read(u->fd, &msg, sizeof msg) == sizeof msg) {
		apply(u, &msg, callers);
		n++;
	}
	return n;
}

static bool is_pending(struct pl_uffd *u)
{
	struct pollfd p = {.fd = u->fd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* What may be read, once. `n`: so many were. True: there is none left. */
static bool take_some(struct pl_uffd *u, unsigned *n)
{
	unsigned messages;
	int callers = wait_hold(u, &messages);

	pinl_applying_begin(u->ctx);
	*n = read_events(u, messages, callers);
	if (u->hold.one)
		pl_uffd_hold_drop_read(&u->hold);
	else
		pl_uffd_hold_drop(&u->hold, callers);
	pinl_applying_end(u->ctx);
	return *n < messages || !is_pending(u);
}

/* How many events there can be at a time: each thread waits for one. */
static long most_events(void)
{
	struct stat st;

	return stat("/proc/self/task", &st) ? LONG_MAX : (long)st.st_nlink + FOREIGN;
}

/*
 * A round: whatever was unread when it began is read and applied. That is so if there is none left; and
 * if there always is one, because those who were let go come back at once, when so many have been read
 * as there could be, as the kernel has them in a row. True: there is none left.
 */
static bool take_round(struct pl_uffd *u)
{
	long left = LONG_MAX;
	bool known = false, empty;
	unsigned n;

	pl_uffd_mark_take(&u->mark, u->ctx);
	while (!(empty = take_some(u, &n)) && left > n && !atomic_load(&u->stop)) {
		left = known ? left - n : most_events();
		known = true;
	}
	return empty;
}

/* The mark comes down while the sequence is up, and what set it is read before that is lowered. */
static void take_events(struct pl_uffd *u)
{
	bool empty;

	pl_round_begin(u->ctx);
	empty = take_round(u);
	while (!atomic_load(&u->stop) && (!empty || pl_uffd_mark_is_set(&u->mark))) {
		pl_round_step(u->ctx);
		empty = take_round(u);
	}
	pl_round_end(u->ctx);
}

/*
 * open() unmaps a page while this looks at it: whether the thread's call can be read, and whether the
 * kernel says what it waits for. So what is said in coverage() has been seen.
 */
static void calibrate(struct pl_uffd *u)
{
	struct pollfd p = {.fd = u->fd, .events = POLLIN};
	struct pl_syscall call;
	struct pl_uffd_range r[2];
	struct uffd_msg msg;
	int err = -EAGAIN;

	poll(&p, 1, -1);
	for (int i = 0; i < 1000 && err == -EAGAIN; i++) {
		if (i)
			sched_yield();
		err = pl_task_syscall(getpid(), u->opener, &call);
	}
	if (!err && pl_uffd_decode(&call, 0, r) == 1 && r[0].start == u->probe.start &&
	    r[0].end == u->probe.end) {
		u->hold.wchan = pl_uffd_waits(u->opener) == 1;
		atomic_store(&u->can_hold, true);
	}
	while (read(u->fd, &msg, sizeof msg) < 0 && errno == EINTR)
		;
}

/*
 * The mark can be set after its event was read: the kernel shows the event first and then wakes who
 * polls, and this thread may be there in between. It would stay set until the next event, so a lookup
 * that waits for it to go kicks this thread.
 */
void *pl_uffd_reader(void *arg)
{
	struct pl_uffd *u = arg;
	struct pollfd p[2] = {{.fd = u->fd, .events = POLLIN}, {.fd = u->asks->kick, .events = POLLIN}};
	eventfd_t n;

	u->asks->reader = pthread_self();
	pl_uffd_mark_open(&u->mark, u->ctx, u->fd);
	calibrate(u);
	pl_uffd_mark_take(&u->mark, u->ctx);
	while (!atomic_load(&u->stop)) {
		if (poll(p, 2, u->hold.n_leaving ? 1 : -1) < 0)
			continue;
		if (p[1].revents)
			eventfd_read(u->asks->kick, &n);
		if (u->hold.n_leaving)
			pl_uffd_hold_leave(&u->hold);
		if ((p[0].revents & POLLIN) || pl_uffd_mark_is_set(&u->mark))
			take_events(u);
		else if (u->hold.nr) /* killed while they waited */
			pl_uffd_hold_drop(&u->hold, u->hold.nr);
	}
	pl_uffd_hold_drop(&u->hold, u->hold.nr);
	pl_uffd_mark_close(&u->mark, u->ctx);
	pl_uffd_close_fd(u->fd); /* here: what a thread's end unmaps may lie in a watched mapping */
	return NULL;
}
