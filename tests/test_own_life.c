/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I8 with processes and threads that begin and end: actors that are stopped or killed while they are
 * held, and holders that fork, spawn, exec and exit in the middle of recalls.
 */
#include "own_rig.h"

#include <spawn.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

/* ThreadSanitizer lets no child of a process with threads have threads, and makes vfork() a fork(). */
#ifdef __SANITIZE_THREAD__
#define CHILDREN_LIVE 0
#else
#define CHILDREN_LIVE 1
#endif

/* LeakSanitizer stops all threads at exit and waits until they stand, which one that is held can't. */
#ifdef __SANITIZE_ADDRESS__
#define EXIT _exit
#else
#define EXIT exit
#endif

extern char **environ;

static void discard(void *arg)
{
	must_ok(madvise(arg, SIZE, MADV_DONTNEED));
}

/* ---------------------------------------------------------------------------- an actor is killed -- */

/* A file, leased, and another process that is held in truncating it. */
struct held {
	struct own o;
	struct own_memory m;
	struct pinl_lease *lease;
	pid_t actor;
};

static void hold_process(struct held *h)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);

	own_open(&h->o, "soft", 0, NULL);
	if (!own_files(&h->o))
		exit(77);
	own_map(&h->m, 'f');
	h->lease = own_lease(&h->o, h->m.va, SIZE, h->m.flags, &policy);
	h->actor = fork();
	if (!h->actor)
		_exit(ftruncate(h->m.fd, PAGE) != 0);
	own_wait(&h->o.noticed);
	own_wait_blocked(h->actor, SYS_ftruncate);
}

/* Nothing of the change stays behind: neither on the list of those held nor as a gate. */
static void let_go_and_lease_again(struct held *h)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);

	pinl_unmap_range(h->lease);
	pinl_unmap_range(own_lease_again(&h->o, h->m.va, PAGE, h->m.flags, &policy));
	must_ok(ftruncate(h->m.fd, SIZE));
	pinl_unmap_range(own_lease_again(&h->o, h->m.va, SIZE, h->m.flags, &policy));
	own_unmap(&h->m);
	own_close(&h->o);
}

ISOLATED(an_actor_killed_while_held_changes_nothing)
{
	struct held h;
	int status;

	hold_process(&h);
	must_ok(kill(h.actor, SIGKILL));
	must(waitpid(h.actor, &status, 0) == h.actor && WIFSIGNALED(status));
	must(own_size(h.m.fd) == (off_t)SIZE && h.m.va[SIZE - 1] == 'f');
	must_ok(pinl_quiesced(h.lease));
	let_go_and_lease_again(&h);
}

/* Killed, and then the lease ends without an answer to the notice. */
ISOLATED(an_actor_is_killed_and_the_lease_just_ends)
{
	struct held h;

	hold_process(&h);
	must_ok(kill(h.actor, SIGKILL));
	must(waitpid(h.actor, NULL, 0) == h.actor);
	let_go_and_lease_again(&h);
}

ISOLATED(an_actor_stopped_while_held)
{
	struct held h;
	int status;

	hold_process(&h);
	must_ok(kill(h.actor, SIGSTOP)); /* it stops when its call is over */
	must(waitpid(h.actor, &status, WUNTRACED | WNOHANG) == 0);
	must_ok(pinl_quiesced(h.lease));
	must(waitpid(h.actor, &status, WUNTRACED) == h.actor && WIFSTOPPED(status));
	must(own_size(h.m.fd) == (off_t)PAGE);
	must_ok(kill(h.actor, SIGCONT));
	must(waitpid(h.actor, &status, 0) == h.actor && !status);
	let_go_and_lease_again(&h);
}

/* ------------------------------------------------------------------------- a thread is stopped -- */

static sem_t blocked, go;

static void block(int sig)
{
	sem_post(&blocked);
	own_wait(&go);
}

/* A handler stops the thread as soon as it has been let go; its change is over by then. */
ISOLATED(a_thread_stopped_by_a_handler)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct sigaction sa = {.sa_handler = block};
	struct pinl_lease *lease;
	struct own_memory m;
	struct own_thread t;
	struct own o;

	sem_init(&blocked, 0, 0);
	sem_init(&go, 0, 0);
	must_ok(sigaction(SIGUSR1, &sa, NULL));
	own_open(&o, "soft", 0, NULL);
	own_map(&m, 'a');
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	own_start(&t, discard, m.va);
	own_wait(&o.noticed);
	must_ok(syscall(SYS_tgkill, getpid(), t.tid, SIGUSR1));
	must_ok(pinl_quiesced(lease));
	own_wait(&blocked);
	pinl_unmap_range(lease);
	pinl_unmap_range(own_lease_again(&o, m.va, SIZE, m.flags, &policy));
	sem_post(&go);
	own_join(&t);
	own_unmap(&m);
	own_close(&o);
}

/* What the holder does below while this process stops one of its threads. */
static void traced_holder(int to, int from)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct pinl_lease *lease, *other;
	struct own_memory m, more;
	struct own_thread t, t2;
	struct own o;
	char c;

	own_open(&o, "soft", 0, NULL);
	own_map(&m, 'a');
	own_map(&more, 'a');
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	other = own_lease(&o, more.va, SIZE, more.flags, &policy);
	own_start(&t, discard, m.va);
	own_wait(&o.noticed);
	must(write(to, (pid_t *)&t.tid, sizeof(pid_t)) == sizeof(pid_t));
	must(read(from, &c, 1) == 1); /* it stops when it is let go */
	must_ok(pinl_quiesced(lease));
	own_start(&t2, discard, more.va);
	own_wait(&o.noticed);
	must_ok(pinl_quiesced(other));
	own_join(&t2);
	must(!t.done);
	must(write(to, &c, 1) == 1);
	own_join(&t);
	pinl_unmap_range(lease);
	pinl_unmap_range(other);
	pinl_unmap_range(own_lease_again(&o, m.va, SIZE, m.flags, &policy));
	own_unmap(&m);
	own_unmap(&more);
	own_close(&o);
}

ISOLATED(a_thread_stopped_by_a_debugger)
{
	int to[2], from[2], status;
	pid_t holder, tid;
	char c = 0;

	must(!pipe(to) && !pipe(from));
	holder = fork();
	if (!holder) {
		traced_holder(from[1], to[0]);
		exit(0);
	}
	must(read(from[0], &tid, sizeof tid) == sizeof tid);
	must_ok(ptrace(PTRACE_SEIZE, tid, NULL, NULL));
	must_ok(ptrace(PTRACE_INTERRUPT, tid, NULL, NULL));
	must(write(to[1], &c, 1) == 1);
	must(read(from[0], &c, 1) == 1);
	must(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status));
	must_ok(ptrace(PTRACE_DETACH, tid, NULL, NULL));
	must(waitpid(holder, &status, 0) == holder && !status);
}

/* --------------------------------------------------------------- the holder makes processes -- */

/* What a child may do with what it inherited: be told that it has nothing, and change its own memory. */
static int in_child(struct own *o, struct pinl_lease *lease, char *va)
{
	struct pinl_policy policy = own_recall(0, PINL_THEN_FAIL);
	struct pinl_lease *l;

	if (pinl_lease_check(lease) != -ESTALE || pinl_quiesced(lease) != -ESTALE ||
	    pinl_munmap(o->ctx, va, SIZE) != -ESTALE ||
	    pinl_map_range(o->dev, (uintptr_t)va, (uintptr_t)va + SIZE, PINNED, &policy, NULL, &l) !=
		    -ESTALE)
		return 1;
	pinl_unmap_range(lease);
	if (madvise(va, PAGE, MADV_DONTNEED) || munmap(va, SIZE))
		return 2;
	pinl_device_close(o->dev);
	pinl_close(o->ctx);
	return 0;
}

static void wait_for(pid_t pid)
{
	int status;

	must(pid > 0);
	must(waitpid(pid, &status, 0) == pid && !status);
}

/* While one thread is held, every way to make a process works, and disturbs neither hold nor lease. */
ISOLATED(processes_made_during_a_recall)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	char *const args[] = {"true", NULL};
	struct pinl_lease *lease, *other;
	struct own_memory m, more;
	struct own_thread t;
	struct own o;
	pid_t pid;

	own_open(&o, "uring", 0, NULL);
	own_map(&m, 'a');
	own_map(&more, 'a');
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	other = own_lease(&o, more.va, SIZE, more.flags, &policy);
	own_start(&t, discard, m.va);
	own_wait(&o.noticed);
	pid = fork();
	if (!pid)
		_exit(in_child(&o, lease, m.va));
	wait_for(pid);
	pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	if (!pid)
		_exit(in_child(&o, lease, m.va));
	wait_for(pid);
	must_ok(posix_spawnp(&pid, "true", NULL, NULL, args, environ));
	wait_for(pid);
	pid = vfork();
	if (!pid) {
		execvp("true", args);
		_exit(1);
	}
	wait_for(pid);
	must(!t.done);
	must_ok(pinl_quiesced(lease));
	own_join(&t);
	must(settled_check(other) == 0);
	pinl_unmap_range(lease);
	pinl_unmap_range(other);
	own_unmap(&m);
	own_unmap(&more);
	own_close(&o);
}

/* A child of vfork() has the same memory, so what it discards is the holder's; and files are files. */
#if CHILDREN_LIVE
ISOLATED(a_child_of_vfork_changes_leased_memory)
{
	struct pinl_policy policy = own_recall(20, PINL_THEN_FAIL);
	struct pinl_lease *lease, *file_lease;
	struct own_memory m, file;
	struct own o;
	pid_t pid;

	own_open(&o, "soft", 0, NULL);
	if (!own_files(&o))
		exit(77);
	own_map(&m, 'a');
	own_map(&file, 'f');
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	file_lease = own_lease(&o, file.va, SIZE, file.flags, &policy);
	pid = vfork();
	if (!pid) {
		syscall(SYS_madvise, m.va, SIZE, MADV_DONTNEED);
		syscall(SYS_ftruncate, file.fd, 0);
		_exit(0);
	}
	wait_for(pid);
	own_stale(lease);
	own_stale(file_lease);
	pinl_unmap_range(lease);
	pinl_unmap_range(file_lease);
	own_unmap(&m);
	own_unmap(&file);
	own_close(&o);
}

#endif

/* ------------------------------------------------------------------- forks and recalls at once -- */

struct recaller {
	struct own *o;
	char kind;
	atomic_int *stop;
	struct own_thread t;
};

/* Leases of its own and changes of them, each with another outcome. */
static void recall_on(void *arg)
{
	struct recaller *r = arg;

	for (unsigned i = 0; !*r->stop; i++) {
		struct pinl_policy policy = own_recall(i % 2, i % 3);
		struct own_memory m;
		struct pinl_lease *lease;

		own_map(&m, r->kind);
		lease = own_lease_again(r->o, m.va, SIZE, m.flags, &policy);
		if (r->kind == 'm')
			must_ok(pinl_ftruncate(r->o->ctx, m.fd, 0));
		else
			discard(m.va);
		own_stale(lease);
		pinl_unmap_range(lease);
		own_unmap(&m);
	}
}

/* A child may have a context of its own. */
static int new_life(void)
{
	struct own o;
	struct own_memory m;

	own_open(&o, "soft", 0, NULL);
	own_map(&m, 'a');
	for (int i = 0; i < 2; i++) {
		struct pinl_policy policy = own_recall(0, i ? PINL_THEN_COPY : PINL_THEN_FAIL);
		struct pinl_lease *lease = own_lease_again(&o, m.va, SIZE, m.flags, &policy);

		discard(m.va);
		own_stale(lease);
		pinl_unmap_range(lease);
	}
	own_unmap(&m);
	pinl_close(o.ctx); /* the rings it inherited still have the parent's buffers */
	return 0;
}

ISOLATED(forks_and_recalls_at_once)
{
	enum { N = 3, FORKS = 40 };
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct recaller r[N];
	atomic_int stop = 0;
	struct own_memory m;
	struct pinl_lease *lease;
	struct own o;

	own_open(&o, "soft", 0, NULL);
	own_map(&m, 'a');
	lease = own_lease(&o, m.va, SIZE, m.flags, &policy);
	for (int i = 0; i < N; i++) {
		r[i] = (struct recaller){.o = &o, .kind = i ? 'm' : 'a', .stop = &stop};
		own_start(&r[i].t, recall_on, &r[i]);
	}
	for (int i = 0; i < FORKS; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(i % 4 || !CHILDREN_LIVE ? in_child(&o, lease, m.va) : new_life());
		wait_for(pid);
	}
	stop = 1;
	for (int i = 0; i < N; i++)
		own_join(&r[i].t);
	must(settled_check(lease) == 0 && m.va[0] == 'a');
	pinl_unmap_range(lease);
	own_unmap(&m);
	own_close(&o);
}

/* ------------------------------------------------------------------------- the holder is gone -- */

/*
 * A holder with a thread of its own held for one lease and a process held for the other; then it becomes
 * another program that lives on, or exits. The actor goes on in any case.
 */
static void holder_with_held(struct own_memory *file, int go_on, int becomes)
{
	struct pinl_policy policy = own_recall(LONG, PINL_THEN_FAIL);
	struct own_memory m;
	struct own_thread t;
	struct own o;
	char c;

	own_open(&o, "soft", 0, NULL);
	if (!own_files(&o))
		exit(77);
	own_map(&m, 'a');
	own_lease(&o, m.va, SIZE, m.flags, &policy);
	own_lease(&o, file->va, SIZE, file->flags, &policy);
	own_start(&t, discard, m.va);
	own_wait(&o.noticed);
	must(write(STDOUT_FILENO, "r", 1) == 1); /* the file is leased: let the actor begin */
	own_wait(&o.noticed);
	must(read(go_on, &c, 1) == 1);
	if (!becomes)
		EXIT(0);
	dup2(go_on, STDIN_FILENO);
	execlp("cat", "cat", NULL);
	_exit(1);
}

static void lose_holder(int becomes)
{
	int go_on[2], ready[2], status;
	struct own_memory file;
	pid_t holder, actor;
	char c = 0;

	own_map(&file, 'f');
	must_ok(pipe(go_on));
	must_ok(pipe(ready));
	holder = fork();
	if (!holder) {
		close(go_on[1]);
		dup2(ready[1], STDOUT_FILENO);
		holder_with_held(&file, go_on[0], becomes);
	}
	if (read(ready[0], &c, 1) == 1 && c == 's') {
		while (c != '\n' && read(ready[0], &c, 1) == 1)
			;
		print_message("skip: fanotify FAN_PRE_ACCESS\n");
		exit(77);
	}
	actor = fork();
	if (!actor)
		_exit(ftruncate(file.fd, 0) != 0);
	own_wait_blocked(actor, SYS_ftruncate);
	must(write(go_on[1], &c, 1) == 1);
	wait_for(actor);
	must(own_size(file.fd) == 0);
	must(waitpid(holder, &status, becomes ? WNOHANG : 0) == (becomes ? 0 : holder));
	close(go_on[1]);
	if (becomes)
		wait_for(holder);
	own_unmap(&file);
}

ISOLATED(the_holder_becomes_another_program)
{
	lose_holder(1);
}

ISOLATED(the_holder_exits)
{
	lose_holder(0);
}

static struct own closing;

static void use_while_closing(const struct pinl_event *ev, void *arg)
{
	int err;

	if (ev->type != PINL_EV_LEAK)
		return;
	usleep(100000); /* the context has nothing else to wait for by then */
	err = pinl_watch_fs(closing.ctx, own_dir());
	must(!err || err == -EOPNOTSUPP);
	closing.released++;
}

/* The header says that a callback may call anything but pinl_close(). */
ISOLATED(a_callback_may_call_while_the_context_is_closed)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .on_event = use_while_closing};
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	struct own_memory m;

	must_ok(pinl_open(&opts, &closing.ctx));
	must_ok(pinl_device_open(closing.ctx, "soft", NULL, &closing.dev));
	own_map(&m, 'a');
	own_lease(&closing, m.va, SIZE, m.flags, &keep);
	pinl_close(closing.ctx);
	must(closing.released == 1);
	own_unmap(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_callback_may_call_while_the_context_is_closed),
		cmocka_unit_test(an_actor_killed_while_held_changes_nothing),
		cmocka_unit_test(an_actor_is_killed_and_the_lease_just_ends),
		cmocka_unit_test(an_actor_stopped_while_held),
		cmocka_unit_test(a_thread_stopped_by_a_handler),
		cmocka_unit_test(a_thread_stopped_by_a_debugger),
		cmocka_unit_test(processes_made_during_a_recall),
#if CHILDREN_LIVE
		cmocka_unit_test(a_child_of_vfork_changes_leased_memory),
#endif
		cmocka_unit_test(forks_and_recalls_at_once),
		cmocka_unit_test(the_holder_becomes_another_program),
		cmocka_unit_test(the_holder_exits),
	};

	return cmocka_run_group_tests_name("own_life", tests, NULL, NULL);
}
