/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Waking a thread that polls an eventfd. Who is not woken may wait for ever, and whoever joins him too.
 */
#ifndef PL_OS_WAKE_H
#define PL_OS_WAKE_H

#include <errno.h>
#include <sys/eventfd.h>

static inline void pl_wake(int fd)
{
	while (eventfd_write(fd, 1) && errno == EINTR)
		;
}

#endif
