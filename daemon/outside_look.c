/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the kernel says of rings and pins, in /proc. Nothing here waits for a ring: fdinfo shows its
 * tables only if it gets the ring's lock at once, and -EAGAIN says that it didn't. Of another process
 * nothing is looked at but by the child of outside_aside.c, by system calls only; that knows us by the
 * number `self`.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <liburing.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/uring_table.h"
#include "os/dir.h"
#include "os/text.h"
#include "outside_int.h"

#define RING_NAME "anon_inode:[io_uring]"
#define MAX_RINGS 128 /* of one process */

static bool names_ring(const char *link)
{
	char name[sizeof RING_NAME] = "";

	return readlink(link, name, sizeof name) == sizeof RING_NAME - 1 &&
	       !memcmp(name, RING_NAME, sizeof RING_NAME - 1);
}

/* 0: it is gone. By now it may be a file of a server that doesn't answer, which is asked nothing. */
static uint64_t inode_at(const char *link)
{
	struct statx st;

	return statx(AT_FDCWD, link, AT_STATX_DONT_SYNC, STATX_INO, &st) ? 0 : st.stx_ino;
}

bool pl_look_is_ring(int fd)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return names_ring(path);
}

uint64_t pl_look_ino(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

bool pl_look_ended(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* --------------------------------------------------------------------------------------- one ring -- */

static uint64_t mix(uint64_t h, uint64_t v)
{
	h = (h ^ v) * 0x9e3779b97f4a7c15u;
	return h ^ (h >> 29);
}

uint64_t pl_look_slot_sum(uint64_t ino, const struct pl_outside_buf *b)
{
	return b->end > b->start ? mix(mix(mix(mix(1, ino), b->slot), b->start), b->end) : 0;
}

static uint64_t pages_of(const struct pl_outside_buf *b)
{
	return (b->end + PL_PAGE - 1) / PL_PAGE - b->start / PL_PAGE;
}

/* A line of the table of buffers. An empty slot is "<none>", and up to Linux 6.12 a buffer at the last
 * address there is. */
static bool parse_slot(const char *line, struct pl_outside_buf *b)
{
	uint64_t start = 0, len = 0;
	char none[8];
	int n = sscanf(line, " %u: 0x%" SCNx64 "/%" SCNu64, &b->slot, &start, &len);

	if (n != 3 && sscanf(line, " %u: <%4[none]>", &b->slot, none) != 2)
		return false;
	if (n != 3 || start == UINT64_MAX)
		start = len = 0;
	b->start = start;
	b->end = start + len;
	return true;
}

/* The table's head is there without the ring's lock, too, up to Linux 6.12: then no slot follows. */
struct listing {
	unsigned slots, seen;
	bool begun;
};

static bool next_slot(struct listing *l, const char *line, struct pl_outside_buf *b)
{
	if (sscanf(line, "UserBufs: %u", &l->slots) == 1)
		l->begun = true;
	else if (l->begun && parse_slot(line, b))
		return ++l->seen;
	return false;
}

static bool whole(const struct listing *l)
{
	return l->begun && l->seen == l->slots;
}

static void fdinfo_path(pid_t pid, const char *fd, char *path, size_t len)
{
	snprintf(path, len, "/proc/%d/fdinfo/%.12s", pid, fd);
}

static FILE *open_fdinfo(int fd)
{
	char path[64], name[16];

	snprintf(name, sizeof name, "%d", fd);
	fdinfo_path(getpid(), name, path, sizeof path);
	return fopen(path, "re");
}

struct tables {
	pid_t pid, self;
	int ring;
	uint64_t own; /* its inode */
	struct pl_outside_buf b;
	struct pl_tables t;
	int n;
	uint64_t *seen; /* [MAX_RINGS], the child's */
};

static int add_ring(struct tables *q, struct pl_text *f, uint64_t ino)
{
	const struct pl_outside_buf *b = &q->b;
	struct pl_outside_buf have;
	struct listing l = {0};
	char line[256];

	while (!pl_text_line(f, line, sizeof line)) {
		if (!next_slot(&l, line, &have))
			continue;
		q->t.pages += pages_of(&have);
		q->t.sum += pl_look_slot_sum(ino, &have);
		if (have.start < b->end && b->start < have.end &&
		    (ino != q->own || have.slot != b->slot))
			q->t.shared = true;
	}
	return whole(&l) ? 0 : -EAGAIN;
}

int pl_look_slot(int ring, struct pl_outside_buf *b, bool *tag_seen)
{
	struct pl_outside_buf have = {0}, found = *b;
	struct listing l = {0};
	char line[256];
	uint64_t tag;
	FILE *f;

	f = open_fdinfo(ring);
	if (!f)
		return -errno;
	found.start = found.end = 0;
	*tag_seen = false;
	while (fgets(line, sizeof line, f)) {
		if (next_slot(&l, line, &have) && have.slot == b->slot)
			found = (struct pl_outside_buf){b->slot, have.start, have.end, b->tag};
		if (sscanf(line, " %*u: user_data:%" SCNu64, &tag) == 1 ||
		    sscanf(line, " user_data=%" SCNu64, &tag) == 1)
			*tag_seen |= b->tag && tag == b->tag;
	}
	fclose(f);
	if (!whole(&l))
		return -EAGAIN;
	*b = found;
	return 0;
}

bool pl_look_uses_buffers(int ring)
{
	bool listed = false, uses = false;
	struct pl_outside_buf have;
	struct listing l = {0};
	char line[256];
	unsigned op;
	FILE *f;

	f = open_fdinfo(ring);
	while (f && fgets(line, sizeof line, f)) {
		next_slot(&l, line, &have);
		listed |= !strncmp(line, "PollList:", 9);
		uses |= sscanf(line, " op=%u", &op) == 1 && pl_op_uses_buffer(op);
	}
	if (f)
		fclose(f);
	return uses || !listed || !whole(&l);
}

/* -------------------------------------------------------------------------- all of a process -- */

static int add_once(struct tables *q, uint64_t ino)
{
	for (int i = 0; i < q->n; i++)
		if (q->seen[i] == ino)
			return 0;
	if (q->n == MAX_RINGS)
		return -E2BIG;
	q->seen[q->n++] = ino;
	return 1;
}

static int add_fd(struct tables *q, pid_t pid, const char *fd, uint64_t ino)
{
	int ret = add_once(q, ino);
	struct pl_text f;
	char path[64];

	if (ret <= 0)
		return ret;
	fdinfo_path(pid, fd, path, sizeof path);
	if (pl_text_open(&f, path))
		return -EAGAIN; /* just closed */
	ret = add_ring(q, &f, ino);
	pl_text_close(&f);
	return ret;
}

static int add_if_ring(const char *fd, void *arg)
{
	struct tables *q = arg;
	char path[64];
	uint64_t ino;

	snprintf(path, sizeof path, "/proc/%d/fd/%.12s", q->pid, fd);
	return names_ring(path) && (ino = inode_at(path)) ? add_fd(q, q->pid, fd, ino) : 0;
}

static int add_all(void *arg)
{
	uint64_t seen[MAX_RINGS];
	struct tables *q = arg;
	char path[64], name[16];
	int err;

	q->seen = seen;
	snprintf(name, sizeof name, "%d", q->ring);
	err = add_fd(q, q->self, name, q->own);
	snprintf(path, sizeof path, "/proc/%d/fd", q->pid);
	return err ? err : pl_each_name(path, add_if_ring, q);
}

int pl_look_tables(pid_t pid, int ring, const struct pl_outside_buf *b, struct pl_tables *out)
{
	struct tables q = {
		.pid = pid, .self = getpid(), .ring = ring, .own = pl_look_ino(ring), .b = *b};
	int err = pl_outside_ask(pid, add_all, &q, sizeof q);

	if (!err)
		*out = q.t;
	return err;
}

/* ----------------------------------------------------------------------------------- numbers -- */

static int number_in(const char *path, const char *format, int64_t *out)
{
	char line[256];
	struct pl_text f;
	int err = pl_text_open(&f, path);

	if (err)
		return err;
	err = -ENODATA;
	while (err && !pl_text_line(&f, line, sizeof line))
		if (sscanf(line, format, out) == 1)
			err = 0;
	pl_text_close(&f);
	return err;
}

struct numbers {
	pid_t pid, tid;
	const char *format;
	int64_t number;
};

static int number_of(void *arg)
{
	struct numbers *q = arg;
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/task/%d/status", q->pid, q->tid);
	return number_in(path, q->format, &q->number);
}

static int state_of(void *arg)
{
	struct numbers *q = arg;
	char path[64], line[256], state;
	struct pl_text f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/status", q->pid, q->tid);
	if (pl_text_open(&f, path))
		return -ESRCH;
	while (!pl_text_line(&f, line, sizeof line))
		if (sscanf(line, "State: %c", &state) == 1)
			q->number = state;
	pl_text_close(&f);
	return 0;
}

char pl_look_state(pid_t pid, pid_t tid)
{
	struct numbers q = {.pid = pid, .tid = tid, .number = '?'};

	pl_outside_ask(pid, state_of, &q, sizeof q);
	return q.number;
}

int pl_look_vmpin(pid_t pid, int64_t *pages)
{
	struct numbers q = {.pid = pid, .tid = pid, .format = "VmPin: %" SCNd64};
	int err = pl_outside_ask(pid, number_of, &q, sizeof q);

	if (!err)
		*pages = q.number / 4;
	return err == -ENOENT || err == -ENODATA ? -ESRCH : err; /* a zombie has no such line */
}

#define INIT_USER_NS 0xeffffffdu /* the kernel's fixed inode number of it, which is where it asks */

static int has_ipc_lock(void *arg)
{
	struct numbers *q = arg;
	char path[64];
	struct stat ns;
	int err;

	snprintf(path, sizeof path, "/proc/%d/ns/user", q->pid);
	if (!stat(path, &ns) && ns.st_ino != INIT_USER_NS)
		return 0;
	err = number_of(q);
	return err ? err : q->number >> 14 & 1;
}

/* One page of ours in a ring of ours: is it in our VmPin? */
static bool try_accounting(void)
{
	struct numbers me = {.pid = getpid(), .tid = getpid(), .format = "CapEff: %" SCNx64};
	struct iovec page = {NULL, PL_PAGE};
	struct io_uring ring;
	int64_t before, after;
	bool seen;

	if (has_ipc_lock(&me) != 1 || io_uring_queue_init(1, &ring, 0))
		return false;
	page.iov_base = mmap(NULL, PL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	seen = page.iov_base != MAP_FAILED && !pl_look_vmpin(getpid(), &before) &&
	       !io_uring_register_buffers(&ring, &page, 1) && !pl_look_vmpin(getpid(), &after) &&
	       after > before;
	io_uring_queue_exit(&ring);
	if (page.iov_base != MAP_FAILED)
		munmap(page.iov_base, PL_PAGE);
	return seen;
}

static bool all_accounted;

static void try_once(void)
{
	all_accounted = try_accounting();
}

/* Main loop, worker and reaper: two that try at the same time would see each other's page. */
bool pl_look_unaccounted(pid_t pid)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct numbers q = {.pid = pid, .tid = pid, .format = "CapPrm: %" SCNx64};

	pthread_once(&once, try_once);
	return !all_accounted && pl_outside_ask(pid, has_ipc_lock, &q, sizeof q) != 0;
}

/* Reading stat_refresh collects what each processor has counted for itself. */
int pl_look_all_pins(int64_t *pages)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_RDONLY | O_CLOEXEC);
	int64_t got, let;
	char c;
	int err;

	if (fd >= 0) {
		if (read(fd, &c, 1) < 0)
			errno = 0; /* then the counts come late, as without the right to open it */
		close(fd);
	}
	err = number_in("/proc/vmstat", "nr_foll_pin_released %" SCNd64, &let);
	if (!err)
		err = number_in("/proc/vmstat", "nr_foll_pin_acquired %" SCNd64, &got);
	if (!err)
		*pages = got - let;
	return err;
}

/* ------------------------------------------------------------------------------------- heirs -- */

struct heir {
	pid_t pid, self;
	int ring, found; /* found: its number there, or -1 */
	uint64_t ino;
	bool mapped;
	char name[16];
};

/* Inode numbers of 32 bits come back one day. */
static int is_it(const char *fd, void *arg)
{
	struct heir *q = arg;
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/fd/%.12s", q->pid, fd);
	if (!names_ring(path) || inode_at(path) != q->ino)
		return 0;
	return q->ring < 0 || syscall(SYS_kcmp, q->self, q->pid, KCMP_FILE, q->ring, atoi(fd)) <= 0;
}

static bool has_map(const struct heir *q)
{
	char path[64], line[512];
	bool has = false;
	struct pl_text f;
	uint64_t ino;

	snprintf(path, sizeof path, "/proc/%d/maps", q->pid);
	if (pl_text_open(&f, path))
		return false;
	while (!has && !pl_text_line(&f, line, sizeof line))
		has = sscanf(line, "%*x-%*x %*s %*x %*x:%*x %" SCNu64, &ino) == 1 && ino == q->ino &&
		      strstr(line, RING_NAME);
	pl_text_close(&f);
	return has;
}

static void name_of(pid_t pid, char *name, size_t size)
{
	struct pl_text f;
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/comm", pid);
	snprintf(name, size, "?");
	if (pl_text_open(&f, path))
		return;
	pl_text_line(&f, name, size);
	pl_text_close(&f);
}

/* 1: it has the ring. */
static int is_heir(void *arg)
{
	struct heir *q = arg;
	char path[64];
	bool fd;

	snprintf(path, sizeof path, "/proc/%d/fd", q->pid);
	fd = pl_each_name(path, is_it, q) > 0;
	q->mapped = !fd;
	if (!fd && !has_map(q))
		return 0;
	name_of(q->pid, q->name, sizeof q->name);
	return 1;
}

struct heirs {
	const struct pl_outside *o;
	struct pl_outside_heir *heirs;
	int n, found;
};

/* One that can't be looked at is none: it could only say of its own pins that they are gone. */
static int add_heir(const char *name, void *arg)
{
	struct heirs *h = arg;
	const struct pl_outside *o = h->o;
	struct heir q = {.pid = atoi(name), .self = getpid(), .ring = o->ring, .ino = o->ino};

	if (q.pid <= 0 || q.pid == q.self || q.pid == o->pid ||
	    (o->child.stuck >= 0 && q.pid == o->child.pid) ||
	    pl_outside_ask(q.pid, is_heir, &q, sizeof q) <= 0)
		return 0;
	if (h->found < h->n) {
		h->heirs[h->found] = (struct pl_outside_heir){.pid = q.pid, .mapped_only = q.mapped};
		memcpy(h->heirs[h->found].name, q.name, sizeof q.name);
	}
	h->found++;
	return 0;
}

int pl_outside_heirs(const struct pl_outside *o, struct pl_outside_heir *heirs, int n)
{
	struct heirs h = {.o = o, .heirs = heirs, .n = n};
	int err = pl_each_name("/proc", add_heir, &h);

	return err ? err : h.found;
}

struct same {
	pid_t pid, self;
	int ring, theirs;
};

static int compare(void *arg)
{
	const struct same *q = arg;

	return syscall(SYS_kcmp, q->self, q->pid, KCMP_FILE, q->ring, q->theirs) ? -EBADF : 0;
}

bool pl_look_held(const struct pl_outside *o)
{
	struct same q = {o->pid, getpid(), o->ring, o->remote_fd};

	return !pl_outside_ask(o->pid, compare, &q, sizeof q);
}
