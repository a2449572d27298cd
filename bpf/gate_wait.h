/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Part of gate.bpf.c: who is to wait. He is sent to his page (gate_page.h), or his process is stopped
 * (SIGSTOP), and his call returns as one that a signal has interrupted before it did anything, so that
 * he makes it again when pinleased lets him go. It gives him a pass then: the lease may be there still
 * (the ceiling is over), and who goes on for another reason only waits again. pinleased hears of him
 * when he has been stopped, else its SIGCONT could come before. What can't wait, or not without harm, is
 * refused, and told; when the leases have been asked for it, his process may make it.
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

/* One that refuses may be there though nobody waits. */
static __always_inline struct gate_pass *pass_of(const struct gate_refusal *r, int verdict)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct gate_state *s = the_state();
	struct gate_pass *p;

	if (!s || (!s->waiting && verdict != GATE_WAITS))
		return 0;
	p = bpf_map_lookup_elem(&passes, &thread);
	if (!p || !is_same(&p->file, &r->file) || p->start != r->start || p->end != r->end ||
	    p->op != r->op)
		return 0;
	return p->going || bpf_ktime_get_ns() < p->until_ns ? p : 0;
}

/* Since when nobody has been asked for it; 0: nobody has. */
static __always_inline __u64 asked_till(const struct gate_refusal *r)
{
	struct gate_asked a = {.file = r->file,
			       .start = r->start,
			       .end = r->end,
			       .pid = r->pid,
			       .op = r->op == OP_REMOVE ? OP_PUNCH : r->op /* as pinleased writes it */};
	struct gate_state *s = the_state();
	struct gate_answer *w;
	__u64 now;

	if (!s || !s->asked_until_ns)
		return 0;
	now = bpf_ktime_get_ns();
	if (now >= s->asked_until_ns)
		return 0;
	w = bpf_map_lookup_elem(&asked, &a);
	return w && now < w->until_ns ? w->before_ns : 0;
}

/* What is to become of it; 0: it goes on. A pass is used also where nothing is held any more, so that
 * the end of the call is told; and one is for those who wait, against a REFUSE there is none. */
static __always_inline int judge(const struct gate_refusal *r)
{
	int verdict = judge_by_leases(r, asked_till(r));
	struct gate_pass *p = pass_of(r, verdict);
	__u64 thread;

	if (!p)
		return verdict;
	if (verdict == GATE_WAITS && p->refuse) {
		thread = bpf_get_current_pid_tgid();
		bpf_map_delete_elem(&passes, &thread);
		return GATE_NO_ROOM;
	}
	p->going = 1;
	return verdict == GATE_WAITS ? 0 : verdict;
}

/* At the end of a call. */
static __always_inline int say_over(int truncation)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct gate_refusal r = {.what = GATE_OVER, .pid = thread >> 32, .tid = thread};
	struct gate_state *s = the_state();
	struct gate_pass *p;

	if (!s || !s->waiting)
		return 0;
	p = bpf_map_lookup_elem(&passes, &thread);
	if (!p || !p->going || (p->op == OP_TRUNCATE) != truncation)
		return 0;
	r.file = p->file;
	r.start = p->start;
	r.end = p->end;
	r.op = p->op;
	bpf_map_delete_elem(&passes, &thread);
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

/* In the map before he is stopped, so that whoever reads it finds him. The signal is the thread's, which
 * stops all: of two for the process the kernel drops the second, and the thread that it was for would
 * come back with an error that no program is to see. */
static __always_inline long stop(struct task_struct *t, const struct gate_stop_key *at)
{
	__u64 started_ns = BPF_CORE_READ(t, group_leader, start_boottime);

	if (bpf_map_update_elem(&stops, at, &started_ns, 0))
		return -1;
	if (!bpf_send_signal_thread(SIGSTOP))
		return 0;
	bpf_map_delete_elem(&stops, at);
	return -1;
}

static __always_inline int have_wait(const struct gate_state *s, struct task_struct *t,
				     struct gate_refusal *r)
{
	struct gate_stop_key at = {bpf_get_current_pid_tgid(), bpf_ktime_get_ns()};
	struct gate_refusal *told = bpf_ringbuf_reserve(&refusals, sizeof *told, 0);

	if (!told)
		return 0;
	*told = *r;
	told->what = GATE_WAITS;
	told->stopped_ns = at.at_ns;
	if (s->way == GATE_BY_PAGE ? send_to_page(t, at.thread) : stop(t, &at)) {
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
