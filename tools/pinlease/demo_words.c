/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A result in the few words that fit into the cells of a table. */
#include "demo.h"

#include <errno.h>
#include <string.h>

const char *demo_place_name(enum demo_place place)
{
	static const char *const names[] = {
		[NOT_DONE] = "-",	  [IN_FILE] = "file",	 [IN_MAPPING] = "mapping",
		[IN_SCRATCH] = "scratch", [IN_COPY] = "copy",	 [IN_ORPHAN] = "orphan",
		[NOWHERE] = "nowhere",	  [GOT_ERROR] = "error",
	};

	return names[place];
}

void demo_group_words(const struct demo_env *env, const struct demo_plan *plan, char *buf, size_t len)
{
	snprintf(buf, len, "%s%s%s: %s", env->fs_name[plan->fs], env->dir[plan->fs] ? ", " : "",
		 env->dir[plan->fs] ? env->dir[plan->fs] : "",
		 plan->actor == BY_PROCESS ? "a second process truncates the file by ftruncate()"
					   : "a thread of the holder truncates it by pinl_ftruncate()");
}

static const char *verdict_word(enum demo_verdict verdict)
{
	static const char *const words[] = {
		[WENT_WELL] = "kept", [FAILED] = "FAILED", [SHOWN] = "shown", [NOT_HERE] = "not here"};

	return words[verdict];
}

/* What all rows of the group of row `first` have in common, or "". */
const char *demo_group_note(const struct demo_results *all, unsigned first)
{
	const struct demo_plan *plan = all->rows[first].plan;

	for (unsigned i = first; i < all->n && demo_same_group(plan, all->rows[i].plan); i++) {
		const struct demo_result *r = &all->rows[i];

		if (!r->lease[0] || r->held)
			continue;
		return plan->fs == ON_TMPFS ? "tmpfs lets nobody hold this: pinlease tells afterwards."
					    : "Nothing holds this here, see the sources above: pinlease "
					      "tells afterwards.";
	}
	return "";
}

static void actor_words(const struct demo_result *r, char *buf, size_t len)
{
	double ms = demo_waited_ms(r);

	if (r->actor.err)
		snprintf(buf, len, "%s after %.2f ms", tool_errno_name(r->actor.err), ms);
	else if (r->held && r->plan->policy == PINL_RECALL)
		snprintf(buf, len, "waited %.2f ms", ms);
	else
		snprintf(buf, len, "done in %.2f ms", ms);
}

/* NULL: not worth a word in a table. */
static const char *event_word(const struct pinl_event *ev, char *buf, size_t len)
{
	static const char *const words[] = {
		[PINL_EV_NOTICE] = "notice",	      [PINL_EV_QUIESCED] = "answered",
		[PINL_EV_RELEASED] = "released",      [PINL_EV_REFUSED] = "refused",
		[PINL_EV_FOLLOWED] = "followed",      [PINL_EV_ORPHAN] = "orphan",
		[PINL_EV_DEGRADED] = "told after",    [PINL_EV_LEAK] = "leak",
		[PINL_EV_DROPPED] = "events dropped",
	};

	if (ev->type == PINL_EV_DEGRADED && ev->err != -EALREADY)
		snprintf(buf, len, "%s %s", pinl_op_name(ev->op),
			 ev->err == -EBUSY ? "not refused" : "unseen");
	else if (ev->type == PINL_EV_FORCED)
		snprintf(buf, len, "forced to %s", pinl_outcome_name(ev->outcome));
	else if (ev->type == PINL_EV_ORPHAN_END)
		snprintf(buf, len, ev->err ? "orphan end, ? B" : "orphan end, %lu B",
			 (unsigned long)ev->bytes);
	else
		return (unsigned)ev->type < sizeof(words) / sizeof(*words) ? words[ev->type] : NULL;
	return buf;
}

static void holder_words(const struct demo_result *r, char *buf, size_t len)
{
	char word[48];

	for (unsigned i = 0; i < r->n_events; i++) {
		const struct pinl_event *ev = &r->events[i].ev;
		const char *name = event_word(ev, word, sizeof(word));

		if (name)
			tool_append(buf, len, "%s%s %+.2f", *buf ? ", " : "", name,
				    demo_ms(r, ev->time_ns));
	}
	if (!*buf)
		snprintf(buf, len, "nothing");
	else
		tool_append(buf, len, " ms");
}

static void device_words(const struct demo_result *r, char *buf, size_t len)
{
	for (int i = 0; i < NR_WRITES; i++) {
		const struct demo_write *w = &r->writes[i];

		tool_append(buf, len, "%s%s", i ? ", " : "",
			    w->place == GOT_ERROR ? tool_errno_name(w->res) : demo_place_name(w->place));
	}
}

static unsigned orphan_bytes(const struct demo_result *r)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < r->n_events; i++)
		if (r->events[i].ev.type == PINL_EV_ORPHAN_END)
			sum += r->events[i].ev.bytes;
	return (unsigned)sum;
}

static void lost_words(const struct demo_result *r, char *buf, size_t len)
{
	unsigned orphaned = orphan_bytes(r);

	if (r->plan->run == RUN_BARE)
		snprintf(buf, len, "%u bytes, and nobody is told", DEMO_PAGE);
	else if (!orphaned)
		snprintf(buf, len, demo_event(r, PINL_EV_ORPHAN) ? "not known, reported" : "nothing");
	else if (r->writes[DURING].end == IN_COPY)
		snprintf(buf, len, "nothing: the copy has the %u orphan bytes", orphaned);
	else
		snprintf(buf, len, "%u bytes, reported", orphaned);
}

void demo_words(const struct demo_result *r, struct demo_words *words)
{
	*words = (struct demo_words){0};
	snprintf(words->verdict, sizeof(words->verdict), "%s",
		 r->plan->run == RUN_BARE && r->verdict == SHOWN ? "LOST" : verdict_word(r->verdict));
	if (!r->reported)
		return;
	actor_words(r, words->actor, sizeof(words->actor));
	holder_words(r, words->holder, sizeof(words->holder));
	device_words(r, words->device, sizeof(words->device));
	lost_words(r, words->lost, sizeof(words->lost));
}

/* What the rows are about, in a sentence or two. */
static const char bare_story[] =
	"The buffer is registered with io_uring, as programs do it today. The truncate takes the pages "
	"from the file and the mapping, the device keeps them, and its writes still report success.";
static const char keep_story[] =
	"The truncate goes on and the device keeps its pages. They are orphans now, and what is written "
	"there is told: by an event, and when the program ends.";
static const char answer_story[] =
	"The holder gets a notice, finishes what it does, and answers; the device is off the pages at "
	"once.";
static const char fail_story[] =
	"The holder does not answer. At the deadline the memory is taken from the device, and its "
	"requests fail from then on.";
static const char scratch_story[] =
	"The holder does not answer. At the deadline the device, and the CPU at the same address, get "
	"private memory of no meaning; requests go on without an error.";
static const char copy_story[] =
	"The holder does not answer. At the deadline device and CPU get one private copy of the "
	"content, at the same address, and go on in it; the file is free.";
static const char refuse_story[] =
	"The truncate fails with EBUSY while the lease is there; the file stays as it is.";
static const char follow_story[] =
	"A device with a page table of its own pins nothing: its entries are dropped, and its next "
	"write faults in the file's new page.";

static const char *recall_story(const struct demo_plan *plan)
{
	static const char *const forced[] = {[PINL_THEN_FAIL] = fail_story,
					     [PINL_THEN_SCRATCH] = scratch_story,
					     [PINL_THEN_COPY] = copy_story};

	return plan->answers ? answer_story : forced[plan->then];
}

const char *demo_story(const struct demo_plan *plan)
{
	if (plan->run == RUN_BARE)
		return bare_story;
	if (plan->run == RUN_SHARED_PIN)
		return "Can a shared mapping of a file on disk be a fixed buffer at all?";
	switch (plan->policy) {
	case PINL_KEEP:
		return keep_story;
	case PINL_RECALL:
		return recall_story(plan);
	case PINL_REFUSE:
		return refuse_story;
	case PINL_FOLLOW:
		return follow_story;
	}
	return "";
}
