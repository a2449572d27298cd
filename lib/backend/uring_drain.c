/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * When is a request that used an old buffer over? The kernel says it with a completion carrying the
 * buffer's tag, in the program's queue. The program passes it on (pinl_uring_cqe); while it doesn't,
 * because it hangs or waits for us, the entry is found by looking at the queue without taking it out.
 *
 * Looking is safe beside the program and the kernel: an entry is read between head and tail, and a
 * value torn by reuse can only be mistaken for a tag that was really posted, tags being unique.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "backend/ring_move.h"
#include "backend/uring.h"
#include "backend/uring_table.h"
#include "os/clock.h"

#define PAGE 4096ul

int pl_uring_cq_open(struct uring_dev *d, const struct io_uring *ring)
{
	struct uring_cq *cq = &d->cq;
	const char *base = ring->cq.ring_ptr;
	char *map;

	cq->len = ring->cq.ring_sz;
	map = mmap(NULL, cq->len, PROT_READ, MAP_SHARED, d->ring, IORING_OFF_CQ_RING);
	if (map == MAP_FAILED) { /* a ring in the program's own memory */
		cq->map = NULL;
		return -errno;
	}
	cq->map = map;
	cq->head = (unsigned *)(map + ((char *)ring->cq.khead - base));
	cq->tail = (unsigned *)(map + ((char *)ring->cq.ktail - base));
	cq->cqes = (struct io_uring_cqe *)(map + ((char *)ring->cq.cqes - base));
	cq->mask = *(unsigned *)(map + ((char *)ring->cq.kring_mask - base));
	if ((ring->features & IORING_FEAT_SINGLE_MMAP) && ring->sq.ring_ptr == ring->cq.ring_ptr)
		cq->flags = (unsigned *)(map + ((char *)ring->sq.kflags - base));
	cq->shift = ring->flags & IORING_SETUP_CQE32 ? 1 : 0;
	return 0;
}

void pl_uring_cq_close(struct uring_dev *d)
{
	if (d->cq.map)
		munmap(d->cq.map, d->cq.len);
}

static struct uring_tag **chain(struct uring_dev *d, uint64_t tag)
{
	return &d->tags[(uint32_t)tag % d->nr];
}

static void tag_drop(struct uring_dev *d, struct uring_tag *t)
{
	struct uring_tag **p = chain(d, t->tag);

	while (*p != t)
		p = &(*p)->next;
	*p = t->next;
	t->map->n_waiting--;
	t->map = NULL;
}

/* The content with this tag has been taken out; some request may still use it. */
void pl_uring_tag_wait(struct uring_dev *d, struct uring_map *u, uint64_t tag)
{
	struct uring_tag *t = u->waiting, **p = chain(d, tag);

	if (u->n_waiting == URING_WAITING) {
		u->lost = true;
		return;
	}
	while (t->map)
		t++;
	*t = (struct uring_tag){.next = *p, .map = u, .tag = tag};
	*p = t;
	u->n_waiting++;
}

void pl_uring_tags_drop(struct uring_dev *d, struct uring_map *u)
{
	for (int i = 0; i < URING_WAITING; i++)
		if (u->waiting[i].map)
			tag_drop(d, &u->waiting[i]);
}

bool pl_uring_tag_seen(struct uring_dev *d, uint64_t user_data)
{
	struct uring_tag *t;

	if ((user_data & 0xffffffff00000000ull) != PL_URING_TAG)
		return false;
	for (t = *chain(d, user_data); t && t->tag != user_data;)
		t = t->next;
	if (t)
		tag_drop(d, t);
	return true;
}

void pl_uring_cq_look(struct uring_dev *d)
{
	struct uring_cq *cq = &d->cq;
	unsigned head, tail;

	/* A tag is waited for before anybody can look, so what has been looked at has no news. */
	if (!cq->map)
		return;
	head = __atomic_load_n(cq->head, __ATOMIC_ACQUIRE);
	tail = __atomic_load_n(cq->tail, __ATOMIC_ACQUIRE);
	if (tail - head > cq->mask + 1)
		return;
	if (cq->looked - head <= tail - head)
		head = cq->looked;
	cq->looked = tail;
	for (; head != tail; head++)
		pl_uring_tag_seen(d, __atomic_load_n(&cq->cqes[(head & cq->mask) << cq->shift].user_data,
						     __ATOMIC_RELAXED));
}

int pl_uring_hold(struct uring_dev *d, struct uring_map *u)
{
	int err;

	if (u->held || !u->tag)
		return u->held ? 0 : -ENODATA;
	err = pl_slot_clone(d->ring, d->first + u->slot, d->priv.ring_fd, u->slot);
	u->held = !err;
	return err;
}

void pl_uring_let_go(struct uring_dev *d, struct uring_map *u)
{
	if (u->held && !pl_slot_empty(d->priv.ring_fd, u->slot))
		u->held = false;
}

static bool ended(struct uring_dev *d, struct uring_map *u)
{
	bool yes;

	pthread_mutex_lock(&d->lock);
	if (u->stopped)
		pl_uring_empty(d, u); /* stop couldn't */
	if (u->n_waiting)
		pl_uring_cq_look(d);
	yes = !u->n_waiting && !u->lost && !(u->stopped && u->tag);
	if (yes && !u->stopped)
		pl_uring_let_go(d, u);
	pthread_mutex_unlock(&d->lock);
	return yes;
}

/* Completions that found no room are out of sight until the program makes some. */
static bool overflowed(const struct uring_dev *d)
{
	return d->cq.flags && (__atomic_load_n(d->cq.flags, __ATOMIC_RELAXED) & IORING_SQ_CQ_OVERFLOW);
}

/*
 * A program that takes no completions out makes every drain wait in vain. One waits its full time; until
 * the program moves, the others don't, or the recall of many leases would take that long for each.
 */
static bool is_stuck(struct uring_dev *d)
{
	bool stuck;

	pthread_mutex_lock(&d->lock);
	stuck = d->cq.stuck && overflowed(d) &&
		__atomic_load_n(d->cq.head, __ATOMIC_RELAXED) == d->cq.stuck_head;
	pthread_mutex_unlock(&d->lock);
	return stuck;
}

static void waited_in_vain(struct uring_dev *d)
{
	pthread_mutex_lock(&d->lock);
	d->cq.stuck = overflowed(d);
	if (d->cq.stuck)
		d->cq.stuck_head = __atomic_load_n(d->cq.head, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&d->lock);
}

static int unconfirmed(void)
{
	return pinl_set_error(-ETIMEDOUT,
			      "requests on the old pages had not ended by the deadline, or their "
			      "completions were not passed to pinl_uring_cqe, or the kernel had no "
			      "memory to empty the slot");
}

/* First let requests end by themselves, at half time cancel. Backs off from 20 us to 1 ms. */
int pl_uring_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	struct uring_dev *d = dev;
	struct uring_map *u = m->priv;
	uint64_t start = pl_clock_ns(),
		 half = start + (deadline_ns > start ? (deadline_ns - start) / 2 : 0);
	struct timespec pause = {0, 20000};
	bool cancelled = false;

	while (!ended(d, u)) {
		uint64_t now = pl_clock_ns();

		if (m->holder_done && overflowed(d))
			return unconfirmed();
		if (is_stuck(d)) {
			pl_ring_cancel_fixed(d->ring, 0);
			return unconfirmed();
		}
		if (now >= deadline_ns) {
			waited_in_vain(d);
			return unconfirmed();
		}
		if (now >= half && !cancelled) {
			cancelled = true;
			pl_ring_cancel_fixed(d->ring, (deadline_ns - now) / 2);
		}
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < 1000000)
			pause.tv_nsec *= 2;
	}
	return 0;
}

/* One part through the bounce file: the private ring writes the pinned pages there. */
static int read_part(struct uring_dev *d, struct uring_map *u, uintptr_t at, size_t len, char *buf)
{
	int ret = pl_ring_move(&d->priv, false, d->bounce, (void *)at, len, u->slot);

	if (ret < 0)
		return ret;
	if (ret == 0 || pread(d->bounce, buf, ret, 0) != ret)
		return -EIO;
	return ret;
}

int pl_uring_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf)
{
	struct uring_dev *d = dev;
	struct uring_map *u = m->priv;
	int ret;

	if (!d->can_read)
		return pinl_set_error(
			-EOPNOTSUPP,
			"this kernel can't share a fixed buffer with a second ring; 6.13 can");
	pthread_mutex_lock(&d->lock);
	ret = pl_uring_hold(d, u);
	for (size_t done = 0; ret >= 0 && done < len;) {
		size_t n = len - done < (256ul << 10) ? len - done : 256ul << 10;

		ret = read_part(d, u, m->start + offset + done, n, (char *)buf + done);
		done += ret > 0 ? ret : 0;
	}
	pthread_mutex_unlock(&d->lock);
	return ret < 0 ? pinl_set_error(ret, "can't read the device's pages: %s", strerror(-ret)) : 0;
}
