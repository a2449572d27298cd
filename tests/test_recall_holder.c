/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The holder's part in a recall: the time it has for its answer, what it may call meanwhile, what its
 * children have of it, and which reports are of its lease at all.
 */
#include <errno.h>
#include <linux/falloc.h>
#include <pinlease/source.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "recall_rig.h"

/* A change that another thread makes. */
struct held {
	struct rig *r;
	int err;
	atomic_bool returned;
	pthread_t thread;
};

static void *truncate_it(void *arg)
{
	struct held *h = arg;

	h->err = pinl_ftruncate(h->r->ctx, h->r->fd, 0);
	atomic_store(&h->returned, true);
	return NULL;
}

/* Returns when the holder has been told, who doesn't answer yet. */
static void begin(struct held *h)
{
	pthread_create(&h->thread, NULL, truncate_it, h);
	event_of(h->r->ctx, PINL_EV_NOTICE);
}

static void holder_in_time(void **state)
{
	struct rig *r = leased(PINL_THEN_COPY, 10000);
	struct held h = {.r = r};
	struct pinl_event ev = {.size = sizeof ev};

	begin(&h);
	assert_false(atomic_load(&h.returned));
	assert_int_equal(device_write(r, 0), PAGE); /* still ours, still the file */
	assert_int_equal(file_byte(r, 0), 'D');
	assert_int_equal(pinl_quiesced(r->lease), 0);
	pthread_join(h.thread, NULL);
	assert_int_equal(h.err, 0);
	assert_int_equal(count(r, PINL_EV_FORCED, &ev), 0);
	assert_int_equal(device_write(r, 0), -EFAULT);
	end_rig(r);
}

static void unmap_answers_a_notice(void **state)
{
	struct rig *r = leased(PINL_THEN_FAIL, 10000);
	struct held h = {.r = r};

	begin(&h);
	pinl_unmap_range(r->lease);
	pthread_join(h.thread, NULL);
	assert_int_equal(h.err, 0);
	close_rig(r);
}

static void no_new_lease_during_a_change(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 10000);
	struct held h = {.r = r};
	struct pinl_lease *other;
	char *again = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);

	lease(r, &p);
	begin(&h);
	assert_int_equal(pinl_map_range(r->dev, (uintptr_t)again, (uintptr_t)again + SIZE, FLAGS, &p,
					NULL, &other),
			 -EBUSY);
	assert_non_null(strstr(pinl_error(), "under way"));
	pinl_unmap_range(r->lease);
	pthread_join(h.thread, NULL);
	munmap(again, SIZE);
	close_rig(r);
}

/* I2, I7: a holder that asks for more time than the ceiling doesn't get it. */
static void the_ceiling_cuts_the_grace(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_opts opts = {.size = sizeof opts, .ceiling_ms = 30, .summary_fd = -1};
	struct pinl_policy p = recall(PINL_THEN_FAIL, 3600 * 1000);
	struct pinl_event ev = {.size = sizeof ev};

	reopen(r, &opts);
	lease(r, &p);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0); /* nobody quiesces */
	assert_int_equal(count(r, PINL_EV_NOTICE, &ev), 1);
	assert_true(ev.deadline_ns - ev.time_ns <= 30000000);
	end_rig(r);
}

static void on_notice_unmap(const struct pinl_event *ev, void *arg)
{
	struct rig *r = arg;

	if (ev->type == PINL_EV_NOTICE) {
		assert_ptr_equal(ev->cookie, r);
		/* I8: change the leased file from inside the callback, too */
		pinl_fallocate(r->ctx, r->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 100 * PAGE,
			       PAGE);
		pinl_unmap_range(r->lease);
	}
}

static void a_callback_may_call_back(void **state)
{
	struct rig *r = open_rig(on_notice_unmap);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 10000);

	lease(r, &p);
	pinl_lease_set_cookie(r->lease, r);
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	close_rig(r);
}

static void a_child_inherits_no_lease(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct pinl_lease_info info = {.size = sizeof info};
	int status;
	pid_t pid;

	lease(r, &p);
	pid = fork();
	if (!pid) {
		struct pinl_lease *l;
		struct pinl_event ev = {.size = sizeof ev};

		if (pinl_lease_info(r->lease, &info) != -ESTALE ||
		    pinl_next_event(r->ctx, &ev) != -ESTALE ||
		    pinl_ftruncate(r->ctx, r->fd, 0) != -ESTALE || pinl_quiesced(r->lease) != -ESTALE ||
		    pinl_map_range(r->dev, 0, PAGE, FLAGS, &p, NULL, &l) != -ESTALE ||
		    !strstr(pinl_error(), "fork"))
			_exit(1);
		pinl_unmap_range(r->lease);
		pinl_device_close(r->dev);
		pinl_close(r->ctx);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(device_write(r, 0), PAGE); /* the parent's lease is untouched */
	assert_int_equal(r->mem[0], 'D');
	assert_int_equal(pinl_ftruncate(r->ctx, r->fd, 0), 0);
	assert_int_equal(device_write(r, 0), -EFAULT);
	end_rig(r);
}

struct late_report {
	struct rig *r;
	atomic_bool begun;
	struct pinl_change change;
};

static void nobody_waits(struct pinl_change *change, int err)
{
}

/* A source that has taken a report from the kernel and is slow to hand it in: it gives a lease that
 * doesn't wait for it every chance to be made first. */
static void *report_late(void *arg)
{
	struct late_report *late = arg;
	struct pinl_counters c = {.size = sizeof c};

	pinl_applying_begin(late->r->ctx);
	atomic_store(&late->begun, true);
	for (int i = 0; i < 500 && !c.leases; i++) {
		usleep(100);
		pinl_counters(late->r->ctx, &c);
	}
	late->change = (struct pinl_change){.op = PINL_OP_UNMAP,
					    .can = PINL_CAN_TELL,
					    .source = "test",
					    .start = (uintptr_t)late->r->mem,
					    .end = (uintptr_t)late->r->mem + SIZE,
					    .answer = nobody_waits};
	pinl_change_submit(late->r->ctx, &late->change);
	pinl_applying_end(late->r->ctx);
	return NULL;
}

/* I1's other side: the old report of an unmap must not hit a new lease at the recycled address. */
static void old_reports_miss_new_leases(void **state)
{
	struct rig *r = open_rig(NULL);
	struct pinl_policy p = recall(PINL_THEN_FAIL, 1000);
	struct late_report late = {.r = r};
	struct pinl_event ev = {.size = sizeof ev};
	pthread_t t;

	pthread_create(&t, NULL, report_late, &late);
	while (!atomic_load(&late.begun))
		;
	lease(r, &p);
	pthread_join(t, NULL);
	assert_int_equal(count(r, PINL_EV_NOTICE, &ev), 0);
	assert_int_equal(settled_check(r->lease), 0);
	end_rig(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(holder_in_time),
		cmocka_unit_test(unmap_answers_a_notice),
		cmocka_unit_test(no_new_lease_during_a_change),
		cmocka_unit_test(the_ceiling_cuts_the_grace),
		cmocka_unit_test(a_callback_may_call_back),
		cmocka_unit_test(a_child_inherits_no_lease),
		cmocka_unit_test(old_reports_miss_new_leases),
	};

	return cmocka_run_group_tests_name("recall_holder", tests, NULL, NULL);
}
