/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where the parts meet: the only file that knows core, sources and backends by name. */
#include <errno.h>
#include <string.h>

#include "backend/backends.h"
#include "core/ctx.h"
#include "source/sources.h"

int pinl_open(const struct pinl_opts *opts, struct pinl_ctx **out)
{
	static const struct {
		unsigned bit;
		const struct pinl_source_ops *ops;
	} all[] = {
		{PINL_SOURCE_UFFD, &pl_uffd_ops},     {PINL_SOURCE_ARBITER, &pl_remote_ops},
		{PINL_SOURCE_FILES, &pl_files_ops},   {PINL_SOURCE_GENERATION, &pl_generation_ops},
		{PINL_SOURCE_NOTIFY, &pl_notify_ops}, {PINL_SOURCE_FAULTS, &pl_faults_ops},
	};
	PL_CALL(call);
	struct pinl_ctx *ctx;
	int err;

	if (!out)
		return pinl_set_error(-EINVAL, "a place for the context is needed");
	err = pl_open_core(opts, &ctx);
	if (err)
		return err;
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		if (!(ctx->opts.sources & all[i].bit))
			continue;
		err = pinl_source_add(ctx, all[i].ops, NULL);
		if (err == -EMFILE || err == -ENFILE || err == -ENOMEM || err == -EAGAIN) {
			pinl_close(ctx);
			return pinl_set_error(err, "can't open source %s: %s%s", all[i].ops->name,
					      strerror(-err), err == -EMFILE ? "; raise ulimit -n" : "");
		}
	}
	*out = ctx;
	return 0;
}

int pinl_device_open(struct pinl_ctx *ctx, const char *kind, const void *arg, struct pinl_device **dev)
{
	static const struct pinl_device_ops *const kinds[] = {&pl_soft_ops, &pl_uring_ops, &pl_verbs_ops,
							      &pl_vfio_ops, &pl_iommufd_ops};

	if (!ctx || !kind || !dev)
		return pinl_set_error(-EINVAL,
				      "a context, a device kind and a place for the device are needed");
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (!strcmp(kind, kinds[i]->name))
			return pinl_device_open_ops(ctx, kinds[i], arg, dev);
	return pinl_set_error(-EINVAL,
			      "no device kind \"%s\"; there are \"uring\", \"verbs\", \"vfio\", "
			      "\"iommufd\" and \"soft\"",
			      kind);
}

int pinl_watch_fs(struct pinl_ctx *ctx, const char *path)
{
	PL_CALL(call);
	void *files;

	if (!pl_alive(ctx))
		return pl_stale();
	files = pl_source_priv(ctx, &pl_files_ops);
	if (!files)
		return pinl_set_error(-EOPNOTSUPP,
				      "the files source doesn't run here (see pinl_sources)");
	return pl_files_watch_fs(files, path);
}
