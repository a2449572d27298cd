/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Getting a userfaultfd that can do what the source needs, or one sentence saying what is in the way;
 * and keeping it out of forked children: they would keep the registration alive when the parent closes
 * it, and then the parent's next munmap would wait for a reader that is gone.
 */
#include "source/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "os/compat.h"
#include "os/forked.h"

#define FEATURES                                                                                        \
	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_EVENT_UNMAP |               \
	 UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP)

static int open_uffd(void)
{
	int flags = O_CLOEXEC | O_NONBLOCK, dev, err;
	int fd = syscall(SYS_userfaultfd, flags);

	if (fd < 0 && errno == EPERM)
		fd = syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY);
	if (fd >= 0 || errno == EMFILE || errno == ENFILE || errno == ENOMEM)
		return fd < 0 ? -errno : fd;
	err = -errno;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return errno == EMFILE || errno == ENFILE ? -errno : err;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, flags);
	err = fd < 0 ? -errno : fd;
	close(dev);
	return err;
}

static int explain_open(int err)
{
	switch (err) {
	case -EPERM:
	case -EACCES:
		return pinl_set_error(
			err,
			"userfaultfd is forbidden here, most likely by a container's seccomp filter: "
			"allow userfaultfd(2) in it or grant read and write on /dev/userfaultfd");
	case -ENOSYS:
		if (access("/proc/sys/vm/unprivileged_userfaultfd", F_OK))
			return pinl_set_error(err, "this kernel was built without CONFIG_USERFAULTFD");
		return pinl_set_error(
			err,
			"a seccomp filter hides userfaultfd(2), which this kernel has: allow it in the "
			"filter or grant read and write on /dev/userfaultfd");
	case -EINVAL:
		return pinl_set_error(
			err, "userfaultfd without privileges needs Linux 5.11, and watching needs 6.7: "
			     "use a newer kernel");
	case -EMFILE:
		return pinl_set_error(err, "no descriptor left for userfaultfd: raise ulimit -n");
	case -ENFILE:
		return pinl_set_error(
			err, "no descriptor left in the system for userfaultfd: raise fs.file-max");
	}
	return pinl_set_error(err, "can't open a userfaultfd: %s", strerror(-err));
}

static int explain_features(uint64_t have)
{
	if (!(have & UFFD_FEATURE_WP_ASYNC))
		return pinl_set_error(-EOPNOTSUPP,
				      "this kernel's userfaultfd has no asynchronous mode (WP_ASYNC): "
				      "Linux 6.7 or newer on x86-64 or arm64 is needed");
	return pinl_set_error(-EOPNOTSUPP,
			      "this kernel's userfaultfd lacks features %#llx: use a newer kernel",
			      (unsigned long long)(FEATURES & ~have));
}

/* Kernels have refused unknown features or ignored them; both end up here as what they have. */
static int shake_hands(int fd)
{
	struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};

	if (!ioctl(fd, UFFDIO_API, &api) && (api.features & FEATURES) == FEATURES)
		return 0;
	if (!api.features) {
		api = (struct uffdio_api){.api = UFFD_API};
		if (ioctl(fd, UFFDIO_API, &api))
			return pinl_set_error(-errno, "userfaultfd refuses its handshake: %s",
					      strerror(errno));
	}
	return explain_features(api.features);
}

int pl_uffd_open_fd(void)
{
	int fd = open_uffd(), err;

	if (fd < 0)
		return explain_open(fd);
	err = pl_forked_add(fd);
	if (err)
		pinl_set_error(err, "more userfaultfds and rings than a fork can close");
	else
		err = shake_hands(fd);
	if (!err)
		return fd;
	pl_uffd_close_fd(fd);
	return err;
}

/* Whoever is blocked is let go by this. */
void pl_uffd_close_fd(int fd)
{
	pl_forked_close(fd);
}
