/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The handle is a descriptor of the holder's ring, the same open file. The kernel checks only who
 * changes a ring's table, not whose memory it is: so any task may, unless the ring belongs to one task
 * (IORING_SETUP_SINGLE_ISSUER, without which there is no DEFER_TASKRUN) or has restrictions. SQPOLL,
 * IOPOLL, SQE128, CQE32, R_DISABLED make no difference.
 *
 * Always: no call on the ring in this process could take its lock; such are made in a child.
 */
#include "outside.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <liburing.h>
#include <pinlease/device.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/uring_table.h"
#include "os/clock.h"
#include "os/errname.h"
#include "outside_int.h"

#define MAX_NAMED 8
#define NOT_YET	  INT_MIN

/* -------------------------------------------------------------------------------------- open -- */

static const char *why_not(int err)
{
	if (err == -EEXIST)
		return "the ring was set up with IORING_SETUP_SINGLE_ISSUER (DEFER_TASKRUN needs it), "
		       "so only its "
		       "own thread can change its buffers: a holder that hangs can only be killed";
	if (err == -EACCES)
		return "the ring has restrictions that don't allow IORING_REGISTER_BUFFERS_UPDATE: a "
		       "holder that "
		       "hangs can only be killed";
	return NULL;
}

/* An update without content: refused for that, if not for who asks. */
static int probe_child(const void *ring)
{
	return syscall(SYS_io_uring_register, *(const int *)ring, IORING_REGISTER_BUFFERS_UPDATE, NULL,
		       0) < 0
		       ? -errno
		       : 0;
}

static pid_t pid_of(int pidfd)
{
	char path[64], line[128];
	int pid = -1;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
	f = fopen(path, "re");
	while (f && pid < 0 && fgets(line, sizeof line, f))
		if (sscanf(line, "Pid: %d", &pid) == 1)
			break;
	if (f)
		fclose(f);
	return pid;
}

static int explain_take(const struct pl_outside *o, int err)
{
	if (o->kind != PL_OUTSIDE_RING)
		return pl_space_explain(o, err);
	if (err == -EBADF)
		return pinl_set_error(-EBADF, "descriptor %d of process %d is no io_uring", o->remote_fd,
				      o->pid);
	if (err == -EPERM)
		return pinl_set_error(
			-EPERM,
			"can't take a descriptor from process %d; that needs CAP_SYS_PTRACE and "
			"kernel.yama.ptrace_scope below 3",
			o->pid);
	return pinl_set_error(err, "can't take descriptor %d from process %d: %s", o->remote_fd, o->pid,
			      pl_errname(-err));
}

static int take(struct pl_outside *o)
{
	if (o->kind != PL_OUTSIDE_RING)
		return pl_space_take(o);
	o->ring = syscall(SYS_pidfd_getfd, o->pidfd, o->remote_fd, 0);
	if (o->ring < 0)
		return explain_take(o, -errno);
	return pl_look_is_ring(o->ring) ? 0 : explain_take(o, -EBADF);
}

static int lock_taken(const struct pl_outside *o)
{
	return pinl_set_error(
		-ETIMEDOUT,
		"the lock of the ring of process %d was taken until the deadline: it waits inside a "
		"system call on the ring, and can only be killed",
		o->pid);
}

/* What is in the slot, when the ring's lock is free. */
static int look(const struct pl_outside *o, struct pl_outside_buf *slot, uint64_t deadline_ns)
{
	bool tag;
	int err;

	while ((err = pl_look_slot(o->ring, slot, &tag)) == -EAGAIN && pl_clock_ns() < deadline_ns)
		pl_outside_pause(deadline_ns);
	if (err == -EAGAIN)
		return lock_taken(o);
	return err ? pinl_set_error(err, "can't see the buffers of the ring of process %d: %s", o->pid,
				    pl_errname(-err))
		   : 0;
}

/* taken: NOT_YET, or what has come of that. */
static int prove(struct pl_outside *o, int taken, uint64_t deadline_ns)
{
	struct pl_outside_buf slot = {0};
	int err = 0;

	if (pid_of(o->pidfd) != o->pid || pl_look_ended(o->pidfd))
		return pinl_set_error(-ESRCH, "process %d has ended, or the pidfd is another's", o->pid);
	if (taken < 0)
		err = taken == NOT_YET ? take(o) : explain_take(o, taken);
	if (err || o->kind != PL_OUTSIDE_RING)
		return err;
	o->ino = pl_look_ino(o->ring);
	err = look(o, &slot, deadline_ns);
	if (err || pl_clock_ns() >= deadline_ns)
		return err;
	/* One that hasn't ended by then says nothing: the first force will. */
	o->why = why_not(pl_outside_run(&o->child, o->ring, probe_child, &o->ring, deadline_ns));
	return 0;
}

int pl_outside_open_space(int pidfd, pid_t pid, int remote_fd, enum pl_outside_kind kind,
			  uint64_t deadline_ns, struct pl_outside **out)
{
	return pl_outside_open_taken(pidfd, pid, remote_fd, kind, NOT_YET, deadline_ns, out);
}

int pl_outside_open_taken(int pidfd, pid_t pid, int remote_fd, enum pl_outside_kind kind, int taken,
			  uint64_t deadline_ns, struct pl_outside **out)
{
	struct pl_outside *o = calloc(1, sizeof *o);
	int err;

	if (!o && taken >= 0)
		close(taken);
	if (!o)
		return pinl_set_error(-ENOMEM, "out of memory for a handle to a device");
	*o = (struct pl_outside){.kind = kind,
				 .ring = taken < 0 ? -1 : taken,
				 .pid = pid,
				 .remote_fd = remote_fd,
				 .child = {-1, 0}};
	o->pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
	err = o->pidfd < 0 ? pinl_set_error(-errno, "can't duplicate a pidfd: %s", pl_errname(errno))
			   : prove(o, taken, deadline_ns);
	if (err) {
		pl_outside_close(o);
		return err;
	}
	*out = o;
	return 0;
}

int pl_outside_open(int pidfd, pid_t pid, int remote_fd, uint64_t deadline_ns, struct pl_outside **out)
{
	return pl_outside_open_space(pidfd, pid, remote_fd, PL_OUTSIDE_RING, deadline_ns, out);
}

void pl_outside_close(struct pl_outside *o)
{
	pl_outside_child_end(&o->child);
	if (o->ring >= 0)
		close(o->ring);
	if (o->pidfd >= 0)
		close(o->pidfd);
	free(o);
}

int pl_outside_open_process(int pidfd, pid_t pid, struct pl_outside **out)
{
	struct pl_outside *o = calloc(1, sizeof *o);

	if (!o)
		return pinl_set_error(-ENOMEM, "out of memory for a handle to a process");
	*o = (struct pl_outside){.ring = -1, .pid = pid, .remote_fd = -1, .child = {-1, 0}};
	o->pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
	if (o->pidfd < 0) {
		free(o);
		return pinl_set_error(-errno, "can't duplicate a pidfd: %s", pl_errname(errno));
	}
	*out = o;
	return 0;
}

const char *pl_outside_why(const struct pl_outside *o)
{
	return o->why;
}

bool pl_outside_held(const struct pl_outside *o)
{
	return o->ring >= 0 && pl_look_held(o) && !pl_look_ended(o->pidfd);
}

/* ------------------------------------------------------------------------------------- check -- */

static int other(const struct pl_outside *o, const struct pl_outside_buf *b)
{
	return pinl_set_error(-ENOENT,
			      "slot %u of the ring of process %d doesn't have the lease's range",
			      b->slot, o->pid);
}

int pl_outside_check(const struct pl_outside *o, const struct pl_outside_buf *b, uint64_t deadline_ns)
{
	struct pl_outside_buf slot = *b;
	int64_t pins;
	int err = look(o, &slot, deadline_ns);

	if (err)
		return err;
	if (slot.start != b->start || slot.end != b->end)
		return other(o, b);
	if (pl_look_vmpin(o->pid, &pins))
		return pinl_set_error(-ESRCH, "process %d has ended", o->pid);
	if (pins < (int64_t)((b->end - b->start) / PL_PAGE) && !(b->tag && pl_look_unaccounted(o->pid)))
		return pinl_set_error(
			-EPERM,
			"process %d has fewer pages pinned than are in slot %u: the ring is "
			"another process's",
			o->pid, b->slot);
	return 0;
}

/* ------------------------------------------------------------------------------------- force -- */

struct change {
	int ring;
	struct pl_outside_buf buf;
};

static int scratch_child(const void *arg)
{
	const struct change *c = arg;

	return pl_scratch_child(c->ring, &c->buf);
}

static int empty_child(const void *arg)
{
	const struct change *c = arg;

	return pl_slot_empty(c->ring, c->buf.slot);
}

static int explain(struct pl_outside *o, int err, const struct pl_outside_buf *b)
{
	if (!o->why)
		o->why = why_not(err); /* a ring that was enabled only after it had been probed */
	if (o->why)
		return pinl_set_error(-EOPNOTSUPP, "%s", o->why);
	if (err == -ETIMEDOUT)
		return lock_taken(o);
	if (err == -ENOMEM)
		return pinl_set_error(
			err, "no memory for %zu KiB of scratch, or LimitMEMLOCK: empty the slot",
			(size_t)(b->end - b->start) >> 10);
	return pinl_set_error(err, "can't change slot %u of the ring of process %d: %s", b->slot, o->pid,
			      pl_errname(-err));
}

static int change(struct pl_outside *o, struct pl_outside_buf *b, bool scratch, uint64_t deadline_ns)
{
	struct change c = {o->ring, *b};
	struct pl_outside_buf had = *b;
	bool fresh;
	int err;

	if (o->why || o->ring < 0)
		return pinl_set_error(-EOPNOTSUPP, "%s", o->why ? o->why : "the ring was given up");
	err = look(o, &had, deadline_ns);
	if (err)
		return err;
	if (had.end > had.start && (had.start != b->start || had.end != b->end))
		return other(o, b);
	fresh = !b->pending;
	pl_outside_note(o, b, deadline_ns);
	if (had.end == had.start) /* somebody has emptied it; what is in flight will show */
		return 0;
	err = pl_outside_run(&o->child, c.ring, scratch ? scratch_child : empty_child, &c, deadline_ns);
	if (!err && !scratch)
		o->sum -= pl_look_slot_sum(o->ino, b);
	if (err == -ETIMEDOUT) /* it may happen yet */
		o->spoiled = true;
	else if (err && fresh) {
		b->pending = false;
		o->pending--;
	}
	return err ? explain(o, err, b) : 0;
}

int pl_outside_scratch(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns)
{
	if (o->kind != PL_OUTSIDE_RING)
		return pinl_set_error(-EOPNOTSUPP,
				      "a device's address space is only emptied from outside");
	return change(o, b, true, deadline_ns);
}

int pl_outside_empty(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns)
{
	if (o->kind != PL_OUTSIDE_RING)
		return pl_space_empty(o, b, deadline_ns);
	return change(o, b, false, deadline_ns);
}

/* -------------------------------------------------------------------------------------- kill -- */

static int busy(const struct pl_outside *o, int n, const struct pl_outside_heir *heirs)
{
	char names[256] = "";
	size_t at = 0;

	for (int i = 0; i < n && i < MAX_NAMED; i++)
		at += snprintf(names + at, sizeof names - at, "%s%d (%s)", i ? ", " : "", heirs[i].pid,
			       heirs[i].name);
	return pinl_set_error(-EBUSY,
			      "process %d %s, but its ring lives on in %d other%s: %s%s; they keep the "
			      "pins until they end or close it",
			      o->pid, pl_look_ended(o->pidfd) ? "is dead" : "has let go of it", n,
			      n == 1 ? "" : "s", names, n > MAX_NAMED ? ", ..." : "");
}

/* Every slot is empty, and the requests that had them have ended. */
static bool tags_seen(const struct pl_outside *o, const struct pl_outside_buf *bufs, int n)
{
	for (int i = 0; i < n; i++) {
		struct pl_outside_buf slot = bufs[i];
		bool seen;

		if (pl_look_slot(o->ring, &slot, &seen) || !seen || slot.end > slot.start)
			return false;
	}
	return true;
}

/* The machine has so many pins fewer. */
static bool fewer_pins(int64_t before, const struct pl_outside_buf *bufs, int n)
{
	int64_t now, pages = 0;

	if (!n) /* none that the lease had */
		return true;
	for (int i = 0; i < n; i++)
		pages += (bufs[i].end + PL_PAGE - 1) / PL_PAGE - bufs[i].start / PL_PAGE;
	return before >= 0 && !pl_look_all_pins(&now) && now <= before - pages;
}

/* Requests outlive who made them as long as anybody has the ring, and be it this handle. */
static bool gone(struct pl_outside *o, bool heirs, const struct pl_outside_buf *bufs, int n,
		 bool patient)
{
	bool tagged = !o->why && o->ring >= 0;

	for (int i = 0; i < n; i++)
		tagged &= bufs[i].tag != 0;
	if (tagged && tags_seen(o, bufs, n))
		return true;
	if (heirs && (o->why || o->ring < 0))
		return false;
	/* Others let go of pins, too: those don't count while there is something better to look at. */
	if (patient && !o->why && o->ring >= 0 && (tagged || pl_look_uses_buffers(o->ring)))
		return false;
	if (!heirs && o->ring >= 0) {
		close(o->ring);
		o->ring = -1;
	}
	return (heirs || o->ring < 0) && fewer_pins(o->pins, bufs, n);
}

/* Then no new request of anybody's reaches the pages, and the old ones end. */
static void take_all(struct pl_outside *o, const struct pl_outside_buf *bufs, int n,
		     uint64_t deadline_ns)
{
	if (o->why || o->ring < 0)
		return;
	for (int i = 0; i < n; i++) {
		struct change c = {o->ring, bufs[i]};

		pl_outside_run(&o->child, c.ring, empty_child, &c, deadline_ns);
	}
	pl_outside_cancel(o, 100000000, deadline_ns);
}

static int kill_and_wait(struct pl_outside *o, uint64_t deadline_ns)
{
	if (syscall(SYS_pidfd_send_signal, o->pidfd, SIGKILL, NULL, 0) && errno != ESRCH)
		return pinl_set_error(-errno, "can't kill process %d: %s", o->pid, pl_errname(errno));
	while (!pl_look_ended(o->pidfd)) {
		if (pl_clock_ns() >= deadline_ns)
			return pinl_set_error(-ETIMEDOUT, "process %d doesn't die of SIGKILL", o->pid);
		pl_outside_pause(deadline_ns);
	}
	return 0;
}

int64_t pl_outside_all_pins(void)
{
	int64_t pages;

	return pl_look_all_pins(&pages) ? -1 : pages;
}

int64_t pl_outside_pins_of(pid_t pid)
{
	int64_t pages;

	return pl_look_vmpin(pid, &pages) ? -1 : pages;
}

static void note_pins(struct pl_outside *o)
{
	if (!o->killed)
		o->pins = pl_outside_all_pins();
	o->killed = true;
}

int pl_outside_try(struct pl_outside *o, int fd, int (*fn)(const void *arg), const void *arg,
		   uint64_t deadline_ns)
{
	return pl_outside_run(&o->child, fd, fn, arg, deadline_ns);
}

void pl_outside_pins_were(struct pl_outside *o, int64_t pages)
{
	if (!o->killed)
		o->pins = pages;
	o->killed = true;
}

static int wait_until_gone(struct pl_outside *o, const struct pl_outside_buf *bufs, int n,
			   uint64_t deadline_ns)
{
	uint64_t now = pl_clock_ns(), half = now + (deadline_ns > now ? (deadline_ns - now) / 2 : 0);
	struct pl_outside_heir heirs[MAX_NAMED];
	int count;

	if (o->kind != PL_OUTSIDE_RING)
		return pl_space_gone(o, bufs, n, deadline_ns);
	if (o->gone && o->ring < 0)
		return 0;
	take_all(o, bufs, n, deadline_ns);
	for (;;) {
		count = pl_outside_heirs(o, heirs, MAX_NAMED);
		o->gone = gone(o, count != 0, bufs, n, pl_clock_ns() < half);
		if (o->gone)
			return 0;
		if (pl_clock_ns() >= deadline_ns)
			return count > 0 ? busy(o, count, heirs)
					 : pinl_set_error(-ETIMEDOUT,
							  "nobody has the ring of process %d any more, "
							  "but its pins were not seen to go",
							  o->pid);
		pl_outside_pause(deadline_ns);
	}
}

int pl_outside_gone(struct pl_outside *o, const struct pl_outside_buf *bufs, int n, uint64_t deadline_ns)
{
	note_pins(o);
	return wait_until_gone(o, bufs, n, deadline_ns);
}

int pl_outside_kill(struct pl_outside *o, const struct pl_outside_buf *bufs, int n, uint64_t deadline_ns)
{
	int err;

	note_pins(o);
	err = kill_and_wait(o, deadline_ns);
	return err ? err : wait_until_gone(o, bufs, n, deadline_ns);
}
