/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pinl_query(): who has this leased, by address, file, device, owner, policy and state (P3). */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE  4096ul
#define PAGES 32
#define SIZE  (PAGES * PAGE)
#define FLAGS (PINL_WRITE | PINL_PIN | PINL_COOPERATIVE)

struct rig {
	struct pinl_ctx *ctx;
	struct io_uring ring;
	struct pinl_device *soft, *uring;
	char *anon, *file; /* mappings */
	int fd;
};

static const struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
static const struct pinl_policy fail = {
	.size = sizeof fail, .kind = PINL_RECALL, .grace_ms = 10000, .then = PINL_THEN_FAIL};
static const struct pinl_policy copy = {
	.size = sizeof copy, .kind = PINL_RECALL, .then = PINL_THEN_COPY};

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof *r);
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring, .slots = 64};
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};

	*state = r;
	r->fd = memfd_create("query", MFD_CLOEXEC);
	if (ftruncate(r->fd, SIZE))
		return -1;
	r->anon = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	r->file = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	memset(r->file, 'f', SIZE);
	return io_uring_queue_init(64, &r->ring, 0) || pinl_open(&opts, &r->ctx) ||
	       pinl_device_open(r->ctx, "uring", &arg, &r->uring) ||
	       pinl_device_open(r->ctx, "soft", NULL, &r->soft);
}

static int teardown(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
	munmap(r->anon, SIZE);
	munmap(r->file, SIZE);
	close(r->fd);
	free(r);
	return 0;
}

static struct pinl_lease *lease(struct pinl_device *dev, char *at, int page, int pages,
				const struct pinl_policy *p)
{
	uintptr_t start = (uintptr_t)at + page * PAGE;
	struct pinl_lease *l;

	assert_ok(pinl_map_range(dev, start, start + pages * PAGE, FLAGS, p, NULL, &l));
	return l;
}

static uint64_t id_of(struct pinl_lease *l)
{
	struct pinl_lease_info i = {.size = sizeof i};

	assert_ok(pinl_lease_info(l, &i));
	return i.id;
}

/* Exactly these leases fit, in this order. */
static void expect(struct rig *r, struct pinl_filter f, int n, ...)
{
	struct pinl_lease_info infos[8] = {{.size = sizeof *infos}};
	size_t found = 77;
	va_list ap;

	f.size = sizeof f;
	assert_ok(pinl_query(r->ctx, &f, infos, 8, &found));
	assert_int_equal(found, n);
	va_start(ap, n);
	for (int i = 0; i < n; i++)
		assert_int_equal(infos[i].id, id_of(va_arg(ap, struct pinl_lease *)));
	va_end(ap);
}

static void nothing_is_leased(void **state)
{
	struct rig *r = *state;
	struct pinl_filter on_file = {.size = sizeof on_file};

	assert_ok(pinl_filter_file(&on_file, r->fd));
	expect(r, (struct pinl_filter){0}, 0);
	expect(r, on_file, 0);
}

static void by_address(void **state)
{
	struct rig *r = *state;
	uintptr_t at = (uintptr_t)r->anon;
	struct pinl_lease *b = lease(r->soft, r->anon, 8, 4, &keep),
			  *a = lease(r->soft, r->anon, 2, 4, &keep),
			  *c = lease(r->uring, r->anon, 4, 6, &keep);

	expect(r, (struct pinl_filter){.start = at + 2 * PAGE, .end = at + 2 * PAGE + 1}, 1, a);
	expect(r, (struct pinl_filter){.start = at + 5 * PAGE, .end = at + 6 * PAGE}, 2, a, c);
	expect(r, (struct pinl_filter){.start = at, .end = at + SIZE}, 3, a, c, b);
	expect(r, (struct pinl_filter){.start = at, .end = at + 2 * PAGE}, 0);
	expect(r, (struct pinl_filter){.start = at + 12 * PAGE, .end = at + SIZE}, 0);
	pinl_unmap_range(c);
	expect(r, (struct pinl_filter){.start = at + 5 * PAGE, .end = at + 9 * PAGE}, 2, a, b);
}

static void by_file_range(void **state)
{
	struct rig *r = *state;
	struct pinl_lease *b = lease(r->soft, r->file, 16, 4, &keep),
			  *a = lease(r->soft, r->file, 2, 2, &keep);
	struct pinl_filter f = {.size = sizeof f}, path = {.size = sizeof path};
	char name[64];

	lease(r->soft, r->anon, 0, PAGES, &keep);
	assert_ok(pinl_filter_file(&f, r->fd));
	snprintf(name, sizeof name, "/proc/self/fd/%d", r->fd);
	assert_ok(pinl_filter_path(&path, name));
	assert_memory_equal(&f, &path, sizeof f);
	expect(r, f, 2, a, b);
	f.file_start = 3 * PAGE + 5;
	expect(r, f, 2, a, b);
	f.file_end = 16 * PAGE;
	expect(r, f, 1, a);
	f.file_start = 4 * PAGE;
	expect(r, f, 0);
	f.file_end = 16 * PAGE + 1;
	expect(r, f, 1, b);
	f.start = (uintptr_t)r->file; /* both kinds of range at once */
	f.end = f.start + 16 * PAGE;
	expect(r, f, 0);
	f.file_ino++;
	expect(r, f, 0);
	assert_int_equal(pinl_filter_file(&f, -1), -EBADF);
	assert_int_equal(pinl_filter_path(&f, "/nowhere/at/all"), -ENOENT);
}

static void *take(void *arg)
{
	struct rig *r = arg;

	return lease(r->soft, r->anon, 20, 1, &keep);
}

static void by_device_owner_policy(void **state)
{
	struct rig *r = *state;
	struct pinl_lease *a = lease(r->soft, r->anon, 0, 1, &keep),
			  *b = lease(r->uring, r->anon, 1, 1, &fail), *c;
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, take, r), 0);
	pthread_join(t, (void **)&c);
	expect(r, (struct pinl_filter){.device = r->soft}, 2, a, c);
	expect(r, (struct pinl_filter){.device = r->uring}, 1, b);
	expect(r, (struct pinl_filter){.pid = getpid()}, 3, a, b, c);
	expect(r, (struct pinl_filter){.pid = getppid()}, 0);
	expect(r, (struct pinl_filter){.tid = gettid()}, 2, a, b);
	expect(r, (struct pinl_filter){.policies = PINL_POLICYBIT(PINL_RECALL)}, 1, b);
	expect(r, (struct pinl_filter){.policies = PINL_POLICYBIT(PINL_KEEP), .tid = gettid()}, 1, a);
	expect(r, (struct pinl_filter){.policies = PINL_POLICYBIT(PINL_FOLLOW)}, 0);
}

static void by_state(void **state)
{
	struct rig *r = *state;
	struct pinl_lease *a = lease(r->soft, r->anon, 0, 1, &fail),
			  *b = lease(r->soft, r->anon, 2, 1, &keep);

	expect(r, (struct pinl_filter){.states = PINL_STATEBIT(PINL_ACTIVE)}, 2, a, b);
	assert_ok(pinl_quiesced(a));
	expect(r, (struct pinl_filter){0}, 1, b);
	expect(r, (struct pinl_filter){.states = PINL_STATEBIT(PINL_RELEASED)}, 1, a);
}

/* COPY and SCRATCH of a part leave the device pages of the file and others in one buffer of a ring. */
static void skip_if_it_failed_as_a_whole(struct pinl_lease *l)
{
	struct pinl_lease_info i = {.size = sizeof i};

	assert_ok(pinl_lease_info(l, &i));
	if (i.state != PINL_RELEASED)
		return;
	print_message("skip: a ring's buffer on a file and on other memory needs Linux 6.5\n");
	skip();
}

/* Where a part of a lease has been moved, the file has no lease any more; the addresses do. */
static void a_moved_part_is_off_the_file(void **state)
{
	struct rig *r = *state;
	struct pinl_filter f = {.size = sizeof f};
	struct pinl_lease *l = lease(r->soft, r->file, 0, 8, &copy);
	uintptr_t at = (uintptr_t)r->file;

	assert_ok(pinl_filter_file(&f, r->fd));
	assert_ok(pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PAGE,
				 PAGE));
	skip_if_it_failed_as_a_whole(l);
	f.file_start = 2 * PAGE;
	f.file_end = 3 * PAGE;
	expect(r, f, 0);
	f.file_end = 4 * PAGE;
	expect(r, f, 1, l);
	expect(r, (struct pinl_filter){.start = at + 2 * PAGE, .end = at + 3 * PAGE}, 1, l);
}

static void says_who_and_how(void **state)
{
	struct rig *r = *state;
	struct pinl_filter f = {.size = sizeof f};
	struct pinl_lease_info i = {.size = sizeof i}, same = {.size = sizeof same};
	struct pinl_lease *l = lease(r->uring, r->file, 3, 2, &fail);
	size_t found;

	pinl_lease_set_cookie(l, &found);
	assert_ok(pinl_query(r->ctx, &f, &i, 1, &found));
	assert_ok(pinl_lease_info(l, &same));
	assert_int_equal(found, 1);
	assert_true(same.age_ns >= i.age_ns);
	assert_int_equal(i.size, same.size);
	assert_int_equal(i.id, same.id);
	assert_int_equal(i.since_ns, same.since_ns);
	assert_int_equal(i.start, (uintptr_t)r->file + 3 * PAGE);
	assert_int_equal(i.end, (uintptr_t)r->file + 5 * PAGE);
	assert_memory_equal(i.coverage, same.coverage, sizeof i.coverage);
	assert_ptr_equal(i.device, r->uring);
	assert_string_equal(i.device_kind, "uring");
	assert_ptr_equal(i.cookie, &found);
	assert_int_equal(i.file_offset, 3 * PAGE);
	assert_int_equal(i.owner_thread, gettid());
	assert_int_equal(i.policy.grace_ms, 10000);
}

static void too_small_a_place(void **state)
{
	struct rig *r = *state;
	struct pinl_filter f = {.size = sizeof f};
	struct {
		struct pinl_lease_info info[2];
		uint64_t after;
	} room = {.info = {{.size = sizeof *room.info}}, .after = 7};
	struct { /* a caller that was built when the structure ended here */
		struct {
			size_t size;
			uint64_t id;
		} info[3];
		char after[sizeof(struct pinl_lease_info)];
	} old = {.info = {{.size = sizeof *old.info}}};
	char untouched[sizeof old.after] = "";
	size_t found;

	for (int i = 0; i < 3; i++)
		lease(r->soft, r->anon, 2 * i, 1, &keep);
	assert_ok(pinl_query(r->ctx, &f, room.info, 2, &found));
	assert_int_equal(found, 3);
	assert_int_equal(room.info[1].start, (uintptr_t)r->anon + 2 * PAGE);
	assert_int_equal(room.after, 7);
	assert_ok(pinl_query(r->ctx, &f, NULL, 0, &found));
	assert_int_equal(found, 3);
	assert_ok(pinl_query(r->ctx, &f, (struct pinl_lease_info *)old.info, 3, &found));
	for (int i = 0; i < 3; i++) {
		assert_int_equal(old.info[i].size, sizeof *old.info);
		assert_int_equal(old.info[i].id, old.info[0].id + i);
	}
	assert_memory_equal(old.after, untouched, sizeof untouched);
}

static void refuse(struct rig *r, struct pinl_filter f, size_t size)
{
	struct pinl_lease_info i = {.size = size};
	size_t found = 99;

	assert_int_equal(pinl_query(r->ctx, &f, &i, 1, &found), -EINVAL);
	assert_true(*pinl_error());
	assert_int_equal(found, 99);
}

static void bad_questions(void **state)
{
	struct rig *r = *state;
	size_t s = sizeof(struct pinl_filter), i = sizeof(struct pinl_lease_info);

	refuse(r, (struct pinl_filter){0}, i);
	refuse(r, (struct pinl_filter){.size = s}, 0);
	refuse(r, (struct pinl_filter){.size = s}, i + 1);
	refuse(r, (struct pinl_filter){.size = s, .states = 1u << 9}, i);
	refuse(r, (struct pinl_filter){.size = s, .policies = 1u << 9}, i);
	refuse(r, (struct pinl_filter){.size = s, .start = PAGE, .end = PAGE}, i);
	refuse(r, (struct pinl_filter){.size = s, .file_start = 2, .file_end = 1}, i);
}

static void a_child_learns_nothing(void **state)
{
	struct rig *r = *state;
	struct pinl_filter f = {.size = sizeof f};
	struct pinl_lease_info i = {.size = sizeof i};
	size_t found = 0;
	int status;
	pid_t pid;

	lease(r->soft, r->anon, 0, 1, &keep);
	pid = fork();
	if (!pid)
		_exit(pinl_query(r->ctx, &f, &i, 1, &found) == -ESTALE && !found && !i.id ? 0 : 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

#define CHURNERS 3
#define ROUNDS	 300

struct churner {
	struct rig *r;
	pthread_t thread;
	int page;
	atomic_int *left, failed;
};

/* Two neighbours take turns. */
static void *churn(void *arg)
{
	struct churner *c = arg;
	uintptr_t at = (uintptr_t)c->r->file + c->page * PAGE;
	struct pinl_lease *l[2] = {NULL, NULL};

	for (int i = 0; i < ROUNDS; i++) {
		int k = i & 1;

		c->failed |= pinl_map_range(c->r->soft, at + k * PAGE, at + (k + 1) * PAGE, FLAGS, &keep,
					    NULL, &l[k]);
		pinl_unmap_range(l[!k]);
		l[!k] = NULL;
	}
	pinl_unmap_range(l[!(ROUNDS & 1)]);
	atomic_fetch_sub(c->left, 1);
	return NULL;
}

/* Each picture is in order and whole: the lease that stays is always in it. */
static void while_leases_come_and_go(void **state)
{
	struct rig *r = *state;
	struct pinl_filter f = {.size = sizeof f};
	struct pinl_lease_info infos[4 * CHURNERS] = {{.size = sizeof *infos}};
	struct pinl_lease *still = lease(r->soft, r->file, 31, 1, &keep);
	struct churner c[CHURNERS];
	atomic_int left = CHURNERS;
	uint64_t id = id_of(still);
	size_t found;

	assert_ok(pinl_filter_file(&f, r->fd));
	for (int i = 0; i < CHURNERS; i++) {
		c[i] = (struct churner){.r = r, .page = 4 * i, .left = &left};
		assert_int_equal(pthread_create(&c[i].thread, NULL, churn, &c[i]), 0);
	}
	while (atomic_load(&left)) {
		assert_ok(pinl_query(r->ctx, &f, infos, 4 * CHURNERS, &found));
		assert_in_range(found, 1, 2 * CHURNERS + 1);
		assert_int_equal(infos[found - 1].id, id);
		for (size_t k = 1; k < found; k++)
			assert_true(infos[k - 1].file_offset < infos[k].file_offset);
	}
	for (int i = 0; i < CHURNERS; i++) {
		pthread_join(c[i].thread, NULL);
		assert_int_equal(c[i].failed, 0);
	}
	expect(r, f, 1, still);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(nothing_is_leased),
		TEST(by_address),
		TEST(by_file_range),
		TEST(by_device_owner_policy),
		TEST(by_state),
		TEST(a_moved_part_is_off_the_file),
		TEST(says_who_and_how),
		TEST(too_small_a_place),
		TEST(bad_questions),
		TEST(a_child_learns_nothing),
		TEST(while_leases_come_and_go),
	};

	return cmocka_run_group_tests_name("query", tests, NULL, NULL);
}
