/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The holder of again_rig.h: a process that leases, tells the test what it sees, and does as it is told.
 */
#include "again_rig.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define NOBODY 65534

struct played a;

/* It can't open its own file any more. */
static void drop_privileges(void)
{
	if (getuid() ? chmod(a.file, 0) : setresuid(NOBODY, NOBODY, NOBODY))
		_exit(103);
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void look(struct pinl_ctx *ctx)
{
	struct pinl_event ev = {.size = sizeof ev};

	while (!pinl_next_event(ctx, &ev)) {
		if (ev.type != PINL_EV_DEGRADED || ev.err == -EINTR)
			a.s->change[ev.type] = ev.change_id;
		a.s->unguarded += ev.type == PINL_EV_DEGRADED && ev.lease_id && ev.err == -ENOTCONN;
		a.s->lost += ev.type == PINL_EV_DEGRADED && !ev.lease_id && ev.err == -ENOTCONN;
		a.s->let_go += ev.type == PINL_EV_DEGRADED && ev.err == -EINTR;
		a.s->orphans += ev.type == PINL_EV_ORPHAN;
		if (ev.type == PINL_EV_ANSWERED)
			a.s->waited_ns = ev.waited_ns;
		a.s->answered += ev.type == PINL_EV_ANSWERED;
		a.s->noticed += ev.type == PINL_EV_NOTICE;
		a.s->refused += ev.type == PINL_EV_REFUSED;
		if (ev.type == PINL_EV_DEGRADED && ev.err == -EAGAIN)
			a.s->unwaited |= PINL_OPBIT(ev.op);
		a.s->orphan_ends += ev.type == PINL_EV_ORPHAN_END && ev.err == -EOPNOTSUPP;
	}
}

static struct pinl_lease *lease(struct pinl_device *dev, uintptr_t at)
{
	struct pinl_policy policy = {.size = sizeof policy,
				     .kind = PINL_RECALL,
				     .then = PINL_THEN_FAIL,
				     .grace_ms = a.grace_ms};
	struct pinl_lease *l = NULL;
	int err = pinl_map_range(dev, at, at + PG, PINL_WRITE | (a.pinned ? PINL_PIN : 0), &policy, NULL,
				 &l);

	if (!err == a.s->must_fail || (err && err != -ENOTCONN && err != -ETIMEDOUT)) {
		fprintf(stderr, "# %s\n", pinl_error());
		_exit(102);
	}
	return l;
}

static void look_at(struct pinl_lease *l)
{
	char text[4096];

	pinl_lease_describe(l, text, sizeof text);
	a.s->others_wait = strstr(text, "held where made by another process:");
	a.s->looks++;
}

/* Makes so many leases, a page each. */
static void __attribute__((noreturn)) hold(int leases)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .ceiling_ms = a.grace_ms};
	int fd = a.cover ? memfd_create("gate", MFD_CLOEXEC)
			 : open(a.file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct pinl_lease *last = NULL;
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	char *va;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (fd < 0 || ftruncate(fd, leases * PG) || pinl_open(&opts, &ctx) ||
	    pinl_device_open(ctx, "soft", NULL, &dev))
		_exit(101);
	va = mmap(NULL, leases * PG, PROT_READ | PROT_WRITE, a.pinned ? MAP_PRIVATE : MAP_SHARED, fd, 0);
	close(fd);
	for (uintptr_t at = (uintptr_t)va; at < (uintptr_t)va + leases * PG; at += PG)
		last = lease(dev, at);
	for (; !a.s->end && !a.s->must_fail; usleep(1000)) {
		look(ctx);
		look_at(last);
		if (a.s->drop)
			drop_privileges();
		a.s->drop = 0;
		if (a.s->quiesce)
			pinl_quiesced(last);
		a.s->quiesce = 0;
	}
	pinl_close(ctx);
	_exit(0);
}

void start_holder_that(int leases, bool must_fail)
{
	strcpy(a.dir, "/var/tmp/pinlease-again-XXXXXX");
	assert_non_null(mkdtemp(a.dir));
	assert_int_equal(chmod(a.dir, 0755), 0);
	snprintf(a.file, sizeof a.file, "%s/file", a.dir);
	a.addr.sun_family = AF_UNIX;
	snprintf(a.addr.sun_path, sizeof a.addr.sun_path, "%s/socket", a.dir);
	setenv("PINLEASE_SOCKET", a.addr.sun_path, 1);
	a.listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(a.listening, (void *)&a.addr, sizeof a.addr), 0);
	assert_int_equal(chmod(a.addr.sun_path, 0666), 0);
	assert_int_equal(listen(a.listening, 8), 0);
	a.handles = 0;
	a.s = mmap(NULL, sizeof *a.s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	a.s->must_fail = must_fail;
	a.holder = fork();
	if (!a.holder)
		hold(leases);
}

void start_holder(int leases)
{
	start_holder_that(leases, false);
}

void remove_all(void)
{
	munmap(a.s, sizeof *a.s);
	close(a.sock);
	close(a.listening);
	unlink(a.file);
	unlink(a.addr.sun_path);
	assert_int_equal(rmdir(a.dir), 0);
}

void end_holder(void)
{
	int status;

	assert_int_equal(waitpid(a.holder, &status, 0), a.holder);
	assert_int_equal(status, 0);
	remove_all();
}

/* Its thread that sends waits for something to happen. */
static bool waits(void)
{
	char path[300], name[32], wchan[64];
	DIR *tasks;
	bool is = false;

	snprintf(path, sizeof path, "/proc/%d/task", a.holder);
	tasks = opendir(path);
	for (struct dirent *d; (d = readdir(tasks));) {
		FILE *comm, *at;

		snprintf(path, sizeof path, "/proc/%d/task/%s/comm", a.holder, d->d_name);
		comm = fopen(path, "re");
		snprintf(path, sizeof path, "/proc/%d/task/%s/wchan", a.holder, d->d_name);
		at = fopen(path, "re");
		if (comm && at && fgets(name, sizeof name, comm) && fgets(wchan, sizeof wchan, at))
			is |= !strcmp(name, "pinl-arbiter\n") && strstr(wchan, "poll");
		if (comm)
			fclose(comm);
		if (at)
			fclose(at);
	}
	closedir(tasks);
	return is;
}

void until_it_waits(void)
{
	int queued = 0;

	while (!queued || !waits()) {
		usleep(1000);
		assert_int_equal(ioctl(a.sock, SIOCINQ, &queued), 0);
	}
}
