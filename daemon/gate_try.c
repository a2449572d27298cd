/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether the gate's programs do what they are for, on files of our own. LSM programs can be attached
 * where the kernel never runs them (no "bpf" in its list lsm=), so nothing else is believed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/gate_load.h"
#include "daemon/gate_stop.h"
#include "pinlease/device.h"

/* -------------------------------------------------------------------------------------- refusing -- */

/* -EBUSY, by this gate: nothing else says so of such a file. */
static bool is_refused(int result)
{
	return result < 0 && errno == EBUSY;
}

static bool refuses(struct gate_programs *g, int fd, size_t page)
{
	struct gate_range all = {.end = page, .ops = ~GATE_NAME}; /* it has none */
	struct gate_file file;
	bool works;

	if (gate_identify(g, fd, &file) || gate_guard(g, &file, 0, &all))
		return false;
	works = is_refused(ftruncate(fd, 0)) &&
		is_refused(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page));
	gate_unguard(g, &file, 0, 0, NULL);
	return works && !ftruncate(fd, 0);
}

int gate_try(struct gate_programs *g)
{
	size_t page = sysconf(_SC_PAGESIZE);
	int fd = memfd_create("pinlease gate", MFD_CLOEXEC);
	bool works;

	if (fd < 0 || ftruncate(fd, page)) {
		int err = -errno;

		if (fd >= 0)
			close(fd);
		return pinl_set_error(err, "no file to try the gate on: %s", strerror(-err));
	}
	pinl_set_error(0, "%s", "");
	works = refuses(g, fd, page);
	close(fd);
	gate_read(g, NULL, NULL); /* nobody is to be told of these */
	if (works)
		return 0;
	return pinl_set_error(-EOPNOTSUPP, "the gate's programs (%s) are loaded, and don't refuse: %s",
			      gate_means(g),
			      *pinl_error() ? pinl_error() : "the kernel doesn't run them");
}

/* An empty file: where there is such a mode it does nothing, or has another error. */
static bool lacks(int memfd_flags, int mode)
{
	int fd = memfd_create("pinlease gate", MFD_CLOEXEC | memfd_flags);
	bool is = fd < 0 || (fallocate(fd, mode, 0, sysconf(_SC_PAGESIZE)) && errno == EOPNOTSUPP);

	if (fd >= 0)
		close(fd);
	return is;
}

unsigned gate_memory_lacks(void)
{
	static const int modes[] = {FALLOC_FL_ZERO_RANGE, FALLOC_FL_COLLAPSE_RANGE,
				    FALLOC_FL_INSERT_RANGE};
	unsigned all = 0;

	for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
		if (lacks(0, modes[i]) && lacks(MFD_HUGETLB, modes[i]))
			all |= modes[i];
	return all;
}

/* --------------------------------------------------------------------------------------- waiting -- */

struct trial {
	struct gate_stops stops;
	struct gate_programs *programs;
	struct gate_refusal said; /* the last */
	struct gate_visit visit;
	int fd;
	size_t page;
};

static void on_said(const struct gate_refusal *r, void *arg)
{
	((struct trial *)arg)->said = *r;
}

static off_t size_of(int fd)
{
	return lseek(fd, 0, SEEK_END);
}

static int no(const char *what)
{
	return pinl_set_error(-EOPNOTSUPP, "who should wait %s", what);
}

/* 0: it has come to its page, or ended. */
static int await_visit(struct trial *t, pid_t pid)
{
	struct pollfd p[] = {{.fd = t->stops.page.device, .events = POLLIN},
			     {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN}};
	int err = 0;

	while (!err && !t->visit.thread && !p[1].revents) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			err = -errno;
		gate_page_next(&t->stops.page, &t->visit);
	}
	if (p[1].fd >= 0)
		close(p[1].fd);
	return err;
}

static bool waits(struct trial *t, pid_t pid)
{
	int status;

	if (gate_stop_by_page(&t->stops))
		return !await_visit(t, pid) && t->visit.thread == pid;
	return waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status);
}

static void go_on(struct trial *t, pid_t pid)
{
	if (gate_stop_by_page(&t->stops))
		gate_page_let_go(&t->stops.page, t->visit.id);
	else
		syscall(SYS_tgkill, pid, pid, SIGCONT);
}

/* Its process changes the file: it must wait, and be told, and go on when it is let through. */
static int watch(struct trial *t, pid_t pid)
{
	int status;

	if (!waits(t, pid))
		return no(gate_stop_by_page(&t->stops) ? "doesn't come to its page" : "isn't stopped");
	gate_read(t->programs, on_said, t);
	if (t->said.what != GATE_WAITS || t->said.pid != pid || size_of(t->fd) != (off_t)t->page)
		return no("isn't told of, or under another number (is this the first PID namespace?)");
	if (gate_stop_pass(&t->stops, &t->said, false))
		return -EOPNOTSUPP;
	go_on(t, pid);
	if (waitpid(pid, &status, WUNTRACED) != pid || !WIFEXITED(status) || WEXITSTATUS(status))
		return no("doesn't go on");
	gate_read(t->programs, on_said, t);
	return t->said.what == GATE_OVER && !size_of(t->fd) ? 0
							    : no("has gone on without being told of");
}

static int have_changed(struct trial *t)
{
	pid_t pid = fork();
	int err;

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		syscall(SYS_close, t->stops.page.device); /* else it would wait for itself, if we die */
		syscall(SYS_exit_group, ftruncate(t->fd, 0) ? errno : 0);
	}
	if (pid < 0)
		return pinl_set_error(-errno, "no process to try it with: %s", strerror(errno));
	err = watch(t, pid);
	if (err) {
		syscall(SYS_tgkill, pid, pid, SIGKILL);
		if (t->visit.thread)
			gate_page_let_go(&t->stops.page, t->visit.id);
		waitpid(pid, NULL, 0);
	}
	return err;
}

static int try_on(struct trial *t)
{
	struct gate_range all = {.end = t->page, .waits = ~0u};
	struct gate_file file;
	int err = gate_identify(t->programs, t->fd, &file);

	if (!err)
		err = gate_guard(t->programs, &file, 0, &all);
	if (err)
		return err;
	t->stops.state->waiting++;
	err = have_changed(t);
	t->stops.state->waiting--;
	gate_unguard(t->programs, &file, 0, 0, NULL);
	return err;
}

/* To stop a process the programs need no right. The trial's is our own user's, which shows nothing. */
static int may_continue(const struct gate_stops *s)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0};

	if (gate_stop_by_page(s) ||
	    (!syscall(SYS_capget, &head, data) && data[0].effective & 1u << CAP_KILL))
		return 0;
	return pinl_set_error(-EPERM, "to continue who is stopped pinleased needs CAP_KILL");
}

int gate_stop_try(struct gate_programs *g)
{
	struct trial t = {.stops = *gate_stops(g),
			  .programs = g,
			  .fd = memfd_create("pinlease gate", MFD_CLOEXEC),
			  .page = sysconf(_SC_PAGESIZE)};
	int err;

	if (t.fd < 0 || ftruncate(t.fd, t.page))
		err = pinl_set_error(-errno, "no file to try it on: %s", strerror(errno));
	else
		err = may_continue(&t.stops);
	if (!err)
		err = try_on(&t);
	if (t.fd >= 0)
		close(t.fd);
	return err;
}
