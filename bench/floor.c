/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The floors: a userfaultfd whose events are read as they come, and a fanotify group whose events are
 * allowed as they come. One thread each, on lib_cpu.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define FEATURES                                                                                        \
	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_EVENT_UNMAP |               \
	 UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP)

struct floor_monitor {
	int fd, stop;
	pthread_t thread;
};

static void *read_uffd(void *arg)
{
	struct floor_monitor *f = arg;
	struct pollfd p[2] = {{f->fd, POLLIN, 0}, {f->stop, POLLIN, 0}};
	struct uffd_msg msg;

	while (poll(p, 2, -1) >= 0 && !(p[1].revents & POLLIN))
		while (read(f->fd, &msg, sizeof msg) == sizeof msg)
			;
	return NULL;
}

static void *answer_fanotify(void *arg)
{
	struct floor_monitor *f = arg;
	struct pollfd p[2] = {{f->fd, POLLIN, 0}, {f->stop, POLLIN, 0}};
	struct fanotify_event_metadata ev[8];

	while (poll(p, 2, -1) >= 0 && !(p[1].revents & POLLIN)) {
		ssize_t len = read(f->fd, ev, sizeof ev);

		for (struct fanotify_event_metadata *m = ev; FAN_EVENT_OK(m, len);
		     m = FAN_EVENT_NEXT(m, len)) {
			struct fanotify_response r = {m->fd, FAN_ALLOW};

			if (m->fd < 0)
				continue;
			if (write(f->fd, &r, sizeof r) != sizeof r)
				fail("fanotify: %s", strerror(errno));
			close(m->fd);
		}
	}
	return NULL;
}

static struct floor_monitor *start(const struct bench *b, int fd, void *(*run)(void *))
{
	struct floor_monitor *f = calloc(1, sizeof *f);

	if (!f)
		fail("out of memory");
	f->fd = fd;
	f->stop = must(eventfd(0, EFD_CLOEXEC), "eventfd");
	pin_to(b->lib_cpu);
	must(-pthread_create(&f->thread, NULL, run, f), "pthread_create");
	pin_to(b->actor_cpu);
	return f;
}

struct floor_monitor *floor_uffd(const struct bench *b, const char **why)
{
	struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd >= 0 && !ioctl(fd, UFFDIO_API, &api))
		return start(b, fd, read_uffd);
	*why = "no userfaultfd with WP_ASYNC (Linux 6.7) here";
	if (fd >= 0)
		close(fd);
	return NULL;
}

void floor_watch(struct floor_monitor *f, void *at, size_t size)
{
	struct uffdio_register reg = {.range = {(uintptr_t)at, size}, .mode = UFFDIO_REGISTER_MODE_WP};

	must(ioctl(f->fd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
}

struct floor_monitor *floor_fanotify(const struct bench *b, const char **why)
{
	int fd = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE |
				       FAN_UNLIMITED_MARKS,
			       O_RDONLY | O_LARGEFILE | O_CLOEXEC);

	if (fd >= 0 && (!fanotify_mark(fd, FAN_MARK_ADD, FAN_PRE_ACCESS, -1, NULL) || errno != EINVAL))
		return start(b, fd, answer_fanotify);
	*why = "no fanotify FAN_PRE_ACCESS (root, Linux 6.14) here";
	if (fd >= 0)
		close(fd);
	return NULL;
}

int floor_mark(struct floor_monitor *f, const char *path)
{
	return fanotify_mark(f->fd, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, path) ? -errno : 0;
}

void floor_end(struct floor_monitor *f)
{
	eventfd_write(f->stop, 1);
	pthread_join(f->thread, NULL);
	close(f->fd);
	close(f->stop);
	free(f);
}
