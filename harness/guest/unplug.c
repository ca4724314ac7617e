// SPDX-License-Identifier: GPL-2.0-only
/*
 * A device goes while its BAR is mapped and exported, and a disk ($NVME0) moves data
 * to it and from it.
 *
 *	unplug HOW BDF BAR ARG
 *
 *	remove		through sysfs, and found again
 *	unbind		its driver is unbound, and bound again
 *	slot		its slot is switched off
 *	del ID PORT	pulled with notice: QEMU's device_del, asked for through PORT
 *	surprise	pulled without: QEMU takes the device away at once
 *
 * Notice or not, the device is its user's until they close it.  What is left of
 * it then, dma-bufs and their mappings, is dead and harmless.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/compiler.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "kselftest.h"

#define PATIENCE	60	/* seconds */
#define SIZE		SZ_4M

static const char *how, *bdf;
static int bar;
static char bridge[16];		/* the port above */

static void *device_map, *buf_maps[2];
static int buf_fds[2] = { -1, -1 };
static bool taken;
static const char * const kinds[] = { "dma-buf", "page-backed dma-buf" };

static void check(bool ok, const char *format, ...)
{
	char text[256];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	ksft_test_result(ok, "%s: %s\n", how, text);
}

static void put(const char *text, const char *format, ...)
{
	char path[PATH_MAX];
	va_list args;
	int fd;

	va_start(args, format);
	vsnprintf(path, sizeof(path), format, args);
	va_end(args);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		ksft_exit_fail_msg("cannot write %s to %s: %m\n", text, path);
	close(fd);
}

/* The device, or the driver's hold on it, of which sysfs knows nothing any more */
static bool is_there(void)
{
	char path[PATH_MAX];

	if (!strcmp(how, "unbind"))
		return !READ_ONCE(taken);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", bdf);
	return !access(path, F_OK);
}

/*
 * The port's slot control register: with power and its indicator off QEMU takes
 * the device.  They are on again when the port's driver is allowed to look.
 */
static void switch_off_behind_its_back(void)
{
	char path[64];
	u8 pos, id, next;
	u16 control, off;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", bridge);
	fd = open(path, O_RDWR);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(pread(fd, &pos, 1, PCI_CAPABILITY_LIST), 1);
	while (pos) {
		VFIO_ASSERT_EQ(pread(fd, &id, 1, pos), 1);
		VFIO_ASSERT_EQ(pread(fd, &next, 1, pos + 1), 1);
		if (id == PCI_CAP_ID_EXP)
			break;
		pos = next;
	}
	VFIO_ASSERT_NE(pos, 0);
	VFIO_ASSERT_EQ(pread(fd, &control, 2, pos + PCI_EXP_SLTCTL), 2);
	off = (control & ~PCI_EXP_SLTCTL_HPIE) | PCI_EXP_SLTCTL_PCC | PCI_EXP_SLTCTL_PIC;
	VFIO_ASSERT_EQ(pwrite(fd, &off, 2, pos + PCI_EXP_SLTCTL), 2);
	VFIO_ASSERT_EQ(pwrite(fd, &control, 2, pos + PCI_EXP_SLTCTL), 2);
	close(fd);
}

static char *slot(void)
{
	static char path[PATH_MAX];
	char address[16] = "";
	glob_t slots;
	size_t i;

	VFIO_ASSERT_EQ(glob("/sys/bus/pci/slots/*/address", 0, NULL, &slots), 0);
	for (i = 0; i < slots.gl_pathc; i++) {
		FILE *file = fopen(slots.gl_pathv[i], "r");

		VFIO_ASSERT_NOT_NULL(file);
		if (fscanf(file, "%15s", address) == 1 && address[0] &&
		    !strncmp(address, bdf, strlen(address))) {
			snprintf(path, sizeof(path), "%s", slots.gl_pathv[i]);
			fclose(file);
			globfree(&slots);
			return dirname(path);
		}
		fclose(file);
	}
	ksft_exit_fail_msg("%s is in no slot\n", bdf);
}

/* It takes as long as the device is in use */
static void *take_away(void *data)
{
	char path[PATH_MAX], text[64], **argv = data;

	if (!strcmp(how, "remove")) {
		put("1", "/sys/bus/pci/devices/%s/remove", bdf);
	} else if (!strcmp(how, "unbind")) {
		put(bdf, "/sys/bus/pci/devices/%s/driver/unbind", bdf);
	} else if (!strcmp(how, "slot")) {
		snprintf(path, sizeof(path), "%s/power", slot());
		put("0", "%s", path);
	} else if (!strcmp(how, "del")) {
		snprintf(text, sizeof(text), "device_del %s\n", argv[0]);
		put(text, "%s", argv[1]);
	} else if (!strcmp(how, "surprise")) {
		switch_off_behind_its_back();
	} else {
		ksft_exit_fail_msg("unknown: %s\n", how);
	}
	WRITE_ONCE(taken, true);
	return NULL;
}

/*
 * O_DIRECT from and to the page-backed dma-buf, over and over. What is at both ends is
 * the same all the time, and stays so unless somebody else's memory gets into it.
 */
#define NR_STREAMS	4
#define STREAM_SIZE	(SIZE / NR_STREAMS)
#define STREAM_TO	SZ_16M		/* on the disk: what comes from the device */

static int disk;
static bool stop_streams;
static struct stream {
	pthread_t thread;
	int nr;
	u64 good, refused, failed;
} streams[NR_STREAMS];

static void *stream(void *data)
{
	struct stream *stream = data;
	off_t at = (stream->nr / 2 * 2) * STREAM_SIZE;
	ssize_t ret;

	while (!READ_ONCE(stop_streams)) {
		if (stream->nr & 1)
			ret = pwrite(disk, buf_maps[1] + at, STREAM_SIZE, STREAM_TO + at);
		else
			ret = pread(disk, buf_maps[1] + at, STREAM_SIZE, at);
		if (ret == STREAM_SIZE) {
			WRITE_ONCE(stream->good, stream->good + 1);
		} else if (ret >= 0 || errno == EFAULT) {
			WRITE_ONCE(stream->refused, stream->refused + 1);
			usleep(1000);
		} else {
			WRITE_ONCE(stream->failed, stream->failed + 1);
		}
	}
	return NULL;
}

static void *disk_buffer(void)
{
	static void *buffer;

	if (!buffer)
		VFIO_ASSERT_EQ(posix_memalign(&buffer, SZ_4K, SIZE), 0);
	return buffer;
}

static void start_streams(void)
{
	void *buffer = disk_buffer();
	int i, ms;

	disk = open(getenv("NVME0"), O_RDWR | O_DIRECT | O_CLOEXEC);
	VFIO_ASSERT_GE(disk, 0);
	pattern_fill(buffer, SIZE, 1);
	VFIO_ASSERT_EQ(pwrite(disk, buffer, SIZE, 0), SIZE);
	VFIO_ASSERT_EQ(pwrite(disk, buffer, SIZE, STREAM_TO), SIZE);

	stop_streams = false;
	for (i = 0; i < NR_STREAMS; i++) {
		streams[i] = (struct stream) { .nr = i };
		VFIO_ASSERT_EQ(pthread_create(&streams[i].thread, NULL, stream, &streams[i]), 0);
	}
	for (i = 0; i < NR_STREAMS; i++) {
		for (ms = 0; !READ_ONCE(streams[i].good) && ms < PATIENCE * 1000; ms++)
			usleep(1000);
		check(streams[i].good, "stream %d flows", i);
	}
}

/* Each of them goes on, and gets nothing any more. */
static bool are_all_refused(void)
{
	u64 good[NR_STREAMS], refused[NR_STREAMS];
	int i, seconds;
	bool all = false;

	/* What is under way may still come to its end. */
	for (seconds = 0; !all && seconds < PATIENCE; seconds++) {
		for (i = 0; i < NR_STREAMS; i++) {
			good[i] = READ_ONCE(streams[i].good);
			refused[i] = READ_ONCE(streams[i].refused);
		}
		sleep(1);
		for (all = true, i = 0; i < NR_STREAMS; i++)
			all = all && READ_ONCE(streams[i].good) == good[i] &&
			      READ_ONCE(streams[i].refused) > refused[i] + 1;
	}
	return all;
}

static void end_streams(bool surprise)
{
	void *buffer = disk_buffer();
	u64 good = 0, refused = 0, failed = 0;
	int i;

	WRITE_ONCE(stop_streams, true);
	for (i = 0; i < NR_STREAMS; i++) {
		VFIO_ASSERT_EQ(pthread_join(streams[i].thread, NULL), 0);
		good += streams[i].good;
		refused += streams[i].refused;
		failed += streams[i].failed;
	}
	ksft_print_msg("O_DIRECT: %llu done, %llu refused, %llu failed\n", (unsigned long long)good,
		       (unsigned long long)refused, (unsigned long long)failed);

	/* What is read from a device that is gone is not its memory. */
	if (!surprise) {
		check(!failed, "the disk does not fail");
		VFIO_ASSERT_EQ(pread(disk, buffer, SIZE, STREAM_TO), SIZE);
		check(pattern_check(buffer, SIZE, 1) == SIZE,
		      "on the disk is what was in the device");
	}
	close(disk);
}

static int request_eventfd(struct vfio_pci_device *device)
{
	struct {
		struct vfio_irq_set set;
		int fd;
	} irq = {
		.set = {
			.argsz = sizeof(irq),
			.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
			.index = VFIO_PCI_REQ_IRQ_INDEX,
			.count = 1,
		},
		.fd = eventfd(0, EFD_CLOEXEC),
	};

	VFIO_ASSERT_GE(irq.fd, 0);
	VFIO_ASSERT_EQ(ioctl(device->fd, VFIO_DEVICE_SET_IRQS, &irq), 0);
	return irq.fd;
}

static void once(char **argv, bool device_first)
{
	struct pollfd request = { .events = POLLIN };
	bool surprise = !strcmp(how, "surprise");
	struct vfio_pci_device *device;
	struct iommu *iommu;
	u32 value = 0, before, flags;
	pthread_t thread;
	int i, seconds;
	off_t offset;

	ksft_print_msg("%s, %s closed first\n", how, device_first ? "the device" : "the buffers");
	iommu = iommu_init(default_iommu_mode);
	device = vfio_pci_device_init(bdf, iommu);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	offset = device->bars[bar].info.offset;
	device_map = mmap_bar(device->fd, SIZE, offset, 0);
	for (i = 0; i < 2; i++) {
		flags = i ? VFIO_DMA_BUF_FLAG_ZONE_DEVICE : 0;
		buf_fds[i] = vfio_pci_dmabuf_export(device, bar, SIZE, SIZE, flags);
		buf_maps[i] = mmap_bar(buf_fds[i], SIZE, 0, 0);
		pattern_fill(buf_maps[i], SIZE, 1);
	}
	pattern_fill(device_map, SIZE, 2);
	before = *(u32 *)device_map;
	start_streams();
	request.fd = request_eventfd(device);

	taken = false;
	VFIO_ASSERT_EQ(pthread_create(&thread, NULL, take_away, argv), 0);
	check(poll(&request, 1, PATIENCE * 1000) == 1, "the user is asked to let go");

	if (surprise) {
		check(!try_read32(device_map, &value) && value != before,
		      "what is mapped reads as something else (%#x)", value);
	} else {
		check(pattern_check(device_map, SIZE, 2) == SIZE &&
		      pattern_check(buf_maps[1], SIZE, 1) == SIZE,
		      "the user still has the device");
	}
	check(is_there(), "it waits for its user");
	check(!__vfio_pci_dmabuf_revoke(device, buf_fds[0]), "a buffer can be revoked");
	check(try_touch(buf_maps[0], SIZE) == SIGBUS, "and is");

	close(request.fd);
	if (!device_first) {
		end_streams(surprise);
		munmap_bar(buf_maps[1], SIZE);
	}
	munmap_bar(device_map, SIZE);
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);

	for (seconds = 0; is_there() && seconds < PATIENCE; seconds++)
		sleep(1);
	check(!is_there(), "it goes when it is closed");
	check(!pthread_join(thread, NULL), "whoever took it is done");
	if (device_first) {
		check(are_all_refused(), "nobody moves data to it or from it any more");
		end_streams(surprise);
	}

	for (i = 0; i < 2; i++) {
		if (!i || device_first) {
			check(try_touch(buf_maps[i], SIZE) == SIGBUS, "%s: SIGBUS", kinds[i]);
			munmap_bar(buf_maps[i], SIZE);
		}
		check(mmap_errno(buf_fds[i], SIZE, 0, PROT_READ, MAP_SHARED) == ENODEV,
		      "%s: not mapped again", kinds[i]);
		close(buf_fds[i]);
	}
}

int main(int argc, char **argv)
{
	char path[PATH_MAX], *name;
	bool returns;

	if (argc < 4)
		ksft_exit_fail_msg("usage: unplug HOW BDF BAR [ARG...]\n");
	how = argv[1];
	bdf = argv[2];
	bar = atoi(argv[3]);
	returns = !strcmp(how, "remove") || !strcmp(how, "unbind");
	ksft_print_header();

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", bdf);
	name = realpath(path, NULL);
	if (!name)
		ksft_exit_fail_msg("no device %s\n", bdf);
	snprintf(bridge, sizeof(bridge), "%s", basename(dirname(name)));
	free(name);

	once(argv + 4, true);
	if (returns) {
		if (!strcmp(how, "remove"))
			put("1", "/sys/bus/pci/rescan");
		put(bdf, "/sys/bus/pci/drivers_probe");
		snprintf(path, sizeof(path), "vfio-bind %s", bdf);
		check(!system(path), "it is there again");
		once(argv + 4, false);
	}
	ksft_set_plan(ksft_test_num());
	ksft_finished();
}
