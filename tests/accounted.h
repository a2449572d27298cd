/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From Linux 7 on (seen on 7.2, not on 6.18) the pins of rings made with CAP_IPC_LOCK are in no VmPin.
 */
#ifndef ACCOUNTED_H
#define ACCOUNTED_H

#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What this process, and those that it forks, may pin without that. */
static inline rlim_t raise_memlock(void)
{
	struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};

	if (setrlimit(RLIMIT_MEMLOCK, &limit)) { /* without CAP_SYS_RESOURCE */
		getrlimit(RLIMIT_MEMLOCK, &limit);
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_MEMLOCK, &limit);
	}
	return limit.rlim_cur;
}

/* This thread and those that it makes from now on give it up, unless the limit is too low then. */
static inline void account_pins(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (raise_memlock() < 64 << 20 || syscall(SYS_capget, &head, data))
		return;
	data[0].effective &= ~(1u << CAP_IPC_LOCK);
	data[0].permitted &= ~(1u << CAP_IPC_LOCK);
	syscall(SYS_capset, &head, data);
}

#endif
