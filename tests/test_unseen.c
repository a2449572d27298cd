/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Tasks that fanotify has stopped, and that aren't asleep yet, as on a busy machine: the kernel says
 * "running" of them, and not what they are about to do. Here it says so for as long as the test likes,
 * by a file mounted over /proc/PID/syscall where pinleased looks.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "arbiter_rig.h"

#define PATIENCE_S 5 /* pinleased's */

static struct arbiter a;
static const char *const patient[] = {"--ceiling", "100000", NULL};

struct task {
	pid_t pid;
};

static void act(bool cuts)
{
	int err = cuts ? truncate(a.file, 0) : open(a.file, O_RDONLY | O_CLOEXEC);

	_exit(err < 0 ? errno : 0);
}

static void over(const struct task *t, void (*todo)(const char *path))
{
	char path[2][64];

	snprintf(path[0], sizeof path[0], "/proc/%d/syscall", t->pid);
	snprintf(path[1], sizeof path[1], "/proc/%d/task/%d/syscall", t->pid, t->pid);
	todo(path[0]);
	todo(path[1]);
}

static void hide(const char *path)
{
	char running[96];

	snprintf(running, sizeof running, "%s/running", a.dir);
	assert_int_equal(mount(running, path, NULL, MS_BIND, NULL), 0);
}

static void show(const char *path)
{
	assert_int_equal(umount2(path, MNT_DETACH), 0);
}

/* pinleased has met it, as it answers in order, and this read of the file is behind it. */
static void is_met(void)
{
	int fd = open(a.file, O_RDONLY | O_CLOEXEC);

	assert_return_code(fd, errno);
	close(fd);
}

static void task_start(struct task *t, bool cuts)
{
	int go[2];
	char byte;

	assert_int_equal(pipe2(go, O_CLOEXEC), 0);
	t->pid = fork();
	assert_return_code(t->pid, errno);
	if (!t->pid) {
		if (read(go[0], &byte, 1) == 1)
			act(cuts);
		_exit(255);
	}
	over(t, hide);
	assert_int_equal(write(go[1], "g", 1), 1);
	close(go[0]);
	close(go[1]);
	wait_until_held(t->pid);
}

static int task_join(const struct task *t)
{
	int status;

	assert_int_equal(waitpid(t->pid, &status, 0), t->pid);
	assert_true(WIFEXITED(status));
	return -WEXITSTATUS(status);
}

static void start(struct holder *h)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	char running[96];
	FILE *file;

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
		print_message("# skip: a mount namespace of the test's own (root)\n");
		skip();
	}
	a.kept = true;
	arbiter_start(&a, patient);
	snprintf(running, sizeof running, "%s/running", a.dir);
	file = fopen(running, "we");
	assert_non_null(file);
	fputs("running\n", file);
	fclose(file);
	holder_lease(h, &a, &what);
}

static void end(struct holder *h)
{
	char running[96];

	holder_end(h);
	snprintf(running, sizeof running, "%s/running", a.dir);
	unlink(running);
	arbiter_stop(&a);
}

/* False: it has been taken for a change, as it was not to be seen for as long as pinleased waits. */
static bool recalls_nothing(void)
{
	time_t began = time(NULL);
	struct holder h;
	struct task t;
	bool nothing;

	start(&h);
	task_start(&t, false);
	is_met();
	over(&t, show);
	if (time(NULL) - began >= PATIENCE_S)
		h.s->quiesce = 1;
	assert_int_equal(task_join(&t), 0);
	nothing = !h.s->events[PINL_EV_NOTICE];
	assert_true(nothing || h.s->quiesce);
	end(&h);
	return nothing;
}

static void a_reader_recalls_nothing(void **state)
{
	while (!recalls_nothing()) /* on a busy machine */
		;
}

static void who_is_never_seen_is_held(void **state)
{
	struct holder h;
	struct task t;

	start(&h);
	task_start(&t, true);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	assert_int_equal(arbiter_file_size(&a), SIZE);
	h.s->quiesce = 1;
	assert_int_equal(task_join(&t), 0);
	end(&h);
}

static void a_restart_lets_nobody_go(void **state)
{
	struct holder h;
	struct task t;

	start(&h);
	task_start(&t, true);
	is_met();
	arbiter_kill(&a);
	arbiter_restart(&a, patient);
	over(&t, show);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	assert_int_equal(arbiter_file_size(&a), SIZE);
	h.s->quiesce = 1;
	assert_int_equal(task_join(&t), 0);
	assert_int_equal(arbiter_file_size(&a), 0);
	end(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_reader_recalls_nothing),
		cmocka_unit_test(who_is_never_seen_is_held),
		cmocka_unit_test(a_restart_lets_nobody_go),
	};

	alarm(HANG_S);
	return cmocka_run_group_tests_name("unseen", tests, NULL, NULL);
}
