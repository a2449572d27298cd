/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Part of gate.bpf.c: who is to wait. He is sent to his page (gate_page.h), or his process is stopped
 * (SIGSTOP), and his call returns as one that a signal has interrupted before it did anything, so that
 * he makes it again when pinleased lets him go. It gives him a pass then: the lease may be there still
 * (the ceiling is over), and who goes on for another reason only waits again. pinleased hears of him
 * when he has been stopped, else its SIGCONT could come before. What can't wait, or not without harm, is
 * refused, and told.
 */
#ifndef PINLEASE_GATE_WAIT_H
#define PINLEASE_GATE_WAIT_H

#include "gate_page.h"

#define PF_IO_WORKER 0x10
#define PF_KTHREAD   0x00200000
#define TS_COMPAT    2

/* x86-64 */
enum {
	NR_OPEN = 2,
	NR_MADVISE = 28,
	NR_TRUNCATE = 76,
	NR_FTRUNCATE = 77,
	NR_CREAT = 85,
	NR_OPENAT = 257,
	NR_FALLOCATE = 285,
	NR_OPENAT2 = 437
};

static __always_inline int is_same(const struct gate_file *a, const struct gate_file *b)
{
	return a->ino == b->ino && a->dev == b->dev && a->generation == b->generation;
}

/* Another program has let him through before. */
static __always_inline int is_in_it(__u64 thread, const struct gate_refusal *r)
{
	struct gate_wait *w = bpf_map_lookup_elem(&waits, &thread);

	return w && w->state == GATE_GOING && is_same(&w->file, &r->file) && w->start == r->start &&
	       w->end == r->end;
}

/* Also where nothing is held any more, so that its end is told. */
static __always_inline int is_let_through(const struct gate_refusal *r)
{
	struct gate_wait w = {
		.file = r->file, .start = r->start, .end = r->end, .op = r->op, .state = GATE_GOING};
	__u64 thread = bpf_get_current_pid_tgid();
	struct gate_state *s = the_state();
	struct gate_pass *p;

	if (!s || !s->waiting)
		return 0;
	if (is_in_it(thread, r))
		return 1;
	p = bpf_map_lookup_elem(&passes, &thread);
	if (!p || !is_same(&p->file, &r->file) || p->start != r->start || p->end != r->end ||
	    bpf_ktime_get_ns() >= p->until_ns)
		return 0;
	bpf_map_update_elem(&waits, &thread, &w, 0);
	bpf_map_delete_elem(&passes, &thread);
	return 1;
}

/* At the end of a call. */
static __always_inline int say_over(int truncation)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct gate_refusal r = {.what = GATE_OVER, .pid = thread >> 32, .tid = thread};
	struct gate_state *s = the_state();
	struct gate_wait *w;

	if (!s || !s->waiting)
		return 0;
	w = bpf_map_lookup_elem(&waits, &thread);
	if (!w || w->state != GATE_GOING || (w->op == OP_TRUNCATE) != truncation)
		return 0;
	r.file = w->file;
	r.start = w->start;
	r.end = w->end;
	r.op = w->op;
	bpf_map_delete_elem(&waits, &thread);
	bpf_ringbuf_output(&refusals, &r, sizeof r, 0); /* else that is waited for, for a while */
	return 0;
}

#ifdef __TARGET_ARCH_x86
static __always_inline int is_made_again(struct task_struct *t)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(t);

	if (BPF_CORE_READ(t, thread_info.status) & TS_COMPAT)
		return 0;
	switch (BPF_CORE_READ(regs, orig_ax)) {
	case NR_OPEN:
	case NR_MADVISE:
	case NR_TRUNCATE:
	case NR_FTRUNCATE:
	case NR_CREAT:
	case NR_OPENAT:
	case NR_FALLOCATE:
	case NR_OPENAT2:
		return 1;
	}
	return 0;
}
#else
static __always_inline int is_made_again(struct task_struct *t)
{
	return 0;
}
#endif

/* Stopped, a holder couldn't answer his own notices meanwhile; a debugger would take the signal for the
 * program's. bpf_send_signal() doesn't do it to process 1. */
static __always_inline int may_wait(const struct gate_state *s, struct task_struct *t, __u32 pid)
{
	if (bpf_ktime_get_ns() >= s->waits_until_ns ||
	    BPF_CORE_READ(t, flags) & (PF_KTHREAD | PF_IO_WORKER) || !is_made_again(t))
		return 0;
	return s->way == GATE_BY_PAGE ||
	       (!BPF_CORE_READ(t, ptrace) && !bpf_map_lookup_elem(&holders, &pid));
}

static __always_inline int have_wait(const struct gate_state *s, struct task_struct *t,
				     struct gate_refusal *r)
{
	int page = s->way == GATE_BY_PAGE;
	struct gate_wait w = {.file = r->file,
			      .start = r->start,
			      .end = r->end,
			      .op = r->op,
			      .state = page ? GATE_AT_PAGE : GATE_STOPPED,
			      .started_ns = BPF_CORE_READ(t, group_leader, start_boottime)};
	__u64 thread = bpf_get_current_pid_tgid();
	struct gate_refusal *told = bpf_ringbuf_reserve(&refusals, sizeof *told, 0);

	if (!told)
		return 0;
	*told = *r;
	told->what = GATE_WAITS;
	if (bpf_map_update_elem(&waits, &thread, &w, 0) ||
	    (page ? send_to_page(t, thread) : bpf_send_signal(SIGSTOP))) {
		bpf_map_delete_elem(&waits, &thread);
		bpf_ringbuf_discard(told, 0);
		return 0;
	}
	bpf_ringbuf_submit(told, 0);
	return 1;
}

static __always_inline int wait_for_it(struct gate_refusal *r)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct gate_state *s = the_state();

	if (s && s->pinleased == r->pid)
		return 0;
	return s && may_wait(s, t, r->pid) && have_wait(s, t, r) ? -ERESTARTNOINTR
								 : refuse(r, GATE_BUSY);
}

#endif
