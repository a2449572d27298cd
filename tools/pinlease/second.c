/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "second.h"

#include <errno.h>
#include <stdalign.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct second {
	const struct second_ops *ops;
	pid_t pid;
	int socket;
};

static void second_process(const struct second_ops *ops, int socket)
{
	alignas(max_align_t) char order[SECOND_MAX], report[SECOND_MAX] = {0};

	while (recv(socket, order, ops->order_size, 0) == (ssize_t)ops->order_size) {
		ops->obey(order, report);
		if (send(socket, report, ops->report_size, MSG_NOSIGNAL) != (ssize_t)ops->report_size)
			break;
	}
	_exit(0);
}

int second_start(const struct second_ops *ops, struct second **out)
{
	struct second *second = malloc(sizeof(*second));
	int sockets[2], err = 0;

	if (!second || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets)) {
		free(second);
		return -errno;
	}
	*second = (struct second){.ops = ops, .socket = sockets[0], .pid = fork()};
	if (second->pid == 0) {
		close(sockets[0]);
		second_process(ops, sockets[1]);
	}
	if (second->pid < 0) {
		err = -errno;
		close(sockets[0]);
		free(second);
	}
	close(sockets[1]);
	if (!err)
		*out = second;
	return err;
}

void second_stop(struct second *second)
{
	close(second->socket);
	waitpid(second->pid, NULL, 0);
	free(second);
}

int second_order(struct second *second, const void *order)
{
	size_t size = second->ops->order_size;

	return send(second->socket, order, size, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -errno;
}

int second_fd(const struct second *second)
{
	return second->socket;
}
