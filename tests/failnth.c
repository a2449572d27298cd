/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The injector; see failnth.h. Invariants: a thread that is asked about waits in the kernel with no lock
 * of the kernel's held; the asker's own calls are not filtered and it touches nothing but its stack and
 * the statics below, so it can't wait for whoever it is asked about.
 */
#include "failnth.h"

#include <errno.h>
#include <link.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <rdma/rdma_user_ioctl_cmds.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <fcntl.h>

#include "os/compat.h"

struct failure;
static struct {
	unsigned target, choice;
	int listener;
	pid_t process;
	atomic_int armed;
	atomic_uint points;
	atomic_long allocations;
	_Atomic pid_t own[16];
	_Atomic(const struct failure *) stays;
	char *fired; /* written once, by whoever reaches the target */
} it = {.listener = -1};

static _Thread_local int own_slot = -1;

/* -------------------------------------------------------------------------------- what can fail -- */

struct failure {
	long nr;
	unsigned long arg; /* the second argument it is for; 0: any */
	int err[2];
	const char *name;
};

#define CALL(name, ...)                                                                                 \
	{                                                                                               \
		SYS_##name, 0, {__VA_ARGS__}, #name                                                     \
	}
#define IOCTL(cmd, ...)                                                                                 \
	{                                                                                               \
		SYS_ioctl, cmd, {__VA_ARGS__}, #cmd                                                     \
	}
#define REGISTER(op, ...)                                                                               \
	{                                                                                               \
		SYS_io_uring_register, op, {__VA_ARGS__}, #op                                           \
	}
#define FCNTL(cmd, ...)                                                                                 \
	{                                                                                               \
		SYS_fcntl, cmd, {__VA_ARGS__}, #cmd                                                     \
	}

/* A call that isn't here, and isn't let through by the filter, fails with ENOMEM. */
static const struct failure failures[] = {
	CALL(mmap, ENOMEM),
	CALL(mremap, ENOMEM),
	CALL(mprotect, ENOMEM),
	CALL(madvise, ENOMEM, EAGAIN),
	CALL(clone3, EAGAIN, ENOMEM),
	CALL(clone, EAGAIN, ENOMEM),
	CALL(openat, EMFILE, EACCES),
	CALL(read, EINTR, EIO),
	CALL(pread64, EINTR),
	CALL(pwrite64, EINTR, ENOMEM),
	CALL(write, EINTR),
	CALL(lseek, EIO),
	CALL(fstat, ENOMEM, EIO),
	CALL(newfstatat, ENOMEM, EIO),
	CALL(statx, ENOMEM, EIO),
	CALL(fstatfs, ENOMEM, EIO),
	CALL(getdents64, ENOMEM, EIO),
	CALL(dup, EMFILE),
	FCNTL(F_DUPFD_CLOEXEC, EMFILE, EPERM),
	CALL(fcntl, EINVAL),
	CALL(ftruncate, EIO, EINTR),
	CALL(fallocate, ENOSPC, EINTR),
	CALL(memfd_create, EMFILE, ENOMEM),
	CALL(eventfd2, EMFILE, ENOMEM),
	CALL(timerfd_create, EMFILE, ENOMEM),
	CALL(poll, EINTR, ENOMEM),
	CALL(ppoll, EINTR, ENOMEM),
	CALL(userfaultfd, EPERM, EMFILE),
	IOCTL(UFFDIO_API, EINVAL),
	IOCTL(UFFDIO_REGISTER, ENOMEM, EBUSY),
	IOCTL(UFFDIO_UNREGISTER, ENOMEM),
	IOCTL(UFFDIO_COPY, EAGAIN, ENOMEM),
	IOCTL(PL_PROCMAP_QUERY, EINTR, ENOTTY),
	IOCTL(RDMA_VERBS_IOCTL, ENOMEM, EBUSY),
	CALL(io_uring_setup, ENOMEM, EPERM),
	REGISTER(IORING_UNREGISTER_BUFFERS, EINTR),
	REGISTER(IORING_REGISTER_SYNC_CANCEL, EINTR, EINVAL),
	REGISTER(IORING_REGISTER_BUFFERS_UPDATE, ENOMEM, EINTR),
	REGISTER(PL_IORING_REGISTER_CLONE_BUFFERS, ENOMEM, EINVAL),
	CALL(io_uring_register, ENOMEM, EINTR),
	CALL(io_uring_enter, ENOMEM, EINTR),
	CALL(fanotify_init, EMFILE, EPERM),
	CALL(fanotify_mark, ENOMEM, EOPNOTSUPP),
	CALL(inotify_init1, EMFILE, ENOMEM),
	CALL(inotify_add_watch, ENOSPC, ENOMEM),
	CALL(process_vm_readv, ENOMEM, EPERM),
	CALL(process_vm_writev, ENOMEM, EPERM),
	CALL(kcmp, EPERM, ENOSYS),
	CALL(close_range, ENOMEM, EMFILE),
	CALL(prctl, EPERM),
	CALL(prlimit64, EPERM),
	CALL(clock_nanosleep, EINTR),
	CALL(clock_gettime, EINVAL),
};

/* Never failed: they can't, or they have done their work all the same, or libc aborts. */
static const long passed[] = {
	SYS_futex,
	SYS_exit,
	SYS_exit_group,
	SYS_rt_sigreturn,
	SYS_rt_sigaction,
	SYS_rt_sigprocmask,
	SYS_sigaltstack,
	SYS_munmap,
	SYS_close,
	SYS_brk,
	SYS_set_robust_list,
	SYS_rseq,
	SYS_gettid,
	SYS_getpid,
	SYS_sched_yield,
	SYS_restart_syscall,
	SYS_arch_prctl,
	SYS_sched_getaffinity,
	SYS_inotify_rm_watch,
	SYS_timerfd_settime,
	SYS_tgkill,
	SYS_getppid,
};

static const struct failure *failure_of(long nr, unsigned long arg)
{
	static const struct failure other = {0, 0, {ENOMEM, 0}, NULL};

	for (size_t i = 0; i < sizeof failures / sizeof *failures; i++)
		if (failures[i].nr == nr && (!failures[i].arg || failures[i].arg == arg))
			return &failures[i];
	return &other;
}

/* --------------------------------------------------------------------------------- the decision -- */

/* True once, for the point that is to fail. */
static bool reached(void)
{
	return atomic_fetch_add(&it.points, 1) + 1 == it.target;
}

static bool is_own(pid_t tid)
{
	for (size_t i = 0; i < sizeof it.own / sizeof *it.own; i++)
		if (it.own[i] == tid)
			return true;
	return false;
}

/*
 * Background threads look at /proc and at queues over and over while they wait. The first rounds of each
 * loop are failed, call by call; what comes after is the same again.
 */
static bool is_repetition(const struct seccomp_notif *n)
{
	static struct {
		pid_t tid;
		int nr;
		unsigned arg, count;
	} seen[512];
	bool many = n->data.nr == SYS_ioctl || n->data.nr == SYS_io_uring_register;
	unsigned arg = many ? n->data.args[1] : 0;

	if ((pid_t)n->pid == it.process)
		return false;
	for (size_t i = 0; i < sizeof seen / sizeof *seen; i++) {
		if (seen[i].tid == (pid_t)n->pid && seen[i].nr == n->data.nr && seen[i].arg == arg)
			return ++seen[i].count > 8;
		if (!seen[i].tid) {
			seen[i].tid = n->pid;
			seen[i].nr = n->data.nr;
			seen[i].arg = arg;
			seen[i].count = 1;
			return false;
		}
	}
	return true;
}

/* A sanitizer's runtime, which trusts its calls. */
static int find_sanitizer(struct dl_phdr_info *info, size_t size, void *arg)
{
	uintptr_t(*found)[2] = arg;

	if (!info->dlpi_name || !strstr(info->dlpi_name, "san.so"))
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];

		if (p->p_type != PT_LOAD || !(p->p_flags & PF_X))
			continue;
		while ((*found)[1])
			found++;
		(*found)[0] = info->dlpi_addr + p->p_vaddr;
		(*found)[1] = (*found)[0] + p->p_memsz;
	}
	return 0;
}

static uintptr_t sanitizers[8][2];

static bool from_sanitizer(uintptr_t ip)
{
	for (int i = 0; sanitizers[i][1]; i++)
		if (ip >= sanitizers[i][0] && ip < sanitizers[i][1])
			return true;
	return false;
}

/* The error to give; 0: let it through. */
static int decide(const struct seccomp_notif *n)
{
	const struct failure *f = failure_of(n->data.nr, n->data.args[1]);

	int err = f->err[it.choice == 1];

	if (!it.armed || !err || is_own(n->pid) || from_sanitizer(n->data.instruction_pointer))
		return 0;
	if (it.stays == f)
		return err;
	/* What may be tried at once again, may be tried again. */
	if ((it.choice == 2 && (err == EINTR || err == EAGAIN)) || is_repetition(n) || !reached())
		return 0;
	if (it.choice == 2)
		it.stays = f;
	if (f->name)
		snprintf(it.fired, FAILNTH_WORDS, "%s with %s in %s", f->name, strerrorname_np(err),
			 (pid_t)n->pid == it.process ? "the caller" : "another thread");
	else
		snprintf(it.fired, FAILNTH_WORDS, "system call %d", n->data.nr);
	return err;
}

static void *asker(void *arg)
{
	struct seccomp_notif n;
	struct seccomp_notif_resp r;

	while (__atomic_load_n(&it.listener, __ATOMIC_ACQUIRE) < 0)
		sched_yield();
	for (;;) {
		memset(&n, 0, sizeof n);
		if (ioctl(it.listener, SECCOMP_IOCTL_NOTIF_RECV, &n))
			continue; /* the thread was killed meanwhile */
		r = (struct seccomp_notif_resp){.id = n.id, .error = -decide(&n)};
		if (!r.error)
			r.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		ioctl(it.listener, SECCOMP_IOCTL_NOTIF_SEND, &r);
	}
	return NULL;
}

/* ------------------------------------------------------------------------------------- starting -- */

static int install(void)
{
	const size_t n = sizeof passed / sizeof *passed;
	struct sock_filter code[1 + 2 * n + 1];
	struct sock_fprog prog = {.len = sizeof code / sizeof *code, .filter = code};
	int fd;

	code[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
					       offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < n; i++) {
		code[1 + 2 * i] =
			(struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, passed[i], 0, 1);
		code[2 + 2 * i] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	code[1 + 2 * n] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog);
	if (fd < 0)
		return -EOPNOTSUPP;
	__atomic_store_n(&it.listener, fd, __ATOMIC_RELEASE);
	return 0;
}

int failnth_start(unsigned n, unsigned choice, char fired[FAILNTH_WORDS])
{
	pthread_t thread;

	it.target = n;
	it.choice = choice;
	it.fired = fired;
	it.process = getpid();
	dl_iterate_phdr(find_sanitizer, sanitizers);
	if (pthread_create(&thread, NULL, asker, NULL))
		return -EAGAIN;
	return install();
}

void failnth_arm(bool on)
{
	it.armed = on;
	if (!on)
		it.stays = NULL;
}

void failnth_own(bool own)
{
	if (!own) {
		it.own[own_slot] = 0;
		own_slot = -1;
		return;
	}
	for (own_slot = 0;; own_slot++) {
		pid_t empty = 0;

		if (atomic_compare_exchange_strong(&it.own[own_slot], &empty, gettid()))
			return;
	}
}

unsigned failnth_points(void)
{
	return it.points;
}

/* ---------------------------------------------------------------------------------- allocations -- */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void __wrap_free(void *p);

static bool fails(const char *what)
{
	if (!it.armed || it.choice == 1 || own_slot >= 0 || !reached())
		return false;
	snprintf(it.fired, FAILNTH_WORDS, "%s", what);
	errno = ENOMEM;
	return true;
}

static void *counted(void *p)
{
	atomic_fetch_add(&it.allocations, p != NULL);
	return p;
}

void *__wrap_malloc(size_t size)
{
	return fails("malloc") ? NULL : counted(__real_malloc(size));
}

void *__wrap_calloc(size_t n, size_t size)
{
	return fails("calloc") ? NULL : counted(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t size)
{
	if (fails("realloc"))
		return NULL;
	return p ? __real_realloc(p, size) : counted(__real_realloc(p, size));
}

void __wrap_free(void *p)
{
	atomic_fetch_sub(&it.allocations, p != NULL);
	__real_free(p);
}

long failnth_allocations(void)
{
	return it.allocations;
}
