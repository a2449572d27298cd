/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The registration cache by the generation source alone, with pinleased, where its kernel can count:
 * what userfaultfd tells of, what it doesn't, and what becomes of it when pinleased ends or is killed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cache_rig.h"
#undef SIZE
#undef PG
#include "arbiter_rig.h"
#include "bpf/generation.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE  103
#endif

static struct arbiter arbiter;
#define GATE	 "/sys/fs/bpf/pinlease-test-counting"
#define COUNTING GATE "/counting"
static const char *const options[] = {"--gate", GATE, NULL};

static void open_counted(struct rig *r)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = PINL_SOURCE_GENERATION};
	char text[1024];

	memset(r, 0, sizeof *r);
	r->tagger.full = -ENOMEM;
	assert_ok(pinl_open(&o, &r->ctx));
	assert_true(pinl_sources(r->ctx, text, sizeof text) > 0);
	if (strstr(text, "generation: missing") && strstr(text, "programs that count changes")) {
		pinl_close(r->ctx);
		print_message("skip: %s", text);
		skip();
	}
	if (!strstr(text, "generation: running"))
		fail_msg("%s", text);
	assert_ok(pinl_device_open_ops(r->ctx, &tagger_ops, &r->tagger, &r->dev));
}

static int start_arbiter(void **state)
{
	arbiter_start(&arbiter, options);
	return 0;
}

static int stop_arbiter(void **state)
{
	arbiter_stop(&arbiter);
	return 0;
}

/* -------------------------------------------------------------------------- what is changed -- */

#define HUGE_PAGE (2ul << 20)

struct memory {
	char *at;
	size_t len; /* 0: a page */
	int fd, shm;
};

static void by_other(void (*change)(struct memory *m), struct memory *m)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		change(m);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void anonymous(struct memory *m)
{
	m->at = pages_new(1);
}

static void shared_file(struct memory *m)
{
	m->fd = memfd_create("counted", MFD_CLOEXEC);
	assert_int_equal(ftruncate(m->fd, PAGE), 0);
	m->at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	assert_true(m->at != MAP_FAILED);
}

/* Which userfaultfd doesn't watch. */
static void read_only_file(struct memory *m)
{
	char path[64];
	int fd;

	shared_file(m);
	munmap(m->at, PAGE);
	snprintf(path, sizeof path, "/proc/self/fd/%d", m->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	m->at = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	assert_true(m->at != MAP_FAILED);
	close(fd);
}

static void system_v(struct memory *m)
{
	m->shm = shmget(IPC_PRIVATE, PAGE, 0600);
	m->at = shmat(m->shm, NULL, 0);
	assert_true(m->at != (void *)-1);
}

static size_t len_of(const struct memory *m)
{
	return m->len ? m->len : PAGE;
}

/* By its mapping only: hugetlbfs has no write(). */
static void map_huge(struct memory *m, char *at, int flags)
{
	m->len = HUGE_PAGE;
	m->at = mmap(at, HUGE_PAGE, PROT_READ | PROT_WRITE,
		     flags | (m->fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB : MAP_SHARED), m->fd,
		     0);
	if (m->at == MAP_FAILED) {
		print_message("skip: no huge pages of 2 MiB: %s\n", strerror(errno));
		skip();
	}
}

static void huge_pages(struct memory *m)
{
	map_huge(m, NULL, 0);
}

static void huge_file(struct memory *m)
{
	m->fd = memfd_create("counted", MFD_CLOEXEC | MFD_HUGETLB);
	assert_true(m->fd >= 0 && !ftruncate(m->fd, HUGE_PAGE));
	map_huge(m, NULL, 0);
}

static void write_tag(struct memory *m, uint32_t tag)
{
	if (m->fd >= 0 && !m->len)
		assert_int_equal(pwrite(m->fd, &tag, sizeof tag, 0), sizeof tag);
	else
		set_tag(m->at, tag);
}

static void unmap(struct memory *m)
{
	munmap(m->at, PAGE);
	map_at(m->at, MAP_FIXED_NOREPLACE);
}

static void overmap(struct memory *m)
{
	map_at(m->at, MAP_FIXED);
}

static void move(struct memory *m)
{
	char *to = pages_new(1);

	assert_ptr_equal(mremap(m->at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	map_at(m->at, MAP_FIXED_NOREPLACE);
	munmap(to, PAGE);
}

static void unmap_huge(struct memory *m)
{
	munmap(m->at, HUGE_PAGE);
	map_huge(m, m->at, MAP_FIXED_NOREPLACE);
}

static void overmap_huge(struct memory *m)
{
	map_huge(m, m->at, MAP_FIXED);
}

static void discard(struct memory *m)
{
	assert_int_equal(madvise(m->at, len_of(m), MADV_DONTNEED), 0);
}

static void free_lazily(struct memory *m)
{
	assert_int_equal(madvise(m->at, PAGE, MADV_FREE), 0);
}

static void guard(struct memory *m)
{
	if (madvise(m->at, PAGE, MADV_GUARD_INSTALL)) /* before 6.13 */
		discard(m);
	else
		assert_int_equal(madvise(m->at, PAGE, MADV_GUARD_REMOVE), 0);
}

static void protect(struct memory *m)
{
	assert_int_equal(mprotect(m->at, len_of(m), PROT_READ), 0);
	assert_int_equal(mprotect(m->at, len_of(m), PROT_READ | PROT_WRITE), 0);
}

static void truncate_it(struct memory *m)
{
	if (ftruncate(m->fd, 0) || ftruncate(m->fd, len_of(m)))
		_exit(1);
}

static void truncate_by_other(struct memory *m)
{
	by_other(truncate_it, m);
}

static void punch_it(struct memory *m)
{
	if (fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, len_of(m)))
		_exit(1);
}

static void punch_by_other(struct memory *m)
{
	by_other(punch_it, m);
}

static void remove_it(struct memory *m)
{
	assert_int_equal(madvise(m->at, PAGE, MADV_REMOVE), 0);
}

static void detach(struct memory *m)
{
	assert_int_equal(shmdt(m->at), 0);
	shmctl(m->shm, IPC_RMID, NULL);
	map_at(m->at, MAP_FIXED_NOREPLACE);
	m->shm = -1;
}

struct change {
	const char *name;
	void (*map)(struct memory *m);
	void (*change)(struct memory *m);
};

static const struct change changes[] = {
	{"munmap", anonymous, unmap},
	{"MAP_FIXED", anonymous, overmap},
	{"mremap", anonymous, move},
	{"MADV_DONTNEED", anonymous, discard},
	{"MADV_FREE", anonymous, free_lazily},
	{"mprotect", anonymous, protect},
	{"truncate by another process", shared_file, truncate_by_other},
	{"punch by another process", shared_file, punch_by_other},
	{"MADV_REMOVE", shared_file, remove_it},
	{"truncate of a file mapped for reading", read_only_file, truncate_by_other},
	{"shmdt", system_v, detach},
	{"MADV_GUARD_INSTALL", anonymous, guard},
};

static const struct change huge_changes[] = {
	{"munmap", huge_pages, unmap_huge},
	{"munmap of a file", huge_file, unmap_huge},
	{"MAP_FIXED", huge_pages, overmap_huge},
	{"MADV_DONTNEED", huge_pages, discard},
	{"mprotect", huge_pages, protect},
	{"truncate by another process", huge_file, truncate_by_other},
	{"punch by another process", huge_file, punch_by_other},
};

/* No wait in between: the first lookup after the call must know. */
static void is_not_found_after(struct rig *r, const struct change *c)
{
	struct memory m = {.fd = -1, .shm = -1};

	c->map(&m);
	write_tag(&m, 1);
	assert_int_equal(tag_at(r, m.at), 1);
	assert_int_equal(tag_at(r, m.at), 1);
	c->change(&m);
	write_tag(&m, 2);
	if (tag_at(r, m.at) != 2)
		fail_msg("after %s the registration of before is found", c->name);
	munmap(m.at, len_of(&m));
	if (m.fd >= 0)
		close(m.fd);
}

static void what_was_changed_is_not_found(void **state)
{
	struct rig r;

	open_counted(&r);
	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++)
		for (int again = 0; again < 20; again++)
			is_not_found_after(&r, &changes[i]);
	rig_close(&r);
}

static void what_was_changed_of_huge_pages_is_not_found(void **state)
{
	struct rig r;

	open_counted(&r);
	for (size_t i = 0; i < sizeof huge_changes / sizeof *huge_changes; i++)
		for (int again = 0; again < 5; again++)
			is_not_found_after(&r, &huge_changes[i]);
	rig_close(&r);
}

/* The protection is what the new registration goes by. */
static void what_is_read_only_now_is_not_registered_for_writing(void **state)
{
	const struct pinl_reg *reg;
	char *at = pages_new(1);
	struct rig r;
	int err;

	open_counted(&r);
	set_tag(at, 1);
	pinl_put(got(&r, at, 8, PINL_WRITE));
	assert_int_equal(mprotect(at, PAGE, PROT_READ), 0);
	do
		err = pinl_get(r.dev, at, 8, PINL_WRITE, &reg);
	while (err == -EAGAIN);
	assert_int_equal(err, -EACCES);
	assert_int_equal(tag_at(&r, at), 1);
	rig_close(&r);
	munmap(at, PAGE);
}

/* ----------------------------------------------------------------------------------- leases -- */

static struct pinl_event await_type(struct pinl_ctx *ctx, enum pinl_event_type type, int err)
{
	struct pinl_event ev = {.size = sizeof ev};
	struct pollfd p = {.fd = pinl_fd(ctx), .events = POLLIN};

	for (;;) {
		ev.size = sizeof ev;
		if (pinl_next_event(ctx, &ev))
			poll(&p, 1, -1);
		else if (ev.type == type && ev.err == err)
			return ev;
	}
}

static void a_lease_hears_who_truncated_it(void **state)
{
	const struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	struct memory m = {.fd = -1};
	struct pinl_device *dev;
	struct pinl_lease *l;
	struct pinl_event ev;
	struct pinl_addr addr;
	struct rig r;

	open_counted(&r);
	assert_ok(pinl_device_open(r.ctx, "soft", NULL, &dev));
	shared_file(&m);
	memset(m.at, 'a', PAGE);
	assert_ok(pinl_map_range(dev, (uintptr_t)m.at, (uintptr_t)m.at + PAGE, PINL_PIN, &keep, &addr,
				 &l));
	truncate_by_other(&m);
	ev = await_type(r.ctx, PINL_EV_ORPHAN, 0);
	assert_int_equal(ev.op, PINL_OP_TRUNCATE);
	assert_string_equal(ev.source, "generation");
	assert_int_not_equal(ev.actor_pid, getpid());
	pinl_unmap_range(l);
	rig_close(&r);
	munmap(m.at, PAGE);
	close(m.fd);
}

/* -------------------------------------------------------------------------------- pinleased -- */

/* A restart may take longer than it is waited for: then there is nobody for a while. */
static uint32_t tag_when_counted(struct rig *r, const char *at)
{
	const struct pinl_reg *reg;
	uint32_t tag;
	int err;

	do
		err = pinl_get(r->dev, at, 8, 0, &reg);
	while (err == -EAGAIN || err == -EOPNOTSUPP);
	assert_ok(err);
	tag = reg->key;
	pinl_put(reg);
	return tag;
}

/* Of each pinleased that has programs there. */
static int folders_left(void)
{
	DIR *d = opendir(COUNTING);
	struct dirent *e;
	int n = 0;

	while (d && (e = readdir(d)))
		n += *e->d_name != '.';
	if (d)
		closedir(d);
	return n;
}

/* The kernel goes on counting; then there is another one, by which what was left ends. */
static void a_killed_pinleased_is_no_gap(void **state)
{
	char *at = pages_new(1);
	struct rig r;

	open_counted(&r);
	set_tag(at, 1);
	assert_int_equal(tag_at(&r, at), 1);
	arbiter_kill(&arbiter);
	map_at(at, MAP_FIXED);
	set_tag(at, 2);
	assert_int_equal(tag_at(&r, at), 2);
	arbiter_restart(&arbiter, options);
	await_type(r.ctx, PINL_EV_DEGRADED, -ENOTCONN);
	for (uint32_t tag = 3; tag < 30; tag++) {
		map_at(at, MAP_FIXED);
		set_tag(at, tag);
		assert_int_equal(tag_when_counted(&r, at), tag);
	}
	while (folders_left() > 1)
		assert_int_equal(tag_when_counted(&r, at), 29);
	rig_close(&r);
	munmap(at, PAGE);
}

static const char *const unpinned[] = {"--gate", "no", NULL};

/* Whatever ends it; it is counted for again by the next one. */
static void is_known_to_end(int signal, const char *const *by)
{
	const struct pinl_reg *reg;
	char *at = pages_new(1);
	struct rig r;
	int status;

	open_counted(&r);
	set_tag(at, 1);
	assert_int_equal(tag_at(&r, at), 1);
	kill(arbiter.pid, signal);
	assert_int_equal(waitpid(arbiter.pid, &status, 0), arbiter.pid);
	assert_int_equal(access(COUNTING, F_OK), -1);
	await_type(r.ctx, PINL_EV_DEGRADED, -ENOTCONN);
	assert_int_equal(pinl_get(r.dev, at, 8, 0, &reg), -EOPNOTSUPP);
	map_at(at, MAP_FIXED);
	set_tag(at, 2);
	arbiter_restart(&arbiter, by);
	assert_int_equal(tag_when_counted(&r, at), 2);
	rig_close(&r);
	munmap(at, PAGE);
}

/* And nothing is found that nobody would tell of. */
static void the_end_of_pinleased_is_told(void **state)
{
	is_known_to_end(SIGTERM, options);
}

/* The next one goes on with its leases; of the counting it leaves nothing. */
static void the_end_of_a_pinleased_whose_descriptors_are_kept_is_told(void **state)
{
	stop_arbiter(NULL);
	arbiter.kept = true;
	start_arbiter(NULL);
	is_known_to_end(SIGTERM, options);
	stop_arbiter(NULL);
	arbiter.kept = false;
	start_arbiter(NULL);
}

/* The programs go with it. */
static void nobody_counts_on_a_pinleased_that_is_not_pinned(void **state)
{
	stop_arbiter(NULL);
	arbiter_start(&arbiter, unpinned);
	is_known_to_end(SIGKILL, options);
}

static bool is_counts(int map)
{
	struct bpf_map_info info = {0};
	union bpf_attr a = {.info = {.bpf_fd = map, .info_len = sizeof info, .info = (uintptr_t)&info}};

	return !syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &a, sizeof a) &&
	       !strcmp(info.name, "pinlease_counts");
}

/* The newest. What the library has of it goes. */
static struct generation_counts *counts_now(void)
{
	union bpf_attr next = {0};
	void *at = MAP_FAILED;
	int map = -1;

	while (!syscall(SYS_bpf, BPF_MAP_GET_NEXT_ID, &next, sizeof next)) {
		union bpf_attr a = {.map_id = next.next_id};
		int fd = syscall(SYS_bpf, BPF_MAP_GET_FD_BY_ID, &a, sizeof a);
		bool is = is_counts(fd);

		close(is ? map : fd);
		map = is ? fd : map;
		next.start_id = next.next_id;
	}
	at = mmap(NULL, sizeof(struct generation_counts), PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
	assert_true(at != MAP_FAILED);
	close(map);
	return at;
}

static uint64_t of_now(const __u64 *count)
{
	return __atomic_load_n(count, __ATOMIC_SEQ_CST);
}

/* For as long as it may take, and no longer. */
static void what_a_killed_pinleased_left_counts_no_longer_than_that(void **state)
{
	struct generation_counts *c;
	char *at = pages_new(1);
	uint64_t told;
	struct rig r;

	open_counted(&r);
	set_tag(at, 1);
	assert_int_equal(tag_at(&r, at), 1);
	c = counts_now();
	arbiter_kill(&arbiter);
	told = of_now(&c->told);
	map_at(at, MAP_FIXED);
	assert_int_equal(of_now(&c->told), told + 1);
	while (!of_now(&c->ended)) {
		map_at(at, MAP_FIXED);
		usleep(1000);
	}
	told = of_now(&c->told);
	map_at(at, MAP_FIXED);
	assert_int_equal(of_now(&c->told), told);
	arbiter_restart(&arbiter, options);
	while (folders_left() > 1) {
		set_tag(at, 2);
		assert_int_equal(tag_when_counted(&r, at), 2);
	}
	rig_close(&r);
	munmap(at, PAGE);
	munmap(c, sizeof *c);
}

static void a_second_context_of_a_process_has_none(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = PINL_SOURCE_GENERATION};
	struct pinl_ctx *other;
	char text[1024];
	struct rig r;

	open_counted(&r);
	assert_ok(pinl_open(&o, &other));
	assert_true(pinl_sources(other, text, sizeof text) > 0);
	assert_non_null(strstr(text, "counted"));
	assert_non_null(strstr(text, "already"));
	pinl_close(other);
	rig_close(&r);
}

/* -------------------------------------------------------------------------------------- whom -- */

enum said { OTHER, RUNS, TOO_MANY, NOT_TO_BE_SEEN };

/* What is said to this process. */
static enum said counted(struct pinl_ctx **ctx)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = PINL_SOURCE_GENERATION};
	char text[1024];

	if (pinl_open(&o, ctx) || pinl_sources(*ctx, text, sizeof text) <= 0)
		return OTHER;
	if (strstr(text, "generation: running"))
		return RUNS;
	if (strstr(text, "16 processes of user"))
		return TOO_MANY;
	if (strstr(text, "may not look into"))
		return NOT_TO_BE_SEEN;
	print_message("# %s\n", text);
	return OTHER;
}

/* Says so, and goes on until it is killed. */
static pid_t counted_child(int to)
{
	struct pinl_ctx *ctx;
	char said;
	pid_t pid = fork();

	if (pid)
		return pid;
	said = counted(&ctx);
	if (write(to, &said, 1) == 1)
		pause();
	_exit(1);
}

static void sixteen_processes_of_a_user_are_counted(void **state)
{
	pid_t pid[GENERATION_OF_USER];
	struct pinl_ctx *ctx;
	enum said last;
	int fds[2];
	char said;
	struct rig r;

	open_counted(&r); /* or it is skipped */
	rig_close(&r);
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	for (int i = 0; i < GENERATION_OF_USER; i++) {
		pid[i] = counted_child(fds[1]);
		assert_int_equal(read(fds[0], &said, 1), 1);
		assert_int_equal(said, RUNS);
	}
	assert_int_equal(counted(&ctx), TOO_MANY);
	pinl_close(ctx);
	for (int i = 0; i < GENERATION_OF_USER; i++) {
		kill(pid[i], SIGKILL);
		assert_int_equal(waitpid(pid[i], NULL, 0), pid[i]);
	}
	do {
		last = counted(&ctx);
		pinl_close(ctx);
	} while (last == TOO_MANY);
	assert_int_equal(last, RUNS);
	close(fds[0]);
	close(fds[1]);
}

/* A process that another user's program runs in looks the same. */
static enum said said_to_nobody(bool seen)
{
	struct pinl_ctx *ctx;
	int status;
	pid_t pid = fork();

	if (!pid) {
		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) ||
		    prctl(PR_SET_DUMPABLE, seen))
			_exit(OTHER);
		_exit(counted(&ctx));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void who_runs_what_its_user_may_not_look_into_is_not_counted(void **state)
{
	struct rig r;

	open_counted(&r);
	rig_close(&r);
	assert_int_equal(chmod(arbiter.dir, 0711), 0);
	assert_int_equal(said_to_nobody(true), RUNS);
	assert_int_equal(said_to_nobody(false), NOT_TO_BE_SEEN);
}

/* CASE: that one alone. */
int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_changed_is_not_found),
		cmocka_unit_test(what_was_changed_of_huge_pages_is_not_found),
		cmocka_unit_test(what_is_read_only_now_is_not_registered_for_writing),
		cmocka_unit_test(a_lease_hears_who_truncated_it),
		cmocka_unit_test(a_second_context_of_a_process_has_none),
		cmocka_unit_test(sixteen_processes_of_a_user_are_counted),
		cmocka_unit_test(who_runs_what_its_user_may_not_look_into_is_not_counted),
		cmocka_unit_test(a_killed_pinleased_is_no_gap),
		cmocka_unit_test(what_a_killed_pinleased_left_counts_no_longer_than_that),
		cmocka_unit_test(the_end_of_pinleased_is_told),
		cmocka_unit_test(the_end_of_a_pinleased_whose_descriptors_are_kept_is_told),
		cmocka_unit_test(nobody_counts_on_a_pinleased_that_is_not_pinned),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	alarm(300);
	return cmocka_run_group_tests_name("generation_cache", tests, start_arbiter, stop_arbiter);
}
