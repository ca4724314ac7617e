// SPDX-License-Identifier: GPL-2.0-only
/*
 * Slow importers of dma-bufs: who has to wait for them, and who must not.
 *
 *	importer BDF OTHER_BDF [SET_BDF SET_BDF]
 *
 * BDF has the buffers, in its largest BAR. OTHER_BDF is a device that has
 * nothing to do with it. The last two are devices that are reset together.
 * Needs dmabuf_importer.ko; imports for $NVME0_BDF.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "kselftest_harness.h"
#include "importer.h"

static const char *device_bdf, *other_bdf, *set_bdfs[2];

#define SIZE		SZ_4M

/* 0 or -errno. Without @bdf it is a file of the bus. */
static int write_sysfs(const char *bdf, const char *name, const char *text)
{
	ssize_t length = strlen(text);
	char path[128];
	int fd, ret;

	if (bdf)
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, name);
	else
		snprintf(path, sizeof(path), "/sys/bus/pci/%s", name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;
	ret = write(fd, text, length) == length ? 0 : -errno;
	close(fd);
	return ret;
}

struct device {
	struct vfio_pci_device *vfio;
	int bar;
	void *vaddr;		/* through the device fd */
};

static void device_open(struct device *dev, const char *bdf, struct iommu *iommu)
{
	dev->vfio = vfio_pci_device_init(bdf, iommu);
	vfio_pci_cmd_set(dev->vfio, PCI_COMMAND_MEMORY);
	dev->bar = vfio_pci_largest_bar(dev->vfio);
	VFIO_ASSERT_GE(dev->bar, 0);
	dev->vaddr = dev->vfio->bars[dev->bar].vaddr;
}

/* A buffer, its mapping by the CPU, and its importer */
struct buffer {
	int fd;
	void *vaddr;
	int importer;
};

static void buffer_export(struct buffer *buf, struct device *dev, u64 offset,
			  u32 flags)
{
	buf->fd = vfio_pci_dmabuf_export(dev->vfio, dev->bar, offset, SIZE, flags);
	buf->vaddr = mmap_bar(buf->fd, SIZE, 0, 0);
	VFIO_ASSERT_EQ(try_touch(buf->vaddr, SIZE), 0);
	buf->importer = importer_open();
}

static void buffer_import(struct buffer *buf, const char *slow)
{
	importer_assert(buf->importer, "attach %d %s", buf->fd, importer_bdf());
	importer_assert(buf->importer, "slow %s", slow);
	importer_assert(buf->importer, "map");
}

static void buffer_close(struct buffer *buf)
{
	close(buf->importer);
	if (buf->vaddr)
		munmap_bar(buf->vaddr, SIZE);
	if (buf->fd >= 0)
		close(buf->fd);
}

struct test {
	struct iommu *iommu;
	struct device dev;
	struct buffer a;
	struct buffer b;
};

static void test_setup(struct test *t, u32 flags)
{
	/* The test before may have failed with the device unbound */
	write_sysfs(NULL, "drivers_probe", device_bdf);

	t->iommu = iommu_init(default_iommu_mode);
	device_open(&t->dev, device_bdf, t->iommu);

	/* The transitions of the device come to A first */
	buffer_export(&t->a, &t->dev, 0, flags);
	buffer_export(&t->b, &t->dev, SIZE, flags);
}

static void test_teardown(struct test *t)
{
	buffer_close(&t->a);
	buffer_close(&t->b);
	vfio_pci_device_cleanup(t->dev.vfio);
	iommu_cleanup(t->iommu);
}

static void test_reopen(struct test *t)
{
	vfio_pci_device_cleanup(t->dev.vfio);
	device_open(&t->dev, device_bdf, t->iommu);
}

/* -- what has to wait ------------------------------------------------------ */

struct event {
	struct vfio_pci_device *device;
	int fd;
};

static long do_revoke(void *data)
{
	struct event *event = data;

	return __vfio_pci_dmabuf_revoke(event->device, event->fd);
}

static long do_memory_off(void *data)
{
	struct event *event = data;

	vfio_pci_cmd_clear(event->device, PCI_COMMAND_MEMORY);
	return 0;
}

static long do_reset(void *data)
{
	struct event *event = data;

	return vfio_pci_any_reset(event->device);
}

static long do_sysfs_reset(void *data)
{
	return vfio_pci_sysfs_reset(data);
}

static long do_close(void *data)
{
	struct event *event = data;

	vfio_pci_device_close(event->device);
	return 0;
}

static long do_unbind(void *data)
{
	return write_sysfs(data, "driver/unbind", data);
}

/* -- what must not --------------------------------------------------------- */

/*
 * Runs in a thread of its own, which may get stuck. Returns 0, or the first line
 * that was not as expected.
 */
struct bystander {
	struct test *t;
	int sig;		/* how an access to what is not revoked ends */
	int told;		/* how often B's importer was told */
	bool closed;
	int at, wrong;
};

#define EXPECT(_expected, _seen) do {						\
	long __seen;								\
										\
	WRITE_ONCE(bystander->at, __LINE__);					\
	__seen = (long)(_seen);							\
	if (__seen != (long)(_expected) && !bystander->wrong) {			\
		bystander->wrong = __LINE__;					\
		printf("# line %d: %ld instead of %ld\n", __LINE__, __seen,	\
		       (long)(_expected));					\
	}									\
} while (0)

static void watch_other_device(struct bystander *bystander)
{
	struct iommu *iommu = iommu_init(default_iommu_mode);
	struct vfio_pci_device *device;
	u32 value;
	int bar;

	WRITE_ONCE(bystander->at, __LINE__);
	device = vfio_pci_device_init(other_bdf, iommu);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	bar = vfio_pci_largest_bar(device);
	EXPECT(0, try_read32(device->bars[bar].vaddr, &value));
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	EXPECT(SIGBUS, try_read32(device->bars[bar].vaddr, &value));
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	EXPECT(0, try_read32(device->bars[bar].vaddr, &value));
	EXPECT(0, vfio_pci_any_reset(device));
	EXPECT(0, try_read32(device->bars[bar].vaddr, &value));
	WRITE_ONCE(bystander->at, __LINE__);
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
}

/* New mappings, new buffers, and the revoke of both kinds */
static void watch_device(struct bystander *bystander)
{
	struct test *t = bystander->t;
	struct vfio_pci_device *device = t->dev.vfio;
	off_t offset = device->bars[t->dev.bar].info.offset;
	int i, fd, importer, sig = bystander->sig;
	void *vaddr;
	u32 value;

	EXPECT(sig, try_read32(t->dev.vaddr, &value));
	WRITE_ONCE(bystander->at, __LINE__);
	vaddr = mmap_bar(device->fd, SZ_2M, offset, 0);
	EXPECT(sig, try_read32(vaddr, &value));
	munmap_bar(vaddr, SZ_2M);

	WRITE_ONCE(bystander->at, __LINE__);
	vaddr = mmap_bar(t->b.fd, SIZE, 0, 0);
	EXPECT(sig, try_read32(vaddr, &value));
	munmap_bar(vaddr, SIZE);

	for (i = 0; i < 4; i++) {
		WRITE_ONCE(bystander->at, __LINE__);
		fd = vfio_pci_dmabuf_export(device, t->dev.bar, SZ_16M, SIZE,
					    i & 1 ? VFIO_DMA_BUF_FLAG_ZONE_DEVICE : 0);
		vaddr = mmap_bar(fd, SIZE, 0, 0);
		EXPECT(sig, try_read32(vaddr, &value));
		importer = importer_open();
		EXPECT(sig ? -ENODEV : 0,
		       importer_do(importer, "attach %d %s", fd, importer_bdf()));
		EXPECT(sig ? -EINVAL : 0, importer_do(importer, "map"));
		if (i & 2) {
			EXPECT(0, __vfio_pci_dmabuf_revoke(device, fd));
			EXPECT(SIGBUS, try_read32(vaddr, &value));
			EXPECT(!sig, importer_told(importer));
		}
		munmap_bar(vaddr, SIZE);
		EXPECT(0, close(importer));
		EXPECT(0, close(fd));
	}

	EXPECT(0, __vfio_pci_dmabuf_revoke(device, t->b.fd));
	EXPECT(SIGBUS, try_read32(t->b.vaddr, &value));
	EXPECT(1, importer_told(t->b.importer));
}

static long watch(void *data)
{
	struct bystander *bystander = data;
	struct test *t = bystander->t;
	u32 value;
	int fresh;

	/* Who is slow does not have the CPU's access last any longer */
	EXPECT(SIGBUS, try_read32(t->a.vaddr, &value));
	EXPECT(SIGBUS, try_read32(t->a.vaddr + SIZE / 2, &value));
	EXPECT(SIGBUS, try_write32(t->a.vaddr + SIZE - 4096, 1));

	/* And nobody else begins */
	fresh = importer_open();
	EXPECT(-ENODEV, importer_do(fresh, "attach %d %s", t->a.fd, importer_bdf()));
	EXPECT(0, close(fresh));

	EXPECT(bystander->closed ? SIGBUS : bystander->sig,
	       try_read32(t->b.vaddr, &value));
	EXPECT(bystander->told, importer_told(t->b.importer));
	if (bystander->closed) {
		EXPECT(ENODEV, mmap_errno(t->a.fd, SIZE, 0, PROT_READ, MAP_SHARED));
		EXPECT(ENODEV, mmap_errno(t->b.fd, SIZE, 0, PROT_READ, MAP_SHARED));
	} else {
		watch_device(bystander);
	}
	watch_other_device(bystander);

	return bystander->wrong;
}

FIXTURE(slow) {
	struct test t;
};

FIXTURE_VARIANT(slow) {
	const char *slow;
	u32 flags;
};

FIXTURE_VARIANT_ADD(slow, unmap) {
	.slow = "unmap",
};

FIXTURE_VARIANT_ADD(slow, unmap_pages) {
	.slow = "unmap",
	.flags = VFIO_DMA_BUF_FLAG_ZONE_DEVICE,
};

FIXTURE_VARIANT_ADD(slow, fence) {
	.slow = "fence",
};

FIXTURE_VARIANT_ADD(slow, callback) {
	.slow = "callback",
};

/* A has the slow importer, B one that does as it is told */
FIXTURE_SETUP(slow)
{
	test_setup(&self->t, variant->flags);
	buffer_import(&self->t.a, variant->slow);
	buffer_import(&self->t.b, "no");
}

FIXTURE_TEARDOWN(slow)
{
	test_teardown(&self->t);
}

/* Starts it, and watches what goes on until it is let go */
static void test_bystander(struct __test_metadata *_metadata, struct test *t,
			   const char *slow, long (*cut)(void *data))
{
	struct event event = { .device = t->dev.vfio, .fd = t->a.fd };
	struct bystander bystander = {
		.t = t,
		.sig = cut == do_revoke ? 0 : SIGBUS,
		/* Others hear of it meanwhile, unless they are behind a callback */
		.told = cut != do_revoke && strcmp(slow, "callback"),
		.closed = cut == do_close,
	};
	struct job cutter, watcher;

	start_job(&cutter, cut, &event);
	ASSERT_TRUE(importer_is_told(t->a.importer, 1));
	ASSERT_TRUE(importer_is_told(t->b.importer, bystander.told));

	start_job(&watcher, watch, &bystander);
	ASSERT_TRUE(job_ends(&watcher, AT_LAST)) {
		TH_LOG("stuck at line %d", READ_ONCE(bystander.at));
	}
	ASSERT_EQ(0, finish_job(&watcher));
	ASSERT_FALSE(job_ends(&cutter, 0.3));

	importer_assert(t->a.importer, "go");
	ASSERT_TRUE(job_ends(&cutter, AT_LAST));
	ASSERT_EQ(0, finish_job(&cutter));
	ASSERT_FALSE(importer_is_mapped(t->a.importer));
	ASSERT_EQ(1, importer_told(t->a.importer));
}

TEST_F_TIMEOUT(slow, bystander_of_revoke, 120)
{
	struct test *t = &self->t;
	u32 value;

	test_bystander(_metadata, t, variant->slow, do_revoke);
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->dev.vfio, t->a.fd));
	ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "map"));
	ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
	ASSERT_EQ(0, try_touch(t->dev.vaddr, SIZE));
}

/* What comes back comes back for all, and nobody is told so */
static void test_resumed(struct __test_metadata *_metadata, struct test *t)
{
	ASSERT_EQ(0, try_touch(t->dev.vaddr, SIZE));
	ASSERT_EQ(0, try_touch(t->a.vaddr, SIZE));
	importer_assert(t->a.importer, "slow no");
	importer_assert(t->a.importer, "map");
	ASSERT_EQ(1, importer_told(t->a.importer));
	vfio_pci_dmabuf_revoke(t->dev.vfio, t->a.fd);
	ASSERT_EQ(2, importer_told(t->a.importer));
}

TEST_F_TIMEOUT(slow, bystander_of_memory_off, 120)
{
	struct test *t = &self->t;
	u32 value;

	test_bystander(_metadata, t, variant->slow, do_memory_off);
	ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
	ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "map"));
	vfio_pci_cmd_set(t->dev.vfio, PCI_COMMAND_MEMORY);
	test_resumed(_metadata, t);
}

TEST_F_TIMEOUT(slow, bystander_of_reset, 120)
{
	test_bystander(_metadata, &self->t, variant->slow, do_reset);
	test_resumed(_metadata, &self->t);
}

TEST_F_TIMEOUT(slow, bystander_of_close, 120)
{
	struct test *t = &self->t;
	u32 value;

	test_bystander(_metadata, t, variant->slow, do_close);
	ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "map"));

	test_reopen(t);
	ASSERT_EQ(0, try_touch(t->dev.vaddr, SIZE));
	ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
	ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "map"));
}

/* The wait ends with a signal and goes on with the next call */
TEST_F_TIMEOUT(slow, revoke_interrupted, 120)
{
	struct test *t = &self->t;
	struct event event = { .device = t->dev.vfio, .fd = t->a.fd };
	struct job revoker;
	u32 value;
	int i;

	if (!strcmp(variant->slow, "callback"))
		SKIP(return, "who is in the callback cannot be interrupted");

	for (i = 0; i < 3; i++) {
		start_job(&revoker, do_revoke, &event);
		ASSERT_TRUE(importer_is_told(t->a.importer, 1));
		ASSERT_FALSE(job_ends(&revoker, 0.3));
		ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
		if (i == 2)
			break;
		interrupt_job(&revoker);
		ASSERT_TRUE(job_ends(&revoker, SOON));
		ASSERT_EQ(-EINTR, finish_job(&revoker));
		ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
	}

	importer_assert(t->a.importer, "go");
	ASSERT_TRUE(job_ends(&revoker, AT_LAST));
	ASSERT_EQ(0, finish_job(&revoker));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->dev.vfio, t->a.fd));
	ASSERT_EQ(1, importer_told(t->a.importer));
}

/* A second one waits as well, and gives up when it is asked to */
TEST_F_TIMEOUT(slow, revoke_by_two, 120)
{
	struct test *t = &self->t;
	struct event event = { .device = t->dev.vfio, .fd = t->a.fd };
	struct job first, second;
	int i;

	start_job(&first, do_revoke, &event);
	ASSERT_TRUE(importer_is_told(t->a.importer, 1));
	for (i = 0; i < 2; i++) {
		start_job(&second, do_revoke, &event);
		ASSERT_FALSE(job_ends(&second, 0.3));
		if (i)
			break;
		interrupt_job(&second);
		ASSERT_TRUE(job_ends(&second, SOON));
		ASSERT_EQ(-EINTR, finish_job(&second));
	}
	ASSERT_FALSE(job_is_done(&first, 0));

	importer_assert(t->a.importer, "go");
	ASSERT_TRUE(job_ends(&first, AT_LAST));
	ASSERT_TRUE(job_ends(&second, AT_LAST));
	ASSERT_EQ(0, finish_job(&first));
	ASSERT_EQ(-EBADFD, finish_job(&second));
}

/* The importer alone keeps the buffer */
TEST_F_TIMEOUT(slow, buffer_closed, 120)
{
	struct test *t = &self->t;
	struct event event = { .device = t->dev.vfio, .fd = t->a.fd };
	struct job job;

	munmap_bar(t->a.vaddr, SIZE);
	t->a.vaddr = NULL;
	start_job(&job, do_revoke, &event);
	ASSERT_TRUE(importer_is_told(t->a.importer, 1));
	ASSERT_EQ(0, close(t->a.fd));
	t->a.fd = -1;
	ASSERT_FALSE(job_ends(&job, 0.3));
	importer_assert(t->a.importer, "go");
	ASSERT_TRUE(job_ends(&job, AT_LAST));
	ASSERT_EQ(0, finish_job(&job));
	importer_assert(t->a.importer, "detach");

	/* Closed before anything begins, and the importer goes in the middle of it */
	buffer_close(&t->a);
	buffer_export(&t->a, &t->dev, SZ_16M, variant->flags);
	buffer_import(&t->a, variant->slow);
	munmap_bar(t->a.vaddr, SIZE);
	t->a.vaddr = NULL;
	ASSERT_EQ(0, close(t->a.fd));
	t->a.fd = -1;
	start_job(&job, do_memory_off, &event);
	ASSERT_TRUE(importer_is_told(t->a.importer, 1));
	ASSERT_FALSE(job_ends(&job, 0.3));
	importer_assert(t->a.importer, "go");
	importer_assert(t->a.importer, "detach");
	ASSERT_TRUE(job_ends(&job, AT_LAST));
	ASSERT_EQ(0, finish_job(&job));
	vfio_pci_cmd_set(t->dev.vfio, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch(t->dev.vaddr, SIZE));
}

/* The driver goes, with the device closed meanwhile; the buffers stay */
TEST_F_TIMEOUT(slow, unbind, 120)
{
	struct test *t = &self->t;
	struct event event = { .device = t->dev.vfio, .fd = t->a.fd };
	struct job unbinder, closer;
	u32 value;

	start_job(&unbinder, do_unbind, (void *)device_bdf);
	ASSERT_FALSE(job_ends(&unbinder, 0.3));
	ASSERT_EQ(0, try_read32(t->a.vaddr, &value));

	start_job(&closer, do_close, &event);
	ASSERT_TRUE(importer_is_told(t->a.importer, 1));
	ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
	ASSERT_FALSE(job_ends(&closer, 0.3));
	ASSERT_FALSE(job_ends(&unbinder, 0.3));

	importer_assert(t->a.importer, "go");
	ASSERT_TRUE(job_ends(&closer, AT_LAST));
	ASSERT_TRUE(job_ends(&unbinder, AT_LAST));
	ASSERT_EQ(0, finish_job(&closer));
	ASSERT_EQ(0, finish_job(&unbinder));

	ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
	ASSERT_EQ(ENODEV, mmap_errno(t->a.fd, SIZE, 0, PROT_READ, MAP_SHARED));
	ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "map"));
	importer_assert(t->a.importer, "detach");
	ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "attach %d %s", t->a.fd, importer_bdf()));

	ASSERT_EQ(0, write_sysfs(NULL, "drivers_probe", device_bdf));
	test_reopen(t);
	ASSERT_EQ(0, try_touch(t->dev.vaddr, SIZE));
	ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
}

/*
 * A reset that somebody else does waits for nobody. What is mapped stays so, and
 * is waited for by who asks next.
 */
TEST_F_TIMEOUT(slow, reset_by_others, 120)
{
	struct test *t = &self->t;
	struct event event = { .device = t->dev.vfio, .fd = t->a.fd };
	struct job job, other;
	u32 value;

	if (!strcmp(variant->slow, "callback"))
		SKIP(return, "who is in the callback is waited for");

	start_job(&job, do_sysfs_reset, t->dev.vfio);
	ASSERT_TRUE(job_ends(&job, SOON));
	ASSERT_EQ(0, finish_job(&job));
	ASSERT_EQ(1, importer_told(t->a.importer));
	ASSERT_EQ(1, importer_told(t->b.importer));
	ASSERT_EQ(0, try_touch(t->a.vaddr, SIZE));

	start_job(&job, do_memory_off, &event);
	ASSERT_TRUE(importer_is_told(t->a.importer, 2));
	ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
	ASSERT_FALSE(job_ends(&job, 0.3));

	/* Nor for who waits */
	start_job(&other, do_sysfs_reset, t->dev.vfio);
	ASSERT_TRUE(job_ends(&other, SOON));
	ASSERT_EQ(0, finish_job(&other));
	ASSERT_FALSE(job_is_done(&job, 0));
	ASSERT_EQ(SIGBUS, try_read32(t->a.vaddr, &value));
	ASSERT_EQ(2, importer_told(t->a.importer));

	importer_assert(t->a.importer, "go");
	ASSERT_TRUE(job_ends(&job, AT_LAST));
	ASSERT_EQ(0, finish_job(&job));
	vfio_pci_cmd_set(t->dev.vfio, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch(t->a.vaddr, SIZE));
}

/* -- importers that do as they are told ------------------------------------ */

FIXTURE(prompt) {
	struct test t;
};

FIXTURE_VARIANT(prompt) {
	u32 flags;
};

FIXTURE_VARIANT_ADD(prompt, plain) {
};

FIXTURE_VARIANT_ADD(prompt, pages) {
	.flags = VFIO_DMA_BUF_FLAG_ZONE_DEVICE,
};

FIXTURE_SETUP(prompt)
{
	test_setup(&self->t, variant->flags);
	buffer_import(&self->t.a, "no");
}

FIXTURE_TEARDOWN(prompt)
{
	test_teardown(&self->t);
}

/* Who could not let go, and who could not use it */
TEST_F(prompt, refused)
{
	struct test *t = &self->t;
	int importer = t->b.importer;

	ASSERT_EQ(-EOPNOTSUPP, importer_do(importer, "attach %d %s pinned", t->a.fd, importer_bdf()));
	ASSERT_EQ(-EOPNOTSUPP, importer_do(importer, "attach %d %s host", t->a.fd, importer_bdf()));
	importer_assert(importer, "attach %d %s", t->a.fd, importer_bdf());
}

TEST_F(prompt, revoked)
{
	struct test *t = &self->t;

	vfio_pci_dmabuf_revoke(t->dev.vfio, t->a.fd);
	ASSERT_EQ(1, importer_told(t->a.importer));
	ASSERT_FALSE(importer_is_mapped(t->a.importer));
	ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "map"));
	ASSERT_EQ(-ENODEV, importer_do(t->b.importer, "attach %d %s", t->a.fd, importer_bdf()));

	/* Nothing that comes later brings it back, or says so again */
	vfio_pci_cmd_clear(t->dev.vfio, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(t->dev.vfio, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, vfio_pci_any_reset(t->dev.vfio));
	ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "map"));
	ASSERT_EQ(-ENODEV, importer_do(t->b.importer, "attach %d %s", t->a.fd, importer_bdf()));
	ASSERT_EQ(1, importer_told(t->a.importer));
}

TEST_F(prompt, suspended)
{
	struct test *t = &self->t;
	int i;

	for (i = 1; i <= 3; i++) {
		vfio_pci_cmd_clear(t->dev.vfio, PCI_COMMAND_MEMORY);
		ASSERT_EQ(i, importer_told(t->a.importer));
		ASSERT_FALSE(importer_is_mapped(t->a.importer));
		ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "map"));
		ASSERT_EQ(-ENODEV, importer_do(t->b.importer, "attach %d %s",
					       t->a.fd, importer_bdf()));

		/* Off is off: a reset has nothing to add */
		ASSERT_EQ(0, vfio_pci_any_reset(t->dev.vfio));
		ASSERT_EQ(-ENODEV, importer_do(t->a.importer, "map"));
		ASSERT_EQ(i, importer_told(t->a.importer));

		/* Nobody is told that it is back; it just is */
		vfio_pci_cmd_set(t->dev.vfio, PCI_COMMAND_MEMORY);
		ASSERT_EQ(i, importer_told(t->a.importer));
		importer_assert(t->a.importer, "map");
		importer_assert(t->b.importer, "attach %d %s", t->a.fd, importer_bdf());
		importer_assert(t->b.importer, "map");
		importer_assert(t->b.importer, "detach");
	}
}

/* -- devices that are reset together --------------------------------------- */

FIXTURE(set) {
	struct iommu *iommu;
	struct device devs[2];
	struct buffer bufs[2];
	struct device *slow, *other;
	struct buffer *slow_buf, *other_buf;
};

/* Whoever comes first in the kernel's list */
FIXTURE_VARIANT(set) {
	int slow;
	const char *how;
};

FIXTURE_VARIANT_ADD(set, first_unmap) {
	.slow = 0,
	.how = "unmap",
};

FIXTURE_VARIANT_ADD(set, second_unmap) {
	.slow = 1,
	.how = "unmap",
};

FIXTURE_VARIANT_ADD(set, first_callback) {
	.slow = 0,
	.how = "callback",
};

FIXTURE_VARIANT_ADD(set, second_callback) {
	.slow = 1,
	.how = "callback",
};

FIXTURE_SETUP(set)
{
	int i;

	if (!set_bdfs[0])
		SKIP(return, "no devices that are reset together");

	self->iommu = iommu_init(default_iommu_mode);
	for (i = 0; i < 2; i++) {
		device_open(&self->devs[i], set_bdfs[i], self->iommu);
		buffer_export(&self->bufs[i], &self->devs[i], 0, 0);
		buffer_import(&self->bufs[i], i == variant->slow ? variant->how : "no");
		ASSERT_EQ(0, try_touch(self->devs[i].vaddr, SIZE));
	}
	self->slow = &self->devs[variant->slow];
	self->slow_buf = &self->bufs[variant->slow];
	self->other = &self->devs[!variant->slow];
	self->other_buf = &self->bufs[!variant->slow];
}

FIXTURE_TEARDOWN(set)
{
	int i;

	for (i = 0; i < 2; i++) {
		buffer_close(&self->bufs[i]);
		vfio_pci_device_cleanup(self->devs[i].vfio);
	}
	iommu_cleanup(self->iommu);
}

struct set_bystander {
	struct device *dev;
	struct buffer *buf;
	int at, wrong;
};

static long watch_set(void *data)
{
	struct set_bystander *bystander = data;
	struct device *dev = bystander->dev;
	off_t offset = dev->vfio->bars[dev->bar].info.offset;
	struct bystander other = {};
	void *vaddr;
	u32 value;
	int fd;

	EXPECT(SIGBUS, try_read32(dev->vaddr, &value));
	EXPECT(SIGBUS, try_read32(bystander->buf->vaddr, &value));
	EXPECT(SIGBUS, try_read32(bystander->buf->vaddr + SIZE / 2, &value));
	WRITE_ONCE(bystander->at, __LINE__);
	vaddr = mmap_bar(dev->vfio->fd, SIZE, offset, 0);
	EXPECT(SIGBUS, try_read32(vaddr, &value));
	munmap_bar(vaddr, SIZE);
	WRITE_ONCE(bystander->at, __LINE__);
	fd = vfio_pci_dmabuf_export(dev->vfio, dev->bar, SZ_16M, SIZE, 0);
	if (!importer_is_mapped(bystander->buf->importer))
		EXPECT(-ENODEV, importer_do(bystander->buf->importer, "map"));
	EXPECT(0, __vfio_pci_dmabuf_revoke(dev->vfio, fd));
	EXPECT(0, close(fd));

	watch_other_device(&other);
	return bystander->wrong ?: other.wrong;
}

/* A slow importer of one device leaves the other one cut off all the same */
TEST_F_TIMEOUT(set, hot_reset, 120)
{
	bool callback = !strcmp(variant->how, "callback");
	struct event event = { .device = self->devs[0].vfio };
	struct set_bystander bystanders[2] = {
		{ .dev = self->other, .buf = self->other_buf },
		{ .dev = self->slow, .buf = self->slow_buf },
	};
	struct job resetter, watcher;
	int i;

	start_job(&resetter, do_reset, &event);
	ASSERT_TRUE(importer_is_told(self->slow_buf->importer, 1));
	if (!callback)
		ASSERT_TRUE(importer_is_told(self->other_buf->importer, 1));

	for (i = 0; i < 2 - callback; i++) {
		start_job(&watcher, watch_set, &bystanders[i]);
		ASSERT_TRUE(job_ends(&watcher, AT_LAST)) {
			TH_LOG("%d stuck at line %d", i, READ_ONCE(bystanders[i].at));
		}
		ASSERT_EQ(0, finish_job(&watcher));
	}
	ASSERT_FALSE(job_ends(&resetter, 0.3));

	importer_assert(self->slow_buf->importer, "go");
	ASSERT_TRUE(job_ends(&resetter, AT_LAST));
	ASSERT_EQ(0, finish_job(&resetter));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, try_touch(self->devs[i].vaddr, SIZE));
		ASSERT_EQ(0, try_touch(self->bufs[i].vaddr, SIZE));
		ASSERT_EQ(1, importer_told(self->bufs[i].importer));
		importer_assert(self->bufs[i].importer, "slow no");
		importer_assert(self->bufs[i].importer, "map");
	}
}

/* One that cannot be done, as one device is busy, has not begun with the other */
TEST_F_TIMEOUT(set, hot_reset_busy, 120)
{
	struct event event = { .device = self->slow->vfio };
	struct event reset = { .device = self->other->vfio };
	struct job job, resetter;
	u32 value;

	start_job(&job, do_memory_off, &event);
	ASSERT_TRUE(importer_is_told(self->slow_buf->importer, 1));
	ASSERT_FALSE(job_ends(&job, 0.3));

	start_job(&resetter, do_reset, &reset);
	ASSERT_TRUE(job_ends(&resetter, SOON));
	ASSERT_EQ(-EBUSY, finish_job(&resetter));
	EXPECT_EQ(0, importer_told(self->other_buf->importer));
	EXPECT_TRUE(importer_is_mapped(self->other_buf->importer));
	EXPECT_EQ(0, touch_faults(self->other_buf->vaddr, SIZE));
	ASSERT_EQ(0, try_read32(self->other->vaddr, &value));
	ASSERT_EQ(SIGBUS, try_read32(self->slow->vaddr, &value));

	importer_assert(self->slow_buf->importer, "go");
	ASSERT_TRUE(job_ends(&job, AT_LAST));
	ASSERT_EQ(0, finish_job(&job));
	vfio_pci_cmd_set(self->slow->vfio, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, vfio_pci_any_reset(self->other->vfio));
	ASSERT_EQ(0, try_touch(self->slow->vaddr, SIZE));
	ASSERT_EQ(0, try_touch(self->other->vaddr, SIZE));
}

int main(int argc, char *argv[])
{
	char **bdfs;
	int nr;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr);
	if (nr != 2 && nr != 4) {
		fprintf(stderr, "Usage: %s BDF OTHER_BDF [SET_BDF SET_BDF]\n", argv[0]);
		return 2;
	}
	device_bdf = bdfs[0];
	other_bdf = bdfs[1];
	if (nr == 4) {
		set_bdfs[0] = bdfs[2];
		set_bdfs[1] = bdfs[3];
	}
	return test_harness_run(argc, argv);
}
