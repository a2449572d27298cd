/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A part of a test in a process of its own, because what goes wrong in it hangs. After cmocka.h. */
#ifndef CHILD_H
#define CHILD_H

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_SKIPPED 77
#define CHILD_MS      120000 /* nothing takes as long, however busy the machine is */

/* Its assertions end it. Skips the test when it exits with CHILD_SKIPPED. */
static inline void in_time(void (*fn)(const void *arg), const void *arg)
{
	struct pollfd p = {.events = POLLIN};
	pid_t pid = fork();
	int status, ready;

	if (!pid) {
		setenv("CMOCKA_TEST_ABORT", "1", 1);
		fn(arg);
		_exit(0);
	}
	assert_true(pid > 0);
	p.fd = syscall(SYS_pidfd_open, pid, 0);
	assert_true(p.fd >= 0);
	do
		ready = poll(&p, 1, CHILD_MS);
	while (ready < 0 && errno == EINTR);
	if (ready != 1)
		kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(p.fd);
	if (ready != 1)
		fail_msg("hangs");
	if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_SKIPPED)
		skip();
	assert_int_equal(status, 0);
}

#endif
