/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Transfers that the IOMMU has stopped, as events: which device, where, which lease. The kernel's log
 * has few of them (a burst of some in five seconds), so a fault is made again until one was told.
 */
#include "vfio_rig.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define TRIES	 30
#define PATIENCE 1000 /* ms for one to be told; then it was left out, and the next is made */
#define NOWHERE	 (EDU_IOVA_LAST + 1 - SIZE)

/* What is in the queue by then, but for faults, is passed over. False: *ev is of no use. */
static bool told(struct rig *r, int ms, struct pinl_event *ev)
{
	struct pollfd p = {.fd = pinl_fd(r->ctx), .events = POLLIN};

	for (;;) {
		ev->size = sizeof *ev;
		while (!pinl_next_event(r->ctx, ev))
			if (ev->type == PINL_EV_FAULT)
				return true;
		if (poll(&p, 1, ms) == 0)
			return false;
	}
}

static void assert_fault(const struct rig *r, const struct pinl_event *ev, int device, uint64_t at,
			 unsigned access)
{
	char text[512];

	assert_string_equal(ev->device, r->edu.dev[device].name);
	assert_int_equal(ev->device_addr, at & ~(uint64_t)(PAGE - 1)); /* all that Intel's know */
	assert_int_equal(ev->access, access);
	assert_int_equal(ev->err, -EFAULT);
	assert_string_equal(ev->source, "faults");
	pinl_event_format(ev, text, sizeof text);
	assert_non_null(strstr(text, ev->device));
	assert_non_null(
		strstr(text, access ? " wrote to device address 0x" : " read from device address 0x"));
}

static int device_of(const struct rig *r, const struct pinl_event *ev)
{
	for (int i = 0; i < r->edu.n; i++)
		if (!strcmp(ev->device, r->edu.dev[i].name))
			return i;
	fail_msg("an event of device %s, which there isn't", ev->device);
	return -1;
}

/* One transfer: to memory if `c`, else from it. */
static void transfer(struct rig *r, uint64_t iova, char c)
{
	char data[EDU_CHUNK];
	struct edu_part part = {iova, data, sizeof data};

	memset(data, c, sizeof data);
	if (c)
		edu_write(&r->edu, &part, 1);
	else
		edu_read(&r->edu, &part, 1);
}

/* Begun before the revoke, and stopped after it. */
static void what_comes_after_a_revoke(void **state)
{
	struct rig *r = *state;
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_event ev;
	int at = -1;

	for (int i = 0; i < TRIES && at < 0; i++) {
		next_round(r);
		make_memory(r, FILE_MEMORY);
		lease(r, recall(PINL_THEN_FAIL));
		assert_ok(pinl_lease_info(r->lease, &info));
		take_off(r, 'X');
		assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
		edu_land(&r->edu);
		while (at < 0 && told(r, PATIENCE, &ev))
			if (ev.lease_id == info.id) /* else a late one of the try before */
				at = device_of(r, &ev);
	}
	assert_int_not_equal(at, -1);
	assert_fault(r, &ev, at, r->addrs[at].addr + 1024, PINL_WRITE);
	assert_int_equal(ev.start, (uintptr_t)r->va + at * PAGE);
	assert_int_equal(ev.end, ev.start + PAGE);
	assert_int_equal(ev.file_ino, info.file_ino);
	assert_int_equal(ev.file_start, at * PAGE);
	assert_int_equal(ev.holder, getpid());
}

/* Where nothing is mapped, for writing or reading; then where a lease was a moment ago. */
static void what_goes_astray(void **state)
{
	struct rig *r = *state;
	struct pinl_counters n = {.size = sizeof n};
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_event ev = {.size = sizeof ev};
	bool seen = false;

	make_memory(r, FILE_MEMORY);
	lease(r, plain(PINL_KEEP));
	assert_ok(pinl_lease_info(r->lease, &info));
	for (int i = 0; i < TRIES && !seen; i++) {
		transfer(r, NOWHERE, 0);
		seen = told(r, PATIENCE, &ev);
	}
	assert_true(seen);
	assert_fault(r, &ev, 0, NOWHERE, 0);
	assert_int_equal(ev.lease_id, 0);
	assert_int_equal(ev.end, 0);
	unlease(r);
	seen = false;
	for (int i = 0; i < TRIES && !seen; i++) {
		transfer(r, r->addrs[PAGES - 1].addr, 'x');
		while (!seen && told(r, PATIENCE, &ev))
			seen = ev.access; /* a late one of before may come first */
	}
	assert_true(seen);
	assert_fault(r, &ev, 0, r->addrs[PAGES - 1].addr, PINL_WRITE);
	assert_int_equal(ev.lease_id, info.id);
	assert_int_equal(ev.start, (uintptr_t)r->va + (PAGES - 1) * PAGE);
	assert_ok(pinl_counters(r->ctx, &n));
	assert_true(n.faults >= 2);
}

/* Two leases at the same device addresses, of devices in different spaces as far as anybody knows. */
static void where_two_leases_fit(void **state)
{
	struct rig *r = *state;
	struct pinl_device *second;
	struct pinl_event ev;
	bool seen = false;

	make_memory(r, FILE_MEMORY);
	lease(r, plain(PINL_KEEP));
	unlease(r);
	assert_ok(try_open(r, r->edu.fd, r->addrs[0].addr, r->addrs[0].addr + SIZE - 1, 0, &second));
	assert_ok(pinl_map_range(second, (uintptr_t)r->va, (uintptr_t)r->va + SIZE, FLAGS,
				 &(struct pinl_policy){.size = sizeof(struct pinl_policy)}, r->addrs,
				 &r->lease));
	unlease(r);
	for (int i = 0; i < TRIES && !seen; i++) {
		transfer(r, r->addrs[0].addr, 'x');
		seen = told(r, PATIENCE, &ev);
	}
	assert_true(seen);
	assert_fault(r, &ev, 0, r->addrs[0].addr, PINL_WRITE);
	assert_int_equal(ev.lease_id, 0);
}

/* A process that leases in the same address space, but hasn't got the devices. */
static void __attribute__((noreturn)) stranger(struct rig *r, int go, int done)
{
	struct rig s = {.mode = r->mode, .edu = r->edu, .fd = -1};
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct pinl_event ev;
	char byte = 0;

	for (int i = 0; i < r->edu.n; i++) {
		close(r->edu.dev[i].device);
		if (r->edu.dev[i].group >= 0)
			close(r->edu.dev[i].group);
	}
	s.edu.n = 0; /* nor may it switch them */
	if (pinl_open(&opts, &s.ctx) || try_open(&s, s.edu.fd, NOWHERE - SIZE, NOWHERE - 1, 0, &s.dev))
		_exit(2);
	make_memory(&s, FILE_MEMORY);
	lease(&s, plain(PINL_KEEP));
	if (write(done, "", 1) != 1 || read(go, &byte, 1) != 1)
		_exit(3);
	if (told(&s, 500, &ev))
		_exit(4);
	pinl_close(s.ctx);
	_exit(0);
}

static void who_has_not_the_device_hears_nothing(void **state)
{
	struct rig *r = *state;
	int go[2], done[2], status;
	struct pinl_event ev;
	bool seen = false;
	char byte;
	pid_t pid;

	make_memory(r, FILE_MEMORY);
	lease(r, plain(PINL_KEEP));
	assert_int_equal(pipe(go), 0);
	assert_int_equal(pipe(done), 0);
	pid = fork();
	if (!pid)
		stranger(r, go[0], done[1]);
	close(done[1]);
	assert_int_equal(read(done[0], &byte, 1), 1);
	for (int i = 0; i < TRIES && !seen; i++) {
		transfer(r, NOWHERE, 'x');
		seen = told(r, PATIENCE, &ev);
	}
	assert_true(seen);
	assert_int_equal(write(go[1], "", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close(go[0]);
	close(go[1]);
	close(done[0]);
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest all[] = {
		RIG_TEST(what_comes_after_a_revoke),
		RIG_TEST(what_goes_astray),
		RIG_TEST(where_two_leases_fit),
		RIG_TEST(who_has_not_the_device_hears_nothing),
	};

	return modes_run("vfio_faults", all, sizeof all / sizeof *all, argc, argv);
}
