/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The device "verbs" of the failure sweeps; see fail_rig.h. The peer is the test's own. */
#include <errno.h>
#include <string.h>

#include "fail_rig.h"

#ifdef HAVE_VERBS
#include "verbs_peer.h"

struct ends {
	struct peer asks, answers;
	bool broken; /* an error has ended the connection */
};

static struct ends ends; /* a life's; it counts allocations */

const char *verbs_missing(void)
{
	return peer_missing();
}

static void connect_both(struct ends *e)
{
	struct peer_name asks, answers;

	peer_get_name(&e->asks, &asks);
	peer_get_name(&e->answers, &answers);
	peer_connect(&e->answers, &asks);
	peer_connect(&e->asks, &answers);
	e->broken = false;
}

void verbs_up(struct run *r)
{
	struct ends *e = &ends;

	peer_open(&e->asks, NULL, PAGE);
	peer_open(&e->answers, NULL, PAGE);
	connect_both(e);
	r->verbs = e;
}

void verbs_down(struct run *r)
{
	struct ends *e = r->verbs;

	peer_close(&e->asks);
	peer_close(&e->answers);
}

int verbs_open_device(struct run *r)
{
	struct ends *e = r->verbs;
	struct pinl_verbs_arg arg = {
		.size = sizeof arg,
		.pd = e->answers.pd,
		.access = IBV_ACCESS_REMOTE_WRITE,
		.flags = r->l->then == PINL_THEN_COPY ? PINL_VERBS_READ : 0,
	};

	return pinl_device_open(r->ctx, "verbs", &arg, &r->dev);
}

int verbs_write(struct run *r, const struct pinl_addr *a, const char *page)
{
	struct ends *e = r->verbs;

	if (e->broken)
		connect_both(e);
	memcpy(e->asks.buf, page, PAGE);
	e->broken =
		peer_move(&e->asks, 1, 0, PAGE, a->addr, pinl_lease_rkey(r->lease)) != IBV_WC_SUCCESS;
	return e->broken ? -EFAULT : 0;
}

#else

const char *verbs_missing(void)
{
	return "this build has no verbs (meson option verbs)";
}

void verbs_up(struct run *r)
{
}

void verbs_down(struct run *r)
{
}

int verbs_open_device(struct run *r)
{
	return -EOPNOTSUPP;
}

int verbs_write(struct run *r, const struct pinl_addr *a, const char *page)
{
	return -EOPNOTSUPP;
}
#endif
