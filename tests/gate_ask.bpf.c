/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The gate's look at what is guarded, to be asked by a test (test_gate_ask.c): this runs where the gate
 * itself can't. */
#include "gate.bpf.c" /* NOLINT */

#include "gate_ask.h"

SEC("syscall") int ask(struct gate_question *q)
{
	struct look l = {.start = q->start, .end = q->end, .ops = q->ops};

	l.at.file = q->file;
	q->hit = is_guarded(&l);
	return 0;
}
