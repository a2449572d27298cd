/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A truncation that makes its file longer when it is looked at, and shorter when it happens, as the file
 * has become longer meanwhile, with leases on what is new. What keeps it from happening is what a virus
 * scanner may do: other fanotify groups, of which the last to be asked gives no answer for a while.
 * Which group is asked when is the kernel's choice, so there are several.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter_rig.h"

#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif

#define GROUPS 12
#define BEFORE 2 /* pages of the file */
#define AFTER  4 /* as the actor makes it */

static struct arbiter a;
static struct pollfd group[GROUPS];
static atomic_int actor, asked, go, orphans, released;
static atomic_bool over;

static void on_event(const struct pinl_event *ev, void *arg)
{
	if (ev->type == PINL_EV_ORPHAN)
		atomic_fetch_add(&orphans, 1);
	if (ev->type == PINL_EV_RELEASED)
		atomic_fetch_add(&released, 1);
}

static void answer(int fd, int event)
{
	struct fanotify_response r = {.fd = event, .response = FAN_ALLOW};

	while (event >= 0 && write(fd, &r, sizeof r) < 0 && errno == EINTR)
		;
	close(event);
}

/* The actor's last one is answered when the test says so. */
static void *answers(void *arg)
{
	struct fanotify_event_metadata m[16], *at;
	int held = -1, by = -1;

	while (!over) {
		if (go && held >= 0) {
			answer(by, held);
			held = -1;
		}
		poll(group, GROUPS, 1);
		for (int i = 0; i < GROUPS; i++) {
			long n = group[i].revents ? read(group[i].fd, m, sizeof m) : 0;

			for (at = m; FAN_EVENT_OK(at, n); at = FAN_EVENT_NEXT(at, n))
				if (at->pid == actor && atomic_fetch_add(&asked, 1) == GROUPS - 1) {
					held = at->fd;
					by = group[i].fd;
				} else {
					answer(group[i].fd, at->fd);
				}
		}
	}
	return NULL;
}

static void watch_beside(pthread_t *thread)
{
	for (int i = 0; i < GROUPS; i++) {
		group[i].fd = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK,
					    O_RDONLY | O_CLOEXEC);
		group[i].events = POLLIN;
		assert_return_code(group[i].fd, errno);
		assert_int_equal(
			fanotify_mark(group[i].fd, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, a.file), 0);
	}
	assert_int_equal(pthread_create(thread, NULL, answers, NULL), 0);
}

static void watch_no_more(pthread_t thread)
{
	over = true;
	pthread_join(thread, NULL);
	for (int i = 0; i < GROUPS; i++)
		close(group[i].fd);
}

static pid_t cutter_start(void)
{
	int gate[2];
	pid_t pid;
	char byte;

	assert_int_equal(pipe2(gate, O_CLOEXEC), 0);
	pid = fork();
	assert_return_code(pid, errno);
	if (!pid)
		_exit(read(gate[0], &byte, 1) != 1 || truncate(a.file, AFTER * PG));
	actor = pid;
	assert_int_equal(write(gate[1], "g", 1), 1);
	close(gate[0]);
	close(gate[1]);
	return pid;
}

static int lease(struct pinl_device *dev, uintptr_t va, struct pinl_lease **l)
{
	struct pinl_policy policy = {
		.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_FAIL, .grace_ms = 20};

	return pinl_map_range(dev, va, va + PG, PINL_WRITE | PINL_PIN, &policy, NULL, l);
}

static void what_is_new_is_not_lost(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .on_event = on_event, .summary_fd = -1};
	struct pinl_lease *first, *late = NULL;
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	pthread_t thread;
	int fd, status, err;
	pid_t pid;
	char *va;

	skip_unless_changes_are_held();
	arbiter_start(&a, NULL);
	fd = open(a.file, O_RDWR | O_CLOEXEC);
	assert_int_equal(ftruncate(fd, BEFORE * PG), 0);
	va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_int_equal(pinl_open(&opts, &ctx), 0);
	assert_true(is_connected(ctx));
	assert_int_equal(pinl_device_open(ctx, "soft", NULL, &dev), 0);
	assert_int_equal(lease(dev, (uintptr_t)va, &first), 0); /* so its changes are seen */
	watch_beside(&thread);
	pid = cutter_start();
	while (asked < GROUPS)
		usleep(1000);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	err = lease(dev, (uintptr_t)va + AFTER * PG, &late);
	go = true;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(arbiter_file_size(&a), AFTER * PG);
	watch_no_more(thread);
	pinl_close(ctx); /* all has been told then */
	assert_int_equal(orphans, 0);
	if (err)
		assert_int_equal(err, -EBUSY); /* pinleased knows that it is about to be cut */
	else
		assert_true(released); /* it was asked after the lease */
	close(fd);
	arbiter_stop(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_new_is_not_lost)};

	alarm(HANG_S);
	return cmocka_run_group_tests_name("growing", tests, NULL, NULL);
}
