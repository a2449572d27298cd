/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The doorman: a child that looks at what a user shows, where looking or closing could take for ever (a
 * file whose server never answers, a socket that lingers). Whatever it hangs in, it hangs alone: its
 * table is its own, and has nothing of ours but its end of a socket.
 *
 * Always: system calls only, as another thread may have held any lock when this was forked. A message's
 * descriptors are installed in this table only as copies (MSG_PEEK), so the message stays whole for
 * the main loop, which receives it after the copies are closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "door.h"
#include "os/aside.h"
#include "outside_int.h"
#include "proto/wire.h"

#define MAX_SHOWN 253 /* SCM_MAX_FD */

/* ------------------------------------------------------------------------------------- the socket -- */

int door_receive(int sock, void *what, unsigned size, int *fd, int flags)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof *fd)];
	struct iovec iov = {what, size};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = fd ? control : NULL,
			     .msg_controllen = fd ? sizeof control : 0};
	struct cmsghdr *c;
	ssize_t n;

	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | flags);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)size)
		return n < 0 ? -errno : -EPIPE;
	c = fd ? CMSG_FIRSTHDR(&msg) : NULL;
	if (fd)
		*fd = -1;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(c), sizeof *fd);
	return 0;
}

/* ---------------------------------------------------------------------------------- messages -- */

/* Of file systems that answer by themselves. Nobody else's server is ever waited for then. */
static bool answers_itself(long magic)
{
	static const long known[] = {EXT4_SUPER_MAGIC,	XFS_SUPER_MAGIC,   BTRFS_SUPER_MAGIC,
				     TMPFS_MAGIC,	HUGETLBFS_MAGIC,   RAMFS_MAGIC,
				     F2FS_SUPER_MAGIC,	0xca451a4e,	   0x2fc12fc1,
				     MSDOS_SUPER_MAGIC, EXFAT_SUPER_MAGIC, NILFS_SUPER_MAGIC,
				     ISOFS_SUPER_MAGIC, SQUASHFS_MAGIC,	   EROFS_SUPER_MAGIC_V1};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (magic == known[i])
			return true;
	return false;
}

/* The answers of file_look() come first, as that will give them where this says nothing. */
static int look_at(int fd)
{
	struct statfs fs;
	struct stat st;

	if (fcntl(fd, F_GETFL) < 0 || fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	if (fstatfs(fd, &fs))
		return -errno;
	return answers_itself(fs.f_type) ? 0 : -EOPNOTSUPP;
}

/* Copies of all that the first message shows. -EPROTO: it isn't one. */
static int look_at_message(int sock)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(MAX_SHOWN * sizeof(int))];
	struct pl_head head;
	struct iovec iov = {&head, sizeof head};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof control};
	int fds[MAX_SHOWN], n = 0, err;
	struct cmsghdr *c;

	if (recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0)
		return -EPROTO;
	c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
		n = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof *fds);
	if (n)
		memcpy(fds, CMSG_DATA(c), n * sizeof *fds);
	err = n == 1 && !(msg.msg_flags & MSG_CTRUNC) ? look_at(fds[0]) : -EPROTO;
	for (int i = 0; i < n; i++)
		close(fds[i]);
	return err;
}

/* What isn't received by anybody is dropped here, and never by the main loop. */
static int judge(int sock)
{
	int err = look_at_message(sock);
	char byte;

	if (err)
		recv(sock, &byte, 1, MSG_DONTWAIT);
	return err;
}

/* ----------------------------------------------------------------------------------- handles -- */

static int kind_of(int fd, const struct door_order *o)
{
	bool is = o->kind == PL_OUTSIDE_RING ? pl_look_is_ring(fd)
					     : pl_outside_is_of(o->kind, o->number, fd);

	return is ? 0 : -EBADF;
}

/* What is of another kind is closed after that has been said. So there is nothing to wait for before. */
static int take(int sock, int pidfd, const struct door_order *o, int *kept)
{
	struct door_verdict v = {.fd = syscall(SYS_pidfd_getfd, pidfd, o->fd, 0)};

	v.err = v.fd < 0 ? -errno : kind_of(v.fd, o);
	close(pidfd);
	if (!v.err)
		*kept = v.fd;
	if (pl_packet_send(sock, &v, sizeof v, -1))
		return -EPIPE;
	if (v.err && v.fd >= 0)
		close(v.fd);
	return 0;
}

/* -------------------------------------------------------------------------------------------------- */

static int serve(int sock, int *kept)
{
	struct door_verdict v = {.fd = -1};
	struct door_order o;
	int fd, err = door_receive(sock, &o, sizeof o, &fd, 0);

	if (err)
		return err;
	if (o.what == DOOR_TAKE)
		return take(sock, fd, &o, kept);
	if (o.what == DOOR_DROP) {
		close(*kept);
		*kept = -1;
	} else if (o.what == DOOR_MESSAGE) {
		v.err = judge(fd);
		close(fd);
	}
	return pl_packet_send(sock, &v, sizeof v, -1);
}

void doorman(int sock)
{
	int kept = -1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "pinleased-door");
	if (!pl_own_table(sock, sock))
		while (!serve(sock, &kept))
			;
	syscall(SYS_exit_group, 0);
	__builtin_unreachable();
}
