/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A memfd, mapped, and a lease of it by an io_uring ring, which can be told to write to it. */
#ifndef RECALL_RIG_H
#define RECALL_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <liburing.h>
#include <pinlease/pinlease.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

#define PAGE  4096ul
#define PAGES 8
#define SIZE  (PAGES * PAGE)
#define FLAGS (PINL_WRITE | PINL_PIN | PINL_COOPERATIVE)

struct rig {
	struct pinl_ctx *ctx;
	struct io_uring ring;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	int fd, source, summary;
	char *mem;
	struct stat st;
};

struct pinl_policy recall(enum pinl_then then, unsigned grace_ms);

struct rig *open_rig(void (*on_event)(const struct pinl_event *, void *));
void reopen(struct rig *r, const struct pinl_opts *opts); /* another context, and its device */
void reopen_with_uffd_only(struct rig *r);		  /* of all sources */
void lease(struct rig *r, const struct pinl_policy *policy);
struct rig *leased(enum pinl_then then, unsigned grace_ms); /* opened, by recall() of these */
void end_rig(struct rig *r);				    /* with its lease */
void close_rig(struct rig *r);				    /* without; r->ctx may be NULL */

/* SCRATCH of a part leaves the device pages of the file and others in one buffer of a ring. */
void skip_if_it_failed_as_a_whole(const struct rig *r);

void cut(struct rig *r);			/* to nothing, and then as long again */
int device_write(struct rig *r, unsigned page); /* of a page of 'D' */
char file_byte(struct rig *r, off_t at);

/* Events of that type among all that have come, which are read by it; the last one of them. */
int count(struct rig *r, enum pinl_event_type type, struct pinl_event *last);

#endif
