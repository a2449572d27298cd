/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The supervisor: parent of the command, and, as a subreaper, of all that is left of the tree later, so
 * that it may look into them wherever only ancestors may (kernel.yama.ptrace_scope=1). It lives until
 * the last of them has ended: a call that is stopped when nobody listens any more fails with ENOSYS. It
 * takes no signal but the front's word, and keeps nothing of the command's open but, while it lives,
 * standard error.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "run.h"

#define ENV "PINLEASE_RUN" /* in the command's environment */

struct supervisor {
	int control, children; /* the front; a signalfd */
	pid_t command;
	bool ended; /* the command */
	struct run_hold *hold;
};

/* ------------------------------------------------------------------------------------ saying -- */

/* A format is said once. Who reads our standard error may be one who waits for us. */
void run_say(const char *format, ...)
{
	static const char *said[16];
	struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
	char text[512];
	size_t i = 0;
	va_list ap;

	while (i < 16 && said[i] && said[i] != format)
		i++;
	if (i == 16 || said[i] || poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))
		return;
	said[i] = format;
	va_start(ap, format);
	vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	dprintf(STDERR_FILENO, "pinlease run: %s\n", text);
}

/* ------------------------------------------------------------------------------- the command -- */

/* The descriptor by SCM_RIGHTS, or what became of it. */
static void hand_over(int sock, int listener)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {&listener, sizeof listener};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;

	if (listener >= 0) {
		msg.msg_control = control;
		msg.msg_controllen = sizeof control;
		c = CMSG_FIRSTHDR(&msg);
		*c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)),
				      .cmsg_level = SOL_SOCKET,
				      .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(c), &listener, sizeof listener);
	}
	while (sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

/* -1: the command is not to be listened to; it has said why, or is part of another tree. */
static int take_over(int sock)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
	int value = -1, listener = -1;
	struct iovec iov = {&value, sizeof value};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof control};
	struct cmsghdr *c;
	ssize_t n;

	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
	if (c && c->cmsg_type == SCM_RIGHTS)
		memcpy(&listener, CMSG_DATA(c), sizeof listener);
	return listener;
}

static _Noreturn void execute(const char *const *argv, int sock, bool no_io_uring, const sigset_t *mask,
			      const struct sigaction *chld)
{
	bool nested = getenv(ENV);
	const char *step;
	int listener, err = run_filter(nested, no_io_uring, &listener, &step);

	if (err) {
		fprintf(stderr, "pinlease run: can't supervise: %s: %s\n", step, strerror(-err));
		_exit(RUN_FAILED);
	}
	hand_over(sock, listener);
	close(sock);
	if (listener >= 0)
		close(listener);
	setenv(ENV, "1", 1);
	sigaction(SIGCHLD, chld, NULL);
	sigprocmask(SIG_SETMASK, mask, NULL);
	execvp(argv[0], (char *const *)argv);
	fprintf(stderr, "pinlease run: can't execute %s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* -------------------------------------------------------------------------------------- the front -- */

static void tell(const struct supervisor *s, int what, int value)
{
	struct run_news news = {what, value};

	if (s->control >= 0)
		send(s->control, &news, sizeof news, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Signals that it was sent for the command, which is not waited for yet, so its number is its own. */
static void on_front(struct supervisor *s)
{
	int sig;
	ssize_t n = recv(s->control, &sig, sizeof sig, MSG_DONTWAIT);

	if (n == (ssize_t)sizeof sig && !s->ended)
		kill(s->command, sig);
	if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
		return;
	close(s->control); /* it was killed; the command lives on */
	s->control = -1;
}

/* Who waits for the end of what the command has written must not wait for us. */
static void let_stderr_go(void)
{
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (null >= 0)
		dup2(null, STDERR_FILENO);
	close(null);
}

static void on_children(struct supervisor *s)
{
	struct signalfd_siginfo info;
	int status;
	pid_t pid;

	while (read(s->children, &info, sizeof info) > 0)
		;
	while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
		if (pid != s->command)
			continue;
		s->ended |= !WIFSTOPPED(status);
		tell(s, s->ended ? RUN_ENDED : RUN_STOPPED, s->ended ? status : WSTOPSIG(status));
		if (!s->ended)
			continue;
		close(s->control);
		s->control = -1;
		let_stderr_go();
	}
}

/* ------------------------------------------------------------------------------------------- life -- */

/* False: nobody is left to be listened to. */
static bool on_listener(struct supervisor *s, int revents)
{
	if (revents & POLLIN)
		run_hold_calls(s->hold);
	else if (revents & (POLLHUP | POLLERR)) {
		run_hold_free(s->hold);
		s->hold = NULL;
	}
	return s->hold;
}

/* Our own only: the command has been started. */
static void raise_descriptors(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r))
		return;
	r.rlim_cur = r.rlim_max;
	setrlimit(RLIMIT_NOFILE, &r);
}

static void turn(struct supervisor *s)
{
	struct pollfd fds[4] = {{.fd = s->children, .events = POLLIN},
				{.fd = s->control, .events = POLLIN},
				{.fd = -1, .events = POLLIN},
				{.fd = -1, .events = POLLIN}};
	bool writing;

	if (s->hold) {
		run_hold_tick(s->hold);
		fds[2].fd = run_hold_listener(s->hold);
		fds[2].events = run_hold_has_room(s->hold) ? POLLIN : 0;
		fds[3].fd = run_hold_socket(s->hold, &writing);
		fds[3].events |= writing ? POLLOUT : 0;
	}
	poll(fds, 4, s->hold ? run_hold_timeout(s->hold) : -1);
	if (fds[0].revents)
		on_children(s);
	if (s->control >= 0 && fds[1].revents)
		on_front(s);
	if (s->hold && fds[3].revents)
		run_hold_answers(s->hold);
	if (s->hold && fds[2].revents)
		on_listener(s, fds[2].revents);
}

/* All but what is ours, in order: other ends of the command's pipes must not stay open here. */
static void close_others(struct supervisor *s, int *sock)
{
	int *ours[] = {sock, &s->control, &s->children};
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), n = sizeof ours / sizeof *ours, first = 3;

	for (int i = 0; i < n; i++) /* none is where another is to be */
		*ours[i] = fcntl(*ours[i], F_DUPFD, first + n);
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	for (int i = 0; i < n; i++)
		*ours[i] = dup2(*ours[i], first + i);
	close_range(first + n, ~0u, 0);
}

static int children_fd(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

_Noreturn void run_supervise(int control, const char *const *argv, bool no_io_uring)
{
	struct supervisor s = {.control = control};
	struct sigaction normal = {.sa_handler = SIG_DFL}, chld;
	sigset_t all, mask;
	int pair[2], listener;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &mask);
	sigaction(SIGCHLD, &normal, &chld);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		_exit(RUN_FAILED);
	s.command = fork();
	if (s.command == 0) {
		close(control);
		close(pair[0]);
		execute(argv, pair[1], no_io_uring, &mask, &chld);
	}
	setpgid(0, 0); /* what is sent to the command's group is not for us */
	close(pair[1]);
	s.children = children_fd();
	close_others(&s, &pair[0]);
	raise_descriptors();
	tell(&s, RUN_STARTED, s.command);
	listener = take_over(pair[0]);
	close(pair[0]);
	if (listener >= 0)
		s.hold = run_hold_new(listener);
	if (listener >= 0 && !s.hold) /* out of memory: stopped calls fail, nobody waits for ever */
		close(listener);
	while (s.hold || !s.ended)
		turn(&s);
	_exit(0);
}
