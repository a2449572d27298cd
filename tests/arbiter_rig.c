/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "arbiter_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "accounted.h"

#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif

#define LONG_MS 120000

/* ---------------------------------------------------------------------------------- the arbiter -- */

static void launch(struct arbiter *a, const char *const *options)
{
	const char *argv[16] = {getenv("PINLEASED"), "--socket", a->socket};
	char said[64] = "";
	struct pollfd p = {.fd = a->ready, .events = POLLIN};

	if (a->kept) {
		a->pid = keeper_launch(&a->keeper, options);
		return;
	}
	for (int i = 0; options && options[i]; i++)
		argv[3 + i] = options[i];
	assert_non_null(argv[0]);
	a->pid = fork();
	if (!a->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execv(argv[0], (char **)argv);
		_exit(127);
	}
	while (!strstr(said, "READY=1")) {
		memset(said, 0, sizeof said);
		assert_int_equal(poll(&p, 1, LONG_MS), 1);
		assert_true(recv(a->ready, said, sizeof said - 1, 0) > 0);
	}
}

static void listen_like_systemd(struct arbiter *a)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	snprintf(addr.sun_path, sizeof addr.sun_path, "%s/ready", a->dir);
	a->ready = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(a->ready, (void *)&addr, sizeof addr), 0);
	setenv("NOTIFY_SOCKET", addr.sun_path, 1);
}

static void make_file(struct arbiter *a)
{
	char page[PG];
	int fd = open(a->file, O_RDWR | O_CREAT | O_CLOEXEC, 0666);

	memset(page, 'O', sizeof page);
	for (int i = 0; i < PAGES; i++)
		assert_int_equal(pwrite(fd, page, PG, i * PG), PG);
	close(fd);
}

static void close_descriptors(struct arbiter *a)
{
	if (a->kept)
		keeper_close(&a->keeper);
	else
		close(a->ready);
}

static void remove_files(const struct arbiter *a)
{
	char path[96];

	unlink(a->socket);
	unlink(a->file);
	snprintf(path, sizeof path, "%s/ready", a->dir);
	unlink(path);
	rmdir(a->dir);
}

static struct arbiter *left; /* by a test that failed or was skipped */

static void end_left(void)
{
	if (!left)
		return;
	if (left->pid) {
		kill(left->pid, SIGKILL);
		waitpid(left->pid, NULL, 0);
	}
	close_descriptors(left);
	remove_files(left);
	left = NULL;
}

void arbiter_start(struct arbiter *a, const char *const *options)
{
	static bool once;

	end_left();
	if (!once && !atexit(end_left))
		once = true;
	strcpy(a->dir, "/var/tmp/pinlease-arbiter-XXXXXX");
	assert_non_null(mkdtemp(a->dir));
	snprintf(a->socket, sizeof a->socket, "%s/socket", a->dir);
	snprintf(a->file, sizeof a->file, "%s/file", a->dir);
	setenv("PINLEASE_SOCKET", a->socket, 1);
	if (a->kept)
		keeper_open(&a->keeper, a->dir);
	else
		listen_like_systemd(a);
	make_file(a);
	launch(a, options);
	left = a;
}

void arbiter_kill(struct arbiter *a)
{
	kill(a->pid, SIGKILL);
	assert_int_equal(waitpid(a->pid, NULL, 0), a->pid);
	a->pid = 0;
}

void arbiter_restart(struct arbiter *a, const char *const *options)
{
	launch(a, options);
}

off_t arbiter_file_size(const struct arbiter *a)
{
	struct stat st;

	assert_int_equal(stat(a->file, &st), 0);
	return st.st_size;
}

void arbiter_stop(struct arbiter *a)
{
	int status;

	left = NULL;
	kill(a->pid, SIGTERM);
	assert_int_equal(waitpid(a->pid, &status, 0), a->pid);
	assert_int_equal(status, 0);
	close_descriptors(a);
	remove_files(a);
}

/* --------------------------------------------------------------------------------- the holder -- */

long process_pinned_kb(pid_t pid)
{
	char path[64], line[256];
	long kb = -1;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "VmPin: %ld", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
}

long holder_pinned_kb(const struct holder *h)
{
	return process_pinned_kb(h->pid) - h->s->pinned_before;
}

long holder_pinned_down_to(const struct holder *h, long kb)
{
	for (int ms = 0; ms < 20000 && holder_pinned_kb(h) > kb; ms++)
		usleep(1000);
	return holder_pinned_kb(h);
}

static void count(const struct pinl_event *ev, void *arg)
{
	struct shared *s = arg;

	if (ev->type == PINL_EV_FORCED)
		s->outcome = ev->outcome;
	s->last[ev->type] = *ev;
	s->cut += ev->type == PINL_EV_DEGRADED && ev->err == -EINTR;
	atomic_fetch_add(&s->events[ev->type], 1);
}

static void __attribute__((noreturn)) give_up(struct shared *s, int err)
{
	snprintf(s->error, sizeof s->error, "%s", pinl_error());
	s->leased = err;
	_exit(1);
}

static struct io_uring ring; /* the holder's */

static struct pinl_device *open_device(struct pinl_ctx *ctx, const struct lending *what,
				       struct shared *s)
{
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &ring};
	struct pinl_device *dev;
	int err = what->uring ? io_uring_queue_init(16, &ring, what->setup) : 0;

	if (!err)
		err = pinl_device_open(ctx, what->uring ? "uring" : "soft", what->uring ? &arg : NULL,
				       &dev);
	if (err)
		give_up(s, err);
	return dev;
}

static void fly(struct pinl_lease *l, char *va, struct shared *s)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
	int ends[2];

	if (pipe2(ends, O_CLOEXEC))
		give_up(s, -errno);
	io_uring_prep_read_fixed(sqe, ends[0], va, PG, 0, pinl_lease_key(l));
	if (io_uring_submit(&ring) != 1)
		give_up(s, -EIO);
}

static struct pinl_lease *lease(struct pinl_device *dev, const struct arbiter *a,
				const struct lending *what, struct shared *s)
{
	int fd = open(a->file, O_RDWR | O_CLOEXEC), pin = what->uring || what->pinned,
	    share = pin ? MAP_PRIVATE : MAP_SHARED, err = 0;
	size_t step = what->leases ? PG : SIZE;
	struct pinl_lease *l = NULL;
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, share, fd, 0);

	close(fd);
	for (int i = 0; !err && i < (what->leases ? what->leases : 1); i++)
		err = pinl_map_range(dev, (uintptr_t)va + i * step, (uintptr_t)va + (i + 1) * step,
				     PINL_WRITE | (pin ? PINL_PIN : 0) | what->flags, &what->policy,
				     NULL, &l);
	if (err)
		give_up(s, err);
	if (what->flight)
		fly(l, va, s);
	return l;
}

bool is_connected(struct pinl_ctx *ctx)
{
	char sources[1024];

	pinl_sources(ctx, sources, sizeof sources);
	return strstr(sources, "arbiter: running");
}

static void leave(struct pinl_ctx **ctx, struct shared *s)
{
	pinl_close(*ctx);
	*ctx = NULL;
	if (s->leave == 2)
		io_uring_queue_exit(&ring);
	s->leave = 0;
}

static void __attribute__((noreturn))
hold(const struct arbiter *a, const struct lending *what, struct shared *s)
{
	struct pinl_opts opts = {.size = sizeof opts,
				 .on_event = count,
				 .on_event_arg = s,
				 .summary_fd = -1,
				 /* a test is over before its holder forces anything of itself */
				 .ceiling_ms = 120000};
	struct pinl_device *dev;
	struct pinl_lease *l;
	struct pinl_ctx *ctx;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	account_pins();
	opts.drain_ms = what->drain_ms;
	if (pinl_open(&opts, &ctx))
		give_up(s, -EIO);
	s->connected = is_connected(ctx);
	dev = open_device(ctx, what, s);
	for (int i = 0; i < 20000 && process_pinned_kb(getpid()); i++) /* tried for, and let go late */
		usleep(1000);
	s->pinned_before = process_pinned_kb(getpid());
	l = lease(dev, a, what, s);
	s->leased = 1;
	while (!s->end) {
		if (s->quiesce && !s->quiesced)
			s->quiesced = pinl_quiesced(l) + 1;
		if (s->leave)
			leave(&ctx, s);
		if (s->unmap) {
			pinl_unmap_range(l);
			s->unmap = 0;
		}
		usleep(1000);
	}
	if (ctx)
		pinl_close(ctx);
	_exit(0);
}

struct lending lending_recall(enum pinl_then then, unsigned grace_ms)
{
	return (struct lending){.policy = {.size = sizeof(struct pinl_policy),
					   .kind = PINL_RECALL,
					   .then = then,
					   .grace_ms = grace_ms}};
}

void holder_start(struct holder *h, const struct arbiter *a, const struct lending *what)
{
	h->s = mmap(NULL, sizeof *h->s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	h->pid = fork();
	if (!h->pid)
		hold(a, what, h->s);
	while (!h->s->leased)
		usleep(1000);
}

/* EBADF: the kernel knows the event; EINVAL: it doesn't. */
static bool kernel_holds_changes(void)
{
	int group = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY), err;

	fanotify_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, -1, NULL);
	err = errno;
	close(group);
	return err != EINVAL;
}

void skip_unless_changes_are_held(void)
{
	if (kernel_holds_changes())
		return;
	print_message("skip: holding changes of files needs fanotify FAN_PRE_ACCESS, Linux 6.14\n");
	skip();
}

void holder_assert_leased(const struct holder *h)
{
	if (h->s->leased == -EOPNOTSUPP)
		skip_unless_changes_are_held();
	if (h->s->leased == -EOPNOTSUPP && strstr(h->s->error, "this kernel")) {
		print_message("skip: %s\n", h->s->error);
		skip();
	}
	if (h->s->leased != 1)
		fail_msg("%d: %s", h->s->leased, h->s->error);
	assert_true(h->s->connected);
}

void holder_lease(struct holder *h, const struct arbiter *a, const struct lending *what)
{
	holder_start(h, a, what);
	holder_assert_leased(h);
}

void holder_stop(const struct holder *h)
{
	int status;

	kill(h->pid, SIGSTOP);
	assert_int_equal(waitpid(h->pid, &status, WUNTRACED), h->pid);
	assert_true(WIFSTOPPED(status));
}

void holder_wait(const struct holder *h, enum pinl_event_type type, int n)
{
	while (h->s->events[type] < n)
		usleep(1000);
}

void holder_end(struct holder *h)
{
	int status;

	h->s->end = 1;
	assert_int_equal(waitpid(h->pid, &status, 0), h->pid);
	munmap(h->s, sizeof *h->s);
}

/* ---------------------------------------------------------------------------------- the actor -- */

void actor_start(struct actor *t, const struct arbiter *a)
{
	actor_start_to(t, a, 0);
}

void actor_start_to(struct actor *t, const struct arbiter *a, off_t size)
{
	int fds[2], err;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	t->pid = fork();
	if (!t->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		err = truncate(a->file, size) ? -errno : 0;
		_exit(write(fds[1], &err, sizeof err) != sizeof err);
	}
	close(fds[1]);
	t->fd = fds[0];
}

int actor_join(struct actor *t)
{
	int err = -EIO;

	assert_int_equal(read(t->fd, &err, sizeof err), sizeof err);
	close(t->fd);
	waitpid(t->pid, NULL, 0);
	return err;
}

bool actor_waits(const struct actor *t)
{
	struct pollfd p = {.fd = t->fd, .events = POLLIN};

	return !poll(&p, 1, 0);
}

void wait_until_held(pid_t pid)
{
	char path[32], wchan[64] = "";
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/wchan", pid);
	while (!strstr(wchan, "fanotify")) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = read(fd, wchan, sizeof wchan - 1);
		wchan[n > 0 ? n : 0] = 0;
		close(fd);
		usleep(1000);
	}
}
