/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RDMA to shared mappings of files on disk, DAX among them, where nothing can be pinned: by on-demand
 * regions, or by a staged copy. The blocks that a truncation frees are given to another file at once;
 * its bytes show whether the device still reaches them. Files are in PINLEASE_TEST_DIR, else /var/tmp.
 */
#include "verbs_rig.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#define MARK 'P'

/* ----------------------------------------------------------------------------------------- files -- */

static const char *dir(void)
{
	return getenv("PINLEASE_TEST_DIR") ? getenv("PINLEASE_TEST_DIR") : "/var/tmp";
}

static int new_file(char c)
{
	int fd = open(dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	char *buf = malloc(LEN);

	assert_true(fd >= 0);
	memset(buf, c, LEN);
	assert_int_equal(pwrite(fd, buf, LEN, 0), LEN);
	assert_int_equal(fsync(fd), 0);
	free(buf);
	return fd;
}

static void assert_file(int fd, char c)
{
	char *buf = malloc(LEN);

	assert_int_equal(pread(fd, buf, LEN, 0), LEN);
	assert_all("file", buf, c, LEN);
	free(buf);
}

/* The rig's lease is to be on a file instead of a memfd. */
static int files_up(void **state)
{
	struct vrig *r;

	vrig_up(state);
	r = *state;
	if (peer_missing())
		return 0;
	close(r->fd);
	r->fd = new_file('F');
	assert_ptr_equal(mmap(r->va, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, r->fd, 0),
			 r->va);
	munmap(r->alias, LEN);
	r->alias = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	return r->alias == MAP_FAILED ? -1 : 0;
}

static bool is_dax(const struct vrig *r)
{
	struct statx sx;

	return !statx(r->fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &sx) &&
	       (sx.stx_attributes & STATX_ATTR_DAX);
}

#define SKIP(why)                                                                                       \
	do {                                                                                            \
		print_message("skip: %s\n", why);                                                       \
		skip();                                                                                 \
	} while (0)

#define SKIP_WITHOUT_ODP()                                                                              \
	do {                                                                                            \
		SKIP_WITHOUT_DEVICE();                                                                  \
		if (!peer_has_odp())                                                                    \
			SKIP("the RDMA device has no on-demand regions");                               \
	} while (0)

static void regrow(struct vrig *r)
{
	assert_int_equal(ftruncate(r->fd, 0), 0);
	assert_int_equal(ftruncate(r->fd, LEN), 0);
}

static int truncate_it(struct vrig *r)
{
	return pinl_ftruncate(r->ctx, r->fd, 0);
}

static int punch_it(struct vrig *r)
{
	return pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, LEN);
}

/* ------------------------------------------------------------------------------------- on demand -- */

/* Truncated in the middle of a transfer: the peer gets an error, the next owner of the blocks nothing.
 */
static void truncated(struct vrig *r, struct pinl_policy p, enum pinl_event_type then)
{
	int next;

	vrig_map(r, p, 0);
	vrig_take_off(r, 1);
	assert_ok(truncate_it(r));
	next = new_file(MARK);
	assert_int_equal(vrig_land(r), IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(vrig_event(r, then).err, 0);
	assert_file(next, MARK);
	close(next);
	regrow(r);
}

static void a_truncate_is_followed(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_ODP();
	truncated(r, policy(PINL_FOLLOW, 0, 0), PINL_EV_FOLLOWED);
	memset(r->far.buf, 'N', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	assert_file(r->fd, 'N');
}

static void a_truncate_fails_the_device(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_ODP();
	truncated(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_EV_RELEASED);
	memset(r->far.buf, 'N', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey),
			 IBV_WC_REM_ACCESS_ERR);
	assert_file(r->fd, 0);
}

/* The device goes on: in the file's new blocks, or in scratch. */
static void punched(struct vrig *r, struct pinl_policy p)
{
	int next;

	vrig_map(r, p, 0);
	vrig_take_off(r, 1);
	assert_ok(punch_it(r));
	next = new_file(MARK);
	vrig_await_moves(r, 2);
	assert_int_equal(vrig_land(r), IBV_WC_SUCCESS);
	assert_all("memory", r->va, 'W', LEN);
	assert_file(next, MARK);
	close(next);
}

static void a_punch_is_followed(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_ODP();
	punched(r, policy(PINL_FOLLOW, 0, 0));
	assert_file(r->fd, 'W');
}

static void a_punch_gives_scratch(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_ODP();
	punched(r, policy(PINL_RECALL, PINL_THEN_SCRATCH, 0));
	assert_file(r->fd, 0);
}

/* What the peer wrote is the file's, also after it has been closed and everything let go. */
static void data_is_in_the_file(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_ODP();
	vrig_map(r, policy(PINL_FOLLOW, 0, 0), 0);
	memset(r->far.buf, 'D', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	vrig_unmap(r);
	assert_int_equal(fsync(r->fd), 0);
	assert_file(r->fd, 'D');
}

/* ---------------------------------------------------------------------------------------- staged -- */

static void a_pin_is_refused(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	if (!is_dax(r))
		SKIP("this file system isn't DAX (PINLEASE_TEST_DIR)");
	assert_int_equal(vrig_try(r, policy(PINL_KEEP, 0, 0), PINL_PIN), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "PINL_STAGE"));
}

static void stage(struct vrig *r, enum pinl_then then)
{
	struct pinl_lease_info info = {.size = sizeof info};

	vrig_map(r, policy(PINL_RECALL, then, 0), PINL_PIN | PINL_STAGE);
	assert_ok(pinl_lease_info(r->lease, &info));
	if (!info.stage)
		SKIP("files of this file system can be pinned here");
	assert_int_equal(r->addrs[0].addr, info.stage);
}

static void a_staged_copy_is_written_back(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	stage(r, PINL_THEN_FAIL);
	assert_int_equal(vrig_move(r, 0, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	assert_all("read", r->far.buf, 'F', LEN);
	memset(r->far.buf, 'S', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	assert_ok(pinl_lease_sync(r->lease, 0, LEN, PINL_FOR_CPU));
	assert_file(r->fd, 'S');
	memset(r->far.buf, 'T', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	vrig_unmap(r);
	assert_file(r->fd, 'T');
}

/* Truncated in the middle of a transfer to the copy. */
static void a_staged_copy_is_recalled(void **state)
{
	struct vrig *r = *state;
	int next;

	SKIP_WITHOUT_DEVICE();
	stage(r, PINL_THEN_FAIL);
	memset(r->far.buf, 'W', LEN);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, LEN / 2), 0);
	next = new_file(MARK);
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).outcome, PINL_OUT_FAIL);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey),
			 IBV_WC_REM_ACCESS_ERR);
	assert_all("what is left of the file", r->alias, 'W', LEN / 2);
	assert_file(next, MARK);
	close(next);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, files_up, vrig_down)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST(a_truncate_is_followed),	     TEST(a_truncate_fails_the_device),
		TEST(a_punch_is_followed),	     TEST(a_punch_gives_scratch),
		TEST(data_is_in_the_file),	     TEST(a_pin_is_refused),
		TEST(a_staged_copy_is_written_back), TEST(a_staged_copy_is_recalled),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
