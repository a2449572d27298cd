/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a holder's library tells when its connection has broken, as docs/protocol.md has it: of which
 * leases, in which order, how often it tries, and what is said of a lease that can't be told of again.
 */
#include <errno.h>
#include <sys/wait.h>
#include <time.h>

#include "again_rig.h"

#define TRIES	    600
#define PATIENCE_NS 5000000000u /* the library's */

/* It has been asked for, and nobody knows what became of that: it is asked for again, not told. */
static void what_was_not_answered_is_not_told_again(void **state)
{
	start_holder(2);
	welcome(false);
	serve_until(PL_LEASE, 2);
	break_off(true);
	until_all_told(PL_STILL, 1);
	serve_until(PL_LEASE, 1);
	break_off(false);
	until_all_told(PL_LEASE, 1);
	until_it_ends();
}

/* The second connection is another pinleased's, which knows nothing of it, and is slow. */
static void a_handle_comes_after_its_lease(void **state)
{
	union pl_message m, unanswered[MANY];
	uint64_t last;
	bool told = false;
	int n = 0;

	begin_unanswered(MANY / 4);
	last = a.last;
	break_off(false);
	do {
		next(&m);
		told |= m.head.type == PL_LEASE && m.lease.lease == last;
		unanswered[n++] = m;
	} while (m.head.type != PL_HANDLE || m.handle.lease != last);
	assert_true(told);
	assert_in_range(n, 1, 100); /* as many replies must find room */
	for (int i = 0; i < n; i++)
		answer(&unanswered[i]);
	serve_until(PL_ALL_TOLD, 1);
	until_it_ends();
}

/* The lease is told anew for it, and the handle itself is what is told next. */
static void a_handle_is_said_once(void **state)
{
	begin_unanswered(2);
	break_off(true);
	serve_until(PL_ALL_TOLD, 1);
	a.handles = 0;
	until_it_ends();
	assert_int_equal(a.handles, 1);
}

static void until_that_is_said(int leases)
{
	for (int i = 0; a.s->unguarded != leases; i++) {
		assert_in_range(i, 0, LONG_MS);
		usleep(1000);
	}
}

/* And of the others pinleased is told all the same, or at least that that is all. */
static void a_lease_that_cannot_be_shown_again_is_said_to_be_unguarded(void **state)
{
	begin_unanswered(3);
	a.s->drop = 1;
	reply_last(0);
	while (a.s->drop)
		usleep(1000);
	break_off(false);
	until_all_told(PL_LEASE, 0);
	until_that_is_said(3);
	until_it_ends();
}

static void a_lease_that_is_refused_when_told_again_is_said_to_be_unguarded(void **state)
{
	union pl_message m;

	begin(3);
	break_off(false);
	serve_until(PL_LEASE, 2);
	reply_last(-EDQUOT);
	next(&m);
	assert_int_equal(m.head.type, PL_HANDLE);
	reply(&m, -ENOENT, 0);
	until_all_told(PL_LEASE, 1);
	until_that_is_said(1);
	until_it_ends();
}

/* A connection that breaks off where a lease is told. It may have given up meanwhile. */
static void disappoint(void)
{
	struct pollfd p = {.events = POLLIN};
	union pl_message m = {0};
	const char *why;
	int fd;

	p.fd = a.sock = accept4(a.listening, NULL, NULL, SOCK_CLOEXEC);
	assert_true(a.sock >= 0);
	while (poll(&p, 1, LONG_MS) == 1 && !pl_message_receive(a.sock, &m, &fd, &why) &&
	       m.head.type != PL_LEASE) {
		if (fd >= 0)
			close(fd);
		if (m.head.type == PL_HELLO)
			say_welcome(false);
		else
			answer(&m);
	}
	usleep(100000);
	close(a.sock);
}

/* However often there is somebody again: the caller has waited long enough. */
static void trying_again_ends(void **state)
{
	struct pollfd p = {.fd = a.listening, .events = POLLIN};
	uint64_t began = now();
	int status, tries = 0;

	start_holder_that(1, true);
	p.fd = a.listening;
	do {
		if (poll(&p, 1, 100) != 1)
			continue;
		disappoint();
		assert_in_range(tries++, 0, TRIES);
	} while (waitpid(a.holder, &status, WNOHANG) != a.holder);
	assert_int_equal(status, 0);
	assert_true(tries > 1 || now() - began > PATIENCE_NS);
	a.sock = -1;
	remove_all();
}

/* Longer than it would wait for one that says nothing: else it would watch its files itself. */
static void who_breaks_off_is_tried_again(void **state)
{
	struct pollfd p = {.events = POLLIN};
	time_t until = time(NULL) + 12;

	start_holder(1);
	p.fd = a.listening;
	while (time(NULL) < until)
		if (poll(&p, 1, 100) == 1)
			close(accept(a.listening, NULL, NULL));
	assert_int_equal(poll(&p, 1, LONG_MS), 1);
	welcome(false);
	serve_until(PL_LEASE, 1);
	reply_last(0);
	until_it_ends();
}

static void come_back(void)
{
	union pl_message m;

	start_holder(MANY);
	welcome(false);
	for (int i = 0; i < MANY;) {
		next(&m);
		answer(&m);
		i += m.head.type == PL_HANDLE;
	}
	break_off(true);
	until_it_waits();
}

/* Nobody wakes it: it is all that there is to say. */
static void telling_goes_on_when_there_is_room(void **state)
{
	come_back();
	until_all_told(PL_STILL, MANY);
	until_it_ends();
}

/* That is passed over by pinleased, so there must be another. */
static void all_told_is_said_before_all_is_told_in_full(void **state)
{
	union pl_message m;

	come_back();
	next(&m);
	assert_int_equal(m.head.type, PL_STILL);
	reply(&m, -ENOENT, 0);
	until_all_told(PL_STILL, MANY - 1);
	until_all_told(PL_LEASE, MANY);
	until_it_ends();
}

/* One that listens says nothing for two seconds, which is two tries: that is a slow restart. */
static void a_slow_restart_is_no_loss(void **state)
{
	start_patient_holder();
	close(a.sock);
	for (int tries = 0; tries < 2; tries++) {
		union pl_message m;
		struct pollfd p = {.fd = a.listening, .events = POLLIN};

		assert_int_equal(poll(&p, 1, LONG_MS), 1);
		a.sock = accept4(a.listening, NULL, NULL, SOCK_CLOEXEC);
		next(&m);
		assert_int_equal(m.head.type, PL_HELLO);
		p.fd = a.sock;
		assert_int_equal(poll(&p, 1, LONG_MS), 1); /* it gives up */
		close(a.sock);
	}
	welcome(true);
	until_all_told(PL_STILL, 1);
	until_all_is_heard();
	assert_int_equal(a.s->lost, 0);
	until_it_ends();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_not_answered_is_not_told_again),
		cmocka_unit_test(a_handle_comes_after_its_lease),
		cmocka_unit_test(a_handle_is_said_once),
		cmocka_unit_test(a_lease_that_cannot_be_shown_again_is_said_to_be_unguarded),
		cmocka_unit_test(a_lease_that_is_refused_when_told_again_is_said_to_be_unguarded),
		cmocka_unit_test(trying_again_ends),
		cmocka_unit_test(who_breaks_off_is_tried_again),
		cmocka_unit_test(telling_goes_on_when_there_is_room),
		cmocka_unit_test(all_told_is_said_before_all_is_told_in_full),
		cmocka_unit_test(a_slow_restart_is_no_loss),
	};

	return cmocka_run_group_tests_name("again", tests, NULL, NULL);
}
