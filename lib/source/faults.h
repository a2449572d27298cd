/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an IOMMU's driver says in the kernel's log about a transfer that it has stopped. */
#ifndef PL_SOURCE_FAULTS_H
#define PL_SOURCE_FAULTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PL_PCI_NAME 24

/* A PCI device as it is written there: Intel's driver of Linux 6.12 leaves the domain out, that of 7.2
 * doesn't. */
struct pl_pci {
	bool has_domain;
	unsigned domain, bus, slot, function;
};

struct pl_fault {
	struct pl_pci device;
	uint64_t iova; /* Intel's: of the page */
	bool write;
};

/*
 * One record as read from /dev/kmsg, which need not end with 0. False: it is something else, also what
 * only looks like a fault, because a program has written it there.
 */
bool pl_fault_decode(const char *record, size_t len, struct pl_fault *fault);

/* Has this process got the device, by VFIO: its group, or its file? Then it has this name. Nothing is
 * allocated. */
bool pl_fault_is_ours(const struct pl_pci *device, char name[PL_PCI_NAME]);

#endif
