/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinleased: options, sockets (systemd's or its own), signals, readiness, watchdog. */
#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon.h"

struct options {
	const char *socket;
	struct limits limits;
};

enum {
	SOCKET = 's',
	LEASES = 'l',
	BYTES = 'b',
	CEILING = 'c',
	CONNECTIONS = 'n',
	CRASH = 'k',
	MAY_KILL = 'K',
	HOLD = 'm',
	NOTICES = 'r'
};

static const struct argp_option option_table[] = {
	{"socket", SOCKET, "PATH", 0, "Where to listen, without systemd [" PL_PROTO_PATH "]", 0},
	{"ceiling", CEILING, "MS", 0, "No change waits longer for a notice's answer [10000]", 0},
	{"max-leases", LEASES, "N", 0, "Leases of one user [100000]", 0},
	{"max-bytes", BYTES, "N", 0, "Leased bytes of one user [1 TiB]", 0},
	{"after-crash", CRASH, "ANSWER", 0,
	 "Who waits for a lease then, and who comes: \"closed\", waits for the restart, or \"open\", "
	 "goes on [closed]",
	 0},
	{"may-kill", MAY_KILL, "ANSWER", 0,
	 "Kill holders that can't be forced, where their own policy says so [yes]", 0},
	{"max-hold", HOLD, "MS", 0,
	 "Time of each minute that one user's leases hold changes up [three ceilings]", 0},
	{"max-notices", NOTICES, "N", 0, "Recalls a minute of one user's leases [60000]", 0},
	{"max-connections", CONNECTIONS, "N", 0, "Connections of one user [1024]", 0},
	{0},
};

static uint64_t number(const char *arg, struct argp_state *state)
{
	char *end;
	unsigned long long n = strtoull(arg, &end, 0);

	if (!*arg || *end || !n)
		argp_error(state, "\"%s\" is not a number above 0", arg);
	return n;
}

/* Is it the first of two answers? */
static bool either(const char *arg, const char *yes, const char *no, struct argp_state *state)
{
	if (strcmp(arg, yes) && strcmp(arg, no))
		argp_error(state, "\"%s\" is neither %s nor %s", arg, yes, no);
	return !strcmp(arg, yes);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case SOCKET:
		o->socket = arg;
		return 0;
	case CEILING:
		o->limits.ceiling_ms = number(arg, state);
		return 0;
	case LEASES:
		o->limits.leases = number(arg, state);
		return 0;
	case BYTES:
		o->limits.bytes = number(arg, state);
		return 0;
	case CONNECTIONS:
		o->limits.connections = number(arg, state);
		return 0;
	case CRASH:
		o->limits.closed = either(arg, "closed", "open", state);
		return 0;
	case HOLD:
		o->limits.hold_ms = number(arg, state);
		return 0;
	case NOTICES:
		o->limits.notices = number(arg, state);
		return 0;
	case MAY_KILL:
		o->limits.may_kill = either(arg, "yes", "no", state);
		return 0;
	case ARGP_KEY_ARG:
		argp_usage(state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp argp = {
	.options = option_table,
	.parser = parse,
	.doc = "The arbiter of pinlease: holds changes of files that any process has leased to a device "
	       "until the lease is recalled.",
};

/* A socket of an earlier run is in the way; one that somebody listens on is not ours to take. */
static int make_socket(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (sock < 0)
		return -errno;
	if (strlen(path) >= sizeof addr.sun_path)
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	if (!connect(sock, (void *)&addr, sizeof addr))
		return -EADDRINUSE;
	unlink(path);
	if (bind(sock, (void *)&addr, sizeof addr) || chmod(path, 0666) || listen(sock, 128))
		return -errno;
	return sock;
}

static int listen_on(struct server *s, const struct options *o)
{
	int sock;

	if (s->given >= 0)
		return server_listen(s, s->given);
	sock = make_socket(o->socket);
	if (sock < 0)
		return pinl_set_error(sock, "can't listen on %s: %s", o->socket, strerror(-sock));
	return server_listen(s, sock);
}

/* A lease is one, a connection two. */
static void raise_descriptors(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r))
		return;
	r.rlim_cur = r.rlim_max;
	setrlimit(RLIMIT_NOFILE, &r);
}

static int add_signals(sd_event *event)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sd_event_add_signal(event, NULL, SIGTERM, NULL, NULL);
	sd_event_add_signal(event, NULL, SIGINT, NULL, NULL);
	return sd_event_set_watchdog(event, true);
}

static int fail(int err, const char *what)
{
	fprintf(stderr, "pinleased: %s: %s\n", what, *pinl_error() ? pinl_error() : strerror(-err));
	return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
	struct options o = {
		.socket = PL_PROTO_PATH,
		.limits = {.leases = 100000,
			   .bytes = 1ull << 40,
			   .connections = 1024,
			   .ceiling_ms = 10000,
			   .closed = true,
			   .notices = 60000,
			   .may_kill = true},
	};
	struct server *s;
	sd_event *event;
	int err;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	raise_descriptors();
	err = sd_event_default(&event);
	if (err < 0)
		return fail(err, "no event loop");
	add_signals(event);
	err = server_new(event, &o.limits, &s);
	if (err)
		return fail(err, "can't start");
	err = listen_on(s, &o);
	if (err < 0)
		return fail(err, "can't listen");
	sd_notify(0, "READY=1");
	err = sd_event_loop(event);
	sd_notify(0, "STOPPING=1");
	if (s->store.image && err >= 0) /* all is in the store: who waits, waits for the restart */
		_exit(EXIT_SUCCESS);
	server_free(s);
	sd_event_unref(event);
	return err < 0 ? fail(err, "event loop") : EXIT_SUCCESS;
}
