/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Looking at a holder's process, or at any other: its memory, its descriptors, even when it was started
 * can't be looked at while it is inside of an execve() that a server keeps from ending,
 * or while its mappings are locked; and who looks may be the last who has its memory, and then waits
 * for that server himself. So a child looks (os/peek.h), one of each thread's that asks.
 */
#include <errno.h>

#include "os/peek.h"
#include "outside.h"

static _Thread_local struct pl_peek mine;

int pl_outside_ask(pid_t whose, int (*fn)(void *arg), void *arg, size_t len)
{
	if (!mine.there && pl_peek_open(&mine))
		return -ENOMEM;
	return pl_peek_ask(&mine, whose, fn, arg, len);
}

void pl_outside_asked(void)
{
	pl_peek_end(&mine);
	pl_peek_free(&mine);
	mine = (struct pl_peek){0};
}

int pl_outside_taken(int theirs)
{
	return pl_peek_take(&mine, theirs);
}
