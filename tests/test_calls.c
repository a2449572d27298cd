/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Explicit calls against what the kernel does by itself: the same result, the same pages gone, and of no
 * lease more or less than that asked for.
 */
#include "uffd_rig.h"

#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define MOVE (MREMAP_MAYMOVE | MREMAP_FIXED)

static struct rig r;

static int open_rig(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .ceiling_ms = 600000, .summary_fd = -1};

	memset(&r, 0, sizeof r);
	alarm(HANG_S);
	assert_ok(pinl_open(&opts, &r.ctx));
	assert_ok(pinl_device_open(r.ctx, "soft", NULL, &r.dev));
	rig_map_memory(&r, MEMFD);
	return 0;
}

static int close_rig(void **state)
{
	rig_close(&r);
	return 0;
}

static struct pinl_policy policy_of(enum pinl_policy_kind kind)
{
	return (struct pinl_policy){
		.size = sizeof(struct pinl_policy),
		.kind = kind,
		.refuse = kind == PINL_REFUSE ? PINL_OPS_ALL & ~PINL_OPBIT(PINL_OP_GUARD) : 0,
		.grace_ms = 300000};
}

static int lease(char *va, size_t len, struct pinl_policy policy, struct pinl_lease **out)
{
	return pinl_map_range(r.dev, (uintptr_t)va, (uintptr_t)va + len, PINNED | PINL_COOPERATIVE,
			      &policy, NULL, out);
}

/* Plain system calls on mappings are held. */
static void skip_unless_calls_are_held(void)
{
	char sources[2048] = "";
	const char *why;

	pinl_sources(r.ctx, sources, sizeof sources);
	why = strstr(sources, "uffd: missing");
	if (!why)
		return;
	print_message("skip: %.*s\n", (int)strcspn(why, "\n"), why);
	skip();
}

/* ------------------------------------------------------------------------------- cancellation -- */

struct caller {
	pthread_t thread;
	enum pinl_op op;
	char *target;
	int ended, err;
};

static int explicit_call(enum pinl_op op, char *target)
{
	void *out;

	switch (op) {
	case PINL_OP_UNMAP:
		return pinl_munmap(r.ctx, r.va, SIZE);
	case PINL_OP_REMAP:
		return pinl_mremap(r.ctx, r.va, SIZE, SIZE, MOVE, target, &out);
	case PINL_OP_REMOVE:
		return pinl_madvise(r.ctx, r.va, SIZE, MADV_REMOVE);
	case PINL_OP_TRUNCATE:
		return pinl_ftruncate(r.ctx, r.fd, 0);
	default:
		return pinl_fallocate(r.ctx, r.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE);
	}
}

static void *call(void *arg)
{
	struct caller *c = arg;

	c->err = explicit_call(c->op, c->target);
	c->ended = 1;
	pthread_testcancel();
	return NULL;
}

/* Who is cancelled while his change is held makes it first, and leaves nothing closed behind him. */
static void a_cancelled_caller_ends_his_call(void **state)
{
	static const enum pinl_op ops[] = {PINL_OP_TRUNCATE, PINL_OP_PUNCH, PINL_OP_REMOVE,
					   PINL_OP_REMAP, PINL_OP_UNMAP};
	void *end;

	for (unsigned i = 0; i < sizeof ops / sizeof *ops; i++) {
		struct caller c = {.op = ops[i]};

		assert_ok(lease(r.va, SIZE, policy_of(PINL_RECALL), &r.lease));
		c.target = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert_int_equal(pthread_create(&c.thread, NULL, call, &c), 0);
		await(&r, PINL_EV_NOTICE);
		pthread_cancel(c.thread);
		assert_ok(pinl_quiesced(r.lease));
		pthread_join(c.thread, &end);
		assert_ptr_equal(end, PTHREAD_CANCELED);
		assert_true(c.ended);
		assert_ok(c.err);
		pinl_unmap_range(r.lease);
		munmap(c.target, SIZE);
		assert_int_equal(ftruncate(r.fd, SIZE), 0);
		r.va = map_alone(SIZE, MAP_SHARED, r.fd);
		memset(r.va, 'a', SIZE);
	}
	assert_ok(lease(r.va, SIZE, policy_of(PINL_KEEP), &r.lease));
}

/* ------------------------------------------------------------------------------------- mremap -- */

static int no_notices(void)
{
	struct pinl_counters n = {.size = sizeof n};

	assert_ok(pinl_counters(r.ctx, &n));
	return !n.notices && !n.orphans;
}

/* Whoever refuses, source or target: the other's lease isn't recalled for a move that doesn't come. */
static void a_refused_move_recalls_nothing(void **state)
{
	for (int at_source = 0; at_source < 2; at_source++) {
		char *target =
			mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		struct pinl_policy recall = policy_of(PINL_RECALL), refuse = policy_of(PINL_REFUSE);
		struct pinl_lease *other;
		void *out = target;

		recall.grace_ms = 1;
		assert_ok(lease(r.va, SIZE, at_source ? refuse : recall, &r.lease));
		assert_ok(lease(target, SIZE, at_source ? recall : refuse, &other));
		assert_int_equal(pinl_mremap(r.ctx, r.va, SIZE, SIZE, MOVE, target, &out), -EBUSY);
		assert_ptr_equal(out, target);
		assert_true(no_notices());
		assert_ok(settled_check(r.lease));
		assert_ok(settled_check(other));
		assert_int_equal(await(&r, PINL_EV_REFUSED).op,
				 at_source ? PINL_OP_REMAP : PINL_OP_OVERMAP);
		pinl_unmap_range(other);
		pinl_unmap_range(r.lease);
		munmap(target, SIZE);
	}
	assert_ok(lease(r.va, SIZE, policy_of(PINL_KEEP), &r.lease)); /* no gate was left */
}

/* Nothing goes from who refuses it, nor is it asked for what the kernel won't do. */
static void growing_in_place_takes_nothing(void **state)
{
	char *va = with_room(SIZE);
	void *out = NULL;

	assert_ok(lease(va, SIZE, policy_of(PINL_REFUSE), &r.lease));
	assert_ok(pinl_mremap(r.ctx, va, SIZE, 2 * SIZE, 0, NULL, &out));
	assert_ptr_equal(out, va);
	assert_int_equal(pinl_mremap(r.ctx, va, SIZE, SIZE, MREMAP_FIXED, va + SIZE, &out), -EINVAL);
	assert_int_equal(pinl_mremap(r.ctx, va, SIZE, 2 * SIZE, MREMAP_MAYMOVE, NULL, &out), -EBUSY);
	assert_true(no_notices());
	pinl_unmap_range(r.lease);
	munmap(va, 2 * SIZE);
	assert_ok(lease(r.va, SIZE, policy_of(PINL_KEEP), &r.lease));
}

static void assert_overflows(int err)
{
	assert_int_equal(err, -EINVAL);
	assert_non_null(strstr(pinl_error(), "overflows"));
}

/* The end of what is asked for, as it is or as whole pages, is no address any more. */
static void what_ends_beyond_all_addresses_is_refused(void **state)
{
	char *last = (char *)-PAGE;
	void *out = NULL;

	assert_ok(lease(r.va, SIZE, policy_of(PINL_RECALL), &r.lease));
	for (size_t len = 1; len <= PAGE; len += PAGE / 2 - 1) {
		assert_overflows(pinl_munmap(r.ctx, last, len));
		assert_overflows(pinl_madvise(r.ctx, last, len, MADV_DONTNEED));
		assert_overflows(pinl_mremap(r.ctx, last, len, SIZE, MREMAP_MAYMOVE, NULL, &out));
	}
	assert_overflows(pinl_munmap(r.ctx, NULL, -1));
	/* what would be cut off lies before it */
	assert_overflows(pinl_mremap(r.ctx, r.va + SIZE, -PAGE, -SIZE, MREMAP_MAYMOVE, NULL, &out));
	assert_true(no_notices());
	assert_null(out);
}

/* -------------------------------------------------------------------------------- MADV_REMOVE -- */

#define LAYOUT 8  /* pages */
#define FAR    16 /* pages, to another part of the same file */

/* Two files, mapped page by page as the letters say. */
struct layout {
	const char *how;
	int fd[2];
	char *va;
};

static void map_page(struct layout *l, int page, char how, int read_only)
{
	char *at = l->va + page * PAGE;
	int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_FIXED, fd = l->fd[how == 'B'];
	off_t offset = page * PAGE;

	if (how == '.') {
		assert_int_equal(munmap(at, PAGE), 0);
		return;
	}
	if (how == 'a') /* A, elsewhere in it */
		offset += FAR * PAGE;
	if (how == 'r' || how == 'w') /* A, read only for now; and for ever */
		prot = PROT_READ;
	if (how == 'r')
		fd = read_only;
	if (how == 'p')
		flags = MAP_PRIVATE | MAP_FIXED;
	if (how == 'n')
		flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS;
	assert_ptr_equal(mmap(at, PAGE, prot, flags, how == 'n' ? -1 : fd, offset), at);
}

static void lay_out(struct layout *l, const char *how)
{
	char path[64], page[PAGE];
	int read_only;

	l->how = how;
	memset(page, 'x', PAGE);
	for (int i = 0; i < 2; i++) {
		l->fd[i] = memfd_create("layout", MFD_CLOEXEC);
		for (int j = 0; j < 2 * FAR; j++)
			assert_int_equal(pwrite(l->fd[i], page, PAGE, j * PAGE), PAGE);
	}
	snprintf(path, sizeof path, "/proc/self/fd/%d", l->fd[0]);
	read_only = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(read_only >= 0);
	l->va = mmap(NULL, LAYOUT * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < LAYOUT; i++)
		map_page(l, i, how[i], read_only);
	close(read_only);
}

/* Which pages of both files are left. */
static uint64_t pages_of(const struct layout *l)
{
	uint64_t left = 0;
	char c;

	for (int i = 0; i < 4 * FAR; i++) {
		assert_int_equal(pread(l->fd[i / (2 * FAR)], &c, 1, i % (2 * FAR) * PAGE), 1);
		left |= (uint64_t)(c == 'x') << i;
	}
	return left;
}

static void take_down(struct layout *l)
{
	for (int i = 0; i < LAYOUT; i++)
		if (l->how[i] != '.') /* that may be another's by now */
			munmap(l->va + i * PAGE, PAGE);
	close(l->fd[0]);
	close(l->fd[1]);
}

static void remove_takes_what_the_kernel_would(void **state)
{
	static const char *const layouts[] = {"AAAABBBB", "AABBAABB", "AAaaBBaa", "AA..BBBB",
					      "..AABBBB", "AABBBB..", "........", "AAnnBBBB",
					      "AAppBBBB", "ppBBBBBB", "AAwwAABB", "wwwwAABB",
					      "AArrAABB", "wwrrAABB", "AA.nBB.."};

	for (unsigned i = 0; i < sizeof layouts / sizeof *layouts; i++) {
		struct layout plain, ours;
		uint64_t left;
		int err;

		print_message("%s\n", layouts[i]);
		lay_out(&plain, layouts[i]);
		err = madvise(plain.va, LAYOUT * PAGE, MADV_REMOVE) ? -errno : 0;
		left = pages_of(&plain);
		take_down(&plain);
		lay_out(&ours, layouts[i]);
		assert_int_equal(pinl_madvise(r.ctx, ours.va, LAYOUT * PAGE, MADV_REMOVE), err);
		assert_int_equal(pages_of(&ours), left);
		take_down(&ours);
	}
}

/* What was forced has private memory now, and the hole is made all the same; in this part only. */
static void remove_reaches_the_file_under_a_forced_lease(void **state)
{
	struct pinl_policy copy = policy_of(PINL_RECALL);
	struct pinl_lease *forced;
	struct layout l;

	copy.then = PINL_THEN_COPY;
	copy.grace_ms = 1;
	lay_out(&l, "AAAAAABB");
	assert_ok(lease(l.va + 2 * PAGE, 2 * PAGE, copy, &forced));
	assert_ok(pinl_madvise(r.ctx, l.va, 7 * PAGE, MADV_REMOVE));
	assert_int_equal(~pages_of(&l), 0x3full | 1ull << (2 * FAR + 6));
	assert_int_equal(l.va[2 * PAGE], 'x');
	assert_int_equal(l.va[4 * PAGE], 0);
	pinl_unmap_range(forced);
	take_down(&l);
}

/* A lease at the end of the range, or on the same pages elsewhere: nothing is gone before it has its
 * say. */
static void remove_is_refused_as_a_whole(void **state)
{
	struct pinl_lease *refusing;
	struct layout l;
	char *again;

	lay_out(&l, "AAAABBBB");
	assert_ok(lease(l.va + 7 * PAGE, PAGE, policy_of(PINL_REFUSE), &refusing));
	assert_int_equal(pinl_madvise(r.ctx, l.va, 8 * PAGE, MADV_REMOVE), -EBUSY);
	assert_int_equal(~pages_of(&l), 0);
	assert_ok(pinl_madvise(r.ctx, l.va, 7 * PAGE, MADV_REMOVE));
	pinl_unmap_range(refusing);
	take_down(&l);

	lay_out(&l, "AAAABBBB");
	again = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, l.fd[0], 0);
	assert_ok(lease(again, PAGE, policy_of(PINL_REFUSE), &refusing));
	assert_int_equal(pinl_madvise(r.ctx, l.va, 4 * PAGE, MADV_REMOVE), -EBUSY);
	assert_int_equal(~pages_of(&l), 0);
	pinl_unmap_range(refusing);
	munmap(again, PAGE);
	take_down(&l);
}

/* Nobody has to wait for the way to the file, so nobody's hold is cut short for it. */
static void remove_leaves_a_strangers_hold_alone(void **state)
{
	struct pinl_lease *held;
	struct pinl_event ev = {.size = sizeof ev};
	struct actor a;
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	skip_unless_calls_are_held();
	memset(va, 1, SIZE);
	assert_ok(lease(va, SIZE, policy_of(PINL_RECALL), &held));
	assert_ok(lease(r.va, SIZE, policy_of(PINL_KEEP), &r.lease));
	actor_start(&a, PINL_OP_DONTNEED, va, SIZE, NULL);
	await(&r, PINL_EV_NOTICE);
	assert_ok(pinl_madvise(r.ctx, r.va, PAGE, MADV_REMOVE));
	assert_false(a.done);
	assert_ok(pinl_quiesced(held));
	actor_join(&a);
	await(&r, PINL_EV_ANSWERED);
	pinl_unmap_range(held);
	while (!pinl_next_event(r.ctx, &ev))
		assert_int_not_equal(ev.type, PINL_EV_DEGRADED);
	for (int i = 0; i < r.n_evs; i++)
		assert_int_not_equal(r.evs[i].type, PINL_EV_DEGRADED);
	munmap(va, SIZE);
}

/* -------------------------------------------------------------------------------------- files -- */

/* What is to happen as soon as this thread has looked at a file. */
static _Thread_local void (*after_fstat)(void);

int fstat(int fd, struct stat *st)
{
	int err = syscall(SYS_fstat, fd, st);
	void (*then)(void) = after_fstat;

	after_fstat = NULL;
	if (then)
		then();
	return err;
}

static char *grown;

static void grow_and_lease(void)
{
	assert_int_equal(ftruncate(r.fd, 2 * SIZE), 0);
	grown = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, SIZE);
	memset(grown, 'g', SIZE);
	assert_ok(lease(grown, SIZE, policy_of(PINL_REFUSE), &r.lease));
}

/* It was to stay as long as it was seen to be, so nothing was to be cut off. */
static void a_file_that_grew_meanwhile_is_asked_about(void **state)
{
	after_fstat = grow_and_lease;
	assert_int_equal(pinl_ftruncate(r.ctx, r.fd, SIZE), -EBUSY);
	assert_null(after_fstat);
	assert_int_equal(lseek(r.fd, 0, SEEK_END), 2 * SIZE);
	assert_int_equal(grown[SIZE - 1], 'g');
	assert_ok(pinl_ftruncate(r.ctx, r.fd, 3 * SIZE)); /* really growing */
	pinl_unmap_range(r.lease);
	r.lease = NULL;
	munmap(grown, SIZE);
}

#define with_rig(test) cmocka_unit_test_setup_teardown(test, open_rig, close_rig)

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_rig(a_cancelled_caller_ends_his_call),
		with_rig(a_refused_move_recalls_nothing),
		with_rig(growing_in_place_takes_nothing),
		with_rig(what_ends_beyond_all_addresses_is_refused),
		with_rig(remove_takes_what_the_kernel_would),
		with_rig(remove_reaches_the_file_under_a_forced_lease),
		with_rig(remove_is_refused_as_a_whole),
		with_rig(remove_leaves_a_strangers_hold_alone),
		with_rig(a_file_that_grew_meanwhile_is_asked_about),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
