/* SPDX-License-Identifier: GPL-2.0-or-later OR LGPL-2.1-or-later */
/*
 * What bpf/generation.bpf.c, pinleased and the holder whose changes are counted share: two maps for each
 * holder, which get to it by COUNTED (proto/messages.h).
 *
 *	change begins: going[] entry, told + 1, record (no room: lost + 1)
 *	... then page table entries go ...
 *	change is over: going[] entry free
 *
 *	change comes when pinleased has been away for too long: ended, told + 1, lost + 1
 *
 * In this order: so who finds `told` as it was, and after that nothing in going[], has entries that no
 * change has been about to take. records read + lost <= told, and the same when none is on its way.
 * Numbers of processes and threads are those of pinleased's namespace. A holder may write everything
 * here, so nothing that is here is believed by anybody else.
 */
#ifndef PINLEASE_GENERATION_H
#define PINLEASE_GENERATION_H

#ifndef __bpf__
#include <linux/types.h>
#endif

#define GENERATION_SPACES     64 /* processes at a time, of the machine */
#define GENERATION_OF_USER    16 /* of one user */
#define GENERATION_AREA_SHIFT 21
#define GENERATION_AREAS      65536 /* an address' area: (addr >> AREA_SHIFT) & (AREAS - 1) */
#define GENERATION_RING	      65536 /* bytes of a BPF_MAP_TYPE_RINGBUF */
#define GENERATION_GOING      256
#define GENERATION_GOING_NS   10000000000ull /* what goes on for longer isn't looked at */

enum generation_what {
	GENERATION_ZAP = 1, /* pages go: munmap, MAP_FIXED, madvise, truncation, ... */
	GENERATION_MOVE,    /* mremap: from here */
	GENERATION_PROTECT,
	GENERATION_FREE, /* MADV_FREE */
	GENERATION_HUGE, /* only in going[]: ZAP of huge pages' memory, which may be in one of ZAP */
};

/* A change that has begun and isn't over. */
struct generation_going {
	__u64 since_ns; /* CLOCK_MONOTONIC; set last; 0: free, or about to be used */
	__u64 start, end;
	__s32 tid;
	__u16 what; /* enum generation_what */
	__u16 by;   /* the programs' own */
};

/* One element of an mmapable array. */
struct generation_counts {
	__u64 told;    /* changes that touch a watched area, begun */
	__u64 applied; /* the holder's own: so many of those it has taken; a lookup compares the two */
	__u64 lost;    /* of those, without a record: everything watched is stale */
	__u64 missed;  /* how often pinleased has found that changes weren't seen; told, lost are raised,
			  too */
	__u64 seen;    /* 1 << enum generation_what: which this kernel lets be counted */
	__u64 ended;   /* 1: nothing is counted any more; told and lost are raised, too */
	__u64 outlives; /* 1: it goes on for a while when pinleased is killed; 0: then nothing is counted
			 */
	__u64 crowded_until_ns; /* CLOCK_MONOTONIC: there was no place in going[]: till then anything may
				   be */
	struct generation_going going[GENERATION_GOING];
	__u8 watched[GENERATION_AREAS]; /* the holder's: not 0: something in such an area is watched */
};

struct generation_record {
	__u64 start, end;
	__u32 what;	/* enum generation_what; not HUGE */
	__s32 pid, tid; /* who makes it */
	__s32 nr;	/* by which system call of this machine's; -1: by none, or by a 32-bit one */
	__u32 how; /* of madvise(2) and process_madvise(2) the advice, of fallocate(2) the mode; else 0
		    */
	__u32 pad;
};

#endif
