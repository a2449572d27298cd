/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A device's address space, emptied from outside: what is said to be gone is, whatever numbers the
 * holder has named. tests/test_vfio_force.c has pinleased, and transfers that are under way.
 */
#include "vfio_modes.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "../daemon/outside.h"
#include "check.h"
#include "os/clock.h"

#define PAGE	4096ul
#define SIZE	(4 * PAGE)
#define AT	EDU_IOVA_FIRST
#define SECONDS 1000000000ull

struct holder {
	pid_t pid;
	int pidfd, fd;
	uint32_t ioas;
	int ask[2], told[2]; /* pipes */
};

static uint64_t soon(void)
{
	return pl_clock_ns() + 20 * SECONDS;
}

/* Does the device reach the memory? */
static bool reaches(struct edu *e, char *va)
{
	char data[64];
	struct edu_part part = {AT, data, sizeof data};

	memset(data, 'w', sizeof data);
	memset(va, 0, SIZE);
	edu_write(e, &part, 1);
	return va[0] == 'w';
}

static void __attribute__((noreturn)) hold(const struct mode *mode, struct holder *h)
{
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), byte;
	struct edu e;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	edu_open(&e, mode->space);
	if (edu_map(&e, va, AT, SIZE) || write(h->told[1], &e.fd, sizeof e.fd) < 0 ||
	    write(h->told[1], &e.ioas, sizeof e.ioas) < 0)
		_exit(1);
	while (read(h->ask[0], &byte, 1) == 1) {
		byte = reaches(&e, va);
		if (write(h->told[1], &byte, 1) != 1)
			break;
	}
	_exit(0);
}

static void start(struct holder *h, const struct mode *mode)
{
	assert_int_equal(pipe2(h->ask, O_CLOEXEC), 0);
	assert_int_equal(pipe2(h->told, O_CLOEXEC), 0);
	h->pid = fork();
	if (!h->pid) {
		close(h->ask[1]);
		hold(mode, h);
	}
	h->pidfd = syscall(SYS_pidfd_open, h->pid, 0);
	assert_int_equal(read(h->told[0], &h->fd, sizeof h->fd), sizeof h->fd);
	assert_int_equal(read(h->told[0], &h->ioas, sizeof h->ioas), sizeof h->ioas);
}

static void end(struct holder *h)
{
	int status;

	close(h->ask[1]);
	assert_int_equal(waitpid(h->pid, &status, 0), h->pid);
	assert_int_equal(status, 0);
	close(h->ask[0]);
	close(h->told[0]);
	close(h->told[1]);
	close(h->pidfd);
}

static bool is_reached(struct holder *h)
{
	char byte = 0;

	assert_int_equal(write(h->ask[1], "", 1), 1);
	assert_int_equal(read(h->told[0], &byte, 1), 1);
	return byte;
}

static const struct pl_outside_buf wrong[] = {
	{.start = PAGE, .end = PAGE + SIZE, .tag = AT + 1},
	{.start = PAGE, .end = PAGE + SIZE, .tag = AT + PAGE / 2},
	{.start = PAGE, .end = PAGE + SIZE + 1, .tag = AT},
	{.start = PAGE, .end = PAGE, .tag = AT},
	{.start = 2 * PAGE, .end = PAGE, .tag = AT},
	{.start = PAGE, .end = PAGE + SIZE, .tag = -PAGE},
	{.start = PAGE, .end = PAGE + SIZE, .tag = UINT64_MAX},
	{.start = 0, .end = UINTPTR_MAX - PAGE + 1, .tag = AT},
};

static enum pl_outside_kind kind_of(const struct mode *mode)
{
	return mode->space == EDU_TYPE1 ? PL_OUTSIDE_VFIO : PL_OUTSIDE_IOMMUFD;
}

static void impossible_addresses_are_not_empty(void **state)
{
	const struct mode *mode = *state;
	struct pl_outside_buf right = {.start = PAGE, .end = PAGE + SIZE, .tag = AT};
	struct pl_outside *o;
	struct holder h;

	start(&h, mode);
	right.slot = h.ioas;
	assert_ok(pl_outside_open_space(h.pidfd, h.pid, h.fd, kind_of(mode), soon(), &o));
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		struct pl_outside_buf b = wrong[i];

		b.slot = h.ioas;
		assert_int_equal(pl_outside_empty(o, &b, soon()), -EINVAL);
		assert_int_equal(pl_outside_gone(o, &b, 1, soon()), -EINVAL);
	}
	assert_true(is_reached(&h));
	if (pl_outside_empty(o, &right, soon())) { /* Linux 6.1 as of Debian */
		assert_non_null(strstr(pinl_error(), "Linux 6.3"));
		assert_true(is_reached(&h));
	} else {
		assert_false(is_reached(&h));
		assert_ok(pl_outside_empty(o, &right, soon())); /* nothing is there: the same */
	}
	pl_outside_close(o);
	end(&h);
}

/* Without a device: numbers are looked at before anything else. */
static void numbers_alone(void **state)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), pidfd = syscall(SYS_pidfd_open, getpid(), 0);
	struct pl_outside_buf right = {.start = PAGE, .end = PAGE + SIZE, .tag = -SIZE};
	struct pl_outside *o;

	(void)state;
	assert_ok(pl_outside_open_space(pidfd, getpid(), null, PL_OUTSIDE_VFIO, soon(), &o));
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		struct pl_outside_buf b = wrong[i];

		assert_int_equal(pl_outside_numbers(PL_OUTSIDE_RING, &b), 0);
		assert_int_equal(pl_outside_numbers(PL_OUTSIDE_IOMMUFD, &b), -EINVAL);
		assert_non_null(strstr(pinl_error(), "device addresses"));
		assert_int_equal(pl_outside_empty(o, &b, soon()), -EINVAL);
	}
	assert_ok(pl_outside_numbers(PL_OUTSIDE_VFIO, &right)); /* up to the last byte */
	assert_int_equal(pl_outside_empty(o, &right, soon()), -EBADF);
	pl_outside_close(o);
	close(null);
	close(pidfd);
}

/* As this program: nothing could be done with the handle later. */
static void a_build_without_verbs_takes_no_memory_region(void **state)
{
	struct pl_outside_buf b = {.start = PAGE, .end = PAGE + SIZE, .tag = PAGE};

	(void)state;
	assert_int_equal(pl_outside_numbers(PL_OUTSIDE_VERBS, &b), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "without verbs"));
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest all[] = {
		{"impossible_addresses_are_not_empty", impossible_addresses_are_not_empty, NULL, NULL,
		 NULL},
	};
	static const struct CMUnitTest here[] = {
		cmocka_unit_test(numbers_alone),
		cmocka_unit_test(a_build_without_verbs_takes_no_memory_region),
	};
	int bad = cmocka_run_group_tests_name("outside_space", here, NULL, NULL);

	return modes_run("outside_space", all, 1, argc, argv) + bad;
}
