/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * May one PCI device write to the memory of another? p2p_sysfs.c reads what is where, p2p_decide.c
 * answers, p2p.c is the command.
 */
#ifndef PINLEASE_P2P_H
#define PINLEASE_P2P_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#define P2P_DEPTH 32 /* bridges above a device, at most */

/* domain:bus:device.function */
struct p2p_address {
	unsigned domain, bus, device, function;
};

struct p2p_ids {
	uint16_t vendor, device;
};

enum p2p_acs {
	P2P_ACS_NONE,	  /* the port has no ACS, or redirects nothing */
	P2P_ACS_REDIRECT, /* requests or completions between its neighbours go up */
	P2P_ACS_UNKNOWN,  /* its extended configuration space can't be read */
};

struct p2p_port {
	struct p2p_address at;
	enum p2p_acs acs;
};

enum p2p_iommu { P2P_IOMMU_NONE, P2P_IOMMU_IDENTITY, P2P_IOMMU_TRANSLATES };

struct p2p_device {
	struct p2p_address at;
	struct p2p_ids ids;
	unsigned class; /* 0xccsspp */
	bool memory;	/* has a memory BAR */
	bool decodes;	/* and it is switched on */
	enum p2p_iommu iommu;
	int group; /* -1: none */

	/* Above it, from the root bus down. */
	struct p2p_port ports[P2P_DEPTH];
	unsigned nr_ports;
	unsigned root_domain, root_bus;
	bool has_bridge; /* the host bridge, or what stands for it, is to be seen: */
	struct p2p_ids bridge;
};

struct p2p_machine {
	char root[PATH_MAX]; /* "" for this machine */
	bool zen;	     /* an AMD CPU of family 17h or later */
	bool guest;	     /* a virtual machine: its bridges are the hypervisor's */
};

#define P2P_NAME 32 /* an address in words */

void p2p_address_words(const struct p2p_address *at, char buf[P2P_NAME]);
bool p2p_same(const struct p2p_address *a, const struct p2p_address *b);

/* p2p_sysfs.c. With a sentence on stderr: -ENOENT, -EINVAL, -errno. */
int p2p_open(struct p2p_machine *m, const char *root);
int p2p_find(const struct p2p_machine *m, const char *name, struct p2p_address *at);
int p2p_read(const struct p2p_machine *m, const struct p2p_address *at, struct p2p_device *d);

/* All devices but bridges, in the order of their addresses; free() them. The number, or -errno. */
int p2p_list(const struct p2p_machine *m, struct p2p_address **list);

enum p2p_route { P2P_NO_ROUTE, P2P_BELOW_PORT, P2P_HOST_BRIDGE };

enum p2p_verdict { P2P_YES, P2P_NO, P2P_CANT_TELL };

struct p2p_answer {
	enum p2p_verdict verdict;
	enum p2p_route route;
	struct p2p_address through; /* of P2P_BELOW_PORT */
	unsigned hops;		    /* ports and bridges on the way */
	char reason[512];	    /* one sentence */
};

/* p2p_decide.c: may `from` reach the memory of `to`. */
void p2p_decide(const struct p2p_machine *m, const struct p2p_device *from, const struct p2p_device *to,
		struct p2p_answer *answer);

#endif
