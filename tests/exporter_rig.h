/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An exporter of device memory that every machine has: a driver's mapping, the array of requests of an
 * io_uring, by its addresses and by the descriptor as a handle. tests/test_bars.c has real BARs.
 */
#ifndef EXPORTER_RIG_H
#define EXPORTER_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <liburing.h>

#include <pinlease/device.h>
#include <pinlease/exporter.h>

#include "check.h"

#define PAGE  4096u
#define PAGES 16u
#define SIZE  (PAGES * PAGE)
#define LONG  60000 /* ms: nothing takes as long */

struct rig {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct io_uring ring;
	char *va; /* the exporter's memory */
	struct pinl_exporter *exporter;
	struct pinl_lease *lease;
	struct pinl_addr addrs[PAGES];
	int attached, detached, released, refuse;
	bool speechless;	 /* it refuses without a sentence */
	struct pinl_attach last; /* accepted */
};

#define RIG_TEST(name) cmocka_unit_test_setup_teardown(name, rig_up, rig_down)
int rig_up(void **state);
int rig_down(void **state);
void open_soft(struct rig *r, enum pinl_device_class device_class); /* another r->dev */

/* How r->exporter was registered; its ops count in the rig, whose `refuse` they answer. */
struct pinl_export export_of(const struct rig *r);
extern const struct pinl_exporter_ops exporter_ops;

struct pinl_policy recall(enum pinl_then then, unsigned grace_ms);
int map_handle(struct rig *r, struct pinl_policy policy, unsigned flags);
int map_addresses(struct rig *r, struct pinl_policy policy, unsigned flags);

/* n pages of c, between the device and the lease's from `page` on. */
int dma(struct rig *r, unsigned page, unsigned n, char c, int write);
void assert_memory(const struct rig *r, unsigned page, char c);
void assert_says(const char *what);

struct pinl_event await_event(struct rig *r, enum pinl_event_type type);
struct pinl_lease_info info_of(const struct rig *r);

#endif
