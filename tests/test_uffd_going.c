/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Discards that were told of and may be still to come: for how long, and who keeps them so. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "source/uffd_going.h"

#define PAGE  4096ul
#define PAGES 16

/* A thread in the middle of a discard, until its event is read. */
struct discarder {
	char *at;
	int fd;
	atomic_int tid;
	pthread_t thread;
};

static void *discard(void *arg)
{
	struct discarder *d = arg;

	d->tid = gettid();
	madvise(d->at, PAGES * PAGE, MADV_DONTNEED);
	return NULL;
}

static bool is_in_madvise(int tid)
{
	char path[64];
	long nr = -1;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
	f = fopen(path, "re");
	if (f && fscanf(f, "%ld", &nr) != 1)
		nr = -1;
	if (f)
		fclose(f);
	return nr == SYS_madvise;
}

static void begin(struct discarder *d)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
	struct uffdio_register reg = {.range.len = PAGES * PAGE, .mode = UFFDIO_REGISTER_MODE_MISSING};

	*d = (struct discarder){.fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY)};
	d->at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	reg.range.start = (uintptr_t)d->at;
	if (d->fd < 0 || ioctl(d->fd, UFFDIO_API, &api) || ioctl(d->fd, UFFDIO_REGISTER, &reg)) {
		print_message("skip: userfaultfd\n");
		skip();
	}
	assert_int_equal(pthread_create(&d->thread, NULL, discard, d), 0);
	while (!d->tid || !is_in_madvise(d->tid))
		sched_yield();
}

static void end(struct discarder *d)
{
	struct uffd_msg msg;

	assert_int_equal(read(d->fd, &msg, sizeof msg), sizeof msg);
	assert_int_equal(pthread_join(d->thread, NULL), 0);
	close(d->fd);
	munmap(d->at, PAGES * PAGE);
}

static double processor_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* The one who looks runs, so it could be its caller until it has run for a while. */
static bool goes_on(struct pl_uffd_going *g, char *at, double seconds)
{
	double until = processor_time() + seconds;

	while (pl_uffd_going(g, (uintptr_t)at, (uintptr_t)at + PAGE, true))
		if (processor_time() > until)
			return true;
	return false;
}

static void a_discard_is_to_come_until_its_caller_is_through(void **state)
{
	struct pl_uffd_going *g = pl_uffd_going_new();
	struct discarder d;

	begin(&d);
	pl_uffd_going_add(g, (uintptr_t)d.at + PAGE, (uintptr_t)d.at + 2 * PAGE);
	assert_true(goes_on(g, d.at + PAGE, 0.005));
	assert_false(goes_on(g, d.at, 0));
	end(&d);
	assert_false(goes_on(g, d.at + PAGE, 0.5));
	pl_uffd_going_free(g);
}

static void who_discards_elsewhere_is_not_its_caller(void **state)
{
	struct pl_uffd_going *g = pl_uffd_going_new();
	struct discarder d;

	begin(&d);
	pl_uffd_going_add(g, (uintptr_t)d.at - PAGE, (uintptr_t)d.at);
	assert_false(goes_on(g, d.at - PAGE, 0.5));
	end(&d);
	pl_uffd_going_free(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_discard_is_to_come_until_its_caller_is_through),
		cmocka_unit_test(who_discards_elsewhere_is_not_its_caller),
	};

	return cmocka_run_group_tests_name("uffd_going", tests, NULL, NULL);
}
