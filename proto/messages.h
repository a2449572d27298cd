/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The messages between holders, commands and pinleased: docs/protocol.md in C. A Unix socket of type
 * SOCK_SEQPACKET; one message is one packet; numbers are in the machine's own byte order, because both
 * ends are on it; every structure has a fixed size without holes, and PL_MESSAGES is the one table of
 * them that both sides check against.
 */
#ifndef PL_PROTO_MESSAGES_H
#define PL_PROTO_MESSAGES_H

#include <stdint.h>

#define PL_PROTO_VERSION 3
#define PL_PROTO_PATH	 "/run/pinlease/pinleased.sock"
#define PL_PROTO_ENV	 "PINLEASE_SOCKET"

struct pl_head {
	uint32_t size;	 /* of the whole message */
	uint16_t type;	 /* enum pl_type */
	uint16_t flags;	 /* 0 */
	uint64_t serial; /* of a request: chosen by who sends it; of its REPLY: the same */
};

/* ------------------------------------------------------------------------------ from clients -- */

/* The first message. Answered by WELCOME, or by REPLY with an error and then the end. */
struct pl_hello {
	struct pl_head head;
	uint32_t version; /* PL_PROTO_VERSION */
	uint32_t role;	  /* enum pl_role */
	char name[32];	  /* of the program, for people; ends with 0 */
	uint64_t resume;  /* the session of the connection before, if there was one; else 0 */
};

enum pl_role { PL_ROLE_HOLDER, PL_ROLE_COMMAND, PL_ROLE_SUPERVISOR };

/*
 * Lease bytes of a file; the descriptor that goes along shows which, and that the holder may: open for
 * writing if the device writes, for reading else. REPLY's value has the coverage, 4 bits of PINL_CAN_*
 * for each operation, TRUNCATE in the lowest, and perhaps PL_SUPERVISED, PL_OTHERS and PL_NAMES.
 */
#define PL_SUPERVISED (1ull << 63) /* what a supervisor tells of by CHANGE is held and refused, too */
#define PL_OTHERS     (1ull << 62) /* under RECALL what any other process than the holder does is held */
#define PL_NAMES      (1ull << 61) /* PINL_KEEP_NAME can be kept */

struct pl_lease_msg {
	struct pl_head head;
	uint64_t lease; /* the holder's number for it, unique on this connection */
	uint64_t file_offset;
	uint64_t start, end; /* addresses in the holder */
	uint64_t since_ns;   /* CLOCK_MONOTONIC */
	uint32_t flags;	     /* PINL_WRITE, PINL_PIN, PINL_KEEP_NAME */
	uint32_t shared;     /* 1: MAP_SHARED */
	uint32_t policy, then, grace_ms, refuse;
	uint32_t agent_ms; /* beyond the grace, for the holder's own library to force the device */
	int32_t thread;
	char device[16];
};

/* What can the arbiter do about changes of this file? REPLY's value: the coverage, as for LEASE. */
struct pl_cover_msg {
	struct pl_head head;
};

/* By which object the lease can be taken away from outside. Answered by REPLY. */
struct pl_handle_msg {
	struct pl_head head;
	uint64_t lease;
	uint32_t kind; /* enum pl_handle_kind */
	int32_t fd;    /* in the holder's table */
	uint32_t slot; /* IOMMUFD: the address space. VERBS: the memory region's handle */
	uint32_t twin; /* IOMMUFD: one that its devices may be attached to meanwhile; 0: none. VERBS:
			  lkey */
	uint64_t tag;  /* that the slot's buffer was registered with; 0: none. VFIO, IOMMUFD: the lease's
			  first device address. VERBS: the same, plus 1: another region may take the
			  place of this one (COPY) */
};

enum pl_handle_kind {
	PL_HANDLE_NONE,
	PL_HANDLE_URING,
	PL_HANDLE_VFIO,
	PL_HANDLE_IOMMUFD,
	PL_HANDLE_VERBS,
};

/* No REPLY. */
struct pl_unlease_msg {
	struct pl_head head;
	uint64_t lease;
	uint32_t outcome; /* enum pinl_outcome, if it had been taken back before; else 0 */
	uint32_t pad;
};

/* After a WELCOME that says `resumed`, instead of LEASE: there is this lease still. REPLY only if it
 * isn't known: ENOENT, to be told by LEASE and HANDLE. */
struct pl_still_msg {
	struct pl_head head;
	uint64_t lease;
};

/* After HELLO with `resume`, and a LEASE or STILL for each lease: what wasn't told ends. No REPLY. */
struct pl_all_told_msg {
	struct pl_head head;
};

/* The answer to a NOTICE: the device is off these bytes of the lease, or off all of it. No REPLY. */
struct pl_released_msg {
	struct pl_head head;
	uint64_t lease;
	uint64_t seq; /* the NOTICE's; 0: none, it has been so before */
	uint64_t start, end;
	uint32_t whole;
	uint32_t outcome; /* enum pinl_outcome: QUIESCED by the holder, else forced by its library */
};

/* All leases that fit; root sees everybody's, others their own. ENTRY for each, then REPLY: how many. */
struct pl_list_msg {
	struct pl_head head;
	uint64_t file_dev, file_ino; /* 0: any file */
	int32_t pid;		     /* 0: any holder */
	uint32_t pad;
};

/*
 * Recall leases: all that fit and are the asker's, root's are everybody's. An EVENT for each
 * (PL_EVENT_RECALLED), then REPLY: how many there were. One at a time on a connection.
 */
struct pl_recall_msg {
	struct pl_head head;
	uint64_t file_dev, file_ino;   /* file_ino 0: any file, then pid is given */
	uint64_t file_start, file_end; /* these bytes; file_end 0: to its end */
	uint64_t lease;		       /* with PL_RECALL_ONE: the holder's number for it */
	int32_t pid;		       /* 0: any holder, then the file is given */
	uint32_t flags;		       /* PL_RECALL_* */
	uint32_t grace_ms;	       /* with PL_RECALL_GRACE */
	uint32_t pad;
};

#define PL_RECALL_ONE	  1u /* of the process: that lease alone */
#define PL_RECALL_GRACE	  2u /* this one, not the lease's own */
#define PL_RECALL_FORCE	  4u /* none, and whatever the lease's policy is, not RECALL only */
#define PL_RECALL_NO_WAIT 8u /* its EVENT says that it has begun */

/* From now on an EVENT for all that happens to leases that fit. Answered by REPLY. */
struct pl_watch_msg {
	struct pl_head head;
	uint64_t file_dev, file_ino; /* 0: any file */
	int32_t pid;		     /* 0: any holder */
	uint32_t pad;
};

/* How is the arbiter? STATUS, a SOURCE for each, a USER for each who may be seen, REPLY. */
struct pl_ask_status_msg {
	struct pl_head head;
};

/*
 * Change the file that the descriptor shows, open for writing, as soon as no lease is under the change.
 * REPLY: whether that will be done; CHANGED follows when it is. mode 0: to the size len, else
 * fallocate's.
 */
struct pl_truncate_msg {
	struct pl_head head;
	uint64_t number; /* CHANGED has the same */
	int64_t offset, len;
	uint32_t mode;
	int32_t thread; /* who asks */
};

/*
 * A supervisor has stopped a call that may take pages from the file; the descriptor that goes along is
 * open for writing, and so shows that the actor may. REPLY: -EBUSY: refuse it; 0: let it go on, and,
 * where the value is 1, say DONE when it has happened. It comes when nobody has to be waited for any
 * more.
 */
struct pl_change_msg {
	struct pl_head head; /* serial: what DONE names */
	uint32_t op;	     /* enum pinl_op: TRUNCATE to INSERT, or REMOVE */
	int32_t pid, tid;    /* the actor; 0: not known */
	uint32_t pad;
	uint64_t start, end; /* bytes as the call has them; TRUNCATE: the new size, and 0 */
};

/* The change has happened, or never will. Before the REPLY: then none comes. No REPLY. */
struct pl_done_msg {
	struct pl_head head;
	uint64_t change; /* the CHANGE's serial */
};

/*
 * Count the changes of the asker's own address space, from now on and as long as this connection lasts.
 * Two COUNTED, then REPLY; with an error only that, which says what is missing. The first one on a
 * machine may take seconds, and other answers come meanwhile.
 */
struct pl_count_msg {
	struct pl_head head;
};

/* -------------------------------------------------------------------------- from the arbiter -- */

struct pl_welcome {
	struct pl_head head;
	uint32_t version;
	uint32_t ceiling_ms;
	uint64_t boot;	  /* another one after each start of the arbiter */
	uint64_t session; /* what `resume` may name */
	uint64_t resumed; /* 1: the leases of the session named are known */
	uint64_t max_leases, max_bytes;
};

struct pl_reply {
	struct pl_head head;
	int32_t err; /* 0 or -errno */
	uint32_t pad;
	uint64_t value;
	char text[216]; /* the sentence that goes with err; ends with 0 */
};

enum pl_notice_what {
	PL_NOTICE_FORCED,  /* taken from outside: what the device has there now is not the file's */
	PL_NOTICE_RECALL,  /* the actor waits for RELEASED */
	PL_NOTICE_LOST,	   /* the bytes go, nobody waits: KEEP */
	PL_NOTICE_REFUSED, /* the actor got EBUSY, as the lease's policy says */
	PL_NOTICE_WEAKER, /* no change: op and also are refused no more (REFUSE), or others wait for them
			     no more (RECALL), as by an earlier one */
};

/* A change of the lease's bytes; comes again for the next one, with the same or another range. */
struct pl_notice_msg {
	struct pl_head head;
	uint64_t lease;
	uint64_t seq;
	uint64_t start, end;  /* addresses in the holder */
	uint64_t deadline_ns; /* CLOCK_MONOTONIC */
	uint32_t what;	      /* enum pl_notice_what */
	uint32_t op;	      /* enum pinl_op */
	uint32_t also;	      /* PINL_OPBIT()s: it may be one of these instead */
	int32_t actor_pid, actor_tid;
	char source[12];   /* which of the arbiter's has seen it; ends with 0 */
	uint64_t since_ns; /* recall: the actor waits; these three: CLOCK_MONOTONIC */
	uint64_t gone_ns;  /* the actor has waited for the lease, and was let go then; 0: wasn't */
	uint64_t force_ns; /* of no operation: when the holder's library forces; else 0 */
	uint64_t taken_ns; /* all of the lease was taken from outside then; 0: it wasn't */
	uint32_t closed;   /* recall, 1: if the arbiter ends without a word the actor gets EBUSY */
	uint32_t pad;
};

struct pl_entry_msg {
	struct pl_head head;
	uint64_t lease; /* the holder's number */
	uint64_t start, end, file_dev, file_ino, file_offset;
	uint64_t since_ns; /* CLOCK_MONOTONIC */
	uint64_t detached; /* bytes that are on scratch or a copy */
	int32_t pid, thread;
	uint32_t uid, flags;
	uint32_t policy, then, grace_ms, refuse;
	uint32_t state;	 /* enum pinl_state */
	uint32_t forced; /* 1: it could be taken from outside */
	char device[16], program[32];
	char path[152];	      /* of the file, as the arbiter sees it; cut at the front if it is longer */
	uint64_t deadline_ns; /* noticed: CLOCK_MONOTONIC; else 0 */
	uint64_t orphaned;    /* bytes of it that the file has let go, and the device may still have */
	/* Noticed or being taken: for whom, the first of them, or of those who wait. Else 0, and
	 * PINL_OP_NR. */
	uint64_t recall_start, recall_end; /* addresses in the holder */
	int32_t actor_pid, actor_tid;	   /* 0: not known */
	uint32_t op;			   /* enum pinl_op; PINL_OP_NR: RECALL_LEASES */
	uint32_t held;			   /* 1: the actor waits still; 0: nobody does */
	char source[12];
	uint32_t also;	  /* PINL_OPBIT()s: it may be one of these instead */
	uint64_t held_ns; /* held: since when he waits, CLOCK_MONOTONIC */
};

/* What an EVENT is about: enum pinl_event_type, or one of these. */
enum pl_event_what {
	PL_EVENT_LEASED = 32, /* the lease is made; only this one has the path */
	PL_EVENT_ENDED,	      /* it is over */
	PL_EVENT_RECALLED,    /* what became of a RECALL of it */
};

/* As struct pinl_event; serial is that of the WATCH or RECALL. */
struct pl_event_msg {
	struct pl_head head;
	uint32_t what, op, outcome;
	int32_t err;
	uint64_t time_ns, deadline_ns, waited_ns;
	uint64_t lease; /* the holder's number */
	uint64_t change, start, end;
	uint64_t file_dev, file_ino, file_start, file_end, bytes;
	int32_t pid; /* the holder's; 0: it is about a change, not about one lease */
	uint32_t uid;
	int32_t actor_pid, actor_tid;
	uint32_t outside; /* recalled, forced: 1: taken from outside of the holder */
	char source[12];
	char device[16], program[32];
	char path[152];
};

struct pl_status_msg {
	struct pl_head head;
	char version[16];
	int32_t pid;
	uint32_t ceiling_ms;
	uint64_t boot, since_ns;
	uint64_t max_leases, max_bytes; /* of one user */
	uint32_t max_connections;
	uint32_t connections, holders, watchers; /* holders: those with leases */
	uint64_t leases, bytes, held;		 /* held: changes that wait now */
	uint64_t notices, quiesced, forced, refused, answered, unconfirmed; /* ever */
	uint64_t events_lost;						    /* by those who watch */
	uint64_t outside;	       /* of those forced: from outside of their holders */
	uint32_t hold_ms, max_notices; /* of a minute, of one user */
	uint32_t may_kill;	       /* 1: who asks for it */
	uint32_t after_crash;	       /* enum pl_after_crash */
	uint64_t untold; /* of those refused: their holders weren't told of them, one by one */
};

enum pl_after_crash {
	PL_AFTER_CRASH_OPEN,   /* who waits goes on */
	PL_AFTER_CRASH_CLOSED, /* waits for the restart */
	PL_AFTER_CRASH_LOST,   /* was to wait, but nobody keeps the descriptors: goes on */
};

#define PL_SOURCE_TEXT 600

/* One line of pinl_sources(). */
struct pl_source_msg {
	struct pl_head head;
	char text[PL_SOURCE_TEXT];
};

/* What one user has. */
struct pl_user_msg {
	struct pl_head head;
	uint32_t uid, connections;
	uint64_t leases, bytes;
	uint64_t hold_ns; /* of STATUS's hold_ms, used up now */
	uint64_t notices; /* of max_notices, used up now */
};

struct pl_changed_msg {
	struct pl_head head;
	uint64_t number; /* TRUNCATE's */
	int32_t err;	 /* 0 or -errno */
	uint32_t pad;
};

/* Of COUNT, whose serial it has: one of the two maps goes along (bpf/generation.h). */
struct pl_counted_msg {
	struct pl_head head;
	uint32_t map; /* enum pl_counted_map */
	uint32_t pad;
	uint64_t size; /* to be mapped, from offset 0: of COUNTS; of RING, as BPF ring buffers are: of
			  its data */
};

enum pl_counted_map {
	PL_COUNTED_COUNTS, /* struct generation_counts, readable and writable */
	PL_COUNTED_RING,   /* of struct generation_record; its descriptor is to be polled */
};

/* name, number, structure, least and most descriptors */
#define PL_MESSAGES(X)                                                                                  \
	X(HELLO, 1, struct pl_hello, 0)                                                                 \
	X(LEASE, 2, struct pl_lease_msg, 1)                                                             \
	X(HANDLE, 3, struct pl_handle_msg, 0)                                                           \
	X(UNLEASE, 4, struct pl_unlease_msg, 0)                                                         \
	X(RELEASED, 5, struct pl_released_msg, 0)                                                       \
	X(COVER, 6, struct pl_cover_msg, 1)                                                             \
	X(LIST, 7, struct pl_list_msg, 0)                                                               \
	X(RECALL_LEASES, 8, struct pl_recall_msg, 0)                                                    \
	X(WATCH, 9, struct pl_watch_msg, 0)                                                             \
	X(ASK_STATUS, 10, struct pl_ask_status_msg, 0)                                                  \
	X(CHANGE, 11, struct pl_change_msg, 1)                                                          \
	X(DONE, 12, struct pl_done_msg, 0)                                                              \
	X(TRUNCATE, 13, struct pl_truncate_msg, 1)                                                      \
	X(ALL_TOLD, 14, struct pl_all_told_msg, 0)                                                      \
	X(STILL, 15, struct pl_still_msg, 0)                                                            \
	X(COUNT, 16, struct pl_count_msg, 0)                                                            \
	X(WELCOME, 65, struct pl_welcome, 0)                                                            \
	X(REPLY, 66, struct pl_reply, 0)                                                                \
	X(NOTICE, 67, struct pl_notice_msg, 0)                                                          \
	X(ENTRY, 68, struct pl_entry_msg, 0)                                                            \
	X(EVENT, 69, struct pl_event_msg, 0)                                                            \
	X(STATUS, 70, struct pl_status_msg, 0)                                                          \
	X(CHANGED, 71, struct pl_changed_msg, 0)                                                        \
	X(COUNTED, 72, struct pl_counted_msg, 1)                                                        \
	X(SOURCE, 90, struct pl_source_msg, 0)                                                          \
	X(USER, 91, struct pl_user_msg, 0)

#define PL_FROM_ARBITER 64 /* types from here on */

enum pl_type {
#define X(name, number, type, fds) PL_##name = number,
	PL_MESSAGES(X)
#undef X
};

union pl_message {
	struct pl_head head;
	struct pl_hello hello;
	struct pl_cover_msg cover;
	struct pl_lease_msg lease;
	struct pl_handle_msg handle;
	struct pl_unlease_msg unlease;
	struct pl_released_msg released;
	struct pl_welcome welcome;
	struct pl_reply reply;
	struct pl_notice_msg notice;
	struct pl_list_msg list;
	struct pl_change_msg change;
	struct pl_done_msg done;
	struct pl_all_told_msg all_told;
	struct pl_still_msg still;
	struct pl_entry_msg entry;
	struct pl_recall_msg recall;
	struct pl_watch_msg watch;
	struct pl_ask_status_msg ask_status;
	struct pl_event_msg event;
	struct pl_status_msg status;
	struct pl_source_msg source;
	struct pl_user_msg user;
	struct pl_truncate_msg truncate;
	struct pl_changed_msg changed;
	struct pl_count_msg count;
	struct pl_counted_msg counted;
};

#endif
