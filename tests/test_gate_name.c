/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * PINL_KEEP_NAME: while the lease lives nobody takes the file's name, by whatever call. Needs a kernel
 * that lets BPF programs in front of its functions (vm/jobs/gate*.job). argv[1]: pinlease, argv[2]: one
 * test alone.
 */
#include "arbiter_rig.h"

#include <fcntl.h>
#include <glob.h>
#include <pinlease/device.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gate_rig.h"

#define DIRECTORY "/sys/fs/bpf/pinlease-name"
#define NOBODY	  65534

static const char *const for_long[] = {"--gate", DIRECTORY, "--gate-keeps", "3600000", NULL};
static const char *const for_short[] = {"--gate", DIRECTORY, "--gate-keeps", "10000", NULL};
/* Who comes back has twenty seconds. */
static const char *const for_a_while[] = {"--gate", DIRECTORY, "--gate-keeps", "240000", NULL};

static struct pinl_ctx *ctx;
static struct pinl_device *dev;
static struct arbiter arbiter;
static const char *pinlease; /* the command */

/* ------------------------------------------------------------------------------------------ files -- */

/* `file` and `link` are names of one file, the one that is leased; `other` is another's. */
struct names {
	char dir[64], file[96], link[96], other[96], free[96];
	size_t page;
	bool mounted;
	int fd;
	char *mem;
};

static struct names *opened[2];

static void make_other(const struct names *n)
{
	int fd = open(n->other, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	close(fd);
}

static void open_names(struct names *n, bool huge)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");

	*n = (struct names){.page = huge ? 2 << 20 : 4096, .mounted = huge};
	snprintf(n->dir, sizeof n->dir, "%s/pinlease-name.XXXXXX", dir && !huge ? dir : "/var/tmp");
	assert_non_null(mkdtemp(n->dir));
	if (huge && mount("none", n->dir, "hugetlbfs", 0, "pagesize=2M")) {
		rmdir(n->dir);
		print_message("skip: hugetlbfs can be mounted\n");
		skip();
	}
	snprintf(n->file, sizeof n->file, "%s/file", n->dir);
	snprintf(n->link, sizeof n->link, "%s/link", n->dir);
	snprintf(n->other, sizeof n->other, "%s/other", n->dir);
	snprintf(n->free, sizeof n->free, "%s/free", n->dir);
	n->fd = open(n->file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(n->fd >= 0);
	assert_int_equal(link(n->file, n->link), 0);
	make_other(n);
	assert_int_equal(ftruncate(n->fd, n->page), 0);
	n->mem = mmap(NULL, n->page, PROT_READ | PROT_WRITE, MAP_SHARED, n->fd, 0);
	assert_true(n->mem != MAP_FAILED);
	opened[opened[0] != NULL] = n;
}

static void close_names(struct names *n)
{
	opened[opened[0] != n] = NULL;
	munmap(n->mem, n->page);
	close(n->fd);
	unlink(n->file);
	unlink(n->link);
	unlink(n->other);
	if (n->mounted)
		umount2(n->dir, MNT_DETACH); /* pinleased may be about to close it */
	rmdir(n->dir);
}

static bool is_there(const struct names *n, const char *path)
{
	struct stat is, st;

	assert_int_equal(fstat(n->fd, &is), 0);
	return !stat(path, &st) && st.st_ino == is.st_ino;
}

/* ------------------------------------------------------------------------------------------ calls -- */

static int result(int r)
{
	return r ? -errno : 0;
}

static int by_ring(const struct names *n, bool renames)
{
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	struct io_uring ring;
	int err = io_uring_queue_init(4, &ring, 0);

	if (err)
		return err;
	sqe = io_uring_get_sqe(&ring);
	if (renames)
		io_uring_prep_renameat(sqe, AT_FDCWD, n->other, AT_FDCWD, n->file, 0);
	else
		io_uring_prep_unlinkat(sqe, AT_FDCWD, n->file, 0);
	io_uring_submit(&ring);
	err = io_uring_wait_cqe(&ring, &cqe);
	if (!err)
		err = cqe->res;
	io_uring_queue_exit(&ring);
	return err;
}

static int unlink_it(const struct names *n)
{
	return result(unlink(n->file));
}

static int unlink_other_name(const struct names *n)
{
	return result(unlink(n->link));
}

static int rename_over_it(const struct names *n)
{
	return result(rename(n->other, n->file));
}

static int rename_over_other_name(const struct names *n)
{
	return result(rename(n->other, n->link));
}

static int exchange_other_with_it(const struct names *n)
{
	return result(renameat2(AT_FDCWD, n->other, AT_FDCWD, n->file, RENAME_EXCHANGE));
}

static int exchange_it_with_other(const struct names *n)
{
	return result(renameat2(AT_FDCWD, n->file, AT_FDCWD, n->other, RENAME_EXCHANGE));
}

static int unlink_by_ring(const struct names *n)
{
	return by_ring(n, false);
}

static int rename_by_ring(const struct names *n)
{
	return by_ring(n, true);
}

static const struct {
	const char *name;
	int (*run)(const struct names *n);
} takers[] = {
	{"unlink", unlink_it},
	{"unlink of another name", unlink_other_name},
	{"rename over it", rename_over_it},
	{"rename over another name", rename_over_other_name},
	{"exchange", exchange_other_with_it},
	{"exchange from its side", exchange_it_with_other},
	{"io_uring unlinkat", unlink_by_ring},
	{"io_uring renameat", rename_by_ring},
};
#define TAKERS (sizeof takers / sizeof *takers)

static int by_another(int (*run)(const struct names *n), const struct names *n)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(-run(n));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return -WEXITSTATUS(status);
}

/* The lease has ended when pinleased has read that. */
static void let_through(int (*run)(const struct names *n), const struct names *n)
{
	int err;

	while ((err = by_another(run, n)) == -EBUSY) /* the runner ends what takes too long */
		usleep(10000);
	assert_int_equal(err, 0);
}

/* ----------------------------------------------------------------------------------------- leases -- */

static void open_ungated(const char *const *options)
{
	arbiter_start(&arbiter, options);
	assert_ok(pinl_open(NULL, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", NULL, &dev));
}

static bool status_has(const char *words)
{
	char command[512];

	snprintf(command, sizeof command, "%s status | grep -q '%s'", pinlease, words);
	return !system(command);
}

static void close_all(void)
{
	pinl_close(ctx);
	ctx = NULL;
	while (!status_has(": 0 leases") || gate_entries(DIRECTORY) > 1)
		usleep(10000);
	arbiter_stop(&arbiter);
	assert_int_equal(gate_entries(DIRECTORY), 0);
	rmdir(DIRECTORY);
}

static int try_lease(const struct names *n, unsigned flags, enum pinl_policy_kind kind,
		     struct pinl_lease **l)
{
	struct pinl_policy p = {.size = sizeof p, .kind = kind, .refuse = PINL_OPS_FILE};
	uintptr_t at = (uintptr_t)n->mem;

	return pinl_map_range(dev, at, at + n->page, PINL_WRITE | flags, &p, NULL, l);
}

static struct pinl_lease *lease(const struct names *n, enum pinl_policy_kind kind)
{
	struct pinl_lease *l = NULL;

	assert_ok(try_lease(n, PINL_KEEP_NAME, kind, &l));
	return l;
}

static void open_all(const char *const *options)
{
	struct pinl_lease *l = NULL;
	static struct names n;

	open_ungated(options);
	open_names(&n, false);
	if (try_lease(&n, PINL_KEEP_NAME, PINL_KEEP, &l) == -EOPNOTSUPP &&
	    !getenv("PINLEASE_GATE_MEANS")) {
		print_message("skip: BPF programs in front of the kernel's functions: %s\n",
			      pinl_error());
		skip();
	}
	assert_non_null(l);
	pinl_unmap_range(l);
	let_through(unlink_it, &n);
	let_through(unlink_other_name, &n);
	close_names(&n);
}

/* ------------------------------------------------------------------------------------------ tests -- */

static void check_taker(size_t i, bool huge)
{
	struct pinl_lease *l = NULL;
	static struct names n;
	int err;

	open_names(&n, huge);
	l = lease(&n, PINL_KEEP);
	err = by_another(takers[i].run, &n);
	if (err != -EBUSY)
		fail_msg("%s: %s", takers[i].name, strerror(-err));
	assert_true(is_there(&n, n.file) && is_there(&n, n.link) && !is_there(&n, n.other));
	pinl_unmap_range(l);
	let_through(takers[i].run, &n);
	close_names(&n);
	open_names(&n, huge);
	assert_ok(try_lease(&n, 0, PINL_KEEP, &l)); /* which doesn't ask for it */
	err = by_another(takers[i].run, &n);
	if (err)
		fail_msg("%s, without the flag: %s", takers[i].name, strerror(-err));
	pinl_unmap_range(l);
	close_names(&n);
}

static bool ps_has(const char *words)
{
	char command[512];

	snprintf(command, sizeof command, "%s ps | grep -q \"%s\"", pinlease, words);
	return !system(command);
}

static void names_are_kept(void **state)
{
	open_all(for_long);
	for (size_t i = 0; i < TAKERS; i++)
		check_taker(i, false);
	close_all();
}

static void names_are_kept_on_hugetlbfs(void **state)
{
	open_all(for_long);
	for (size_t i = 0; i < TAKERS; i++)
		check_taker(i, true);
	close_all();
}

/* Nor does the flag change what the policy says of the bytes. */
static void what_takes_no_name_passes(void **state)
{
	struct pinl_lease *l, *other;
	static struct names n, another;

	open_all(for_long);
	open_names(&n, false);
	open_names(&another, false);
	l = lease(&n, PINL_KEEP);
	assert_ok(try_lease(&another, 0, PINL_REFUSE, &other));
	assert_int_equal(rename(n.file, n.free), 0);
	assert_int_equal(by_another(unlink_other_name, &n), -EBUSY);
	assert_int_equal(rename(n.free, n.file), 0);
	assert_int_equal(link(n.file, n.free), 0);
	assert_int_equal(unlink(n.free), -1); /* nobody's exempt, nor is a name from after the lease */
	assert_int_equal(errno, EBUSY);
	assert_int_equal(pwrite(n.fd, "x", 1, 0), 1);
	assert_int_equal(fallocate(n.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, n.page), 0);
	assert_int_equal(ftruncate(n.fd, 0), 0);
	assert_int_equal(unlink(n.other), 0);
	assert_int_equal(by_another(rename_over_it, &another), 0);
	pinl_unmap_range(other);
	pinl_unmap_range(l);
	let_through(unlink_it, &n);
	unlink(n.free);
	close_names(&another);
	close_names(&n);
	close_all();
}

static void with_any_policy(void **state)
{
	static const enum pinl_policy_kind kinds[] = {PINL_RECALL, PINL_REFUSE, PINL_FOLLOW};
	struct pinl_lease *l;
	static struct names n;

	open_all(for_long);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		open_names(&n, false);
		assert_ok(try_lease(&n, PINL_KEEP_NAME | PINL_COOPERATIVE, kinds[i], &l));
		assert_int_equal(by_another(unlink_it, &n), -EBUSY);
		assert_int_equal(by_another(rename_over_it, &n), -EBUSY);
		pinl_unmap_range(l);
		let_through(unlink_it, &n);
		close_names(&n);
	}
	assert_true(status_has("names kept"));
	close_all();
}

/* It ends with the last of the file's leases that want it. */
static void of_two_leases_the_last_counts(void **state)
{
	struct pinl_lease *first, *second;
	static struct names n, again;

	open_all(for_long);
	open_names(&n, false);
	again = n;
	again.mem = mmap(NULL, n.page, PROT_READ | PROT_WRITE, MAP_SHARED, n.fd, 0);
	assert_true(again.mem != MAP_FAILED);
	first = lease(&n, PINL_KEEP);
	assert_true(ps_has("can't be unlinked"));
	second = lease(&again, PINL_REFUSE);
	pinl_unmap_range(first);
	while (!status_has(": 1 lease,"))
		usleep(10000);
	assert_int_equal(by_another(unlink_it, &n), -EBUSY);
	pinl_unmap_range(second);
	let_through(unlink_it, &n);
	munmap(again.mem, n.page);
	close_names(&n);
	close_all();
}

static void a_dead_arbiter_keeps_it(void **state)
{
	struct pinl_lease *l;
	static struct names n;

	open_all(for_a_while);
	open_names(&n, false);
	l = lease(&n, PINL_KEEP);
	for (int i = 0; i < 2; i++) {
		arbiter_kill(&arbiter);
		assert_int_equal(by_another(unlink_it, &n), -EBUSY);
		assert_int_equal(by_another(rename_over_it, &n), -EBUSY);
		arbiter_restart(&arbiter, for_a_while);
		while (!status_has("names kept")) /* by this one: the other's has ended */
			assert_int_equal(by_another(unlink_it, &n), -EBUSY);
	}
	pinl_unmap_range(l);
	let_through(unlink_it, &n);
	close_names(&n);
	close_all();
}

/* As installed: the next one has the lease from the start, and ends the dead one's gate. */
static void whose_descriptors_are_kept_takes_it_up(void **state)
{
	struct pinl_lease *l;
	static struct names n;

	skip_unless_changes_are_held(); /* else nothing is kept */
	arbiter.kept = true;
	open_all(for_long);
	open_names(&n, false);
	l = lease(&n, PINL_KEEP);
	for (int i = 0; i < 2; i++) {
		arbiter_kill(&arbiter);
		assert_int_equal(by_another(unlink_it, &n), -EBUSY);
		arbiter_restart(&arbiter, for_long);
		assert_int_equal(by_another(unlink_it, &n), -EBUSY);
		assert_int_equal(by_another(rename_over_it, &n), -EBUSY);
		while (!status_has("names kept")) /* by this one */
			usleep(10000);
	}
	pinl_unmap_range(l);
	let_through(unlink_it, &n);
	close_names(&n);
	close_all();
	arbiter.kept = false;
}

static void and_not_for_ever(void **state)
{
	static struct names n;

	open_all(for_short);
	open_names(&n, false);
	lease(&n, PINL_KEEP);
	assert_int_equal(by_another(unlink_it, &n), -EBUSY);
	arbiter_kill(&arbiter);
	let_through(unlink_it, &n);
	arbiter_restart(&arbiter, for_short);
	close_names(&n);
	close_all();
}

/* As with what a lease refuses: root has a way out. */
static void what_was_taken_is_kept_no_more(void **state)
{
	struct pinl_soft_arg arg = {.size = sizeof arg, .device_class = PINL_DEV_REVOCABLE + 1};
	struct pinl_device *revocable;
	struct pinl_lease *l;
	char command[512];
	static struct names n;

	open_all(for_long);
	assert_ok(pinl_device_open(ctx, "soft", &arg, &revocable));
	dev = revocable;
	open_names(&n, false);
	assert_ok(try_lease(&n, PINL_KEEP_NAME | PINL_PIN, PINL_KEEP, &l));
	assert_int_equal(by_another(unlink_it, &n), -EBUSY);
	snprintf(command, sizeof command, "%s recall --pid %d --force >&2", pinlease, getpid());
	assert_int_equal(system(command), 0);
	let_through(unlink_it, &n);
	pinl_unmap_range(l);
	close_names(&n);
	pinl_device_close(revocable);
	close_all();
}

/* Programs that are there, of those. */
static bool pinned(const char *which)
{
	char pattern[128];
	glob_t found = {0};
	bool any;

	snprintf(pattern, sizeof pattern, DIRECTORY "/*/*_%s*", which);
	any = !glob(pattern, 0, NULL, &found);
	globfree(&found);
	return any;
}

/* Unlink and rename pass no program before, and after it for a moment only (I9); reads and writes never.
 */
static void the_programs_are_there_while_they_are_needed(void **state)
{
	struct pinl_lease *l;
	static struct names n;

	open_all(for_short);
	open_names(&n, false);
	for (int i = 0; i < 2; i++) {
		while (pinned("unlink") || pinned("rename") || pinned("answer"))
			usleep(10000); /* the runner ends what takes too long */
		l = lease(&n, PINL_KEEP);
		assert_int_equal(by_another(unlink_it, &n), -EBUSY);
		assert_true(pinned("unlink") && pinned("rename"));
		assert_false(pinned("answer"));
		pinl_unmap_range(l);
	}
	let_through(unlink_it, &n);
	close_names(&n);
	close_all();
}

static void what_has_no_name_is_refused(void **state)
{
	struct pinl_lease *l = NULL;
	struct gate_target t;
	static struct names n;

	open_all(for_long);
	open_names(&n, false);
	pinl_unmap_range(lease(&n, PINL_KEEP));
	let_through(unlink_it, &n);
	let_through(unlink_other_name, &n);
	assert_int_equal(try_lease(&n, PINL_KEEP_NAME, PINL_KEEP, &l), -ENOENT);
	assert_non_null(strstr(pinl_error(), "no name"));
	assert_ok(try_lease(&n, 0, PINL_KEEP, &l));
	pinl_unmap_range(l);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_int_equal(
		try_lease(&(struct names){.mem = t.mem, .page = t.page}, PINL_KEEP_NAME, PINL_KEEP, &l),
		-ENOENT);
	gate_target_close(&t);
	close_names(&n);
	close_all();
}

/* R12: to have a file open, for writing too, isn't enough. By a child, which is another user. */
static int lease_as_nobody(const struct names *n)
{
	struct pinl_lease *l = NULL;

	if (setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY) ||
	    pinl_open(NULL, &ctx) || pinl_device_open(ctx, "soft", NULL, &dev))
		return -ENOEXEC;
	return try_lease(n, PINL_KEEP_NAME, PINL_KEEP, &l);
}

static void only_its_owner_may_ask_for_it(void **state)
{
	static struct names n;

	open_all(for_long);
	open_names(&n, false);
	pinl_unmap_range(lease(&n, PINL_KEEP));
	assert_int_equal(chmod(arbiter.dir, 0711) | chmod(arbiter.socket, 0666), 0);
	assert_int_equal(chmod(n.dir, 0711) | chmod(n.file, 0666), 0);
	assert_int_equal(by_another(lease_as_nobody, &n), -EACCES);
	assert_int_equal(fchown(n.fd, NOBODY, NOBODY), 0);
	assert_int_equal(by_another(lease_as_nobody, &n), 0);
	let_through(unlink_it, &n);
	close_names(&n);
	close_all();
}

/* This needs no gate. */
static void no_gate_is_said(void **state)
{
	static const char *const none[] = {"--gate", "no", NULL};
	struct pinl_lease *l = NULL;
	static struct names n;

	open_ungated(none);
	open_names(&n, false);
	assert_int_equal(try_lease(&n, PINL_KEEP_NAME, PINL_KEEP, &l), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "PINL_KEEP_NAME takes a pinleased"));
	assert_int_equal(try_lease(&n, PINL_KEEP_NAME | PINL_COOPERATIVE, PINL_KEEP, &l), -EOPNOTSUPP);
	assert_ok(try_lease(&n, 0, PINL_KEEP, &l));
	pinl_unmap_range(l);
	close_names(&n);
	pinl_close(ctx);
	ctx = NULL;
	arbiter_stop(&arbiter);
}

static int clean_up(void **state)
{
	if (ctx)
		pinl_close(ctx);
	ctx = NULL;
	while (opened[0] || opened[1]) /* as it failed, or was skipped */
		close_names(opened[0] ? opened[0] : opened[1]);
	return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, clean_up)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(names_are_kept),
		TEST(names_are_kept_on_hugetlbfs),
		TEST(what_takes_no_name_passes),
		TEST(with_any_policy),
		TEST(of_two_leases_the_last_counts),
		TEST(a_dead_arbiter_keeps_it),
		TEST(whose_descriptors_are_kept_takes_it_up),
		TEST(and_not_for_ever),
		TEST(what_was_taken_is_kept_no_more),
		TEST(the_programs_are_there_while_they_are_needed),
		TEST(what_has_no_name_is_refused),
		TEST(only_its_owner_may_ask_for_it),
		TEST(no_gate_is_said),
	};

	pinlease = argc > 1 ? argv[1] : "pinlease";
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
