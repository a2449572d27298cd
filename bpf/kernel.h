/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The few members of the kernel's structures that programs here name. Their places are found when the
 * program is loaded (CO-RE); only those are here that every kernel from 6.1 on has under this name. What
 * differs is found by the command (pins_kernel.c) and passed as a constant.
 */
#ifndef PINLEASE_KERNEL_H
#define PINLEASE_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_F_NO_PREALLOC = 1 << 0,
	BPF_F_MMAPABLE = 1 << 10,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct atomic {
	int counter;
};

struct super_block {
	__u32 s_dev;
	unsigned long s_magic, s_blocksize;
};

struct inode {
	__u16 i_mode;
	__u32 i_rdev;
	struct super_block *i_sb;
	unsigned long i_ino;
	__s64 i_size;
	__u32 i_generation;
};

struct iattr {
	unsigned int ia_valid;
	__s64 ia_size;
};

struct address_space {
	struct inode *host;
};

struct folio {
	unsigned long flags;
	struct address_space *mapping;
	unsigned long index;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct qstr d_name;
	struct inode *d_inode;
};

struct path {
	struct dentry *dentry;
};

struct file_operations {
	void *remap_file_range;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
	struct file_operations *f_op;
	void *private_data;
};

struct sock_common {
	unsigned short skc_family;
};

struct sock {
	struct sock_common __sk_common;
};

struct socket {
	struct sock *sk;
};

struct vm_area_struct {
	unsigned long vm_start, vm_end, vm_pgoff;
	struct file *vm_file;
	void *anon_vma, *vm_mm;
};

struct pagetable_move_control { /* since 6.16 */
	struct vm_area_struct *old;
	unsigned long old_addr, old_end, len_in;
};

struct mm_walk {
	struct vm_area_struct *vma;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct thread_info {
	__u32 status; /* x86 */
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int flags, ptrace;
	int pid, tgid;
	char comm[16];
	void *mm, *io_uring;
	struct task_struct *group_leader;
	__u64 start_boottime;
	struct files_struct *files;
	void *task_works;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
};

#pragma clang attribute pop

#ifdef __TARGET_ARCH_x86
struct pt_regs { /* what kprobes are given; its layout is the processor's */
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#endif

#endif
