/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "door_shown.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "daemon.h"
#include "os/clock.h"
#include "os/errname.h"

#define MINUTE_NS 60000000000ull

int door_peek(int sock, union pl_message *m, bool *shows)
{
	struct iovec iov = {m, sizeof *m};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n = recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT);
	const char *why;

	if (n <= 0)
		return n && errno != ECONNRESET ? -errno : -EPIPE;
	*shows = msg.msg_flags & MSG_CTRUNC; /* there were some, and no room */
	if (!*shows)
		return 0;
	return msg.msg_flags & MSG_TRUNC ? -EPROTO : pl_message_check(m, n, 1, &why);
}

int door_explain(int err)
{
	switch (err) {
	case -EPROTO:
		return err;
	case -EINVAL:
		return pinl_set_error(err, "what was shown is no regular file");
	case -EOPNOTSUPP:
		return pinl_set_error(err,
				      "pinleased doesn't watch files of a file system that a server, or "
				      "another machine, answers for; the library does what it can by "
				      "itself");
	default:
		return pinl_set_error(err, "the file shown can't be looked at: %s", pl_errname(-err));
	}
}

void door_complain(const struct holder *h)
{
	uint64_t now = pl_clock_ns();

	if (h->user->stuck_ns && now - h->user->stuck_ns < MINUTE_NS)
		return;
	h->user->stuck_ns = now;
	fprintf(stderr,
		"pinleased: %s (%d) of user %u has shown a file that is not looked at or closed within "
		"a second; its connection ends. More of this user's in the next minute are not told "
		"of\n",
		h->name, h->pid, h->user->uid);
}
