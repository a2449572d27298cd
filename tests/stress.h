/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The stress test: what its parts share. A round is one context with three devices and SLOTS pieces of
 * memory. Owners make memory and lease it; anybody changes it, by raw and by explicit calls; others look
 * leases up and have the devices move data meanwhile; the event callback plays the holder.
 *
 * How the promises are seen:
 * I1 who changes memory notes before the call which lease there was, and publishes that after the call
 *    has returned (slot.changed). A lookup that begins after that and says "unchanged" is wrong. And a
 *    device write that ended well under an unchanged lease is seen by the CPU. Calls that overlap in
 * time on one memory count as one change, which is over when the last of them has returned: of two
 * threads that map over the same page, the second one's pages are the first one's, and not leased any
 * more. I3 a witness ring of the test's own pins the pages of each new memory. When they are reported as
 *    released it poisons them, transfers to the old addresses go on, and the poison must stay.
 * I5 each lease has a record: what was done to it and what was told of it. Both must agree.
 *
 * Locks, in this order: mem_lock (wr: make, dispose, take addresses away; rd: any other change),
 * file_lock, lease_lock (wr: publish and withdraw the lease, never held in a call; rd: use it), witness
 * lock.
 */
#ifndef STRESS_H
#define STRESS_H

#include <pinlease/pinlease.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE	4096ul
#define PAGES	8
#define SIZE	(PAGES * PAGE)
#define SLOTS	6
#define GROUP	3 /* the first slots, of which some map one file */
#define OWNERS	3
#define MOVERS	2
#define RECORDS 65536

enum kind { ANON, ANON_DEMAND, MEMFD, GROUPED, TMPFS, DISK_PRIVATE, DISK_DEMAND, KINDS };
enum device { SOFT, SOFT_REVOCABLE, URING, DEVICES };

enum count {
	N_MADE,
	N_MAPPED,
	N_NOT_MAPPED,
	N_UNMAPPED,
	N_QUIESCED,
	N_RAW,
	N_EXPLICIT,
	N_REFUSED,
	N_LOOKUPS,
	N_READS,
	N_WRITES,
	N_FLIGHTS,
	N_SEEN,	   /* device writes checked on the CPU's side */
	N_POISONS, /* pages */
	N_FORKS,
	N_COUNTS,
};
#define N_OPERATIONS N_SEEN /* those before it are operations, the others are checks and such */

/* A thread; the random numbers it gets are its own. */
struct actor {
	const char *name;
	int nr; /* of a mover: its lane; of an owner: its slots */
	uint64_t random;
	uint64_t n[N_COUNTS];
	pthread_t thread;
	_Atomic pid_t tid;
	atomic_ulong beat;
	_Atomic(const char *) doing;
	atomic_int slot;
};

/* What happened to one lease, and what was said of it. */
struct record {
	atomic_uint told;	   /* bits of enum pinl_event_type */
	atomic_int slot;	   /* plus one */
	atomic_bool asked;	   /* to quiesce */
	atomic_uint raw, explicit; /* bits of the operations that took pages */
	bool mapped, ended;	   /* by the test */
	enum kind kind;
	struct pinl_policy policy;
	enum device device;
	bool must, untouched, follows, stale;
	atomic_bool recycled; /* told of an unmapping, which may have been before it was made */
};

struct slot {
	int nr;
	pthread_rwlock_t mem_lock, lease_lock;
	pthread_mutex_t own_file_lock, *file_lock;

	/* mem_lock. The owner alone writes, so it reads without. */
	enum kind kind;
	char *va;
	int fd;
	off_t offset;
	bool made;
	unsigned gone; /* bit per page whose addresses have been given up */
	bool keep;     /* KEEP or REFUSE instead of RECALL, for all leases of this memory */

	atomic_bool guarded;		    /* some pages can't be touched at all */
	atomic_bool over;		    /* the last lease: its unmapping has returned */
	atomic_uint begun, ended;	    /* changes */
	atomic_uint wild_begun, wild_ended; /* device writes that are nobody's lane */

	/* lease_lock. The addresses outlive the lease. */
	struct pinl_lease *lease;
	struct pinl_policy policy;
	struct pinl_lease_info info;
	enum device device;
	struct pinl_addr addrs[PAGES];
	bool has_addrs;
	uint64_t id;

	/* The greatest id of a lease that a completed change hit; and of one that it must have been told
	 * to before it returned. Published when no change is in flight; gathered under flight_lock. */
	_Atomic uint64_t hit, changed;
	pthread_mutex_t flight_lock;
	unsigned in_flight;
	uint64_t will_be_hit, will_be_changed;
	atomic_int answer; /* the holder shall quiesce (1) or unmap (2) */
	unsigned begun_at_map, giving_at_map;
	bool quiet_at_map;
	bool clean; /* no change of the memory while it was being made */
	bool alone; /* and nobody gave up addresses */

	/* The witness lock. */
	bool witnessed;
	uint64_t witness_lease;
	unsigned poisoned; /* bit per page */
};

struct round {
	uint64_t seed;
	struct pinl_ctx *ctx;
	struct pinl_device *dev[DEVICES];
	struct slot slot[SLOTS];
	struct record *record;
	int group_fd;
	pthread_mutex_t group_lock;
	/* Who gives up addresses that are watched, in this whole process. While he waits for that to be
	 * read, somebody else may have got and leased them, and be told, too. */
	atomic_uint giving_begun, giving_ended;
	atomic_bool stop;
	atomic_uint owners_left;
	atomic_ulong seen[PINL_EV_DROPPED + 1], dropped;
	_Atomic uint64_t marker;
	atomic_bool marked;
	bool has_uring;
};
extern struct round round_;

/* test_stress.c */
void broken(const char *promise, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
unsigned roll(struct actor *a, unsigned n);
void now_doing(struct actor *a, const char *what, const struct slot *s);
extern atomic_int n_broken;
extern const char *const kind_names[KINDS];

/* stress_mem.c */
const char *disk_dir(void);
void memory_open(void); /* once: the witness, and which kinds there are */
void memory_close(void);
bool kind_works(enum kind kind);
bool make_memory(struct actor *a, struct slot *s);
void dispose_memory(struct actor *a, struct slot *s);
void witness_expect(struct slot *s, uint64_t lease); /* 0: none, nothing of it may be poisoned */
bool witness_poisoned(struct slot *s);
/* The device of this lease has let go of its pages between these addresses: poison them. */
void witness_released(struct actor *a, struct slot *s, uint64_t lease, uintptr_t start, uintptr_t end);

/* stress_lease.c */
void owner_step(struct actor *a);
void unlease(struct actor *a, struct slot *s);
void on_event(const struct pinl_event *event, void *holder);

/* stress_change.c */
void change(struct actor *a, struct slot *s, bool wait);

/* stress_io.c */
int uring_open(struct pinl_device **dev);
void uring_close(void);
int uring_fd(void);
void stale_writes(struct actor *a, struct slot *s);
void mover_step(struct actor *a);
void mover_land(struct actor *a);
void chaos_step(struct actor *a);
void chaos_open(void);

/* stress_watch.c */
void watch_start(void);
void watch_actor(struct actor *a);
void watch_clear(void);
void watch_signal(unsigned which); /* send one of them a signal */
struct balance {
	int fds, threads;
	long pinned_kb;
};
struct balance balance_now(void);
void pinned_must_be(long kb); /* with all devices open and no lease */
void balance_must_be(const struct balance *before);

#endif
