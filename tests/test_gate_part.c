/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which leases the gate refuses for, with a kernel that only remembers what it was told: so it runs
 * anywhere. What a real one makes of it is tests/test_gate_load.c's and tests/test_gate.c's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/magic.h>
#include <cmocka.h>
#include "check.h"
#include "core/lease.h"
#include "daemon/daemon.h"
#include "daemon/gate.h"
#include "daemon/gate_load.h"
#include "daemon/gate_part.h"
#include "daemon/gate_stop.h"
#include "daemon/gate_wait.h"

/* ---------------------------------------------------------------------------------- the kernel -- */

static struct gate_range places[GATE_OF_FILE]; /* of the one file */
static unsigned used, given, names;	       /* names: kept */
static bool full;

int gate_identify(struct gate_programs *g, int fd, struct gate_file *file)
{
	*file = (struct gate_file){.ino = fd, .dev = 1, .generation = 1};
	return 0;
}

int gate_guard(struct gate_programs *g, const struct gate_file *file, unsigned place,
	       const struct gate_range *range)
{
	assert_int_equal(place, used);
	if (full)
		return pinl_set_error(-ENOMEM, "the gate can't guard the file");
	places[used++] = *range;
	names += (range->ops & GATE_NAME) != 0;
	return 0;
}

int gate_unguard(struct gate_programs *g, const struct gate_file *file, unsigned place, unsigned last,
		 const struct gate_range *of_last)
{
	assert_int_equal(last, used - 1);
	if (place != last)
		places[place] = *of_last;
	used--;
	return 0;
}

void gate_range_gone(struct gate_programs *g, const struct gate_range *range)
{
	names -= (range->ops & GATE_NAME) != 0;
}

const char *gate_unnamed(const struct gate_programs *g)
{
	return NULL;
}

static bool is_guarded(uint64_t offset)
{
	for (unsigned i = 0; i < used; i++)
		if (places[i].start <= offset && offset < places[i].end)
			return true;
	return false;
}

int share_guard(struct server *s, struct user *u, uint64_t n)
{
	given++;
	return 0;
}

void share_unguard(struct server *s, struct user *u)
{
	given--;
}

static struct gate_refusal asked;

void gate_waiting_never(struct gate_waiting *g, const char *why)
{
}

int gate_stop_asked(const struct gate_stops *s, const struct gate_refusal *call)
{
	asked = *call;
	return 0;
}

static pid_t never; /* to be stopped */
static bool no_room;

int gate_stop_never(const struct gate_stops *s, pid_t pid, bool is)
{
	if (no_room)
		return pinl_set_error(-E2BIG, "the gate is full");
	never = is ? pid : 0;
	return 0;
}

const char *gate_unwaited(const struct gate_programs *g)
{
	return NULL;
}

const char *gate_unpaged(const struct gate_programs *g)
{
	return NULL;
}

struct gate_stops *gate_stops(struct gate_programs *g)
{
	static struct gate_stops stops;

	return &stops;
}

/* What no test here gets to. */
void gate_stop_end(const struct gate_stops *s)
{
}
void gate_waiting_init(struct gate_waiting *g, struct server *s, struct gate_stops *stops,
		       void (*listen)(void *arg), void *arg)
{
}
void gate_waiting_start(struct gate_waiting *g)
{
}
void gate_waiting_renew(struct gate_waiting *g)
{
}
void gate_waiting_stop(struct gate_waiting *g)
{
}
void gate_waiting_free(struct gate_waiting *g)
{
}
void gate_waiting_answer(struct gate_waiting *g)
{
}
void gate_waiting_told(struct gate_waiting *g, const struct gate_refusal *call,
		       const struct pinl_change *change)
{
}
bool gate_waiting_under_way(const struct gate_waiting *g, uint64_t dev, uint64_t ino, uint64_t start,
			    uint64_t end, pid_t thread)
{
	return false;
}
int gate_load(const char *dir, unsigned keep_ms, struct gate_programs **out)
{
	*out = NULL;
	return 0;
}
void gate_unload(struct gate_programs *g)
{
}
void gate_leave(struct gate_programs *g, unsigned ms)
{
}
const char *gate_means(const struct gate_programs *g)
{
	return "lsm";
}
const char *gate_unpinned(const struct gate_programs *g)
{
	return NULL;
}
const char *gate_own(const struct gate_programs *g)
{
	return NULL;
}
void gate_renew(struct gate_programs *g)
{
}
uint64_t gate_missed(const struct gate_programs *g)
{
	return 0;
}
uint64_t gate_was_open(const struct gate_programs *g)
{
	return 0;
}
uint64_t gate_unrefused(const struct gate_programs *g)
{
	return 0;
}
uint64_t gate_untold(const struct gate_programs *g)
{
	return 0;
}
int gate_fd(const struct gate_programs *g)
{
	return -1;
}
void gate_read(struct gate_programs *g, void (*told)(const struct gate_refusal *r, void *arg), void *arg)
{
}
unsigned gate_take_over(const char *dir, const char *own, uint64_t until_ns)
{
	return 0;
}

/* -------------------------------------------------------------------------------- the sources -- */

static unsigned other_refuses; /* PINL_OPBIT()s */

static unsigned other_coverage(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return other_refuses & PINL_OPBIT(op) ? PINL_CAN_TELL | PINL_CAN_REFUSE : PINL_CAN_TELL;
}

static const struct pinl_source_ops other_ops = {
	.size = sizeof other_ops, .name = "other", .coverage = other_coverage};

static struct server server;
static struct pinl_ctx ctx;
static void *gate;

static int open_gate(void **state)
{
	struct gate_options o = {.server = &server};

	used = given = names = 0;
	full = false;
	other_refuses = 0;
	server.ctx = &ctx;
	pthread_mutex_init(&ctx.lock, NULL);
	assert_ok(gate_ops.open(&ctx, &o, &gate));
	ctx.sources[0] = (struct pl_source){&gate_ops, gate};
	ctx.sources[1] = (struct pl_source){&other_ops, NULL};
	ctx.n_sources = 2;
	return 0;
}

static int close_gate(void **state)
{
	gate_ops.close(gate);
	return 0;
}

/* --------------------------------------------------------------------------------- the leases -- */

#define HOLDER 77

static const struct pl_foreign_ops foreign;
static struct pinl_device device = {.foreign = &foreign};

struct leased {
	struct pinl_lease lease;
	struct pl_more more;
	struct held_lease held;
	struct holder holder;
};

/* One page of the file. */
static void lease_of(struct leased *l, struct user *u, uint64_t id, uint64_t page,
		     enum pinl_policy_kind kind, long fs_magic)
{
	*l = (struct leased){.lease = {.id = id, .policy = {.kind = kind, .refuse = PINL_OPS_FILE}},
			     .holder = {.user = u}};
	l->lease.m = (struct pl_range){0x10000, 0x11000};
	l->lease.cookie = &l->held;
	l->held.holder = &l->holder;
	l->holder.server = &server;
	l->holder.pid = HOLDER;
	l->held.lease = &l->lease;
	l->more.lease = &l->lease;
	l->more.ground.mem = (struct pinl_memory){
		.fd = 7, .ino = 7, .dev = 1, .fs_magic = fs_magic, .offset = page * 4096};
	l->lease.on = &l->more.ground;
	l->lease.more = &l->more;
	l->lease.dev = &device;
	l->more.owner = HOLDER;
}

static int lease_as(struct leased *l, struct user *u, uint64_t id, uint64_t page,
		    enum pinl_policy_kind kind, long fs_magic)
{
	lease_of(l, u, id, page, kind, fs_magic);
	return gate_ops.watch(gate, &l->more.ground.mem);
}

static int lease(struct leased *l, struct user *u, uint64_t id, uint64_t page)
{
	return lease_as(l, u, id, page, PINL_REFUSE, EXT4_SUPER_MAGIC);
}

static void end(struct leased *l)
{
	gate_ops.unwatch(gate, &l->more.ground.mem);
}

static void what_ends_is_guarded_no_more(void **state)
{
	static struct leased l[3];
	struct user u = {0};

	for (int i = 0; i < 3; i++)
		assert_ok(lease(&l[i], &u, i + 1, i));
	end(&l[0]);
	assert_false(is_guarded(0));
	assert_true(is_guarded(4096) && is_guarded(8192));
	end(&l[0]); /* once more */
	assert_int_equal(used, 2);
	end(&l[2]);
	assert_true(is_guarded(4096));
	end(&l[1]);
	assert_int_equal(used, 0);
	assert_int_equal(given, 0);
}

/* It ended before the main loop was told that all of it was taken, and the next one is in its place. */
static void who_comes_after_one_that_was_taken_is_guarded(void **state)
{
	static struct leased l, next;
	static struct held_lease taken;
	struct user u = {0};

	assert_ok(lease(&next, &u, 3, 7));
	assert_ok(lease(&l, &u, 1, 0));
	taken = l.held;
	taken.taken_id = 1;
	end(&l);
	assert_ok(lease(&l, &u, 2, 5));
	LIST_INSERT_HEAD(&server.refuse_no_more, &taken, no_more);
	gate_drop(&server);
	assert_true(is_guarded(5 * 4096));
	taken.taken_id = 3;
	LIST_INSERT_HEAD(&server.refuse_no_more, &taken, no_more);
	gate_drop(&server);
	assert_false(is_guarded(7 * 4096));
	end(&next);
	end(&l);
	assert_int_equal(used, 0);
}

/* However many one user leases, others can still refuse changes of the same file. */
static void a_user_has_his_share_of_a_file(void **state)
{
	struct leased *l = calloc(GATE_OF_FILE, sizeof *l);
	struct user greedy = {.uid = 1}, other = {.uid = 2};
	static struct leased his;
	unsigned n = 0;
	int err;

	assert_non_null(l);
	while (!(err = lease(&l[n], &greedy, n + 1, n)))
		n++;
	assert_int_equal(err, -EDQUOT);
	assert_non_null(strstr(pinl_error(), "larger pieces"));
	assert_int_equal(n, GATE_OF_FILE / 4 * 3);
	assert_int_equal(given, n);
	assert_ok(lease(&his, &other, n + 1, n));
	end(&l[3]);
	assert_false(is_guarded(3 * 4096));
	assert_true(is_guarded((uint64_t)(n - 1) * 4096));
	end(&his);
	assert_ok(lease(&l[3], &greedy, n + 2, 3)); /* there is room again */
	for (unsigned i = 0; i < n; i++)
		end(&l[i]);
	assert_int_equal(used, 0);
	free(l);
}

/* Where fanotify refuses, a lease doesn't fail for want of the gate, which only sees more. */
static void what_another_source_refuses_needs_no_gate(void **state)
{
	static struct leased l;
	struct user u = {0};

	full = true;
	assert_int_equal(lease(&l, &u, 1, 0), -ENOMEM);
	other_refuses = PINL_OPS_FILE & ~PINL_OPBIT(PINL_OP_PUNCH);
	assert_int_equal(lease(&l, &u, 2, 0), -ENOMEM);
	other_refuses = PINL_OPS_FILE;
	assert_ok(lease(&l, &u, 3, 0));
	assert_int_equal(given, 0);
	end(&l);
}

/* Where it sees nothing else; and a process that has to answer is never stopped, wherever that is. */
static void others_wait_for_recall_in_memory(void **state)
{
	static struct leased memory, disk;
	struct user u = {0};

	assert_ok(lease_as(&disk, &u, 1, 0, PINL_RECALL, EXT4_SUPER_MAGIC));
	gate_hold(&disk.held);
	assert_int_equal(used, 0);
	assert_int_equal(never, HOLDER);
	assert_ok(lease_as(&memory, &u, 2, 0, PINL_RECALL, TMPFS_MAGIC));
	gate_hold(&memory.held);
	assert_int_equal(used, 1);
	assert_int_equal(places[0].ops, 0);
	assert_int_equal(places[0].waits & PINL_OPS_FILE, PINL_OPS_FILE);
	assert_int_equal(places[0].holder, HOLDER);
	end(&disk);
	gate_let_go(&disk.held);
	assert_int_equal(never, HOLDER);
	end(&memory);
	gate_let_go(&memory.held);
	assert_int_equal(never, 0);
	assert_int_equal(used, 0);
}

/* One of which that can't be remembered, beside one of which it can. */
static void who_isnt_remembered_takes_nothing_from_who_is(void **state)
{
	static struct leased l[2];
	struct user u = {0};

	no_room = true;
	assert_ok(lease_as(&l[0], &u, 1, 0, PINL_RECALL, TMPFS_MAGIC));
	gate_hold(&l[0].held);
	assert_int_equal(never, 0);
	no_room = false;
	assert_ok(lease_as(&l[1], &u, 2, 0, PINL_RECALL, TMPFS_MAGIC));
	gate_hold(&l[1].held);
	end(&l[0]);
	gate_let_go(&l[0].held);
	assert_int_equal(never, HOLDER);
	end(&l[1]);
	gate_let_go(&l[1].held);
	assert_int_equal(never, 0);
}

/* Under pinlease run they wait there, and not once more at the gate. */
static void for_what_leases_were_asked_the_gate_isnt(void **state)
{
	struct pinl_change ch = {.op = PINL_OP_REMOVE,
				 .file_dev = 1,
				 .file_ino = 7,
				 .file_end = UINT64_MAX,
				 .actor_pid = 5};
	static struct leased l;
	struct user u = {0};

	assert_ok(lease_as(&l, &u, 1, 0, PINL_RECALL, TMPFS_MAGIC));
	ch.file_ino = 8;
	gate_was_asked(&server, &ch);
	assert_int_equal(asked.pid, 0);
	ch.file_ino = 7;
	gate_was_asked(&server, &ch);
	assert_int_equal(asked.pid, 5);
	assert_int_equal(asked.file.ino, 7);
	assert_int_equal(asked.op, PINL_OP_REMOVE);
	assert_int_equal(asked.end, GATE_END);
	end(&l);
}

/* Without a place the core is told that nobody waits, and makes the lease, but for an EBUSY. */
static void recall_without_a_place_is_said(void **state)
{
	static struct leased l;
	struct user u = {0};
	int err;

	full = true;
	err = lease_as(&l, &u, 1, 0, PINL_RECALL, TMPFS_MAGIC);
	assert_true(err && err != -EBUSY);
	end(&l);
	assert_int_equal(used, 0);
}

/* A lease of an open file, with the flag. */
static int lease_name(struct leased *l, struct user *u, uint64_t id, int fd, enum pinl_policy_kind kind)
{
	lease_of(l, u, id, 0, kind, TMPFS_MAGIC);
	l->lease.flags = PINL_KEEP_NAME;
	l->more.ground.mem.fd = fd;
	return gate_ops.watch(gate, &l->more.ground.mem);
}

static int open_named(char path[32])
{
	int fd;

	strcpy(path, "/tmp/pinlease-name.XXXXXX");
	fd = mkostemp(path, O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static void names_are_kept_under_any_policy(void **state)
{
	static struct leased l[4];
	struct user u = {0};
	char path[32];
	int fd = open_named(path);

	for (int kind = 0; kind < 4; kind++) {
		assert_ok(lease_name(&l[kind], &u, kind + 1, fd, kind));
		assert_int_equal(places[kind].ops,
				 GATE_NAME | (kind == PINL_REFUSE ? PINL_OPS_FILE : 0));
		assert_int_equal(places[kind].waits != 0, kind == PINL_RECALL);
	}
	assert_int_equal(names, 4);
	for (int kind = 0; kind < 4; kind++)
		end(&l[kind]);
	assert_int_equal(names, 0);
	assert_int_equal(used, 0);
	assert_int_equal(never, 0);
	unlink(path);
	close(fd);
}

/* Whatever else could be done without the gate. */
static void a_name_that_is_not_kept_fails(void **state)
{
	struct user u = {0};
	static struct leased l;
	char path[32];
	int fd = open_named(path);

	other_refuses = PINL_OPS_FILE;
	full = true;
	for (int kind = 0; kind < 4; kind++)
		assert_int_equal(lease_name(&l, &u, kind + 1, fd, kind), -ENOMEM);
	full = false;
	unlink(path);
	for (int kind = 0; kind < 4; kind++) {
		assert_int_equal(lease_name(&l, &u, kind + 1, fd, kind), -ENOENT);
		assert_non_null(strstr(pinl_error(), "no name"));
	}
	l.more.resumed = true; /* it was taken up, and guards what else it has */
	assert_ok(gate_ops.watch(gate, &l.more.ground.mem));
	end(&l);
	assert_int_equal(names, 0);
	assert_int_equal(used, 0);
	assert_int_equal(never, 0);
	close(fd);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_gate, close_gate)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_ends_is_guarded_no_more),
		TEST(who_comes_after_one_that_was_taken_is_guarded),
		TEST(a_user_has_his_share_of_a_file),
		TEST(what_another_source_refuses_needs_no_gate),
		TEST(others_wait_for_recall_in_memory),
		TEST(who_isnt_remembered_takes_nothing_from_who_is),
		TEST(for_what_leases_were_asked_the_gate_isnt),
		TEST(recall_without_a_place_is_said),
		TEST(names_are_kept_under_any_policy),
		TEST(a_name_that_is_not_kept_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
