/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A child of fork() inherits no lease and keeps no pin: when it has left the program's ring, which it
 * did inherit, the pages of its parent are free as soon as the parent has ended.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul
#define SIZE (64 * PAGE)

struct rig {
	struct io_uring ring;
	struct pinl_ctx *ctx;
	struct pinl_device *uring, *soft;
	char *mem;
	int fd;
};

static void lease(struct rig *r, struct pinl_device *dev, char *at)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_KEEP};
	struct pinl_lease *l;
	char byte;

	assert_ok(pinl_map_range(dev, (uintptr_t)at, (uintptr_t)at + SIZE / 2, PINL_WRITE | PINL_PIN,
				 &policy, NULL, &l));
	assert_ok(pinl_lease_read(l, 0, 1, &byte)); /* so that the private ring has the pages, too */
}

static void rig_open(struct rig *r)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};

	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &r->uring));
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->soft));
	r->mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	lease(r, r->uring, r->mem);
	lease(r, r->soft, r->mem + SIZE / 2);
}

static int count_fds(const char *kind)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *e;
	char to[64];
	int n = 0;

	while ((e = readdir(dir))) {
		ssize_t len = readlinkat(dirfd(dir), e->d_name, to, sizeof to - 1);

		to[len > 0 ? len : 0] = 0;
		n += strstr(to, kind) != NULL;
	}
	closedir(dir);
	return n;
}

static void end(struct rig *r)
{
	pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
	munmap(r->mem, SIZE);
	close(r->fd);
}

static void a_child_has_no_descriptor_of_the_librarys_rings_and_userfaultfds(void **state)
{
	struct rig r = {.fd = memfd_create("fork", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
	int status;
	pid_t pid;

	assert_int_equal(ftruncate(r.fd, SIZE), 0);
	rig_open(&r);
	assert_true(count_fds("[io_uring]") > 1);
	pid = fork();
	if (!pid)
		_exit(count_fds("[io_uring]") * 16 + count_fds("[userfaultfd]"));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, W_EXITCODE(1 * 16, 0)); /* the program's own ring */
	end(&r);
}

static void a_child_keeps_descriptors_that_have_got_the_librarys_old_numbers(void **state)
{
	struct rig r = {.fd = memfd_create("fork", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
	int status, fds[32], closed = 0;
	pid_t pid;

	assert_int_equal(ftruncate(r.fd, SIZE), 0);
	rig_open(&r);
	end(&r);
	for (int i = 0; i < 32; i++)
		fds[i] = dup(STDERR_FILENO);
	pid = fork();
	if (!pid) {
		for (int i = 0; i < 32; i++)
			closed += fcntl(fds[i], F_GETFD) < 0;
		_exit(closed);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	for (int i = 0; i < 32; i++)
		close(fds[i]);
}

/* The leaseholder: forks, and is killed with its leases. Its child goes on for as long as `life` is
 * open. */
static void hold_and_die(int memfd, int ready, int life)
{
	struct rig r = {.fd = memfd};
	char byte;

	setenv("CMOCKA_TEST_ABORT", "1", 1);
	rig_open(&r);
	if (fork() > 0) {
		for (;;)
			pause();
	}
	io_uring_queue_exit(&r.ring);
	munmap(r.mem, SIZE);
	close(memfd);
	if (write(ready, "r", 1) == 1)
		while (read(life, &byte, 1) < 0 && errno == EINTR)
			;
	_exit(0);
}

/* The kernel seals a memfd against writes only when nobody has its pages pinned. */
static bool sealed_in_time(int memfd)
{
	struct timespec pause = {0, 50000000};

	for (int i = 0; i < 400; i++) {
		if (!fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE))
			return true;
		assert_int_equal(errno, EBUSY);
		nanosleep(&pause, NULL);
	}
	return false;
}

static void a_child_keeps_no_pins_when_its_parent_is_gone(void **state)
{
	int memfd = memfd_create("fork", MFD_CLOEXEC | MFD_ALLOW_SEALING), ready[2], life[2];
	bool sealed;
	pid_t pid;
	char byte;

	assert_int_equal(ftruncate(memfd, SIZE), 0);
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	assert_int_equal(pipe2(life, O_CLOEXEC), 0);
	pid = fork();
	if (!pid) {
		close(life[1]);
		hold_and_die(memfd, ready[1], life[0]);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE), -1); /* still leased */
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	sealed = sealed_in_time(memfd);
	close(life[1]);
	assert_int_equal(read(ready[0], &byte, 1), 0); /* the child is gone, too */
	close(ready[0]);
	close(life[0]);
	close(memfd);
	assert_true(sealed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_child_has_no_descriptor_of_the_librarys_rings_and_userfaultfds),
		cmocka_unit_test(a_child_keeps_descriptors_that_have_got_the_librarys_old_numbers),
		cmocka_unit_test(a_child_keeps_no_pins_when_its_parent_is_gone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
