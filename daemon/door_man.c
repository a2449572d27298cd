/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Doormen as processes. One that hangs where no signal ends it is left until it ends: it is counted, as
 * its user can have only so many, and all users together, too. One user may have many numbers.
 */
#include "door_man.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "door.h"
#include "os/clock.h"

#define MOST_STUCK 4   /* of one user */
#define MOST_MEN   256 /* of all; when half are there, nobody has more than one stuck */
#define MOST_GOING 16  /* beyond that: idle ones that were told to end, and have not yet */
#define LATE_NS	   1000000000ull

static void man_free(struct man *man)
{
	siginfo_t si;

	man->men->n--;
	sd_event_source_disable_unref(man->exit);
	if (man->pidfd >= 0) {
		waitid(P_PIDFD, man->pidfd, &si, WEXITED | WNOHANG | __WALL);
		close(man->pidfd);
	}
	man_is_there(man);
	if (man->sock >= 0)
		close(man->sock);
	LIST_REMOVE(man, link);
	free(man);
}

static int on_exit_seen(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct man *man = arg;
	struct men *men = man->men;

	if (!man->ended) {
		sd_event_source_set_enabled(man->exit, SD_EVENT_OFF);
		men->died(man, men->arg); /* which ends it */
	}
	man_free(man);
	men->freed(men, men->arg);
	return 0;
}

/* Told to end, and there still. */
static unsigned ending_of(const struct men *men, uid_t uid)
{
	const struct man *man;
	unsigned n = 0;

	LIST_FOREACH(man, &men->all, link)
	n += man->ended && man->uid == uid;
	return n;
}

bool men_are_ending(const struct men *men, uid_t uid)
{
	const struct man *man;
	uint64_t now = pl_clock_ns();

	LIST_FOREACH(man, &men->all, link)
	if (man->ended && now < man->late_ns && (man->uid == uid || men->n >= MOST_MEN))
		return true;
	return false;
}

/* The idle one that is there longest has to go. */
static bool make_room(struct men *men)
{
	struct man *man, *oldest = NULL;

	if (men->n < MOST_MEN)
		return true;
	if (men->n >= MOST_MEN + MOST_GOING) /* some of them are gone soon */
		return false;
	LIST_FOREACH(man, &men->all, link)
	if (!man->ended && (man->takes || men->idle(man, men->arg)))
		oldest = man;
	if (!oldest)
		return false;
	if (oldest->takes)
		man_end(oldest, false);
	else
		men->dismiss(oldest, men->arg);
	return true;
}

/* As outside_run.c does: without a signal at its end, and not by clone3. */
static pid_t start(int sock, int *pidfd)
{
	sigset_t all, old;
	pid_t pid;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pid = (pid_t)syscall(SYS_clone, CLONE_FILES | CLONE_PIDFD, NULL, pidfd, NULL, NULL);
	if (!pid)
		doorman(sock);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return pid;
}

struct man *man_new(struct men *men, uid_t uid)
{
	unsigned most = men->n < MOST_MEN / 2 ? MOST_STUCK : 1;
	struct man *man;
	siginfo_t si;
	int pair[2];

	if (ending_of(men, uid) >= most || !make_room(men) || !(man = calloc(1, sizeof *man)))
		return NULL;
	men->n++;
	*man = (struct man){.men = men, .uid = uid, .sock = -1, .theirs = -1, .pidfd = -1};
	LIST_INSERT_HEAD(&men->all, man, link);
	if (!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		man->sock = pair[0];
		man->theirs = pair[1];
		man->pid = start(man->theirs, &man->pidfd);
		if (man->pid > 0 &&
		    sd_event_add_io(men->event, &man->exit, man->pidfd, EPOLLIN, on_exit_seen, man) >= 0)
			return man;
	}
	if (man->pidfd >= 0) { /* it has begun nothing that it could hang in */
		syscall(SYS_pidfd_send_signal, man->pidfd, SIGKILL, NULL, 0);
		waitid(P_PIDFD, man->pidfd, &si, WEXITED | WNOWAIT | __WALL);
	}
	man_free(man);
	return NULL;
}

void man_is_there(struct man *man)
{
	if (man->theirs >= 0)
		close(man->theirs);
	man->theirs = -1;
}

void man_end(struct man *man, bool stuck)
{
	man->ended = true;
	man->late_ns = stuck ? 0 : pl_clock_ns() + LATE_NS;
	syscall(SYS_pidfd_send_signal, man->pidfd, SIGKILL, NULL, 0);
	man_is_there(man);
	close(man->sock);
	man->sock = -1;
}

/* At the end: those that don't hang end with their sockets. */
void men_free(struct men *men)
{
	struct man *man;

	while ((man = LIST_FIRST(&men->all))) {
		if (!man->ended)
			man_end(man, false);
		man_free(man);
	}
}
