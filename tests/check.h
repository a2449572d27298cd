/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What every test program needs. Include after cmocka.h and its friends. */
#ifndef CHECK_H
#define CHECK_H

#include <pinlease/pinlease.h>
#include <string.h>

/* Failing calls say why. */
#define assert_ok(call)                                                                                 \
	do {                                                                                            \
		int ret_ = (call);                                                                      \
		if (ret_)                                                                               \
			fail_msg("%s: %s: %s", #call, strerror(-ret_), pinl_error());                   \
	} while (0)

#endif
