// SPDX-License-Identifier: GPL-2.0-only
/*
 * QEMU's educational device ("-device edu", docs/specs/edu in QEMU's source).
 *
 * Its DMA engine moves data between memory and a buffer of 4 KiB in the device;
 * a memcpy is one transfer of each direction. A transfer takes 100 ms, whatever
 * its size. The device cuts addresses to its dma_mask, 28 bits by default, and
 * tells nobody: start QEMU with "-device edu,dma_mask=0xffffffffffffffff".
 *
 * Errors of the bus are ignored by the device: memcpy_wait() does not see them.
 */
#include <errno.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include <linux/io.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>

#include <libvfio.h>

#define EDU_VENDOR_ID		0x1234
#define EDU_DEVICE_ID		0x11e8

#define EDU_ID			0x00
#define EDU_ID_MAGIC		0xed
#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_RAISE		0x60
#define EDU_IRQ_ACK		0x64
#define EDU_DMA_SRC		0x80
#define EDU_DMA_DST		0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_CMD		0x98
#define EDU_DMA_CMD_RUN		0x1
#define EDU_DMA_CMD_TO_MEMORY	0x2

/* Where the buffer is in the address space of the DMA engine. */
#define EDU_DMA_BUFFER		0x40000

/* Half of the buffer: QEMU 7.2 aborts on a transfer of all of it. */
#define EDU_MAX_MEMCPY_SIZE	SZ_2K
#define EDU_MAX_MEMCPY_COUNT	8

#define EDU_MSI_VECTOR		0
#define EDU_TIMEOUT_MS		10000

struct edu {
	void *bar0;

	/* What memcpy_start() has left for memcpy_wait(). */
	iova_t src;
	iova_t dst;
	u64 size;
	u64 count;
};

static struct edu *to_edu(struct vfio_pci_device *device)
{
	return device->driver.region.vaddr;
}

static int edu_probe(struct vfio_pci_device *device)
{
	if (!vfio_pci_device_match(device, EDU_VENDOR_ID, EDU_DEVICE_ID))
		return -ENODEV;

	if (!device->bars[0].vaddr)
		return -ENODEV;

	return 0;
}

static bool edu_dma_busy(struct edu *edu)
{
	return readl(edu->bar0 + EDU_DMA_CMD) & EDU_DMA_CMD_RUN;
}

static int edu_dma_wait(struct edu *edu)
{
	int i;

	for (i = 0; i < EDU_TIMEOUT_MS; i++) {
		if (!edu_dma_busy(edu))
			return 0;
		usleep(1000);
	}

	return -ETIMEDOUT;
}

static void edu_dma_start(struct edu *edu, u64 src, u64 dst, u64 size, u32 cmd)
{
	writeq(src, edu->bar0 + EDU_DMA_SRC);
	writeq(dst, edu->bar0 + EDU_DMA_DST);
	writeq(size, edu->bar0 + EDU_DMA_COUNT);
	writeq(cmd | EDU_DMA_CMD_RUN, edu->bar0 + EDU_DMA_CMD);
}

static void edu_init(struct vfio_pci_device *device)
{
	struct vfio_pci_driver *driver = &device->driver;
	struct edu *edu = to_edu(device);

	VFIO_ASSERT_GE(driver->region.size, sizeof(*edu));

	vfio_pci_cmd_set(device, PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY);

	edu->bar0 = device->bars[0].vaddr;
	VFIO_ASSERT_EQ(readl(edu->bar0 + EDU_ID) & 0xff, EDU_ID_MAGIC);

	/* Somebody may have left a transfer behind. */
	VFIO_ASSERT_EQ(edu_dma_wait(edu), 0);
	writel(readl(edu->bar0 + EDU_IRQ_STATUS), edu->bar0 + EDU_IRQ_ACK);

	vfio_pci_msi_enable(device, EDU_MSI_VECTOR, 1);

	driver->max_memcpy_size = EDU_MAX_MEMCPY_SIZE;
	driver->max_memcpy_count = EDU_MAX_MEMCPY_COUNT;
	driver->msi = EDU_MSI_VECTOR;
}

static void edu_remove(struct vfio_pci_device *device)
{
	struct edu *edu = to_edu(device);

	VFIO_ASSERT_EQ(edu_dma_wait(edu), 0);
	vfio_pci_msi_disable(device);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MASTER);
}

static void edu_memcpy_start(struct vfio_pci_device *device,
			     iova_t src, iova_t dst, u64 size, u64 count)
{
	struct edu *edu = to_edu(device);

	edu->src = src;
	edu->dst = dst;
	edu->size = size;
	edu->count = count;

	edu_dma_start(edu, src, EDU_DMA_BUFFER, size, 0);
}

static int edu_memcpy_wait(struct vfio_pci_device *device)
{
	struct edu *edu = to_edu(device);
	int ret;

	for (;;) {
		ret = edu_dma_wait(edu);
		if (ret)
			return ret;

		edu_dma_start(edu, EDU_DMA_BUFFER, edu->dst, edu->size,
			      EDU_DMA_CMD_TO_MEMORY);
		ret = edu_dma_wait(edu);
		if (ret || !--edu->count)
			return ret;

		edu_dma_start(edu, edu->src, EDU_DMA_BUFFER, edu->size, 0);
	}
}

static void edu_send_msi(struct vfio_pci_device *device)
{
	struct edu *edu = to_edu(device);

	writel(1, edu->bar0 + EDU_IRQ_RAISE);
	writel(1, edu->bar0 + EDU_IRQ_ACK);
}

const struct vfio_pci_driver_ops edu_ops = {
	.name = "edu",
	.probe = edu_probe,
	.init = edu_init,
	.remove = edu_remove,
	.memcpy_start = edu_memcpy_start,
	.memcpy_wait = edu_memcpy_wait,
	.send_msi = edu_send_msi,
};
