// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vfio-pci variant driver for QEMU's ivshmem that maps the memory, BAR 2, by
 * itself: VMAs of the device fd, of which its own fault handler inserts PFNs
 * under memory_lock, as nvgrace-gpu does.
 *
 * What it says about itself when the device is bound (dmabuf=):
 *
 *	none	no export of dma-bufs
 *	core	exports as vfio-pci does: it forgets to tell that it maps memory
 *		in its own way
 *	own	exports in its own way, too
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/pci.h>
#include <linux/vfio_pci_core.h>

#define OWN_BAR	VFIO_PCI_BAR2_REGION_INDEX

static char *dmabuf = "core";
module_param(dmabuf, charp, 0400);

/* How many faults came here */
static unsigned long faults;
module_param(faults, ulong, 0400);

static vm_fault_t own_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct vfio_pci_core_device *vdev = vma->vm_private_data;
	unsigned long pgoff = vma->vm_pgoff &
		((1UL << (VFIO_PCI_OFFSET_SHIFT - PAGE_SHIFT)) - 1);
	unsigned long pfn = PHYS_PFN(pci_resource_start(vdev->pdev, OWN_BAR)) +
			    pgoff + linear_page_delta(vma, vmf->address);

	WRITE_ONCE(faults, faults + 1);
	guard(rwsem_read)(&vdev->memory_lock);
	return vfio_pci_vmf_insert_pfn(vdev, vmf, pfn, 0);
}

static const struct vm_operations_struct own_vm_ops = {
	.fault = own_fault,
};

static int own_mmap(struct vfio_device *core_vdev, struct vm_area_struct *vma)
{
	struct vfio_pci_core_device *vdev =
		container_of(core_vdev, struct vfio_pci_core_device, vdev);
	u64 pgoff = vma->vm_pgoff &
		((1UL << (VFIO_PCI_OFFSET_SHIFT - PAGE_SHIFT)) - 1);

	if (vma->vm_pgoff >> (VFIO_PCI_OFFSET_SHIFT - PAGE_SHIFT) != OWN_BAR)
		return vfio_pci_core_mmap(core_vdev, vma);

	if (!(vma->vm_flags & VM_SHARED) ||
	    pgoff + vma_pages(vma) >
	    pci_resource_len(vdev->pdev, OWN_BAR) >> PAGE_SHIFT)
		return -EINVAL;

	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
	vma->vm_private_data = vdev;
	vma->vm_ops = &own_vm_ops;
	return 0;
}

static int own_open_device(struct vfio_device *core_vdev)
{
	struct vfio_pci_core_device *vdev =
		container_of(core_vdev, struct vfio_pci_core_device, vdev);
	int ret = vfio_pci_core_enable(vdev);

	if (!ret)
		vfio_pci_core_finish_enable(vdev);
	return ret;
}

static const struct vfio_device_ops own_ops = {
	.name			= "own-mmap",
	.init			= vfio_pci_core_init_dev,
	.release		= vfio_pci_core_release_dev,
	.open_device		= own_open_device,
	.close_device		= vfio_pci_core_close_device,
	.ioctl			= vfio_pci_core_ioctl,
	.get_region_info_caps	= vfio_pci_ioctl_get_region_info,
	.device_feature		= vfio_pci_core_ioctl_feature,
	.read			= vfio_pci_core_read,
	.write			= vfio_pci_core_write,
	.mmap			= own_mmap,
	.request		= vfio_pci_core_request,
	.match			= vfio_pci_core_match,
	.bind_iommufd		= vfio_iommufd_physical_bind,
	.unbind_iommufd		= vfio_iommufd_physical_unbind,
	.attach_ioas		= vfio_iommufd_physical_attach_ioas,
	.detach_ioas		= vfio_iommufd_physical_detach_ioas,
};

static int own_get_dmabuf_phys(struct vfio_pci_core_device *vdev,
			       struct p2pdma_provider **provider,
			       unsigned int region_index,
			       struct phys_vec *phys_vec,
			       struct vfio_region_dma_range *dma_ranges,
			       size_t nr_ranges)
{
	return vfio_pci_core_get_dmabuf_phys(vdev, provider, region_index,
					     phys_vec, dma_ranges, nr_ranges);
}

static const struct vfio_pci_device_ops own_device_ops = {
	.get_dmabuf_phys = own_get_dmabuf_phys,
};

static const struct vfio_pci_device_ops core_device_ops = {
	.get_dmabuf_phys = vfio_pci_core_get_dmabuf_phys,
};

static int own_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct vfio_pci_core_device *vdev;
	int ret;

	vdev = vfio_alloc_device(vfio_pci_core_device, vdev, &pdev->dev,
				 &own_ops);
	if (IS_ERR(vdev))
		return PTR_ERR(vdev);

	dev_set_drvdata(&pdev->dev, vdev);
	if (!strcmp(dmabuf, "core"))
		vdev->pci_ops = &core_device_ops;
	else if (!strcmp(dmabuf, "own"))
		vdev->pci_ops = &own_device_ops;

	ret = vfio_pci_core_register_device(vdev);
	if (ret)
		vfio_put_device(&vdev->vdev);
	return ret;
}

static void own_remove(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *vdev = dev_get_drvdata(&pdev->dev);

	vfio_pci_core_unregister_device(vdev);
	vfio_put_device(&vdev->vdev);
}

static const struct pci_device_id own_table[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(0x1af4, 0x1110) },
	{}
};
MODULE_DEVICE_TABLE(pci, own_table);

static struct pci_driver own_driver = {
	.name			= KBUILD_MODNAME,
	.id_table		= own_table,
	.probe			= own_probe,
	.remove			= own_remove,
	.err_handler		= &vfio_pci_core_err_handlers,
	.driver_managed_dma	= true,
};

module_pci_driver(own_driver);
MODULE_DESCRIPTION("A vfio-pci driver that maps memory by itself, for tests");
MODULE_LICENSE("GPL");
