/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fail_rig.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "failnth.h"
#include "proc.h"

const char *life_dir(void)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");

	return dir ? dir : "/var/tmp";
}

void wrong(struct run *r, const char *fmt, ...)
{
	va_list ap;

	failnth_arm(false);
	va_start(ap, fmt);
	vsnprintf(r->report->wrong, sizeof r->report->wrong, fmt, ap);
	va_end(ap);
	_exit(1);
}

#define must(r, cond)                                                                                   \
	do {                                                                                            \
		if (!(cond))                                                                            \
			wrong(r, "rig: %s", #cond);                                                     \
	} while (0)

bool is_uring(const struct run *r)
{
	return !strcmp(r->l->device, "uring");
}

bool is_verbs(const struct run *r)
{
	return !strcmp(r->l->device, "verbs");
}

bool is_staged(const struct run *r)
{
	return r->l->flags & PINL_STAGE;
}

/* ---------------------------------------------------------------------------------------- memory -- */

static int make_file(struct run *r)
{
	char path[256];
	int fd;

	if (r->l->memory == MEMFD)
		return memfd_create("leased", MFD_CLOEXEC);
	snprintf(path, sizeof path, "%s/pinlease-fail-XXXXXX", life_dir());
	fd = mkostemp(path, O_CLOEXEC);
	unlink(path);
	return fd;
}

static void map_memory(struct run *r)
{
	int flags = r->l->memory == ANON	   ? MAP_PRIVATE | MAP_ANONYMOUS
		    : r->l->memory == PRIVATE_FILE ? MAP_PRIVATE
						   : MAP_SHARED;

	r->fd = -1;
	if (r->l->memory == EXPORTED) {
		must(r, !io_uring_queue_init(SIZE / sizeof(struct io_uring_sqe), &r->other, 0));
		r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->other.ring_fd,
			     IORING_OFF_SQES);
		must(r, r->va != MAP_FAILED);
		memset(r->va, 'F', SIZE);
		return;
	}
	if (r->l->memory != ANON) {
		r->fd = make_file(r);
		must(r, r->fd >= 0);
		must(r, !ftruncate(r->fd, SIZE));
		must(r, !fcntl(r->fd, F_SETLK, &(struct flock){.l_type = F_WRLCK}));
	}
	r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, r->fd, 0);
	must(r, r->va != MAP_FAILED);
	memset(r->va, 'F', SIZE);
}

void rig_up(struct run *r)
{
	struct iovec iov;

	map_memory(r);
	r->bounce = memfd_create("bounce", MFD_CLOEXEC);
	must(r, !ftruncate(r->bounce, SIZE));
	if (is_uring(r))
		must(r, !io_uring_queue_init(16, &r->ring, 0));
	if (is_verbs(r))
		verbs_up(r);
	if ((r->l->flags & PINL_PIN) && !is_staged(r)) {
		iov = (struct iovec){r->va, SIZE};
		must(r, !io_uring_queue_init(2, &r->witness, 0));
		must(r, !io_uring_register_buffers(&r->witness, &iov, 1));
		r->witnessing = true;
	}
	take_stock(&r->before);
}

void rig_down(struct run *r)
{
	if (r->witnessing)
		io_uring_queue_exit(&r->witness);
	if (is_uring(r))
		io_uring_queue_exit(&r->ring);
	if (is_verbs(r))
		verbs_down(r);
	close(r->bounce);
	if (r->l->memory == EXPORTED)
		io_uring_queue_exit(&r->other);
	if (r->fd >= 0)
		close(r->fd);
	if (!r->unmapped)
		munmap(r->va, SIZE);
}

/* ---------------------------------------------------------------------------------- transfers -- */

static int wait_cqe(struct run *r, struct io_uring *ring)
{
	struct io_uring_cqe *cqe;
	uint64_t tag;
	int res;

	do {
		must(r, !io_uring_wait_cqe(ring, &cqe));
		tag = cqe->user_data;
		res = cqe->res;
		io_uring_cqe_seen(ring, cqe);
	} while (ring == &r->ring && pinl_uring_cqe(r->dev, tag));
	return res;
}

void reap_all(struct run *r)
{
	struct io_uring_cqe *cqe;
	uint64_t tag;

	while (is_uring(r) && r->dev && !io_uring_peek_cqe(&r->ring, &cqe)) {
		tag = cqe->user_data;
		io_uring_cqe_seen(&r->ring, cqe);
		must(r, pinl_uring_cqe(r->dev, tag));
	}
}

static int fixed_io(struct run *r, struct io_uring *ring, uint64_t at, unsigned key, size_t len,
		    bool to_memory)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	if (to_memory)
		io_uring_prep_read_fixed(sqe, r->bounce, (void *)(uintptr_t)at, len, 0, key);
	else
		io_uring_prep_write_fixed(sqe, r->bounce, (void *)(uintptr_t)at, len, 0, key);
	sqe->user_data = 1;
	must(r, io_uring_submit(ring) == 1);
	return wait_cqe(r, ring);
}

int dev_write_page(struct run *r, int page, char c)
{
	const struct pinl_addr *a = &r->addrs[page];
	char buf[PAGE];
	int ret;

	memset(buf, c, sizeof buf);
	if (is_verbs(r))
		return verbs_write(r, a, buf);
	if (!is_uring(r))
		return pinl_soft_dma(r->dev, a->addr, buf, PAGE, 1);
	must(r, pwrite(r->bounce, buf, PAGE, 0) == PAGE);
	ret = fixed_io(r, &r->ring, a->addr, a->key, PAGE, true);
	return ret == PAGE ? 0 : ret;
}

int dev_write(struct run *r, char c)
{
	int err = 0;

	for (int i = 0; i < PAGES && !err; i++)
		err = dev_write_page(r, i, c);
	return err;
}

void poison_old_pages(struct run *r)
{
	char buf[SIZE];

	memset(buf, 'P', SIZE);
	must(r, pwrite(r->bounce, buf, SIZE, 0) == (ssize_t)SIZE);
	must(r, fixed_io(r, &r->witness, (uintptr_t)r->va, 0, SIZE, true) == (int)SIZE);
}

void check_old_pages(struct run *r)
{
	char buf[SIZE];

	must(r, fixed_io(r, &r->witness, (uintptr_t)r->va, 0, SIZE, false) == (int)SIZE);
	must(r, pread(r->bounce, buf, SIZE, 0) == (ssize_t)SIZE);
	for (size_t i = 0; i < SIZE; i++)
		if (buf[i] != 'P')
			wrong(r, "the device wrote to the old pages after RELEASED (byte %zu)", i);
}

/* ---------------------------------------------------------------------------------------- counts -- */

static bool is_named(const char *tid, const char *start)
{
	char path[300], name[16] = "";
	int fd;

	snprintf(path, sizeof path, "/proc/self/task/%s/comm", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, name, sizeof name - 1) < 0)
		name[0] = 0;
	if (fd >= 0)
		close(fd);
	return !strncmp(name, start, strlen(start));
}

static long aside(void)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	char path[300];
	long n = 0;

	while (d && (e = readdir(d))) {
		snprintf(path, sizeof path, "/proc/self/task/%s/fd", e->d_name);
		if (is_named(e->d_name, "pinl-aside"))
			n += entries(path);
	}
	if (d)
		closedir(d);
	return n > 3 ? n - 3 : 0; /* the standard ones */
}

/* Our lock of the file, as another owner meets it. */
static bool is_locked(struct run *r)
{
	struct flock l = {.l_type = F_WRLCK};

	must(r, !fcntl(r->fd, F_OFD_GETLK, &l));
	return l.l_type == F_WRLCK;
}

/* Bytes mapped, but for the heap and the main stack, which grow. A sanitizer maps what it likes. */
static long mapped(void)
{
#if defined(__SANITIZE_ADDRESS__)
	return 0;
#else
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long start, end;
	char line[512];
	long sum = 0;

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && !strstr(line, "[heap]") &&
		    !strstr(line, "[stack]"))
			sum += end - start;
	if (f)
		fclose(f);
	return sum;
#endif
}

void take_stock(struct has *h)
{
	*h = (struct has){open_fds(), entries("/proc/self/task"), mapped(), pinned_kb(), aside()};
}

static bool same(const struct has *a, const struct has *b, bool pins_only)
{
	return a->pinned_kb == b->pinned_kb && a->aside == b->aside &&
	       (pins_only || (a->fds == b->fds && a->threads == b->threads && a->mapped == b->mapped));
}

void check_stock(struct run *r, const char *when, bool pins_only)
{
	struct has want = r->before, now;

	if (r->fd >= 0 && !is_locked(r))
		wrong(r, "%s: the program's lock of the file is gone", when);
	if (r->unmapped)
		want.mapped -= mapped() ? (long)SIZE : 0;
	for (int i = 0; i < 5000; i++) {
		take_stock(&now);
		if (same(&now, &want, pins_only))
			return;
		usleep(2000);
	}
	if (pins_only)
		wrong(r, "%s: %ld KiB pinned, %ld files open aside more than before", when,
		      now.pinned_kb - want.pinned_kb, now.aside - want.aside);
	wrong(r, "%s: %ld descriptors, %ld threads, %ld bytes mapped, %ld KiB pinned more than before",
	      when, now.fds - want.fds, now.threads - want.threads, now.mapped - want.mapped,
	      now.pinned_kb - want.pinned_kb);
}
