/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * May one device reach the memory of another? A switch routes between its ports unless their ACS sends
 * everything up; PCI Express doesn't oblige a root complex to route between its ports, so there it is
 * "no" but for those that are known to do it. The rules and the table are the kernel's (pci_p2pdma.c).
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "p2p.h"

#define INTEL  0x8086
#define GOOGLE 0x1ae0
#define ANY    0xffff

/* Who routes, by what is first on the root bus: a host bridge, a root port, or what else stands there.
 */
static const struct {
	struct p2p_ids ids;
	bool within; /* only between devices below the same host bridge */
} known[] = {
	{{INTEL, 0x3c00}, true},			    /* Xeon E5, Core i7 (Sandy Bridge) */
	{{INTEL, 0x3c01}, true},  {{INTEL, 0x2f00}, true},  /* Xeon E7 v3, E5 v3, Core i7 (Haswell) */
	{{INTEL, 0x2f01}, true},  {{INTEL, 0x2020}, false}, /* Skylake-E */
	{{INTEL, 0x2030}, false},			    /* its root ports A to D */
	{{INTEL, 0x2031}, false}, {{INTEL, 0x2032}, false},
	{{INTEL, 0x2033}, false}, {{INTEL, 0x09a2}, false}, /* Ice Lake, Sapphire Rapids */
	{{INTEL, 0x0b25}, false}, /* DSA of Sapphire Rapids, Granite Rapids, Diamond Rapids */
	{{INTEL, 0x11fb}, false}, {{INTEL, 0x1212}, false},
	{{INTEL, 0x0cfe}, false},			    /* IAA of Sapphire Rapids, Diamond Rapids */
	{{INTEL, 0x1216}, false}, {{INTEL, 0x4940}, false}, /* QAT 4xxx, 401xx, 402xx, 420xx, 6xxx */
	{{INTEL, 0x4942}, false}, {{INTEL, 0x4944}, false},
	{{INTEL, 0x4946}, false}, {{INTEL, 0x4948}, false},
	{{GOOGLE, ANY}, false},
};

void p2p_address_words(const struct p2p_address *at, char buf[P2P_NAME])
{
	snprintf(buf, P2P_NAME, "%04x:%02x:%02x.%x", at->domain, at->bus, at->device, at->function);
}

bool p2p_same(const struct p2p_address *a, const struct p2p_address *b)
{
	return a->domain == b->domain && a->bus == b->bus && a->device == b->device &&
	       a->function == b->function;
}

static void say(struct p2p_answer *a, enum p2p_verdict verdict, const char *fmt, ...)
{
	va_list ap;

	a->verdict = verdict;
	va_start(ap, fmt);
	vsnprintf(a->reason, sizeof a->reason, fmt, ap);
	va_end(ap);
}

/* How many ports they have in common, from the root bus down. */
static unsigned common_ports(const struct p2p_device *a, const struct p2p_device *b)
{
	unsigned n = 0;

	while (n < a->nr_ports && n < b->nr_ports && p2p_same(&a->ports[n].at, &b->ports[n].at))
		n++;
	return n;
}

/* The first port of `d` below the common ones with this ACS; NULL: none has. */
static const struct p2p_port *port_with(const struct p2p_device *d, unsigned common, enum p2p_acs acs)
{
	for (unsigned i = common; i < d->nr_ports; i++)
		if (d->ports[i].acs == acs)
			return &d->ports[i];
	return NULL;
}

static const struct p2p_port *either(const struct p2p_device *a, const struct p2p_device *b,
				     unsigned common, enum p2p_acs acs)
{
	const struct p2p_port *port = port_with(a, common, acs);

	return port ? port : port_with(b, common, acs);
}

/* 1: routes; 0: isn't known to; -1: only between its own. */
static int routes(const struct p2p_device *d, bool same)
{
	for (size_t i = 0; d->has_bridge && i < sizeof known / sizeof *known; i++)
		if (known[i].ids.vendor == d->bridge.vendor &&
		    (known[i].ids.device == d->bridge.device || known[i].ids.device == ANY))
			return known[i].within && !same ? -1 : 1;
	return 0;
}

static const char *translated(const struct p2p_device *from)
{
	switch (from->iommu) {
	case P2P_IOMMU_TRANSLATES:
		return "; the IOMMU translates, so it has to be mapped there first";
	case P2P_IOMMU_IDENTITY:
		return "; the IOMMU passes its addresses through";
	default:
		return "; no IOMMU is in the way";
	}
}

static void bridge_words(const struct p2p_device *d, char *buf, size_t len)
{
	if (d->has_bridge)
		snprintf(buf, len, "the host bridge of %04x:%02x (%04x:%04x)", d->root_domain,
			 d->root_bus, d->bridge.vendor, d->bridge.device);
	else
		snprintf(buf, len, "the host bridge of %04x:%02x (which shows no device of its own)",
			 d->root_domain, d->root_bus);
}

/* By way of the root complex; `why` it doesn't stay below, a clause or "". */
static void by_host_bridge(const struct p2p_machine *m, const struct p2p_device *from,
			   const struct p2p_device *to, const char *why, struct p2p_answer *a)
{
	bool same = from->root_domain == to->root_domain && from->root_bus == to->root_bus;
	const struct p2p_device *end[] = {from, to};
	char bridge[96];

	a->hops = from->nr_ports + to->nr_ports + (same ? 1 : 2);
	a->route = P2P_HOST_BRIDGE;
	if (m->zen) {
		say(a, P2P_YES, "%sthis AMD CPU (Zen or later) routes between its ports%s", why,
		    translated(from));
		return;
	}
	for (int i = 0; i < 2; i++) {
		int can = routes(end[i], same);

		bridge_words(end[i], bridge, sizeof bridge);
		if (can == 1)
			continue;
		a->route = P2P_NO_ROUTE;
		say(a, P2P_NO,
		    can ? "%s%s routes between its own ports only, and the devices are below two"
			: "%s%s isn't known to route between its ports; put both devices below one "
			  "switch",
		    why, bridge);
		return;
	}
	bridge_words(from, bridge, sizeof bridge);
	say(a, P2P_YES, "%s%s is known to route between its ports%s", why, bridge, translated(from));
}

static void below_port(const struct p2p_device *from, const struct p2p_device *to, unsigned common,
		       struct p2p_answer *a)
{
	char port[P2P_NAME];

	a->route = P2P_BELOW_PORT;
	a->through = from->ports[common - 1].at;
	a->hops = (from->nr_ports - common) + (to->nr_ports - common) + 1;
	p2p_address_words(&a->through, port);
	say(a, P2P_YES, "both are below %s, and no port between them redirects (ACS): it stays there%s",
	    port,
	    from->iommu == P2P_IOMMU_TRANSLATES ? ", goes by bus addresses, and no IOMMU sees it" : "");
}

static void decide(const struct p2p_machine *m, const struct p2p_device *from,
		   const struct p2p_device *to, struct p2p_answer *a)
{
	unsigned common = common_ports(from, to);
	const struct p2p_port *port;
	char name[P2P_NAME], why[128] = "";

	memset(a, 0, sizeof *a);
	p2p_address_words(&to->at, name);
	if (!to->memory) {
		say(a, P2P_NO, "%s has no memory BAR to be reached", name);
		return;
	}
	if (!common) {
		by_host_bridge(m, from, to, why, a);
		return;
	}
	port = either(from, to, common, P2P_ACS_UNKNOWN);
	if (port) {
		p2p_address_words(&port->at, name);
		say(a, P2P_CANT_TELL,
		    "the extended configuration space of port %s can't be read, and its ACS decides: "
		    "ask "
		    "as root",
		    name);
		return;
	}
	port = either(from, to, common, P2P_ACS_REDIRECT);
	if (!port) {
		below_port(from, to, common, a);
		return;
	}
	p2p_address_words(&port->at, name);
	snprintf(why, sizeof why, "ACS of port %s redirects everything to the root complex, and ", name);
	by_host_bridge(m, from, to, why, a);
}

void p2p_decide(const struct p2p_machine *m, const struct p2p_device *from, const struct p2p_device *to,
		struct p2p_answer *a)
{
	size_t used;

	decide(m, from, to, a);
	used = strlen(a->reason);
	if (m->guest && a->verdict == P2P_YES)
		snprintf(a->reason + used, sizeof a->reason - used,
			 "; in this virtual machine, if its hypervisor does");
}
