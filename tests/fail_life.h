/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A life is one context, one device and one lease from open to close, with one change in between. It is
 * lived in a process of its own with one failure in it (failnth.h), and must come out clean: every call
 * either worked or said why not and works when tried again, nobody is stuck, nothing is left behind, and
 * where the device was said to be off the old pages, it is.
 */
#ifndef FAIL_LIFE_H
#define FAIL_LIFE_H

#include <pinlease/pinlease.h>
#include <stdbool.h>

#include "failnth.h"

enum life_memory { ANON, MEMFD, PRIVATE_FILE, SHARED_FILE, EXPORTED }; /* the last: a driver's */
enum life_change { NO_CHANGE, FTRUNCATE, MUNMAP, RAW_DONTNEED, RAW_FTRUNCATE, REVOKE };

/* In order. A failure comes only while one of those that `fail` names is under way. */
#define IN_OPEN		0x01u
#define IN_DEVICE_OPEN	0x02u
#define IN_MAP		0x04u
#define IN_CHANGE	0x08u
#define IN_UNMAP	0x10u
#define IN_DEVICE_CLOSE 0x20u
#define IN_CLOSE	0x40u
#define ALL_BUT_OPEN	0x3eu
#define IN_LEASE	(IN_MAP | IN_CHANGE | IN_UNMAP)

struct life {
	enum life_memory memory;
	const char *device;
	unsigned flags; /* PINL_PIN, PINL_STAGE */
	enum pinl_policy_kind kind;
	enum pinl_then then;
	unsigned refuse;
	enum life_change change;
	bool answer; /* the holder quiesces; else it never does */
	unsigned fail;
};

/* What a life leaves to whoever started it; in shared memory. */
struct life_report {
	char phase[32];
	char fired[FAILNTH_WORDS];
	char said[640]; /* by the call that failed */
	char wrong[768];
	unsigned points;
	/* Of a life without failure, for the others to compare with. */
	char sources[1024];
	unsigned char coverage[16];
	enum pinl_memory_kind memory;
	long allocations; /* with no lease */
};

/* In a child: live with the nth failure (failnth_start) and exit; 0: nothing was wrong. */
void live(const struct life *l, unsigned n, unsigned choice, const struct life_report *healthy,
	  struct life_report *report) __attribute__((noreturn));

/* Where files on a disk are made: $PINLEASE_TEST_DIR or /var/tmp. */
const char *life_dir(void);

#endif
