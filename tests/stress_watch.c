/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The watchdog of the stress test (I8): who doesn't get on for long is shown, with all that the kernel
 * says of the process's threads, and the program ends. And the balance (I4) from the kernel's own
 * figures.
 */
#include "stress.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "proc.h"

#define MAX_ACTORS 16
#define STALL_S	   90

static struct {
	pthread_mutex_t lock;
	struct actor *actor[MAX_ACTORS];
	unsigned long beat[MAX_ACTORS];
	int still_s[MAX_ACTORS], n;
} watched = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ------------------------------------------------------------------------------------- watchdog -- */

static void show_file(const char *task, const char *name)
{
	char path[64], text[256];
	ssize_t len;
	int fd;

	snprintf(path, sizeof path, "/proc/self/task/%.16s/%s", task, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	len = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[len > 0 ? len : 0] = 0;
	text[strcspn(text, "\n")] = 0;
	dprintf(STDOUT_FILENO, " %s: %s", name, text);
}

static void show_threads(void)
{
	DIR *dir = opendir("/proc/self/task");

	for (struct dirent *e; dir && (e = readdir(dir));) {
		if (e->d_name[0] == '.')
			continue;
		dprintf(STDOUT_FILENO, "# thread %s:", e->d_name);
		show_file(e->d_name, "comm");
		show_file(e->d_name, "wchan");
		show_file(e->d_name, "syscall");
		dprintf(STDOUT_FILENO, "\n");
	}
	if (dir)
		closedir(dir);
}

/* Straight to the descriptor: whoever holds stdio's lock may be the one who hangs. */
static void stuck(const struct actor *who)
{
	dprintf(STDOUT_FILENO, "# I8: %s of seed %lu doesn't come back\n", who->name,
		(unsigned long)round_.seed);
	for (int i = 0; i < watched.n; i++) {
		struct actor *a = watched.actor[i];

		dprintf(STDOUT_FILENO, "# %s (thread %d): %s, slot %d, still for %d s\n", a->name,
			atomic_load(&a->tid), atomic_load(&a->doing), atomic_load(&a->slot),
			watched.still_s[i]);
	}
	show_threads();
	if (getenv("PINLEASE_TEST_STAY")) /* for a debugger */
		pause();
	_exit(1);
}

static void look_at(int i)
{
	struct actor *a = watched.actor[i];
	unsigned long beat = atomic_load(&a->beat);
	const char *doing = atomic_load(&a->doing);

	watched.still_s[i] = beat == watched.beat[i] ? watched.still_s[i] + 1 : 0;
	watched.beat[i] = beat;
	if (doing && !strncmp(doing, "wait for an", 11)) /* event, others: idle */
		watched.still_s[i] = 0;
	if (watched.still_s[i] > STALL_S)
		stuck(a);
}

static void *watch(void *arg)
{
	struct timespec second = {1, 0};

	for (;;) {
		nanosleep(&second, NULL);
		pthread_mutex_lock(&watched.lock);
		for (int i = 0; i < watched.n; i++)
			look_at(i);
		pthread_mutex_unlock(&watched.lock);
	}
	return NULL;
}

void watch_start(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, watch, NULL))
		broken("test", "no watchdog");
	pthread_detach(thread);
}

void watch_actor(struct actor *a)
{
	pthread_mutex_lock(&watched.lock);
	if (watched.n < MAX_ACTORS) {
		watched.beat[watched.n] = watched.still_s[watched.n] = 0;
		watched.actor[watched.n++] = a;
	}
	pthread_mutex_unlock(&watched.lock);
}

void watch_clear(void)
{
	pthread_mutex_lock(&watched.lock);
	watched.n = 0;
	pthread_mutex_unlock(&watched.lock);
}

void watch_signal(unsigned which)
{
	pid_t tid = 0;

	pthread_mutex_lock(&watched.lock);
	if (watched.n)
		tid = atomic_load(&watched.actor[which % watched.n]->tid);
	pthread_mutex_unlock(&watched.lock);
	if (tid) /* may be gone by now; then nobody gets it */
		syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
}

/* -------------------------------------------------------------------------------------- balance -- */

struct balance balance_now(void)
{
	return (struct balance){open_fds(), entries("/proc/self/task"), pinned_kb()};
}

void pinned_must_be(long kb)
{
	struct timespec pause = {0, 2000000};

	for (int i = 0; i < 5000 && pinned_kb() != kb; i++)
		nanosleep(&pause, NULL);
	if (pinned_kb() != kb)
		broken("I4", "no lease, and %ld KiB are pinned, not %ld", pinned_kb(), kb);
}

/* A closed ring lets go of its pins a little later, and so does a thread of its descriptor table. */
void balance_must_be(const struct balance *b)
{
	struct timespec pause = {0, 2000000};
	struct balance now = balance_now();

	for (int i = 0; i < 5000 && memcmp(&now, b, sizeof now); i++) {
		nanosleep(&pause, NULL);
		now = balance_now();
	}
	if (now.fds != b->fds || now.threads != b->threads || now.pinned_kb != b->pinned_kb)
		broken("I4",
		       "before: %d descriptors, %d threads, %ld KiB pinned; after: %d descriptors, %d "
		       "threads, %ld KiB",
		       b->fds, b->threads, b->pinned_kb, now.fds, now.threads, now.pinned_kb);
}
