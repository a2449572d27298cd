/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Leases for a real DMA engine behind an IOMMU. What hits memory that was let go would show, since the
 * test has pinned the old pages, too (the witness), and poisons them as soon as a change is through.
 */
#ifndef VFIO_RIG_H
#define VFIO_RIG_H

#include <liburing.h>
#include <pinlease/pinlease.h>

#include "vfio_modes.h"

#define PAGE  4096u
#define PAGES 4u
#define SIZE  (PAGES * PAGE)
#define FLAGS (PINL_WRITE | PINL_PIN | PINL_COOPERATIVE)

struct rig {
	const struct mode *mode;
	struct edu edu;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_addr addrs[PAGES];
	char *va;
	int fd;
	struct io_uring witness;
	bool witnessing;
};

enum memory { FILE_MEMORY, ANON };

int rig_up(void **state);
int rig_down(void **state);

/* Another device in the place of the rig's: first, last: its addresses. */
int try_open(struct rig *r, int fd, uint64_t first, uint64_t last, unsigned flags,
	     struct pinl_device **dev);
void open_device(struct rig *r, uint64_t first, uint64_t last, unsigned flags);
void reopen(struct rig *r, uint64_t first, uint64_t last, unsigned flags);

/* SIZE bytes at r->va, of 'F'; a lease of them; the end of both. */
void make_memory(struct rig *r, enum memory memory);
void forget_memory(struct rig *r);
int try_lease(struct rig *r, const struct pinl_policy *policy, unsigned flags);
void lease(struct rig *r, struct pinl_policy policy);
void unlease(struct rig *r);
void next_round(struct rig *r);
struct pinl_policy recall(enum pinl_then then);
struct pinl_policy plain(enum pinl_policy_kind kind);

struct pinl_event await_event(struct rig *r, enum pinl_event_type type);

/* The old pages: pinned by the test, too; filled with 'P'; still so. */
void witness_start(struct rig *r);
void poison(struct rig *r);
void assert_not_hit(struct rig *r);

/* A transfer of c into the middle of each page that there is a device for (flying: how many), which
 * lands 100 ms later. */
void take_off(struct rig *r, char c);
int flying(struct rig *r);
void assert_landed_in(const char *va, char c, int pages);
void assert_device_reads(struct rig *r, char c);
void assert_filled(const char *what, const char *buf, char c, size_t len);

#define RIG_TEST(fn)                                                                                    \
	{                                                                                               \
#fn, fn, rig_up, rig_down, NULL                                                         \
	}

#endif
