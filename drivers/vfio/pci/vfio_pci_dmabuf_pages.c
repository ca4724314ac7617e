// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page-backed buffers: their memory has struct pages, so that a mapping can be
 * the user buffer of an O_DIRECT request, and a block device that does
 * peer-to-peer DMA moves the data from or to the BAR by itself.
 *
 * A VMA of such a buffer holds ordinary mappings of P2PDMA pages.  It is not
 * VM_IO or VM_PFNMAP, which GUP refuses.  It is not VM_MIXEDMAP: splitting a
 * PMD of a folio in such a VMA would leak its reference, and the next suspend
 * would wait for it for ever.  VM_HUGEPAGE has huge faults come with any
 * setting of transparent huge pages but "never".
 *
 * Who asked GUP for P2PDMA pages can hold references, for as long as an I/O is
 * in flight.  Draining waits for them after the mappings are zapped.  The pages
 * stay over a suspend and go when the buffer is revoked or released.
 *
 * All else is like with other buffers; importers see no pages.
 */
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/pci-p2pdma.h>

#include "vfio_pci_priv.h"

static void vfio_pci_pages_setup_vma(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_HUGEPAGE | VM_DONTEXPAND | VM_DONTDUMP);
}

static vm_fault_t vfio_pci_pages_insert(struct vfio_pci_dma_buf *buf,
					struct vm_fault *vmf, unsigned long pfn,
					unsigned int order)
{
	/* Splitting a PUD outside of DAX would leak its reference, too */
	if (order && order != PMD_ORDER)
		return VM_FAULT_FALLBACK;
	return pci_p2pdma_insert_pages(buf->pages, vmf, pfn, order);
}

static int vfio_pci_pages_drain(struct vfio_pci_dma_buf *buf, bool intr)
{
	return pci_p2pdma_wait_pages(buf->pages, intr);
}

static void vfio_pci_pages_release(struct vfio_pci_dma_buf *buf)
{
	if (!buf->pages)
		return;
	pci_p2pdma_destroy_pages(buf->pages);
	buf->pages = NULL;
}

static const struct vfio_pci_dma_buf_kind vfio_pci_dma_buf_pages = {
	.setup_vma = vfio_pci_pages_setup_vma,
	.insert = vfio_pci_pages_insert,
	.drain = vfio_pci_pages_drain,
	.release = vfio_pci_pages_release,
};

/**
 * vfio_pci_dma_buf_create_pages - make a buffer page-backed
 * @buf: the buffer, its ranges indexed, not exported yet
 *
 * Context: May sleep.
 * Return: 0 or an error of pci_p2pdma_create_pages().
 */
int vfio_pci_dma_buf_create_pages(struct vfio_pci_dma_buf *buf)
{
	struct p2pdma_pages *pages;

	pages = pci_p2pdma_create_pages(buf->provider, buf->phys_vec,
					buf->nr_ranges);
	if (IS_ERR(pages))
		return PTR_ERR(pages);

	buf->pages = pages;
	buf->kind = &vfio_pci_dma_buf_pages;
	return 0;
}
