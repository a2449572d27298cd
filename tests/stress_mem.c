/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The memory of the stress test, and the witness that sees who writes to it after it was released. */
#include "stress.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define POISON 0xee
#define FILL   0x5a

static struct {
	pthread_mutex_t lock;
	struct io_uring ring;
	int poison, out; /* memfds: what to write, what was read */
	bool works[KINDS];
} w = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---------------------------------------------------------------------------------- the witness -- */

static int witness_io(const struct slot *s, unsigned page, bool write)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&w.ring);
	struct io_uring_cqe *cqe;
	void *at = s->va + page * PAGE;
	int ret;

	if (write)
		io_uring_prep_read_fixed(sqe, w.poison, at, PAGE, 0, s->nr);
	else
		io_uring_prep_write_fixed(sqe, w.out, at, PAGE, 0, s->nr);
	do
		ret = io_uring_submit(&w.ring);
	while (ret == -EINTR);
	do
		ret = io_uring_wait_cqe(&w.ring, &cqe);
	while (ret == -EINTR);
	ret = cqe->res;
	io_uring_cqe_seen(&w.ring, cqe);
	return ret == (int)PAGE ? 0 : -EIO;
}

static int witness_set(const struct slot *s, size_t len)
{
	struct iovec iov = {len ? s->va : NULL, len};
	__u64 tag = 0;
	int ret = io_uring_register_buffers_update_tag(&w.ring, s->nr, &iov, &tag, 1);

	return ret < 0 ? ret : 0;
}

void witness_expect(struct slot *s, uint64_t lease)
{
	pthread_mutex_lock(&w.lock);
	s->witness_lease = lease;
	pthread_mutex_unlock(&w.lock);
}

bool witness_poisoned(struct slot *s)
{
	bool yes;

	pthread_mutex_lock(&w.lock);
	yes = s->poisoned;
	pthread_mutex_unlock(&w.lock);
	return yes;
}

/* The witness lock is held. */
static void poison(struct actor *a, struct slot *s, uintptr_t start, uintptr_t end)
{
	for (unsigned i = 0; i < PAGES; i++) {
		uintptr_t at = (uintptr_t)s->va + i * PAGE;

		if (at < start || at >= end || (s->poisoned >> i & 1))
			continue;
		if (witness_io(s, i, true))
			broken("I3", "the witness can't poison");
		s->poisoned |= 1u << i;
		a->n[N_POISONS]++;
	}
}

void witness_released(struct actor *a, struct slot *s, uint64_t lease, uintptr_t start, uintptr_t end)
{
	pthread_mutex_lock(&w.lock);
	if (s->witnessed && s->witness_lease == lease)
		poison(a, s, start, end);
	pthread_mutex_unlock(&w.lock);
}

static void witness_look(const struct slot *s, unsigned page)
{
	uint64_t words[PAGE / 8];

	if (witness_io(s, page, false) || pread(w.out, words, PAGE, 0) != (ssize_t)PAGE) {
		broken("I3", "the witness can't read");
		return;
	}
	for (unsigned i = 0; i < PAGE / 8; i++)
		if (words[i] != POISON * 0x0101010101010101ull) {
			broken("I3",
			       "lease %lu, %s, %s: after its release the device wrote %#lx to word %u "
			       "of "
			       "old page %u",
			       (unsigned long)s->id, kind_names[s->kind],
			       s->device == URING ? "uring" : "soft", (unsigned long)words[i], i, page);
			return;
		}
}

static void witness_end(struct slot *s)
{
	pthread_mutex_lock(&w.lock);
	for (unsigned i = 0; s->witnessed && i < PAGES; i++)
		if (s->poisoned >> i & 1)
			witness_look(s, i);
	if (s->witnessed && witness_set(s, 0))
		broken("test", "the witness can't let go");
	s->witnessed = false;
	s->witness_lease = s->poisoned = 0;
	pthread_mutex_unlock(&w.lock);
}

/* ------------------------------------------------------------------------------------- memory -- */

const char *disk_dir(void)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");

	return dir ? dir : "/var/tmp";
}

static int open_file(enum kind kind)
{
	switch (kind) {
	case MEMFD:
		return memfd_create("stress", MFD_CLOEXEC);
	case GROUPED:
		return fcntl(round_.group_fd, F_DUPFD_CLOEXEC, 0);
	case TMPFS:
		return open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	case DISK_PRIVATE:
	case DISK_DEMAND:
		return open(disk_dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	default:
		return -1;
	}
}

/* Content for all pages; not by address, for who shares the file may cut it any time. */
static int fill(const struct slot *s)
{
	char page[PAGE];
	struct iovec from = {page, PAGE}, to = {NULL, PAGE};

	memset(page, FILL, PAGE);
	for (unsigned i = 0; i < PAGES; i++) {
		to.iov_base = s->va + i * PAGE;
		if (s->fd >= 0 ? pwrite(s->fd, page, PAGE, s->offset + i * PAGE) != (ssize_t)PAGE
			       : process_vm_writev(getpid(), &from, 1, &to, 1, 0) != (ssize_t)PAGE)
			return -errno;
	}
	return 0;
}

static int map_new(struct slot *s)
{
	int flags = s->fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS
			      : (s->kind == DISK_PRIVATE ? MAP_PRIVATE : MAP_SHARED);

	if (s->fd >= 0 && s->kind != GROUPED && ftruncate(s->fd, SIZE))
		return -errno;
	s->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, s->fd, s->offset);
	return s->va == MAP_FAILED ? -errno : 0;
}

static bool is_pinnable(enum kind kind)
{
	return kind != ANON_DEMAND && kind != DISK_DEMAND;
}

static int make(struct slot *s, enum kind kind)
{
	int err;

	s->kind = kind;
	s->fd = open_file(kind);
	s->offset = kind == GROUPED ? s->nr * SIZE : 0;
	if (s->fd < 0 && kind != ANON && kind != ANON_DEMAND)
		return -errno;
	err = map_new(s);
	if (!err)
		err = fill(s);
	if (!err && is_pinnable(kind))
		err = witness_set(s, SIZE);
	if (!err)
		return 0;
	if (s->va != MAP_FAILED)
		munmap(s->va, SIZE);
	if (s->fd >= 0)
		close(s->fd);
	return err;
}

bool make_memory(struct actor *a, struct slot *s)
{
	enum kind kind;
	int err;

	do
		kind = roll(a, KINDS);
	while (!w.works[kind] || (kind == GROUPED && s->nr >= GROUP));
	now_doing(a, "make memory", s);
	pthread_rwlock_wrlock(&s->mem_lock);
	err = make(s, kind);
	if (err && !(kind == GROUPED && err == -EFAULT))
		broken("test", "no memory of kind %s: %s", kind_names[kind], strerror(-err));
	if (!err) {
		s->file_lock = kind == GROUPED ? &round_.group_lock : &s->own_file_lock;
		s->gone = 0;
		s->keep = !roll(a, 4);
		atomic_store(&s->guarded, false);
		atomic_store(&s->begun, 0);
		atomic_store(&s->ended, 0);
		pthread_mutex_lock(&w.lock);
		s->witnessed = is_pinnable(kind);
		pthread_mutex_unlock(&w.lock);
		s->made = true;
		a->n[N_MADE]++;
	}
	pthread_rwlock_unlock(&s->mem_lock);
	return !err;
}

void dispose_memory(struct actor *a, struct slot *s)
{
	now_doing(a, "dispose of memory", s);
	witness_end(s);
	pthread_rwlock_wrlock(&s->mem_lock);
	atomic_fetch_add(&round_.giving_begun, 1);
	for (unsigned i = 0; i < PAGES; i++)
		if (!(s->gone >> i & 1) && munmap(s->va + i * PAGE, PAGE))
			broken("test", "munmap: %s", strerror(errno));
	atomic_fetch_add(&round_.giving_ended, 1);
	if (s->fd >= 0)
		close(s->fd);
	s->made = false;
	s->fd = -1;
	pthread_rwlock_unlock(&s->mem_lock);
}

/* ------------------------------------------------------------------------------ once per program -- */

bool kind_works(enum kind kind)
{
	return w.works[kind];
}

void memory_open(void)
{
	char page[PAGE];

	memset(page, POISON, PAGE);
	w.poison = memfd_create("poison", MFD_CLOEXEC);
	w.out = memfd_create("seen", MFD_CLOEXEC);
	if (pwrite(w.poison, page, PAGE, 0) != (ssize_t)PAGE || io_uring_queue_init(4, &w.ring, 0) ||
	    io_uring_register_buffers_sparse(&w.ring, SLOTS)) {
		broken("test", "no witness ring");
		return;
	}
	for (enum kind kind = 0; kind < KINDS; kind++) {
		int fd = open_file(kind);

		w.works[kind] = kind == ANON || kind == ANON_DEMAND || kind == GROUPED || fd >= 0;
		if (fd >= 0)
			close(fd);
	}
}

void memory_close(void)
{
	io_uring_queue_exit(&w.ring);
	close(w.poison);
	close(w.out);
}
