/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Devices that move data by themselves, one group of measurements each. What they have in common: leases
 * and plain registrations are made and ended (device_map.c), and taken back while the device is idle
 * and while it moves data (device_revoke.c).
 */
#ifndef BENCH_DEVICE_H
#define BENCH_DEVICE_H

#include "bench.h"

#define LOAD_MOST (4 * MIB)

struct target {
	const char *name;
	struct rig *rig;
	struct pinl_device *dev;
	unsigned flags; /* of its leases */
	size_t size;	/* of a lease that is taken back, at most LOAD_MOST */
	void *priv;

	/* Before each sample; may be NULL. */
	void (*prepare)(struct target *t);

	/* Writes 'W' into the whole lease, waits for it: 0, or it can't any more. Or, where a device
	 * takes one order after which it is on its own: launch begins, land returns when it is over. */
	int (*move)(struct target *t, const struct pinl_addr *addrs);
	void (*launch)(struct target *t, const struct pinl_addr *addrs);
	void (*land)(struct target *t);

	/* The same memory without the library, one at a time; NULL: there is no such thing. */
	int (*plain_map)(struct target *t, char *at, size_t size, struct pinl_addr *first);
	void (*plain_unmap)(struct target *t);
};

void device_revoke(const struct bench *b, struct target *t);
void device_map(const struct bench *b, struct target *t);

void group_device_ring(const struct bench *b);
void group_device_verbs(const struct bench *b);
void group_device_vfio(const struct bench *b);
void group_device_iommufd(const struct bench *b);

#endif
