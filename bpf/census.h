/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the programs of census.bpf.c and the command pass to each other: in maps, and as the iterators'
 * output. */
#ifndef PINLEASE_CENSUS_H
#define PINLEASE_CENSUS_H

#ifndef __bpf__
#include <linux/types.h>
#endif

#define CENSUS_PAGE_SIZE   64	     /* of struct page; no other is understood */
#define CENSUS_MEMORY_PAGE 4096	     /* that it is of; no other is, either */
#define CENSUS_WINDOW	   64	     /* struct pages that are read at once */
#define CENSUS_CHUNK	   (1 << 16) /* pages in one run, so that no record can be lost */
#define CENSUS_PEEK	   4096	     /* bytes that are read at once */
#define CENSUS_PIN_BIAS	   1024 /* GUP_PIN_COUNTING_BIAS: what a pin adds to the count of a small page */
#define CENSUS_REF_LIMIT   1024

enum census_memory {
	CENSUS_NONE, /* of no file and of no process: let go by its file, or the kernel's */
	CENSUS_ANON,
	CENSUS_FILE,
	CENSUS_KSM,
};

/* A page that is pinned, or a small one with references that its users don't explain. */
struct census_pin {
	__u64 pfn, inode, ino, index; /* index: as the kernel keeps it, in its file or its process */
	__u32 dev;		      /* as the kernel has it: 12 bits and 20 bits */
	__u32 nr_pages, pins, refs;   /* refs: plain ones, unexplained */
	__u32 memory, pad;
};

/* An open file that may hold pins. */
struct census_file {
	__u64 private_data, mm;
	__s32 pid, fd; /* -1: it has none, but a mapping */
	__u32 mode, rdev, magic, family;
	__u64 ino;
	char name[32], program[16];
};

struct census_vma {
	__u64 start, end, pgoff, ino;
	__u32 dev, anon;    /* anon: it may have pages of its own */
	__s32 pid, tid;	    /* tid: a task that has it; the process' first may have ended */
	__u64 private_data; /* of a ring's mapping */
};

/* A task that has registered rings with itself. */
struct census_task {
	__u64 uring;
	__s32 pid, pad;
};

#endif
