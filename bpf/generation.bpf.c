/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Counts changes of the address spaces of some processes, each before the kernel takes page table
 * entries for it: what munmap, madvise, truncation by anybody and so on come to is __zap_vma_range()
 * (before 7.0 unmap_page_range()) and __unmap_hugepage_range(); mremap is move_page_tables(), mprotect
 * is change_protection(), MADV_FREE madvise_free_pte_range(). Where these have what they are told is
 * found by pinleased.
 *
 * A trampoline's program isn't run while another task that was preempted in it waits for the same
 * processor. So there are two of each, a and b; the first to run leaves its letter in the change's place
 * in going[], by which the other one knows. Where both weren't run pinleased finds it, by the kernel's
 * account. A change may be counted twice, where there was no place. What `by` says of one:
 *
 *	begins: a or b; both have run: 0      is over: A or B; both have run: the place is free
 *
 * Of a change that is over, nobody waits for the other one: who needs a place takes it.
 *
 * A space is entered and left by pinleased, and forgotten here when it ends, before anything else may be
 * at its address.
 */
/* clang-format off: the types come first */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
/* clang-format on */

#include <stdbool.h>

#include "generation.h"

char LICENSE[] SEC("license") = "GPL";

enum {
	PLACES = 8,	     /* of going[] that a thread may have */
	FEW = 32,	     /* areas that are looked at one by one */
	FRESH_NS = 10000000, /* the other program is run within that, or the change is counted twice */
	CROWDED_NS = 1000000000,
	WORDS = GENERATION_AREAS / 8,
};

#define PF_IO_WORKER   0x10
#define PF_USER_WORKER 0x4000 /* before 6.4 something else, that no system call has */
#define PF_KTHREAD     0x200000
#define TS_COMPAT      2

/* Of change_protection()'s flags: NUMA's, and a userfaultfd's own. */
#define CP_OTHERS 0xe

#define OVER(by) ((by) & ~0x20u) /* the capital */

/* Arguments by number; none: not that function's. */
enum { NONE = 99 };
const volatile __u32 zap_vma = NONE, zap_start = NONE, zap_end = NONE;
const volatile __u32 huge_vma = NONE, huge_start = NONE, huge_end = NONE;
const volatile __u32 move_vma = NONE, move_start = NONE, move_len = NONE, move_control = NONE;
const volatile __u32 free_start = NONE, free_end = NONE, free_walk = NONE;
const volatile __u32 protect_vma = NONE, protect_start = NONE, protect_end = NONE, protect_flags = NONE;

struct counts_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32)); /* of a map in a map clang 14 doesn't keep the types */
	__uint(value_size, sizeof(struct generation_counts));
};

struct ring_map {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, GENERATION_RING);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, GENERATION_SPACES);
	__type(key, __u32);
	__array(values, struct counts_map);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, GENERATION_SPACES);
	__type(key, __u32);
	__array(values, struct ring_map);
} rings SEC(".maps");

struct { /* of an mm_struct's address: its place in the two */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GENERATION_SPACES);
	__type(key, __u64);
	__type(value, __u32);
} spaces SEC(".maps");

/* CLOCK_MONOTONIC: so long somebody looks after what is counted. */
__u64 until_ns;

/* ------------------------------------------------------------------------------------- changes -- */

struct change {
	struct generation_counts *counts;
	__u64 start, end;
	__u32 slot, what;
};

/* Nobody would find what is missed, nor take the programs away. */
static __always_inline bool has_ended(const struct change *ch, __u64 mm)
{
	if (bpf_ktime_get_ns() <= until_ns)
		return false;
	__sync_lock_test_and_set(&ch->counts->ended, 1);
	__sync_fetch_and_add(&ch->counts->told, 1);
	__sync_fetch_and_add(&ch->counts->lost, 1);
	bpf_map_delete_elem(&spaces, &mm);
	return true;
}

/* Pages go, or are about to, of a space that is counted. */
static __always_inline bool find_space(void *vma, struct change *ch)
{
	__u64 mm = (__u64)BPF_CORE_READ((struct vm_area_struct *)vma, vm_mm);
	__u32 *slot = bpf_map_lookup_elem(&spaces, &mm), zero = 0;
	void *map;

	if (!slot)
		return false;
	ch->slot = *slot;
	map = bpf_map_lookup_elem(&counts, &ch->slot);
	if (!map)
		return false;
	ch->counts = bpf_map_lookup_elem(map, &zero);
	return ch->counts && !has_ended(ch, mm);
}

struct words {
	struct generation_counts *counts;
	__u32 first, watched;
};

static long look_at_word(__u32 i, struct words *w)
{
	const __u64 *word = (const __u64 *)w->counts->watched;

	w->watched = word[(w->first + i) & (WORDS - 1)] != 0;
	return w->watched;
}

static __always_inline bool is_watched(const struct change *ch)
{
	__u64 first = ch->start >> GENERATION_AREA_SHIFT;
	__u64 n = ((ch->end - 1) >> GENERATION_AREA_SHIFT) - first + 1;
	struct words w = {.counts = ch->counts, .first = first / 8};

	if (ch->start >= ch->end)
		return false;
	if (n > FEW) { /* and perhaps of the few areas beside */
		bpf_loop(n / 8 + 2 < WORDS ? n / 8 + 2 : WORDS, look_at_word, &w, 0);
		return w.watched;
	}
	for (__u32 i = 0; i < FEW && i < n; i++)
		if (ch->counts->watched[(first + i) & (GENERATION_AREAS - 1)])
			return true;
	return false;
}

/* ------------------------------------------------------------------------------------- going[] -- */

static __always_inline struct generation_going *place(const struct change *ch, __u32 i)
{
	__u32 tid = bpf_get_current_pid_tgid();

	return &ch->counts->going[(tid * 31 + i) & (GENERATION_GOING - 1)];
}

static __always_inline bool is_over(__u16 by)
{
	return by == OVER('a') || by == OVER('b');
}

/* The thread's own, of an earlier call, too, whose end wasn't seen. */
static __always_inline struct generation_going *find_going(const struct change *ch, __u32 what)
{
	__s32 tid = bpf_get_current_pid_tgid();
	struct generation_going *g;

	for (__u32 i = 0; i < PLACES; i++) {
		g = place(ch, i);
		if (g->tid == tid && g->what == what && !is_over(g->by))
			return g;
	}
	return NULL;
}

/* tid, what and by at once, by which a place is taken. */
static __always_inline __u64 word_of(const struct change *ch, __u64 by)
{
	return (__u32)bpf_get_current_pid_tgid() | (__u64)ch->what << 32 | by << 48;
}

/* Of a thread whose end wasn't seen it is nobody's after a while; a change that still goes on is told of
 * again when it is over. */
static __always_inline bool is_old(const struct generation_going *g, __u64 now, __u64 ns)
{
	__u64 since = *(volatile __u64 *)&g->since_ns;

	return since && now > since + ns;
}

static __always_inline struct generation_going *take_place(const struct change *ch, __u64 now)
{
	__u64 own = word_of(ch, 0), word;
	struct generation_going *g;

	for (__u32 i = 0; i < PLACES; i++) {
		g = place(ch, i);
		word = *(volatile __u64 *)&g->tid;
		if ((!word || is_over(word >> 48) || is_old(g, now, GENERATION_GOING_NS)) &&
		    __sync_val_compare_and_swap((__u64 *)&g->tid, word, own) == word)
			return g;
	}
	return NULL;
}

/* Of just this change, as it begins and when it is over. */
static __always_inline struct generation_going *find_own(const struct change *ch)
{
	__s32 tid = bpf_get_current_pid_tgid();
	struct generation_going *g;

	for (__u32 i = 0; i < PLACES; i++) {
		g = place(ch, i);
		if (g->tid == tid && g->what == ch->what && g->start == ch->start && g->end == ch->end)
			return g;
	}
	return NULL;
}

static __always_inline void set_over(struct generation_going *g, const struct change *ch, __u32 by)
{
	__sync_lock_test_and_set(&g->since_ns, 0);
	__sync_lock_test_and_set((__u64 *)&g->tid, word_of(ch, OVER(by)));
}

/* The other program has seen its end; or another thread has the place by now. */
static __always_inline bool free_place(struct generation_going *g, const struct change *ch, __u32 by)
{
	__u64 word = word_of(ch, OVER(by == 'a' ? 'b' : 'a'));

	return __sync_val_compare_and_swap((__u64 *)&g->tid, word, 0) == word;
}

/* Huge pages that go within a call that takes all of a mapping's. */
static __always_inline bool is_within(const struct change *ch, __u64 now)
{
	const struct generation_going *g =
		ch->what == GENERATION_HUGE ? find_going(ch, GENERATION_ZAP) : NULL;

	return g && g->start <= ch->start && ch->end <= g->end && now - g->since_ns < FRESH_NS;
}

static __always_inline bool is_counted(const struct change *ch, struct generation_going *g, __u32 by,
				       __u64 now)
{
	if (!g || !g->by || g->by == by || g->start != ch->start || g->end != ch->end ||
	    now - g->since_ns >= FRESH_NS)
		return false;
	g->by = 0;
	return true;
}

/* Before it is told. */
static __always_inline void note_going(const struct change *ch, struct generation_going *g, __u32 by,
				       __u64 now)
{
	if (!g)
		g = take_place(ch, now);
	if (!g) {
		ch->counts->crowded_until_ns = now + CROWDED_NS;
		return;
	}
	g->start = ch->start;
	g->end = ch->end;
	g->by = by;
	__sync_lock_test_and_set(&g->since_ns, now);
}

/* ------------------------------------------------------------------------------------- telling -- */

#ifdef __TARGET_ARCH_x86
enum { NR_MADVISE = 28, NR_FALLOCATE = 285, NR_PROCESS_MADVISE = 440 };

static __always_inline __u32 how_of(struct pt_regs *regs, unsigned long nr)
{
	unsigned long how = 0;

	if (nr == NR_MADVISE)
		bpf_probe_read_kernel(&how, sizeof how, &regs->dx);
	else if (nr == NR_FALLOCATE)
		bpf_probe_read_kernel(&how, sizeof how, &regs->si);
	else if (nr == NR_PROCESS_MADVISE)
		bpf_probe_read_kernel(&how, sizeof how, &regs->r10);
	return how;
}
#endif

static __always_inline __s32 system_call(__u32 *how)
{
#ifdef __TARGET_ARCH_x86
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
	unsigned long nr = -1;

	if (BPF_CORE_READ(task, flags) & (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD) ||
	    BPF_CORE_READ(task, thread_info.status) & TS_COMPAT)
		return -1;
	bpf_probe_read_kernel(&nr, sizeof nr, &regs->orig_ax);
	*how = how_of(regs, nr);
	return nr;
#else
	return -1;
#endif
}

static __always_inline void tell(const struct change *ch)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct generation_record r = {
		.start = ch->start,
		.end = ch->end,
		.what = ch->what == GENERATION_HUGE ? GENERATION_ZAP : ch->what,
		.pid = thread >> 32,
		.tid = thread,
	};
	void *ring = bpf_map_lookup_elem(&rings, &ch->slot);

	r.nr = system_call(&r.how);
	if (!ring || bpf_ringbuf_output(ring, &r, sizeof r, 0))
		__sync_fetch_and_add(&ch->counts->lost, 1);
}

static __always_inline int begin(struct change *ch, __u32 by)
{
	__u64 now = bpf_ktime_get_ns();
	struct generation_going *g;

	if (!is_watched(ch))
		return 0;
	g = find_going(ch, ch->what);
	if (is_counted(ch, g, by, now) || is_within(ch, now))
		return 0;
	note_going(ch, g, by, now);
	__sync_fetch_and_add(&ch->counts->told, 1);
	tell(ch);
	return 0;
}

static __always_inline bool is_seen(const struct change *ch, __u32 by, __u64 now)
{
	struct generation_going *g = find_own(ch);
	bool old = g && is_old(g, now, GENERATION_GOING_NS / 2);

	if (!g || is_over(g->by))
		return g && free_place(g, ch, by);
	set_over(g, ch, by);
	return !old;
}

/* Who began to watch meanwhile may have registered what has gone; so may have who found that it goes on
 * for too long. */
static __always_inline int end(struct change *ch, __u32 by)
{
	__u64 now = bpf_ktime_get_ns();

	if (!is_seen(ch, by, now) && is_watched(ch) && !is_within(ch, now)) {
		__sync_fetch_and_add(&ch->counts->told, 1);
		tell(ch);
	}
	return 0;
}

/* ---------------------------------------------------------------------------------- the programs -- */

static __always_inline __u64 argument(void *ctx, __u32 n)
{
	__u64 value = 0;

	bpf_get_func_arg(ctx, n, &value);
	return value;
}

static __always_inline bool find_range(struct change *ch, void *ctx, __u32 vma, __u32 start, __u32 last)
{
	ch->start = argument(ctx, start);
	ch->end = argument(ctx, last);
	return find_space((void *)argument(ctx, vma), ch);
}

static __always_inline int begin_range(void *ctx, __u32 what, __u32 by, __u32 vma, __u32 start,
				       __u32 last)
{
	struct change ch = {.what = what};

	return find_range(&ch, ctx, vma, start, last) ? begin(&ch, by) : 0;
}

static __always_inline int end_range(void *ctx, __u32 what, __u32 by, __u32 vma, __u32 start, __u32 last)
{
	struct change ch = {.what = what};

	return find_range(&ch, ctx, vma, start, last) ? end(&ch, by) : 0;
}

static __always_inline int begin_protect(void *ctx, __u32 by)
{
	if (argument(ctx, protect_flags) & CP_OTHERS)
		return 0;
	return begin_range(ctx, GENERATION_PROTECT, by, protect_vma, protect_start, protect_end);
}

static __always_inline int end_protect(void *ctx, __u32 by)
{
	if (argument(ctx, protect_flags) & CP_OTHERS)
		return 0;
	return end_range(ctx, GENERATION_PROTECT, by, protect_vma, protect_start, protect_end);
}

static __always_inline void *moved_vma(void *ctx)
{
	struct pagetable_move_control *c;

	if (move_control == NONE)
		return (void *)argument(ctx, move_vma);
	c = (void *)argument(ctx, move_control);
	return BPF_CORE_READ(c, old);
}

/* The control's start goes on with the move, its end doesn't. */
static __always_inline bool find_moved(struct change *ch, void *ctx)
{
	struct pagetable_move_control *c;

	if (!find_space(moved_vma(ctx), ch))
		return false;
	if (move_control == NONE) {
		ch->start = argument(ctx, move_start);
		ch->end = ch->start + argument(ctx, move_len);
	} else {
		c = (void *)argument(ctx, move_control);
		ch->end = BPF_CORE_READ(c, old_end);
		ch->start = ch->end - BPF_CORE_READ(c, len_in);
	}
	return true;
}

static __always_inline int begin_move(void *ctx, __u32 by)
{
	struct change ch = {.what = GENERATION_MOVE};

	return find_moved(&ch, ctx) ? begin(&ch, by) : 0;
}

static __always_inline int end_move(void *ctx, __u32 by)
{
	struct change ch = {.what = GENERATION_MOVE};

	return find_moved(&ch, ctx) ? end(&ch, by) : 0;
}

static __always_inline void *freed_vma(void *ctx)
{
	struct mm_walk *walk = (void *)argument(ctx, free_walk);

	return BPF_CORE_READ(walk, vma);
}

static __always_inline bool find_freed(struct change *ch, void *ctx)
{
	ch->start = argument(ctx, free_start);
	ch->end = argument(ctx, free_end);
	return find_space(freed_vma(ctx), ch);
}

static __always_inline int begin_free(void *ctx, __u32 by)
{
	struct change ch = {.what = GENERATION_FREE};

	return find_freed(&ch, ctx) ? begin(&ch, by) : 0;
}

static __always_inline int end_free(void *ctx, __u32 by)
{
	struct change ch = {.what = GENERATION_FREE};

	return find_freed(&ch, ctx) ? end(&ch, by) : 0;
}

#define PROGRAM(section, name, call)                                                                    \
	SEC(section) int name(void *ctx)                                                                \
	{                                                                                               \
		return call;                                                                            \
	}

#define RANGE(what, by, of) begin_range(ctx, what, by, of##_vma, of##_start, of##_end)
#define ENDS(what, by, of)  end_range(ctx, what, by, of##_vma, of##_start, of##_end)

PROGRAM("?fentry", zap_a, RANGE(GENERATION_ZAP, 'a', zap))
PROGRAM("?fentry", zap_b, RANGE(GENERATION_ZAP, 'b', zap))
PROGRAM("?fexit", zap_over_a, ENDS(GENERATION_ZAP, 'a', zap))
PROGRAM("?fexit", zap_over_b, ENDS(GENERATION_ZAP, 'b', zap))
PROGRAM("?fentry", huge_a, RANGE(GENERATION_HUGE, 'a', huge))
PROGRAM("?fentry", huge_b, RANGE(GENERATION_HUGE, 'b', huge))
PROGRAM("?fexit", huge_over_a, ENDS(GENERATION_HUGE, 'a', huge))
PROGRAM("?fexit", huge_over_b, ENDS(GENERATION_HUGE, 'b', huge))
PROGRAM("?fentry", protect_a, begin_protect(ctx, 'a'))
PROGRAM("?fentry", protect_b, begin_protect(ctx, 'b'))
PROGRAM("?fexit", protect_over_a, end_protect(ctx, 'a'))
PROGRAM("?fexit", protect_over_b, end_protect(ctx, 'b'))
PROGRAM("?fentry", move_a, begin_move(ctx, 'a'))
PROGRAM("?fentry", move_b, begin_move(ctx, 'b'))
PROGRAM("?fexit", move_over_a, end_move(ctx, 'a'))
PROGRAM("?fexit", move_over_b, end_move(ctx, 'b'))
PROGRAM("?fentry", free_a, begin_free(ctx, 'a'))
PROGRAM("?fentry", free_b, begin_free(ctx, 'b'))
PROGRAM("?fexit", free_over_a, end_free(ctx, 'a'))
PROGRAM("?fexit", free_over_b, end_free(ctx, 'b'))

static __always_inline int forget(void *ctx)
{
	__u64 mm = argument(ctx, 0);

	bpf_map_delete_elem(&spaces, &mm);
	return 0;
}

PROGRAM("?fentry", exit_a, forget(ctx))
PROGRAM("?fentry", exit_b, forget(ctx))

/* The address space of a process; 0: it has none, or isn't there. */
__u32 asked_pid;
__u64 found_mm;

SEC("iter/task") int find_mm(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (task && !found_mm && BPF_CORE_READ(task, tgid) == asked_pid &&
	    !(BPF_CORE_READ(task, flags) & PF_KTHREAD))
		found_mm = (__u64)BPF_CORE_READ(task, mm);
	return 0;
}
