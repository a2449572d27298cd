/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Device memory: BARs, devdax, dma-bufs. Its pages are no memory of the system's, so it is never pinned:
 * it is mapped for a device only through its exporter, who can refuse, and who can take it back.
 *
 *	struct pinl_exporter *bar;
 *
 *	pinl_export_vfio(ctx, vfio_device_fd, VFIO_PCI_BAR2_REGION_INDEX, &bar);
 *	pinl_map_exporter(dev, bar, 0, 65536, PINL_WRITE, &policy, addrs, &lease);
 *	... the device reads and writes the BAR of the other ...
 *	pinl_exporter_revoke(bar, "a reset");	 every importer is off the BAR on return
 *	ioctl(vfio_device_fd, VFIO_DEVICE_RESET);
 *	pinl_exporter_offer(bar);		 who wants it maps it again
 *
 * An importer's lease ends by recall only: policy RECALL with FAIL (the device gets errors) or SCRATCH
 * (its table goes to a dummy page; it goes on without an error and reaches nothing). The recall is the
 * same as that of memory, with notice, grace and force. When it is over the lease is RELEASED, also when
 * the memory comes back: nothing is mapped again by itself.
 *
 * Ownership. An exporter and a lease own nothing that they didn't take themselves: no descriptor that
 * was passed in is duplicated or closed, no mapping of the program's is unmapped, and how long the
 * memory lives is up to its owner. A descriptor or mapping that an exporter was registered with stays as
 * it is until pinl_exporter_unregister() has returned; a descriptor that has become another file
 * meanwhile is noticed and refused, but where both are anonymous inodes with one number, as VFIO devices
 * are before Linux 6.10.
 *
 * Not there, on purpose: COPY (the content is the exporter's), dirty pages and write-back (they mean
 * nothing for device memory; pinl_device_dirty() says so), pinl_lease_read(), stages, seals.
 *
 * What is seen. Of most device mappings the kernel tells nobody that they are unmapped (userfaultfd
 * doesn't watch VM_IO, VM_PFNMAP and VM_MIXEDMAP; devdax it does), so a lease by addresses needs
 * PINL_COOPERATIVE there: it is recalled by pinl_munmap(), pinl_mremap() and by its exporter. A lease by
 * handle has no addresses and needs no flag.
 */
#ifndef PINLEASE_EXPORTER_H
#define PINLEASE_EXPORTER_H

#include <pinlease/pinlease.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct pinl_exporter;

/* Whose driver a device mapping or handle is. */
enum pinl_exporter_kind {
	PINL_EXPORTER_NONE,   /* not device memory */
	PINL_EXPORTER_OTHER,  /* of some driver */
	PINL_EXPORTER_VFIO,   /* a region of a VFIO device */
	PINL_EXPORTER_DMABUF, /* a dma-buf: udmabuf, a GPU's, a VFIO device's */
	PINL_EXPORTER_DAX,    /* /dev/daxN.M */
	PINL_EXPORTER_PCI,    /* sysfs or procfs: a BAR without a driver between */
};

const char *pinl_exporter_kind_name(enum pinl_exporter_kind kind);

/* The memory has pages of the kernel's (devdax): a device that can't import maps it as it maps memory.
 */
#define PINL_EXPORT_PAGES 0x1u

/* What is exported: a mapping in this process, a handle, or both, of the same memory. */
struct pinl_export {
	size_t size;
	const char *name; /* for sentences: "0000:03:00.0 BAR 2"; copied */
	void *addr;	  /* where it is mapped; NULL: nowhere */
	int fd;		  /* its handle; -1: none */
	uint64_t offset;  /* of the memory in fd, page aligned */
	uint64_t length;  /* whole pages */
	unsigned flags;	  /* PINL_EXPORT_* */
};

/* A device that wants some of it. */
struct pinl_attach {
	size_t size;
	struct pinl_device *device;
	const char *device_kind; /* "vfio", "soft" */
	int device_class;	 /* enum pinl_device_class */
	unsigned flags;		 /* PINL_WRITE */
	uint64_t offset, length; /* in the exported memory */
	void *priv;		 /* yours */
};

/*
 * Each may be NULL. They are called by whichever thread maps or takes the memory, never after
 * pinl_exporter_unregister() has returned; they must not call the library for this exporter, and detach
 * neither allocates nor waits.
 */
struct pinl_exporter_ops {
	size_t size;

	/* 0: it may have it. -errno: it may not; why is said by pinl_set_error() (device.h), and the
	 * caller of the map call gets both. */
	int (*attach)(void *arg, struct pinl_attach *attach);

	/* The device is off what was attached; once for each attach that was accepted, unless the
	 * exporter is over before that is confirmed. */
	void (*detach)(void *arg, const struct pinl_attach *attach);

	/* The exporter is over: the last call, from pinl_exporter_unregister() or pinl_close(). */
	void (*release)(void *arg);
};

/*
 * pinl_exporter_register - device memory that devices of this context may import.
 *
 * ops may be NULL: everybody may. Errors: -EINVAL a size, an alignment, neither addr nor fd, addr is not
 * all mapped or is ordinary memory, fd is ordinary memory (lease that by its addresses); -EEXIST the
 * addresses or the handle are exported already; -EBADF fd is closed; -ENOMEM.
 */
int pinl_exporter_register(struct pinl_ctx *ctx, const struct pinl_export *what,
			   const struct pinl_exporter_ops *ops, void *arg,
			   struct pinl_exporter **exporter);

/*
 * pinl_exporter_revoke - the memory is about to go: reset, memory off, unplug.
 *
 * All importers are recalled, by their policies; on return none reaches the memory. Until
 * pinl_exporter_offer() it is given to nobody (-ENODEV, with `why` in the sentence; static or NULL).
 * Bounded by the importers' graces, pinl_opts.ceiling_ms and drain_ms. -ETIMEDOUT: a device isn't
 * confirmed to be off, the sentence says which; the memory stays revoked.
 */
int pinl_exporter_revoke(struct pinl_exporter *exporter, const char *why);
void pinl_exporter_offer(struct pinl_exporter *exporter);

/*
 * pinl_exporter_invalidate - a part of the memory moves: its importers are recalled as above, and may
 * map it again at once. Leases that are made before it returns are not recalled: they get what is there
 * by then; if that is the old, revoke and offer. -EINVAL not inside of the exported memory; -ETIMEDOUT
 * as above.
 */
int pinl_exporter_invalidate(struct pinl_exporter *exporter, uint64_t offset, uint64_t length);

/* Revokes, and ends the exporter; waits for map calls that are in attach or in the device's import.
 * Leases that it had stay their holders' to unmap. What isn't confirmed to be off then, isn't said here:
 * revoke first. */
void pinl_exporter_unregister(struct pinl_exporter *exporter);

/*
 * pinl_map_exporter, pinl_map_fd - lease device memory by handle. The second path beside
 * pinl_map_range(), which leases it by the addresses where it is mapped.
 *
 * offset and length are in the exported memory; with an fd, in what that stands for, and the exporter
 * is the one that was registered with the same file. flags: PINL_WRITE, PINL_STRICT. A lease by handle
 * has no addresses: pinl_lease_info.start and .end lie above all user addresses. Errors, beside those of
 * pinl_map_range():
 * -ENODEV      the exporter has revoked the memory, or is gone
 * -EACCES      PINL_WRITE, and handle or mapping are for reading only
 * -EBADF       fd is closed, or the exporter's descriptor has become another file
 * -EINVAL      not whole pages, not inside; fd is a file of ordinary memory
 * -ENOENT      no exporter of this context has this file
 * -EOPNOTSUPP  the device can't import what this exporter has; the policy isn't RECALL, or COPY, KILL
 * any          what the exporter's attach refused with, and its sentence
 */
int pinl_map_exporter(struct pinl_device *dev, struct pinl_exporter *exporter, uint64_t offset,
		      uint64_t length, unsigned flags, const struct pinl_policy *policy,
		      struct pinl_addr *addrs, struct pinl_lease **lease);
int pinl_map_fd(struct pinl_device *dev, int fd, uint64_t offset, uint64_t length, unsigned flags,
		const struct pinl_policy *policy, struct pinl_addr *addrs, struct pinl_lease **lease);

/* What is mapped at [start, end), and whose it is. */
struct pinl_mapped {
	size_t size;
	enum pinl_memory_kind memory;
	enum pinl_exporter_kind kind;
	struct pinl_exporter *exporter; /* that has been registered for it, or NULL */
	uint64_t offset;		/* of start, in its memory */
	char name[64];			/* the exporter's, or what the kernel calls the mapping */
};

/* Errors: -EINVAL, -ENOMEM, -EIO as pinl_map_range(). */
int pinl_mapped(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end, struct pinl_mapped *mapped);

/* ------------------------------------------------------------------------------ ready exporters -- */

/* A dma-buf, all of it. fd stays yours. -EINVAL: no dma-buf. */
int pinl_export_dmabuf(struct pinl_ctx *ctx, int fd, struct pinl_exporter **exporter);

/*
 * A region (BAR) of a VFIO PCI device, all of it: by a dma-buf of its own where the kernel makes one,
 * and by a mapping of its own where the region can be mapped; both end with the exporter. device_fd
 * stays yours. An attach is refused while the device doesn't decode memory accesses. Errors: -EINVAL not
 * a VFIO PCI device or no such region; -EOPNOTSUPP the region can be neither mapped nor exported.
 */
int pinl_export_vfio(struct pinl_ctx *ctx, int device_fd, unsigned region,
		     struct pinl_exporter **exporter);

/* First all importers are off, then the device's memory decoding is switched off; on: it is switched on
 * and the memory offered again. Errors: of pinl_exporter_revoke(); -EINVAL not of pinl_export_vfio(). */
int pinl_vfio_memory(struct pinl_exporter *exporter, int on);

/* The same around VFIO_DEVICE_RESET. Other regions of the device are not this exporter's: revoke them,
 * too. -EOPNOTSUPP: the device has no reset. The memory is offered again in any case. */
int pinl_vfio_reset(struct pinl_exporter *exporter);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
