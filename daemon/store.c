/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "core/ctx.h"
#include "os/text.h"
#include "outside.h"

#define LAYOUT	   ((uint64_t)sizeof(struct store_image) << 16 | sizeof(struct stored_lease) << 4 | 1)
#define BARRIER_US 2000000

static const char *const names[] = {"pinleased-a", "pinleased-b", "pinleased-table"};
enum { GROUP_A, GROUP_B, TABLE, NR_KEPT };

/* ---------------------------------------------------------------------------------- at the start -- */

/* What the service manager has passed: the kept ones by name, the rest are sockets. */
static int sort_given(int kept[NR_KEPT], int *sock)
{
	char **given = NULL;
	int n = sd_listen_fds_with_names(1, &given), sockets = 0;

	for (int i = 0; i < n; i++) {
		int fd = SD_LISTEN_FDS_START + i, k = 0;

		while (k < NR_KEPT && strcmp(given[i], names[k]))
			k++;
		if (k < NR_KEPT)
			kept[k] = fd;
		else if (!sockets++)
			*sock = fd;
		free(given[i]);
	}
	free(given);
	if (sockets > 1)
		fprintf(stderr, "pinleased: %d sockets were passed, and only the first is listened on\n",
			sockets);
	return sockets;
}

static struct store_image *map_image(int fd)
{
	struct store_image *image;
	struct stat st;

	if (fstat(fd, &st) || st.st_size != sizeof *image)
		return NULL;
	image = mmap(NULL, sizeof *image, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return image == MAP_FAILED ? NULL : image;
}

static bool is_ours(const struct store_image *image)
{
	return image->layout == LAYOUT && image->files.layout == PL_FILES_LAYOUT;
}

/* Out of the way of the events' numbers, where the source looks for them. */
static int place_groups(int kept[NR_KEPT])
{
	for (int i = GROUP_A; i <= GROUP_B; i++) {
		int to = i == GROUP_A ? PL_FILES_GROUP_A : PL_FILES_GROUP_B;

		if (dup3(kept[i], to, O_CLOEXEC) < 0)
			return -errno;
		close(kept[i]);
		kept[i] = to;
	}
	return 0;
}

static void forget_kept(int kept[NR_KEPT])
{
	char text[64];

	for (int i = 0; i < NR_KEPT; i++) {
		if (kept[i] < 0)
			continue;
		snprintf(text, sizeof text, "FDSTOREREMOVE=1\nFDNAME=%s", names[i]);
		sd_notify(0, text);
		close(kept[i]);
		kept[i] = -1;
	}
}

static bool take_back(struct store *st, int kept[NR_KEPT])
{
	if (kept[GROUP_A] < 0 || kept[GROUP_B] < 0 || kept[TABLE] < 0)
		return false;
	st->image = map_image(kept[TABLE]);
	st->resumed = st->image && is_ours(st->image) && !place_groups(kept);
	if (st->image && !st->resumed)
		munmap(st->image, sizeof *st->image);
	if (!st->resumed)
		st->image = NULL;
	return st->resumed;
}

static int make_new(struct store *st, int kept[NR_KEPT])
{
	int err = pl_files_make_group(&kept[GROUP_A]);

	if (!err && !pl_files_knows_the_event(kept[GROUP_A]))
		err = -EOPNOTSUPP;
	if (!err)
		err = pl_files_make_group(&kept[GROUP_B]);
	if (!err)
		err = place_groups(kept);
	if (err)
		return err;
	kept[TABLE] = memfd_create("pinleased", MFD_CLOEXEC);
	if (kept[TABLE] < 0 || ftruncate(kept[TABLE], sizeof *st->image))
		return -errno;
	st->image = map_image(kept[TABLE]);
	if (!st->image)
		return -ENOMEM;
	st->image->files.layout = PL_FILES_LAYOUT;
	st->image->layout = LAYOUT;
	return 0;
}

static int give_away(const int kept[NR_KEPT])
{
	char text[64];
	int err = 0;

	for (int i = 0; i < NR_KEPT && err >= 0; i++) {
		snprintf(text, sizeof text, "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", names[i]);
		err = sd_pid_notify_with_fds(0, 0, text, &kept[i], 1);
	}
	if (err >= 0) /* no lease before it is there */
		err = sd_notify_barrier(0, BARRIER_US);
	return err < 0 ? err : 0;
}

static bool room_for_numbers(void)
{
	struct rlimit r;

	return !getrlimit(RLIMIT_NOFILE, &r) && r.rlim_cur > 2 * PL_FILES_OWN;
}

static void begin(struct store *st, int kept[NR_KEPT])
{
	int err = room_for_numbers() ? make_new(st, kept) : -EMFILE;

	if (!err)
		err = give_away(kept);
	if (!err)
		return;
	if (err != -EOPNOTSUPP) /* nobody can be made to wait, which is said elsewhere */
		fprintf(stderr,
			"pinleased: nothing can be kept over a crash (%s): who waits would go on then\n",
			strerror(-err));
	if (st->image)
		munmap(st->image, sizeof *st->image);
	st->image = NULL;
	forget_kept(kept);
}

/* systemd 254 says so; for older ones the unit does. */
static bool has_store(void)
{
	const char *room = getenv("FDSTORE");

	return room && atoi(room) >= NR_KEPT && getenv("NOTIFY_SOCKET");
}

int store_open(struct store *st, bool closed, int *sock)
{
	int kept[NR_KEPT] = {-1, -1, -1}, sockets;

	pthread_mutex_init(&st->lock, NULL);
	sockets = sort_given(kept, sock);
	if (closed && !take_back(st, kept) && (kept[GROUP_A] >= 0 || kept[TABLE] >= 0))
		fprintf(stderr, "pinleased: what was kept is of another build and is thrown away: who "
				"waited goes on\n");
	if (st->resumed) {
		close(kept[TABLE]);
		return sockets;
	}
	forget_kept(kept);
	if (closed && has_store())
		begin(st, kept);
	else if (closed)
		fprintf(stderr,
			"pinleased: no service manager keeps its descriptors: who waits for a file "
			"on disk when it is killed goes on\n");
	if (kept[TABLE] >= 0)
		close(kept[TABLE]);
	return sockets;
}

void store_groups_taken(struct store *st)
{
	if (!st->image)
		return;
	close(PL_FILES_GROUP_A);
	close(PL_FILES_GROUP_B);
}

void store_close(struct store *st)
{
	if (st->image)
		munmap(st->image, sizeof *st->image);
	free(st->holders.free);
	free(st->leases.free);
	pthread_mutex_destroy(&st->lock);
}

/* Of /proc/PID/stat, as proc(5) counts them, from the 4th on; 0: there is none. */
static uint64_t stat_field(const char *text, int number)
{
	const char *at = strrchr(text, ')'); /* the name may have anything in it */

	for (int i = 2; at && i < number; i++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

static int look_at_process(void *arg)
{
	struct process_seen *p = arg;
	char path[32], text[1024];
	struct pl_text f;
	int err;

	snprintf(path, sizeof path, "/proc/%d/stat", p->pid);
	err = pl_text_open(&f, path);
	if (err)
		return err;
	err = pl_text_line(&f, text, sizeof text);
	pl_text_close(&f);
	if (err)
		return err;
	p->started = stat_field(text, 22);
	p->stack = stat_field(text, 28);
	return 0;
}

struct process_seen process_look(pid_t pid)
{
	struct process_seen p = {.pid = pid};

	pl_outside_ask(pid, look_at_process, &p, sizeof p);
	return p;
}

/* ---------------------------------------------------------------------------------------- slots -- */

/* -1: there is none. lock held. */
static int64_t slot_get(struct slots *s, uint32_t *used, uint32_t max)
{
	if (s->n_free)
		return s->free[--s->n_free];
	return *used < max ? (int64_t)(*used)++ : -1;
}

/* Without memory to remember it the slot stays unused. lock held. */
static void slot_put(struct slots *s, uint32_t slot)
{
	uint32_t room = s->room ? 2 * s->room : 64, *more;

	if (s->n_free == s->room) {
		more = realloc(s->free, room * sizeof *more);
		if (!more)
			return;
		s->free = more;
		s->room = room;
	}
	s->free[s->n_free++] = slot;
}

static int64_t get(struct store *st, struct slots *s, uint32_t *used, uint32_t max)
{
	int64_t slot;
	bool say;

	pthread_mutex_lock(&st->lock);
	slot = slot_get(s, used, max);
	say = slot < 0 && !st->full;
	st->full |= say;
	pthread_mutex_unlock(&st->lock);
	if (say)
		fprintf(stderr, "pinleased: no room to keep more leases over a crash; the others are\n");
	return slot;
}

static void put(struct store *st, struct slots *s, uint32_t slot)
{
	pthread_mutex_lock(&st->lock);
	slot_put(s, slot);
	pthread_mutex_unlock(&st->lock);
}

struct stored_holder *store_holder(struct store *st, const struct stored_holder *what)
{
	struct store_image *i = st->image;
	int64_t slot = i ? get(st, &st->holders, &i->holders_used, STORE_HOLDERS) : -1;
	struct stored_holder *h;

	if (slot < 0)
		return NULL;
	h = &i->holders[slot];
	*h = *what;
	h->session = 0;
	__atomic_store_n(&h->session, what->session, __ATOMIC_RELEASE);
	return h;
}

struct stored_lease *store_lease(struct store *st, const struct stored_holder *of,
				 const struct pl_lease_msg *msg, const struct pinl_memory *mem)
{
	struct store_image *i = st->image;
	int64_t slot = of ? get(st, &st->leases, &i->leases_used, STORE_LEASES) : -1;
	struct stored_lease *l;

	if (slot < 0)
		return NULL;
	l = &i->leases[slot];
	*l = (struct stored_lease){.holder = of - i->holders,
				   .dev = mem->dev,
				   .ino = mem->ino,
				   .fs_magic = mem->fs_magic,
				   .msg = *msg};
	__atomic_store_n(&l->state, STORED_LIVE, __ATOMIC_RELEASE);
	return l;
}

static void widen(struct pl_foreign_orphan *o, const struct pl_foreign_orphan *more)
{
	o->start = more->start < o->start ? more->start : o->start;
	o->end = more->end > o->end ? more->end : o->end;
}

void store_orphan(struct stored_lease *l, const struct pl_foreign_orphan *o)
{
	uint32_t n = l->n_orphans;

	if (!o) {
		l->n_orphans = 0;
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		if (l->orphans[i].start <= o->start && l->orphans[i].end >= o->end)
			return;
	if (n == STORE_ORPHANS) {
		widen(&l->orphans[n - 1], o);
		return;
	}
	l->orphans[n] = *o;
	__atomic_store_n(&l->n_orphans, n + 1, __ATOMIC_RELEASE);
}

void store_drop_holder(struct store *st, struct stored_holder *h)
{
	if (!h)
		return;
	h->session = 0;
	put(st, &st->holders, h - st->image->holders);
}

void store_drop_lease(struct store *st, struct stored_lease *l)
{
	if (!l)
		return;
	l->state = STORED_FREE;
	put(st, &st->leases, l - st->image->leases);
}
