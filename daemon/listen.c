/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where pinleased listens when nobody has given it a socket. Nothing is removed but a socket that nobody
 * listens on any more. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon.h"

static const char *remedy(int err)
{
	switch (err) {
	case -ENOENT:
		return "; make its directory, or name another place with --socket";
	case -EACCES:
	case -EPERM:
	case -EROFS:
		return "; start pinleased as root, or name another place with --socket";
	case -ENAMETOOLONG:
		return "; name a shorter path with --socket, of at most 107 bytes";
	case -EEXIST:
		return "; it is no socket, and isn't removed; name another place with --socket";
	case -EADDRINUSE:
		return ", by a program that lives; end it, or name another place with --socket";
	}
	return "";
}

/* Only ECONNREFUSED says that nobody has it: a socket of another type, or a busy one, gives other
 * errors. */
static int remove_old(const char *path, const struct sockaddr_un *addr, int sock)
{
	struct stat st;

	if (lstat(path, &st))
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	if (!connect(sock, (const void *)addr, sizeof *addr))
		return -EADDRINUSE;
	if (errno != ECONNREFUSED)
		return errno == EACCES ? -EACCES : -EADDRINUSE;
	return unlink(path) ? -errno : 0;
}

static int listen_at(const char *path, int sock)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int err;

	if (!*path)
		return -ENOENT;
	if (strlen(path) >= sizeof addr.sun_path)
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	err = remove_old(path, &addr, sock);
	if (!err && (bind(sock, (void *)&addr, sizeof addr) || chmod(path, 0666) || listen(sock, 128)))
		err = -errno;
	return err;
}

int listen_given(int sock)
{
	if (sd_is_socket_unix(sock, SOCK_SEQPACKET, 1, NULL, 0) > 0)
		return sock;
	return pinl_set_error(
		-EINVAL,
		"what the service manager has passed is no Unix socket of type SOCK_SEQPACKET that "
		"listens; its unit says ListenSequentialPacket=PATH");
}

int listen_socket(const char *path)
{
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int err = sock < 0 ? -errno : listen_at(path, sock);

	if (!err)
		return sock;
	if (sock >= 0)
		close(sock);
	return pinl_set_error(err, "can't listen on \"%s\": %s%s", path, strerror(-err), remedy(err));
}
