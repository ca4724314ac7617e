/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VFIO_PCI_DMABUF_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VFIO_PCI_DMABUF_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include <linux/types.h>
#include <linux/vfio.h>

#include <libvfio/iommu.h>
#include <libvfio/vfio_pci_device.h>

/* Lets the tests build against the headers of older kernels. */
#ifndef VFIO_DMA_BUF_FLAG_ZONE_DEVICE
#define VFIO_DMA_BUF_FLAG_ZONE_DEVICE		0x1
#endif

#ifndef VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE
#define VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE	14

struct vfio_device_feature_dma_buf_revoke {
	__s32 dmabuf_fd;
};
#endif

/*
 * VFIO_DEVICE_FEATURE. Returns what the ioctl returned, or -errno.
 */
int __vfio_device_feature(int fd, u32 flags, void *data, size_t size);

/* True if the kernel knows @op (VFIO_DEVICE_FEATURE_GET or _SET) of @feature. */
bool vfio_device_has_feature(struct vfio_pci_device *device, u32 op, u16 feature);

/* True unless it is not there, empty or 0. */
bool env_is_set(const char *name);

/* Of a clock that is never set. */
u64 milliseconds(void);

/* Write to a file of sysfs or the like; false if that cannot be done. */
bool write_text(const char *path, const char *text);

/*
 * True if BARs can be exported as dma-bufs, and if those can be mapped and
 * revoked. A kernel that lacks one of the two fails, unless it was announced:
 *
 *  VFIO_SELFTESTS_NO_DMABUF=1         built without, both must be -ENOTTY
 *  VFIO_SELFTESTS_NO_DMABUF_REVOKE=1  an older one, the latter must be -ENOTTY
 */
bool vfio_pci_dmabuf_exported(struct vfio_pci_device *device);
bool vfio_pci_dmabuf_supported(struct vfio_pci_device *device);

/* Returns the fd of the new dma-buf, or -errno. */
int __vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 bar,
			     const struct vfio_region_dma_range *ranges,
			     u32 nr_ranges, u32 open_flags, u32 flags);

/* Export one range of a BAR, read-write. The fd is never negative. */
int vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 bar, u64 offset,
			   u64 length, u32 flags);

int __vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd);
void vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd);

/* Map a part of a dma-buf into an IOAS at a fixed IOVA; 0 or -errno. */
int __iommu_map_dmabuf(struct iommu *iommu, int dmabuf_fd, u64 start,
		       u64 length, iova_t iova);
int __iommu_unmap_iova(struct iommu *iommu, iova_t iova, u64 length);

/*
 * mmap(MAP_SHARED) of @fd at an address that is @skew bytes past a 2 MiB
 * boundary, read-write. With @skew == 0 the kernel can use PMD mappings.
 */
void *mmap_bar(int fd, size_t size, off_t offset, size_t skew);
void munmap_bar(void *vaddr, size_t size);

/* mmap() that is expected to fail. Returns its errno, or 0 if it succeeded. */
int mmap_errno(int fd, size_t size, off_t offset, int prot, int flags);

/*
 * Accesses that may raise a signal. They return 0, or the number of the signal
 * (SIGBUS, SIGSEGV) that the access raised. Any thread may use them.
 */
int try_read32(const void *vaddr, u32 *value);
int try_write32(void *vaddr, u32 value);
int try_memcpy(void *dst, const void *src, size_t size);

/* One try_read32() for every page of the range; the first signal, or 0. */
int try_touch(const void *vaddr, size_t size);

/*
 * Threads read 2 MiB of @fd that are mapped anew again and again, and one allows for huge
 * pages and does not, in turn: faults on the same 2 MiB map all of it or a page.
 * Returns how many reads ended with a signal.
 */
unsigned int race_orders(int fd, off_t offset, unsigned int ms);

/*
 * A child process that runs @fn once for each ask_child(), with the argument
 * given there, and hands back what it returned.
 */
struct child {
	int pid;
	int request;
	int response;
};

void start_child(struct child *child, int (*fn)(void *data, int arg), void *data);
int ask_child(struct child *child, int arg);
void stop_child(struct child *child);

/*
 * Settings of the whole system, which others need as they were: whatever becomes of
 * the test, killed for taking too long included, @end is run when it is over, by a
 * process of its own. To be started before anything is opened that ought not to
 * outlive the test.
 */
struct guard {
	int pid;
	int alive;
};

void start_guard(struct guard *guard, void (*end)(void));
void stop_guard(struct guard *guard);

/*
 * A thread that runs @fn once. Whether it has come to its end, now or within so
 * many milliseconds, can be asked before finish_job() waits for it and tells
 * what @fn returned.
 */
struct job {
	pthread_t thread;
	long (*fn)(void *data);
	void *data;
	long ret;
	bool done;
};

void start_job(struct job *job, long (*fn)(void *data), void *data);
bool job_is_done(struct job *job, unsigned int ms);
long finish_job(struct job *job);

/* Send it a signal that does nothing but interrupt a system call (SIGUSR1). */
void interrupt_job(struct job *job);

/*
 * Memory that is not there: who touches it, the kernel included, waits until
 * it is supplied, as zeroes. False if the kernel is built without
 * userfaultfd().
 */
struct absent_memory {
	int uffd;
	void *vaddr;
	size_t size;
};

bool absent_memory_init(struct absent_memory *memory, size_t size);
bool absent_memory_is_awaited(struct absent_memory *memory, unsigned int ms);
void absent_memory_supply(struct absent_memory *memory);
void absent_memory_cleanup(struct absent_memory *memory);

/* The number of page faults of this thread that needed no I/O. */
u64 minor_faults(void);

/* The number that it takes to touch each page of the range. */
u64 touch_faults(const void *vaddr, size_t size);

/* A sequence of 64-bit values that depends on @seed and on the position. */
void pattern_fill(void *vaddr, size_t size, u64 seed);

/* Offset of the first difference, or @size. */
size_t pattern_check(const void *vaddr, size_t size, u64 seed);

/* Where a capability is in config space, or 0. */
u8 vfio_pci_find_cap(struct vfio_pci_device *device, u8 id);

/* The largest BAR that can be mapped for reading and writing, or -1. */
int vfio_pci_largest_bar(struct vfio_pci_device *device);

/* True if what is written to the BAR can be read back. */
bool vfio_pci_bar_is_memory(struct vfio_pci_device *device, int bar);

/*
 * Ways for a user to take the BARs of the device away for a while.
 */
struct vfio_pci_suspend {
	const char *name;
	bool (*supported)(struct vfio_pci_device *device);
	void (*suspend)(struct vfio_pci_device *device);
	void (*resume)(struct vfio_pci_device *device);
};

extern const struct vfio_pci_suspend vfio_pci_suspend_memory;
extern const struct vfio_pci_suspend vfio_pci_suspend_d3;
extern const struct vfio_pci_suspend vfio_pci_suspend_low_power;
extern const struct vfio_pci_suspend vfio_pci_suspend_wakeup;

/* VFIO_DEVICE_RESET or VFIO_DEVICE_PCI_HOT_RESET; 0 or -errno. */
bool vfio_pci_can_reset(struct vfio_pci_device *device);
int vfio_pci_any_reset(struct vfio_pci_device *device);

/* A reset that does not come through vfio: 0 or -errno, -ENOENT if there is none. */
int vfio_pci_sysfs_reset(struct vfio_pci_device *device);

/*
 * True if a page fault can map 2 MiB at once, given MADV_HUGEPAGE.
 */
bool huge_faults_enabled(void);

/*
 * A device that was opened through its group, for which there is a mode of the
 * IOMMU, can be opened once more; returns the fd. Then one of the two can be
 * closed, and the other one is @device->fd.
 */
bool vfio_pci_has_group(const char *bdf);
const char *vfio_pci_group_iommu_mode(const char *bdf);
int vfio_pci_group_reopen(struct vfio_pci_device *device);
void vfio_pci_group_close_one(struct vfio_pci_device *device, int again,
			      bool second);

/*
 * Close the device fd now, with every mapping of the device fd removed, and
 * leave behind what vfio_pci_device_cleanup() needs.
 */
void vfio_pci_device_close(struct vfio_pci_device *device);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VFIO_PCI_DMABUF_H */
