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

static __always_inline void begin_of(const struct gate_clone *c)
{
	__u64 args[6] = {
		(__u64)file_of(c->from), c->from_at, (__u64)file_of(c->to), c->to_at, c->len, 0};

	share(args);
}

SEC("syscall") int ask_name(struct gate_name *n)
{
	struct file *file = file_of(n->fd);

	n->result = take_name(BPF_CORE_READ(file, f_path.dentry));
	return 0;
}

SEC("syscall") int ask_clone(struct gate_clone *c)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct note *n;

	begin_of(c);
	n = bpf_map_lookup_elem(&notes, &thread);
	c->start = n ? n->refusal.start : 0;
	c->end = n ? n->refusal.end : 0;
	forget(-1);
	return 0;
}

SEC("syscall") int ask_unasked(struct gate_unasked *u)
{
	struct gate_state *s = the_state();

	begin_of(&u->call);
	forget(u->result);
	u->passed = s ? s->passed : 0;
	return 0;
}
