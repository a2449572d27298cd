/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A holder, and an arbiter that is the test itself, message by message, so that nothing depends on who
 * is faster.
 */
#ifndef AGAIN_RIG_H
#define AGAIN_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "proto/wire.h"

#define PG	4096ul
#define MANY	600 /* more than a socket has room for */
#define LONG_MS 120000

/* What holder and test share. */
struct shared {
	atomic_int end, drop;  /* the test's orders; drop: becomes 0 when that is done */
	atomic_int unguarded;  /* leases of which that was said */
	atomic_bool must_fail; /* to lease */
	atomic_int let_go, orphans, orphan_ends, answered, noticed, refused;
	_Atomic uint64_t change[PINL_EV_KEYS + 1]; /* the last of each type was of that one */
	atomic_int quiesce;			   /* the test's order */
	_Atomic uint64_t waited_ns;		   /* of the last ANSWERED */
	atomic_int lost;			   /* connections of which that was said */
	atomic_uint unwaited;			   /* operations of which that was said */
	atomic_bool others_wait;		   /* the last lease says that of itself */
	atomic_int looks;			   /* at that, from when it was made */
};

/* The arbiter that the test plays, and what its holder is to be like. */
extern struct played {
	char dir[64], file[96];
	struct sockaddr_un addr;
	int listening, sock;
	pid_t holder;
	struct shared *s;
	uint64_t last;		   /* lease that was told of */
	uint64_t serial;	   /* of the last message */
	int handles;		   /* that came */
	bool pinned;		   /* leases are to be */
	unsigned grace_ms;	   /* and are to have */
	unsigned ceiling_ms;	   /* that is said */
	uint64_t boot;		   /* another one after a restart */
	bool gate;		   /* who waits does so at a gate that stays closed */
	uint64_t cover, value;	   /* of the REPLY to COVER, to LEASE; cover: of a memfd */
	struct pl_lease_msg lease; /* the last that came */
} a;

/* The holder: a process of its own, with so many leases of a page each. */
void start_holder(int leases);
void start_holder_that(int leases, bool must_fail); /* to lease */
void until_it_waits(void);			    /* its thread that sends, for something to happen */
void end_holder(void);				    /* which has ended, and with 0 */
void remove_all(void);

/* The arbiter. A serial is kept of the last message that came, for reply_last(). */
void next(union pl_message *m);
void reply(const union pl_message *to, int err, uint64_t value);
void reply_last(int err);
void answer(const union pl_message *m); /* as an arbiter that takes all */
void say_welcome(bool resumed);
void welcome(bool resumed);		      /* whoever comes */
void break_off(bool resumed);		      /* and be there again */
void serve_until(enum pl_type type, int nth); /* all is answered but the nth of this type */

/* A holder whose leases and handles were told. */
void begin_unanswered(int leases); /* but for the last handle */
void begin(int leases);
void begin_pinned(unsigned grace_ms); /* one lease */
void start_patient_holder(void);      /* as that, with more grace than a test takes */

/* Notices, of the last lease. By notify() it is overdue; patiently: not while a test goes on. */
void notify(enum pl_notice_what what, uint64_t since_ns, uint64_t gone_ns);
void notify_patiently(enum pl_notice_what what, uint64_t seq, uint64_t since_ns, uint64_t gone_ns);
/* A lease's recall and the end of the connection are there when it moves again. */
void leave_a_recall_unheard(void);

/* It leaves nothing out and nobody unanswered. One whose handle finds no room is told twice. */
void until_all_told(enum pl_type by, int leases);
void until_it_is_released(void);
void until_it_is_noticed(void);
/* One notice after the other is heard, and this one can be seen to be. */
void until_all_is_heard(void);
void until_it_ends(void);
void quiesce(void);

uint64_t now(void);

#endif
