/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pages at which threads wait (bpf/gate_page.h): a file of a FUSE file system that nobody else sees,
 * mapped by the guard. The kernel asks us for a page where a thread reads it, and the thread sleeps till
 * it gets an answer: an error, so that no page is kept and the next one sleeps, too. A signal for it is
 * told. When pinleased ends, however that is, the kernel has all go on. One thread at a time.
 *
 * Why no userfaultfd: what reads another process's memory for a BPF program can't be made to wait by it
 * (get_user_page_vma_remote() doesn't let go of the mappings' lock, so the read fails at once).
 */
#ifndef PL_DAEMON_GATE_PAGE_H
#define PL_DAEMON_GATE_PAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct gate_page {
	int device, mount; /* -1: there is none */
};

/* -errno and a sentence */
int gate_page_open(struct gate_page *p);
void gate_page_close(struct gate_page *p);

/* In the guard: where the pages are; 0: nowhere. The file is left open, and its end is told to us. */
uintptr_t gate_page_map(const struct gate_page *p);

struct gate_visit {
	uint64_t id;
	pid_t thread;	/* that has come; 0: none, and */
	bool is_called; /* there is a signal for who has come as that */
};

/* What the kernel asks next; false: nothing. */
bool gate_page_next(const struct gate_page *p, struct gate_visit *v);
void gate_page_let_go(const struct gate_page *p, uint64_t id);

#endif
