/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who closes a socket last drops the descriptors that lie in it, and for each of those may be the last,
 * too: a socket that lingers then keeps him waiting. So none that has any is closed here before a
 * doorman has it. He keeps it until he ends: a process that ends waits for no socket to linger.
 */
#include "door_grave.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* What has none is dropped. An empty packet differs from the connection's end only by who sent it. */
static bool has_descriptors(int sock)
{
	int on = 1;

	if (setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof on))
		return true;
	for (;;) {
		_Alignas(struct cmsghdr) char sender[CMSG_SPACE(sizeof(struct ucred))];
		char byte;
		struct iovec iov = {&byte, 1};
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = sender,
				     .msg_controllen = sizeof sender};

		if (recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT) < 0)
			return false;
		if (msg.msg_flags & MSG_CTRUNC)
			return true;
		if (!msg.msg_controllen || recv(sock, &byte, 1, MSG_DONTWAIT) < 0)
			return false;
	}
}

/* Without memory it stays open: nobody would come to close it. */
struct grave *grave_unseen(int sock)
{
	struct grave *g = calloc(1, sizeof *g);

	if (g)
		g->sock = sock;
	return g;
}

struct grave *grave_new(int sock)
{
	if (has_descriptors(sock))
		return grave_unseen(sock);
	close(sock);
	return NULL;
}

struct grave *grave_again(struct grave *g)
{
	if (has_descriptors(g->sock))
		return g;
	grave_free(g);
	return NULL;
}

void grave_free(struct grave *g)
{
	close(g->sock);
	free(g);
}
