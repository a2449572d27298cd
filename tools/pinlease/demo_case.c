/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One row, run. Always the same program: the device writes once, the actor truncates the file, the
 * device writes while that is under way if the holder hears of it, the actor gives the file its size
 * back, and the device writes once more. The last two come when the actor has reported and the event
 * that ends the case has come; nothing waits by the clock but to give up.
 */
#include "demo.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define GIVE_UP_NS 6000000000u

/* ---------------------------------------------------------------------------------- the holder -- */

/* The event after which the device writes its second page, and the holder answers if it does. */
static enum pinl_event_type cue(const struct demo_stage *s)
{
	return s->plan->policy == PINL_RECALL && s->r->held ? PINL_EV_NOTICE : PINL_EV_ORPHAN;
}

static enum pinl_event_type last_event(const struct demo_stage *s)
{
	switch (s->plan->policy) {
	case PINL_KEEP:
		return PINL_EV_ORPHAN;
	case PINL_RECALL:
		return PINL_EV_RELEASED;
	case PINL_REFUSE:
		return PINL_EV_REFUSED;
	case PINL_FOLLOW:
		break;
	}
	return PINL_EV_FOLLOWED;
}

static void record(struct demo_result *r, const struct pinl_event *ev)
{
	const unsigned max = sizeof(r->events) / sizeof(*r->events);
	struct demo_event *e;

	if (r->n_events == max)
		return;
	e = &r->events[r->n_events++];
	e->ev = *ev;
	pinl_event_format(ev, e->text, sizeof(e->text));
}

static void on_event(struct demo_stage *s, const struct pinl_event *ev)
{
	struct demo_result *r = s->r;

	record(r, ev);
	if (!s->lease || ev->type != cue(s) || r->writes[DURING].place != NOT_DONE)
		return;
	demo_device_write(s, DURING);
	if (s->plan->answers) {
		r->answer_ns = tool_now();
		r->answer_err = pinl_quiesced(s->lease);
	}
}

static void take_events(struct demo_stage *s)
{
	struct pinl_event ev = {.size = sizeof(ev)};

	while (s->ctx && !pinl_next_event(s->ctx, &ev))
		on_event(s, &ev);
}

static void take_report(struct demo_stage *s)
{
	struct demo_report report;
	ssize_t n = read(s->report_fd, &report, sizeof(report));

	if (n == sizeof(report) && report.serial != s->serial)
		return;
	if (n == sizeof(report))
		s->r->actor = report;
	else
		demo_fail(s->r, "the actor died before it reported");
	s->r->reported = true;
}

static bool is_over(const struct demo_stage *s)
{
	bool refused = s->r->actor.err == -EBUSY && s->plan->policy == PINL_REFUSE;

	if (!s->r->reported)
		return false;
	return !s->r->told || (s->r->actor.err && !refused) || demo_event(s->r, last_event(s));
}

static void play(struct demo_stage *s)
{
	uint64_t give_up = tool_now() + GIVE_UP_NS;

	while (!is_over(s) && !s->r->timeout) {
		struct pollfd fds[] = {
			{.fd = s->r->reported ? -1 : s->report_fd, .events = POLLIN},
			{.fd = s->ctx ? pinl_fd(s->ctx) : -1, .events = POLLIN},
			{.fd = s->has_ring ? s->ring.ring_fd : -1, .events = POLLIN},
		};
		uint64_t now = tool_now();

		s->r->timeout = now >= give_up;
		poll(fds, 3, now < give_up ? (int)((give_up - now) / 1000000) + 1 : 0);
		if (fds[0].revents)
			take_report(s);
		if (fds[2].revents)
			demo_device_reap(s);
		take_events(s);
	}
}

static void act(struct demo_stage *s)
{
	int err;

	demo_device_write(s, BEFORE);
	err = demo_actor_truncate(s);
	if (err) {
		demo_fail(s->r, "can't send the actor off: %s", strerror(-err));
		return;
	}
	play(s);
	if (s->r->timeout)
		return;
	if (!s->r->actor.err)
		s->r->grow_err = demo_actor_grow(s);
	demo_device_write(s, AFTER);
	take_events(s);
	demo_look_again(s);
}

/* ------------------------------------------------------------------------------- without pinlease -- */

static void run_bare(struct demo_stage *s)
{
	int err = demo_device_register(s);

	if (err)
		demo_cant(s->r, err, "io_uring can't register the buffer: %s", strerror(-err));
	else
		act(s);
}

static void run_shared_pin(struct demo_stage *s)
{
	static const char why[] =
		"Registering it as a fixed buffer fails with EFAULT: since 6.5 Linux refuses writable "
		"long-term pins of shared mappings of files on disk. So the rows below map the file "
		"MAP_PRIVATE (a truncate takes those pages away as well), and the last one uses a "
		"device that needs no pins. PINL_STAGE, which isn't shown here, leases a shared mapping "
		"by a staged copy (examples/stage.c)";
	int err = demo_device_register(s);

	s->r->verdict = SHOWN;
	if (err == -EFAULT)
		snprintf(s->r->reason, sizeof(s->r->reason), "%s", why);
	else
		snprintf(s->r->reason, sizeof(s->r->reason), "Registering it as a fixed buffer: %s",
			 err ? strerror(-err) : "this kernel allows it");
}

/* ---------------------------------------------------------------------------------- with pinlease -- */

static int open_context(struct demo_stage *s)
{
	struct pinl_opts opts = {.size = sizeof(opts), .drain_ms = DEMO_DRAIN_MS};
	int err;

	s->summary = memfd_create("pinlease-demo-summary", MFD_CLOEXEC);
	opts.summary_fd = s->summary;
	err = s->summary < 0 ? -errno : pinl_open(&opts, &s->ctx);
	if (err)
		demo_fail(s->r, "No context: %s", s->summary < 0 ? strerror(-err) : pinl_error());
	return err;
}

static int map(struct demo_stage *s, unsigned flags)
{
	struct pinl_policy policy = {
		.size = sizeof(policy),
		.kind = s->plan->policy,
		.then = s->plan->then,
		.grace_ms = s->plan->grace_ms,
		.refuse = s->plan->policy == PINL_REFUSE ? PINL_OPBIT(PINL_OP_TRUNCATE) : 0,
	};
	uintptr_t start = (uintptr_t)s->file.map;

	flags |= PINL_WRITE | (s->plan->run == RUN_URING ? PINL_PIN : 0);
	return pinl_map_range(s->dev, start, start + DEMO_SIZE, flags, &policy, s->addrs, &s->lease);
}

/*
 * A lease is refused where its policy can't be kept. A RECALL or FOLLOW that is refused because not
 * every operation is seen can still be had by accepting that; then this row shows what is told.
 */
static int take_lease(struct demo_stage *s)
{
	struct demo_result *r = s->r;
	bool by_call = s->plan->actor == BY_CALL;
	int err = map(s, by_call ? PINL_COOPERATIVE : 0);

	if (err == -EOPNOTSUPP && !by_call && s->plan->policy != PINL_REFUSE) {
		snprintf(r->weaker, sizeof(r->weaker), "%s", pinl_error());
		err = map(s, PINL_COOPERATIVE);
	}
	if (err == -EOPNOTSUPP)
		demo_not_here(r, "No lease: %s", pinl_error());
	else if (err)
		demo_cant(r, err, "The lease: %s", pinl_error());
	if (err)
		r->weaker[0] = '\0';
	r->lease_err = err;
	return err;
}

static void describe_lease(struct demo_stage *s)
{
	struct pinl_lease_info info = {.size = sizeof(info)};
	struct demo_result *r = s->r;
	char sources[1024] = "";
	unsigned can;

	pinl_sources(s->ctx, sources, sizeof(sources));
	r->afar = s->plan->actor != BY_CALL && strstr(sources, "arbiter: running");
	pinl_lease_describe(s->lease, r->lease, sizeof(r->lease));
	pinl_lease_info(s->lease, &info);
	can = info.coverage[PINL_OP_TRUNCATE];
	r->held = s->plan->actor == BY_CALL || (can & PINL_CAN_HOLD);
	r->told = r->held || (can & PINL_CAN_TELL);
}

/* KEEP is the only policy that means something without being told: the orphan is found at the end. */
static bool worth_running(struct demo_stage *s)
{
	struct demo_result *r = s->r;

	if (r->told || s->plan->policy == PINL_KEEP)
		return true;
	demo_not_here(r, "No lease: %s", r->weaker);
	r->weaker[0] = '\0';
	return false;
}

static void run_leased(struct demo_stage *s)
{
	if (take_lease(s))
		return;
	describe_lease(s);
	if (worth_running(s))
		act(s);
	pinl_unmap_range(s->lease); /* also lets a held actor go, so that it can be waited for */
	s->lease = NULL;
	demo_actor_end(s);
	take_events(s);
}

/* -------------------------------------------------------------------------------------- the stage -- */

static void close_context(struct demo_stage *s)
{
	ssize_t n;

	if (s->ctx)
		pinl_close(s->ctx);
	s->ctx = NULL;
	if (s->summary < 0)
		return;
	n = pread(s->summary, s->r->summary, sizeof(s->r->summary) - 1, 0);
	s->r->summary[n > 0 ? n : 0] = '\0';
	close(s->summary);
}

static void run_on_stage(struct demo_stage *s)
{
	bool leased = s->plan->run == RUN_URING || s->plan->run == RUN_SOFT;

	if (leased && open_context(s))
		return;
	if (demo_device_open(s))
		return;
	if (leased)
		run_leased(s);
	else if (s->plan->run == RUN_BARE)
		run_bare(s);
	else
		run_shared_pin(s);
}

void demo_run_case(const struct demo_env *env, const struct demo_plan *plan, struct demo_result *r)
{
	struct demo_stage s = {.env = env,
			       .plan = plan,
			       .r = r,
			       .file.fd = -1,
			       .report_fd = -1,
			       .source = -1,
			       .probe = -1,
			       .summary = -1};
	bool shared = plan->fs == ON_TMPFS || plan->run == RUN_SOFT || plan->run == RUN_SHARED_PIN;
	int err;

	*r = (struct demo_result){.plan = plan};
	if (!env->dir[plan->fs]) {
		demo_not_here(r, "%s", env->why[plan->fs]);
		return;
	}
	err = demo_file_make(env->dir[plan->fs], shared, &s.file);
	if (err) {
		demo_fail(r, "can't make a file in %s: %s", env->dir[plan->fs], strerror(-err));
		return;
	}
	run_on_stage(&s);
	demo_device_close(&s);
	close_context(&s);
	demo_look_at_file(&s);
	demo_file_drop(&s.file);
	demo_check(r);
}
