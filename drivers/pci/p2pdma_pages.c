// SPDX-License-Identifier: GPL-2.0
/*
 * ZONE_DEVICE pages of a BAR that belong to the driver of the device.
 *
 * The pages of the p2pmem pool are given to whoever asks for memory.  These are
 * not in any pool: the driver that makes them decides which part of its BAR
 * they cover, who maps them, and when they are taken back.
 *
 * Their folios rest at a reference count of 0.  A fault takes one from there,
 * its page table entry and all who find it there keep it up, and it comes back
 * by itself when the last of them is gone; the core then calls folio_free(),
 * perhaps in interrupt context.  Nothing else raises a count from 0: GUP does
 * not, not even speculatively.  So to take the pages back the driver
 *
 *  - stops handing them out, with a lock of its own: no
 *    pci_p2pdma_insert_pages() is running any more,
 *  - zaps all mappings,
 *  - waits with pci_p2pdma_wait_pages() until all folios are at rest.
 *
 * The pages are frozen then, and stay so until the driver hands them out again,
 * or destroys them.
 *
 * nr_busy counts the folios that are not at rest.  It is raised by the one who
 * made a count 1 and lowered by folio_free().  When a fault races with the last
 * put the count can be 1 again before folio_free() runs; the folio is then
 * accounted for twice for a while, never too little.
 *
 * Folios are as large as a PMD where their range allows, and can be mapped by
 * PTEs as well.  That writes to the struct page of each page, unless the kernel
 * keeps no mapcounts of pages that are part of a folio: then most of the tails'
 * struct pages can be shared, as Documentation/mm/vmemmap_dedup.rst describes,
 * which takes a quarter of the memory.
 */
#include <linux/err.h>
#include <linux/export.h>
#include <linux/interval_tree.h>
#include <linux/memory_hotplug.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/pci-p2pdma.h>
#include <linux/range.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>

#include "p2pdma.h"

struct p2pdma_pages {
	/* Folios that are not at rest */
	atomic_t nr_busy;
	/* One for each range, in p2pdma_claims */
	struct interval_tree_node *claims;
	/* Must be last: ends in an array of ranges */
	struct pci_p2pdma_pagemap map;
};

/*
 * Which memory has pages, or is about to have or lose some, by PFN.
 * memremap_pages() looks for conflicts at both ends of a range only, and takes
 * the one that it finds for a bug.  It takes some milliseconds for each range:
 * the mutex is held for the look only.
 */
static struct rb_root_cached p2pdma_claims = RB_ROOT_CACHED;
static DEFINE_MUTEX(p2pdma_claims_mutex);

static void p2pdma_pages_folio_free(struct folio *folio)
{
	struct pci_p2pdma_pagemap *map = to_p2p_pgmap(folio->pgmap);
	struct p2pdma_pages *pages = container_of(map, struct p2pdma_pages, map);

	/* The waiter may free pages at once: only its address is used below */
	if (atomic_dec_and_test(&pages->nr_busy))
		wake_up_var(&pages->nr_busy);
}

static const struct dev_pagemap_ops p2pdma_pages_ops = {
	.folio_free = p2pdma_pages_folio_free,
};

static void p2pdma_pages_get(struct p2pdma_pages *pages, struct folio *folio)
{
	if (folio_ref_inc_return(folio) == 1)
		atomic_inc(&pages->nr_busy);
}

/* Whether there are pages that have not been made here, of a p2pmem pool for one */
static bool p2pdma_range_has_pages(const struct range *range)
{
	unsigned long align = memremap_compat_align();
	struct dev_pagemap *pgmap;
	phys_addr_t addr;

	for (addr = range->start; addr < range->end; addr += align) {
		pgmap = get_dev_pagemap(PHYS_PFN(addr));
		if (pgmap) {
			put_dev_pagemap(pgmap);
			return true;
		}
		cond_resched();
	}
	return false;
}

/* -EBUSY if others have some of the ranges, or they overlap each other */
static int p2pdma_pages_claim(struct p2pdma_pages *pages)
{
	struct dev_pagemap *pgmap = &pages->map.pgmap;
	int i, ret = 0;

	mutex_lock(&p2pdma_claims_mutex);
	for (i = 0; i < pgmap->nr_range; i++) {
		struct interval_tree_node *claim = &pages->claims[i];

		claim->start = PHYS_PFN(pgmap->ranges[i].start);
		claim->last = PHYS_PFN(pgmap->ranges[i].end);
		if (interval_tree_iter_first(&p2pdma_claims, claim->start,
					     claim->last)) {
			ret = -EBUSY;
			break;
		}
		interval_tree_insert(claim, &p2pdma_claims);
	}
	while (ret && i--)
		interval_tree_remove(&pages->claims[i], &p2pdma_claims);
	mutex_unlock(&p2pdma_claims_mutex);
	return ret;
}

static void p2pdma_pages_unclaim(struct p2pdma_pages *pages)
{
	int i;

	mutex_lock(&p2pdma_claims_mutex);
	for (i = 0; i < pages->map.pgmap.nr_range; i++)
		interval_tree_remove(&pages->claims[i], &p2pdma_claims);
	mutex_unlock(&p2pdma_claims_mutex);
}

static void p2pdma_pages_free(struct p2pdma_pages *pages)
{
	kvfree(pages->claims);
	kvfree(pages);
}

/* Whether nobody writes to the struct pages of a folio's tails */
static bool p2pdma_can_share_tails(const struct phys_vec *ranges,
				   unsigned int nr_ranges)
{
	unsigned int i;

	if (!IS_ENABLED(CONFIG_NO_PAGE_MAPCOUNT))
		return false;

	for (i = 0; i < nr_ranges; i++)
		if (!IS_ALIGNED(ranges[i].paddr | ranges[i].len, PMD_SIZE))
			return false;
	return true;
}

/* Make folios of the PMDs that lie in a range */
static void p2pdma_pages_prep(const struct range *range)
{
	unsigned long nr = 1UL << PMD_ORDER;
	unsigned long pfn, end;

	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		return;

	pfn = ALIGN(PHYS_PFN(range->start), nr);
	end = PHYS_PFN(range->end + 1);
	for (; pfn < end && nr <= end - pfn; pfn += nr) {
		prep_compound_page(pfn_to_page(pfn), PMD_ORDER);
		cond_resched();
	}
}

/**
 * pci_p2pdma_create_pages - make struct pages for parts of a BAR
 * @provider: provider of the BAR
 * @ranges: physical ranges within the BAR
 * @nr_ranges: number of @ranges, at least one
 *
 * A page can exist only once: parts of a BAR that are in a p2pmem pool or have
 * been passed to this function already have theirs.  All pages made by one call
 * share a pagemap, so that they can be in the same bio.
 *
 * The provider, and so the driver, must outlive the pages.
 *
 * Context: May sleep, takes memory hotplug locks.  The device's p2pmem resources
 * are neither added nor removed meanwhile.
 * Return: the pages, all at rest, to be undone with pci_p2pdma_destroy_pages(),
 * or an ERR_PTR: -EINVAL if a range is empty or not aligned to
 * memremap_compat_align(); -ERANGE if it is beyond what the direct map can reach;
 * -EPERM if the caller may not make mappings of it PROT_NONE, see
 * pfn_modify_allowed(); -EBUSY if there are pages for some of it already, or
 * ranges overlap; -ENOMEM; what else memremap_pages() returns.
 */
struct p2pdma_pages *pci_p2pdma_create_pages(struct p2pdma_provider *provider,
					     const struct phys_vec *ranges,
					     unsigned int nr_ranges)
{
	const struct range reach = mhp_get_pluggable_range(true);
	unsigned long align = memremap_compat_align();
	struct p2pdma_pages *pages;
	struct dev_pagemap *pgmap;
	unsigned int i;
	void *addr;
	int ret;

	for (i = 0; i < nr_ranges; i++)
		if (!ranges[i].len ||
		    !IS_ALIGNED(ranges[i].paddr | ranges[i].len, align))
			return ERR_PTR(-EINVAL);

	/* memremap_pages() would print a line for each that a user tries */
	for (i = 0; i < nr_ranges; i++)
		if (ranges[i].paddr < reach.start ||
		    ranges[i].paddr + ranges[i].len - 1 > reach.end)
			return ERR_PTR(-ERANGE);

	/*
	 * mprotect() refuses to make PFN mappings PROT_NONE where a CPU with the
	 * L1TF bug would take them for others.  It does not look at mappings of
	 * pages, and at no mapping of memory that has some.
	 */
	for (i = 0; i < nr_ranges; i++)
		if (!pfn_modify_allowed(PHYS_PFN(ranges[i].paddr + ranges[i].len - 1),
					vm_get_page_prot(VM_NONE)))
			return ERR_PTR(-EPERM);

	pages = kvzalloc(struct_size(pages, map.pgmap.ranges, nr_ranges),
			 GFP_KERNEL_ACCOUNT);
	if (!pages)
		return ERR_PTR(-ENOMEM);
	pages->claims = kvcalloc(nr_ranges, sizeof(*pages->claims),
				 GFP_KERNEL_ACCOUNT);
	if (!pages->claims) {
		ret = -ENOMEM;
		goto err_free;
	}

	pages->map.mem = provider;
	pgmap = &pages->map.pgmap;
	pgmap->type = MEMORY_DEVICE_PCI_P2PDMA;
	pgmap->ops = &p2pdma_pages_ops;
	pgmap->nr_range = nr_ranges;
	if (p2pdma_can_share_tails(ranges, nr_ranges))
		pgmap->vmemmap_shift = PMD_ORDER;
	for (i = 0; i < nr_ranges; i++) {
		pgmap->ranges[i].start = ranges[i].paddr;
		pgmap->ranges[i].end = ranges[i].paddr + ranges[i].len - 1;
	}

	ret = p2pdma_pages_claim(pages);
	if (ret)
		goto err_free;

	for (i = 0; i < nr_ranges; i++) {
		if (p2pdma_range_has_pages(&pgmap->ranges[i])) {
			ret = -EBUSY;
			goto err_unclaim;
		}
	}

	addr = memremap_pages(pgmap, dev_to_node(provider->owner));
	if (IS_ERR(addr)) {
		ret = PTR_ERR(addr);
		goto err_unclaim;
	}

	/* With vmemmap_shift they are folios already */
	for (i = 0; i < nr_ranges && !pgmap->vmemmap_shift; i++)
		p2pdma_pages_prep(&pgmap->ranges[i]);
	return pages;

err_unclaim:
	p2pdma_pages_unclaim(pages);
err_free:
	p2pdma_pages_free(pages);
	return ERR_PTR(ret);
}
EXPORT_SYMBOL_GPL(pci_p2pdma_create_pages);

/**
 * pci_p2pdma_insert_pages - map pages for a fault
 * @pages: the pages
 * @vmf: the fault, in a shared VMA that is VM_DONTEXPAND (mlock() would keep
 *	references otherwise) and neither VM_PFNMAP nor VM_MIXEDMAP
 * @pfn: first one of the pages to map
 * @order: how many pages to map, 0 or PMD_ORDER; @pfn, vmf->address and the VMA
 *	allow for it
 *
 * Context: Fault.  The caller makes sure that nobody who takes the pages back
 * finds this running, see the top of the file.
 * Return: VM_FAULT_NOPAGE; VM_FAULT_FALLBACK if @pfn does not begin a folio of
 * that order; an error.
 */
vm_fault_t pci_p2pdma_insert_pages(struct p2pdma_pages *pages,
				   struct vm_fault *vmf, unsigned long pfn,
				   unsigned int order)
{
	struct page *page = pfn_to_page(pfn);
	struct folio *folio = page_folio(page);
	bool write = vmf->flags & FAULT_FLAG_WRITE;
	vm_fault_t ret;

	if (order && (folio_order(folio) != order || folio_pfn(folio) != pfn))
		return VM_FAULT_FALLBACK;

	/* Both take a reference of their own, and only from above 0 */
	p2pdma_pages_get(pages, folio);
	if (!order)
		ret = vmf_insert_page_mkwrite(vmf, page, write);
	else if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && order == PMD_ORDER)
		ret = vmf_insert_folio_pmd(vmf, folio, write);
	else
		ret = VM_FAULT_FALLBACK;
	folio_put(folio);
	return ret;
}
EXPORT_SYMBOL_GPL(pci_p2pdma_insert_pages);

static bool p2pdma_pages_at_rest(struct p2pdma_pages *pages)
{
	return !atomic_read_acquire(&pages->nr_busy);
}

/* What nr_busy says is what the folios say */
static void p2pdma_pages_check_rest(struct p2pdma_pages *pages)
{
	struct dev_pagemap *pgmap = &pages->map.pgmap;
	unsigned long pfn, end;
	struct folio *folio;
	int i;

	if (!IS_ENABLED(CONFIG_DEBUG_VM))
		return;

	for (i = 0; i < pgmap->nr_range; i++) {
		pfn = PHYS_PFN(pgmap->ranges[i].start);
		end = PHYS_PFN(pgmap->ranges[i].end + 1);
		for (; pfn < end; pfn += folio_nr_pages(folio)) {
			folio = pfn_folio(pfn);
			VM_WARN_ON_ONCE_FOLIO(folio_ref_count(folio) ||
					      folio_mapped(folio), folio);
			cond_resched();
		}
	}
}

/**
 * pci_p2pdma_wait_pages - wait until all folios are at rest
 * @pages: the pages, not handed out any more and not mapped
 * @intr: whether the wait is interruptible
 *
 * What is waited for is I/O, and who is about to start some: GUP that has got a
 * part of its pages can sleep in the fault for the next, user-made faults
 * included.  Long-term pins of P2PDMA pages are refused.
 *
 * Context: May sleep.  The caller holds no lock that a fault, or whoever
 * completes the I/O, could need.
 * Return: 0, or -ERESTARTSYS, which can only be if @intr is set.
 */
int pci_p2pdma_wait_pages(struct p2pdma_pages *pages, bool intr)
{
	int ret = 0;

	if (intr)
		ret = wait_var_event_interruptible(&pages->nr_busy,
						   p2pdma_pages_at_rest(pages));
	else
		wait_var_event(&pages->nr_busy, p2pdma_pages_at_rest(pages));

	if (!ret)
		p2pdma_pages_check_rest(pages);
	return ret;
}
EXPORT_SYMBOL_GPL(pci_p2pdma_wait_pages);

/**
 * pci_p2pdma_destroy_pages - undo pci_p2pdma_create_pages()
 * @pages: the pages, all at rest
 *
 * Context: May sleep, takes memory hotplug locks.
 */
void pci_p2pdma_destroy_pages(struct p2pdma_pages *pages)
{
	/* Better late than with a memmap that somebody still refers to */
	if (WARN_ON_ONCE(atomic_read(&pages->nr_busy)))
		pci_p2pdma_wait_pages(pages, false);

	memunmap_pages(&pages->map.pgmap);
	p2pdma_pages_unclaim(pages);
	p2pdma_pages_free(pages);
}
EXPORT_SYMBOL_GPL(pci_p2pdma_destroy_pages);
