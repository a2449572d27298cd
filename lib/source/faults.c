/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The faults source: transfers that an IOMMU has stopped, which is what becomes of those that come after
 * a revoke. It sees no changes. Intel's and AMD's drivers tell nobody but the kernel's log (VFIO and
 * iommufd have no report of them; the tracepoint iommu:io_page_fault isn't reached by Intel's), so that
 * is read: /dev/kmsg, which needs CAP_SYSLOG or kernel.dmesg_restrict=0. The kernel writes at most ten
 * lines in five seconds there, two for each fault: an event says that there was one, none says nothing.
 *
 * The log is opened with the context, which may drop the right to it later; the thread comes with the
 * first lease at an IOMMU's addresses. It allocates nothing.
 */
#include "source/faults.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "core/fault.h"
#include "os/forked.h"
#include "os/thread.h"
#include "os/wake.h"
#include "source/sources.h"

#define RECORD 8192 /* the longest that the kernel makes */

struct faults {
	struct pinl_ctx *ctx;
	int log, stop;
	pthread_mutex_t lock; /* covers `started` */
	bool started;
	pthread_t thread;
	char record[RECORD]; /* the thread's */
};

static void take(struct faults *s, size_t len)
{
	char device[PL_PCI_NAME];
	struct pl_fault f;

	if (pl_fault_decode(s->record, len, &f) && pl_fault_is_ours(&f.device, device))
		pl_fault_report(s->ctx, device, f.iova, f.write);
}

/* One record: others may write without end. False: there is nothing more to come. EPIPE: the next ones
 * have been overwritten. */
static bool read_log(struct faults *s)
{
	ssize_t n = read(s->log, s->record, sizeof s->record);

	if (n > 0)
		take(s, n);
	return n > 0 || (n < 0 && (errno == EPIPE || errno == EAGAIN || errno == EINTR));
}

static void *run(void *src)
{
	struct faults *s = src;
	struct pollfd fds[2] = {{s->stop, POLLIN, 0}, {s->log, POLLIN, 0}};

	prctl(PR_SET_NAME, "pinl-faults");
	while (!(fds[0].revents & POLLIN)) {
		if (poll(fds, 2, -1) > 0 && fds[1].revents && !read_log(s))
			fds[1].fd = -1;
	}
	return NULL;
}

/* If the thread can't be made now, it is tried with the next lease. */
static void faults_translated(void *src)
{
	struct faults *s = src;

	pthread_mutex_lock(&s->lock);
	if (!s->started) {
		lseek(s->log, 0, SEEK_END);
		s->started = !pl_thread_start(&s->thread, run, s);
	}
	pthread_mutex_unlock(&s->lock);
}

static unsigned faults_coverage(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return 0;
}

static void faults_free(struct faults *s)
{
	pl_forked_close(s->log);
	if (s->stop >= 0)
		close(s->stop);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static int say(int err)
{
	if (err == -EPERM || err == -EACCES)
		return pinl_set_error(err,
				      "the kernel's log can't be read (/dev/kmsg: %s), and only there "
				      "are faults of an IOMMU told; give CAP_SYSLOG, or set "
				      "kernel.dmesg_restrict=0",
				      strerror(-err));
	return pinl_set_error(err,
			      "can't watch the kernel's log (/dev/kmsg), where faults of an IOMMU are "
			      "told: %s",
			      strerror(-err));
}

static int faults_open(struct pinl_ctx *ctx, const void *arg, void **src)
{
	struct faults *s = calloc(1, sizeof *s);
	int err = 0;

	if (!s)
		return pinl_set_error(-ENOMEM, "out of memory for the faults source");
	s->ctx = ctx;
	pthread_mutex_init(&s->lock, NULL);
	s->stop = -1;
	s->log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (s->log >= 0)
		s->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->stop < 0)
		err = -errno;
	if (!err)
		err = pl_forked_add(s->log);
	if (err) {
		faults_free(s);
		return say(err);
	}
	*src = s;
	return 0;
}

static void faults_close(void *src)
{
	struct faults *s = src;

	if (s->started) {
		pl_wake(s->stop);
		pthread_join(s->thread, NULL);
	}
	faults_free(s);
}

const struct pinl_source_ops pl_faults_ops = {
	.size = sizeof(struct pinl_source_ops),
	.name = "faults",
	.open = faults_open,
	.close = faults_close,
	.coverage = faults_coverage,
	.translated = faults_translated,
};
