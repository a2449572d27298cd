/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backends there are. One line per backend. */
#ifndef PL_BACKEND_BACKENDS_H
#define PL_BACKEND_BACKENDS_H

#include <pinlease/device.h>

extern const struct pinl_device_ops pl_soft_ops;
extern const struct pinl_device_ops pl_uring_ops;
extern const struct pinl_device_ops pl_verbs_ops;
extern const struct pinl_device_ops pl_vfio_ops;
extern const struct pinl_device_ops pl_iommufd_ops;

#endif
