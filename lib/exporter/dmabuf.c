/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dma-bufs as they are: their kernel driver is the exporter, who answers an attach in the kernel, and
 * what this one adds is the revocation by the program.
 */
#include <errno.h>
#include <pinlease/device.h>
#include <pinlease/exporter.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DMABUF 0x444d4142

int pinl_export_dmabuf(struct pinl_ctx *ctx, int fd, struct pinl_exporter **out)
{
	struct pinl_export x = {.size = sizeof x, .fd = fd};
	char name[64];
	struct statfs fs;
	off_t length;

	if (fstatfs(fd, &fs))
		return pinl_set_error(-errno, "descriptor %d: %s", fd, strerror(errno));
	if (fs.f_type != DMABUF)
		return pinl_set_error(-EINVAL, "descriptor %d is no dma-buf", fd);
	length = lseek(fd, 0, SEEK_END); /* says the size and moves nothing */
	if (length <= 0)
		return pinl_set_error(-EINVAL, "the dma-buf %d doesn't say its size: %s", fd,
				      length ? strerror(errno) : "it is empty");
	snprintf(name, sizeof name, "dma-buf %d", fd);
	x.name = name;
	x.length = length;
	return pinl_exporter_register(ctx, &x, NULL, NULL, out);
}
