/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef GATE_ASK_H
#define GATE_ASK_H

#include "bpf/gate.h"

struct gate_question {
	struct gate_file file;
	__u64 start, end;
	__u32 ops;
	__s32 hit;
};

/* Blocks of another file's, as FICLONERANGE has them: what would be refused of it? */
struct gate_clone {
	__s32 from, to;
	__u64 from_at, to_at, len;
	__u64 start, end; /* 0, 0: nothing */
};

/* Such a call with its end, whose answer the kernel has passed by. */
struct gate_unasked {
	struct gate_clone call;
	__s64 result;
	__u64 passed; /* ever, after that */
};

/* An open file: what becomes of who takes its name? */
struct gate_name {
	__s32 fd, result;
};

#endif
