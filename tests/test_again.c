/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a holder's library tells when its connection has broken, as docs/protocol.md has it: seen by an
 * arbiter that is this test, so that nothing depends on who is faster.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "proto/wire.h"

#define PG	    4096ul
#define MANY	    600 /* more than a socket has room for */
#define LONG_MS	    120000
#define SESSION	    7
#define NOBODY	    65534
#define TRIES	    600
#define PATIENCE_NS 5000000000u /* the library's */

/* What holder and test share. */
struct shared {
	atomic_int end, drop;  /* the test's orders; drop: becomes 0 when that is done */
	atomic_int unguarded;  /* leases of which that was said */
	atomic_bool must_fail; /* to lease */
	atomic_int let_go, orphans, orphan_ends, answered, noticed, refused;
	_Atomic uint64_t change[PINL_EV_KEYS + 1]; /* the last of each type was of that one */
	atomic_int quiesce;			   /* the test's order */
	_Atomic uint64_t waited_ns;		   /* of the last ANSWERED */
	atomic_int lost;			   /* connections of which that was said */
	atomic_uint unwaited;			   /* operations of which that was said */
	atomic_bool others_wait;		   /* the last lease says that of itself */
	atomic_int looks;			   /* at that, from when it was made */
};

static struct {
	char dir[64], file[96];
	struct sockaddr_un addr;
	int listening, sock;
	pid_t holder;
	struct shared *s;
	uint64_t last;		   /* lease that was told of */
	uint64_t serial;	   /* of the last message */
	int handles;		   /* that came */
	bool pinned;		   /* leases are to be */
	unsigned grace_ms;	   /* and are to have */
	unsigned ceiling_ms;	   /* that is said */
	uint64_t boot;		   /* another one after a restart */
	bool gate;		   /* who waits does so at a gate that stays closed */
	uint64_t cover, value;	   /* of the REPLY to COVER, to LEASE; cover: of a memfd */
	struct pl_lease_msg lease; /* the last that came */
} a;

/* ------------------------------------------------------------------------------------- the holder -- */

/* It can't open its own file any more. */
static void drop_privileges(void)
{
	if (getuid() ? chmod(a.file, 0) : setresuid(NOBODY, NOBODY, NOBODY))
		_exit(103);
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void look(struct pinl_ctx *ctx)
{
	struct pinl_event ev = {.size = sizeof ev};

	while (!pinl_next_event(ctx, &ev)) {
		if (ev.type != PINL_EV_DEGRADED || ev.err == -EINTR)
			a.s->change[ev.type] = ev.change_id;
		a.s->unguarded += ev.type == PINL_EV_DEGRADED && ev.lease_id && ev.err == -ENOTCONN;
		a.s->lost += ev.type == PINL_EV_DEGRADED && !ev.lease_id && ev.err == -ENOTCONN;
		a.s->let_go += ev.type == PINL_EV_DEGRADED && ev.err == -EINTR;
		a.s->orphans += ev.type == PINL_EV_ORPHAN;
		if (ev.type == PINL_EV_ANSWERED)
			a.s->waited_ns = ev.waited_ns;
		a.s->answered += ev.type == PINL_EV_ANSWERED;
		a.s->noticed += ev.type == PINL_EV_NOTICE;
		a.s->refused += ev.type == PINL_EV_REFUSED;
		if (ev.type == PINL_EV_DEGRADED && ev.err == -EAGAIN)
			a.s->unwaited |= PINL_OPBIT(ev.op);
		a.s->orphan_ends += ev.type == PINL_EV_ORPHAN_END && ev.err == -EOPNOTSUPP;
	}
}

static struct pinl_lease *lease(struct pinl_device *dev, uintptr_t at)
{
	struct pinl_policy policy = {.size = sizeof policy,
				     .kind = PINL_RECALL,
				     .then = PINL_THEN_FAIL,
				     .grace_ms = a.grace_ms};
	struct pinl_lease *l = NULL;
	int err = pinl_map_range(dev, at, at + PG, PINL_WRITE | (a.pinned ? PINL_PIN : 0), &policy, NULL,
				 &l);

	if (!err == a.s->must_fail || (err && err != -ENOTCONN && err != -ETIMEDOUT)) {
		fprintf(stderr, "# %s\n", pinl_error());
		_exit(102);
	}
	return l;
}

static void look_at(struct pinl_lease *l)
{
	char text[4096];

	pinl_lease_describe(l, text, sizeof text);
	a.s->others_wait = strstr(text, "held where made by another process:");
	a.s->looks++;
}

/* Makes so many leases, a page each. */
static void __attribute__((noreturn)) hold(int leases)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .ceiling_ms = a.grace_ms};
	int fd = a.cover ? memfd_create("gate", MFD_CLOEXEC)
			 : open(a.file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct pinl_lease *last = NULL;
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	char *va;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (fd < 0 || ftruncate(fd, leases * PG) || pinl_open(&opts, &ctx) ||
	    pinl_device_open(ctx, "soft", NULL, &dev))
		_exit(101);
	va = mmap(NULL, leases * PG, PROT_READ | PROT_WRITE, a.pinned ? MAP_PRIVATE : MAP_SHARED, fd, 0);
	close(fd);
	for (uintptr_t at = (uintptr_t)va; at < (uintptr_t)va + leases * PG; at += PG)
		last = lease(dev, at);
	for (; !a.s->end && !a.s->must_fail; usleep(1000)) {
		look(ctx);
		look_at(last);
		if (a.s->drop)
			drop_privileges();
		a.s->drop = 0;
		if (a.s->quiesce)
			pinl_quiesced(last);
		a.s->quiesce = 0;
	}
	pinl_close(ctx);
	_exit(0);
}

static void start_holder_that(int leases, bool must_fail)
{
	strcpy(a.dir, "/var/tmp/pinlease-again-XXXXXX");
	assert_non_null(mkdtemp(a.dir));
	assert_int_equal(chmod(a.dir, 0755), 0);
	snprintf(a.file, sizeof a.file, "%s/file", a.dir);
	a.addr.sun_family = AF_UNIX;
	snprintf(a.addr.sun_path, sizeof a.addr.sun_path, "%s/socket", a.dir);
	setenv("PINLEASE_SOCKET", a.addr.sun_path, 1);
	a.listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(a.listening, (void *)&a.addr, sizeof a.addr), 0);
	assert_int_equal(chmod(a.addr.sun_path, 0666), 0);
	assert_int_equal(listen(a.listening, 8), 0);
	a.handles = 0;
	a.s = mmap(NULL, sizeof *a.s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	a.s->must_fail = must_fail;
	a.holder = fork();
	if (!a.holder)
		hold(leases);
}

static void start_holder(int leases)
{
	start_holder_that(leases, false);
}

static void remove_all(void)
{
	munmap(a.s, sizeof *a.s);
	close(a.sock);
	close(a.listening);
	unlink(a.file);
	unlink(a.addr.sun_path);
	assert_int_equal(rmdir(a.dir), 0);
}

static void end_holder(void)
{
	int status;

	assert_int_equal(waitpid(a.holder, &status, 0), a.holder);
	assert_int_equal(status, 0);
	remove_all();
}

/* Its thread that sends waits for something to happen. */
static bool waits(void)
{
	char path[300], name[32], wchan[64];
	DIR *tasks;
	bool is = false;

	snprintf(path, sizeof path, "/proc/%d/task", a.holder);
	tasks = opendir(path);
	for (struct dirent *d; (d = readdir(tasks));) {
		FILE *comm, *at;

		snprintf(path, sizeof path, "/proc/%d/task/%s/comm", a.holder, d->d_name);
		comm = fopen(path, "re");
		snprintf(path, sizeof path, "/proc/%d/task/%s/wchan", a.holder, d->d_name);
		at = fopen(path, "re");
		if (comm && at && fgets(name, sizeof name, comm) && fgets(wchan, sizeof wchan, at))
			is |= !strcmp(name, "pinl-arbiter\n") && strstr(wchan, "poll");
		if (comm)
			fclose(comm);
		if (at)
			fclose(at);
	}
	closedir(tasks);
	return is;
}

static void until_it_waits(void)
{
	int queued = 0;

	while (!queued || !waits()) {
		usleep(1000);
		assert_int_equal(ioctl(a.sock, SIOCINQ, &queued), 0);
	}
}

/* ------------------------------------------------------------------------------------ the arbiter -- */

static void next(union pl_message *m)
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

static void reply(const union pl_message *to, int err, uint64_t value)
{
	union pl_message m;

	pl_message_init(&m, PL_REPLY);
	m.head.serial = to->head.serial;
	m.reply.err = err;
	m.reply.value = value;
	assert_int_equal(pl_message_send(a.sock, &m, -1), 0);
}

static void answer(const union pl_message *m)
{
	if (m->head.type == PL_COVER)
		reply(m, 0, a.cover ? a.cover : 0xffffffffffff);
	else if (m->head.type == PL_LEASE || m->head.type == PL_HANDLE)
		reply(m, 0, m->head.type == PL_LEASE ? a.value : 0);
}

/* All is answered but the nth of this type. */
static void serve_until(enum pl_type type, int nth)
{
	union pl_message m;

	for (next(&m); m.head.type != type || --nth; next(&m))
		answer(&m);
}

static void say_welcome(bool resumed)
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

static void welcome(bool resumed)
{
	union pl_message m;

	a.sock = accept4(a.listening, NULL, NULL, SOCK_CLOEXEC);
	assert_true(a.sock >= 0);
	next(&m);
	assert_int_equal(m.head.type, PL_HELLO);
	say_welcome(resumed);
}

static void break_off(bool resumed)
{
	close(a.sock);
	welcome(resumed);
}

static uint64_t told_of(const union pl_message *m)
{
	return m->head.type == PL_STILL ? m->still.lease : m->lease.lease;
}

/* It leaves nothing out and nobody unanswered. One whose handle finds no room is told twice. */
static void until_all_told(enum pl_type by, int leases)
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

static void until_it_ends(void)
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

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* -------------------------------------------------------------------------------------------------- */

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

	start_holder(MANY / 4);
	welcome(false);
	serve_until(PL_HANDLE, MANY / 4);
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
	start_holder(2);
	welcome(false);
	serve_until(PL_HANDLE, 2);
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
	start_holder(3);
	welcome(false);
	serve_until(PL_HANDLE, 3);
	a.s->drop = 1;
	reply(&(union pl_message){.head.serial = a.serial}, 0, 0);
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

	start_holder(3);
	welcome(false);
	serve_until(PL_HANDLE, 3);
	reply(&(union pl_message){.head.serial = a.serial}, 0, 0);
	break_off(false);
	serve_until(PL_LEASE, 2);
	reply(&(union pl_message){.head.serial = a.serial}, -EDQUOT, 0);
	next(&m);
	assert_int_equal(m.head.type, PL_HANDLE);
	reply(&m, -ENOENT, 0);
	until_all_told(PL_LEASE, 1);
	until_that_is_said(1);
	until_it_ends();
}

/* However often there is somebody again: the caller has waited long enough. */
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
	reply(&(union pl_message){.head.serial = a.serial}, 0, 0);
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

static void notify(enum pl_notice_what what, uint64_t since_ns, uint64_t gone_ns)
{
	notify_by(what, 5, since_ns, gone_ns, since_ns);
}

/* What was let go when the library had taken the device off was no orphan. */
static void what_was_let_go_before_the_force_was_an_orphan_until_then(void **state)
{
	uint64_t began = now();
	union pl_message m;

	a.pinned = true;
	start_holder(1);
	a.pinned = false;
	welcome(false);
	serve_until(PL_HANDLE, 1);
	reply(&(union pl_message){.head.serial = a.serial}, 0, 0);
	notify(PL_NOTICE_RECALL, began, 0);
	for (next(&m); m.head.type != PL_RELEASED; next(&m))
		answer(&m);
	assert_int_equal(m.released.whole, 1);
	assert_int_equal(m.released.outcome, PINL_OUT_FAIL);
	notify(PL_NOTICE_LOST, began, now());
	notify(PL_NOTICE_LOST, began, began + 1);
	while (!a.s->orphan_ends)
		usleep(1000);
	assert_int_equal(a.s->let_go, 1);
	assert_int_equal(a.s->orphans, 1);
	until_it_ends();
}

/* A lease's recall and the end of the connection are there when it moves again. */
static void leave_a_recall_unheard(void)
{
	int status;

	a.pinned = true;
	start_holder(1);
	a.pinned = false;
	welcome(false);
	serve_until(PL_HANDLE, 1);
	reply(&(union pl_message){.head.serial = a.serial}, 0, 0);
	kill(a.holder, SIGSTOP);
	assert_int_equal(waitpid(a.holder, &status, WUNTRACED), a.holder);
	notify(PL_NOTICE_RECALL, now() / 2, 0);
	close(a.sock);
	a.boot++;
	kill(a.holder, SIGCONT);
}

static void until_it_is_released(void)
{
	union pl_message m;

	for (next(&m); m.head.type != PL_RELEASED; next(&m))
		answer(&m);
	assert_int_equal(m.released.whole, 1);
}

/* Nobody waits for it any more. */
static void what_is_left_unheard_by_one_that_knows_nothing_was_let_go(void **state)
{
	a.ceiling_ms = 1;
	leave_a_recall_unheard();
	a.ceiling_ms = 0;
	welcome(false);
	until_it_is_released();
	while (!a.s->orphan_ends)
		usleep(1000);
	assert_int_equal(a.s->let_go, 1);
	assert_int_equal(a.s->orphans, 1);
	assert_int_not_equal(a.s->change[PINL_EV_NOTICE], 0);
	assert_int_equal(a.s->change[PINL_EV_DEGRADED], a.s->change[PINL_EV_NOTICE]);
	assert_int_equal(a.s->change[PINL_EV_ORPHAN], a.s->change[PINL_EV_NOTICE]);
	while (!a.s->answered)
		usleep(1000);
	assert_int_equal(a.s->waited_ns, 2000000); /* not until it was heard of */
	until_it_ends();
}

/* It tells of the recall again, or that it has been forced. */
static void what_is_left_unheard_is_told_again(void **state)
{
	leave_a_recall_unheard();
	welcome(true);
	until_all_told(PL_STILL, 1);
	assert_int_equal(a.s->answered, 0);
	notify(PL_NOTICE_RECALL, now(), 0);
	until_it_is_released();
	while (!a.s->answered)
		usleep(1000);
	assert_int_equal(a.s->answered, 1);
	until_it_ends();
}

/* But not of a lease that it couldn't take over. */
static void what_is_left_unheard_of_an_unknown_lease_is_done(void **state)
{
	union pl_message m;

	leave_a_recall_unheard();
	welcome(true);
	next(&m);
	assert_int_equal(m.head.type, PL_STILL);
	reply(&m, -ENOENT, 0);
	until_it_is_released();
	until_it_ends();
}

/* ------------------------------------------------------------------------------- what goes on -- */

static void start_patient_holder(void)
{
	a.pinned = true;
	a.grace_ms = LONG_MS;
	start_holder(1);
	a.pinned = false;
	a.grace_ms = 0;
	welcome(false);
	serve_until(PL_HANDLE, 1);
	reply(&(union pl_message){.head.serial = a.serial}, 0, 0);
}

static void notify_patiently(enum pl_notice_what what, uint64_t seq, uint64_t since_ns, uint64_t gone_ns)
{
	notify_by(what, seq, since_ns, gone_ns, since_ns + 2 * LONG_MS * 1000000ull);
}

static void until_it_is_noticed(void)
{
	while (!a.s->noticed)
		usleep(1000);
}

/* One notice after the other is heard, and this one can be seen to be. */
static void until_all_is_heard(void)
{
	int refused = a.s->refused;

	notify_patiently(PL_NOTICE_REFUSED, 9, now(), 0);
	while (a.s->refused == refused)
		usleep(1000);
}

static void quiesce(void)
{
	a.s->quiesce = 1;
	until_it_is_released();
	until_all_is_heard();
}

static void who_is_told_of_again_goes_on_once(void **state)
{
	uint64_t since = now();

	start_patient_holder();
	notify_patiently(PL_NOTICE_RECALL, 5, since, 0);
	until_it_is_noticed();
	break_off(true);
	until_all_told(PL_STILL, 1);
	notify_patiently(PL_NOTICE_RECALL, 1, since, 0);
	until_all_is_heard();
	assert_int_equal(a.s->answered, 0);
	quiesce();
	assert_int_equal(a.s->answered, 1);
	assert_int_equal(a.s->change[PINL_EV_ANSWERED], a.s->change[PINL_EV_NOTICE]);
	until_it_ends();
}

/* In vain, so that it was told of twice. */
static void what_was_let_go_is_what_was_noticed(void **state)
{
	uint64_t since = now();

	start_patient_holder();
	notify_patiently(PL_NOTICE_RECALL, 5, since, 0);
	until_it_is_noticed();
	notify_patiently(PL_NOTICE_RECALL, 5, since, 0);
	notify_patiently(PL_NOTICE_LOST, 5, since, now());
	until_all_is_heard();
	assert_int_equal(a.s->let_go, 1);
	assert_int_equal(a.s->answered, 1);
	assert_int_equal(a.s->change[PINL_EV_ANSWERED], a.s->change[PINL_EV_NOTICE]);
	assert_int_equal(a.s->change[PINL_EV_DEGRADED], a.s->change[PINL_EV_NOTICE]);
	quiesce();
	assert_int_equal(a.s->answered, 1);
	until_it_ends();
}

static void each_who_is_let_go_goes_on(void **state)
{
	uint64_t since = now();

	start_patient_holder();
	notify_patiently(PL_NOTICE_RECALL, 5, since, 0);
	notify_patiently(PL_NOTICE_RECALL, 6, since + 1, 0);
	notify_patiently(PL_NOTICE_LOST, 6, since + 1, now());
	until_all_is_heard();
	assert_int_equal(a.s->answered, 1);
	assert_int_not_equal(a.s->change[PINL_EV_ANSWERED], a.s->change[PINL_EV_NOTICE]);
	notify_patiently(PL_NOTICE_LOST, 5, since, now());
	until_all_is_heard();
	assert_int_equal(a.s->answered, 2);
	assert_int_equal(a.s->change[PINL_EV_ANSWERED], a.s->change[PINL_EV_NOTICE]);
	quiesce();
	assert_int_equal(a.s->answered, 2);
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

/* ---------------------------------------------------------------------------------- at the gate -- */

static void begin_anew(void)
{
	a.boot++;
	break_off(false);
	until_all_told(PL_LEASE, 1);
	until_all_is_heard();
}

/* That stays closed: nothing has happened. */
static void who_was_refused_took_nothing(void **state)
{
	start_patient_holder();
	a.gate = true;
	notify_patiently(PL_NOTICE_RECALL, 5, now(), 0);
	until_it_is_noticed();
	a.gate = false;
	begin_anew();
	assert_int_equal(a.s->answered, 1);
	assert_int_equal(a.s->let_go, 0);
	assert_int_equal(a.s->orphans, 0);
	quiesce();
	until_it_ends();
}

static void nor_if_that_is_left_unheard(void **state)
{
	a.gate = true;
	leave_a_recall_unheard();
	a.gate = false;
	welcome(false);
	until_it_is_released();
	until_all_is_heard();
	assert_int_equal(a.s->let_go, 0);
	assert_int_equal(a.s->orphans, 0);
	until_it_ends();
}

#define TOLD_ONLY 0x33333333333ull
#define OPS	  (PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE))

static void lease_at_the_gate(bool has_place)
{
	int looks;

	a.cover = TOLD_ONLY | PL_SUPERVISED | PL_OTHERS;
	a.value = has_place ? a.cover : a.cover & ~PL_OTHERS;
	start_holder(1);
	welcome(false);
	serve_until(PL_HANDLE, 1);
	reply(&(union pl_message){.head.serial = a.serial}, 0, 0);
	for (looks = a.s->looks; a.s->looks == looks;)
		usleep(1000);
	assert_int_equal(a.s->others_wait, has_place);
}

static void who_finds_no_place_counts_on_nobody(void **state)
{
	for (int has_place = 0; has_place < 2; has_place++) {
		lease_at_the_gate(has_place);
		until_it_ends();
	}
	a.cover = a.value = 0;
}

static void nor_does_whom_the_next_one_has_no_place_for(void **state)
{
	union pl_message m;

	lease_at_the_gate(true);
	a.boot++;
	break_off(false);
	until_all_told(PL_LEASE, 1);
	pl_message_init(&m, PL_NOTICE);
	m.notice.lease = a.last;
	m.notice.start = a.lease.start;
	m.notice.end = a.lease.end;
	m.notice.what = PL_NOTICE_WEAKER;
	m.notice.op = PINL_OP_TRUNCATE;
	m.notice.also = OPS;
	for (int i = 0; i < 2; i++) /* once is enough */
		assert_int_equal(pl_message_send(a.sock, &m, -1), 0);
	while (a.s->unwaited != OPS || a.s->others_wait)
		usleep(1000);
	assert_int_equal(a.s->let_go, 0);
	until_it_ends();
	a.cover = a.value = 0;
}

/* pinleased numbers its changes for itself. */
static void what_was_refused_is_another_change(void **state)
{
	start_patient_holder();
	notify_patiently(PL_NOTICE_RECALL, 5, now(), 0);
	until_it_is_noticed();
	notify_patiently(PL_NOTICE_REFUSED, a.s->change[PINL_EV_NOTICE], now(), 0);
	while (!a.s->refused)
		usleep(1000);
	assert_int_not_equal(a.s->change[PINL_EV_REFUSED], a.s->change[PINL_EV_NOTICE]);
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
		cmocka_unit_test(what_was_let_go_before_the_force_was_an_orphan_until_then),
		cmocka_unit_test(what_is_left_unheard_by_one_that_knows_nothing_was_let_go),
		cmocka_unit_test(what_is_left_unheard_is_told_again),
		cmocka_unit_test(what_is_left_unheard_of_an_unknown_lease_is_done),
		cmocka_unit_test(who_is_told_of_again_goes_on_once),
		cmocka_unit_test(what_was_let_go_is_what_was_noticed),
		cmocka_unit_test(each_who_is_let_go_goes_on),
		cmocka_unit_test(what_was_refused_is_another_change),
		cmocka_unit_test(a_slow_restart_is_no_loss),
		cmocka_unit_test(who_was_refused_took_nothing),
		cmocka_unit_test(nor_if_that_is_left_unheard),
		cmocka_unit_test(who_finds_no_place_counts_on_nobody),
		cmocka_unit_test(nor_does_whom_the_next_one_has_no_place_for),
	};

	return cmocka_run_group_tests_name("again", tests, NULL, NULL);
}
