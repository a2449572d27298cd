/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinleased: options, sockets (systemd's or its own), signals, readiness, watchdog. */
#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon.h"
#include "gate.h"
#include "generation.h"
#include "gate_load.h"

struct options {
	const char *socket;
	struct limits limits;
};

/* The living renew the gate from the main loop, which the watchdog allows to be away so long. */
enum { DAY_MS = 24 * 60 * 60 * 1000, LEAST_KEEP_MS = 10000 };

enum {
	SOCKET = 's',
	LEASES = 'l',
	BYTES = 'b',
	CEILING = 'c',
	CONNECTIONS = 'n',
	CRASH = 'k',
	MAY_KILL = 'K',
	HOLD = 'm',
	NOTICES = 'r',
	GATE = 'g',
	GATE_KEEP = 'x'
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
	{"gate", GATE, "DIR", 0,
	 "Where the programs are pinned that refuse changes of files which can't be held; \"no\": there "
	 "are "
	 "none [" GATE_DIR "]",
	 0},
	{"gate-keeps", GATE_KEEP, "MS", 0,
	 "So long these go on refusing after a crash, until a restart [60000]", 0},
	{"max-connections", CONNECTIONS, "N", 0, "Connections of one user [1024]", 0},
	{0},
};

/* Seen by the C library, which is where it is printed. */
__attribute__((visibility("default"))) const char *argp_program_version = "pinleased " PINLEASE_VERSION;

static const char *name_of(int key)
{
	const struct argp_option *o = option_table;

	while (o->name && o->key != key)
		o++;
	return o->name;
}

/* Of K or KiB and the greater ones: which power of two; 0: it is none. */
static int unit(const char *text)
{
	static const char units[] = "KMGTPE";
	const char *at = *text ? strchr(units, *text) : NULL;

	return at && (!text[1] || !strcmp(text + 1, "iB")) ? 10 * (int)(at - units + 1) : 0;
}

/* strtoull() takes signs and blanks, too, and 0 before a number for octal. */
static uint64_t number(int key, const char *arg, uint64_t max, struct argp_state *state)
{
	bool hex = arg[0] == '0' && (arg[1] | 32) == 'x' && isxdigit((unsigned char)arg[2]);
	uint64_t least = key == GATE_KEEP ? LEAST_KEEP_MS : 1;
	unsigned long long n;
	char *end;
	int shift;

	errno = 0;
	n = strtoull(arg, &end, hex ? 16 : 10);
	shift = key == BYTES ? unit(end) : 0;
	if (!isdigit((unsigned char)*arg) || (*end && !shift) || errno || n < least || n > max >> shift)
		argp_error(state, "--%s: \"%s\" is not a number from %" PRIu64 " to %" PRIu64 "%s",
			   name_of(key), arg, least, max,
			   key == BYTES ? ", nor one with a unit, as 64G or 1TiB" : "");
	return n << shift;
}

/* Is it the first of two answers? */
static bool either(int key, const char *arg, const char *yes, const char *no, struct argp_state *state)
{
	if (strcmp(arg, yes) && strcmp(arg, no))
		argp_error(state, "--%s: \"%s\" is neither %s nor %s", name_of(key), arg, yes, no);
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
		o->limits.ceiling_ms = (unsigned)number(key, arg, DAY_MS, state);
		return 0;
	case LEASES:
		o->limits.leases = number(key, arg, UINT64_MAX, state);
		return 0;
	case BYTES:
		o->limits.bytes = number(key, arg, UINT64_MAX, state);
		return 0;
	case CONNECTIONS:
		o->limits.connections = (unsigned)number(key, arg, UINT32_MAX, state);
		return 0;
	case CRASH:
		o->limits.closed = either(key, arg, "closed", "open", state);
		return 0;
	case HOLD:
		o->limits.hold_ms = (unsigned)number(key, arg, DAY_MS, state);
		return 0;
	case NOTICES:
		o->limits.notices = (unsigned)number(key, arg, UINT32_MAX, state);
		return 0;
	case GATE:
		if (*arg != '/' && strcmp(arg, "no"))
			argp_error(state, "--gate: \"%s\" is neither no nor an absolute path", arg);
		o->limits.gate = *arg == '/';
		if (o->limits.gate)
			o->limits.gate_dir = arg;
		return 0;
	case GATE_KEEP:
		o->limits.gate_keep_ms = (unsigned)number(key, arg, DAY_MS, state);
		return 0;
	case MAY_KILL:
		o->limits.may_kill = either(key, arg, "yes", "no", state);
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected \"%s\"", arg);
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

static int listen_on(struct server *s, const struct options *o)
{
	int sock = s->given >= 0 ? listen_given(s->given) : listen_socket(o->socket);

	return sock < 0 ? sock : server_listen(s, sock);
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
			   .may_kill = true,
			   .gate = true,
			   .gate_dir = GATE_DIR,
			   .gate_keep_ms = 60000},
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
	if (err < 0) {
		err = fail(err, "can't start");
		gate_hand_over(s);
		return err;
	}
	gate_start(s);
	generation_start(s);
	sd_notify(0, "READY=1");
	err = sd_event_loop(event);
	sd_notify(0, "STOPPING=1");
	if (s->store.image && err >= 0) { /* all is in the store: who waits, waits for the restart */
		generation_stop(s);
		gate_hand_over(s);
		_exit(EXIT_SUCCESS);
	}
	server_free(s);
	sd_event_unref(event);
	return err < 0 ? fail(err, "event loop") : EXIT_SUCCESS;
}
