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

#endif
