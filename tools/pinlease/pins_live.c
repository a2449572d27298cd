/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease pins --watch, --trace: pins as they come and go, until a signal says that it is enough. */
#include <bpf/libbpf.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <live.skel.h>
#include "command.h"
#include "common.h"
#include "pins_live.h"

#define LOOK_MS	  2000 /* so often a trace looks at what is left */
#define MERGE_MS  100  /* releases of a site that follow each other so soon become one line */
#define AT_A_TIME 4096 /* events, then it looks whether it is to end */

/* What trace still keeps back. */
struct following {
	struct live *l;
	struct live_event kept;
	bool keeps;
	int taken;
	uint64_t lost; /* events that were missing so far, which has been said */
};

static void let_go(struct following *f)
{
	if (f->keeps)
		live_print_event(f->l, &f->kept);
	f->keeps = false;
}

static void tell_lost(struct following *f, uint64_t ns, uint64_t lost)
{
	if (lost <= f->lost)
		return;
	let_go(f);
	live_print_gap(f->l, ns, lost - f->lost);
	f->lost = lost;
}

static bool is_part(const struct live_event *a, const struct live_event *b)
{
	return a->addr <= b->addr + b->reach * PINS_PAGE && a->index <= b->index + b->reach;
}

/* One ends where the other begins, or they are of the same. */
static bool are_one(const struct live_event *a, const struct live_event *b)
{
	return is_part(a, b) && is_part(b, a);
}

static uint64_t more(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* A buffer is pinned by one call and released page by page. */
static void merge(struct live_event *k, const struct live_event *e)
{
	uint64_t end = more(k->index + k->reach, e->index + e->reach);

	k->ns = e->ns;
	k->addr = e->addr < k->addr ? e->addr : k->addr;
	k->index = e->index < k->index ? e->index : k->index;
	k->reach = end - k->index;
	k->pages += e->pages;
	k->held_ns = more(k->held_ns, e->held_ns);
	k->untimed = k->untimed && e->untimed;
}

static int take_event(void *arg, void *data, size_t size)
{
	struct following *f = arg;
	const struct live_event *e = data;
	struct live_event *k = &f->kept;
	bool goes_on = ++f->taken < AT_A_TIME;

	tell_lost(f, e->ns, e->lost);
	if (f->keeps && e->what == LIVE_RELEASE && k->site == e->site && k->tid == e->tid &&
	    e->ns - k->ns < MERGE_MS * 1000000ull && are_one(k, e)) {
		merge(k, e);
		return goes_on ? 0 : -EAGAIN;
	}
	let_go(f);
	if (e->what == LIVE_RELEASE) {
		f->kept = *e;
		f->keeps = true;
	} else
		live_print_event(f->l, e);
	return goes_on ? 0 : -EAGAIN;
}

static int open_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

/* -EINTR: a signal came. */
static int wait_for(int signals, int events, int ms)
{
	struct pollfd fds[] = {{.fd = signals, .events = POLLIN}, {.fd = events, .events = POLLIN}};

	if (poll(fds, 2, ms) < 0 && errno != EINTR) {
		int err = -errno;

		pins_say("can't wait for events (%s)", strerror(-err));
		return err;
	}
	return fds[0].revents ? -EINTR : 0;
}

/* At the end: all that there was room for. */
static void take_events(struct following *f, struct ring_buffer *ring, bool all)
{
	size_t rounds = all ? f->l->o->buffer / sizeof(struct live_event) / AT_A_TIME + 1 : 1;

	for (size_t i = 0; i < rounds; i++) {
		f->taken = 0;
		ring_buffer__consume(ring);
	}
}

static int trace(struct live *l, int signals)
{
	struct following f = {.l = l};
	struct ring_buffer *ring =
		ring_buffer__new(bpf_map__fd(l->bpf->maps.ring), take_event, &f, NULL);
	uint64_t looked = tool_now();
	int err = ring ? 0 : -errno;

	if (err)
		pins_say("can't read the buffer of events (%s)", strerror(-err));

	while (!err) {
		err = wait_for(signals, ring_buffer__epoll_fd(ring), f.keeps ? MERGE_MS : LOOK_MS);
		take_events(&f, ring, err);
		if (!f.keeps || tool_now() - f.kept.ns > MERGE_MS * 1000000ull || err)
			let_go(&f);
		if (f.taken < AT_A_TIME) /* those that are missing came after all that were taken */
			tell_lost(&f, tool_now(), l->bpf->bss->lost_events);
		if (!err && tool_now() - looked > LOOK_MS * 1000000ull) {
			err = live_look(l);
			if (!err)
				err = live_find_leaks(l, false);
			looked = tool_now();
		}
		if (tool_flush("pinlease pins"))
			err = -EIO;
	}
	ring_buffer__free(ring);
	return err;
}

static int watch(struct live *l, int signals)
{
	const char *terminal = getenv("TERM");
	bool clear = isatty(STDOUT_FILENO) && !l->o->json && terminal && strcmp(terminal, "dumb");
	int err = 0;

	while (!err) {
		err = live_look(l);
		if (!err)
			err = live_find_leaks(l, false);
		if (err)
			break;
		if (clear)
			fputs("\033[H\033[2J", stdout);
		live_print_picture(l, false);
		if (!clear && !l->o->json)
			putchar('\n');
		err = tool_flush("pinlease pins");
		if (!err)
			err = wait_for(signals, -1, (int)l->o->delay_ms);
	}
	return err;
}

static int run(struct live *l, int signals)
{
	int err;

	live_read_cost(l);
	l->before = l->cost;
	l->began_ns = tool_now();
	err = live_find_already(l);
	if (!err)
		live_print_start(l);
	if (!err)
		err = tool_flush("pinlease pins");
	if (!err)
		err = l->o->mode == PINS_TRACE ? trace(l, signals) : watch(l, signals);
	if (err == -EINTR) {
		err = live_look(l);
		if (!err)
			err = live_find_leaks(l, true);
		if (!l->o->json)
			putchar('\n');
		live_print_picture(l, true);
	}
	return err;
}

int pins_live(struct census *c, const struct pins_options *o)
{
	struct live l = {.o = o,
			 .c = c,
			 .stats = -1,
			 .leaks = {.size = sizeof(struct live_leak)},
			 .order = {.size = sizeof(struct live_known *)}};
	int signals = open_signals(), err = signals < 0 ? -errno : 0;

	if (err)
		pins_say("can't wait for signals (%s)", strerror(-err));
	if (!err)
		err = pins_load(c);
	if (!err)
		err = pins_calibrate(c);
	pins_release_own(c);
	if (!err)
		err = live_follow_any(&l);
	if (!err)
		err = run(&l, signals);
	close(signals);
	live_forget(&l);
	pins_free(&l.leaks);
	if (l.bpf)
		live_unfollow(&l);
	return err;
}
