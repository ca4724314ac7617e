// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mapping of BARs by the CPU.
 *
 * All mappings of a BAR are mappings of buffers, see vfio_pci_dmabuf_state.c,
 * but those that a variant driver makes in its own way.
 * A mapping of the device fd is one of the BAR buffer: a dma-buf of the whole
 * BAR, without a file descriptor and so without importers, that is made when
 * the BAR is first mapped and kept until the device is closed.  There is one
 * for all mappings of a BAR, so that mmap() in a loop makes none.
 *
 * A VMA of the device fd keeps its vm_pgoff, with the region's index in the
 * high bits.  Its file becomes the BAR buffer's; the device's file, which keeps
 * the device open until the last of its mappings is gone, is held in
 * vm_private_data.  All of a buffer's VMAs, and nothing else, are in the address
 * space of the buffer's inode: one call zaps them, whatever their vm_pgoff.
 *
 * Page offset in a buffer to PFN: the ranges are concatenated in their order.
 * Neighbours that are physically contiguous are merged, so that a huge mapping
 * crosses their seam.
 *
 * A fault takes the buffer's own lock to look at its state and nothing else.
 */
#include <linux/dma-buf.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pci-p2pdma.h>

#include "vfio_pci_priv.h"

/**
 * vfio_pci_dma_buf_index_ranges - prepare a buffer's ranges for look-ups
 * @buf: the buffer, its phys_vec filled in with page aligned ranges
 *
 * Merges neighbours that are contiguous.  To be called once, before the buffer
 * is exported.
 */
void vfio_pci_dma_buf_index_ranges(struct vfio_pci_dma_buf *buf)
{
	struct phys_vec *vec = buf->phys_vec;
	unsigned long pgoff = 0;
	u32 i, last = 0;

	for (i = 1; i < buf->nr_ranges; i++) {
		if (vec[last].paddr + vec[last].len == vec[i].paddr)
			vec[last].len += vec[i].len;
		else
			vec[++last] = vec[i];
	}
	buf->nr_ranges = last + 1;

	for (i = 0; i < buf->nr_ranges; i++) {
		buf->range_pgoff[i] = pgoff;
		pgoff += vec[i].len >> PAGE_SHIFT;
	}
}

/* Inlined where a page fault is handled */
static __always_inline bool
__vfio_pci_dma_buf_lookup(const struct vfio_pci_dma_buf *buf,
			  unsigned long pgoff, unsigned long nr,
			  unsigned long *pfn)
{
	u32 lo = 0, hi = buf->nr_ranges;
	unsigned long last;

	/* The last range that begins at or before pgoff */
	while (hi - lo > 1) {
		u32 mid = lo + (hi - lo) / 2;

		if (buf->range_pgoff[mid] <= pgoff)
			lo = mid;
		else
			hi = mid;
	}

	pgoff -= buf->range_pgoff[lo];
	last = pgoff + nr - 1;
	if (last < pgoff || last >= buf->phys_vec[lo].len >> PAGE_SHIFT)
		return false;

	*pfn = PHYS_PFN(buf->phys_vec[lo].paddr) + pgoff;
	return true;
}

/**
 * vfio_pci_dma_buf_lookup - find the memory at an offset in a buffer
 * @buf: the buffer
 * @pgoff: offset in the buffer, in pages
 * @nr: how many pages to find, all in one range
 * @pfn: returns the page frame number of the first one
 *
 * Return: whether the buffer has @nr contiguous pages at @pgoff.
 */
bool vfio_pci_dma_buf_lookup(const struct vfio_pci_dma_buf *buf,
			     unsigned long pgoff, unsigned long nr,
			     unsigned long *pfn)
{
	return __vfio_pci_dma_buf_lookup(buf, pgoff, nr, pfn);
}

/* Inlined to be compiled for order 0 alone, too */
static __always_inline vm_fault_t
__vfio_pci_dma_buf_fault(struct vm_fault *vmf, unsigned int order)
{
	struct vm_area_struct *vma = vmf->vma;
	struct dma_buf *dmabuf = vma->vm_file->private_data;
	struct vfio_pci_dma_buf *buf = dmabuf->priv;
	unsigned long addr = ALIGN_DOWN(vmf->address, PAGE_SIZE << order);
	unsigned long pfn, pgoff;
	vm_fault_t ret;

	/* Before pgoff is taken: addr may be below the VMA */
	if (order && !is_aligned_for_order(vma, addr, 0, order))
		return VM_FAULT_FALLBACK;

	pgoff = vma->vm_pgoff - buf->base_pgoff + linear_page_delta(vma, addr);
	if (!__vfio_pci_dma_buf_lookup(buf, pgoff, 1UL << order, &pfn))
		return order ? VM_FAULT_FALLBACK : VM_FAULT_SIGBUS;
	if (!IS_ALIGNED(pfn, 1UL << order))
		return VM_FAULT_FALLBACK;

	if (!vfio_pci_dma_buf_try_enter(buf))
		return VM_FAULT_SIGBUS;
	ret = buf->kind->insert(buf, vmf, pfn, order);
	vfio_pci_dma_buf_exit(buf);
	return ret;
}

static vm_fault_t vfio_pci_dma_buf_huge_fault(struct vm_fault *vmf,
					      unsigned int order)
{
	return __vfio_pci_dma_buf_fault(vmf, order);
}

static vm_fault_t vfio_pci_dma_buf_fault(struct vm_fault *vmf)
{
	return __vfio_pci_dma_buf_fault(vmf, 0);
}

static void vfio_pci_bar_vma_open(struct vm_area_struct *vma)
{
	get_file(vma->vm_private_data);
}

static void vfio_pci_bar_vma_close(struct vm_area_struct *vma)
{
	fput(vma->vm_private_data);
}

static const struct vm_operations_struct vfio_pci_bar_vm_ops = {
	.open = vfio_pci_bar_vma_open,
	.close = vfio_pci_bar_vma_close,
	.fault = vfio_pci_dma_buf_fault,
#ifdef CONFIG_ARCH_SUPPORTS_HUGE_PFNMAP
	.huge_fault = vfio_pci_dma_buf_huge_fault,
#endif
};

static const struct vm_operations_struct vfio_pci_dma_buf_vm_ops = {
	.fault = vfio_pci_dma_buf_fault,
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	.huge_fault = vfio_pci_dma_buf_huge_fault,
#endif
};

/* The same attributes for every kind: aliases must not differ in them */
static void vfio_pci_dma_buf_setup_vma(struct vfio_pci_dma_buf *buf,
				       struct vm_area_struct *vma)
{
	vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
	vma->vm_page_prot = pgprot_decrypted(vma->vm_page_prot);
	buf->kind->setup_vma(vma);
}

static void vfio_pci_pfn_setup_vma(struct vm_area_struct *vma)
{
	/*
	 * Set vm_flags now, they should not be changed in the fault handler.
	 * We want the same flags and page protection (decrypted above) as
	 * io_remap_pfn_range() would set.
	 *
	 * VM_ALLOW_ANY_UNCACHED: The VMA flag is implemented for ARM64,
	 * allowing KVM stage 2 device mapping attributes to use Normal-NC
	 * rather than DEVICE_nGnRE, which allows guest mappings
	 * supporting write-combining attributes (WC). ARM does not
	 * architecturally guarantee this is safe, and indeed some MMIO
	 * regions like the GICv2 VCPU interface can trigger uncontained
	 * faults if Normal-NC is used.
	 *
	 * To safely use VFIO in KVM the platform must guarantee full
	 * safety in the guest where no action taken against a MMIO
	 * mapping can trigger an uncontained failure. The assumption is
	 * that most VFIO PCI platforms support this for both mapping types,
	 * at least in common flows, based on some expectations of how
	 * PCI IP is integrated. Hence VM_ALLOW_ANY_UNCACHED is set in
	 * the VMA flags.
	 */
	vm_flags_set(vma, VM_ALLOW_ANY_UNCACHED | VM_IO | VM_PFNMAP |
			VM_DONTEXPAND | VM_DONTDUMP);
}

static vm_fault_t vfio_pci_pfn_insert(struct vfio_pci_dma_buf *buf,
				      struct vm_fault *vmf, unsigned long pfn,
				      unsigned int order)
{
	bool write = vmf->flags & FAULT_FLAG_WRITE;

	if (!order)
		return vmf_insert_pfn(vmf->vma, vmf->address, pfn);

	if (IS_ENABLED(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP) && order == PMD_ORDER)
		return vmf_insert_pfn_pmd(vmf, pfn, write);

	if (IS_ENABLED(CONFIG_ARCH_SUPPORTS_PUD_PFNMAP) && order == PUD_ORDER)
		return vmf_insert_pfn_pud(vmf, pfn, write);

	return VM_FAULT_FALLBACK;
}

/* Buffers that are mapped by PFN, without struct pages */
const struct vfio_pci_dma_buf_kind vfio_pci_dma_buf_pfn = {
	.setup_vma = vfio_pci_pfn_setup_vma,
	.insert = vfio_pci_pfn_insert,
};

static struct sg_table *vfio_pci_bar_map(struct dma_buf_attachment *attachment,
					 enum dma_data_direction dir)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static void vfio_pci_bar_unmap(struct dma_buf_attachment *attachment,
			       struct sg_table *sgt,
			       enum dma_data_direction dir)
{
}

/* A BAR buffer has no fd, so nobody can attach to it */
static const struct dma_buf_ops vfio_pci_bar_dmabuf_ops = {
	.map_dma_buf = vfio_pci_bar_map,
	.unmap_dma_buf = vfio_pci_bar_unmap,
	.release = vfio_pci_dma_buf_release,
};

/**
 * vfio_pci_dma_buf_set_name - name a dma-buf after device and BAR
 * @dmabuf: the dma-buf, not shared yet
 * @vdev: the device
 * @bar: the BAR
 *
 * The name is what /proc/PID/maps shows.  It is left out if there is no memory
 * for it.
 */
void vfio_pci_dma_buf_set_name(struct dma_buf *dmabuf,
			       struct vfio_pci_core_device *vdev, int bar)
{
	char *name = kasprintf(GFP_KERNEL, "%s BAR %d", pci_name(vdev->pdev),
			       bar);

	spin_lock(&dmabuf->name_lock);
	dmabuf->name = name;
	spin_unlock(&dmabuf->name_lock);
}

static struct dma_buf *vfio_pci_bar_export(struct vfio_pci_core_device *vdev,
					   int bar)
{
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct pci_dev *pdev = vdev->pdev;
	struct vfio_pci_dma_buf *buf;
	struct dma_buf *dmabuf;
	int ret;

	buf = vfio_pci_dma_buf_alloc(1);
	if (!buf)
		return ERR_PTR(-ENOMEM);

	buf->kind = &vfio_pci_dma_buf_pfn;
	buf->provider = pcim_p2pdma_provider(pdev, bar);
	buf->base_pgoff = VFIO_PCI_INDEX_TO_OFFSET(bar) >> PAGE_SHIFT;
	buf->phys_vec[0].paddr = pci_resource_start(pdev, bar);
	/* A BAR of less than a page has the rest of its page reserved */
	buf->phys_vec[0].len = PAGE_ALIGN(min_t(u64, SIZE_MAX & PAGE_MASK,
						pci_resource_len(pdev, bar)));
	buf->size = buf->phys_vec[0].len;
	vfio_pci_dma_buf_index_ranges(buf);

	exp_info.ops = &vfio_pci_bar_dmabuf_ops;
	exp_info.size = buf->size;
	exp_info.flags = O_RDWR;
	exp_info.priv = buf;

	dmabuf = dma_buf_export(&exp_info);
	if (IS_ERR(dmabuf)) {
		vfio_pci_dma_buf_put(buf);
		return dmabuf;
	}
	vfio_pci_dma_buf_set_name(dmabuf, vdev, bar);

	/* dma_buf_put() now puts buf */
	ret = vfio_pci_dma_buf_add(vdev, buf, dmabuf);
	if (ret) {
		dma_buf_put(dmabuf);
		return ERR_PTR(ret);
	}
	return dmabuf;
}

/**
 * vfio_pci_mmap_bar - map a BAR
 * @vdev: the device
 * @bar: the BAR, known to be mappable
 * @vma: VMA of the device fd, known to lie within the BAR
 *
 * Context: mmap_lock held for write.  The device is open.
 * Return: 0 or an error of the BAR buffer's making.
 */
int vfio_pci_mmap_bar(struct vfio_pci_core_device *vdev, int bar,
		      struct vm_area_struct *vma)
{
	struct dma_buf *dmabuf = READ_ONCE(vdev->bar_dmabufs[bar]);

	if (!dmabuf) {
		struct dma_buf *new = vfio_pci_bar_export(vdev, bar);

		if (IS_ERR(new))
			return PTR_ERR(new);

		dmabuf = cmpxchg(&vdev->bar_dmabufs[bar], NULL, new);
		if (dmabuf)
			dma_buf_put(new);
		else
			dmabuf = new;
	}

	vfio_pci_dma_buf_setup_vma(dmabuf->priv, vma);
	vma->vm_ops = &vfio_pci_bar_vm_ops;
	vma->vm_private_data = get_file(vma->vm_file);
	vma_set_file(vma, dmabuf->file);
	return 0;
}

/**
 * vfio_pci_mmap_close - drop a device's BAR buffers
 * @vdev: the device, being closed, so that no mapping of it is left
 */
void vfio_pci_mmap_close(struct vfio_pci_core_device *vdev)
{
	int bar;

	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
		if (!vdev->bar_dmabufs[bar])
			continue;
		dma_buf_put(vdev->bar_dmabufs[bar]);
		vdev->bar_dmabufs[bar] = NULL;
	}
}

/**
 * vfio_pci_dma_buf_mmap - map an exported buffer
 * @dmabuf: the dma-buf
 * @vma: VMA, known to lie within it
 *
 * The mmap operation of exported dma-bufs.
 *
 * Context: mmap_lock held for write.
 * Return: 0; -EINVAL for a private mapping, or if the driver did not say how the
 * CPU may map the buffer; -ENODEV if the buffer is REVOKED.
 */
int vfio_pci_dma_buf_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct vfio_pci_dma_buf *buf = dmabuf->priv;

	if (!(vma->vm_flags & VM_MAYSHARE) || !buf->kind)
		return -EINVAL;

	/* Too late is as good as never: the faults look at the state again */
	if (READ_ONCE(buf->state) == VFIO_PCI_DMA_BUF_REVOKED)
		return -ENODEV;

	vfio_pci_dma_buf_setup_vma(buf, vma);
	vma->vm_ops = &vfio_pci_dma_buf_vm_ops;
	return 0;
}
