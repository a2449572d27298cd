/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pinlease run: a command and all that it starts, whose changes of files in memory wait for leases.
 *
 *	run.c		three processes: the front, which the caller has started and which ends as the
 *			command does; the supervisor; the command, the supervisor's child
 *	run_filter.c	which calls the kernel stops and shows to the supervisor
 *	run_call.c	what a stopped call would do, to which file
 *	run_file.c	that file, open as its actor may open it
 *	run_supervise.c	the supervisor's life: its command, its front, signals
 *	run_hold.c	its work: asks pinleased about each stopped call, and lets go or refuses
 */
#ifndef PINLEASE_RUN_H
#define PINLEASE_RUN_H

#include <linux/seccomp.h>
#include <pinlease/pinlease.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define RUN_FAILED 125 /* exit status, as env(1) and its like have it */

/* ------------------------------------------------------------------------------------ filter -- */

enum run_what {
	RUN_TRUNCATE,
	RUN_TRUNCATE64, /* 32-bit: the size in two halves */
	RUN_FTRUNCATE,
	RUN_FTRUNCATE64,
	RUN_FALLOCATE,
	RUN_OPEN,
	RUN_OPENAT,
	RUN_OPENAT2,
	RUN_CREAT,
	RUN_MADVISE,
	RUN_IOCTL,
	RUN_RING,
	RUN_NOTHING, /* never stopped: refused by the filter itself */
};

/*
 * Puts the filter onto the calling process, for good. *listener: the descriptor by which stopped calls
 * are shown; -1: it is part of another `pinlease run`, as `nested` says it may be, which sees them. 0,
 * or -errno, and *step says at what.
 */
int run_filter(bool nested, bool no_io_uring, int *listener, const char **step);

enum run_what run_what(const struct seccomp_data *data);
bool run_is_32bit(const struct seccomp_data *data);

/* -------------------------------------------------------------------------------- calls and their files
 * --
 */

#define RUN_PARTS 8 /* of one call: mappings that it goes over */

struct run_part {
	int fd; /* shows that the actor may change it */
	enum pinl_op op;
	uint64_t start, end; /* bytes, as in CHANGE */
};

/* What a stopped call would take from which files in memory: the number of parts. 0: nothing, or it
 * can't be seen, and then *why says why. */
int run_look(const struct seccomp_notif *n, struct run_part parts[RUN_PARTS], const char **why);

int run_proc(pid_t tid, const char *name, char *buf, size_t len); /* the start of /proc/TID/NAME */
pid_t run_process_of(pid_t tid);				  /* 0: not known */
int run_read(pid_t tid, uint64_t at, void *buf, size_t len);	  /* of its memory: bytes, or -errno */

/* The file, open for writing; -errno: the actor can't, or it is none in memory. -EXFULL: it could not
 * be seen; *why. */
int run_file_of_fd(pid_t tid, int fd, const char **why);
int run_file_of_path(pid_t tid, int dir, uint64_t path, uint64_t flags, uint64_t resolve,
		     const char **why);
int run_files_of_memory(pid_t tid, uint64_t at, uint64_t len, struct run_part parts[RUN_PARTS],
			const char **why);

/* ------------------------------------------------------------------------------- supervising -- */

/* Once each; never waits. */
void run_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct run_hold;

struct run_hold *run_hold_new(int listener);
void run_hold_free(struct run_hold *h);
int run_hold_listener(const struct run_hold *h);
bool run_hold_has_room(const struct run_hold *h);	      /* for more stopped calls */
int run_hold_socket(const struct run_hold *h, bool *writing); /* -1: none now */
int run_hold_timeout(const struct run_hold *h);		      /* ms; -1: nothing to wait for */
void run_hold_calls(struct run_hold *h);		      /* the listener can be read */
void run_hold_answers(struct run_hold *h);		      /* the socket has something */
void run_hold_tick(struct run_hold *h);			      /* each time around */

/* Until the last process of the tree has ended. control: the front's socket. */
_Noreturn void run_supervise(int control, const char *const *argv, bool no_io_uring);

/* What the supervisor says to the front, in a packet each; the front answers with signals to pass on. */
struct run_news {
	enum { RUN_STARTED, RUN_STOPPED, RUN_ENDED } what;
	int value; /* pid; signal; wait status */
};

#endif
