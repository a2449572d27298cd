/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which calls are stopped. What can take no page from a file passes within the kernel: by its number
 * alone (the kernel knows these in a bitmap and runs no filter), or by an argument in a register. Of
 * arguments behind a pointer the filter knows nothing, so those calls are always stopped.
 *
 * Invariant: each table of numbers that the kernel serves this process by has its own rules (x32 has
 * those of x86-64 with a bit set), and a call by any other table fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "run.h"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif

#define X32_BIT	 0x40000000u
#define MAX_CODE 512

enum test { ALWAYS, TRUNC, HAS, IS, SPACE };

#define STOP	  SECCOMP_RET_USER_NOTIF
#define FAIL(err) (SECCOMP_RET_ERRNO | (err))

struct rule {
	int nr;
	enum run_what what;
	uint32_t action;
	enum test test;
	unsigned arg;
	uint32_t value;
};

#define CUTS                                                                                            \
	(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_ZERO_RANGE |                       \
	 FALLOC_FL_INSERT_RANGE | 0x80 /* FALLOC_FL_WRITE_ZEROES */)

/* MADV_REMOVE by process_madvise() is younger than this (6.13), O_TRUNC of a file handle is nobody's. */
static const struct rule native[] = {
	{SYS_ftruncate, RUN_FTRUNCATE, STOP, ALWAYS},
	{SYS_truncate, RUN_TRUNCATE, STOP, ALWAYS},
	{SYS_fallocate, RUN_FALLOCATE, STOP, HAS, 1, CUTS},
	{SYS_openat, RUN_OPENAT, STOP, TRUNC, 2},
	{SYS_openat2, RUN_OPENAT2, STOP, ALWAYS},
#ifdef SYS_open
	{SYS_open, RUN_OPEN, STOP, TRUNC, 1},
	{SYS_creat, RUN_CREAT, STOP, ALWAYS},
#endif
	{SYS_madvise, RUN_MADVISE, STOP, IS, 2, MADV_REMOVE},
	{SYS_ioctl, RUN_IOCTL, STOP, SPACE, 1},
#ifdef __x86_64__
	{514, RUN_IOCTL, STOP, SPACE, 1}, /* of x32 */
#endif
	{SYS_process_madvise, RUN_NOTHING, FAIL(EINVAL), IS, 3, MADV_REMOVE},
	{SYS_open_by_handle_at, RUN_NOTHING, FAIL(EOPNOTSUPP), HAS, 2, O_TRUNC},
	{SYS_io_uring_setup, RUN_RING, STOP, ALWAYS},
};

#ifdef __x86_64__
#define NATIVE AUDIT_ARCH_X86_64
/* asm/unistd_32.h */
static const struct rule i386[] = {
	{93, RUN_FTRUNCATE, STOP, ALWAYS},
	{194, RUN_FTRUNCATE64, STOP, ALWAYS},
	{92, RUN_TRUNCATE, STOP, ALWAYS},
	{193, RUN_TRUNCATE64, STOP, ALWAYS},
	{324, RUN_FALLOCATE, STOP, HAS, 1, CUTS},
	{295, RUN_OPENAT, STOP, TRUNC, 2},
	{437, RUN_OPENAT2, STOP, ALWAYS},
	{5, RUN_OPEN, STOP, TRUNC, 1},
	{8, RUN_CREAT, STOP, ALWAYS},
	{219, RUN_MADVISE, STOP, IS, 2, MADV_REMOVE},
	{54, RUN_NOTHING, FAIL(ENOTTY), SPACE, 1},
	{440, RUN_NOTHING, FAIL(EINVAL), IS, 3, MADV_REMOVE},
	{342, RUN_NOTHING, FAIL(EOPNOTSUPP), HAS, 2, O_TRUNC},
	{425, RUN_RING, STOP, ALWAYS},
};
#elif defined __aarch64__
#define NATIVE AUDIT_ARCH_AARCH64
#else
#error "no rules for this machine's system calls"
#endif

#define NR(table) (sizeof(table) / sizeof *(table))

static const struct rule *find(const struct seccomp_data *data)
{
	const struct rule *rules = native;
	size_t n = NR(native);
	int nr = data->nr;

#ifdef __x86_64__
	if (data->arch == AUDIT_ARCH_I386) {
		rules = i386;
		n = NR(i386);
	} else {
		nr &= (int)~X32_BIT;
	}
#endif
	for (; n && rules->nr != nr; n--)
		rules++;
	return n ? rules : NULL;
}

enum run_what run_what(const struct seccomp_data *data)
{
	const struct rule *r = find(data);

	return r ? r->what : RUN_NOTHING;
}

bool run_is_32bit(const struct seccomp_data *data)
{
	return data->arch != NATIVE;
}

/* -------------------------------------------------------------------------------------- code -- */

struct code {
	struct sock_filter at[MAX_CODE];
	unsigned short n;
	bool nested, no_io_uring;
};

static void put(struct code *c, unsigned short code, uint32_t k, unsigned yes, unsigned no)
{
	c->at[c->n++] = (struct sock_filter)BPF_JUMP(code, k, yes, no);
}

#define LOAD(what)   put(c, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, what), 0, 0)
#define RETURN(what) put(c, BPF_RET | BPF_K, what, 0, 0)
#define AND(mask)    put(c, BPF_ALU | BPF_AND | BPF_K, mask, 0, 0)
/* How many instructions to pass over. */
#define IF_IS(value, yes, no) put(c, BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define IF_HAS(mask, yes, no) put(c, BPF_JMP | BPF_JSET | BPF_K, mask, yes, no)

static void load_arg(struct code *c, unsigned arg)
{
	LOAD(args[0]);
	c->at[c->n - 1].k += 8 * arg; /* the lower half: little endian */
}

static uint32_t action_of(const struct code *c, const struct rule *r)
{
	if (r->what == RUN_RING && c->no_io_uring)
		return FAIL(EPERM);
	if (c->nested)
		return SECCOMP_RET_ALLOW;
	return r->action;
}

/* Ends in a return on each way. */
static void put_test(struct code *c, const struct rule *r)
{
	if (r->test != ALWAYS)
		load_arg(c, r->arg);
	switch (r->test) {
	case ALWAYS:
		break;
	case TRUNC: /* a new file has no pages */
		IF_HAS(O_TRUNC, 0, 2);
		AND(O_CREAT | O_EXCL);
		IF_IS(O_CREAT | O_EXCL, 0, 1);
		RETURN(SECCOMP_RET_ALLOW);
		break;
	case HAS:
		IF_HAS(r->value, 1, 0);
		RETURN(SECCOMP_RET_ALLOW);
		break;
	case IS:
		IF_IS(r->value, 1, 0);
		RETURN(SECCOMP_RET_ALLOW);
		break;
	case SPACE: /* 'X' and 41, 43, 57: XFS's old calls, which every file system takes */
		AND(0xffff);
		IF_IS('X' << 8 | 41, 3, 0);
		IF_IS('X' << 8 | 43, 2, 0);
		IF_IS('X' << 8 | 57, 1, 0);
		RETURN(SECCOMP_RET_ALLOW);
		break;
	}
	RETURN(action_of(c, r));
}

/* Jumps over `what` go beyond 255 instructions. */
static unsigned short put_jump(struct code *c)
{
	put(c, BPF_JMP | BPF_JA, 0, 0, 0);
	return c->n - 1;
}

static void land(struct code *c, unsigned short jump)
{
	c->at[jump].k = c->n - jump - 1;
}

static void put_rules(struct code *c, uint32_t arch, const struct rule *rules, size_t n)
{
	unsigned short next, skip;

	IF_IS(arch, 1, 0);
	skip = put_jump(c);
	LOAD(nr);
	if (arch == AUDIT_ARCH_X86_64)
		AND(~X32_BIT);
	for (; n; n--, rules++) {
		IF_IS(rules->nr, 0, 0);
		next = c->n - 1;
		put_test(c, rules);
		c->at[next].jf = c->n - next - 1;
	}
	RETURN(SECCOMP_RET_ALLOW);
	land(c, skip);
}

static void make(struct code *c)
{
	LOAD(arch);
	put_rules(c, NATIVE, native, NR(native));
#ifdef __x86_64__
	put_rules(c, AUDIT_ARCH_I386, i386, NR(i386));
#endif
	RETURN(FAIL(ENOSYS));
}

static long install(struct sock_fprog *p, unsigned long flags)
{
	long fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, p);

	return fd < 0 ? -errno : fd;
}

/* Without CAP_SYS_ADMIN a filter is only for who can gain no privilege by exec any more. */
static long install_anyhow(struct sock_fprog *p, unsigned long flags)
{
	long fd = install(p, flags);

	if (fd == -EACCES && !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fd = install(p, flags);
	return fd;
}

int run_filter(bool nested, bool no_io_uring, int *listener, const char **step)
{
	unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
	struct code c = {.no_io_uring = no_io_uring};
	struct sock_fprog p = {.filter = c.at};
	long fd;

	make(&c);
	p.len = c.n;
	fd = install_anyhow(&p, flags);
	if (fd == -EBUSY && nested) { /* the outer one stops them, or has refused them */
		c = (struct code){.nested = true, .no_io_uring = no_io_uring};
		make(&c);
		*listener = -1;
		return no_io_uring ? (int)install_anyhow(&p, 0) : 0;
	}
	*step = fd == -EBUSY ? "somebody supervises this process already, and there can be one only; a "
			       "container's runtime?"
		: fd == -EINVAL ? "it needs seccomp with user notification, Linux 5.19"
				: "seccomp";
	if (fd < 0)
		return (int)fd;
	*listener = (int)fd;
	return 0;
}
