/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the application does to a range in the middle of a forced COPY: overmap, move, unmap, fork.
 * Nobody hangs, and every page that is still there has its content. The device is the test's own, so
 * that the switch can be stopped in the middle: its content is a pattern by page.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/userfaultfd.h>
#include <pinlease/device.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "room.h"

#define PAGE  4096ul
#define PAGES 256
#define SIZE  (PAGES * PAGE)
#define FLAGS (PINL_WRITE | PINL_PIN | PINL_COOPERATIVE)

static struct {
	sem_t entered, go; /* around the first part that is filled */
	int stopped;
} device;

static int dev_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN | PINL_DEVCAP_READ | PINL_DEVCAP_RETARGET;
	*dev = &device;
	return 0;
}

static int dev_nothing(void *dev, struct pinl_mapping *m)
{
	return 0;
}

static int dev_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	return 0;
}

static int dev_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	return 0;
}

static int dev_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf)
{
	if (!device.stopped && len > PAGE) { /* the first part of the filling */
		device.stopped = 1;
		sem_post(&device.entered);
		while (sem_wait(&device.go))
			;
	}
	for (size_t i = 0; i < len; i++)
		((char *)buf)[i] = 1 + (offset + i) / PAGE % 100;
	return 0;
}

static const struct pinl_device_ops dev_ops = {
	.size = sizeof dev_ops,
	.name = "stoppable",
	.open = dev_open,
	.map = dev_map,
	.stop = dev_nothing,
	.drain = dev_drain,
	.read = dev_read,
	.retarget = dev_nothing,
};

struct rig {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	char *mem;
	int fd;
	pthread_t actor;
};

static void *truncate_it(void *arg)
{
	struct rig *r = arg;

	return (void *)(intptr_t)pinl_ftruncate(r->ctx, r->fd, 0);
}

/* Returns in the middle of the switch: the range is private memory, no page of it is filled. */
static void begin(struct rig *r)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_COPY};

	memset(r, 0, sizeof *r);
	sem_init(&device.entered, 0, 0);
	sem_init(&device.go, 0, 0);
	device.stopped = 0;
	r->fd = memfd_create("switched", 0);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	r->mem = map_alone(SIZE, MAP_SHARED, r->fd);
	assert_int_equal(pinl_open(&opts, &r->ctx), 0);
	assert_int_equal(pinl_device_open_ops(r->ctx, &dev_ops, NULL, &r->dev), 0);
	assert_int_equal(pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + SIZE, FLAGS,
					&policy, NULL, &r->lease),
			 0);
	assert_int_equal(pthread_create(&r->actor, NULL, truncate_it, r), 0);
	sem_wait(&device.entered);
}

static void end(struct rig *r)
{
	sem_post(&device.go);
	pthread_join(r->actor, NULL);
}

static void close_rig(struct rig *r)
{
	pinl_unmap_range(r->lease);
	pinl_close(r->ctx);
	munmap(r->mem, SIZE);
	close(r->fd);
}

static void assert_content(const char *at, size_t first, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		assert_int_equal(at[i * PAGE], 1 + (first + i) % 100);
}

static void a_part_that_another_userfaultfd_took_hangs_nobody(void **state)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_WP};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	struct rig r;
	char *part;

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api)) {
		print_message("skip: userfaultfd\n");
		skip();
	}
	begin(&r);
	part = r.mem + 8 * PAGE;
	assert_ptr_equal(mmap(part, 8 * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 part);
	reg.range = (struct uffdio_range){(uintptr_t)part, 8 * PAGE};
	assert_int_equal(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	end(&r);
	assert_content(r.mem, 0, 8);
	assert_content(r.mem + 16 * PAGE, 16, PAGES - 16);
	close_rig(&r);
	close(fd);
}

static void a_part_that_is_moved_away_keeps_its_content(void **state)
{
	struct rig r;
	char *away;

	begin(&r);
	away = mremap(r.mem + 4 * PAGE, 8 * PAGE, 16 * PAGE, MREMAP_MAYMOVE);
	assert_ptr_not_equal(away, MAP_FAILED);
	away = mremap(away, 6 * PAGE, 32 * PAGE, MREMAP_MAYMOVE); /* a part of it again */
	assert_ptr_not_equal(away, MAP_FAILED);
	end(&r);
	assert_content(r.mem, 0, 4);
	assert_content(away, 4, 6);
	assert_content(r.mem + 12 * PAGE, 12, PAGES - 12);
	munmap(away, 32 * PAGE);
	close_rig(&r);
}

static void a_part_that_is_unmapped_is_nobodys(void **state)
{
	struct rig r;

	begin(&r);
	assert_int_equal(munmap(r.mem + 4 * PAGE, PAGE), 0);
	end(&r);
	assert_content(r.mem, 0, 4);
	assert_content(r.mem + 5 * PAGE, 5, PAGES - 5);
	close_rig(&r);
}

struct waiter {
	pthread_t thread;
	_Atomic pid_t tid;
	char *at;
	ssize_t got;
};

static void *look(void *arg)
{
	struct waiter *w = arg;
	char byte;
	struct iovec to = {&byte, 1}, from = {w->at, 1};

	w->tid = gettid();
	w->got = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
	return NULL;
}

static int sleeps(pid_t tid)
{
	char path[64], line[128], state = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		sscanf(line, "State: %c", &state);
	if (f)
		fclose(f);
	return state == 'S' || state == 'D';
}

/* Where only faults of user mode wait, a system call gets an error instead. */
static bool system_calls_wait(void)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void wait_at(struct waiter *w, char *at)
{
	*w = (struct waiter){.at = at};
	assert_int_equal(pthread_create(&w->thread, NULL, look, w), 0);
	while (!w->tid || !sleeps(w->tid))
		usleep(1000);
}

/* Whoever waits for a page when that is unmapped, mapped over or moved: the kernel would leave him
 * there. */
static void who_waits_for_a_page_that_goes_comes_back(void **state)
{
	struct waiter w[3];
	struct rig r;
	char *away;

	if (!system_calls_wait()) {
		print_message("skip: userfaultfd for the faults of system calls (CAP_SYS_PTRACE)\n");
		skip();
	}
	alarm(120);
	begin(&r);
	for (int i = 0; i < 3; i++)
		wait_at(&w[i], r.mem + (4 + i) * PAGE);
	assert_int_equal(munmap(w[0].at, PAGE), 0);
	assert_ptr_equal(mmap(w[1].at, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 w[1].at);
	away = mremap(w[2].at, PAGE, 2 * PAGE, MREMAP_MAYMOVE);
	assert_ptr_not_equal(away, MAP_FAILED);
	end(&r);
	for (int i = 0; i < 3; i++) {
		pthread_join(w[i].thread, NULL);
		assert_int_equal(w[i].got, i == 1 ? 1 : -1);
	}
	assert_content(away, 6, 1);
	munmap(away, 2 * PAGE);
	close_rig(&r);
	alarm(0);
}

static void *let_it_go_on(void *arg)
{
	sem_post(&device.go);
	return NULL;
}

static void a_child_forked_meanwhile_has_the_content(void **state)
{
	pthread_t thread;
	struct rig r;
	int status;
	pid_t pid;

	begin(&r);
	assert_int_equal(pthread_create(&thread, NULL, let_it_go_on, NULL), 0);
	pid = fork();
	if (!pid) {
		for (size_t i = 0; i < PAGES; i++)
			if (r.mem[i * PAGE] != (char)(1 + i % 100))
				_exit(1);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	pthread_join(thread, NULL);
	pthread_join(r.actor, NULL);
	close_rig(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_part_that_another_userfaultfd_took_hangs_nobody),
		cmocka_unit_test(a_part_that_is_moved_away_keeps_its_content),
		cmocka_unit_test(a_part_that_is_unmapped_is_nobodys),
		cmocka_unit_test(who_waits_for_a_page_that_goes_comes_back),
		cmocka_unit_test(a_child_forked_meanwhile_has_the_content),
	};

	return cmocka_run_group_tests_name("switch", tests, NULL, NULL);
}
