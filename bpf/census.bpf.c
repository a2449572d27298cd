/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The census of pins. `scan` looks at every struct page of a range and keeps those that are pinned; the
 * iterators say which files and mappings there are; `peek` reads what they point to, which the command
 * follows by itself, since there the kernels differ (pins_kernel.c). Nothing is attached to anything and
 * nothing is written: the kernel's memory is only read, by a helper that can't fault. All of it is of
 * one moment only in so far as nobody pins meanwhile.
 *
 * A page is a head page with a count of its own (_pincount) or a small one, whose pins are in its count
 * of references, 1024 each. Members that not every kernel has come as constants, not by
 * bpf_core_field_exists(): clang 14 moves the relocations out of the branches that were to guard them.
 */
/* clang-format off: the types come first */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
/* clang-format on */

#include "census.h"

char LICENSE[] SEC("license") = "GPL";

/* Byte offsets in struct page or folio, and numbers of bits. */
const volatile __u32 off_tail = 8, off_mapcount = 48, off_refcount = 52, off_pincount, off_nr_pages;
const volatile __u32 bit_head = 6, bit_lru = 5, bit_swapcache = 64, bit_swapbacked = 64;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, CENSUS_CHUNK);
	__type(key, __u32);
	__type(value, struct census_pin);
} pins SEC(".maps");

__u64 vmemmap, first_pfn, nr_pfns; /* the order to `scan` */
__u32 everything;		   /* also pages that nobody pins */
__u64 scanned, unreadable;	   /* what came of it */
__u32 nr_pins;

__u64 peek_addr; /* the order to `peek` */
__u32 peek_len;
__s64 peek_err;
char peeked[CENSUS_PEEK];

char window[CENSUS_WINDOW * CENSUS_PAGE_SIZE] __attribute__((aligned(8))); /* struct pages, at hand */

static __always_inline __u64 word(const char *p, __u32 offset)
{
	return *(__u64 *)&p[offset & (CENSUS_PAGE_SIZE - 8)];
}

static __always_inline int half(const char *p, __u32 offset)
{
	return *(int *)&p[offset & (CENSUS_PAGE_SIZE - 4)];
}

static __always_inline int bit(__u64 flags, __u32 nr)
{
	return nr < 64 && (flags >> nr & 1);
}

static __always_inline __u32 at(__u64 addr, __u32 offset)
{
	__u32 n = 0;

	bpf_probe_read_kernel(&n, sizeof(n), (void *)(addr + offset));
	return n;
}

/* References that neither page tables nor the swap cache have; pages on their way to the LRU have one
 * more. */
static __always_inline int unexplained(__u64 flags, int refs, int mapcount)
{
	if (!bit(flags, bit_lru))
		return 0;
	refs -= mapcount + 1;
	return refs - (bit(flags, bit_swapcache) && bit(flags, bit_swapbacked));
}

static __always_inline void describe(struct census_pin *pin, const char *p)
{
	__u64 mapping = word(p, bpf_core_field_offset(struct folio, mapping));
	struct address_space *space = (void *)(mapping & ~3ull);
	struct inode *inode;

	pin->index = word(p, bpf_core_field_offset(struct folio, index));
	pin->inode = pin->ino = pin->dev = 0;
	pin->memory = CENSUS_NONE;
	if ((mapping & 3) == 1)
		pin->memory = CENSUS_ANON;
	else if ((mapping & 3) == 3)
		pin->memory = CENSUS_KSM;
	else if (mapping && !(mapping & 3)) {
		inode = BPF_CORE_READ(space, host);
		if (!inode)
			return;
		pin->memory = CENSUS_FILE;
		pin->inode = (__u64)inode;
		pin->ino = BPF_CORE_READ(inode, i_ino);
		pin->dev = BPF_CORE_READ(inode, i_sb, s_dev);
	}
}

/* A page that looks as if it were pinned. Not static: so it is verified once, not for each page of the
 * window. */
__attribute__((noinline)) int consider(__u64 pfn, __u32 number)
{
	const char *p = window + (number & (CENSUS_WINDOW - 1)) * CENSUS_PAGE_SIZE;
	__u64 flags = word(p, 0), addr = vmemmap + pfn * CENSUS_PAGE_SIZE;
	int refs = half(p, off_refcount), mapcount = half(p, off_mapcount), extra = 0;
	__u32 pins_of = 0, nr = 1, key = nr_pins;
	struct census_pin *pin;

	if (word(p, off_tail) & 1)
		return 0; /* it is counted at its head */
	if (bit(flags, bit_head)) {
		pins_of = at(addr, off_pincount);
		nr = at(addr, off_nr_pages);
		if (pins_of > (__u32)refs) /* a pin is a reference, too: this is something else */
			return 0;
	} else {
		if (mapcount < -1)
			mapcount = -1; /* the number says what kind of page it is */
		if (refs - (mapcount + 1) >= CENSUS_PIN_BIAS)
			pins_of = (__u32)(refs - (mapcount + 1)) / CENSUS_PIN_BIAS;
		refs -= pins_of * CENSUS_PIN_BIAS;
		if ((word(p, bpf_core_field_offset(struct folio, mapping)) & 3) == 1 && mapcount >= 0)
			extra = unexplained(flags, refs, mapcount);
	}
	if (!pins_of && extra <= 0 && !everything)
		return 0;
	pin = bpf_map_lookup_elem(&pins, &key);
	if (!pin)
		return 0;
	describe(pin, p);
	pin->pfn = pfn;
	pin->nr_pages = nr ? nr : 1;
	pin->pins = pins_of;
	pin->refs = extra > 0 ? extra : 0;
	nr_pins++;
	return 0;
}

static __always_inline int suspicious(const char *p)
{
	int refs = half(p, off_refcount);

	if (refs <= 0)
		return 0;
	if (refs >= CENSUS_REF_LIMIT || bit(word(p, 0), bit_head) || everything)
		return 1;
	return refs > 1 && refs != half(p, off_mapcount) + 1 &&
	       (word(p, bpf_core_field_offset(struct folio, mapping)) & 3) == 1;
}

static long look_at_window(__u64 number, void *arg)
{
	__u64 first = first_pfn + number * CENSUS_WINDOW, left = nr_pfns - number * CENSUS_WINDOW;
	__u32 nr = left < CENSUS_WINDOW ? left : CENSUS_WINDOW;
	void *from = (void *)(vmemmap + first * CENSUS_PAGE_SIZE);

	if (nr < 1 || nr > CENSUS_WINDOW)
		return 1;
	if (bpf_probe_read_kernel(window, nr * CENSUS_PAGE_SIZE, from)) {
		unreadable += nr;
		return 0;
	}
	scanned += nr;
	for (__u32 i = 0; i < CENSUS_WINDOW; i++) {
		if (i >= nr)
			break;
		if (suspicious(window + i * CENSUS_PAGE_SIZE))
			consider(first + i, i);
	}
	return 0;
}

SEC("syscall") int scan(void *ctx)
{
	bpf_loop((nr_pfns + CENSUS_WINDOW - 1) / CENSUS_WINDOW, look_at_window, (void *)0, 0);
	return 0;
}

/* 1 to CENSUS_PEEK bytes; the length is bounded by arithmetic, as clang moves what it compares to
 * another register. */
SEC("syscall") int peek(void *ctx)
{
	peek_err = bpf_probe_read_kernel(peeked, ((peek_len - 1) & (CENSUS_PEEK - 1)) + 1,
					 (void *)peek_addr);
	return 0;
}

/* ------------------------------------------------------------------------------ what is open -- */

#define ANON_INODE_MAGIC 0x09041934
#define DMA_BUF_MAGIC	 0x444d4142
#define PIPE_MAGIC	 0x50495045
#define SOCKET_MAGIC	 0x534f434b
#define AF_XDP		 44
#define KIND_OF_FILE	 0170000
#define CHARACTER_DEVICE 0020000

static __always_inline int fill(struct census_file *f, struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct socket *socket;

	f->mode = BPF_CORE_READ(inode, i_mode);
	f->magic = BPF_CORE_READ(inode, i_sb, s_magic);
	f->private_data = (__u64)BPF_CORE_READ(file, private_data);
	if (f->magic == SOCKET_MAGIC) {
		socket = (void *)f->private_data;
		f->family = BPF_CORE_READ(socket, sk, __sk_common.skc_family);
		if (f->family != AF_XDP)
			return 0;
		f->private_data = (__u64)BPF_CORE_READ(socket, sk);
	} else if ((f->mode & KIND_OF_FILE) != CHARACTER_DEVICE && f->magic != ANON_INODE_MAGIC &&
		   f->magic != DMA_BUF_MAGIC && f->magic != PIPE_MAGIC)
		return 0;
	f->rdev = BPF_CORE_READ(inode, i_rdev);
	f->ino = BPF_CORE_READ(inode, i_ino);
	bpf_probe_read_kernel_str(f->name, sizeof(f->name),
				  BPF_CORE_READ(file, f_path.dentry, d_name.name));
	return 1;
}

SEC("iter/task_file") int files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct census_file f = {};

	if (!task || !file || !fill(&f, file))
		return 0;
	f.pid = BPF_CORE_READ(task, tgid);
	f.fd = ctx->fd;
	f.mm = (__u64)BPF_CORE_READ(task, mm);
	bpf_probe_read_kernel_str(f.program, sizeof(f.program), &task->comm);
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	return 0;
}

static __always_inline __u64 ring_of(struct file *file)
{
	char name[8] = {};

	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	if (name[0] != '[' || name[1] != 'i' || name[2] != 'o' || name[3] != '_')
		return 0;
	return (__u64)BPF_CORE_READ(file, private_data);
}

SEC("iter/task_vma") int vmas(struct bpf_iter__task_vma *ctx)
{
	struct task_struct *task = ctx->task;
	struct vm_area_struct *vma = ctx->vma;
	struct census_vma v = {};
	struct inode *inode;
	struct file *file;

	if (!task || !vma)
		return 0;
	v.pid = BPF_CORE_READ(task, tgid);
	v.tid = BPF_CORE_READ(task, pid);
	v.start = BPF_CORE_READ(vma, vm_start);
	v.end = BPF_CORE_READ(vma, vm_end);
	v.pgoff = BPF_CORE_READ(vma, vm_pgoff);
	v.anon = BPF_CORE_READ(vma, anon_vma) != (void *)0;
	file = BPF_CORE_READ(vma, vm_file);
	if (file) {
		inode = BPF_CORE_READ(file, f_inode);
		v.ino = BPF_CORE_READ(inode, i_ino);
		v.dev = BPF_CORE_READ(inode, i_sb, s_dev);
		if (BPF_CORE_READ(inode, i_sb, s_magic) == ANON_INODE_MAGIC)
			v.private_data = ring_of(file);
	}
	if (v.anon || file)
		bpf_seq_write(ctx->meta->seq, &v, sizeof(v));
	return 0;
}

SEC("iter/task") int tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct census_task t = {};

	if (!task)
		return 0;
	t.uring = (__u64)BPF_CORE_READ(task, io_uring);
	t.pid = BPF_CORE_READ(task, tgid);
	if (t.uring)
		bpf_seq_write(ctx->meta->seq, &t, sizeof(t));
	return 0;
}
