/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The userfaultfd source where it isn't alone, isn't allowed, or is inherited. */
#include "uffd_rig.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "os/compat.h"

/* ------------------------------------------------------------------------------- another owner -- */

static int other_owner(const struct rig *r)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.range = {(uintptr_t)r->va, SIZE},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	assert_true(fd >= 0);
	assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
	assert_int_equal(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	return fd;
}

static void memory_of_another_owner_is_busy(void **state)
{
	struct kind kind = *ANON;
	struct rig r;
	int fd;

	rig_open(&r, &kind, NULL);
	fd = other_owner(&r);
	assert_int_equal(rig_lease(&r, PINL_RECALL, 20), -EBUSY);
	assert_non_null(strstr(pinl_error(), "another userfaultfd"));
	kind.lease_flags |= PINL_COOPERATIVE;
	assert_ok(rig_lease(&r, PINL_RECALL, 20));
	pinl_unmap_range(r.lease);
	close(fd);
	kind.lease_flags &= ~PINL_COOPERATIVE;
	assert_ok(rig_lease(&r, PINL_RECALL, 20));
	rig_close(&r);
}

static void a_read_only_shared_file_is_explained(void **state)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL};
	struct rig r;
	char path[64], *va;
	int fd;

	rig_open(&r, MEMFD, NULL);
	snprintf(path, sizeof path, "/proc/self/fd/%d", r.fd);
	fd = open(path, O_RDONLY);
	va = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	assert_true(va != MAP_FAILED);
	assert_int_equal(pinl_map_range(r.dev, (uintptr_t)va, (uintptr_t)va + SIZE, PINL_PIN, &policy,
					NULL, &r.lease),
			 -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "O_RDWR"));
	munmap(va, SIZE);
	close(fd);
	r.lease = NULL;
	rig_close(&r);
}

/* ------------------------------------------------------------------------------------- seccomp -- */

/* In a child of its own: 0 if `fn` returns 0. */
static int in_child(int (*fn)(void *arg), void *arg)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		alarm(HANG_S);
		_exit(fn(arg));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static int forbid_userfaultfd(int err)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = sizeof code / sizeof *code, .filter = code};

	return setgid(65534) || setuid(65534) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

struct without {
	int err;
	const char *says;
};

/* The context opens without the source, says why, and a lease that counts on it is refused. */
static int without_userfaultfd(void *arg)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .grace_ms = 10};
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .sources = PINL_SOURCE_UFFD};
	struct without *w = arg;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_ctx *ctx;
	char text[2048];
	void *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t start = (uintptr_t)va;

	if (forbid_userfaultfd(w->err))
		return 2;
	if (pinl_open(&opts, &ctx))
		return 3;
	pinl_sources(ctx, text, sizeof text);
	if (!strstr(text, "uffd: missing") || !strstr(text, w->says)) {
		fprintf(stderr, "# %s\n", text);
		return 4;
	}
	if (pinl_device_open(ctx, "soft", NULL, &dev))
		return 5;
	if (pinl_map_range(dev, start, start + SIZE, PINNED, &policy, NULL, &lease) != -EOPNOTSUPP)
		return 6;
	if (!strstr(pinl_error(), "pinl_sources"))
		return 7;
	policy.kind = PINL_KEEP;
	if (pinl_map_range(dev, start, start + SIZE, PINNED, &policy, NULL, &lease))
		return 8;
	pinl_unmap_range(lease);
	pinl_close(ctx);
	return 0;
}

static void a_seccomp_filter_is_explained(void **state)
{
	struct without eperm = {EPERM, "seccomp"}, enosys = {ENOSYS, "seccomp"};

	assert_int_equal(in_child(without_userfaultfd, &eperm), 0);
	assert_int_equal(in_child(without_userfaultfd, &enosys), 0);
}

/* Privileges are not needed: UFFD_USER_MODE_ONLY serves as well, events have nothing to do with faults.
 */
static int unprivileged(void *arg)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .sources = PINL_SOURCE_UFFD};
	struct pinl_ctx *ctx;
	char text[2048];

	if (setgid(65534) || setuid(65534) || pinl_open(&opts, &ctx))
		return 2;
	pinl_sources(ctx, text, sizeof text);
	pinl_close(ctx);
	return strstr(text, "uffd: running") ? 0 : strstr(text, "uffd: missing: this kernel") ? 77 : 3;
}

static void privileges_are_not_needed(void **state)
{
	int status = in_child(unprivileged, NULL);

	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		print_message("skip: userfaultfd WP_ASYNC (Linux 6.7)\n");
		skip();
	}
	assert_int_equal(status, 0);
}

/* However few descriptors there are: an error that says so, or a context that works. */
static int few_descriptors(void *arg)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .sources = PINL_SOURCE_UFFD};
	struct pinl_ctx *ctx;
	int opened = 0;

	for (int n = 3; n < 40; n++) {
		struct rlimit limit = {n, 64};
		int err;

		if (setrlimit(RLIMIT_NOFILE, &limit))
			return 2;
		err = pinl_open(&opts, &ctx);
		if (!err) {
			pinl_close(ctx);
			opened++;
		} else if (err != -EMFILE || !strstr(pinl_error(), "ulimit -n")) {
			fprintf(stderr, "# %d descriptors: %d %s\n", n, err, pinl_error());
			return 3;
		}
	}
	return opened ? 0 : 4;
}

static void few_descriptors_are_explained(void **state)
{
	assert_int_equal(in_child(few_descriptors, NULL), 0);
}

/* ---------------------------------------------------------------------------------------- fork -- */

/* A child made while an actor is held: the recall ends as ever, and the child has no lease. */
static void fork_in_the_middle_of_a_recall(void **state)
{
	atomic_int quiesced = 0;
	struct actor a;
	struct rig r;
	int status;
	pid_t pid;

	rig_open(&r, ANON, NULL);
	assert_ok(rig_lease(&r, PINL_RECALL, LONG));
	actor_start(&a, PINL_OP_UNMAP, r.va, SIZE, &quiesced);
	await(&r, PINL_EV_NOTICE);
	pid = fork();
	if (!pid)
		_exit(pinl_lease_check(r.lease) != -ESTALE);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_false(a.done);
	quiesced = 1;
	assert_ok(pinl_quiesced(r.lease));
	actor_join(&a);
	assert_true(a.was_allowed);
	rig_close(&r);
}

/* The child outlives the context; nobody in the parent may wait for a reader that is gone. */
static void a_child_keeps_nothing_registered(void **state)
{
	struct rig r;
	int fds[2];
	char c;
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	rig_open(&r, ANON, NULL);
	assert_ok(rig_lease(&r, PINL_RECALL, 20));
	pid = fork();
	if (!pid) {
		close(fds[1]);
		_exit(read(fds[0], &c, 1) != 0);
	}
	rig_close(&r); /* unmaps r.va last */
	alarm(HANG_S);
	close(fds[1]);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	close(fds[0]);
	alarm(0);
}

/* The context is closed while an actor is held: he goes on. */
static void close_lets_the_held_go(void **state)
{
	struct actor a;
	struct rig r;

	rig_open(&r, ANON, NULL);
	assert_ok(rig_lease(&r, PINL_RECALL, LONG));
	actor_start(&a, PINL_OP_DONTNEED, r.va, SIZE, NULL);
	await(&r, PINL_EV_NOTICE);
	pinl_device_close(r.dev);
	pinl_close(r.ctx);
	actor_join(&a); /* the memory stays until he is through */
	munmap(r.va, SIZE);
	alarm(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(memory_of_another_owner_is_busy),
		cmocka_unit_test(a_read_only_shared_file_is_explained),
		cmocka_unit_test(a_seccomp_filter_is_explained),
		cmocka_unit_test(privileges_are_not_needed),
		cmocka_unit_test(few_descriptors_are_explained),
		cmocka_unit_test(fork_in_the_middle_of_a_recall),
		cmocka_unit_test(a_child_keeps_nothing_registered),
		cmocka_unit_test(close_lets_the_held_go),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
