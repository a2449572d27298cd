/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Events of a program that was built with another version's header: it gets what it knows, no byte
 * beyond is touched, and none is read. The event ends where memory does. And what is said at the end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pinlease/source.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "check.h"

#define PG    4096ul
#define FIRST offsetof(struct pinl_event, access) /* all that the first version had */

struct rig {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	char *va, *pages;
};

/* An event is waiting: the lease's, which has been recalled. */
static int rig_up(void **state)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .grace_ms = 60000};
	struct pinl_opts opts = {.size = sizeof opts, .ceiling_ms = 60000, .summary_fd = -1};
	struct rig *r = calloc(1, sizeof *r);
	uintptr_t at;

	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	r->va = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	r->pages = mmap(NULL, 2 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(mprotect(r->pages + PG, PG, PROT_NONE), 0);
	at = (uintptr_t)r->va;
	assert_ok(pinl_map_range(r->dev, at, at + PG, PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &policy,
				 NULL, &r->lease));
	assert_ok(pinl_quiesced(r->lease));
	assert_int_equal(poll(&(struct pollfd){.fd = pinl_fd(r->ctx), .events = POLLIN}, 1, 20000), 1);
	*state = r;
	return 0;
}

static int rig_down(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	munmap(r->va, PG);
	munmap(r->pages, 2 * PG);
	free(r);
	return 0;
}

/* So many bytes, and no more memory after them, but for alignment. */
static struct pinl_event *cut(const struct rig *r, size_t size)
{
	struct pinl_event *ev = (struct pinl_event *)(r->pages + PG - (size + 7) / 8 * 8);

	ev->size = size;
	return ev;
}

static void an_older_program_gets_what_it_knows(void **state)
{
	struct rig *r = *state;
	struct pinl_event *ev = cut(r, FIRST);
	struct pinl_lease_info info = {.size = sizeof info};
	char line[256];

	assert_ok(pinl_lease_info(r->lease, &info));
	assert_ok(pinl_next_event(r->ctx, ev));
	assert_int_equal(ev->size, FIRST);
	assert_int_equal(ev->lease_id, info.id);
	assert_int_equal(ev->end, (uintptr_t)r->va + PG);
	assert_true(pinl_event_format(ev, line, sizeof line) > 0);
	ev->type = PINL_EV_KEYS;
	assert_true(pinl_event_format(ev, line, sizeof line) > 0);
}

static void a_newer_program_is_told_what_it_does_not_get(void **state)
{
	struct rig *r = *state;
	struct pinl_event *ev = cut(r, sizeof *ev + 64);

	memset(ev, 'n', sizeof *ev + 64);
	ev->size = sizeof *ev + 64;
	assert_ok(pinl_next_event(r->ctx, ev));
	assert_int_equal(ev->size, sizeof *ev);
	for (int i = 0; i < 64; i++)
		assert_int_equal(((char *)(ev + 1))[i], 'n');
}

static void without_a_size_nothing_is_taken(void **state)
{
	struct rig *r = *state;
	struct pinl_event ev = {0};

	assert_int_equal(pinl_next_event(r->ctx, &ev), -EINVAL);
	assert_non_null(strstr(pinl_error(), "size"));
	ev.size = FIRST - 1;
	assert_int_equal(pinl_next_event(r->ctx, &ev), -EINVAL);
	assert_int_equal(ev.type, 0);
	ev.size = sizeof ev;
	assert_ok(pinl_next_event(r->ctx, &ev));
}

/* What comes of a change of another mapping, as a source would tell of it, in the words of its end. */
static uint64_t waited(struct rig *r, const char *can, char *line, size_t len)
{
	struct pinl_policy policy = {
		.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_SCRATCH, .grace_ms = 1};
	char *va = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
	     script[128];
	struct pinl_event ev = {.size = sizeof ev};
	struct pinl_lease *l;

	assert_ok(pinl_map_range(r->dev, (uintptr_t)va, (uintptr_t)va + PG,
				 PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &policy, NULL, &l));
	snprintf(script, sizeof script, "dontneed va %p %p %s\n", va, va + PG, can);
	assert_ok(pinl_script_run(r->ctx, script));
	while (ev.type != PINL_EV_ANSWERED)
		assert_ok(pinl_next_event(r->ctx, &ev));
	pinl_event_format(&ev, line, len);
	pinl_unmap_range(l);
	munmap(va, PG);
	return ev.waited_ns;
}

static void who_was_not_held_has_not_waited(void **state)
{
	char line[256];

	assert_true(waited(*state, "tbh", line, sizeof line) >= 1000000);
	assert_non_null(strstr(line, ", waited "));
	assert_int_equal(waited(*state, "t", line, sizeof line), 0);
	assert_null(strstr(line, "waited"));
}

static void what_fell_short_is_said(void **state)
{
	struct pinl_event ev = {.size = sizeof ev,
				.type = PINL_EV_FORCED,
				.op = PINL_OP_NR,
				.outcome = PINL_OUT_FAIL,
				.err = -EOPNOTSUPP};
	char line[256];

	pinl_event_format(&ev, line, sizeof line);
	assert_non_null(strstr(line, "SCRATCH or COPY"));
	ev.err = -ETIMEDOUT;
	pinl_event_format(&ev, line, sizeof line);
	assert_non_null(strstr(line, "isn't confirmed"));
}

static void await_orphan(struct pinl_lease *l)
{
	struct pinl_lease_info info = {.size = sizeof info};

	while (!info.orphan_bytes) /* the worker says it */
		assert_ok(pinl_lease_info(l, &info));
}

/* A program that leaves more orphans than anybody reads, half of them to its end. */
static void leave_orphans(int fd)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = fd};
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_KEEP};
	struct pinl_lease *leases[40];
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	char script[128];

	assert_ok(pinl_open(&opts, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", NULL, &dev));
	for (int i = 0; i < 40; i++) {
		char *va = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		assert_ok(pinl_map_range(dev, (uintptr_t)va, (uintptr_t)va + PG,
					 PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &policy, NULL,
					 &leases[i]));
		snprintf(script, sizeof script, "dontneed va %p %p t\n", va, va + PG);
		assert_ok(pinl_script_run(ctx, script));
		await_orphan(leases[i]);
	}
	for (int i = 0; i < 20; i++)
		pinl_unmap_range(leases[i]);
	exit(0);
}

static int lines_with(const char *text, const char *words)
{
	int n = 0;

	for (; (text = strstr(text, words)); text += strlen(words))
		n++;
	return n;
}

static void of_many_orphans_the_first_are_said(void **state)
{
	int fd = memfd_create("summary", 0), status;
	char text[8192] = "";
	pid_t pid = fork();

	if (!pid)
		leave_orphans(fd);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_true(pread(fd, text, sizeof text - 1, 0) > 0);
	assert_int_equal(lines_with(text, " ends with the process: "), 16);
	assert_int_equal(lines_with(text, "pinlease: and 4 more leases with orphaned bytes\n"), 1);
	assert_int_equal(lines_with(text, "pinlease: 20 orphans in this process:\n"), 1);
	assert_int_equal(lines_with(text, " still had "), 16);
	assert_int_equal(lines_with(text, "pinlease:   and 4 more\n"), 1);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(an_older_program_gets_what_it_knows, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(a_newer_program_is_told_what_it_does_not_get, rig_up,
						rig_down),
		cmocka_unit_test_setup_teardown(without_a_size_nothing_is_taken, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(who_was_not_held_has_not_waited, rig_up, rig_down),
		cmocka_unit_test(what_fell_short_is_said),
		cmocka_unit_test(of_many_orphans_the_first_are_said),
	};

	return cmocka_run_group_tests_name("event", tests, NULL, NULL);
}
