/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The device at work and the search for what it wrote. A write is one page of a letter that nobody else
 * writes: 'B' before the change, 'D' during it, 'A' after it, each to a page of its own. It is looked
 * for in the file, in memory as the CPU sees it, and in the pages that only the device still has.
 */
#include "demo.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char letters[NR_WRITES] = {'B', 'D', 'A'};

static int make_sources(struct demo_stage *s)
{
	char page[DEMO_PAGE];

	s->source = memfd_create("pinlease-demo-source", MFD_CLOEXEC);
	s->probe = memfd_create("pinlease-demo-probe", MFD_CLOEXEC);
	if (s->source < 0 || s->probe < 0)
		return -errno;
	for (int i = 0; i < NR_WRITES; i++) {
		memset(page, letters[i], sizeof(page));
		if (write(s->source, page, sizeof(page)) != (ssize_t)sizeof(page))
			return -errno;
	}
	return 0;
}

int demo_device_open(struct demo_stage *s)
{
	struct pinl_uring_arg arg = {.size = sizeof(arg), .ring = &s->ring};
	int err = make_sources(s);

	if (!err && s->plan->run != RUN_SOFT) {
		err = io_uring_queue_init(8, &s->ring, 0);
		s->has_ring = !err;
	}
	if (err) {
		demo_cant(s->r, err, "No io_uring here: %s%s", strerror(-err),
			  err == -ENOMEM ? "; raise RLIMIT_MEMLOCK (ulimit -l)" : "");
		return err;
	}
	if (s->plan->run == RUN_BARE || s->plan->run == RUN_SHARED_PIN)
		return 0;
	err = pinl_device_open(s->ctx, s->plan->run == RUN_SOFT ? "soft" : "uring",
			       s->plan->run == RUN_SOFT ? NULL : &arg, &s->dev);
	if (err)
		demo_cant(s->r, err, "No device: %s", pinl_error());
	return err;
}

int demo_device_register(struct demo_stage *s)
{
	struct iovec buffer = {s->file.map, DEMO_SIZE};

	return io_uring_register_buffers(&s->ring, &buffer, 1);
}

void demo_device_close(struct demo_stage *s)
{
	if (s->dev)
		pinl_device_close(s->dev);
	if (s->has_ring)
		io_uring_queue_exit(&s->ring);
	if (s->source >= 0)
		close(s->source);
	if (s->probe >= 0)
		close(s->probe);
}

/* --------------------------------------------------------------------------------------- writing -- */

/* Every completion is shown to pinlease first. True: it is the program's own. */
static bool is_mine(struct demo_stage *s, struct io_uring_cqe *cqe, int *res)
{
	bool mine = !s->dev || !pinl_uring_cqe(s->dev, cqe->user_data);

	*res = cqe->res;
	io_uring_cqe_seen(&s->ring, cqe);
	return mine;
}

void demo_device_reap(struct demo_stage *s)
{
	struct io_uring_cqe *cqe;
	int res;

	while (s->has_ring && !io_uring_peek_cqe(&s->ring, &cqe))
		is_mine(s, cqe, &res);
}

static int uring_write(struct demo_stage *s, enum demo_when when)
{
	struct __kernel_timespec limit = {.tv_sec = 5};
	struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);
	struct io_uring_cqe *cqe;
	int err, res;

	if (!sqe)
		return -EAGAIN;
	io_uring_prep_read_fixed(sqe, s->source, s->file.map + when * DEMO_PAGE, DEMO_PAGE,
				 when * DEMO_PAGE, s->lease ? (int)pinl_lease_key(s->lease) : 0);
	sqe->user_data = 1;
	io_uring_submit(&s->ring);
	do {
		err = io_uring_wait_cqe_timeout(&s->ring, &cqe, &limit);
		if (err)
			return err;
	} while (!is_mine(s, cqe, &res));
	return res;
}

static int soft_write(struct demo_stage *s, enum demo_when when)
{
	char page[DEMO_PAGE];
	int err;

	memset(page, letters[when], sizeof(page));
	err = pinl_soft_dma(s->dev, s->addrs[when].addr, page, sizeof(page), 1);
	return err ? err : (int)sizeof(page);
}

/* --------------------------------------------------------------------------------------- looking -- */

static bool all_of(const char *page, char letter)
{
	return page[0] == letter && !memcmp(page, page + 1, DEMO_PAGE - 1);
}

static bool in_file(struct demo_stage *s, unsigned page, char letter)
{
	char buf[DEMO_PAGE];

	return pread(s->file.fd, buf, sizeof(buf), (off_t)page * DEMO_PAGE) == (ssize_t)sizeof(buf) &&
	       all_of(buf, letter);
}

static bool in_memory(struct demo_stage *s, unsigned page, char letter)
{
	char buf[DEMO_PAGE];

	return !tool_peek(s->probe, s->file.map + page * DEMO_PAGE, buf, sizeof(buf)) &&
	       all_of(buf, letter);
}

static bool in_orphan(struct demo_stage *s, unsigned page, char letter)
{
	char buf[DEMO_PAGE];

	return s->lease && !pinl_lease_read(s->lease, (size_t)page * DEMO_PAGE, sizeof(buf), buf) &&
	       all_of(buf, letter);
}

static enum demo_place place_in_memory(struct demo_stage *s)
{
	struct pinl_lease_info info = {.size = sizeof(info)};

	if (!s->lease || pinl_lease_info(s->lease, &info))
		return IN_MAPPING;
	if (info.outcome == PINL_OUT_SCRATCH)
		return IN_SCRATCH;
	return info.outcome == PINL_OUT_COPY ? IN_COPY : IN_MAPPING;
}

static enum demo_place look_for(struct demo_stage *s, enum demo_when when)
{
	if (in_file(s, when, letters[when]))
		return IN_FILE;
	if (in_memory(s, when, letters[when]))
		return place_in_memory(s);
	return in_orphan(s, when, letters[when]) ? IN_ORPHAN : NOWHERE;
}

void demo_device_write(struct demo_stage *s, enum demo_when when)
{
	struct demo_write *w = &s->r->writes[when];

	w->time_ns = tool_now();
	w->res = s->plan->run == RUN_SOFT ? soft_write(s, when) : uring_write(s, when);
	w->place = w->res < 0 ? GOT_ERROR : look_for(s, when);
	w->end = w->place;
}

/* The case is over, the lease is still there: where is everything now? */
void demo_look_again(struct demo_stage *s)
{
	for (int i = 0; i < NR_WRITES; i++) {
		struct demo_write *w = &s->r->writes[i];

		if (w->place != NOT_DONE && w->place != GOT_ERROR)
			w->end = look_for(s, i);
	}
	/* Under KEEP the file may have had it for the moment before the truncate. */
	if (s->r->writes[DURING].end == IN_ORPHAN)
		s->r->writes[DURING].place = IN_ORPHAN;
	s->r->quiet_page_kept = in_memory(s, DEMO_QUIET_PAGE, DEMO_OLD);
}

/* The device is closed: what did it leave in the file? */
void demo_look_at_file(struct demo_stage *s)
{
	struct demo_result *r = s->r;

	r->file_emptied = r->file_intact = true;
	for (unsigned page = 0; page < DEMO_PAGES; page++) {
		bool old = in_file(s, page, DEMO_OLD),
		     device = page < NR_WRITES && in_file(s, page, letters[page]);

		r->file_intact &= old || device;
		r->file_emptied &= in_file(s, page, 0);
	}
}
