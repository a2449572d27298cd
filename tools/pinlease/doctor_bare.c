/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happens without pinlease: a plain fixed buffer of an io_uring ring, the operation, and then a
 * read of the device into the buffer that reports success. Where is what it read? As a program would,
 * the file gets its size back and the addresses their mapping before the device writes.
 */
#include "doctor.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE   4096u
#define LETTER 'D'

struct bare {
	struct doctor_sample sample;
	struct io_uring ring;
	char *buffer; /* where the device was told to write */
	int source;
};

static int give_back(struct doctor_sample *s, char *at, enum pinl_op op)
{
	int flags = MAP_FIXED_NOREPLACE | (s->memory->shared ? MAP_SHARED : MAP_PRIVATE);

	if (op == PINL_OP_TRUNCATE)
		return ftruncate(s->fd, (off_t)s->size) ? -errno : 0;
	if (op != PINL_OP_UNMAP || s->has_ring)
		return 0;
	if (s->fd < 0)
		flags |= MAP_ANONYMOUS;
	s->map = mmap(at, s->size, PROT_READ | PROT_WRITE, flags, s->fd, 0);
	if (s->map != MAP_FAILED)
		return 0;
	s->map = NULL;
	return -errno;
}

static int device_writes(struct bare *b)
{
	struct __kernel_timespec limit = {.tv_sec = 5};
	struct io_uring_sqe *sqe = io_uring_get_sqe(&b->ring);
	struct io_uring_cqe *cqe;
	int err;

	io_uring_prep_read_fixed(sqe, b->source, b->buffer, PAGE, 0, 0);
	io_uring_submit(&b->ring);
	err = io_uring_wait_cqe_timeout(&b->ring, &cqe, &limit);
	if (err)
		return err;
	err = cqe->res < 0 ? cqe->res : cqe->res == (int)PAGE ? 0 : -EIO;
	io_uring_cqe_seen(&b->ring, cqe);
	return err;
}

static bool in_file(const struct doctor_sample *s)
{
	char page[PAGE];

	for (off_t at = 0; s->fd >= 0 && pread(s->fd, page, sizeof(page), at) == (ssize_t)sizeof(page);
	     at += (off_t)s->unit)
		if (page[0] == LETTER && !memcmp(page, page + 1, sizeof(page) - 1))
			return true;
	return false;
}

static void look(struct bare *b, struct doctor_bare *out)
{
	const struct doctor_sample *s = &b->sample;

	out->moved = !s->map && doctor_sample_reads(s, s->elsewhere + s->unit, LETTER);
	if (out->moved || (s->map && doctor_sample_reads(s, b->buffer, LETTER)))
		out->outcome = BARE_SAME;
	else
		out->outcome = in_file(s) ? BARE_FILE : BARE_LOST;
}

static void change_and_write(struct bare *b, enum pinl_op op, int pin_err, struct doctor_bare *out)
{
	char *at = b->sample.map;
	int err = doctor_change(&b->sample, op);

	b->buffer = at + b->sample.unit;
	if (err) {
		*out = (struct doctor_bare){.outcome = BARE_NOT_HERE, .err = err};
		return;
	}
	doctor_changed(&b->sample, op);
	if (pin_err) {
		*out = (struct doctor_bare){.outcome = BARE_NO_PIN, .err = pin_err};
		return;
	}
	err = give_back(&b->sample, at, op);
	if (!err)
		err = device_writes(b);
	if (err)
		*out = (struct doctor_bare){.outcome = BARE_ERROR, .err = err};
	else
		look(b, out);
}

static int make_source(struct bare *b)
{
	char page[PAGE];

	memset(page, LETTER, sizeof(page));
	b->source = memfd_create("pinlease-doctor-source", MFD_CLOEXEC);
	return b->source < 0 || write(b->source, page, sizeof(page)) != (ssize_t)sizeof(page) ? -errno
											      : 0;
}

/* Without a ring it is still found out which operations there are. */
static void one(const struct doctor_memory *memory, enum pinl_op op, struct doctor_bare *out)
{
	struct bare b = {.source = -1};
	struct iovec buffer;
	int ring_err = io_uring_queue_init(4, &b.ring, 0), pin_err = ring_err;
	int err = doctor_sample_make(memory, &b.sample);

	if (!err)
		err = make_source(&b);
	if (!err && !ring_err) {
		buffer = (struct iovec){b.sample.map, b.sample.size};
		pin_err = io_uring_register_buffers(&b.ring, &buffer, 1);
	}
	*out = (struct doctor_bare){.outcome = BARE_ERROR, .err = err};
	if (!err)
		change_and_write(&b, op, pin_err, out);
	if (!ring_err) {
		io_uring_unregister_buffers(&b.ring); /* now: the ring's own end comes later */
		io_uring_queue_exit(&b.ring);
	}
	doctor_sample_drop(&b.sample);
	if (b.source >= 0)
		close(b.source);
}

void doctor_bare(struct doctor_row *row)
{
	for (int op = 0; op < PINL_OP_NR; op++)
		one(row->memory, op, &row->bare[op]);
}
