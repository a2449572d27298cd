/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Killing a holder, the last step of a force where its policy says so (R10). Done is when its pins are
 * gone, not when it is dead: who has inherited the ring keeps them, is named, and waited for.
 *
 * It is the program that has leased which asked for this. The process may execute another one at any
 * moment, which is innocent: so the address space of the first is remembered, and when that has ended,
 * only the pins are looked for. And no process is killed that the user himself could not kill.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon.h"
#include "os/clock.h"
#include "os/text.h"

#define KILL_NS	 3000000000ull /* unprivileged, the machine's count of pins comes a second late */
#define LOOK_NS	 150000000ull
#define SAME_NS	 2000000000ull /* as a rule some microseconds */
#define LEAST_NS 50000000ull
#define MOST_NS	 1000000000ull

struct killing {
	pthread_mutex_t lock; /* worker and reaper; outside of a ring's */
	int program; /* /proc/PID/maps: has nothing any more when that address space has ended */
	struct pl_outside *process; /* for leases of which no ring is known */
	bool killed, over;	    /* over: nobody waits for its pins any more */
	int64_t pins;		    /* of the machine, before */
	uint64_t pause_ns;
};

static int may_kill(const struct holder *h)
{
	if (!h->server->limits.may_kill)
		return pinl_set_error(-EOPNOTSUPP,
				      "this pinleased kills no holders (--may-kill=no); use FAIL");
	if (!syscall(SYS_pidfd_send_signal, h->pidfd, 0, NULL, 0))
		return 0;
	return pinl_set_error(-EOPNOTSUPP,
			      "pinleased can't kill process %d (%s), it needs CAP_KILL; "
			      "use FAIL",
			      h->pid, strerror(errno));
}

/* In a child. */
static int open_maps(void *arg)
{
	char path[32];
	int fd;

	snprintf(path, sizeof path, "/proc/%d/maps", *(pid_t *)arg);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int open_program(const struct holder *h)
{
	struct pollfd p = {.fd = h->pidfd, .events = POLLIN};
	pid_t pid = h->pid;
	int fd = pl_outside_ask(pid, open_maps, &pid, sizeof pid);

	if (fd >= 0)
		fd = pl_outside_taken(fd);
	if (fd >= 0 && !poll(&p, 1, 0)) /* else the number may be another's */
		return fd;
	if (fd >= 0)
		close(fd);
	if (fd == -ETIMEDOUT)
		return pinl_set_error(-EOPNOTSUPP,
				      "process %d, which pinleased would have to kill, can't be looked "
				      "at now: it, or another of its user's, executes a program and "
				      "waits for a file system's server; try again, or use FAIL",
				      h->pid);
	return pinl_set_error(-EOPNOTSUPP,
			      "pinleased can't look at process %d, which it would have to kill; it "
			      "needs CAP_SYS_PTRACE",
			      h->pid);
}

int kill_prepare(struct holder *h)
{
	struct killing *k;
	int err = h->killing ? 0 : may_kill(h);

	if (h->killing || err)
		return err;
	k = calloc(1, sizeof *k);
	if (!k)
		return pinl_set_error(-ENOMEM, "pinleased is out of memory");
	k->program = open_program(h);
	k->pause_ns = LEAST_NS;
	err = k->program < 0 ? k->program : pl_outside_open_process(h->pidfd, h->pid, &k->process);
	if (err) {
		if (k->program >= 0)
			close(k->program);
		free(k);
		return err;
	}
	pthread_mutex_init(&k->lock, NULL);
	h->killing = k;
	return 0;
}

void kill_free(struct killing *k)
{
	if (!k)
		return;
	close(k->program);
	pl_outside_close(k->process);
	pthread_mutex_destroy(&k->lock);
	free(k);
}

static bool has_ended(const struct holder *h)
{
	struct pollfd p = {.fd = h->pidfd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* In a child, as its mappings may be locked. */
static int has_mappings(const void *arg)
{
	char c;

	return pread(*(const int *)arg, &c, 1, 0) == 1 ? 0 : -ENODATA;
}

/* Whoever it is that can't be looked at, on a machine that doesn't let the child run, or while a server
 * keeps its mappings locked, is neither killed nor taken for ended. */
static int same_program(struct holder *h, bool *same)
{
	struct killing *k = h->killing;
	int err = pl_outside_try(k->process, k->program, has_mappings, &k->program,
				 share_work(h, pl_clock_ns() + (k->killed ? LOOK_NS : SAME_NS)));

	if (err && err != -ENODATA)
		return pinl_set_error(err,
				      "process %d, which is to be killed, can't be looked at (%s): it "
				      "isn't, and its lease is forced no more while somebody waits",
				      h->pid, strerror(-err));
	*same = !err;
	return 0;
}

struct users {
	pid_t pid;
	uid_t real, saved;
};

/* In a child. */
static int users_of(void *arg)
{
	struct users *u = arg;
	char path[32], line[256];
	struct pl_text f;
	int found = 0;

	snprintf(path, sizeof path, "/proc/%d/status", u->pid);
	if (pl_text_open(&f, path))
		return -ESRCH;
	while (!found && !pl_text_line(&f, line, sizeof line))
		found = sscanf(line, "Uid: %u %*u %u", &u->real, &u->saved) == 2;
	pl_text_close(&f);
	return found;
}

/* As kill(2) would let him: a program with another's rights may have been executed since. */
static bool is_users(const struct holder *h)
{
	struct users u = {.pid = h->pid};

	return pl_outside_ask(h->pid, users_of, &u, sizeof u) == 1 &&
	       (!h->user->uid || u.real == h->user->uid || u.saved == h->user->uid);
}

/* Of the lease, as far as the proof goes. */
static struct pl_outside_buf buf_of(const struct held_lease *hl, const struct pinl_mapping *m)
{
	struct pl_outside_buf b = {.start = m->start, .end = m->end};

	return hl->ring ? hl->buf : b;
}

/* Nobody is killed: has it let go of the ring, or has who comes after it? */
static int wait_only(struct holder *h, struct pl_outside *o, const struct held_lease *hl,
		     const struct pl_outside_buf *b, int n, uint64_t deadline)
{
	if (!has_ended(h)) {
		if (!hl->ring) /* it was that program's own, and has gone with it */
			return 0;
		if (pl_outside_held(o))
			return pinl_set_error(-EBUSY,
					      "process %d executes another program by now, which has "
					      "the ring still; it isn't killed for that",
					      h->pid);
	}
	return pl_outside_gone(o, b, n, deadline);
}

static void say(const struct held_lease *hl, const char *why, int err)
{
	const struct holder *h = hl->holder;

	fprintf(stderr,
		"pinleased: killed %s (%d) of user %u, as the policy of its lease %lu says: %s; %s\n",
		h->name, h->pid, h->user->uid, hl->number, why,
		err			      ? pinl_error()
		: hl->lease->flags & PINL_PIN ? "its pins are gone"
					      : "the lease had no pins");
}

/* k->lock and the ring's held. */
static int kill_it(struct held_lease *hl, struct pl_outside *o, const struct pl_outside_buf *b, int n)
{
	struct holder *h = hl->holder;
	struct killing *k = h->killing;
	bool same = false;
	uint64_t deadline;
	char why[256];
	int err;

	snprintf(why, sizeof why, "%s", pinl_error());
	if (k->killed)
		pl_outside_pins_were(o, k->pins);
	err = has_ended(h) ? 0 : same_program(h, &same);
	if (err)
		return err;
	deadline = share_work(h, pl_clock_ns() + (k->killed ? LOOK_NS : KILL_NS));
	if (!same)
		return wait_only(h, o, hl, b, n, deadline);
	if (!is_users(h))
		return pinl_set_error(-EPERM,
				      "process %d has other rights than user %u, who can't kill "
				      "it: neither does pinleased",
				      h->pid, h->user->uid);
	k->pins = pl_outside_all_pins();
	k->killed = true;
	pl_outside_pins_were(o, k->pins);
	err = pl_outside_kill(o, b, n, deadline);
	say(hl, why, err);
	return err;
}

int kill_holder(struct held_lease *hl, struct pinl_mapping *m)
{
	struct killing *k = hl->holder->killing;
	struct pl_outside_buf b = buf_of(hl, m);
	struct ring *ring = hl->ring;
	int err;

	if (!k)
		return pinl_set_error(-EOPNOTSUPP,
				      "process %d has not come back since pinleased was started "
				      "anew: it isn't killed",
				      hl->holder->pid);
	pthread_mutex_lock(&k->lock);
	if (ring)
		pthread_mutex_lock(&ring->lock);
	err = k->over ? pinl_set_error(-EBUSY, "its pins are waited for no more")
		      : kill_it(hl, ring ? ring->outside : k->process, &b, !!(m->flags & PINL_PIN));
	if (ring)
		pthread_mutex_unlock(&ring->lock);
	if (!err && k->killed)
		pl_foreign_killed(m);
	pthread_mutex_unlock(&k->lock);
	return err;
}

/* ---------------------------------------------------------------------------------- who is dead -- */

static int pins_of(struct held_lease *hl)
{
	struct pl_outside *o = hl->ring->outside;
	int err;

	pthread_mutex_lock(&hl->ring->lock);
	if (hl->holder->killing->killed)
		pl_outside_pins_were(o, hl->holder->killing->pins);
	err = pl_outside_gone(o, &hl->buf, 1, pl_clock_ns() + (pl_outside_why(o) ? 0 : LOOK_NS));
	pthread_mutex_unlock(&hl->ring->lock);
	return err;
}

/* Of the leases with KILL only: others' rings are forced from outside, heirs or not. */
static int all_pins(struct holder *h)
{
	struct pl_node *n = pl_index_first(&h->leases, 0, UINTPTR_MAX);
	int err = 0;

	for (; n && !err; n = pl_index_next(n, 0, UINTPTR_MAX)) {
		struct held_lease *hl = (struct held_lease *)n;

		if (hl->then == PINL_THEN_KILL && hl->ring && (hl->lease->flags & PINL_PIN))
			err = pins_of(hl);
	}
	return err;
}

bool kill_pins_gone(struct holder *h)
{
	struct killing *k = h->killing;
	uint64_t now = pl_clock_ns();
	int err;

	if (!k || h->left)
		return true;
	if (!h->end_by)
		h->end_by = now + 2 * h->server->limits.ceiling_ms * 1000000ull;
	pthread_mutex_lock(&k->lock);
	err = all_pins(h);
	k->over = err && now >= h->end_by;
	pthread_mutex_unlock(&k->lock);
	if (!err)
		return true;
	if (k->over)
		fprintf(stderr,
			"pinleased: %s (%d) is dead, and its leases end although its pins are "
			"not gone: %s\n",
			h->name, h->pid, pinl_error());
	h->look_ns = pl_clock_ns() + k->pause_ns;
	k->pause_ns = k->pause_ns < MOST_NS / 2 ? 2 * k->pause_ns : MOST_NS;
	return k->over;
}
