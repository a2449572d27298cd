/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the programs of live.bpf.c and the command pass to each other: in maps, and by a ring buffer. */
#ifndef PINLEASE_LIVE_H
#define PINLEASE_LIVE_H

#ifndef __bpf__
#include <linux/types.h>
#endif

#define LIVE_BUCKETS	 40 /* of a histogram: [0] below 2 ns, [n] from 2^n ns on, the last all above */
#define LIVE_SLOTS	 4  /* callers whose pins of one folio are told apart */
#define LIVE_DEPTH	 24 /* of a call site's stack */
#define LIVE_PATIENCE_NS 600000000000ull /* a call that took so long hasn't been seen to come back */

enum live_count {
	LIVE_LONG_CALLS, /* by the kernel's FOLL_LONGTERM */
	LIVE_LONG_PAGES,
	LIVE_SHORT_CALLS, /* transient: all others */
	LIVE_SHORT_PAGES,
	LIVE_FAILED_CALLS,
	LIVE_UNPINNED_PAGES,
	LIVE_LOST_EVENTS,    /* the ring buffer was full; counted in `lost_events` */
	LIVE_LOST_FOLIOS,    /* the table of held folios was full */
	LIVE_LOST_SITES,     /* the table of sites was full */
	LIVE_LOST_STACKS,    /* the table of stacks was full */
	LIVE_LOST_HOLDERS,   /* a folio has more of them than are told apart */
	LIVE_LOST_RETURNS,   /* a kprobe did not see that a call came back */
	LIVE_LOST_RELEASES,  /* of pins: the folio has fewer than are remembered */
	LIVE_OWN_LONG_PAGES, /* of this command, which are in none of the above */
	LIVE_OWN_SHORT_PAGES,
	LIVE_OWN_UNPINNED_PAGES,
	LIVE_NR_COUNTS,
};

/* Who pins what from where. */
struct live_key {
	__u64 inode, ino;
	__u64 started_ns; /* the process, since boot */
	__u32 tgid, dev, memory, longterm;
	__s32 stack;
	__u32 write;
};

/* Calls that have all this in common. */
struct live_site {
	struct live_key key;
	__u64 first_ns, last_ns;
	__u64 calls, pages;
	__u64 released, untimed; /* untimed: those of `released` of which it isn't known how long */
	char program[16];
	__u64 histogram[LIVE_BUCKETS]; /* of the times for which released ones were held */
};

enum live_flags {
	LIVE_UNTIMED = 1, /* pins overlap: which of them a release was of can't be told */
	LIVE_DOUBT = 2,	  /* not even whose it was */
};

/* What a site has of a folio: pins, by calls (exact: runs of pages), of which all pages are counted. */
struct live_slot {
	__u64 site, addr, index;
	__u64 since_ns; /* at least so old */
	__u64 last_ns;	/* of the last call */
	__s64 pins, calls, pages;
	__u64 whole; /* pins that its calls had, before any was released */
	__u32 last_pins, tgid;
	__u32 first; /* pages of the call that is at `addr` */
	__u16 flags, longterm;
};

/* A folio with pins. A slot is free when it has no site. */
struct live_folio {
	struct live_slot slots[LIVE_SLOTS];
};

enum live_what { LIVE_PIN, LIVE_RELEASE };

struct live_event {
	__u64 ns, site, addr, index, pages, held_ns;
	__u64 reach; /* pages from there on: fewer than `pages` where several calls had the same */
	__u64 lost;  /* so many events so far, before this one */
	__u32 what, tid;
	__u32 tgid, untimed; /* tgid: who did it: a release may be another's than the pin */
	char program[16];
};

#endif
