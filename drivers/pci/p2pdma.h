/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of PCI peer-to-peer DMA support share:
 *
 *  p2pdma_core.c   providers (BARs as P2P targets) and their lifetime
 *  p2pdma.c        map types and distance, the p2pmem pool and its sysfs
 */
#ifndef DRIVERS_PCI_P2PDMA_H
#define DRIVERS_PCI_P2PDMA_H

#include <linux/container_of.h>
#include <linux/memremap.h>
#include <linux/pci-p2pdma.h>
#include <linux/types.h>
#include <linux/xarray.h>

struct pci_p2pdma {
	/* struct p2pmem_resource, newest first; read under RCU */
	struct list_head p2pmem;
	bool p2pmem_published;
	struct xarray map_types;
	struct p2pdma_provider mem[PCI_STD_NUM_BARS];
};

struct pci_p2pdma_pagemap {
	struct p2pdma_provider *mem;
	/* Must be last: ends in an array of ranges */
	struct dev_pagemap pgmap;
};

static inline struct pci_p2pdma_pagemap *
to_p2p_pgmap(struct dev_pagemap *pgmap)
{
	return container_of(pgmap, struct pci_p2pdma_pagemap, pgmap);
}

#endif /* DRIVERS_PCI_P2PDMA_H */
