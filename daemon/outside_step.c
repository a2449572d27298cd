/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What holds a request up in a stopped process is that its end is the business of the thread that made
 * it, and that doesn't run. The kernel does such work on each way back to user mode, so a step of one
 * instruction inside of the stop is enough. That goes for the ring's own threads (SQPOLL), too.
 *
 * A thread that is let go is as stopped as before, and has lost no signal and got none: the SIGTRAP of a
 * step is eaten, also where it comes late because the instruction was a system call that waits.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#include "os/clock.h"
#include "outside_int.h"

#define MAX_THREADS 1024
#define STEP_NS	    2000000u   /* for one instruction; a system call may take longer */
#define STOP_NS	    150000000u /* until who is told to stop has, on however busy a machine */

struct thread {
	pid_t tid;
	bool seized, still;
	int status; /* of its last stop */
};

struct step {
	int n;
	struct thread threads[MAX_THREADS];
};

static bool list_threads(pid_t pid, struct step *s)
{
	struct dirent *e;
	char path[64];
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && s->n < MAX_THREADS && (e = readdir(dir)))
		if (atoi(e->d_name) > 0 && pl_look_state(pid, atoi(e->d_name)) == 'T')
			s->threads[s->n++].tid = atoi(e->d_name);
	if (dir)
		closedir(dir);
	return s->n > 0;
}

/* Until all that were seized have stopped, or for a while. */
static void await_stops(struct step *s, uint64_t ns)
{
	uint64_t until = pl_clock_ns() + ns;
	struct timespec pause = {0, 50000};

	for (;;) {
		bool all = true;

		for (int i = 0; i < s->n; i++) {
			struct thread *t = &s->threads[i];

			if (t->seized && !t->still)
				t->still = waitpid(t->tid, &t->status, WNOHANG | __WALL) == t->tid &&
					   WIFSTOPPED(t->status);
			all &= t->still || !t->seized;
		}
		if (all || pl_clock_ns() > until)
			return;
		nanosleep(&pause, NULL);
	}
}

/* It was interrupted in the system call that it was to step over: the SIGTRAP is still to come. */
static bool trap_waits(const struct thread *t)
{
	struct __ptrace_peeksiginfo_args which = {.nr = 16};
	siginfo_t si[16];
	long n = ptrace(PTRACE_PEEKSIGINFO, t->tid, &which, si);

	for (long i = 0; i < n; i++)
		if (si[i].si_signo == SIGTRAP)
			return true;
	return false;
}

static void let_go(const struct thread *t)
{
	int sig = WSTOPSIG(t->status);

	/* A signal that came meanwhile is passed on; a stop of ptrace's own has an event. */
	if (t->status >> 16 || sig == SIGTRAP)
		sig = 0;
	ptrace(PTRACE_DETACH, t->tid, 0, sig);
}

/* Its waits end by themselves: it must not be killed between a step and the letting go, when the SIGTRAP
 * would be the holder's. */
static int step_child(const void *arg)
{
	struct step *s = (void *)arg; /* our copy */
	struct thread *t, *end = s->threads + s->n;
	bool all = true;

	for (t = s->threads; t < end; t++)
		t->seized = !ptrace(PTRACE_SEIZE, t->tid, 0, 0);
	await_stops(s, STOP_NS);
	for (t = s->threads; t < end; t++)
		if (t->still)
			t->still = ptrace(PTRACE_SINGLESTEP, t->tid, 0, 0) != 0;
	await_stops(s, STEP_NS);
	for (t = s->threads; t < end; t++)
		if (t->seized && !t->still)
			ptrace(PTRACE_INTERRUPT, t->tid, 0, 0);
	await_stops(s, STOP_NS);
	for (t = s->threads; t < end; t++)
		if (t->still && t->status >> 16 && trap_waits(t))
			t->still = ptrace(PTRACE_CONT, t->tid, 0, 0) != 0;
	await_stops(s, STOP_NS);
	for (t = s->threads; t < end; t++) {
		all &= t->still || !t->seized;
		if (t->still)
			let_go(t);
	}
	return all ? 0 : -ETIMEDOUT;
}

int pl_outside_step(struct pl_outside *o)
{
	struct step *s = calloc(1, sizeof *s);
	int err = 0;

	if (s && list_threads(o->pid, s))
		err = pl_outside_run(&o->child, -1, step_child, s, pl_clock_ns() + 1000 * STEP_NS);
	free(s);
	return err;
}
