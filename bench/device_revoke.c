/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file under a device's lease is truncated: how long until the device is off, and until the call
 * returns; idle, and while the device writes to all of the lease. A ring of the bench's own (the
 * witness) has pinned the pages, too: as soon as the call has returned it poisons them, and when nothing
 * is in flight any more it counts the bytes that are no longer poison. "plain" is the same without the
 * library, to show that the witness sees what lands.
 */
#include "device.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define POISON 'P'

enum variant { PLAIN, IDLE, LOAD, VARIANTS };

static const char *const variant_names[] = {"plain", "idle", "load"};

struct flight {
	struct target *t;
	struct pinl_addr addrs[LOAD_MOST / PAGE];
	pthread_t thread;
	atomic_int moves, last;
};

struct witness {
	struct io_uring ring;
	int fd;
	char *buf; /* of fd */
};

struct times {
	struct samples off, back;
	uint64_t landed, watched;
	unsigned n;
};

/* --------------------------------------------------------------------------------------- witness -- */

static void witness_open(struct witness *w)
{
	must(io_uring_queue_init(4, &w->ring, 0), "io_uring_queue_init");
	w->fd = must(memfd_create("witness", MFD_CLOEXEC), "memfd_create");
	must(ftruncate(w->fd, LOAD_MOST), "ftruncate");
	w->buf = must_map(mmap(NULL, LOAD_MOST, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0), "mmap");
}

static void witness_close(struct witness *w)
{
	io_uring_queue_exit(&w->ring);
	munmap(w->buf, LOAD_MOST);
	close(w->fd);
}

static void witness_move(struct witness *w, char *at, size_t size, bool poison)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&w->ring);
	struct io_uring_cqe *cqe;

	if (poison)
		io_uring_prep_read_fixed(sqe, w->fd, at, size, 0, 0);
	else
		io_uring_prep_write_fixed(sqe, w->fd, at, size, 0, 0);
	must(io_uring_submit(&w->ring), "io_uring_submit");
	must(io_uring_wait_cqe(&w->ring, &cqe), "io_uring_wait_cqe");
	if (cqe->res != (int)size)
		fail("the witness moved %d of %zu bytes", cqe->res, size);
	io_uring_cqe_seen(&w->ring, cqe);
}

static void poison(struct witness *w, char *at, size_t size)
{
	memset(w->buf, POISON, size);
	witness_move(w, at, size, true);
	memset(w->buf, 0, size);
}

static uint64_t not_poison(struct witness *w, char *at, size_t size)
{
	uint64_t n = 0;

	witness_move(w, at, size, false);
	for (size_t i = 0; i < size; i++)
		n += w->buf[i] != POISON;
	return n;
}

/* ------------------------------------------------------------------------------------ the device -- */

static void *fly(void *arg)
{
	struct flight *f = arg;

	while (atomic_load(&f->moves) < atomic_load(&f->last) && !f->t->move(f->t, f->addrs))
		atomic_fetch_add(&f->moves, 1);
	return NULL;
}

static void take_off(struct flight *f, const char *at)
{
	if (f->t->launch) {
		f->t->launch(f->t, f->addrs);
		return;
	}
	atomic_store(&f->moves, 0);
	atomic_store(&f->last, 1 << 30);
	must(-pthread_create(&f->thread, NULL, fly, f), "pthread_create");
	while (*(const volatile char *)at != 'W')
		usleep(50);
}

/* What was on its way, and where the device isn't stopped one more that began after the poison. */
static void land(struct flight *f)
{
	if (f->t->land) {
		f->t->land(f->t);
		return;
	}
	atomic_store(&f->last, atomic_load(&f->moves) + 2);
	pthread_join(f->thread, NULL);
}

static struct pinl_lease *lease(struct target *t, char *at, struct pinl_addr *addrs)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, PINL_THEN_FAIL);
	uintptr_t start = (uintptr_t)at;
	struct pinl_lease *l;

	if (pinl_map_range(t->dev, start, start + t->size, t->flags, &policy, addrs, &l))
		fail("%s: %s", t->name, pinl_error());
	return l;
}

static void plain(struct target *t, char *at, struct pinl_addr *addrs)
{
	must(t->plain_map(t, at, t->size, addrs), t->name);
	for (size_t i = 1; i < t->size / PAGE; i++) {
		addrs[i] = addrs[0];
		addrs[i].addr += i * PAGE;
	}
}

/* ------------------------------------------------------------------------------------- measuring -- */

static void change(struct target *t, enum variant v, int fd, struct times *s)
{
	uint64_t begin = now_ns(), end;
	int err = v == PLAIN ? ftruncate(fd, 0) : pinl_ftruncate(t->rig->ctx, fd, 0);

	end = now_ns();
	if (err)
		fail("%s: ftruncate: %s", t->name, pinl_error());
	sample(&s->back, end - begin);
	if (v != PLAIN)
		sample(&s->off, rig_await(t->rig, PINL_EV_RELEASED) - begin);
}

static void once(struct target *t, enum variant v, struct flight *f, struct witness *w, struct times *s)
{
	int fd = must(memfd_create("leased", MFD_CLOEXEC), "memfd_create");
	struct pinl_lease *l = NULL;
	struct iovec iov;
	char *at;

	must(ftruncate(fd, t->size), "ftruncate");
	at = must_map(mmap(NULL, t->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0),
		      "mmap");
	iov = (struct iovec){at, t->size};
	must(io_uring_register_buffers(&w->ring, &iov, 1), "IORING_REGISTER_BUFFERS");
	if (t->prepare)
		t->prepare(t);
	if (v == PLAIN)
		plain(t, at, f->addrs);
	else
		l = lease(t, at, f->addrs);
	if (v != IDLE)
		take_off(f, at);
	change(t, v, fd, s);
	poison(w, at, t->size);
	if (v != IDLE)
		land(f);
	s->landed += not_poison(w, at, t->size);
	s->watched += t->size;
	s->n++;
	if (v == PLAIN)
		t->plain_unmap(t);
	rig_end(t->rig, l);
	must(io_uring_unregister_buffers(&w->ring), "IORING_UNREGISTER_BUFFERS");
	munmap(at, t->size);
	close(fd);
}

static void report(const struct bench *b, struct target *t, enum variant v, struct times *s)
{
	const char *name = variant_names[v];

	result(b, t->name, name, "back", &s->back, 1);
	if (v != PLAIN)
		result(b, t->name, name, "off", &s->off, 1);
	sample(&s->off, s->landed);
	result(b, t->name, name, "landed", &s->off, 1);
	sample(&s->off, s->watched);
	result(b, t->name, name, "watched", &s->off, 1);
	if (v != PLAIN && s->landed)
		fail("%s, %s: %lu bytes landed after the device was off", t->name, name, s->landed);
	free(s->off.ns);
	free(s->back.ns);
}

void device_revoke(const struct bench *b, struct target *t)
{
	static struct flight f;
	struct witness w;

	f.t = t;
	witness_open(&w);
	for (int v = 0; v < VARIANTS; v++) {
		struct times s = {0};

		if (v == PLAIN && !t->plain_map)
			continue;
		for (unsigned i = 0; i < b->few / 2 + 1; i++)
			once(t, v, &f, &w, &s);
		report(b, t, v, &s);
	}
	witness_close(&w);
}
