/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rig of the tests of I8; see own_rig.h. */
#include "own_rig.h"

#include <dirent.h>
#include <pinlease/device.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "proc.h"

/* ----------------------------------------------------------------------------- a process per test -- */

static void show_file(pid_t pid, const char *tid, const char *name)
{
	char path[300], text[256];
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/task/%s/%s", pid, tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	text[strcspn(text, "\n")] = 0;
	print_message(" %s", text);
}

static void show_threads(pid_t pid)
{
	char path[64];
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && (e = readdir(dir)))
		if (e->d_name[0] != '.') {
			print_message("# hangs: %s:", e->d_name);
			show_file(pid, e->d_name, "comm");
			show_file(pid, e->d_name, "wchan");
			show_file(pid, e->d_name, "syscall");
			print_message("\n");
		}
	if (dir)
		closedir(dir);
}

void isolated(void (*test)(void))
{
	struct pollfd p = {.events = POLLIN};
	int status, hangs;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (!pid) {
		setpgid(0, 0);
		test();
		exit(0);
	}
	assert_true(pid > 0);
	p.fd = syscall(SYS_pidfd_open, pid, 0);
	assert_true(p.fd >= 0);
	while ((hangs = poll(&p, 1, HANG_S * 1000)) < 0)
		;
	if (!hangs)
		show_threads(pid);
	kill(-pid, SIGKILL);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(p.fd);
	if (!hangs)
		fail_msg("hangs");
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
}

/* ------------------------------------------------------------------------------------- contexts -- */

void own_wait(sem_t *sem)
{
	while (sem_wait(sem))
		;
}

unsigned own_drain_ms;
void (*own_hook)(const char *call);

static void hook(const char *call)
{
	if (own_hook)
		own_hook(call);
}

static int hooked_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN | PINL_DEVCAP_ONDEMAND;
	*dev = &own_hook;
	return 0;
}

static int hooked_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	hook("map");
	return 0;
}

static void hooked_unmap(void *dev, struct pinl_mapping *m)
{
	hook("unmap");
}

static int hooked_stop(void *dev, struct pinl_mapping *m)
{
	hook("stop");
	return 0;
}

static int hooked_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	hook("drain");
	return 0;
}

static const struct pinl_device_ops hooked_ops = {
	.size = sizeof hooked_ops,
	.name = "hooked",
	.open = hooked_open,
	.map = hooked_map,
	.unmap = hooked_unmap,
	.stop = hooked_stop,
	.drain = hooked_drain,
};

static void on_event(const struct pinl_event *ev, void *arg)
{
	struct own *o = arg;

	if (ev->type == PINL_EV_RELEASED)
		o->released++;
	else if (ev->type == PINL_EV_ANSWERED)
		o->answered++;
	if (ev->type != PINL_EV_NOTICE)
		return;
	sem_post(&o->noticed);
	if (o->notice)
		o->notice(o, ev);
}

void own_open(struct own *o, const char *device, unsigned ceiling_ms,
	      void (*notice)(struct own *o, const struct pinl_event *ev))
{
	struct pinl_opts opts = {.size = sizeof opts,
				 .summary_fd = -1,
				 .ceiling_ms = ceiling_ms ? ceiling_ms : LONG,
				 .drain_ms = own_drain_ms,
				 .on_event = on_event,
				 .on_event_arg = o};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &o->ring};

	memset(o, 0, sizeof *o);
	sem_init(&o->noticed, 0, 0);
	o->notice = notice;
	o->has_ring = !strcmp(device, "uring");
	if (o->has_ring)
		must_ok(io_uring_queue_init(1024, &o->ring, 0));
	must_ok(pinl_open(&opts, &o->ctx));
	if (strcmp(device, "hooked"))
		must_ok(pinl_device_open(o->ctx, device, o->has_ring ? &arg : NULL, &o->dev));
	else
		must_ok(pinl_device_open_ops(o->ctx, &hooked_ops, NULL, &o->dev));
}

/* Buffers that any ring of this process has registered. */
static int buffers(void)
{
	char path[300], line[256];
	int n = 0;
	struct dirent *e;
	DIR *dir = opendir("/proc/self/fdinfo");

	must(dir);
	while ((e = readdir(dir))) {
		FILE *f;

		snprintf(path, sizeof path, "/proc/self/fdinfo/%s", e->d_name);
		f = e->d_name[0] == '.' ? NULL : fopen(path, "re");
		while (f && fgets(line, sizeof line, f))
			n += strstr(line, ": 0x") != NULL;
		if (f)
			fclose(f);
	}
	closedir(dir);
	return n;
}

/* Pages go when the last request on them has ended and its worker has run: soon, not at once. */
static void assert_balanced(struct own *o)
{
	struct pinl_counters c = {.size = sizeof c};

	must_ok(pinl_counters(o->ctx, &c));
	must(!c.leases && !c.bytes && c.mapped == c.unmapped);
	for (int i = 0; i < 10000 && (pinned_kb() || buffers()); i++)
		usleep(2000);
	must(!pinned_kb() && !buffers());
}

void own_close(struct own *o)
{
	assert_balanced(o);
	pinl_device_close(o->dev);
	pinl_close(o->ctx);
	if (o->has_ring)
		io_uring_queue_exit(&o->ring);
	sem_destroy(&o->noticed);
}

struct pinl_policy own_recall(unsigned grace_ms, enum pinl_then then)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy),
				    .kind = PINL_RECALL,
				    .then = then,
				    .grace_ms = grace_ms};
}

struct pinl_lease *own_lease_again(struct own *o, void *va, size_t len, unsigned flags,
				   const struct pinl_policy *policy)
{
	struct pinl_lease *lease;
	uintptr_t start = (uintptr_t)va;
	int err;

	while ((err = pinl_map_range(o->dev, start, start + len, flags, policy, NULL, &lease)) == -EBUSY)
		sched_yield();
	must_ok(err);
	return lease;
}

struct pinl_lease *own_lease(struct own *o, void *va, size_t len, unsigned flags,
			     const struct pinl_policy *policy)
{
	struct pinl_lease *lease;
	uintptr_t start = (uintptr_t)va;

	must_ok(pinl_map_range(o->dev, start, start + len, flags, policy, NULL, &lease));
	return lease;
}

void own_stale(struct pinl_lease *lease)
{
	struct pinl_lease_info info = {.size = sizeof info};

	do {
		must_ok(pinl_lease_info(lease, &info));
		sched_yield();
	} while (info.state != PINL_RELEASED && !(info.state == PINL_ACTIVE && info.detached_bytes));
	must(pinl_lease_check(lease) == -ESTALE);
}

/* ---------------------------------------------------------------------------------------- memory -- */

const char *own_dir(void)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");

	return dir ? dir : "/var/tmp";
}

void own_map(struct own_memory *m, char kind)
{
	*m = (struct own_memory){.kind = kind, .fd = -1, .flags = PINNED};
	if (kind == 'm')
		m->fd = memfd_create("own", MFD_CLOEXEC);
	if (kind == 'f')
		m->fd = open(own_dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	must(kind == 'a' || m->fd >= 0);
	must(kind == 'a' || !ftruncate(m->fd, SIZE));
	m->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
		     kind == 'a' ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, m->fd, 0);
	must(m->va != MAP_FAILED);
	memset(m->va, kind, SIZE);
	if (kind == 'm')
		m->flags |= PINL_COOPERATIVE; /* raw truncation is told afterwards only */
	if (kind == 'f')
		m->flags = PINL_WRITE | PINL_COOPERATIVE;
}

void own_unmap(struct own_memory *m)
{
	if (m->va)
		must_ok(munmap(m->va, SIZE));
	if (m->fd >= 0)
		close(m->fd);
}

void own_gone(struct own_memory *m)
{
	m->va = NULL;
}

off_t own_size(int fd)
{
	struct stat st;

	must_ok(fstat(fd, &st));
	return st.st_size;
}

int own_files(struct own *o)
{
	char text[2048], *why;

	pinl_sources(o->ctx, text, sizeof text);
	why = strstr(text, "files: missing");
	if (!why && !pinl_watch_fs(o->ctx, own_dir()))
		return 1;
	print_message("skip: %.*s\n", (int)strcspn(why ? why : pinl_error(), "\n"),
		      why ? why : pinl_error());
	return 0;
}

/* --------------------------------------------------------------------------------------- threads -- */

static void *run(void *arg)
{
	struct own_thread *t = arg;

	t->tid = gettid();
	t->fn(t->arg);
	t->done = 1;
	return NULL;
}

void own_start(struct own_thread *t, void (*fn)(void *arg), void *arg)
{
	t->fn = fn;
	t->arg = arg;
	t->tid = t->done = 0;
	must_ok(pthread_create(&t->thread, NULL, run, t));
	while (!t->tid)
		sched_yield();
}

void own_join(struct own_thread *t)
{
	must_ok(pthread_join(t->thread, NULL));
}

void own_wait_blocked(pid_t tid, long nr)
{
	char path[64], text[128];
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/syscall", tid);
	do {
		sched_yield();
		fd = open(path, O_RDONLY | O_CLOEXEC);
		must(fd >= 0);
		n = read(fd, text, sizeof text - 1);
		close(fd);
		text[n > 0 ? n : 0] = 0;
	} while (n <= 0 || text[0] == 'r' || atol(text) != nr);
}
