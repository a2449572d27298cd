/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shared by daemon/outside*.c only. */
#ifndef PL_DAEMON_OUTSIDE_INT_H
#define PL_DAEMON_OUTSIDE_INT_H

#include "outside.h"

#define PL_PAGE 4096ul

/* ---------------------------------------------------------------- a child that may get stuck -- */

/* Shares our descriptors, not our memory. At most one is left behind; while it lives, no other is made.
 */
struct pl_outside_child {
	int stuck; /* its pidfd, or -1 */
	pid_t pid;
};

/*
 * fn(arg) in a child that has no descriptor but `fd` (-1: none): what it returns, 0 or -errno.
 * -ETIMEDOUT: it hadn't ended, and has been sent SIGKILL. fn must not use anything that another thread
 * might have locked: system calls only.
 */
int pl_outside_run(struct pl_outside_child *a, int fd, int (*fn)(const void *arg), const void *arg,
		   uint64_t deadline_ns);
void pl_outside_child_end(struct pl_outside_child *a);

/* In such a child: memory at the buffer's addresses, whatever was there, and it into the slot. Doesn't
 * return unless it fails. */
int pl_scratch_child(int ring, const struct pl_outside_buf *b);

/* ----------------------------------------------------------------------------------- looking -- */

/* All fixed buffers in all rings that a process has, and in ours. */
struct pl_tables {
	uint64_t pages;
	uint64_t sum; /* of every slot's content: has anything changed? */
	bool shared;  /* another slot has part of the range */
};

/* -EAGAIN: a ring's lock was taken, look again. -ESRCH. */
int pl_look_tables(pid_t pid, int ring, const struct pl_outside_buf *b, struct pl_tables *t);
uint64_t pl_look_slot_sum(uint64_t ino, const struct pl_outside_buf *b);

/* The content of one slot; start == end: empty. And does a completion with the tag stand unread? */
int pl_look_slot(int ring, struct pl_outside_buf *b, bool *tag_seen);

/* Does a request wait that can have a fixed buffer? True if it isn't to be seen. None says nothing about
 * those that don't wait for a descriptor to become ready. */
bool pl_look_uses_buffers(int ring);

int pl_look_vmpin(pid_t pid, int64_t *pages);
/*
 * May the process have rings whose pins are not in its VmPin? On Linux 7.2 so it is for rings made with
 * CAP_IPC_LOCK, on 6.18 it wasn't. Tried out once by who has the capability; who hasn't says yes for
 * each process that has it.
 */
bool pl_look_unaccounted(pid_t pid);
int pl_look_all_pins(int64_t *pages); /* of the machine; exact if we may write to vm.stat_refresh */
uint64_t pl_look_ino(int fd);
bool pl_look_is_ring(int fd);
bool pl_look_ended(int pidfd);
bool pl_look_held(const struct pl_outside *o);
char pl_look_state(pid_t pid, pid_t tid); /* R, S, D, T, t, Z; '?': not there */

/* -------------------------------------------------------------------------------------------------- */

struct pl_outside {
	enum pl_outside_kind kind;
	int ring; /* or the address space; -1: given up */
	int pidfd, remote_fd;
	pid_t pid;
	uint64_t ino; /* of the ring */
	const char *why;
	struct pl_outside_child child;

	/* The ledger: pins beyond those of the tables, before the first of the slots that were
	 * changed and not yet verified. While that number is back and no table changed, none of the old
	 * is left. */
	int pending;
	int64_t base;
	uint64_t sum;
	bool spoiled;

	bool killed, gone;
	int64_t pins; /* of the machine, before it was killed */
};

/* outside_space.c: of address spaces */
int pl_space_take(struct pl_outside *o);
int pl_space_explain(const struct pl_outside *o, int err);
int pl_space_empty(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns);
int pl_space_look(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns); /* -EAGAIN */
int pl_space_gone(struct pl_outside *o, const struct pl_outside_buf *bufs, int n, uint64_t deadline_ns);

/* outside_verbs.c, the first two in a child. 0: the region is gone. -ESTALE: another may be in its
 * place. */
bool pl_verbs_is_device(dev_t number);
int pl_verbs_take(int fd, uint32_t handle, uint32_t lkey, uint64_t tag, size_t len);
int pl_verbs_explain(const struct pl_outside *o, int err, const struct pl_outside_buf *b);
int pl_verbs_built(void); /* is there anything of it in this pinleased? */

int pl_outside_note(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns);
void pl_outside_pause(uint64_t deadline_ns);
/* The threads of the holder that are stopped. -ETIMEDOUT: one didn't come back; not again, then. */
int pl_outside_step(struct pl_outside *o);
void pl_outside_cancel(struct pl_outside *o, uint64_t timeout_ns, uint64_t deadline_ns);

#endif
