/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The child that looks at tasks. A page of a task's can be one that a server never brings, and a server
 * can keep a process inside of execve() (its last writes to a mapped file), where all who look at it in
 * /proc wait; some of these waits no signal ends. Invariants:
 * - who asks waits until the child has slept in the kernel twice in a row when looked at; it never does
 *   by itself, and one that could run but doesn't come to it is waited for some more;
 * - a child that is late is killed and never asked again, its slot is nobody's until it has been reaped;
 * - a user who has a late one isn't looked at, nor soon after, so he takes a small share of the time;
 * - the child has no descriptor of anybody's, and what it shares is its slot: it can outlive all.
 *
 * A slot is who asks' while asked == answered, else the child's.
 */
#include "os/peek.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "os/aside.h"
#include "os/clock.h"
#include "os/task.h"
#include "os/text.h"

#define CHECK_NS   10000000u
#define CHECKS	   2
#define STARVED_NS 1000000000u
#define AGAIN_NS   10000000000u /* after a late one */

struct pl_peek_slot {
	_Atomic uint32_t asked, answered; /* counts */
	int (*fn)(void *arg);
	int result;
	_Alignas(16) char arg[PL_PEEK_ARG];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t ns)
{
	struct timespec t = {.tv_sec = ns / 1000000000u, .tv_nsec = ns % 1000000000u};

	syscall(SYS_futex, word, FUTEX_WAIT, value, ns ? &t : NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* ------------------------------------------------------------------------------------- the child -- */

/* System calls only: another thread may have had any lock when this was forked. */
__attribute__((noreturn)) static void child(struct pl_peek_slot *slot, pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "pinl-peek");
	if (!pl_own_table(-1, -1) && getppid() == parent)
		for (uint32_t n = 0;; n++) {
			while (atomic_load(&slot->asked) == n)
				futex_wait(&slot->asked, n, 0);
			syscall(SYS_close_range, STDERR_FILENO + 1, ~0u, 0);
			slot->result = slot->fn(slot->arg);
			atomic_store(&slot->answered, n + 1);
			futex_wake(&slot->answered);
		}
	syscall(SYS_exit_group, 0);
	__builtin_unreachable();
}

/* --------------------------------------------------------------------- children as processes -- */

static bool reaped(struct pl_peek_man *man, int flags)
{
	siginfo_t si = {0};

	if (man->pid && (waitid(P_PID, man->pid, &si, WEXITED | flags | __WALL) || si.si_pid))
		man->pid = 0;
	return !man->pid;
}

static void end(struct pl_peek_man *man)
{
	syscall(SYS_tgkill, man->pid, man->pid, SIGKILL);
}

/* Without a signal at its end, and not by clone3. */
static bool start(struct pl_peek *p, unsigned n)
{
	struct pl_peek_slot *slot = &p->slots[n];
	pid_t parent = getpid(), pid;
	sigset_t all, old;

	memset(slot, 0, sizeof *slot);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pid = (pid_t)syscall(SYS_clone, CLONE_FILES, NULL, NULL, NULL, NULL);
	if (!pid)
		child(slot, parent);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	p->men[n].pid = pid > 0 ? pid : 0;
	p->men[n].cpu = -1;
	return pid > 0;
}

/* His whose tasks can't be looked at now. */
static bool is_late(struct pl_peek *p, uid_t uid)
{
	uint64_t now = pl_clock_ns();
	bool his = false;

	for (struct pl_peek_man *man = p->men; man < p->men + PL_PEEK_MEN; man++) {
		if (man->late && reaped(man, WNOHANG) && now >= man->until_ns) {
			man->late = false;
			p->n_late--;
		}
		his |= man->late && man->uid == uid;
	}
	return his;
}

/* NULL: all are late, or none can be made. */
static struct pl_peek_man *man_now(struct pl_peek *p)
{
	if (p->men[p->now].pid && !p->men[p->now].late)
		return &p->men[p->now];
	for (unsigned n = 0; n < PL_PEEK_MEN; n++)
		if (!p->men[n].late && !p->men[n].pid) {
			p->now = n;
			return start(p, n) ? &p->men[n] : NULL;
		}
	return NULL;
}

/* The state of a child of ours, which is always told. */
static char state_of(pid_t pid)
{
	char path[32], buf[256], *at;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	pl_text_start(path, buf, sizeof buf);
	at = strrchr(buf, ')');
	return at && at[1] ? at[2] : 0;
}

/* To this processor, which is free as soon as this thread waits: waking another takes longer than the
 * look. */
static void come_here(struct pl_peek_man *man)
{
	int cpu = sched_getcpu();
	cpu_set_t set;

	if (cpu == man->cpu)
		return;
	man->cpu = cpu;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	syscall(SYS_sched_setaffinity, man->pid, sizeof set, &set);
}

/* It isn't free after all. */
static void go_anywhere(struct pl_peek_man *man)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	if (syscall(SYS_sched_getaffinity, 0, sizeof set, &set) > 0)
		syscall(SYS_sched_setaffinity, man->pid, sizeof set, &set);
	man->cpu = -1;
}

static bool wait_for(struct pl_peek_man *man, struct pl_peek_slot *slot, uint32_t n)
{
	uint64_t start = pl_clock_ns(), now, check = start + CHECK_NS;
	int asleep = 0;

	while (atomic_load(&slot->answered) != n) {
		now = pl_clock_ns();
		if (now >= check) {
			asleep = state_of(man->pid) == 'R' ? 0 : asleep + 1;
			if (!asleep)
				go_anywhere(man);
			if (asleep == CHECKS || now - start >= STARVED_NS)
				return atomic_load(&slot->answered) == n;
			check = now + CHECK_NS;
		}
		futex_wait(&slot->answered, n - 1, check - now);
	}
	return true;
}

/* Nobody is blamed for one that has ended by itself. */
static void give_up(struct pl_peek *p, struct pl_peek_man *man, uid_t uid)
{
	if (reaped(man, WNOHANG))
		return;
	end(man);
	man->late = true;
	man->uid = uid;
	man->until_ns = pl_clock_ns() + AGAIN_NS;
	p->n_late++;
}

/* Who has to answer for the task. Before 6.13 the effective one. */
static uid_t user_of(pid_t tid)
{
	char path[32];
	struct statx st;
	uid_t uid = -1;
	pid_t pid;

	snprintf(path, sizeof path, "/proc/%d", tid);
	if (pl_task_owner(tid, &pid, &uid) && !syscall(SYS_statx, AT_FDCWD, path, 0, STATX_UID, &st))
		uid = st.stx_uid;
	return uid;
}

int pl_peek_ask(struct pl_peek *p, pid_t whose, int (*fn)(void *arg), void *arg, size_t len)
{
	struct pl_peek_man *man = p->n_late && is_late(p, user_of(whose)) ? NULL : man_now(p);
	struct pl_peek_slot *slot;
	uint32_t n;

	if (len > PL_PEEK_ARG)
		return -E2BIG;
	if (!man)
		return -ETIMEDOUT;
	slot = &p->slots[p->now];
	n = atomic_load(&slot->asked) + 1;
	slot->fn = fn;
	memcpy(slot->arg, arg, len);
	come_here(man);
	atomic_store(&slot->asked, n);
	futex_wake(&slot->asked);
	if (!wait_for(man, slot, n)) {
		give_up(p, man, user_of(whose));
		return -ETIMEDOUT;
	}
	memcpy(arg, slot->arg, len);
	return slot->result;
}

/* Before it does what it is asked it closes what it has. */
static int let_go(void *arg)
{
	return 0;
}

int pl_peek_take(struct pl_peek *p, int theirs)
{
	int pidfd = syscall(SYS_pidfd_open, p->men[p->now].pid, 0), fd;
	char nothing = 0;

	fd = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, theirs, 0);
	if (fd < 0)
		fd = -errno;
	if (pidfd >= 0)
		syscall(SYS_close, pidfd);
	pl_peek_ask(p, getpid(), let_go, &nothing, sizeof nothing);
	return fd;
}

/* ---------------------------------------------------------------------------- life of it all -- */

int pl_peek_open(struct pl_peek *p)
{
	void *at = mmap(NULL, PL_PEEK_MEN * sizeof *p->slots, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		return -errno;
	p->slots = at;
	atomic_store(&p->there, true);
	return 0;
}

void pl_peek_end(struct pl_peek *p)
{
	for (struct pl_peek_man *man = p->men; man < p->men + PL_PEEK_MEN; man++)
		if (man->pid && !reaped(man, WNOHANG)) {
			end(man);
			reaped(man, man->late ? WNOHANG : 0);
		}
}

void pl_peek_free(struct pl_peek *p)
{
	if (p->slots)
		munmap(p->slots, PL_PEEK_MEN * sizeof *p->slots);
}
