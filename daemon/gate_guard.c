/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Invariant: whoever is stopped is in the map `stops` before the signal is sent, so whoever reads it
 * when nobody is being stopped any more can continue all: the guard, a child that waits for our end,
 * whatever that is; or the next pinleased, which finds the map pinned. Who is continued so makes his
 * call again, and is refused where the gate is still closed. Who waits at a page goes on by our end
 * itself, and the pages are the guard's, as its mappings are never changed: who reads one has them
 * locked.
 */
#include "daemon/gate_stop.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/text.h"
#include "pinlease/device.h"

/* ---------------------------------------------------------------------------------- letting all go --
 */

/* In ticks since boot; 0: there is no such process. System calls only. */
static uint64_t started(pid_t pid)
{
	char path[32], text[1024], *at;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	if (pl_text_start(path, text, sizeof text) <= 0)
		return 0;
	at = strrchr(text, ')'); /* of the name, which may have blanks */
	for (int i = 2; at && i < 22; i++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

/* The number may be another's by now; who isn't stopped goes on anyway. */
static void go_on(pid_t pid, uint64_t started_ns)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	if (fd < 0) {
		if (errno != ESRCH) /* no descriptor is left to look by */
			syscall(SYS_kill, pid, SIGCONT);
		return;
	}
	if (started(pid) == started_ns / (1000000000u / sysconf(_SC_CLK_TCK)))
		syscall(SYS_pidfd_send_signal, fd, SIGCONT, NULL, 0);
	close(fd);
}

/* Each once, however often this is called: somebody else may stop him after. */
void gate_stop_let_go(int stops)
{
	struct gate_stop_key at;
	uint64_t started_ns;

	for (unsigned i = 0; i < 4 * GATE_WAITING && !bpf_map_get_next_key(stops, NULL, &at); i++) {
		if (!bpf_map_lookup_elem(stops, &at, &started_ns))
			go_on((pid_t)(at.thread >> 32), started_ns);
		bpf_map_delete_elem(stops, &at);
	}
}

/* The programs that were running have come to their end then. */
static void await_programs(void)
{
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
		usleep(100000); /* a kernel with processors that it doesn't interrupt has none */
}

void gate_stop_end(const struct gate_stops *s)
{
	__atomic_store_n(&s->state->waits_until_ns, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&s->state->pages, 0, __ATOMIC_SEQ_CST);
	await_programs();
	gate_stop_let_go(s->stops);
}

/* --------------------------------------------------------------------------------------- the guard --
 */

/* Before the file is closed, of which pinleased hears. */
static bool offer_pages(const struct gate_stops *s)
{
	uintptr_t pages;

	syscall(SYS_close, s->page.device); /* the kernel hears of pinleased's end by that */
	pages = gate_page_map(&s->page);
	s->state->guard = getpid();
	__atomic_store_n(&s->state->pages, pages, __ATOMIC_SEQ_CST);
	return pages;
}

/* System calls only, as another thread may have held any lock. Nothing of ours stays open here, what
 * fanotify has held would wait. */
static __attribute__((noreturn)) void guard(struct gate_stops s, int parent)
{
	struct pollfd p = {.fd = 0, .events = POLLIN};
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	if (gate_stop_by_page(&s) && !offer_pages(&s))
		syscall(SYS_exit_group, 1);
	prctl(PR_SET_NAME, "pinleased-guard"); /* who looks for it finds it ready */
	if (dup2(parent, 0) < 0 || dup2(s.stops, 1) < 0 || syscall(SYS_close_range, 2, ~0u, 0))
		syscall(SYS_exit_group, 1);
	s.stops = 1;
	while (poll(&p, 1, -1) != 1)
		;
	gate_stop_end(&s);
	syscall(SYS_exit_group, 0);
	__builtin_unreachable();
}

/* Who comes to an earlier guard's page comes again. */
static void answer_all(const struct gate_stops *s)
{
	struct gate_visit v;

	while (gate_page_next(&s->page, &v))
		gate_page_let_go(&s->page, v.id);
}

/* It asks for the file, which is us, and says at last that it has closed it. */
static int await_pages(const struct gate_stops *s)
{
	struct pollfd p[] = {{.fd = s->page.device, .events = POLLIN},
			     {.fd = s->pidfd, .events = POLLIN}};

	while (!__atomic_load_n(&s->state->pages, __ATOMIC_SEQ_CST)) {
		if (p[1].revents)
			return -ECHILD;
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return -errno;
		answer_all(s);
	}
	return 0;
}

/* Killed, it still waits till we have heard that it closes the file: the kernel insists. */
static void await_end(const struct gate_stops *s)
{
	struct pollfd p[] = {{.fd = gate_stop_by_page(s) ? s->page.device : -1, .events = POLLIN},
			     {.fd = s->pidfd, .events = POLLIN}};

	while (!waitpid(s->guard, NULL, WNOHANG)) {
		poll(p, 2, s->pidfd >= 0 ? -1 : 10);
		if (p[0].fd >= 0)
			answer_all(s);
	}
}

int gate_guard_start(struct gate_stops *s)
{
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0), err = 0;

	s->guard = self < 0 ? -1 : fork();
	if (!s->guard)
		guard(*s, self);
	if (s->guard > 0)
		s->pidfd = (int)syscall(SYS_pidfd_open, s->guard, 0);
	if (s->guard < 0 || s->pidfd < 0)
		err = -errno;
	if (self >= 0)
		close(self);
	if (!err && gate_stop_by_page(s))
		err = await_pages(s);
	if (!err)
		return 0;
	gate_guard_end(s);
	return pinl_set_error(err, "no process to continue who is stopped if pinleased dies: %s",
			      strerror(-err));
}

void gate_guard_end(struct gate_stops *s)
{
	__atomic_store_n(&s->state->pages, 0, __ATOMIC_SEQ_CST);
	if (s->guard > 0) {
		syscall(SYS_tgkill, s->guard, s->guard, SIGKILL);
		await_end(s);
	}
	if (s->pidfd >= 0)
		close(s->pidfd);
	s->guard = 0;
	s->pidfd = -1;
}
