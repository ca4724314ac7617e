// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reads the first 2 MiB of a file into the memory of a PCI device, without a copy in
 * RAM, and takes the memory back. For Documentation/driver-api/vfio-pci-dmabuf.rst.
 *
 *	vfio_pci_dmabuf_example /dev/vfio/devices/vfio0 BAR FILE
 *
 * BAR is the number of a BAR that is at least 2 MiB large. FILE, as large, is on, or is,
 * a block device that does peer-to-peer DMA. What the BAR holds is overwritten.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include <linux/vfio.h>

#define SIZE (2UL << 20)

static int open_device(const char *path)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	int device;

	bind.iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (bind.iommufd < 0)
		err(1, "/dev/iommu");
	device = open(path, O_RDWR | O_CLOEXEC);
	if (device < 0)
		err(1, "%s", path);
	if (ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind))
		err(1, "VFIO_DEVICE_BIND_IOMMUFD");

	return device;
}

/* A part of a BAR becomes a file descriptor, which can be given to another process. */
static int export_buffer(int device, int bar)
{
	struct {
		struct vfio_device_feature head;
		struct vfio_device_feature_dma_buf buf;
		struct vfio_region_dma_range range;
	} feature = {
		.head.argsz = sizeof(feature),
		.head.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
		.buf.region_index = bar,
		.buf.open_flags = O_RDWR | O_CLOEXEC,
		.buf.flags = VFIO_DMA_BUF_FLAG_ZONE_DEVICE,
		.buf.nr_ranges = 1,
		.range.length = SIZE,
	};
	int dmabuf = ioctl(device, VFIO_DEVICE_FEATURE, &feature);

	if (dmabuf < 0)
		err(1, "VFIO_DEVICE_FEATURE_DMA_BUF");

	return dmabuf;
}

/* The end of all access: mappings get SIGBUS, I/O in flight is waited for. */
static void revoke_buffer(int device, int dmabuf)
{
	struct {
		struct vfio_device_feature head;
		struct vfio_device_feature_dma_buf_revoke revoke;
	} feature = {
		.head.argsz = sizeof(feature),
		.head.flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE,
		.revoke.dmabuf_fd = dmabuf,
	};

	/* EINTR: access has ended, but not yet what was in flight. */
	while (ioctl(device, VFIO_DEVICE_FEATURE, &feature))
		if (errno != EINTR)
			err(1, "VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE");
}

int main(int argc, char *argv[])
{
	int device, dmabuf, file;
	unsigned char *memory;
	ssize_t size;

	if (argc != 4)
		errx(1, "usage: %s /dev/vfio/devices/NAME BAR FILE", argv[0]);

	device = open_device(argv[1]);
	dmabuf = export_buffer(device, atoi(argv[2]));
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");

	file = open(argv[3], O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (file < 0)
		err(1, "%s", argv[3]);
	size = pread(file, memory, SIZE, 0);
	if (size < 0)
		err(1, "read");
	if (size != SIZE)
		errx(1, "%s is too short", argv[3]);
	printf("%zd bytes are in the device, the first is %#x\n", size, memory[0]);

	revoke_buffer(device, dmabuf);
	munmap(memory, SIZE);
	close(dmabuf);
	close(file);
	close(device);

	return 0;
}
