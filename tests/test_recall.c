/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Recalls through the explicit calls, on a memfd and an io_uring ring: what each operation and each
 * outcome leave of a lease, for the device, the CPU and the file; parts; two leases on one file.
 */
#include <linux/falloc.h>
#include <pinlease/source.h>
#include <stdio.h>

#include "recall_rig.h"

static void punch(struct rig *r, unsigned page)
{
	assert_int_equal(pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					page * PAGE, PAGE),
			 0);
}

/* R6, R7: outcome by outcome, what the device does after, what the CPU sees, what the file has. */
static void forced_fail(void **state)
{
	struct rig *r = leased(PINL_THEN_FAIL, 0);
	struct pinl_event ev = {.size = sizeof ev};

	cut(r);
	assert_int_equal(device_write(r, 0), -EFAULT);
	assert_int_equal(r->mem[0], 0);
	assert_int_equal(count(r, PINL_EV_RELEASED, &ev), 1);
	assert_int_equal(ev.outcome, PINL_OUT_FAIL);
	assert_int_equal(pinl_quiesced(r->lease), -EALREADY);
	end_rig(r);
}

static void forced_scratch(void **state)
{
	struct rig *r = leased(PINL_THEN_SCRATCH, 0);

	cut(r);
	assert_int_equal(r->mem[0], 0); /* mapped, no meaning */
	assert_int_equal(device_write(r, 3), PAGE);
	assert_int_equal(r->mem[3 * PAGE], 'D'); /* CPU and device agree */
	assert_int_equal(file_byte(r, 3 * PAGE), 0);
	end_rig(r);
}

static void forced_copy(void **state)
{
	struct rig *r = leased(PINL_THEN_COPY, 0);

	r->mem[5 * PAGE] = 'b';
	cut(r);
	assert_int_equal(r->mem[0], 'a');
	assert_int_equal(r->mem[5 * PAGE], 'b');
	assert_int_equal(device_write(r, 3), PAGE);
	assert_int_equal(r->mem[3 * PAGE], 'D');
	assert_int_equal(r->mem[4 * PAGE], 'a');
	assert_int_equal(file_byte(r, 0), 0);
	assert_int_equal(file_byte(r, 3 * PAGE), 0);
	pinl_unmap_range(r->lease);
	assert_int_equal(r->mem[5 * PAGE], 'b'); /* the copy is the program's */
	close_rig(r);
}

static void part_of_a_lease(void **state)
{
	struct rig *r = leased(PINL_THEN_COPY, 0);
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_event ev = {.size = sizeof ev};

	punch(r, 2);
	assert_int_equal(device_write(r, 1), PAGE); /* still the file */
	assert_int_equal(file_byte(r, PAGE), 'D');
	assert_int_equal(device_write(r, 2), PAGE); /* the copy */
	assert_int_equal(file_byte(r, 2 * PAGE), 0);
	assert_int_equal(r->mem[2 * PAGE], 'D');
	pinl_lease_info(r->lease, &info);
	assert_int_equal(info.state, PINL_ACTIVE);
	assert_int_equal(info.detached_bytes, PAGE);
	count(r, PINL_EV_RELEASED, &ev);
	/* The same hole again finds nothing to recall; the rest is recalled in its turn. */
	punch(r, 2);
	assert_int_equal(count(r, PINL_EV_NOTICE, &ev), 0);
	cut(r);
	assert_int_equal(r->mem[PAGE], 'D');
	assert_int_equal(r->mem[2 * PAGE], 'D');
	assert_int_equal(r->mem[7 * PAGE], 'a');
	assert_int_equal(device_write(r, 7), PAGE);
	assert_int_equal(r->mem[7 * PAGE], 'D');
	assert_int_equal(file_byte(r, 7 * PAGE), 0);
	pinl_lease_info(r->lease, &info);
	assert_int_equal(info.state, PINL_RELEASED);
	assert_int_equal(info.detached_bytes, SIZE);
	end_rig(r);
}

static void many_parts(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_SCRATCH, 0);

	munmap(r->mem, SIZE);
	assert_int_equal(ftruncate(r->fd, 64 * PAGE), 0);
	r->mem = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_int_equal(pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + 64 * PAGE, FLAGS,
					&p, NULL, &r->lease),
			 0);
	for (int i = 0; i < 32; i++) {
		punch(r, 2 * i);
		if (!i)
			skip_if_it_failed_as_a_whole(r);
	}
	for (int i = 0; i < 64; i += 2) {
		assert_int_equal(device_write(r, i), PAGE);
		assert_int_equal(file_byte(r, i * PAGE), 0);
		assert_int_equal(r->mem[i * PAGE], 'D');
	}
	pinl_unmap_range(r->lease);
	munmap(r->mem, 64 * PAGE);
	r->mem = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	close_rig(r);
}

/* Every operation by its explicit call, forced at once, then the device must be off the old pages. */
static int do_op(struct rig *r, enum pinl_op op)
{
	void *out;

	switch (op) {
	case PINL_OP_TRUNCATE:
		return pinl_ftruncate(r->ctx, r->fd, 0);
	case PINL_OP_PUNCH:
		return pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				      SIZE);
	case PINL_OP_UNMAP:
		return pinl_munmap(r->ctx, r->mem, SIZE);
	case PINL_OP_OVERMAP:
		out = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		return pinl_mremap(r->ctx, out, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, r->mem, &out);
	case PINL_OP_REMAP:
		return pinl_mremap(r->ctx, r->mem, SIZE, 2 * SIZE, MREMAP_MAYMOVE, NULL, &out)
			       ?: munmap(out, 2 * SIZE);
	case PINL_OP_REMOVE:
		return pinl_madvise(r->ctx, r->mem, SIZE, MADV_REMOVE);
	default:
		return -ENOSYS;
	}
}

static void one_operation(enum pinl_op op, enum pinl_then then)
{
	struct rig *r = leased(then, 0);
	struct pinl_event ev = {.size = sizeof ev};
	char *witness = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, r->fd, 0);
	int res;

	if (do_op(r, op))
		fail_msg("%s then %d: %s", pinl_op_name(op), then, pinl_error());
	if (op == PINL_OP_TRUNCATE)
		assert_int_equal(ftruncate(r->fd, SIZE), 0);
	res = device_write(r, 1);
	assert_true(res == PAGE || res == -EFAULT);
	if (then == PINL_THEN_FAIL)
		assert_int_equal(res, -EFAULT);
	else if (op != PINL_OP_REMAP)
		assert_int_equal(res, PAGE);
	assert_int_not_equal(witness[PAGE], 'D'); /* never the file any more */
	assert_true(count(r, PINL_EV_RELEASED, &ev) >= 1);
	pinl_unmap_range(r->lease);
	munmap(witness, SIZE);
	close_rig(r);
}

static void every_operation(void **state)
{
	static const enum pinl_op ops[] = {PINL_OP_TRUNCATE, PINL_OP_PUNCH, PINL_OP_UNMAP,
					   PINL_OP_OVERMAP,  PINL_OP_REMAP, PINL_OP_REMOVE};

	for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
		for (int then = PINL_THEN_FAIL; then <= PINL_THEN_COPY; then++)
			one_operation(ops[i], then);
}

static void two_leases_on_one_file(void **state)
{
	struct rig *r = leased(PINL_THEN_FAIL, 0);
	struct pinl_policy q = recall(PINL_THEN_COPY, 0);
	struct pinl_lease *other;
	char *again = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	struct pinl_event ev = {.size = sizeof ev};

	assert_int_equal(pinl_map_range(r->dev, (uintptr_t)again, (uintptr_t)again + SIZE, FLAGS, &q,
					NULL, &other),
			 0);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(count(r, PINL_EV_RELEASED, &ev), 2);
	assert_int_equal(again[0], 'a');
	pinl_unmap_range(other);
	pinl_unmap_range(r->lease);
	munmap(again, SIZE);
	close_rig(r);
}

/* SCRATCH and COPY move the memory of one device; two on one range would fall apart. */
static void two_devices_on_one_range(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy fail = recall(PINL_THEN_FAIL, 0), copy = recall(PINL_THEN_COPY, 0);
	struct pinl_device *soft;
	struct pinl_lease *other;
	uintptr_t start = (uintptr_t)r->mem, end = start + SIZE;

	assert_int_equal(pinl_device_open(r->ctx, "soft", NULL, &soft), 0);
	lease(r, &fail);
	assert_int_equal(pinl_map_range(soft, start, end, FLAGS, &copy, NULL, &other), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "another device"));
	assert_int_equal(pinl_map_range(soft, start, end, FLAGS, &fail, NULL, &other), 0);
	pinl_unmap_range(other);
	end_rig(r);
}

/* What is mapped where a part of the lease was unmapped is never given to the device. */
static void recycled_addresses_stay_private(void **state)
{
	struct rig *r = leased(PINL_THEN_SCRATCH, 0);
	char *mine;

	assert_int_equal(pinl_munmap(r->ctx, r->mem, 2 * PAGE), 0);
	skip_if_it_failed_as_a_whole(r);
	mine = mmap(r->mem, 2 * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_equal(mine, r->mem);
	memset(mine, 'P', 2 * PAGE);
	assert_int_equal(device_write(r, 0), PAGE); /* scratch */
	assert_int_equal(mine[0], 'P');
	punch(r, 4);
	device_write(r, 0);
	assert_int_equal(mine[0], 'P');
	end_rig(r);
}

static void a_script_recalls(void **state)
{
	struct rig *r = leased(PINL_THEN_SCRATCH, 0);
	struct pinl_lease_info info = {.size = sizeof info};
	char script[512];

	snprintf(script, sizeof script,
		 "# recorded\ntruncate file %lu %lu 0x2000 eof\n\npunch file %lu %lu 0 4096 tbh\n",
		 (unsigned long)r->st.st_dev, (unsigned long)r->st.st_ino, (unsigned long)r->st.st_dev,
		 (unsigned long)r->st.st_ino);
	assert_int_equal(pinl_script_run(r->ctx, script), 0);
	skip_if_it_failed_as_a_whole(r);
	pinl_lease_info(r->lease, &info);
	assert_int_equal(info.detached_bytes, SIZE - PAGE);
	assert_int_equal(pinl_script_run(r->ctx, "truncate va 1"), -EINVAL);
	assert_int_equal(pinl_script_run(r->ctx, "explode va 0 4096"), -EINVAL);
	assert_int_equal(pinl_script_run(r->ctx, "munmap va 4096 0"), -EINVAL);
	end_rig(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forced_fail),
		cmocka_unit_test(forced_scratch),
		cmocka_unit_test(forced_copy),
		cmocka_unit_test(part_of_a_lease),
		cmocka_unit_test(many_parts),
		cmocka_unit_test(every_operation),
		cmocka_unit_test(two_leases_on_one_file),
		cmocka_unit_test(two_devices_on_one_range),
		cmocka_unit_test(recycled_addresses_stay_private),
		cmocka_unit_test(a_script_recalls),
	};

	return cmocka_run_group_tests_name("recall", tests, NULL, NULL);
}
