/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The door: no descriptor that a client shows comes into the main loop's table before a doorman
 * (doorman.c) has seen that it is a regular file of a file system that answers by itself. Closing
 * others, and looking at them, may take for ever: then the doorman hangs, is killed and replaced, and
 * the connection ends.
 *
 * Invariants: main loop only. A holder at the door isn't read from, so its messages keep their order. A
 * socket with descriptors in it is closed here only while a doorman has it, too (door_grave.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <linux/sockios.h>
#include <sys/socket.h>

#include "daemon.h"
#include "door.h"
#include "door_grave.h"
#include "door_man.h"
#include "door_shown.h"
#include "os/clock.h"

#define PATIENCE_NS 1000000000ull
#define STEP_NS	    250000000u /* of looking whether he has begun */
#define MOST_GRAVES 64	       /* of one user, whose doormen are stuck */
#define MOST_KEPT   64	       /* graves with one doorman */

/* Of one user. */
struct door {
	LIST_ENTRY(door) link;
	struct doors *all;
	uid_t uid;
	unsigned holders, n_graves;
	struct man *man;
	sd_event_source *io, *timer;
	unsigned kept; /* graves that he has, and nobody else */
	bool busy;
	uint64_t since_ns;   /* he has begun, as far as is known; 0 */
	struct holder *at;   /* busy with its message; NULL: it has gone */
	struct grave *grave; /* busy with that, or with the message of one who has gone */
	bool hands_over;     /* it is the grave that he is given */
	TAILQ_HEAD(, holder) waiting;
	struct graves graves;
};

struct doors {
	struct server *server;
	struct men men;
	LIST_HEAD(, door) doors;
	sd_event_source *turn; /* for nobody_there() */
};

static void go_on(struct door *d);

/* --------------------------------------------------------------------------- doors and users -- */

static struct door *find(struct doors *all, uid_t uid)
{
	struct door *d;

	LIST_FOREACH(d, &all->doors, link)
	if (d->uid == uid)
		break;
	return d;
}

static void let_man_go(struct door *d, bool stuck)
{
	d->io = sd_event_source_disable_unref(d->io);
	if (d->man)
		man_end(d->man, stuck);
	d->man = NULL;
	d->busy = false;
	d->kept = 0;
}

static void end_if_unused(struct door *d)
{
	if (d->holders || d->n_graves)
		return;
	let_man_go(d, false);
	men_end_taker(&d->all->men, d->uid);
	sd_event_source_disable_unref(d->timer);
	LIST_REMOVE(d, link);
	free(d);
}

static struct door *get(struct doors *all, uid_t uid)
{
	struct door *d = find(all, uid);

	if (d || !(d = calloc(1, sizeof *d)))
		return d;
	d->all = all;
	d->uid = uid;
	TAILQ_INIT(&d->waiting);
	TAILQ_INIT(&d->graves);
	LIST_INSERT_HEAD(&all->doors, d, link);
	return d;
}

int door_come(struct holder *h, uid_t uid)
{
	struct door *d = get(h->server->doors, uid);

	if (!d)
		return -ENOMEM;
	if (d->n_graves >= MOST_GRAVES)
		return -EDQUOT;
	d->holders++;
	h->door = d;
	return 0;
}

/* ----------------------------------------------------------------------------------- leaving -- */

static void bury(struct door *d, struct grave *g)
{
	if (!g)
		return;
	d->n_graves++;
	TAILQ_INSERT_TAIL(&d->graves, g, link);
}

void door_leave(struct holder *h)
{
	struct door *d = h->door;

	if (h->at_door && d->at != h)
		TAILQ_REMOVE(&d->waiting, h, at_link);
	shutdown(h->sock, SHUT_RDWR); /* nothing comes any more */
	if (d->at == h) {
		d->at = NULL;
		d->grave = grave_unseen(h->sock);
		d->n_graves += d->grave != NULL;
	} else {
		bury(d, grave_new(h->sock));
	}
	h->sock = -1;
	h->at_door = false;
	h->door = NULL;
	d->holders--;
	go_on(d);
	end_if_unused(d);
}

/* Whatever a client has sent before it was accepted is in there. */
void door_refuse(struct server *s, int sock)
{
	struct ucred cred = {.uid = (uid_t)-1};
	socklen_t len = sizeof cred;
	struct door *d;

	getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	d = get(s->doors, cred.uid);
	shutdown(sock, SHUT_RDWR);
	if (!d) /* no memory: it stays open */
		return;
	bury(d, grave_new(sock));
	go_on(d);
	end_if_unused(d);
}

/* Of what d was busy with: the doorman has it, or may have had it. */
static void put_back(struct door *d, bool handed_over)
{
	struct grave *g = d->grave;

	d->grave = NULL;
	if (!g)
		return;
	d->n_graves--;
	if (handed_over) {
		d->kept++;
		grave_free(g);
	} else {
		bury(d, grave_again(g));
	}
}

/* ---------------------------------------------------------------------------------- verdicts -- */

static void back(struct holder *h)
{
	h->at_door = false;
	sd_event_source_set_enabled(h->io, SD_EVENT_ON);
}

/* Of the holder's message: 0, its doorman has not seen anything wrong. */
static void go_in(struct holder *h, int err)
{
	back(h);
	if (!err) {
		h->vetted = true;
		err = holder_receive(h);
	} else {
		err = door_explain(err);
		if (err != -EPROTO)
			err = holder_reply(h, &h->shown, err, 0);
	}
	if (err)
		holder_gone(h);
}

/* It can't be received, as nobody is there to do so, nor passed over. */
static void send_away(struct holder *h, int err)
{
	back(h);
	holder_reply(h, &h->shown, err, 0);
	holder_gone(h);
}

static int on_verdict(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct door *d = arg;
	struct holder *h = d->at;
	struct door_verdict v;

	if (door_receive(d->man->sock, &v, sizeof v, NULL, MSG_DONTWAIT))
		return 0; /* its end is seen by its pidfd */
	man_is_there(d->man);
	d->busy = false;
	d->at = NULL;
	d->holders++; /* so that it stays till the end of this */
	put_back(d, d->hands_over);
	if (h)
		go_in(h, v.err);
	go_on(d);
	d->holders--;
	end_if_unused(d);
	return 0;
}

/* ---------------------------------------------------------------------------- one that hangs -- */

static void fail(struct door *d, bool stuck)
{
	struct holder *h = d->at;

	d->at = NULL;
	let_man_go(d, stuck);
	d->holders++;
	put_back(d, false); /* he may have ended before he had it */
	if (h && stuck)
		door_complain(h);
	if (h)
		send_away(h, pinl_set_error(-ETIMEDOUT,
					    "looking at the file shown, or closing it, took too long: "
					    "who serves its file system doesn't answer"));
	go_on(d);
	d->holders--;
	end_if_unused(d);
}

static struct door *door_of(const struct man *man, struct doors *all)
{
	struct door *d;

	LIST_FOREACH(d, &all->doors, link)
	if (d->man == man)
		break;
	return d;
}

static int on_end(struct man *man, void *arg)
{
	struct door *d = door_of(man, arg);

	if (d)
		fail(d, false);
	else
		man_end(man, false);
	return 0;
}

static int on_time(sd_event_source *source, uint64_t usec, void *arg);

static void arm(struct door *d, uint64_t ns)
{
	if (d->timer) {
		sd_event_source_set_time_relative(d->timer, ns / 1000);
		sd_event_source_set_enabled(d->timer, SD_EVENT_ONESHOT);
	} else {
		sd_event_add_time_relative(d->all->server->event, &d->timer, CLOCK_MONOTONIC, ns / 1000,
					   10000, on_time, d);
	}
}

/* Armed once in STEP_NS at most, however many come. */
static int on_time(sd_event_source *source, uint64_t usec, void *arg)
{
	struct door *d = arg;
	uint64_t now = pl_clock_ns();
	int unread = 0;

	if (!d->busy) { /* one that ended should be gone by now */
		go_on(d);
		return 0;
	}
	/* What it hasn't taken yet is no fault of the user's, and would be dropped here. */
	if (ioctl(d->man->sock, SIOCOUTQ, &unread) || !unread)
		d->since_ns = d->since_ns ? d->since_ns : now;
	if (d->since_ns && now - d->since_ns >= PATIENCE_NS)
		fail(d, true);
	else
		arm(d, STEP_NS);
	return 0;
}

/* ------------------------------------------------------------------------------------- going -- */

static bool have_man(struct door *d)
{
	struct server *s = d->all->server;

	if (d->man)
		return true;
	d->man = man_new(&d->all->men, d->uid);
	if (d->man && sd_event_add_io(s->event, &d->io, d->man->sock, EPOLLIN, on_verdict, d) < 0)
		let_man_go(d, false);
	return d->man;
}

static void nobody_there(struct door *d)
{
	struct holder *h;

	d->holders++;
	while ((h = TAILQ_FIRST(&d->waiting)) && !d->busy) {
		TAILQ_REMOVE(&d->waiting, h, at_link);
		send_away(h, pinl_set_error(-EDQUOT,
					    "pinleased looks at no more files of user %u: file systems "
					    "that don't answer, of this user's or of many others, keep "
					    "it from doing so; end them",
					    d->uid));
	}
	d->holders--;
	end_if_unused(d);
}

/* Not from inside go_on(): others walk the list of holders there. */
static int on_turn(sd_event_source *source, void *arg)
{
	struct doors *all = arg;
	struct door *d, *next;

	for (d = LIST_FIRST(&all->doors); d; d = next) {
		next = LIST_NEXT(d, link);
		if (!d->busy && !TAILQ_EMPTY(&d->waiting))
			nobody_there(d);
	}
	return 0;
}

static void no_man(struct door *d)
{
	if (!men_are_ending(&d->all->men, d->uid))
		sd_event_source_set_enabled(d->all->turn, SD_EVENT_ONESHOT);
	else if (!d->timer || sd_event_source_get_enabled(d->timer, NULL) <= 0)
		arm(d, PATIENCE_NS);
}

static int next_sock(struct door *d)
{
	d->at = TAILQ_FIRST(&d->waiting);
	d->hands_over = !d->at;
	if (d->at) {
		TAILQ_REMOVE(&d->waiting, d->at, at_link);
		return d->at->sock;
	}
	d->grave = TAILQ_FIRST(&d->graves);
	TAILQ_REMOVE(&d->graves, d->grave, link);
	return d->grave->sock;
}

static void go_on(struct door *d)
{
	bool nothing = TAILQ_EMPTY(&d->waiting) && TAILQ_EMPTY(&d->graves);
	struct door_order o = {.fd = -1};
	int sock;

	if (d->busy)
		return;
	if (d->kept && (nothing || d->kept >= MOST_KEPT))
		let_man_go(d, false); /* and they with him */
	if (nothing)
		return;
	if (!have_man(d)) {
		no_man(d);
		return;
	}
	sock = next_sock(d);
	o.what = d->at ? DOOR_MESSAGE : DOOR_GRAVE;
	d->busy = true;
	d->since_ns = 0;
	if (!d->timer || sd_event_source_get_enabled(d->timer, NULL) <= 0)
		arm(d, STEP_NS);
	pl_packet_send(d->man->sock, &o, sizeof o, sock); /* if it has ended, its pidfd says so */
}

/* ----------------------------------------------------------------------------------- message -- */

int door_pass(struct holder *h)
{
	union pl_message m;
	bool shows = false;
	int err;

	if (h->vetted) {
		h->vetted = false;
		return 0;
	}
	err = door_peek(h->sock, &m, &shows);
	if (err || !shows)
		return err;
	if (!h->welcome)
		return -EPROTO;
	h->shown = m.head;
	h->at_door = true;
	sd_event_source_set_enabled(h->io, SD_EVENT_OFF);
	TAILQ_INSERT_TAIL(&h->door->waiting, h, at_link);
	go_on(h->door);
	return -EAGAIN;
}

/* ---------------------------------------------------------------------------------- start and end -- */

static void on_free(struct men *men, void *arg)
{
	struct door *d;

	LIST_FOREACH(d, &((struct doors *)arg)->doors, link)
	go_on(d); /* there may be another now */
}

static bool is_idle(struct man *man, void *arg)
{
	struct door *d = door_of(man, arg);

	return d && !d->busy;
}

static void dismiss(struct man *man, void *arg)
{
	let_man_go(door_of(man, arg), false);
}

struct men *doors_men(struct server *s)
{
	return &s->doors->men;
}

int doors_new(struct server *s)
{
	s->doors = calloc(1, sizeof *s->doors);
	if (!s->doors)
		return -ENOMEM;
	s->doors->server = s;
	if (sd_event_add_defer(s->event, &s->doors->turn, on_turn, s->doors) < 0)
		return -ENOMEM;
	sd_event_source_set_enabled(s->doors->turn, SD_EVENT_OFF);
	s->doors->men = (struct men){.event = s->event,
				     .died = on_end,
				     .freed = on_free,
				     .idle = is_idle,
				     .dismiss = dismiss,
				     .arg = s->doors};
	return 0;
}

/* What lies in graves is left to the end of the process, which no socket keeps up. */
void doors_free(struct server *s)
{
	struct doors *all = s->doors;
	struct door *d;
	struct grave *g;

	if (!all)
		return;
	while ((d = LIST_FIRST(&all->doors))) {
		while ((g = TAILQ_FIRST(&d->graves))) {
			TAILQ_REMOVE(&d->graves, g, link);
			free(g);
		}
		free(d->grave);
		d->holders = d->n_graves = 0;
		end_if_unused(d);
	}
	men_free(&all->men);
	sd_event_source_disable_unref(all->turn);
	free(all);
	s->doors = NULL;
}
