/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Device memory: exporters, and the leases that import it. To all that finds leases an exporter is a
 * file with the numbers PL_EXPORT_DEV and its id, and the offsets of its memory are that file's; so its
 * revocation is a change of that file, and its importers are found as a file's leases are.
 */
#ifndef PL_CORE_EXPORT_H
#define PL_CORE_EXPORT_H

#include <pinlease/device.h>
#include <pinlease/exporter.h>

#include "core/ctx.h"
#include "os/vma.h"

#define PL_EXPORT_DEV	 UINT64_MAX   /* pinl_memory.dev; shown to nobody */
#define PL_EXPORT_SOURCE "exporter"   /* pinl_change.source */
#define PL_EXPORT_BASE	 (1ull << 62) /* from here on leases by handle have their numbers */

/* What has no comment never changes; calls, refs, revoked, gone, why: ctx->lock. */
struct pinl_exporter {
	struct pinl_exporter *next;
	struct pinl_ctx *ctx;
	struct pinl_exporter_ops ops;
	void *arg;
	char name[64];
	enum pinl_exporter_kind kind;
	uintptr_t addr; /* 0: not mapped */
	int fd;
	uint64_t offset, length;
	unsigned flags;
	uint64_t dev, ino; /* of fd; 0: none */
	bool crowd;	   /* dev and ino are those of all anonymous inodes */
	uint64_t id;
	uint64_t base;	/* the number of its first byte, for leases by handle */
	bool writable;	/* the mapping */
	unsigned calls; /* threads in ops, or importing, till the lease can be recalled */
	unsigned refs;	/* leases, and 1 until it is unregistered */
	bool revoked, gone;
	const char *why;
};

/* One lease's. Set before the lease is visible. */
struct pl_import {
	struct pinl_exporter *exporter;
	struct pinl_attach attach;
	atomic_bool attached; /* changed while the lease is busy, read under ctx->lock */
	bool entered;	      /* counted in calls since pl_import_map(); ctx->lock */
	bool by_handle;
	bool as_memory; /* by the device's map: the memory has pages */
	void *dummy;	/* of dummy_len bytes; NULL: none is needed */
	size_t dummy_len;
};

/* export.c */
bool pl_exporter_any(struct pinl_ctx *ctx);
struct pinl_exporter *pl_exporter_find_range(struct pinl_ctx *ctx, const struct pinl_memory *mem,
					     uint64_t *offset); /* with a reference; or NULL */
int pl_exporter_find_fd(struct pinl_ctx *ctx, int fd, uint64_t offset, uint64_t length,
			struct pinl_exporter **exporter, uint64_t *at); /* the same */
int pl_exporter_check_fd(const struct pinl_exporter *exporter); /* the descriptor is what it was */
void pl_exporter_get(struct pinl_exporter *exporter);
void pl_exporter_put(struct pinl_exporter *exporter);

/* export_revoke.c */
int pl_exporter_say_closed(struct pinl_exporter *exporter);
void pl_exporters_end(struct pinl_ctx *ctx);

/* import.c: in map, and with the lease busy */
int pl_import_new(struct pinl_lease *lease, struct pinl_exporter *exporter, uint64_t offset,
		  bool by_handle);
int pl_import_by_range(struct pinl_lease *lease, const struct pl_vma_whose *whose);
int pl_import_validate(struct pinl_lease *lease);
int pl_import_map(struct pinl_lease *lease, struct pinl_addr *addrs);
void pl_import_settled(struct pinl_lease *lease);	  /* not busy any more; ctx->lock held */
int pl_import_take(struct pinl_lease *lease, bool dummy); /* -EOPNOTSUPP: no dummy; stop it */
void pl_import_detach(struct pinl_lease *lease);	  /* the device is off */
void pl_import_free(struct pinl_lease *lease);

#endif
