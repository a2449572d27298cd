/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Leases for a real DMA engine behind an IOMMU (R15, R16, I3): a transfer that was started before a
 * change and ends after it hits no memory that was let go.
 */
#include "vfio_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define TRIES 200

static void addresses_work(void **state)
{
	struct rig *r = *state;

	make_memory(r, FILE_MEMORY);
	lease(r, plain(PINL_KEEP));
	for (unsigned i = 0; i < PAGES; i++) {
		struct edu_part part = {r->addrs[i].addr, (char[1]){'a' + i}, 1};

		assert_true(r->addrs[i].addr >= EDU_IOVA_FIRST && r->addrs[i].addr < EDU_IOVA_LAST);
		assert_int_equal(r->addrs[i].addr % PAGE, 0);
		edu_write(&r->edu, &part, 1);
	}
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(r->va[i * PAGE], 'a' + i);
	assert_device_reads(r, 'F');
}

/* ----------------------------------------------------------- changes while a transfer is out -- */

static int truncated(struct rig *r)
{
	return pinl_ftruncate(r->ctx, r->fd, 0);
}

static int punched(struct rig *r)
{
	return pinl_fallocate(r->ctx, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE);
}

static int removed(struct rig *r)
{
	return pinl_madvise(r->ctx, r->va, SIZE, MADV_REMOVE);
}

static int discarded(struct rig *r)
{
	return pinl_madvise(r->ctx, r->va, SIZE, MADV_DONTNEED);
}

static int unmapped(struct rig *r)
{
	return pinl_munmap(r->ctx, r->va, SIZE);
}

static int moved(struct rig *r)
{
	void *at = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *out;
	int err = pinl_mremap(r->ctx, r->va, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, at, &out);

	munmap(at, SIZE);
	return err;
}

static int ended(struct rig *r)
{
	unlease(r);
	return 0;
}

static int device_closed(struct rig *r)
{
	r->lease = NULL; /* its handle goes with the device */
	pinl_device_close(r->dev);
	open_device(r, EDU_IOVA_FIRST, EDU_IOVA_LAST, 0);
	return 0;
}

static const struct change {
	const char *name;
	enum memory memory;
	int (*make)(struct rig *r);
	bool stays; /* the addresses are still the program's */
} changes[] = {
	{"truncate", FILE_MEMORY, truncated, true},
	{"punch", FILE_MEMORY, punched, true},
	{"MADV_REMOVE", FILE_MEMORY, removed, true},
	{"munmap of a file", FILE_MEMORY, unmapped, false},
	{"munmap", ANON, unmapped, false},
	{"MADV_DONTNEED", ANON, discarded, true},
	{"mremap", ANON, moved, false},
};

static const struct change ends[] = {
	{"unmap_range", ANON, ended, true},
	{"device_close", FILE_MEMORY, device_closed, true},
};

/* True if the transfer was still out when the change was through. */
static bool try_change(struct rig *r, const struct change *change, struct pinl_policy policy)
{
	bool out;

	make_memory(r, change->memory);
	lease(r, policy);
	witness_start(r);
	take_off(r, 'X');
	assert_ok(change->make(r));
	out = !edu_landed(&r->edu);
	poison(r);
	edu_land(&r->edu);
	assert_not_hit(r);
	return out;
}

/* A machine that is busy may be slower than the device: then once more. */
static void change_in_flight(struct rig *r, const struct change *change, struct pinl_policy policy)
{
	for (int i = 0; i < TRIES; i++) {
		if (try_change(r, change, policy))
			return;
		unlease(r);
		forget_memory(r);
	}
	fail_msg("%s: in %d tries the transfer was always faster than the change", change->name, TRIES);
}

static void fail_hits_nothing(void **state)
{
	struct rig *r = *state;

	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
		print_message("%s\n", changes[i].name);
		change_in_flight(r, &changes[i], recall(PINL_THEN_FAIL));
		assert_int_equal(await_event(r, PINL_EV_FORCED).err, 0);
		await_event(r, PINL_EV_RELEASED);
		assert_int_equal(settled_check(r->lease), -ESTALE);
		next_round(r);
	}
}

static void ends_hit_nothing(void **state)
{
	struct rig *r = *state;

	for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
		print_message("%s\n", ends[i].name);
		change_in_flight(r, &ends[i], plain(PINL_KEEP));
		next_round(r);
	}
}

/* What was out lands in the new pages: where CPU and device have the same, both see it. */
static void moves(struct rig *r, enum pinl_then then, enum pinl_outcome outcome)
{
	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
		char data[EDU_CHUNK];
		struct pinl_event ev;
		bool discards =
			changes[i].make == discarded; /* the new pages, too: CPU and device part */

		if (changes[i].make == moved) /* ends in FAIL: its content can't be replaced meanwhile */
			continue;
		print_message("%s\n", changes[i].name);
		change_in_flight(r, &changes[i], recall(then));
		ev = await_event(r, PINL_EV_FORCED);
		assert_int_equal(ev.err, 0);
		assert_int_equal(ev.outcome, outcome);
		if (changes[i].stays && !discards)
			assert_landed_in(r->va, 'X', flying(r));
		assert_device_reads(r, 'X');
		assert_ok(pinl_lease_read(r->lease, 1024, EDU_CHUNK, data));
		assert_filled("read back", data, 'X', EDU_CHUNK);
		if (changes[i].stays && !discards && outcome == PINL_OUT_COPY)
			assert_filled("copied", r->va, 'F', 1024);
		next_round(r);
	}
}

static void scratch_takes_it(void **state)
{
	moves(*state, PINL_THEN_SCRATCH, PINL_OUT_SCRATCH);
}

static void copy_takes_it(void **state)
{
	moves(*state, PINL_THEN_COPY, PINL_OUT_COPY);
}

static void keep_reports_the_orphan(void **state)
{
	struct rig *r = *state;
	struct pinl_event ev;
	char buf[SIZE];

	make_memory(r, FILE_MEMORY);
	lease(r, plain(PINL_KEEP));
	take_off(r, 'O');
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	await_event(r, PINL_EV_ORPHAN);
	edu_land(&r->edu);
	take_off(r, 'Q'); /* certainly after it was reported */
	edu_land(&r->edu);
	assert_ok(pinl_lease_read(r->lease, 0, SIZE, buf));
	assert_landed_in(buf, 'Q', flying(r));
	unlease(r);
	ev = await_event(r, PINL_EV_ORPHAN_END);
	assert_int_equal(ev.err, 0);
	assert_int_equal(ev.bytes, EDU_CHUNK * flying(r));
}

static void refuse_keeps_the_target(void **state)
{
	struct rig *r = *state;
	struct pinl_policy refuse = plain(PINL_REFUSE);

	refuse.refuse = PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_UNMAP);
	make_memory(r, FILE_MEMORY);
	lease(r, refuse);
	take_off(r, 'R');
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), -EBUSY);
	assert_int_equal(pinl_munmap(r->ctx, r->va, SIZE), -EBUSY);
	edu_land(&r->edu);
	assert_landed_in(r->va, 'R', flying(r));
}

static void follow_is_refused(void **state)
{
	struct rig *r = *state;
	struct pinl_policy follow = plain(PINL_FOLLOW);

	make_memory(r, FILE_MEMORY);
	assert_int_equal(try_lease(r, &follow, FLAGS), -EOPNOTSUPP);
	assert_true(strlen(pinl_error()) > 20);
}

/* Half goes: in the other half the transfer lands in the file. */
static void the_other_half_lives_on(void **state)
{
	struct rig *r = *state;
	struct pinl_event ev;
	char buf[SIZE];

	make_memory(r, FILE_MEMORY);
	lease(r, recall(PINL_THEN_SCRATCH));
	assert_ok(pinl_ftruncate(r->ctx, r->fd, SIZE / 2));
	ev = await_event(r, PINL_EV_FORCED);
	assert_int_equal(ev.err, 0);
	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	take_off(r, 'H');
	edu_land(&r->edu);
	assert_landed_in(r->va, 'H', flying(r));
	assert_int_equal(pread(r->fd, buf, SIZE, 0), SIZE / 2);
	assert_landed_in(buf, 'H', flying(r) < 2 ? flying(r) : 2);
}

/* The holder is killed while its device is at work: what it had is hit no more once it is gone. */
static void killed_holder(void **state)
{
	struct rig *r;
	int go[2], fd = memfd_create("shared", MFD_CLOEXEC), status;
	char *va, byte;
	pid_t pid;

	assert_int_equal(pipe2(go, O_CLOEXEC), 0);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(va, 'F', SIZE);
	pid = fork();
	if (!pid) {
		void *s = *state;

		if (rig_up(&s))
			_exit(1);
		r = s;
		r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		lease(r, recall(PINL_THEN_FAIL));
		take_off(r, 'K');
		if (write(go[1], "", 1) != 1)
			_exit(1);
		pause();
	}
	assert_int_equal(read(go[0], &byte, 1), 1);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	memset(va, 'P', SIZE);
	usleep(300000); /* longer than the device takes */
	assert_filled("memory of a killed holder's lease", va, 'P', SIZE);
	munmap(va, SIZE);
	close(fd);
	close(go[0]);
	close(go[1]);
}

/* ------------------------------------------------------------------------------------ runner -- */

int main(int argc, char **argv)
{
	static const struct CMUnitTest all[] = {
		RIG_TEST(addresses_work),	   RIG_TEST(fail_hits_nothing),
		RIG_TEST(scratch_takes_it),	   RIG_TEST(copy_takes_it),
		RIG_TEST(ends_hit_nothing),	   RIG_TEST(keep_reports_the_orphan),
		RIG_TEST(refuse_keeps_the_target), RIG_TEST(follow_is_refused),
		RIG_TEST(the_other_half_lives_on), {"killed_holder", killed_holder, NULL, NULL, NULL},
	};

	return modes_run("vfio", all, sizeof all / sizeof *all, argc, argv);
}
