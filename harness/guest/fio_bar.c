// SPDX-License-Identifier: GPL-2.0-only
/*
 * Runs a program that knows nothing of dma-bufs, fio for one, on the memory of a BAR:
 *
 *	fio_bar BDF PROGRAM [ARGS...]
 *
 * The program opens $BAR_MEMORY and maps it, and gets a page-backed dma-buf of the
 * BAR (harness/guest/shared/bar_memory.c). Afterwards it is revoked, which has to return.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "check.h"

int main(int argc, char **argv)
{
	struct vfio_pci_device *device;
	int fd, status, pid, bar;
	struct iommu *iommu;
	char text[16];
	void *vaddr;
	size_t used, i;

	if (argc < 3) {
		fprintf(stderr, "usage: fio_bar BDF PROGRAM [ARGS...]\n");
		return 2;
	}
	iommu = iommu_init(default_iommu_mode);
	device = vfio_pci_device_init(argv[1], iommu);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	bar = vfio_pci_largest_bar(device);
	VFIO_ASSERT_GE(bar, 0);
	fd = vfio_pci_dmabuf_export(device, bar, 0, device->bars[bar].info.size,
				    VFIO_DMA_BUF_FLAG_ZONE_DEVICE);
	vaddr = mmap_bar(fd, SZ_2M, 0, 0);
	memset(vaddr, 0, SZ_2M);

	snprintf(text, sizeof(text), "%d", fd);
	setenv("BAR_MEMORY_FD", text, 1);
	setenv("BAR_MEMORY", "/dev/bar-memory", 1);
	fflush(stdout);
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		VFIO_ASSERT_EQ(fcntl(fd, F_SETFD, 0), 0);
		setenv("LD_PRELOAD", "/work/bar_memory.so", 1);
		execvp(argv[2], argv + 2);
		fprintf(stderr, "fio_bar: cannot run %s\n", argv[2]);
		_exit(127);
	}
	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	check(WIFEXITED(status) && !WEXITSTATUS(status), "%s is content (status %#x)",
	      argv[2], status);
	for (used = i = 0; i < SZ_2M; i += sizeof(u64))
		used += !!READ_ONCE(*(u64 *)(vaddr + i));
	check(used > SZ_64K / sizeof(u64), "it has used the BAR (%zu bytes)", used * sizeof(u64));
	check(!__vfio_pci_dmabuf_revoke(device, fd), "nothing of it is left in flight");
	printf("1..%d\n", tests);
	return !!failures;
}
