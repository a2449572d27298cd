/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a holder names by HANDLE is taken by a doorman of his user's, which looks what it is: whatever
 * else it is, its close could take for ever. Only a ring or the address space of a device comes here.
 * The main loop waits, as this takes some microseconds where nobody hangs, and of those that hang a user
 * has only so many.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon.h"
#include "door.h"
#include "door_man.h"
#include "os/clock.h"

#define LEAST_NS 10000000u /* for a child to be scheduled, whatever is left of the user's share */

static struct man *taker_of(struct men *men, uid_t uid)
{
	struct man *man;

	LIST_FOREACH(man, &men->all, link)
	if (man->takes && !man->ended && man->uid == uid)
		return man;
	man = man_new(men, uid);
	if (man)
		man->takes = true;
	return man;
}

void men_end_taker(struct men *men, uid_t uid)
{
	struct man *man;

	LIST_FOREACH(man, &men->all, link)
	if (man->takes && !man->ended && man->uid == uid)
		man_end(man, false);
}

static int answer(struct man *man, struct door_verdict *v, uint64_t deadline_ns)
{
	struct pollfd p = {.fd = man->sock, .events = POLLIN};
	uint64_t now;
	int n, err;

	do {
		now = pl_clock_ns();
		n = poll(&p, 1, now < deadline_ns ? (int)((deadline_ns - now + 999999) / 1000000) : 0);
	} while (n < 0 && errno == EINTR);
	if (!n)
		return -ETIMEDOUT;
	err = door_receive(man->sock, v, sizeof *v, NULL, MSG_DONTWAIT);
	if (!err)
		man_is_there(man);
	return err;
}

static int order(struct man *man, const struct door_order *o, int fd, struct door_verdict *v,
		 uint64_t deadline_ns)
{
	int err = pl_packet_send(man->sock, o, sizeof *o, fd);

	return err ? err : answer(man, v, deadline_ns);
}

static int take(struct man *man, int pidfd, const struct door_order *o, uint64_t deadline_ns)
{
	static const struct door_order drop = {.what = DOOR_DROP, .fd = -1};
	struct door_verdict v;
	int fd, err = order(man, o, pidfd, &v, deadline_ns);

	if (err || v.err) {
		if (err || v.err == -EBADF) /* whose close() isn't waited for */
			man_end(man, err);
		return err ? -ETIMEDOUT : v.err;
	}
	fd = (int)syscall(SYS_pidfd_getfd, man->pidfd, v.fd, 0);
	err = fd < 0 ? -errno : 0;
	if (order(man, &drop, -1, &v, deadline_ns)) /* else it would be an heir of the ring's */
		man_end(man, true);
	return err ? err : fd;
}

int door_take(struct holder *h, enum pl_outside_kind kind, int fd, uint64_t deadline_ns)
{
	struct door_order o = {
		.what = DOOR_TAKE, .fd = fd, .kind = kind, .number = pl_outside_device(kind)};
	struct men *men = doors_men(h->server);
	uint64_t least = pl_clock_ns() + LEAST_NS;
	struct man *man = taker_of(men, h->user->uid);
	int err;

	if (!man)
		return -EDQUOT;
	err = take(man, h->pidfd, &o, deadline_ns > least ? deadline_ns : least);
	if (!h->door) /* adopted, and nobody is there who would end it */
		men_end_taker(men, h->user->uid);
	return err;
}
