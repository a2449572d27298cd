/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What might wait for ever, or needs addresses that are taken here, happens in a child: a copy of this
 * process with the same descriptor table. Its descriptors are ours, so it keeps no ring alive by itself.
 *
 * Scratch: a fixed buffer keeps the address it was registered at, and requests are checked against that,
 * so the memory has to be mapped where the holder's is. In the child anything may be there: its stack,
 * its code, libc. So the last system calls are made by a few instructions in a page of their own, which
 * is moved out of the way and needs no memory but its list of calls. The ring pins the pages; that the
 * child ends doesn't matter to them.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/aside.h"
#include "os/clock.h"
#include "outside_int.h"

/* ---------------------------------------------------------------------------------- children -- */

static int result(const siginfo_t *si)
{
	if (si->si_code == CLD_EXITED)
		return -si->si_status;
	return -ENOMEM; /* the OOM killer: it has been told to take this one first */
}

/* Ended by the deadline? */
static bool ended(int pidfd, uint64_t deadline_ns)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	for (;;) {
		uint64_t now = pl_clock_ns(), left = deadline_ns > now ? deadline_ns - now : 0;
		struct timespec t = {left / 1000000000u, left % 1000000000u};
		int n = ppoll(&p, 1, &t, NULL);

		if (n > 0 || (!n && !left))
			return n > 0;
	}
}

/* False while one is left that hasn't ended. */
static bool reap(struct pl_outside_child *a)
{
	siginfo_t si;

	if (a->stuck < 0)
		return true;
	if (!ended(a->stuck, 0))
		return false;
	waitid(P_PIDFD, a->stuck, &si, WEXITED | __WALL);
	close(a->stuck);
	a->stuck = -1;
	return true;
}

/*
 * No signal at its end, so that nobody's SIGCHLD handler or wait() takes it for one of theirs. Not by
 * clone3, which systemd's RestrictNamespaces answers with ENOSYS.
 */
static pid_t copy_process(int *pidfd)
{
	return syscall(SYS_clone, CLONE_FILES | CLONE_PIDFD, NULL, pidfd, NULL, NULL);
}

int pl_outside_run(struct pl_outside_child *a, int fd, int (*fn)(const void *arg), const void *arg,
		   uint64_t deadline_ns)
{
	sigset_t all, old;
	siginfo_t si;
	int pidfd = -1;
	pid_t pid;

	if (!reap(a))
		return -ETIMEDOUT;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pid = copy_process(&pidfd);
	if (!pid) {
		/* One that is stuck outlives us, and whatever else it had would stay open for all. */
		pl_own_table(fd, fd);
		syscall(SYS_exit_group, -fn(arg));
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (pid < 0)
		return -errno;
	if (!ended(pidfd, deadline_ns)) {
		syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
		*a = (struct pl_outside_child){pidfd, pid};
		return -ETIMEDOUT;
	}
	while (waitid(P_PIDFD, pidfd, &si, WEXITED | __WALL) && errno == EINTR)
		;
	close(pidfd);
	return result(&si);
}

/* One that is stuck still becomes a zombie; there is nothing to wait with. */
void pl_outside_child_end(struct pl_outside_child *a)
{
	if (!reap(a))
		close(a->stuck);
	a->stuck = -1;
}

/* ----------------------------------------------------------------------------------- scratch -- */

#ifdef __x86_64__

/* A system call: number, arguments. */
struct call {
	long nr;
	unsigned long args[6];
	long pad;
};

/* The page that is moved. Makes one call after the other; at the first error exits with it. */
__asm__(".pushsection .text.pl_calls, \"ax\"\n"
	".balign 4096\n"
	".type pl_calls_page, @function\n"
	"pl_calls_page:\n"
	"	mov %rdi, %rbx\n"
	"1:	mov (%rbx), %rax\n"
	"	mov 8(%rbx), %rdi\n"
	"	mov 16(%rbx), %rsi\n"
	"	mov 24(%rbx), %rdx\n"
	"	mov 32(%rbx), %r10\n"
	"	mov 40(%rbx), %r8\n"
	"	mov 48(%rbx), %r9\n"
	"	syscall\n"
	"	add $64, %rbx\n"
	"	cmp $-4095, %rax\n"
	"	jb 1b\n"
	"	neg %eax\n"
	"	mov %eax, %edi\n"
	"	mov $231, %eax\n" /* exit_group */
	"	syscall\n"
	".balign 4096\n"
	".popsection\n");
extern char pl_calls_page[];

struct plan {
	struct call calls[3];
	struct io_uring_rsrc_update2 update;
	struct iovec iov;
};

/* Two pages that are not in the range, found near one of a few addresses far apart. */
static char *home(uintptr_t start, uintptr_t end)
{
	static const uintptr_t near[] = {0x10000000, 0x200000000000, 0x500000000000, 0};

	for (size_t i = 0; i < sizeof near / sizeof *near; i++) {
		char *p = mmap((void *)near[i], 2 * PL_PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p != MAP_FAILED && ((uintptr_t)p + 2 * PL_PAGE <= start || (uintptr_t)p >= end))
			return p;
	}
	return NULL;
}

/* This process is what a lack of memory kills, not the arbiter. And the kernel no longer looks at what
 * glibc has registered with it, which may be unmapped. */
static void prepare(void)
{
	struct rlimit rl;
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (write(fd, "1000", 4) != 4)
			errno = 0; /* then it is as likely as the arbiter */
		close(fd);
	}
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); /* pages of one size are accounted as they are counted */
	if (!getrlimit(RLIMIT_MEMLOCK, &rl)) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_MEMLOCK, &rl);
	}
	syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, RSEQ_FLAG_UNREGISTER,
		RSEQ_SIG);
}

static void make_plan(struct plan *p, int ring, const struct pl_outside_buf *b)
{
	uintptr_t start = b->start & ~(PL_PAGE - 1);
	size_t len = ((b->end + PL_PAGE - 1) & ~(PL_PAGE - 1)) - start;

	p->iov = (struct iovec){(void *)b->start, b->end - b->start};
	p->update =
		(struct io_uring_rsrc_update2){.offset = b->slot, .data = (uintptr_t)&p->iov, .nr = 1};
	p->calls[0] = (struct call){SYS_mmap,
				    {start, len, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0},
				    0};
	p->calls[1] = (struct call){
		SYS_io_uring_register,
		{ring, IORING_REGISTER_BUFFERS_UPDATE, (uintptr_t)&p->update, sizeof p->update},
		0};
	p->calls[2] = (struct call){SYS_exit_group, {0}, 0};
}

int pl_scratch_child(int ring, const struct pl_outside_buf *b)
{
	char *at = home(b->start & ~(PL_PAGE - 1), (b->end + PL_PAGE - 1) & ~(PL_PAGE - 1));
	void (*run)(const struct call *);
	struct plan *p = (void *)at;
	void *code;

	if (!at)
		return -EADDRINUSE;
	prepare();
	make_plan(p, ring, b);
	code = mremap(pl_calls_page, PL_PAGE, PL_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + PL_PAGE);
	if (code == MAP_FAILED)
		return -errno;
	memcpy(&run, &code, sizeof run);
	run(p->calls);
	__builtin_unreachable();
}

#else

int pl_scratch_child(int ring, const struct pl_outside_buf *b)
{
	return -EOPNOTSUPP; /* empty works */
}

#endif
