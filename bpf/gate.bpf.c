/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Refuses what would take guarded bytes out of a file. Every truncation passes inode_setattr(), which
 * says all. The other calls are looked at where they begin, and what is to be refused is noted for the
 * thread; the answer is given where they ask whether the file may be written to, file_permission(). So a
 * note lives within one call, and a write, which has none, is never refused.
 *
 * A trampoline's program (fentry, fmod_ret) isn't run for a call while another one that was preempted in
 * it waits for the same processor; who does such calls in a loop would have others' pass. A kprobe can't
 * be preempted, and its program is passed by only where a task waits in a call of bpf(2) on a map, which
 * takes a microsecond. LSM programs are always run.
 *
 * Answers are given by LSM programs, or where the kernel runs none by programs that go before the
 * security_*() functions (fmod_ret); pinleased loads one kind. Which pages an operation takes is said as
 * in lib/source/files_op.c. What takes a name from a file (GATE_NAME) is refused where that begins, and
 * those programs are there only while a lease wants it. A guarded file is found by number and generation
 * and not by inode storage, which there is only with the BPF LSM.
 */
/* clang-format off: the types come first */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
/* clang-format on */

#include "gate.h"

char LICENSE[] SEC("license") = "GPL";

#define EBUSY	       16
#define ERESTARTNOINTR 513
#define SIGSTOP	       19
#define ATTR_SIZE      (1 << 3)
#define MAY_WRITE      2

#define EXT4_MAGIC	0xef53
#define TMPFS_MAGIC	0x01021994
#define HUGETLBFS_MAGIC 0x958458f6

enum {
	KEEP_SIZE = 1,
	PUNCH = 2,
	COLLAPSE = 8,
	ZERO = 0x10,
	INSERT = 0x20,
	UNSHARE = 0x40,
	WRITE_ZEROES = 0x80
};

/* enum pinl_op, which pinleased checks. */
enum { OP_TRUNCATE, OP_PUNCH, OP_ZERO, OP_COLLAPSE, OP_INSERT, OP_REMOVE = 10 };

const volatile __u64 page_size = 4096;
const volatile __u32 has_task_work = 0; /* the kernel has it for BPF */
const volatile __u32 memory_lacks = 0;	/* what fallocate() doesn't do to files in memory */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, GATE_RANGES);
	__type(key, struct gate_key);
	__type(value, struct gate_range);
} ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gate_state);
} state SEC(".maps");

struct note {
	__u64 file; /* its address */
	struct gate_refusal refusal;
};

struct { /* by thread; made at the start, so that nothing is allocated in a call */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GATE_REFUSING);
	__type(key, __u64);
	__type(value, struct note);
} notes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 17);
} refusals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * GATE_WAITING);
	__type(key, struct gate_stop_key);
	__type(value, __u64);
} stops SEC(".maps");

struct { /* who is put out of it by others only waits again */
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2 * GATE_WAITING);
	__type(key, __u64);
	__type(value, struct gate_pass);
} passes SEC(".maps");

struct { /* the same */
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, GATE_ASKED);
	__type(key, struct gate_asked);
	__type(value, struct gate_answer);
} asked SEC(".maps");

struct { /* processes: they have leases to answer for */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GATE_HOLDERS);
	__type(key, __u32);
	__type(value, __u32);
} holders SEC(".maps");

/* ------------------------------------------------------------------------------------- judging -- */

static __always_inline struct gate_state *the_state(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&state, &zero);
}

static __always_inline void name_file(struct inode *inode, struct gate_file *f)
{
	f->ino = BPF_CORE_READ(inode, i_ino);
	f->dev = BPF_CORE_READ(inode, i_sb, s_dev);
	f->generation = BPF_CORE_READ(inode, i_generation);
}

struct look {
	struct gate_key at;
	__u64 start, end;
	__u64 asked_ns; /* who has leases from before has been asked */
	__u32 ops, empty;
	__s32 caller;
	__u32 verdict; /* 0, or of enum gate_what */
};

static long look_at(__u32 i, struct look *l)
{
	struct gate_range *r;

	l->at.place = l->empty - 1 - i;
	r = bpf_map_lookup_elem(&ranges, &l->at);
	if (!r || l->start >= r->end || r->start >= l->end)
		return 0;
	if (r->ops & l->ops) {
		l->verdict = GATE_REFUSED;
		return 1;
	}
	if (r->waits & l->ops && r->holder != l->caller && r->since_ns >= l->asked_ns)
		l->verdict = GATE_WAITS;
	return 0;
}

/* 0, 1, 2, 4, 8, ...: the first of these places that is empty. */
static long look_for_end(__u32 i, struct look *l)
{
	l->at.place = l->empty = (1u << (i & 31)) >> 1;
	return !bpf_map_lookup_elem(&ranges, &l->at);
}

/* Who is refused by one lease needn't wait for another. */
static __noinline int is_guarded(struct look *l)
{
	bpf_loop(32, look_for_end, l, 0);
	bpf_loop(l->empty, look_at, l, 0);
	return l->verdict;
}

static __always_inline void name_call(struct inode *inode, struct gate_refusal *r)
{
	__u64 thread = bpf_get_current_pid_tgid();

	name_file(inode, &r->file);
	r->pid = thread >> 32;
	r->tid = thread;
	r->uid = bpf_get_current_uid_gid();
}

/* What is to become of it by the leases; 0: it goes on. */
static __always_inline int judge_by_leases(const struct gate_refusal *r, __u64 asked_ns)
{
	struct look l = {.at.file = r->file,
			 .start = r->start,
			 .end = r->end,
			 .asked_ns = asked_ns,
			 .ops = 1u << r->op | r->also,
			 .caller = r->pid};
	struct gate_state *s = the_state();

	if (!s || !s->ranges || bpf_ktime_get_ns() >= s->until_ns || r->start >= r->end)
		return 0;
	return is_guarded(&l);
}

static __always_inline int refuse(struct gate_refusal *r, __u32 what)
{
	struct gate_state *s = the_state();

	r->what = what;
	if (bpf_ringbuf_output(&refusals, r, sizeof *r, 0) && s)
		__sync_fetch_and_add(&s->untold, 1);
	return -EBUSY;
}

#include "gate_wait.h"

static __always_inline int carry_out(struct gate_refusal *r, __u32 verdict)
{
	if (verdict == GATE_WAITS)
		return wait_for_it(r);
	if (verdict == GATE_NO_ROOM)
		return -EBUSY;
	return verdict ? refuse(r, GATE_REFUSED) : 0;
}

/* ---------------------------------------------------------------------------------- truncation -- */

static __always_inline __u64 page_of(struct inode *inode)
{
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);

	return BPF_CORE_READ(sb, s_magic) == HUGETLBFS_MAGIC ? BPF_CORE_READ(sb, s_blocksize)
							     : page_size;
}

static __always_inline __u64 down(__u64 at, __u64 page)
{
	return at & ~(page - 1);
}

static __always_inline __u64 up(__u64 at, __u64 page)
{
	return at >= GATE_END - page ? GATE_END : down(at + page - 1, page);
}

static __always_inline int resize(struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = BPF_CORE_READ(dentry, d_inode);
	struct gate_refusal r = {.op = OP_TRUNCATE, .end = GATE_END};

	if (!(BPF_CORE_READ(attr, ia_valid) & ATTR_SIZE))
		return 0;
	r.start = up(BPF_CORE_READ(attr, ia_size), page_of(inode));
	name_call(inode, &r);
	return carry_out(&r, judge(&r));
}

/* Of both kinds, and with a mapping of users in front or without. */
#define RESIZE(section, name, at)                                                                       \
	SEC(section) int name(__u64 *ctx)                                                               \
	{                                                                                               \
		int before = (int)ctx[at + 2];                                                          \
                                                                                                        \
		return before ? before : resize((void *)ctx[at], (void *)ctx[at + 1]);                  \
	}
RESIZE("?lsm/inode_setattr", lsm_resize_2, 0)
RESIZE("?lsm/inode_setattr", lsm_resize_3, 1)
/* Three, as one that another was preempted in isn't run. */
RESIZE("?fmod_ret/security_inode_setattr", mod_resize_2_a, 0)
RESIZE("?fmod_ret/security_inode_setattr", mod_resize_2_b, 0)
RESIZE("?fmod_ret/security_inode_setattr", mod_resize_2_c, 0)
RESIZE("?fmod_ret/security_inode_setattr", mod_resize_3_a, 1)
RESIZE("?fmod_ret/security_inode_setattr", mod_resize_3_b, 1)
RESIZE("?fmod_ret/security_inode_setattr", mod_resize_3_c, 1)

SEC("?fexit/notify_change") int end_resize(__u64 *ctx)
{
	return say_over(1);
}

/* ------------------------------------------------------------------------------ all other calls -- */

/* The answer takes the note away: so who has done it with his note still there wasn't asked about. */
static __always_inline void went_on(struct note *n)
{
	struct gate_state *s = the_state();

	n->refusal.what = GATE_WENT_ON;
	if (s)
		__sync_fetch_and_add(&s->passed, 1);
	bpf_ringbuf_output(&refusals, &n->refusal, sizeof n->refusal, 0);
}

/* A call is over: what it has returned. */
static __always_inline int forget(__s64 result)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct note *n = bpf_map_lookup_elem(&notes, &thread);

	if (!n)
		return 0;
	if (result >= 0)
		went_on(n);
	bpf_map_delete_elem(&notes, &thread);
	return 0;
}

/* Of a call whose end wasn't seen either. */
static __always_inline void forget_last(__u64 thread)
{
	struct note *n = bpf_map_lookup_elem(&notes, &thread);

	if (!n)
		return;
	went_on(n);
	bpf_map_delete_elem(&notes, &thread);
}

static __always_inline int note(struct file *file, __u32 op, __u32 also, __u64 start, __u64 end)
{
	struct note n = {.file = (__u64)file,
			 .refusal = {.op = op, .also = also, .start = start, .end = end}};
	__u64 thread = bpf_get_current_pid_tgid();
	struct gate_state *s = the_state();

	if (!s || (!s->ranges && !s->waiting))
		return 0;
	forget_last(thread);
	name_call(BPF_CORE_READ(file, f_inode), &n.refusal);
	n.refusal.what = judge(&n.refusal);
	if (!n.refusal.what)
		return 0;
	if (bpf_map_update_elem(&notes, &thread, &n, 0))
		__sync_fetch_and_add(&s->lost, 1);
	return 0;
}

static __always_inline int answer(struct file *file, int mask)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct note *n;
	int err;

	if (!(mask & MAY_WRITE))
		return 0;
	n = bpf_map_lookup_elem(&notes, &thread);
	if (!n || n->file != (__u64)file)
		return 0;
	err = carry_out(&n->refusal, n->refusal.what);
	bpf_map_delete_elem(&notes, &thread);
	return err;
}

#define ANSWER(section, name)                                                                           \
	SEC(section) int name(__u64 *ctx)                                                               \
	{                                                                                               \
		int before = (int)ctx[2];                                                               \
                                                                                                        \
		return before ? before : answer((void *)ctx[0], (int)ctx[1]);                           \
	}
ANSWER("?lsm/file_permission", lsm_answer)
ANSWER("?fmod_ret/security_file_permission", mod_answer_a)
ANSWER("?fmod_ret/security_file_permission", mod_answer_b)
ANSWER("?fmod_ret/security_file_permission", mod_answer_c)

/* Partial pages stay, but the last one of the file; elsewhere than here they may go, too. */
static __always_inline int keeps_edges(struct inode *inode)
{
	__u64 magic = BPF_CORE_READ(inode, i_sb, s_magic);

	return magic == EXT4_MAGIC || magic == TMPFS_MAGIC || magic == HUGETLBFS_MAGIC;
}

static __always_inline int hole(struct file *file, __u32 op, __u32 also, __u64 offset, __u64 len)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	__u64 page = page_of(inode), end = len > GATE_END - offset ? GATE_END : offset + len;

	if (!keeps_edges(inode))
		return note(file, op, also, down(offset, page), up(end, page));
	if (end >= (__u64)BPF_CORE_READ(inode, i_size))
		return note(file, op, also, up(offset, page), up(end, page));
	return note(file, op, also, up(offset, page), down(end, page));
}

/* From the page of the offset to the end. XFS drops the page before, too. */
static __always_inline int shift(struct file *file, __u32 op, __u32 also, __u64 offset)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	__u64 page = page_of(inode), start = down(offset, page);

	if (start && !keeps_edges(inode))
		start -= page;
	return note(file, op, also, start, GATE_END);
}

#ifdef __TARGET_ARCH_x86
#define BEGIN(function, name, begins)                                                                   \
	SEC("?kprobe/" #function) int name(struct pt_regs *ctx)                                         \
	{                                                                                               \
		const __u64 args[] = {ctx->di, ctx->si, ctx->dx, ctx->cx, ctx->r8};                     \
                                                                                                        \
		return begins(args);                                                                    \
	}
#else
#define BEGIN(function, name, begins)                                                                   \
	SEC("?fentry/" #function) int name(__u64 *ctx)                                                  \
	{                                                                                               \
		return begins(ctx);                                                                     \
	}
#endif

#ifdef __TARGET_ARCH_x86
/* Else it is a hole by fallocate(2), or by whatever isn't known. A 32-bit program's call of that number
 * punches none. */
static __always_inline int is_by_mapping(void)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs(t);

	return !(BPF_CORE_READ(t, flags) & PF_IO_WORKER) && BPF_CORE_READ(regs, orig_ax) == NR_MADVISE;
}
#else
static __always_inline int is_by_mapping(void)
{
	return 0;
}
#endif

/* A lease may name either. */
static __always_inline int punch(struct file *file, __u64 offset, __u64 len)
{
	return is_by_mapping() ? hole(file, OP_REMOVE, 1u << OP_PUNCH, offset, len)
			       : hole(file, OP_PUNCH, 1u << OP_REMOVE, offset, len);
}

/* The caller is to hear that, as he may have another way. */
static __always_inline int is_lacking(struct file *file, __u32 mode)
{
	__u64 magic = BPF_CORE_READ(file, f_inode, i_sb, s_magic);

	return mode & memory_lacks && (magic == TMPFS_MAGIC || magic == HUGETLBFS_MAGIC);
}

static __always_inline int fallocate_begins(const __u64 *args)
{
	struct file *file = (void *)args[0];
	__u64 offset = args[2], len = args[3];

	if (is_lacking(file, (__u32)args[1]))
		return 0;

	switch ((__u32)args[1] & ~KEEP_SIZE) {
	case 0:
	case UNSHARE:
		return 0;
	case PUNCH:
		return punch(file, offset, len);
	case ZERO:
	case WRITE_ZEROES:
		return hole(file, OP_ZERO, 0, offset, len);
	case COLLAPSE:
		return shift(file, OP_COLLAPSE, 0, offset);
	case INSERT:
		return shift(file, OP_INSERT, 0, offset);
	}
	return shift(file, OP_PUNCH, ~GATE_NAME, offset); /* not known yet: it may be anything */
}
BEGIN(vfs_fallocate, begin_fallocate, fallocate_begins)

SEC("?fexit/vfs_fallocate") int end_fallocate(__u64 *ctx)
{
	forget((__s32)ctx[4]);
	return say_over(0);
}

/* No more than the other file has, whatever is asked for; 0: all of that. */
static __always_inline __u64 shared_length(const __u64 *args)
{
	struct file *from = (void *)args[0];
	__u64 size = BPF_CORE_READ(from, f_inode, i_size), at = args[1];
	__u64 rest = size > at ? size - at : 0;

	return args[4] && args[4] < rest ? args[4] : rest;
}

/* What takes blocks of another file's. */
static __always_inline int share(const __u64 *args)
{
	__u64 len = shared_length(args);

	return len ? hole((void *)args[2], OP_ZERO, 0, args[3], len) : 0;
}
BEGIN(vfs_clone_file_range, begin_clone, share)

SEC("?fexit/vfs_clone_file_range") int end_clone(__u64 *ctx)
{
	return forget(ctx[6]);
}

static __always_inline int dedupe_begins(const __u64 *args)
{
	return args[4] ? share(args) : 0;
}
BEGIN(vfs_dedupe_file_range_one, begin_dedupe, dedupe_begins)

SEC("?fexit/vfs_dedupe_file_range_one") int end_dedupe(__u64 *ctx)
{
	return forget(ctx[6]);
}

/* Where it can't clone it writes, which leaves the pages: to other file systems, and beside blocks. */
static __always_inline int may_clone(const __u64 *args)
{
	struct file *from = (void *)args[0], *to = (void *)args[2];
	struct super_block *sb = BPF_CORE_READ(to, f_inode, i_sb);

	return BPF_CORE_READ(to, f_op, remap_file_range) && BPF_CORE_READ(from, f_inode, i_sb) == sb &&
	       !((args[1] | args[3]) & (BPF_CORE_READ(sb, s_blocksize) - 1));
}

static __always_inline int copy_begins(const __u64 *args)
{
	return args[4] && may_clone(args) ? share(args) : 0;
}
BEGIN(vfs_copy_file_range, begin_copy, copy_begins)

SEC("?fexit/vfs_copy_file_range") int end_copy(__u64 *ctx)
{
	return forget(ctx[6]);
}

#include "gate_name.h"

/* ---------------------------------------------------------------------------------------- naming -- */

/* Of the caller's. */
static __always_inline struct file *file_of(__s32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd), *file = 0;

	if (fd < 0 || (__u32)fd >= BPF_CORE_READ(table, max_fds) ||
	    bpf_probe_read_kernel(&file, sizeof file, slots + fd))
		return 0;
	return file;
}

SEC("syscall") int identify(struct gate_order *order)
{
	struct file *file = file_of(order->fd);
	struct gate_file f = {};

	if (!file)
		return 0;
	name_file(BPF_CORE_READ(file, f_inode), &f);
	order->file = f;
	order->found = 1;
	return 0;
}
