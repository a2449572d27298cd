/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A memory region of a process that is stopped, deregistered by another: what pinleased does at the
 * deadline. Only the region that was said, and only if it is that still.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../daemon/outside.h"
#include "backend/verbs_cmd.h"
#include "os/clock.h"
#include "pinlease/device.h"
#include "verbs_peer.h"

#define PAGE	4096ul
#define SIZE	(16 * PAGE)
#define WAIT_NS 20000000000ull

/* Shared with the holder. */
struct words {
	atomic_int ready;
	int fd, null;
	struct pl_mr mr;
	uint32_t others_lkey;
	uintptr_t va;
};

struct rig {
	struct words *w;
	pid_t pid;
	int pidfd;
	struct pl_outside *o;
	struct pl_outside_buf buf;
};

static void __attribute__((noreturn)) hold(struct words *w)
{
	struct pl_uverbs u;
	struct pl_mr other;
	struct peer p;
	char *va;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	peer_open(&p, NULL, PAGE);
	va = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	u.fd = p.ctx->cmd_fd;
	if (va == MAP_FAILED || pl_uverbs_find(&u) ||
	    pl_mr_reg(&u, p.pd->handle, (uintptr_t)va, SIZE, IBV_ACCESS_LOCAL_WRITE, &w->mr) ||
	    pl_mr_reg(&u, p.pd->handle, (uintptr_t)va + SIZE, SIZE, IBV_ACCESS_LOCAL_WRITE, &other)) {
		w->ready = -1;
		_exit(1);
	}
	w->fd = u.fd;
	w->null = open("/dev/null", O_RDWR | O_CLOEXEC);
	w->va = (uintptr_t)va;
	w->others_lkey = other.lkey;
	w->ready = 1;
	for (;;)
		pause();
}

static int rig_up(void **state)
{
	struct rig *r = calloc(1, sizeof *r);
	int status;

	*state = r;
	if (peer_missing())
		return 0;
	r->w = mmap(NULL, sizeof *r->w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	r->pid = fork();
	if (!r->pid)
		hold(r->w);
	while (!r->w->ready)
		usleep(1000);
	assert_int_equal(r->w->ready, 1);
	kill(r->pid, SIGSTOP);
	waitpid(r->pid, &status, WUNTRACED);
	r->pidfd = syscall(SYS_pidfd_open, r->pid, 0);
	r->buf = (struct pl_outside_buf){.slot = r->w->mr.handle,
					 .twin = r->w->mr.lkey,
					 .start = r->w->va,
					 .end = r->w->va + SIZE,
					 .tag = r->w->va};
	return 0;
}

static int rig_down(void **state)
{
	struct rig *r = *state;

	if (r->o)
		pl_outside_close(r->o);
	if (r->pid) {
		close(r->pidfd);
		kill(r->pid, SIGKILL);
		waitpid(r->pid, NULL, 0);
		munmap(r->w, sizeof *r->w);
	}
	free(r);
	return 0;
}

static uint64_t soon(void)
{
	return pl_clock_ns() + WAIT_NS;
}

static void take(struct rig *r, int fd)
{
	assert_int_equal(pl_outside_open_space(r->pidfd, r->pid, fd, PL_OUTSIDE_VERBS, soon(), &r->o),
			 0);
}

static int force(struct rig *r)
{
	int err = pl_outside_empty(r->o, &r->buf, soon());

	return err ? err : pl_outside_drained(r->o, &r->buf, 0, soon());
}

static int64_t pinned(const struct rig *r)
{
	return pl_outside_pins_of(r->pid);
}

static void it_is_taken_alone(void **state)
{
	struct rig *r = *state;
	int64_t before;

	SKIP_WITHOUT_DEVICE();
	before = pinned(r);
	take(r, r->w->fd);
	assert_int_equal(force(r), 0);
	assert_int_equal(pinned(r), before - (int64_t)(SIZE / PAGE));
	assert_int_equal(force(r), 0); /* is gone, which is what was wanted */
	assert_int_equal(pinned(r), before - (int64_t)(SIZE / PAGE));
}

/* The handle is another region's by now. */
static void what_has_its_handle_is_left_alone(void **state)
{
	struct rig *r = *state;
	int64_t before;

	SKIP_WITHOUT_DEVICE();
	before = pinned(r);
	take(r, r->w->fd);
	r->buf.twin = r->w->others_lkey;
	assert_int_equal(force(r), 0);
	r->buf.twin = r->w->mr.lkey;
	r->buf.tag += PAGE;
	assert_int_equal(force(r), 0);
	r->buf.tag -= PAGE;
	r->buf.end -= PAGE;
	assert_int_equal(force(r), 0);
	assert_int_equal(pinned(r), before);
}

/* Not there, and that proves nothing. */
static void after_a_copy_it_may_be_elsewhere(void **state)
{
	struct rig *r = *state;

	SKIP_WITHOUT_DEVICE();
	take(r, r->w->fd);
	r->buf.tag |= PINL_HANDLE_REKEYS;
	assert_int_equal(force(r), 0); /* it was there */
	assert_int_equal(force(r), -ESTALE);
	assert_non_null(strstr(pinl_error(), "COPY"));
	assert_int_equal(pl_outside_numbers(PL_OUTSIDE_VERBS, &r->buf), 0);
}

static void another_device_is_none(void **state)
{
	struct rig *r = *state;

	SKIP_WITHOUT_DEVICE();
	take(r, r->w->null);
	assert_int_equal(force(r), -EBADF);
	assert_non_null(strstr(pinl_error(), "RDMA context"));
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, rig_up, rig_down)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST(it_is_taken_alone),
		TEST(what_has_its_handle_is_left_alone),
		TEST(after_a_copy_it_may_be_elsewhere),
		TEST(another_device_is_none),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
