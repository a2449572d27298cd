/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The handle is a descriptor of the holder's RDMA context, the same open file: the kernel's commands act
 * on what that file has, whoever gives them (write(2) asks for the credentials of who opened it, the
 * ioctl doesn't). So a memory region can be deregistered from here, which waits for transfers and unpins
 * from the holder's account: there is nothing to drain.
 *
 * Always: a region is deregistered only if it has the key, address and length that the holder said; its
 * handle is given to another as soon as it is free.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "os/errname.h"
#include "outside_int.h"

/* uverbs devices have several numbers, some given at run time. */
bool pl_verbs_is_device(dev_t number)
{
	char path[64], link[256];
	ssize_t n;

	snprintf(path, sizeof path, "/sys/dev/char/%u:%u", major(number), minor(number));
	n = readlink(path, link, sizeof link - 1);
	if (n < 0)
		return false;
	link[n] = 0;
	return strstr(link, "/infiniband_verbs/uverbs") != NULL;
}

int pl_verbs_explain(const struct pl_outside *o, int err, const struct pl_outside_buf *b)
{
	if (err == -ETIMEDOUT)
		return pinl_set_error(
			err,
			"memory region %u (lkey %#x) of process %d was not deregistered by "
			"the deadline: the driver waits for a transfer, or another command "
			"of the process's is at it; peers may reach its memory still, and "
			"it can only be killed",
			b->slot, b->twin, o->pid);
	if (err == -ESTALE)
		return pinl_set_error(
			err,
			"memory region %u (lkey %#x) of process %d is not there any more, "
			"and after a COPY another may be in its place: it can only be killed",
			b->slot, b->twin, o->pid);
	return pinl_set_error(
		err,
		"can't deregister memory region %u (lkey %#x) of process %d: %s; peers may "
		"reach its memory still",
		b->slot, b->twin, o->pid, pl_errname(-err));
}

#ifdef HAVE_VERBS
#include "backend/verbs_cmd.h"

/*
 * -ENOENT: there is no such region. -EBUSY is that somebody else is at it, the holder by another
 * command; the handle may be another's afterwards, so what it is is asked again each time. Until the
 * deadline, when this child is killed.
 */
static int deregister(const struct pl_uverbs *u, const struct pl_mr *mr, uint64_t start, size_t len)
{
	struct timespec pause = {0, 1000000};
	int err;

	for (;;) {
		err = pl_mr_is(u, mr, start, len);
		if (!err) {
			err = pl_mr_dereg(u, mr->handle);
			if (err && err != -EBUSY)
				return pl_mr_is(u, mr, start, len) == -ENOENT ? 0 : err;
		}
		if (err != -EBUSY)
			return err;
		nanosleep(&pause, NULL);
	}
}

int pl_verbs_take(int fd, uint32_t handle, uint32_t lkey, uint64_t tag, size_t len)
{
	struct pl_mr mr = {.handle = handle, .lkey = lkey};
	struct pl_uverbs u = {.fd = fd};
	int err = pl_uverbs_find(&u);

	if (!err)
		err = deregister(&u, &mr, tag & ~(PL_PAGE - 1), len);
	if (err == -ENOENT) /* its holder has ended it, or put another in its place */
		return tag & PINL_HANDLE_REKEYS ? -ESTALE : 0;
	return err;
}

int pl_verbs_built(void)
{
	return 0;
}

#else

int pl_verbs_built(void)
{
	return pinl_set_error(-EOPNOTSUPP,
			      "this pinleased was built without verbs (meson option verbs), so memory "
			      "regions of RDMA devices can't be taken away from outside");
}

int pl_verbs_take(int fd, uint32_t handle, uint32_t lkey, uint64_t tag, size_t len)
{
	return -EOPNOTSUPP;
}
#endif
