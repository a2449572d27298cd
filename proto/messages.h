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

#define PL_PROTO_VERSION 1
#define PL_PROTO_PATH	 "/run/pinlease/pinleased.sock"
#define PL_PROTO_ENV	 "PINLEASE_SOCKET"

struct pl_head {
	uint32_t size;	 /* of the whole message */
	uint16_t type;	 /* enum pl_type */
	uint16_t flags;	 /* 0 */
	uint64_t serial; /* of a request: chosen by who sends it; of its REPLY: the same */
};

/* ------------------------------------------------------------------------------------ from clients --
 */

/* The first message. Answered by WELCOME, or by REPLY with an error and then the end. */
struct pl_hello {
	struct pl_head head;
	uint32_t version; /* PL_PROTO_VERSION */
	uint32_t role;	  /* enum pl_role */
	char name[32];	  /* of the program, for people; ends with 0 */
	uint64_t resume;  /* the session of the connection before, if there was one; else 0 */
};

enum pl_role { PL_ROLE_HOLDER, PL_ROLE_COMMAND };

/*
 * Lease bytes of a file; the descriptor that goes along shows which, and that the holder may: open for
 * writing if the device writes, for reading else. REPLY's value has the coverage, 4 bits of PINL_CAN_*
 * for each operation, TRUNCATE in the lowest.
 */
struct pl_lease_msg {
	struct pl_head head;
	uint64_t lease; /* the holder's number for it, unique on this connection */
	uint64_t file_offset;
	uint64_t start, end; /* addresses in the holder */
	uint64_t since_ns;   /* CLOCK_MONOTONIC */
	uint32_t flags;	     /* PINL_WRITE, PINL_PIN */
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
	uint32_t slot;
	uint32_t pad;
	uint64_t tag; /* that the slot's buffer was registered with; 0: none */
};

enum pl_handle_kind { PL_HANDLE_NONE, PL_HANDLE_URING };

/* No REPLY. */
struct pl_unlease_msg {
	struct pl_head head;
	uint64_t lease;
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
	uint64_t seq; /* the NOTICE's */
	uint64_t start, end;
	uint32_t whole;
	uint32_t outcome; /* enum pinl_outcome */
};

/* All leases that fit; root sees everybody's, others their own. ENTRY for each, then REPLY: how many. */
struct pl_list_msg {
	struct pl_head head;
	uint64_t file_dev, file_ino; /* 0: any file */
	int32_t pid;		     /* 0: any holder */
	uint32_t pad;
};

/* ---------------------------------------------------------------------------------- from the arbiter --
 */

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
	char source[12]; /* which of the arbiter's has seen it; ends with 0 */
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
	char path[152]; /* of the file, as the arbiter sees it; cut at the front if it is longer */
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
	X(STILL, 15, struct pl_still_msg, 0)                                                            \
	X(ALL_TOLD, 14, struct pl_all_told_msg, 0)                                                      \
	X(WELCOME, 65, struct pl_welcome, 0)                                                            \
	X(REPLY, 66, struct pl_reply, 0)                                                                \
	X(NOTICE, 67, struct pl_notice_msg, 0)                                                          \
	X(ENTRY, 68, struct pl_entry_msg, 0)

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
	struct pl_all_told_msg all_told;
	struct pl_still_msg still;
	struct pl_entry_msg entry;
};

#endif
