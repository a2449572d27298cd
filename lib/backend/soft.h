/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The soft device: a DMA engine thread with a page table of its own, for programs without hardware
 * and for the contract tests. Argument: struct pinl_soft_arg or NULL.
 *
 * Device addresses are a space of the device's own, one range per mapping, never used twice. A transfer
 * stays within one mapping. It is in flight from when the engine takes it; with PINL_PIN it keeps to
 * its end the pages it began with, without PINL_PIN it asks the page table for every page.
 *
 * A paused engine (pinl_soft_pause) takes the next transfer, moves the first page unless that is the
 * only one, and stands there, with the transfer in flight and no entry of the page table in use.
 */
#ifndef PL_BACKEND_SOFT_H
#define PL_BACKEND_SOFT_H

#include <pinlease/device.h>

extern const struct pinl_device_ops pl_soft_ops;

#endif
