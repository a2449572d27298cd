/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What every test program needs. Include after cmocka.h and its friends. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <pinlease/pinlease.h>
#include <sched.h>
#include <string.h>

/* Failing calls say why. */
#define assert_ok(call)                                                                                 \
	do {                                                                                            \
		int ret_ = (call);                                                                      \
		if (ret_)                                                                               \
			fail_msg("%s: %s: %s", #call, strerror(-ret_), pinl_error());                   \
	} while (0)

/* The lookup once no change is being applied, also of other memory: right after leasing one may be. */
static inline int settled_check(struct pinl_lease *lease)
{
	int err;

	while ((err = pinl_lease_check(lease)) == -EAGAIN)
		sched_yield();
	return err;
}

#endif
