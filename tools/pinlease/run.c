/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The front of pinlease run: what the caller has started. It is to the caller what the command would be:
 * it stops and ends as the command does, and passes on the signals that are sent to it alone.
 */
#include <argp.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "command.h"
#include "run.h"

enum { NO_IO_URING = 'n' };

struct options {
	bool no_io_uring;
	char **command; /* NULL-terminated, as argv is */
};

static const struct argp_option option_table[] = {
	{"no-io-uring", NO_IO_URING, NULL, 0, "Let nobody make an io_uring: EPERM", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case NO_IO_URING:
		o->no_io_uring = true;
		return 0;
	case ARGP_KEY_ARG:
		o->command = state->argv + state->next - 1;
		state->next = state->argc;
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "no command");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* Those that one sends to have a command do something. */
static const int passed_on[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGTSTP, SIGCONT};

static int block_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof passed_on / sizeof *passed_on; i++)
		sigaddset(&set, passed_on[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* The terminal's go to all of its foreground group: the command has had it, unless it has left that. */
static void pass_on(int control, int signals, pid_t command)
{
	struct signalfd_siginfo info;
	int sig;

	while (read(signals, &info, sizeof info) == (ssize_t)sizeof info) {
		sig = (int)info.ssi_signo;
		if (info.ssi_code == SI_KERNEL && (!command || getpgid(command) == getpgrp()))
			continue;
		send(control, &sig, sizeof sig, MSG_NOSIGNAL);
	}
}

/* By the same signal, so that a shell sees what it would have seen; but with no core of ours. */
static int end_like(int status)
{
	int sig = WTERMSIG(status);
	sigset_t set;

	if (!WIFSIGNALED(status))
		return WEXITSTATUS(status);
	prctl(PR_SET_DUMPABLE, 0);
	signal(sig, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, sig);
	kill(getpid(), sig);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	return 128 + sig;
}

/* Stopped by the terminal: the shell that waits for us is to have it back. */
static void stop_like(int sig)
{
	if (sig == SIGTSTP || sig == SIGTTIN || sig == SIGTTOU)
		kill(getpid(), SIGSTOP);
}

static int front(int control, int signals)
{
	struct pollfd fds[2] = {{.fd = control, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
	struct run_news news;
	pid_t command = 0;

	for (;;) {
		poll(fds, 2, -1);
		if (fds[1].revents)
			pass_on(control, signals, command);
		if (!fds[0].revents)
			continue;
		if (recv(control, &news, sizeof news, 0) != (ssize_t)sizeof news)
			break;
		if (news.what == RUN_STARTED)
			command = news.value;
		else if (news.what == RUN_STOPPED)
			stop_like(news.value);
		else
			return end_like(news.value);
	}
	fprintf(stderr, "pinlease run: the supervisor has been killed\n");
	return RUN_FAILED;
}

static int start(const struct options *o)
{
	sigset_t before;
	int pair[2], signals;
	pid_t pid;

	sigprocmask(SIG_SETMASK, NULL, &before);
	signals = block_signals();
	if (signals < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) ||
	    (pid = fork()) < 0) {
		fprintf(stderr, "pinlease run: %s\n", strerror(errno));
		return RUN_FAILED;
	}
	if (!pid) {
		close(pair[0]);
		close(signals);
		sigprocmask(SIG_SETMASK, &before, NULL);
		run_supervise(pair[1], (const char *const *)o->command, o->no_io_uring);
	}
	close(pair[1]);
	return front(pair[0], signals);
}

int cmd_run(int argc, char **argv)
{
	static const struct argp argp = {
		.options = option_table,
		.parser = parse,
		.args_doc = "COMMAND [ARG...]",
		.doc = "Run a command. Where it, or what it starts, would take pages of a file in "
		       "memory "
		       "(tmpfs, memfd, hugetlbfs) that somebody has leased, it waits until they are "
		       "given back, or gets EBUSY, as the lease's policy says. Asks pinleased."};
	struct options o = {0};

	argp_err_exit_status = RUN_FAILED;
	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &o);
	return start(&o);
}
