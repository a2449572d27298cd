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

/* Bytes that may not be taken by these operations: bits of enum pinl_op. */
struct gate_range {
	__u64 start, end;
	__u32 ops, unused;
};

/* Shared memory: all but the last two are pinleased's. */
struct gate_state {
	__u64 until_ns; /* CLOCK_MONOTONIC; what is guarded is guarded until then */
	__u64 ranges;	/* 0: the programs leave at once */
	__u64 lost;	/* calls that went on, as no place was left to note that they are refused */
	__u64 untold;	/* refusals that nobody was told of */
};

/* Told when a call has been refused. */
struct gate_refusal {
	struct gate_file file;
	__u64 start, end;
	__u32 op, also; /* also: bits of what it may be instead */
	__s32 pid, tid;
};

/* The order to `identify`: which file is this descriptor of the caller's? */
struct gate_order {
	__s32 fd, found;
	struct gate_file file;
};

#endif
