/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "again_rig.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#define SESSION 7

void next(union pl_message *m)
{
	struct pollfd p = {.fd = a.sock, .events = POLLIN};
	const char *why;
	int fd;

	assert_int_equal(poll(&p, 1, LONG_MS), 1);
	assert_int_equal(pl_message_receive(a.sock, m, &fd, &why), 0);
	if (fd >= 0)
		close(fd);
	a.serial = m->head.serial;
	if (m->head.type == PL_LEASE)
		a.last = (a.lease = m->lease).lease;
	a.handles += m->head.type == PL_HANDLE;
}

void reply(const union pl_message *to, int err, uint64_t value)
{
	union pl_message m;

	pl_message_init(&m, PL_REPLY);
	m.head.serial = to->head.serial;
	m.reply.err = err;
	m.reply.value = value;
	assert_int_equal(pl_message_send(a.sock, &m, -1), 0);
}

void reply_last(int err)
{
	reply(&(union pl_message){.head.serial = a.serial}, err, 0);
}

void answer(const union pl_message *m)
{
	if (m->head.type == PL_COVER)
		reply(m, 0, a.cover ? a.cover : 0xffffffffffff);
	else if (m->head.type == PL_LEASE || m->head.type == PL_HANDLE)
		reply(m, 0, m->head.type == PL_LEASE ? a.value : 0);
}

void serve_until(enum pl_type type, int nth)
{
	union pl_message m;

	for (next(&m); m.head.type != type || --nth; next(&m))
		answer(&m);
}

void say_welcome(bool resumed)
{
	union pl_message m;

	pl_message_init(&m, PL_WELCOME);
	m.welcome.version = PL_PROTO_VERSION;
	m.welcome.boot = a.boot;
	m.welcome.session = SESSION;
	m.welcome.resumed = resumed;
	m.welcome.ceiling_ms = a.ceiling_ms;
	pl_message_send(a.sock, &m, -1); /* it may have gone */
}

void welcome(bool resumed)
{
	union pl_message m;

	a.sock = accept4(a.listening, NULL, NULL, SOCK_CLOEXEC);
	assert_true(a.sock >= 0);
	next(&m);
	assert_int_equal(m.head.type, PL_HELLO);
	say_welcome(resumed);
}

void break_off(bool resumed)
{
	close(a.sock);
	welcome(resumed);
}

static uint64_t told_of(const union pl_message *m)
{
	return m->head.type == PL_STILL ? m->still.lease : m->lease.lease;
}

void until_all_told(enum pl_type by, int leases)
{
	union pl_message m;
	uint64_t last = 0;

	for (next(&m); m.head.type != PL_ALL_TOLD; next(&m)) {
		if (m.head.type == by && told_of(&m) != last) {
			last = told_of(&m);
			leases--;
		}
		answer(&m);
	}
	assert_int_equal(leases, 0);
}

void until_it_ends(void)
{
	struct pollfd p = {.fd = a.sock, .events = POLLIN};
	union pl_message m;
	const char *why;
	int fd, err;

	a.s->end = 1;
	do {
		assert_int_equal(poll(&p, 1, LONG_MS), 1);
		err = pl_message_receive(a.sock, &m, &fd, &why);
		if (fd >= 0)
			close(fd);
		if (!err)
			answer(&m);
		a.handles += !err && m.head.type == PL_HANDLE;
	} while (!err);
	end_holder();
}

uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

void begin_unanswered(int leases)
{
	start_holder(leases);
	welcome(false);
	serve_until(PL_HANDLE, leases);
}

void begin(int leases)
{
	begin_unanswered(leases);
	reply_last(0);
}

void begin_pinned(unsigned grace_ms)
{
	a.pinned = true;
	a.grace_ms = grace_ms;
	begin(1);
	a.pinned = false;
	a.grace_ms = 0;
}

void start_patient_holder(void)
{
	begin_pinned(LONG_MS);
}

static void notify_by(enum pl_notice_what what, uint64_t seq, uint64_t since_ns, uint64_t gone_ns,
		      uint64_t deadline_ns)
{
	union pl_message m;

	pl_message_init(&m, PL_NOTICE);
	m.notice.lease = a.last;
	m.notice.seq = seq;
	m.notice.start = a.lease.start;
	m.notice.end = a.lease.end;
	m.notice.what = what;
	m.notice.op = PINL_OP_TRUNCATE;
	m.notice.since_ns = since_ns;
	m.notice.deadline_ns = deadline_ns;
	m.notice.gone_ns = gone_ns;
	m.notice.closed = a.gate && what == PL_NOTICE_RECALL;
	strcpy(m.notice.source, a.gate ? "gate" : "files");
	assert_int_equal(pl_message_send(a.sock, &m, -1), 0);
}

void notify(enum pl_notice_what what, uint64_t since_ns, uint64_t gone_ns)
{
	notify_by(what, 5, since_ns, gone_ns, since_ns);
}

void notify_patiently(enum pl_notice_what what, uint64_t seq, uint64_t since_ns, uint64_t gone_ns)
{
	notify_by(what, seq, since_ns, gone_ns, since_ns + 2 * LONG_MS * 1000000ull);
}

void leave_a_recall_unheard(void)
{
	int status;

	begin_pinned(0);
	kill(a.holder, SIGSTOP);
	assert_int_equal(waitpid(a.holder, &status, WUNTRACED), a.holder);
	notify(PL_NOTICE_RECALL, now() / 2, 0);
	close(a.sock);
	a.boot++;
	kill(a.holder, SIGCONT);
}

void until_it_is_released(void)
{
	union pl_message m;

	for (next(&m); m.head.type != PL_RELEASED; next(&m))
		answer(&m);
	assert_int_equal(m.released.whole, 1);
}

void until_it_is_noticed(void)
{
	while (!a.s->noticed)
		usleep(1000);
}

void until_all_is_heard(void)
{
	int refused = a.s->refused;

	notify_patiently(PL_NOTICE_REFUSED, 9, now(), 0);
	while (a.s->refused == refused)
		usleep(1000);
}

void quiesce(void)
{
	a.s->quiesce = 1;
	until_it_is_released();
	until_all_is_heard();
}
