/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For the tests of I8: no deadlock with the watched program. Every test runs in a process of its own,
 * whose end is waited for by the test runner; one that hangs is killed with all it started, shown
 * thread by thread, and fails. So no check here waits for a time of its own: what must come is waited
 * for as long as it takes.
 */
#ifndef OWN_RIG_H
#define OWN_RIG_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include <liburing.h>

#include <pinlease/pinlease.h>

#include "check.h"

#define PAGE   4096ul
#define PAGES  16ul
#define SIZE   (PAGES * PAGE)
#define HANG_S 120
#define PINNED (PINL_WRITE | PINL_PIN)
#define LONG   600000 /* ms of grace or ceiling: longer than a test may take */

#define ISOLATED(name)                                                                                  \
	static void name##_(void);                                                                      \
	static void name(void **state)                                                                  \
	{                                                                                               \
		isolated(name##_);                                                                      \
	}                                                                                               \
	static void name##_(void)

/* cmocka's own checks don't work in a process or thread that isn't the runner's. */
#define must(what)                                                                                      \
	do {                                                                                            \
		if (!(what)) {                                                                          \
			fprintf(stderr, "# %s:%d: %s (%s; %m)\n", __FILE__, __LINE__, #what,            \
				pinl_error());                                                          \
			_exit(99);                                                                      \
		}                                                                                       \
	} while (0)
#define must_ok(call) must((call) == 0)

void isolated(void (*test)(void));

/* Wait, also when signals come. */
void own_wait(sem_t *sem);

/* A context with one device. Calls `notice`, if there is one, from its event thread. */
struct own {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	void (*notice)(struct own *o, const struct pinl_event *ev);
	void *_Atomic arg;
	sem_t noticed; /* posted before `notice` is called */
	atomic_int released, answered;
	struct io_uring ring;
	int has_ring;
};

/* For the next own_open(); 0: the default. */
extern unsigned own_drain_ms;

/* Called by a "hooked" device when it is told to map, unmap, stop or drain. */
extern void (*own_hook)(const char *call);

/* device: "soft", "uring", or "hooked", one that does no I/O; ceiling_ms 0: LONG. */
void own_open(struct own *o, const char *device, unsigned ceiling_ms,
	      void (*notice)(struct own *o, const struct pinl_event *ev));
/* I4 too: nothing is leased, pinned or registered any more. */
void own_close(struct own *o);

struct pinl_policy own_recall(unsigned grace_ms, enum pinl_then then);
struct pinl_lease *own_lease(struct own *o, void *va, size_t len, unsigned flags,
			     const struct pinl_policy *policy);

/* The same where a change of the range may just be ending. */
struct pinl_lease *own_lease_again(struct own *o, void *va, size_t len, unsigned flags,
				   const struct pinl_policy *policy);

/* Until the lease has been recalled and nothing of it is under way. */
void own_stale(struct pinl_lease *lease);

/* Memory to lease. kind: 'a'nonymous, 'm'emfd, 'f'ile on disk, shared, not pinned. */
struct own_memory {
	char kind;
	int fd;
	char *va;
	unsigned flags; /* of a lease on it */
};
void own_map(struct own_memory *m, char kind);
void own_unmap(struct own_memory *m);
/* The test has unmapped it: what is at its address now is somebody else's. */
void own_gone(struct own_memory *m);
off_t own_size(int fd);

/* Does the files source hold changes in the test's directory? If not, says "skip: why". */
int own_files(struct own *o);
const char *own_dir(void);

/* A thread that does one thing. */
struct own_thread {
	pthread_t thread;
	void (*fn)(void *arg);
	void *arg;
	_Atomic pid_t tid;
	atomic_int done;
};
void own_start(struct own_thread *t, void (*fn)(void *arg), void *arg);
void own_join(struct own_thread *t);

/* Wait until the thread or process sleeps in the system call nr. */
void own_wait_blocked(pid_t tid, long nr);

#endif
