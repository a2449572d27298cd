/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Part of gate.bpf.c: where a thread waits that isn't stopped. On its way back to the program it reads a
 * byte of a page in the guard's memory, that of its number, and the kernel waits for it till pinleased
 * answers (daemon/gate_page.c). What is read doesn't matter, nor whether anything is: the call is made
 * again then, and judged anew.
 *
 * While it reads the kernel lets go of no memory that sleepable programs may look at, and of no
 * processor: so pinleased has it read again from time to time.
 */
#ifndef PINLEASE_GATE_PAGE_H
#define PINLEASE_GATE_PAGE_H

#define LOOKS 100000 /* a millisecond or so */

/* Only what the kernel's functions are declared by. */
struct bpf_map {
	__u32 id;
};

struct bpf_task_work {
	__u64 opaque;
} __attribute__((aligned(8)));

struct visit {
	struct bpf_task_work work;
};

/* By thread. Who is put out of it by others only has to make his call again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2 * GATE_WAITING);
	__type(key, __u64);
	__type(value, struct visit);
} visits SEC(".maps");

typedef int (*visit_begins)(struct bpf_map *map, void *key, void *value);

extern int bpf_task_work_schedule_signal(struct task_struct *task, struct bpf_task_work *tw, void *map,
					 visit_begins callback) __ksym __weak;
extern struct task_struct *bpf_task_from_pid(__s32 pid) __ksym __weak;
extern void bpf_task_release(struct task_struct *task) __ksym __weak;

/* By the thread itself, which holds no lock. */
static int read_page(struct bpf_map *map, void *key, void *value)
{
	__u32 thread = bpf_get_current_pid_tgid();
	struct gate_state *s = the_state();
	struct task_struct *guard;
	char byte;

	if (!s || !s->pages)
		return 0;
	guard = bpf_task_from_pid(s->guard);
	if (!guard)
		return 0;
	bpf_copy_from_user_task(&byte, 1, (void *)(s->pages + thread * page_size), guard, 0);
	bpf_task_release(guard);
	return 0;
}

struct coming {
	struct task_struct *task;
	void *before, *works;
};

static long look_for_work(__u32 i, struct coming *c)
{
	struct task_struct *t = c->task;

	c->works = BPF_CORE_READ(t, task_works);
	return c->works && c->works != c->before;
}

/* An interrupt has the kernel note it, and that has to be before the call returns: else the program
 * would see an error that no program is to see. The newest is the first in the kernel's list, and only
 * this thread takes any out. */
static __always_inline int has_come(struct task_struct *t, void *before)
{
	struct coming c = {.task = t, .before = before};

	bpf_loop(LOOKS, look_for_work, &c, 0);
	return c.works && c.works != before;
}

static __always_inline long send_to_page(struct task_struct *t, __u64 thread)
{
	struct visit none = {}, *v;
	void *before;

	if (!has_task_work)
		return -1;
	before = BPF_CORE_READ(t, task_works);
	bpf_map_update_elem(&visits, &thread, &none, 1 /* BPF_NOEXIST */);
	v = bpf_map_lookup_elem(&visits, &thread);
	if (!v || bpf_task_work_schedule_signal(t, &v->work, &visits, read_page))
		return -1;
	if (has_come(t, before))
		return 0;
	bpf_map_delete_elem(&visits, &thread);
	return -1;
}

#endif
