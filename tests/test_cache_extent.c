/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Registrations in a mapping that is watched as a whole are made without asking the kernel what is
 * there (lib/core/extent.h). What has been taken out of such a mapping isn't believed to be part of it:
 * else other memory at its addresses would be registered unwatched, and found when it is gone again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/userfaultfd.h>
#include <pinlease/source.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <time.h>

#include "cache_rig.h"

enum { PAGES = 16, WHERE = 5, ROUNDS = 50 };

static char *anew(char *at, int fd)
{
	char *got =
		mmap(at, PAGE, PROT_READ | PROT_WRITE,
		     MAP_FIXED_NOREPLACE | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0);

	assert_ptr_equal(got, at);
	return at;
}

static void unmap_raw(struct rig *r, char *at)
{
	assert_int_equal(munmap(at, PAGE), 0);
}

static void unmap_by_call(struct rig *r, char *at)
{
	assert_ok(pinl_munmap(r->ctx, at, PAGE));
}

static void move_away(struct rig *r, char *at)
{
	char *to = pages_new(1);

	assert_ptr_equal(mremap(at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	munmap(to, PAGE);
}

static void move_by_call(struct rig *r, char *at)
{
	void *got, *to = pages_new(1);

	assert_ok(pinl_mremap(r->ctx, at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to, &got));
	munmap(to, PAGE);
}

static void map_over(struct rig *r, char *at)
{
	assert_ptr_equal(mmap(at, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), at);
	munmap(at, PAGE);
}

/* ---------------------------------------------------- another thread, while a mapping is being watched
 * -- */

static struct {
	char *arena;
	int watches;
} meanwhile;

static void *take_page(void *arg)
{
	assert_int_equal(munmap(meanwhile.arena + WHERE * PAGE, PAGE), 0);
	return NULL;
}

static void *put_page(void *arg)
{
	anew(meanwhile.arena + WHERE * PAGE, -1);
	return NULL;
}

static void by_thread(void *(*fn)(void *arg))
{
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, fn, NULL), 0);
	pthread_join(t, NULL);
}

/* The library's, too. A page goes before anything is watched, and another is there after all has been.
 */
int ioctl(int fd, unsigned long request, ...)
{
	const struct uffdio_register *r;
	bool is_arena = false;
	va_list ap;
	void *arg;
	int ret;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	r = arg;
	if (meanwhile.arena && request == UFFDIO_REGISTER)
		is_arena = r->range.start <= (uintptr_t)meanwhile.arena &&
			   r->range.start + r->range.len >= (uintptr_t)meanwhile.arena + PAGES * PAGE;
	if (is_arena && ++meanwhile.watches == 1)
		by_thread(take_page);
	ret = syscall(SYS_ioctl, fd, request, arg);
	if (is_arena && meanwhile.watches == 2)
		by_thread(put_page);
	return ret;
}

static void a_page_mapped_while_the_rest_is_being_watched_is_watched(void **state)
{
	char *arena = pages_new(PAGES), *at = arena + WHERE * PAGE;
	struct rig r;

	rig_open(&r, unmerged());
	set_tag(arena, 1);
	meanwhile.arena = arena;
	assert_int_equal(tag_at(&r, arena), 1);
	meanwhile.arena = NULL;
	if (meanwhile.watches < 2) /* else it isn't there */
		anew(at, -1);
	set_tag(at, 2);
	assert_int_equal(tag_at(&r, at), 2);
	munmap(at, PAGE);
	set_tag(anew(at, -1), 3);
	assert_int_equal(tag_at(&r, at), 3);
	rig_close(&r);
	munmap(arena, PAGES * PAGE);
}

static void is_refused_by_shmat(struct rig *r)
{
	int id = shmget(IPC_PRIVATE, PAGE, 0600 | IPC_CREAT);
	const struct pinl_reg *reg;
	char *at;

	assert_true(id >= 0);
	at = shmat(id, NULL, 0);
	shmctl(id, IPC_RMID, NULL);
	set_tag(at, 1);
	assert_int_equal(pinl_get(r->dev, at, 8, 0, &reg), -EOPNOTSUPP);
	shmdt(at);
}

/* Nobody hears of shmdt(). The first segment of an IPC namespace (which only root can make here) has id
   0, and so has its inode. */
static void what_shmat_has_mapped_is_refused(void **state)
{
	struct rig r;

	unshare(CLONE_NEWIPC);
	rig_open(&r, unmerged());
	is_refused_by_shmat(&r);
	is_refused_by_shmat(&r);
	rig_close(&r);
}

/* -------------------------------------------------------------------------------------------------- */

/* Out of the mapping, then other memory there, twice: the second time only its own watch can tell. */
static void taken_out(void (*go)(struct rig *r, char *at), int fd)
{
	uint32_t tag = 1;
	struct rig r;

	rig_open(&r, unmerged());
	for (int i = 0; i < ROUNDS; i++) {
		char *arena = pages_new(PAGES), *at = arena + WHERE * PAGE;

		for (int page = 0; page < PAGES; page++) {
			set_tag(arena + page * PAGE, ++tag);
			assert_int_equal(tag_at(&r, arena + page * PAGE), tag);
		}
		go(&r, at);
		set_tag(anew(at, fd), ++tag);
		assert_int_equal(tag_at(&r, at), tag);
		munmap(at, PAGE);
		set_tag(anew(at, -1), ++tag);
		assert_int_equal(tag_at(&r, at), tag);
		assert_int_equal(tag_at(&r, arena), tag - 1 - PAGES);
		munmap(arena, PAGES * PAGE);
	}
	rig_close(&r);
}

static void what_is_mapped_after_munmap_is_watched(void **state)
{
	taken_out(unmap_raw, -1);
}

static void what_is_mapped_after_the_call_is_watched(void **state)
{
	taken_out(unmap_by_call, -1);
}

static void what_is_mapped_after_mremap_is_watched(void **state)
{
	taken_out(move_away, -1);
	taken_out(move_by_call, -1);
}

static void what_is_mapped_after_another_mapping_is_watched(void **state)
{
	taken_out(map_over, -1);
}

static void a_file_mapped_there_is_watched(void **state)
{
	int fd = memfd_create("extent", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, PAGE), 0);
	taken_out(unmap_raw, fd);
	taken_out(unmap_by_call, fd);
	close(fd);
}

/* The call leaves everything beside its pages watched. */
static void what_is_beside_an_unmapped_page_is_watched(void **state)
{
	char *arena = pages_new(PAGES), *at = arena + (WHERE + 1) * PAGE;
	struct rig r;

	rig_open(&r, unmerged());
	for (int page = 0; page < PAGES; page++) {
		set_tag(arena + page * PAGE, page + 1);
		assert_int_equal(tag_at(&r, arena + page * PAGE), page + 1);
	}
	unmap_by_call(&r, arena + WHERE * PAGE);
	assert_int_equal(tag_at(&r, at), WHERE + 2);
	munmap(at, PAGE);
	set_tag(anew(at, -1), 100);
	assert_int_equal(tag_at(&r, at), 100);
	rig_close(&r);
	munmap(arena, PAGES * PAGE);
}

static void what_may_not_be_written_to_is_refused(void **state)
{
	const struct pinl_reg *reg;
	char *arena = pages_new(PAGES);
	struct rig r;

	rig_open(&r, unmerged());
	assert_int_equal(mprotect(arena, PAGES * PAGE, PROT_READ), 0);
	assert_int_equal(tag_at(&r, arena), 0);
	assert_int_equal(tag_at(&r, arena + PAGE), 0);
	assert_int_equal(pinl_get(r.dev, arena + 2 * PAGE, 8, PINL_WRITE, &reg), -EACCES);
	rig_close(&r);
	munmap(arena, PAGES * PAGE);
}

/* Also if the memory of a context that was before is used for it again. */
static void contexts_share_nothing(void **state)
{
	char *arena = pages_new(PAGES);
	struct rig r;

	for (uint32_t tag = 1; tag < 20; tag++) {
		rig_open(&r, unmerged());
		for (int page = 0; page < PAGES; page++) {
			set_tag(arena + page * PAGE, tag);
			assert_int_equal(tag_at(&r, arena + page * PAGE), tag);
		}
		rig_close(&r);
	}
	munmap(arena, PAGES * PAGE);
}

/* ------------------------------------------------------------------ what is asked of a source -- */

static int watched, pinned;

static int opens(struct pinl_ctx *ctx, const void *arg, void **src)
{
	return 0;
}

static void closes(void *src)
{
}

static unsigned covers(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD;
}

static int watches(void *src, const struct pinl_memory *mem)
{
	watched++;
	return 0;
}

static void unwatches(void *src, const struct pinl_memory *mem)
{
	watched--;
}

static int is_told(void *src, const struct pinl_memory *mem, const struct pinl_handle *handle)
{
	pinned++;
	return 0;
}

static int has_all(void *src, const struct pinl_memory *mem)
{
	return 1;
}

static const struct pinl_source_ops whole = {.size = sizeof whole,
					     .name = "whole",
					     .open = opens,
					     .close = closes,
					     .coverage = covers,
					     .watch = watches,
					     .unwatch = unwatches,
					     .pinned = is_told,
					     .whole = has_all};

/* It isn't told of registrations that it hasn't been asked to watch. */
static void who_watches_all_of_it_is_asked_once(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1, .sources = PINL_SOURCE_NOTIFY};
	char *arena = pages_new(PAGES);
	const struct pinl_reg *reg;
	struct tagger g = {0};
	struct pinl_device *dev;
	struct pinl_ctx *ctx;

	assert_ok(pinl_open(&o, &ctx));
	assert_ok(pinl_source_add(ctx, &whole, NULL));
	assert_ok(pinl_device_open_ops(ctx, &tagger_ops, &g, &dev));
	assert_ok(pinl_cache_open(dev, unmerged()));
	for (int page = 0; page < PAGES; page++) {
		reg = got_of(dev, arena + page * PAGE, 8, 0);
		pinl_put(reg);
	}
	assert_int_equal(g.maps, PAGES);
	assert_int_equal(watched, 1);
	assert_int_equal(pinned, 1);
	pinl_close(ctx);
	assert_int_equal(watched, 0);
	munmap(arena, PAGES * PAGE);
}

/* --------------------------------------------------------------------------- when others are slow -- */

/* What happens as soon as this thread waits; then what happens when it does so again. */
static _Thread_local void (*at_wait[2])(void);
static struct pinl_ctx *slow;
static struct pinl_change let_go;

int nanosleep(const struct timespec *t, struct timespec *rest)
{
	void (*fn)(void) = at_wait[0];

	at_wait[0] = at_wait[1];
	at_wait[1] = NULL;
	if (fn)
		fn();
	return fn ? 0 : syscall(SYS_nanosleep, t, rest);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void apply_slowly(void)
{
	uint64_t until = now_ns() + 30000000;

	while (now_ns() < until)
		;
	pinl_applying_end(slow);
}

static void do_it(void)
{
	pinl_change_done(slow, let_go.id);
}

static void goes_ahead(struct pinl_change *change, int err)
{
	assert_int_equal(err, 0);
}

/* A change that was let go gets the same time to be done, however long others took before. */
static void a_slow_reader_takes_no_patience_away(void **state)
{
	char *arena = pages_new(PAGES), *at = arena + PAGE;
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, unmerged());
	slow = r.ctx;
	tag_at(&r, arena);
	let_go = (struct pinl_change){.op = PINL_OP_DONTNEED,
				      .can = PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD |
					     PINL_WILL_SAY_DONE,
				      .start = (uintptr_t)at,
				      .end = (uintptr_t)at + PAGE,
				      .source = "test",
				      .answer = goes_ahead};
	pinl_change_submit(r.ctx, &let_go);
	pinl_applying_begin(r.ctx);
	at_wait[0] = apply_slowly;
	at_wait[1] = do_it;
	assert_ok(pinl_get(r.dev, at, 8, 0, &reg));
	assert_null(at_wait[0]);
	pinl_put(reg);
	rig_close(&r);
	munmap(arena, PAGES * PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_mapped_after_munmap_is_watched),
		cmocka_unit_test(what_is_mapped_after_the_call_is_watched),
		cmocka_unit_test(what_is_mapped_after_mremap_is_watched),
		cmocka_unit_test(what_is_mapped_after_another_mapping_is_watched),
		cmocka_unit_test(a_file_mapped_there_is_watched),
		cmocka_unit_test(what_is_beside_an_unmapped_page_is_watched),
		cmocka_unit_test(what_may_not_be_written_to_is_refused),
		cmocka_unit_test(contexts_share_nothing),
		cmocka_unit_test(who_watches_all_of_it_is_asked_once),
		cmocka_unit_test(a_slow_reader_takes_no_patience_away),
		cmocka_unit_test(a_page_mapped_while_the_rest_is_being_watched_is_watched),
		cmocka_unit_test(what_shmat_has_mapped_is_refused),
	};

	return cmocka_run_group_tests_name("cache_extent", tests, NULL, NULL);
}
