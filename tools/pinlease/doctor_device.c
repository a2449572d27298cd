/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The devices that memory is leased to: those that every machine has. Others have a file of their own
 * and a line in the table.
 */
#include "doctor.h"

#include <errno.h>
#include <string.h>

struct doctor_device *doctor_device_add(struct doctor *d, const char *backend, bool pinned,
					const char *name)
{
	struct doctor_device *device = &d->devices[d->n_devices];

	if (d->n_devices == DOCTOR_MAX_DEVICES) {
		fprintf(stderr,
			"pinlease doctor: there are more devices than it can try; \"%s\" isn't\n", name);
		return NULL;
	}
	*device = (struct doctor_device){.backend = backend, .pinned = pinned, .device_class = -1};
	snprintf(device->name, sizeof(device->name), "%s", name);
	d->n_devices++;
	return device;
}

void doctor_device_missing(struct doctor *d, const char *backend, const char *facility,
			   const char *untried)
{
	struct doctor_device *device = doctor_device_add(d, backend, true, facility);
	const char *why = doctor_facility_why(d, facility);

	why = why ? why : untried;
	if (device)
		snprintf(device->why, sizeof(device->why), "%.*s", (int)sizeof(device->why) - 1, why);
}

static void opened(struct doctor_device *device, int err)
{
	if (err && !device->why[0])
		snprintf(device->why, sizeof(device->why), "%s", pinl_error());
}

static void open_uring(struct doctor *d)
{
	struct doctor_device *device = doctor_device_add(d, "uring", true, "io_uring");
	struct pinl_uring_arg arg = {.size = sizeof(arg), .slots = 8};
	int err = device ? io_uring_queue_init(8, &device->ring, 0) : -ENOSPC;

	if (!device)
		return;
	if (err) {
		snprintf(device->why, sizeof(device->why), "no io_uring here: %s%s", strerror(-err),
			 err == -ENOMEM ? "; raise RLIMIT_MEMLOCK (ulimit -l)" : "");
		return;
	}
	device->has_ring = true;
	arg.ring = &device->ring;
	opened(device, pinl_device_open(d->ctx, "uring", &arg, &device->dev));
}

static void open_soft(struct doctor *d)
{
	static const struct {
		const char *name;
		int device_class;
		bool pinned;
	} all[] = {
		{"soft REVOCABLE", PINL_DEV_REVOCABLE, true},
		{"soft FAULTING on demand", PINL_DEV_FAULTING, false},
		{"soft QUIESCE_ONLY", PINL_DEV_QUIESCE_ONLY, true},
		{"soft NONE", PINL_DEV_NONE, true},
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		struct pinl_soft_arg arg = {.size = sizeof(arg),
					    .device_class = all[i].device_class + 1};
		struct doctor_device *device = doctor_device_add(d, "soft", all[i].pinned, all[i].name);

		if (device)
			opened(device, pinl_device_open(d->ctx, "soft", &arg, &device->dev));
	}
}

const struct doctor_backend doctor_uring = {"io_uring", open_uring};
const struct doctor_backend doctor_soft = {"soft", open_soft};

void doctor_devices_open(struct doctor *d)
{
	static const struct doctor_backend *const all[] = {&doctor_uring, &doctor_soft, &doctor_rdma,
							   &doctor_vfio, &doctor_iommufd};

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		all[i]->open(d);
}

void doctor_devices_close(struct doctor *d)
{
	for (unsigned i = 0; i < d->n_devices; i++) {
		struct doctor_device *device = &d->devices[i];

		pinl_device_close(device->dev);
		if (device->has_ring)
			io_uring_queue_exit(&device->ring);
		if (device->close)
			device->close(device->priv);
	}
}
