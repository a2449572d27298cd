/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io_uring: leases are fixed buffers in slots of a sparse table on the program's own ring. The device
 * address of a page is its VA together with the slot as buffer index.
 *
 * REVOCABLE: a slot can be emptied or given other pages by any thread with the ring's descriptor, at
 * once for new requests; requests in flight keep the old pages until they end, which the kernel tells
 * by a completion with the slot's tag (uring_drain.c). Rings with IORING_SETUP_SINGLE_ISSUER let only
 * their own thread do that and are refused.
 *
 * `read` works through a private ring that shares (clones) a slot's content: the pages stay pinned and
 * readable after the program's slot has been emptied, without touching the program's queues.
 *
 * Facility: io_uring_register(2) BUFFERS2, BUFFERS_UPDATE, SYNC_CANCEL (6.0), CLONE_BUFFERS (6.13).
 */
#include "backend/uring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/backends.h"
#include "backend/uring_table.h"
#include "os/thread.h"
#include "os/errname.h"
#include "os/forked.h"

#define PAGE	      4096ul
#define DEFAULT_SLOTS 1024
#define SINGLE_ISSUER (1u << 12)
#define KCMP_FILE     0

/* The program may have closed the ring, and another file may have got its number. */
static int ring_alive(const struct uring_dev *d)
{
	long r = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, d->ring, d->given);

	if (r < 0 && errno != EBADF) /* no kcmp here: at least a descriptor of that number */
		r = fcntl(d->given, F_GETFD) < 0;
	return r ? pinl_set_error(-EBADF, "the ring was closed; open a new device on a new ring") : 0;
}

static int table_error(int err, unsigned slots)
{
	if (err == -EBUSY)
		return pinl_set_error(err, "the ring has a fixed buffer table already; give first_slot "
					   "and nr_slots, the part "
					   "of it that leases may use");
	if (err == -EOPNOTSUPP || err == -EBADF)
		return pinl_set_error(-EBADF, "that is no open io_uring ring");
	if (err == -EINVAL || err == -EMFILE)
		return pinl_set_error(
			-EINVAL,
			"the kernel makes no sparse table of %u fixed buffers (sparse tables need 5.19, "
			"at most 16384 buffers); ask for fewer slots",
			slots);
	if (err == -EEXIST)
		return pinl_set_error(-EOPNOTSUPP,
				      "only one thread may register on this ring; set it up without "
				      "IORING_SETUP_SINGLE_ISSUER");
	return pinl_set_error(err, "can't make a fixed buffer table of %u slots: %s", slots,
			      strerror(-err));
}

static int use_table(struct uring_dev *d, const struct pinl_uring_arg *arg)
{
	unsigned have;
	int err;

	if (!arg->nr_slots) {
		d->nr = arg->slots ? arg->slots : DEFAULT_SLOTS;
		err = pl_table_make(d->ring, d->nr);
		d->own_table = !err;
		return err ? table_error(err, d->nr) : 0;
	}
	d->first = arg->first_slot;
	d->nr = arg->nr_slots;
	err = pl_table_size(d->ring, &have);
	if (err || (uint64_t)d->first + d->nr > have)
		return pinl_set_error(-EINVAL,
				      "slots %u to %u are not all in the ring's fixed buffer table",
				      d->first, d->first + d->nr - 1);
	return 0;
}

/* Does this kernel clone single slots? Tried on a page of our own, not assumed from a version. */
static int probe_clone(struct uring_dev *d)
{
	struct io_uring other;
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err = page == MAP_FAILED ? -errno : io_uring_queue_init(2, &other, 0);

	if (!err) {
		err = pl_table_make(other.ring_fd, 1);
		if (!err)
			err = pl_slot_set(other.ring_fd, 0, page, PAGE, 0);
		if (!err)
			err = pl_slot_clone(other.ring_fd, 0, d->priv.ring.ring_fd, 0);
		if (!err)
			err = pl_slot_empty(d->priv.ring.ring_fd, 0);
		io_uring_queue_exit(&other);
	}
	if (page != MAP_FAILED)
		munmap(page, PAGE);
	return err;
}

static const char *why_no_read(int err)
{
	if (err == -ENOMEM || err == -EMFILE || err == -ENFILE)
		return "memory, RLIMIT_MEMLOCK or descriptors were short when the device was opened; "
		       "open it again";
	return "this kernel doesn't clone single fixed buffers, 6.13 does";
}

/* Without it the device works, but can't be read: *why. */
static int open_private(struct uring_dev *d, const char **why)
{
	int err = pl_mover_open(&d->priv, d->nr);

	if (err)
		return pinl_set_error(err, "can't make a second ring: %s", strerror(-err));
	err = probe_clone(d);
	d->can_read = !err;
	*why = err ? why_no_read(err) : NULL;
	if (err) /* then it is good for nothing, and may have a clone left */
		pl_mover_close(&d->priv);
	return 0;
}

/* Try again to empty the free slots that unmap couldn't: their pages are still pinned. */
static void settle(struct uring_dev *d)
{
	bool left = false;

	if (!d->left_full)
		return;
	for (unsigned i = 0; i < d->nr_free; i++) {
		unsigned slot = d->free[(d->next_free + i) % d->nr];

		left |= pl_slot_set(d->ring, d->first + slot, NULL, 0, 0) != 0;
		if (d->can_read)
			left |= pl_slot_set(d->priv.ring.ring_fd, slot, NULL, 0, 0) != 0;
	}
	d->left_full = left;
}

static void dev_free(struct uring_dev *d)
{
	settle(d);
	if (d->can_read)
		pl_mover_close(&d->priv);
	pl_uring_cq_close(d);
	if (d->own_table)
		pl_table_drop(d->ring);
	pl_forked_close(d->ring);
	pthread_mutex_destroy(&d->lock);
	free(d->free);
	free(d->tags);
	free(d);
}

static int make_lists(struct uring_dev *d)
{
	d->free = calloc(d->nr, sizeof *d->free);
	d->tags = calloc(d->nr, sizeof *d->tags);
	if (!d->free || !d->tags)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	for (unsigned i = 0; i < d->nr; i++)
		d->free[i] = i;
	d->nr_free = d->nr;
	return 0;
}

static int check_arg(const struct pinl_uring_arg *arg)
{
	if (!arg || arg->size < sizeof *arg || !arg->ring)
		return pinl_set_error(
			-EINVAL, "device uring needs a struct pinl_uring_arg with size and ring set");
	if (arg->ring->flags & SINGLE_ISSUER)
		return table_error(-EEXIST, 0);
	if (arg->ring->ring_fd < 0 || fcntl(arg->ring->ring_fd, F_GETFD) < 0)
		return pinl_set_error(-EBADF, "the ring is closed");
	return 0;
}

static int uring_open(const void *given, struct pinl_device_info *info, void **out)
{
	const struct pinl_uring_arg *arg = given;
	const char *why = NULL;
	struct uring_dev *d;
	int err = check_arg(arg);

	if (err)
		return err;
	d = calloc(1, sizeof *d);
	if (!d)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	pthread_mutex_init(&d->lock, NULL);
	d->given = arg->ring->ring_fd;
	d->ring = fcntl(d->given, F_DUPFD_CLOEXEC, 0);
	err = d->ring < 0 ? -errno : pl_forked_add(d->ring);
	if (err)
		pinl_set_error(err, "can't duplicate the ring's descriptor: %s", strerror(-err));
	if (!err)
		err = use_table(d, arg);
	if (!err)
		err = make_lists(d);
	if (!err)
		err = open_private(d, &why);
	if (err) {
		dev_free(d);
		return err;
	}
	pl_uring_cq_open(d, arg->ring);
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN | PINL_DEVCAP_RETARGET | (d->can_read ? PINL_DEVCAP_READ : 0);
	info->why = why;
	*out = d;
	return 0;
}

static void uring_close(void *dev)
{
	dev_free(dev);
}

/* What is given back comes last, so that a request made for an ended lease soon meets no other. */
static void slot_give(struct uring_dev *d, unsigned slot)
{
	d->free[(d->next_free + d->nr_free++) % d->nr] = slot;
}

static int slot_take(struct uring_dev *d, unsigned *slot)
{
	if (d->nr_free) {
		*slot = d->free[d->next_free];
		d->next_free = (d->next_free + 1) % d->nr;
		d->nr_free--;
		return 0;
	}
	return pinl_set_error(
		-ENOSPC,
		"all %u slots of the ring's fixed buffer table are leased; unmap some or open the "
		"device with more slots",
		d->nr);
}

static int pin_error(int err, size_t len)
{
	struct rlimit rl;

	if (err == -EFAULT && len > (1ul << 30))
		return pinl_set_error(
			-EOPNOTSUPP,
			"an io_uring fixed buffer has at most 1 GiB; lease the range in parts");
	if (err == -EFAULT || err == -EOPNOTSUPP)
		return pinl_set_error(
			-EOPNOTSUPP,
			"io_uring can't pin this memory: it always pins for writing, which the "
			"kernel refuses for read-only mappings, for MAP_SHARED of files on "
			"ext4, XFS, btrfs (since 6.5) and for DAX and device memory; use tmpfs, memfd, "
			"anonymous or MAP_PRIVATE memory, an on-demand device, or PINL_STAGE to lease a "
			"shared file mapping by a staged copy");
	if (err == -ENOMEM) {
		getrlimit(RLIMIT_MEMLOCK, &rl);
		return pinl_set_error(
			err,
			"pinning %zu KiB exceeds RLIMIT_MEMLOCK (%lu KiB for all rings of this user), "
			"or "
			"memory is out; raise it (ulimit -l, LimitMEMLOCK=) or give CAP_IPC_LOCK",
			len >> 10, (unsigned long)rl.rlim_cur >> 10);
	}
	if (err == -EEXIST)
		return table_error(err, 0);
	return pinl_set_error(err, "io_uring can't register the range: %s", pl_errname(-err));
}

/* Never the same twice in this process: an unread completion of a device closed long ago must not be
 * taken for one of this device. */
static uint64_t new_tag(void)
{
	static _Atomic uint32_t last;

	return PL_URING_TAG | (uint32_t)(atomic_fetch_add(&last, 1) + 1);
}

static int set_slot(struct uring_dev *d, struct uring_map *u)
{
	size_t len = u->m->end - u->m->start;
	uint64_t tag = new_tag();
	int err = pl_slot_set(d->ring, d->first + u->slot, (void *)u->m->start, len, tag);

	if (!err)
		u->tag = tag;
	return err;
}

/* If the kernel won't, u->tag says so: drain tries again and doesn't confirm before. */
void pl_uring_empty(struct uring_dev *d, struct uring_map *u)
{
	if (!u->tag || pl_slot_set(d->ring, d->first + u->slot, NULL, 0, 0))
		return;
	pl_uring_tag_wait(d, u, u->tag);
	u->tag = 0;
}

static int uring_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	struct uring_dev *d = dev;
	struct uring_map *u;
	int err = ring_alive(d);

	if (err)
		return err;
	u = calloc(1, sizeof *u);
	if (!u)
		return pinl_set_error(-ENOMEM, "out of memory for a lease");
	u->m = m;
	pthread_mutex_lock(&d->lock);
	settle(d);
	err = slot_take(d, &u->slot);
	if (!err) {
		err = set_slot(d, u);
		if (err) {
			slot_give(d, u->slot);
			err = pin_error(err, m->end - m->start);
		}
	}
	pthread_mutex_unlock(&d->lock);
	if (err) {
		free(u);
		return err;
	}
	m->key = d->first + u->slot;
	m->priv = u;
	for (size_t i = 0; addrs && i < (m->end - m->start) / PAGE; i++)
		addrs[i] = (struct pinl_addr){m->start + i * PAGE, m->key, 0};
	return 0;
}

static void uring_unmap(void *dev, struct pinl_mapping *m)
{
	struct uring_dev *d = dev;
	struct uring_map *u = m->priv;

	pthread_mutex_lock(&d->lock);
	pl_uring_empty(d, u);
	pl_uring_let_go(d, u);
	pl_uring_tags_drop(d, u);
	slot_give(d, u->slot);
	d->left_full |= u->tag || u->held;
	settle(d);
	pthread_mutex_unlock(&d->lock);
}

static void uring_forget(void *dev, struct pinl_mapping *m)
{
	free(m->priv);
}

static int uring_stop(void *dev, struct pinl_mapping *m)
{
	struct uring_dev *d = dev;
	struct uring_map *u = m->priv;

	pthread_mutex_lock(&d->lock);
	if (d->can_read && m->reads)
		pl_uring_hold(d, u);
	pl_uring_empty(d, u);
	u->stopped = true;
	pthread_mutex_unlock(&d->lock);
	return 0;
}

static void uring_drop(void *dev, struct pinl_mapping *m)
{
	struct uring_dev *d = dev;

	pthread_mutex_lock(&d->lock);
	pl_uring_let_go(d, m->priv);
	pthread_mutex_unlock(&d->lock);
}

/* The old pages count against RLIMIT_MEMLOCK until they are gone: make room, at the price of requests
 * failing meanwhile. */
static void make_room(struct uring_dev *d, struct uring_map *u)
{
	struct timespec t = {0, 1000000};

	pl_uring_let_go(d, u);
	pl_uring_empty(d, u);
	for (int i = 0; i < 200 && u->n_waiting; i++) {
		pl_uring_cq_look(d);
		pthread_mutex_unlock(&d->lock);
		nanosleep(&t, NULL);
		pthread_mutex_lock(&d->lock);
	}
}

static int uring_retarget(void *dev, struct pinl_mapping *m)
{
	struct uring_dev *d = dev;
	struct uring_map *u = m->priv;
	uint64_t old;
	int err;

	pthread_mutex_lock(&d->lock);
	old = u->tag;
	err = set_slot(d, u);
	if (err == -ENOMEM) {
		make_room(d, u);
		old = u->tag; /* 0, or the kernel wouldn't empty the slot */
		err = set_slot(d, u);
	}
	if (!err && old)
		pl_uring_tag_wait(d, u, old);
	if (!err) {
		u->stopped = false;
		if (!u->n_waiting && !u->lost)
			pl_uring_let_go(d, u);
	}
	pthread_mutex_unlock(&d->lock);
	return err ? pin_error(err, m->end - m->start) : 0;
}

int pinl_uring_cqe(struct pinl_device *dev, uint64_t user_data)
{
	struct uring_dev *d;
	int ours;

	if ((user_data & 0xffffffff00000000ull) != PL_URING_TAG) /* the common case: no lock, no call */
		return 0;
	PL_CALL(call);
	d = pinl_device_priv(dev, &pl_uring_ops);
	if (!d)
		return 0;
	pthread_mutex_lock(&d->lock);
	ours = pl_uring_tag_seen(d, user_data);
	pthread_mutex_unlock(&d->lock);
	return ours;
}

static void uring_handle(void *dev, const struct pinl_mapping *m, struct pinl_handle *h)
{
	const struct uring_dev *u = dev;

	h->kind = PINL_HANDLE_URING;
	h->fd = u->ring;
	h->key = m->key;
	h->tag = ((const struct uring_map *)m->priv)->tag;
}

/* pinleased empties a slot, or points it somewhere else. Who can't tell is taken to have it. */
static int uring_holds(void *dev, const struct pinl_mapping *m)
{
	struct uring_dev *d = dev;
	uintptr_t start, end;
	int err;

	pthread_mutex_lock(&d->lock);
	err = pl_slot_get(d->ring, m->key, &start, &end);
	pthread_mutex_unlock(&d->lock);
	return err || (start < m->end && end > m->start);
}

const struct pinl_device_ops pl_uring_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "uring",
	.open = uring_open,
	.close = uring_close,
	.map = uring_map,
	.unmap = uring_unmap,
	.stop = uring_stop,
	.drain = pl_uring_drain,
	.read = pl_uring_read,
	.drop = uring_drop,
	.retarget = uring_retarget,
	.handle = uring_handle,
	.forget = uring_forget,
	.holds = uring_holds,
};
