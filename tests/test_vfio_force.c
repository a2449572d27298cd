/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A holder that is stopped while its device is at work: pinleased unmaps from outside, verifies it, and
 * lets the change go on; what was under way then hits nothing. The test has opened the device before it
 * forks, so that it can give the device orders in the holder's place.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter_rig.h"
#include "vfio_modes.h"

#define TRIES 60
#define AT    1024 /* where in the first page */

/* What holder and test share. */
struct words {
	atomic_int ready; /* 1, or a negative errno */
	atomic_int hung;  /* a mapping of its own is under way, and stays so */
	atomic_int ended; /* it has seen its lease released, and ended it */
	atomic_int events[16];
	uint64_t iova;
	char *va;
	char error[256];
};

static struct arbiter a;
static struct io_uring
	witness; /* the test's; the holder's pages are its buffer 0, wherever their mapping has gone */

/* -------------------------------------------------------------------------------- the holder -- */

static void count(const struct pinl_event *ev, void *arg)
{
	struct words *w = arg;

	atomic_fetch_add(&w->events[ev->type], 1);
}

static int open_device(struct pinl_ctx *ctx, const struct mode *mode, const struct edu *e,
		       struct pinl_device **dev)
{
	int devices[EDU_MAX];
	union edu_arg arg = edu_arg(e, mode->switched, devices);

	return pinl_device_open(ctx, mode->kind, &arg, dev);
}

struct hanging {
	struct edu *e;
	struct words *w;
	char *va;
};

/* Memory of which no page ever comes: who pins it waits. */
static char *endless(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	char *va = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	reg.range.start = (uintptr_t)va;
	reg.range.len = PG;
	return ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg) ? NULL : va;
}

static void *hang(void *arg)
{
	struct hanging *h = arg;

	h->w->hung = 1;
	edu_map(h->e, h->va, EDU_IOVA_LAST + 1 - PG, PG);
	return NULL;
}

static void __attribute__((noreturn)) give_up(struct words *w, int err)
{
	snprintf(w->error, sizeof w->error, "%s", pinl_error());
	w->ready = err ? err : -EIO;
	_exit(1);
}

static void lease_file(struct words *w, struct pinl_device *dev, struct pinl_policy policy)
{
	int fd = open(a.file, O_RDWR | O_CLOEXEC), err;
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	struct iovec iov = {va, SIZE};
	struct pinl_addr addrs[PAGES];
	struct pinl_lease *l;

	close(fd);
	memset(va, 'F', SIZE);
	err = pinl_map_range(dev, (uintptr_t)va, (uintptr_t)va + SIZE, PINL_WRITE | PINL_PIN, &policy,
			     addrs, &l);
	if (!err)
		err = io_uring_register_buffers(&witness, &iov, 1);
	if (err)
		give_up(w, err);
	w->iova = addrs[0].addr;
	w->va = va;
}

static void __attribute__((noreturn))
hold(const struct mode *mode, struct edu *e, struct words *w, struct pinl_policy policy, bool hangs)
{
	struct pinl_opts opts = {
		.size = sizeof opts, .on_event = count, .on_event_arg = w, .summary_fd = -1};
	struct hanging h = {e, w, NULL};
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	pthread_t thread;
	int err;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	err = pinl_open(&opts, &ctx);
	if (!err)
		err = open_device(ctx, mode, e, &dev);
	if (err)
		give_up(w, err);
	lease_file(w, dev, policy);
	if (hangs && (!(h.va = endless()) || pthread_create(&thread, NULL, hang, &h)))
		give_up(w, -EIO);
	w->ready = 1;
	while (!w->events[PINL_EV_RELEASED])
		usleep(1000);
	pinl_close(ctx);
	w->ended = 1;
	_exit(0);
}

static pid_t holder(const struct mode *mode, struct edu *e, struct words **w, struct pinl_policy policy,
		    bool hangs)
{
	pid_t pid;

	*w = mmap(NULL, sizeof **w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(*w, MAP_FAILED);
	pid = fork();
	if (!pid)
		hold(mode, e, *w, policy, hangs);
	while (!(*w)->ready)
		usleep(1000);
	if ((*w)->ready < 0)
		fail_msg("%s: %s", strerror(-(*w)->ready), (*w)->error);
	return pid;
}

/* Not by waitpid(): a thread that hangs in the kernel doesn't stop. */
static void stop(pid_t pid)
{
	char path[32], text[512];
	char state = 0;

	kill(pid, SIGSTOP);
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	while (state != 'T') {
		FILE *f = fopen(path, "re");

		assert_non_null(f);
		assert_non_null(fgets(text, sizeof text, f));
		fclose(f);
		state = strrchr(text, ')')[2];
		usleep(1000);
	}
}

/* --------------------------------------------------------------------------------- the tests -- */

static ssize_t write_byte(int fd, char c)
{
	return write(fd, &c, 1);
}

/* One byte of each of the old pages, in the place of a process that doesn't run. */
static void old_pages(const struct words *w, bool write, char *bytes)
{
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	for (size_t i = 0; i < PAGES; i++) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&witness);
		struct io_uring_cqe *cqe;
		char *at = w->va + i * PG + AT;

		if (write) {
			assert_int_equal(write_byte(fds[1], bytes[i]), 1);
			io_uring_prep_read_fixed(sqe, fds[0], at, 1, 0, 0);
		} else {
			io_uring_prep_write_fixed(sqe, fds[1], at, 1, 0, 0);
		}
		assert_int_equal(io_uring_submit(&witness), 1);
		assert_int_equal(io_uring_wait_cqe(&witness, &cqe), 0);
		assert_int_equal(cqe->res, 1);
		io_uring_cqe_seen(&witness, cqe);
		if (!write)
			assert_int_equal(read(fds[0], bytes + i, 1), 1);
	}
	close(fds[0]);
	close(fds[1]);
}

/* A transfer is out all the time, until the change is through: the last one lands after that. */
static void keep_flying(struct edu *e, const struct edu_part *part, const struct actor *t)
{
	edu_launch(e, part, 1);
	while (actor_waits(t)) {
		if (edu_landed(e))
			edu_launch(e, part, 1);
		usleep(500);
	}
}

/* True if one was out when the change was through and the old pages had been poisoned. False also if
 * pinleased, which has a second for a force, had to kill the holder instead. */
static bool force(const struct mode *mode, enum pinl_then then, bool hangs)
{
	struct lending what = lending_recall(then, 20);
	char x[EDU_CHUNK], poison[PAGES], found[PAGES];
	struct edu_part part = {.buf = x, .len = sizeof x};
	struct words *w;
	struct edu e;
	struct actor t;
	int status;
	pid_t pid;
	bool out;

	memset(x, 'X', sizeof x);
	memset(poison, 'P', sizeof poison);
	assert_int_equal(io_uring_queue_init(4, &witness, 0), 0);
	edu_open(&e, mode->space);
	pid = holder(mode, &e, &w, what.policy, hangs);
	while (hangs && !w->hung)
		usleep(1000);
	part.iova = w->iova + AT;
	edu_load(&e, &part, 1);
	stop(pid);
	actor_start(&t, &a);
	keep_flying(&e, &part, &t);
	assert_int_equal(actor_join(&t), 0);
	old_pages(w, true, poison);
	out = !edu_landed(&e);
	assert_int_equal(arbiter_file_size(&a), 0);
	edu_land(&e);
	edu_launch(&e, &part, 1); /* nor does what is begun only now, the holder still stopped */
	edu_land(&e);
	old_pages(w, false, found);
	assert_memory_equal(found, poison, PAGES);
	kill(pid, SIGCONT);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (then == PINL_THEN_KILL && WIFSIGNALED(status)) {
		out = false;
	} else {
		assert_int_equal(status, 0);
		assert_int_equal(w->ended, 1);
	}
	edu_close(&e);
	io_uring_queue_exit(&witness);
	munmap(w, sizeof *w);
	assert_int_equal(truncate(a.file, SIZE), 0);
	return out;
}

static void stopped(const struct mode *mode, enum pinl_then then, bool hangs)
{
	int i = 0;

	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	while (i < TRIES && !force(mode, then, hangs))
		i++;
	arbiter_stop(&a);
	if (i == TRIES)
		fail_msg("in %d tries the transfer was always faster than the force", TRIES);
}

static void stopped_fail(void **state)
{
	stopped(*state, PINL_THEN_FAIL, false);
}

/* Nothing can be put there from outside: its device is without, until the holder runs. */
static void stopped_scratch(void **state)
{
	stopped(*state, PINL_THEN_SCRATCH, false);
}

static void stopped_kill(void **state)
{
	stopped(*state, PINL_THEN_KILL, false); /* needs nobody killed: the status is 0 */
}

/* The kernel pins without the lock that an unmap needs (iommufd), or doesn't wait for a page (type1): a
 * map of the holder's that hangs stands in nobody's way. */
static void stopped_while_a_map_hangs(void **state)
{
	stopped(*state, PINL_THEN_FAIL, true);
}

/* ------------------------------------------------------------------------------------ runner -- */

#define TEST(fn)                                                                                        \
	{                                                                                               \
#fn, fn, NULL, NULL, NULL                                                               \
	}

int main(int argc, char **argv)
{
	static const struct CMUnitTest all[] = {
		TEST(stopped_fail),
		TEST(stopped_scratch),
		TEST(stopped_kill),
		TEST(stopped_while_a_map_hangs),
	};

	return modes_run("vfio_force", all, sizeof all / sizeof *all, argc, argv);
}
