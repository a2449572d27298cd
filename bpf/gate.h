/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the programs of gate.bpf.c and pinleased (gate_load.c) pass to each other. */
#ifndef PINLEASE_GATE_H
#define PINLEASE_GATE_H

#ifndef __bpf__
#include <linux/types.h>
#endif

#define GATE_RANGES   131072 /* of all files; a power of two */
#define GATE_OF_FILE  16384  /* of one file: who changes it has them looked through */
#define GATE_REFUSING 16384  /* calls that are being refused at one moment */
#define GATE_WAITING  4096   /* threads that wait at one moment */
#define GATE_ASKED    8192   /* changes that couldn't wait, and may be made now */
#define GATE_HOLDERS  16384  /* processes that have to answer for leases */
#define GATE_END      0x7fffffffffffffffull

/* A file, as the kernel knows it. A number that is used anew comes with another generation. */
struct gate_file {
	__u64 ino;
	__u32 dev, generation;
};

/*
 * Where a range of a file is kept: places of a file are numbered from 0, without gaps. A range moves to
 * a lower place only, and is there before it is gone from the other one. So who looks at place after
 * place, downwards from one that he has found empty, passes by none.
 */
struct gate_key {
	struct gate_file file;
	__u32 place, unused;
};

/* Beside enum pinl_op: its names may not be taken, whatever the bytes are. */
#define GATE_OP_NAME 31
#define GATE_NAME    (1u << GATE_OP_NAME)

/* Bytes that may not be taken by these operations, bits of enum pinl_op: `ops` are refused; who makes
 * one of `waits` waits, but the holder himself. */
struct gate_range {
	__u64 start, end;
	__u32 ops, waits;
	__s32 holder; /* his process */
	__u32 unused;
	__u64 since_ns; /* CLOCK_MONOTONIC */
};

/* Shared memory: all but `lost`, `untold` and `passed` are pinleased's. */
struct gate_state {
	__u64 until_ns; /* CLOCK_MONOTONIC; what is guarded is guarded until then */
	__u64 ranges;	/* 0: the programs leave at once */
	__u64 lost;	/* calls that went on, as no place was left to note that they are refused */
	__u64 untold;	/* refusals that nobody was told of */
	__u64 waits_until_ns; /* from then on nobody waits: there may be nobody to let him go */
	__u64 asked_until_ns; /* until then the programs look into the map `asked` */
	__u32 waiting;	      /* how many wait, or go on; 0: the programs look for no pass */
	__s32 pinleased;      /* its changes are its own affair */
	__u64 pages; /* GATE_BY_PAGE: in the guard's memory a page for each thread, by its number */
	__s32 guard;
	__u32 way;    /* enum gate_way */
	__u64 passed; /* calls that went on, as their answer wasn't asked for */
};

enum gate_way {
	GATE_BY_STOP, /* the process is stopped */
	GATE_BY_PAGE, /* the thread reads its page, which pinleased provides when it may go on */
};

enum gate_what {
	GATE_REFUSED = 1, /* as a lease says */
	GATE_WAITS,	  /* it is stopped, or at its page; let go, it makes the call again */
	GATE_BUSY,    /* refused, as it can't wait; the leases are to be recalled for it all the same */
	GATE_OVER,    /* one that waited has been made */
	GATE_NO_ROOM, /* told to nobody: refused, as a pass says */
	GATE_WENT_ON, /* was to be refused, or to wait, and has been made */
};

/* Told of a call. */
struct gate_refusal {
	struct gate_file file;
	__u64 start, end;
	__u32 op, also; /* also: bits of what it may be instead */
	__s32 pid, tid;
	__u32 what, uid;
	__u64 stopped_ns; /* GATE_WAITS, by a stop: see struct gate_stop_key */
};

/*
 * In the map `stops`: a process that has been stopped for a thread's call, with the time at which it
 * started (CLOCK_BOOTTIME). Each stop is told to pinleased, which takes it out when it has continued the
 * process. It has a number of its own, as a thread may be stopped anew before the last time is over
 * there.
 */
struct gate_stop_key {
	__u64 thread, at_ns;
};

/* In the map `passes`, by thread: what becomes of this call, once. */
struct gate_pass {
	struct gate_file file;
	__u64 start, end, until_ns;
	__u32 refuse; /* pinleased has no room for him; else he is let through */
	__u32 going;  /* he is in the call, which is then */
	__u32 op, unused;
};

/* In the map `asked`: changes that have been refused for want of a way to wait. The leases have been
 * asked since, or have had their time: so the process may make this one as to those from before. */
struct gate_asked {
	struct gate_file file;
	__u64 start, end;
	__s32 pid;
	__u32 op;
};

struct gate_answer {
	__u64 before_ns, until_ns;
};

/* The order to `identify`: which file is this descriptor of the caller's? */
struct gate_order {
	__s32 fd, found;
	struct gate_file file;
};

#endif
