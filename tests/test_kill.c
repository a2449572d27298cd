/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * R10: KILL, where nothing else takes the memory back. The change goes on when the pins are gone, which
 * they aren't while somebody has inherited them; and nobody else than the program that asked for it is
 * killed.
 */
#include <fcntl.h>
#include <pinlease/device.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter_rig.h"

#define SINGLE_ISSUER (1u << 12)

static struct arbiter a;
static const char *lent = a.file;

static const struct pinl_policy kill_policy = {
	.size = sizeof kill_policy, .kind = PINL_RECALL, .then = PINL_THEN_KILL, .grace_ms = 50};

/* ------------------------------------------------ a device that only its own thread commands -- */

static struct io_uring ring;

static int own_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE; /* it says */
	info->caps = PINL_DEVCAP_PIN;
	*dev = &ring;
	return 0;
}

static int own_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	struct iovec iov = {(void *)m->start, m->end - m->start};
	__u64 tag = 7;

	return io_uring_register_buffers_update_tag(dev, 0, &iov, &tag, 1) == 1 ? 0 : -EIO;
}

static void own_handle(void *dev, const struct pinl_mapping *m, struct pinl_handle *h)
{
	*h = (struct pinl_handle){PINL_HANDLE_URING, ring.ring_fd, 0, 7};
}

/* Its drain takes longer than anybody waits: the device is on the memory still. */
static int own_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	return -ETIMEDOUT;
}

static const struct pinl_device_ops own_ops = {.size = sizeof own_ops,
					       .name = "own",
					       .open = own_open,
					       .map = own_map,
					       .drain = own_drain,
					       .handle = own_handle};

/* ---------------------------------------------------------------------------------------- the rig -- */

enum { HEIR = 1, EXECS = 2 };

struct victim {
	pid_t pid;
	struct said {
		atomic_int leased, go;
		_Atomic pid_t heir;
		char error[256];
	} * s;
};

static void fork_heir(struct said *s)
{
	if (fork()) {
		while (!s->heir)
			usleep(1000);
		return;
	}
	prctl(PR_SET_NAME, "the-heir");
	alarm(HANG_S);
	s->heir = getpid();
	for (;;)
		pause();
}

static void __attribute__((noreturn)) lend(struct said *s, const struct pinl_device_ops *ops, int how)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	int fd = open(lent, O_RDWR | O_CLOEXEC), err;
	struct pinl_device *dev;
	struct pinl_lease *l;
	struct pinl_ctx *ctx;
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, ops ? MAP_PRIVATE : MAP_SHARED, fd, 0);

	err = pinl_open(&opts, &ctx);
	if (!err && ops)
		err = io_uring_queue_init(8, &ring, SINGLE_ISSUER);
	if (!err && ops)
		err = io_uring_register_buffers_sparse(&ring, 1);
	if (!err)
		err = ops ? pinl_device_open_ops(ctx, ops, NULL, &dev)
			  : pinl_device_open(ctx, "soft", NULL, &dev);
	if (!err)
		err = pinl_map_range(dev, (uintptr_t)va, (uintptr_t)va + SIZE,
				     PINL_WRITE | (ops ? PINL_PIN : 0), &kill_policy, NULL, &l);
	snprintf(s->error, sizeof s->error, "%s", pinl_error());
	if (!err && (how & HEIR))
		fork_heir(s);
	s->leased = err ? err : 1;
	while (!err && !s->go)
		usleep(1000);
	if (how & EXECS)
		execl("/bin/sleep", "innocent", "1000", NULL);
	for (;;)
		pause();
}

static void victim_start(struct victim *v, const struct pinl_device_ops *ops, int how)
{
	v->s = mmap(NULL, sizeof *v->s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	v->pid = fork();
	if (!v->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		lend(v->s, ops, how);
	}
	while (!v->s->leased)
		usleep(1000);
}

static void must_be_leased(const struct victim *v)
{
	if (v->s->leased == -EOPNOTSUPP)
		skip_unless_changes_are_held();
	if (v->s->leased != 1)
		fail_msg("%d: %s", v->s->leased, v->s->error);
}

static void stop(const struct victim *v)
{
	int status;

	kill(v->pid, SIGSTOP);
	assert_int_equal(waitpid(v->pid, &status, WUNTRACED), v->pid);
}

static void must_die(const struct victim *v)
{
	int status;

	assert_int_equal(waitpid(v->pid, &status, 0), v->pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

static void victim_free(struct victim *v)
{
	munmap(v->s, sizeof *v->s);
}

static off_t size_of_file(void)
{
	struct stat st;

	assert_int_equal(stat(a.file, &st), 0);
	return st.st_size;
}

/* ------------------------------------------------------------------------------------------ tests -- */

/* No order to its ring comes from outside. */
static void who_cant_be_forced_is_killed(void **state)
{
	struct victim v;
	struct actor t;

	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	victim_start(&v, &own_ops, 0);
	must_be_leased(&v);
	stop(&v);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	assert_int_equal(size_of_file(), 0);
	must_die(&v);
	victim_free(&v);
	arbiter_stop(&a);
}

static void who_shows_no_ring_is_killed(void **state)
{
	struct victim v;
	struct actor t;

	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	victim_start(&v, NULL, 0);
	must_be_leased(&v);
	stop(&v);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	must_die(&v);
	victim_free(&v);
	arbiter_stop(&a);
}

/* It runs and its library does what it can, which isn't enough: that is no release. */
static void a_device_that_isnt_known_to_be_off_is_not_released(void **state)
{
	struct victim v;
	struct actor t;

	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	victim_start(&v, &own_ops, 0);
	must_be_leased(&v);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	must_die(&v);
	victim_free(&v);
	arbiter_stop(&a);
}

static void who_can_be_forced_lives(void **state)
{
	struct lending what = {.policy = kill_policy, .uring = true};
	struct holder h;
	struct actor t;
	int status;

	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	holder_start(&h, &a, &what);
	holder_assert_leased(&h);
	kill(h.pid, SIGSTOP);
	assert_int_equal(waitpid(h.pid, &status, WUNTRACED), h.pid);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	assert_true(holder_pinned_down_to(&h, 0) <= 0);
	kill(h.pid, SIGCONT);
	holder_wait(&h, PINL_EV_RELEASED, 1);
	holder_end(&h);
	arbiter_stop(&a);
}

/* What pinleased says goes to a file, where it is waited for. False: who has the ring couldn't be looked
   at in time, which then is nobody; a busy machine may do that. If others let go of pins just then,
   these are said to be gone. */
static bool heir_is_named(void)
{
	char text[8192];
	ssize_t n;
	int fd;

	for (;;) {
		fd = open("said", O_RDONLY | O_CLOEXEC);
		n = read(fd, text, sizeof text - 1);
		close(fd);
		text[n > 0 ? n : 0] = 0;
		if (strstr(text, "(the-heir)"))
			return true;
		if (strstr(text, "nobody has the ring") || strstr(text, "its pins are gone"))
			return false;
		usleep(1000);
	}
}

/* Who died after the first has been seen to the end, so the first has been looked at. */
static void another_one_dies(void)
{
	char other[128];
	struct victim v;
	int fd;

	snprintf(other, sizeof other, "%s/other", a.dir);
	fd = open(other, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	lent = other;
	victim_start(&v, NULL, 0);
	lent = a.file;
	must_be_leased(&v);
	kill(v.pid, SIGKILL);
	must_die(&v);
	assert_int_equal(ftruncate(fd, 0), 0);
	victim_free(&v);
	close(fd);
	unlink(other);
}

static bool try_an_heir(void)
{
	struct victim v;
	struct actor t;
	bool named;

	victim_start(&v, &own_ops, HEIR);
	must_be_leased(&v);
	stop(&v);
	actor_start(&t, &a);
	must_die(&v);
	named = heir_is_named();
	if (named) {
		another_one_dies();
		assert_true(actor_waits(&t));
		assert_int_equal(size_of_file(), SIZE);
	}
	kill(v.s->heir, SIGKILL);
	assert_int_equal(actor_join(&t), 0);
	victim_free(&v);
	return named;
}

static void an_heir_is_named_and_waited_for(void **state)
{
	char dir[] = "/var/tmp/pinlease-kill-XXXXXX";
	int out = dup(2), said, here = open(".", O_RDONLY | O_CLOEXEC);
	bool named;

	skip_unless_changes_are_held();
	assert_non_null(mkdtemp(dir));
	assert_int_equal(chdir(dir), 0);
	do {
		said = open("said", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
		dup2(said, 2);
		arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
		dup2(out, 2);
		named = try_an_heir();
		arbiter_stop(&a);
		close(said);
	} while (!named);
	unlink("said");
	assert_int_equal(fchdir(here), 0);
	rmdir(dir);
	close(out);
	close(here);
}

/* The program that asked for it isn't there any more. */
static void what_was_executed_since_is_innocent(void **state)
{
	struct victim v;
	struct actor t;
	char path[64], name[32] = "";
	FILE *f;

	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	victim_start(&v, &own_ops, EXECS);
	must_be_leased(&v);
	snprintf(path, sizeof path, "/proc/%d/comm", v.pid);
	v.s->go = 1;
	while (!strstr(name, "sleep")) {
		f = fopen(path, "re");
		assert_non_null(f);
		assert_non_null(fgets(name, sizeof name, f));
		fclose(f);
	}
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	assert_int_equal(waitpid(v.pid, NULL, WNOHANG), 0);
	kill(v.pid, SIGKILL);
	must_die(&v);
	victim_free(&v);
	arbiter_stop(&a);
}

static void without_a_killer_it_is_refused(void **state)
{
	struct victim v;

	skip_unless_changes_are_held();
	arbiter_start(&a, (const char *[]){"--may-kill", "no", NULL});
	victim_start(&v, NULL, 0);
	assert_int_equal(v.s->leased, -EOPNOTSUPP);
	assert_non_null(strstr(v.s->error, "--may-kill=no"));
	kill(v.pid, SIGKILL);
	must_die(&v);
	victim_free(&v);
	setenv("PINLEASE_SOCKET", "/nonexistent", 1);
	victim_start(&v, NULL, 0);
	assert_int_equal(v.s->leased, -EOPNOTSUPP);
	assert_non_null(strstr(v.s->error, "KILL needs pinleased"));
	kill(v.pid, SIGKILL);
	must_die(&v);
	victim_free(&v);
	arbiter_stop(&a);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_cant_be_forced_is_killed),
		cmocka_unit_test(who_shows_no_ring_is_killed),
		cmocka_unit_test(a_device_that_isnt_known_to_be_off_is_not_released),
		cmocka_unit_test(who_can_be_forced_lives),
		cmocka_unit_test(an_heir_is_named_and_waited_for),
		cmocka_unit_test(what_was_executed_since_is_innocent),
		cmocka_unit_test(without_a_killer_it_is_refused),
	};

	alarm(HANG_S);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("kill", tests, NULL, NULL);
}
