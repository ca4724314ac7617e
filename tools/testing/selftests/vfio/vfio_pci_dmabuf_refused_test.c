// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who must not get hold of the pages of a BAR that was exported with pages
 * (VFIO_DMA_BUF_FLAG_ZONE_DEVICE): all but an I/O that asked for such pages. Each
 * of them is told so by an errno, and leaves no reference behind that a revoke
 * would have to wait for.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/kvm.h>
#include <linux/mman.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/stddef.h>
#include <linux/vfio.h>

/* Needs the definitions of linux/stddef.h. */
#include <linux/io_uring.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "../../../../mm/gup_test.h"
#include "kselftest_harness.h"

/* Of linux/mm_types.h, for gup_test. */
#define FOLL_WRITE 1

#define ZONE_DEVICE VFIO_DMA_BUF_FLAG_ZONE_DEVICE

static const char *device_bdf;

struct refused_test {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int bar;
	int fd;
	void *vaddr;
	size_t page;
};

#define REFUSED_SIZE SZ_4M

static const char *refused_test_setup(struct refused_test *test, const char *mode)
{
	test->fd = -1;
	test->page = getpagesize();
	test->iommu = iommu_init(mode);
	test->device = vfio_pci_device_init(device_bdf, test->iommu);
	vfio_pci_cmd_set(test->device, PCI_COMMAND_MEMORY);

	if (!vfio_pci_dmabuf_supported(test->device))
		return "the kernel cannot revoke dma-bufs, as announced";
	test->bar = vfio_pci_largest_bar(test->device);
	if (test->bar < 0 || test->device->bars[test->bar].info.size < REFUSED_SIZE)
		return "there is no mappable BAR of 4 MiB";

	test->fd = vfio_pci_dmabuf_export(test->device, test->bar, 0, REFUSED_SIZE, ZONE_DEVICE);
	test->vaddr = mmap_bar(test->fd, REFUSED_SIZE, 0, 0);
	VFIO_ASSERT_EQ(try_touch(test->vaddr, REFUSED_SIZE), 0);

	return NULL;
}

/* Hangs if somebody has got hold of a page. */
static void refused_test_teardown(struct refused_test *test)
{
	u32 value;

	if (test->fd >= 0) {
		vfio_pci_dmabuf_revoke(test->device, test->fd);
		VFIO_ASSERT_EQ(try_read32(test->vaddr, &value), SIGBUS);
		munmap_bar(test->vaddr, REFUSED_SIZE);
		VFIO_ASSERT_EQ(close(test->fd), 0);
	}
	vfio_pci_device_cleanup(test->device);
	iommu_cleanup(test->iommu);
}

FIXTURE(refused) {
	struct refused_test t;
};

FIXTURE_SETUP(refused)
{
	const char *reason = refused_test_setup(&self->t, default_iommu_mode);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(refused)
{
	refused_test_teardown(&self->t);
}

TEST_F(refused, process_vm)
{
	struct iovec local, remote;
	char buf[64];

	local = (struct iovec) { buf, sizeof(buf) };
	remote = (struct iovec) { self->t.vaddr, sizeof(buf) };
	EXPECT_EQ(-1, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_EQ(EFAULT, errno);
}

TEST_F(refused, proc_mem)
{
	off_t at = (uintptr_t)self->t.vaddr;
	char buf[64];
	int mem;

	mem = open("/proc/self/mem", O_RDWR);
	ASSERT_GE(mem, 0);
	EXPECT_EQ(-1, pread(mem, buf, sizeof(buf), at));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(-1, pwrite(mem, buf, sizeof(buf), at));
	EXPECT_EQ(EIO, errno);
	close(mem);
}

TEST_F(refused, ptrace)
{
	void *vaddr = self->t.vaddr;
	pid_t child;

	child = fork();
	ASSERT_GE(child, 0);
	if (!child) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	ASSERT_EQ(child, waitpid(child, NULL, WUNTRACED));
	errno = 0;
	EXPECT_EQ(-1, ptrace(PTRACE_PEEKDATA, child, vaddr, NULL));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(-1, ptrace(PTRACE_POKEDATA, child, vaddr, NULL));
	EXPECT_EQ(EIO, errno);
	kill(child, SIGKILL);
	ASSERT_EQ(child, waitpid(child, NULL, 0));
}

TEST_F(refused, vmsplice)
{
	struct iovec iov = { self->t.vaddr, self->t.page };
	int fds[2];

	ASSERT_EQ(0, pipe(fds));
	EXPECT_EQ(-1, vmsplice(fds[1], &iov, 1, SPLICE_F_NONBLOCK));
	EXPECT_EQ(EREMOTEIO, errno);
	EXPECT_EQ(-1, vmsplice(fds[1], &iov, 1, SPLICE_F_NONBLOCK | SPLICE_F_GIFT));
	EXPECT_EQ(EREMOTEIO, errno);
	close(fds[0]);
	close(fds[1]);
}

TEST_F(refused, io_uring_buffers)
{
	struct iovec iov = { self->t.vaddr, SZ_64K };
	struct io_uring_params params = {};
	int ring;

	if (access("/proc/sys/kernel/io_uring_disabled", F_OK))
		SKIP(return, "no io_uring");
	ring = syscall(__NR_io_uring_setup, 4, &params);
	ASSERT_GE(ring, 0);
	EXPECT_EQ(-1, syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS, &iov, 1));
	EXPECT_EQ(EREMOTEIO, errno);
	close(ring);
}

/* Neither harmed nor obeyed. */
TEST_F(refused, mlock)
{
	EXPECT_EQ(-1, mlock(self->t.vaddr, SZ_2M));
	EXPECT_EQ(EREMOTEIO, errno);
	munlock(self->t.vaddr, SZ_2M);
}

/* They fault as if they were to use the pages. */
TEST_F(refused, madvise_populate)
{
	EXPECT_EQ(-1, madvise(self->t.vaddr, SZ_2M, MADV_POPULATE_READ));
	EXPECT_EQ(ENOMEM, errno);
	EXPECT_EQ(-1, madvise(self->t.vaddr, SZ_2M, MADV_POPULATE_WRITE));
	EXPECT_EQ(ENOMEM, errno);
}

/* IOMMUFD pins what is mapped for DMA for as long as it is mapped; so does type1. */
TEST_F(refused, iommu)
{
	struct dma_region region = {
		.vaddr = self->t.vaddr, .iova = SZ_1G, .size = SZ_2M,
	};

	if (!strcmp(self->t.iommu->mode->name, MODE_VFIO_NOIOMMU))
		SKIP(return, "no IOMMU");
	EXPECT_EQ(-EREMOTEIO, __iommu_map(self->t.iommu, &region));
}

TEST(refused_type1)
{
	struct dma_region region = { .iova = SZ_1G, .size = SZ_2M };
	struct refused_test test;
	const char *reason;

	if (!vfio_pci_has_group(device_bdf))
		SKIP(return, "%s has no group", device_bdf);
	if (!strcmp(vfio_pci_group_iommu_mode(device_bdf), MODE_VFIO_NOIOMMU))
		SKIP(return, "no IOMMU");

	reason = refused_test_setup(&test, MODE_VFIO_TYPE1V2_IOMMU);
	if (!reason) {
		region.vaddr = test.vaddr;
		EXPECT_EQ(-EREMOTEIO, __iommu_map(test.iommu, &region));
	}
	refused_test_teardown(&test);
	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

/*
 * Type1 maps a BAR without struct pages for DMA, while some come and go that it has
 * nothing to do with, and must not look at.
 */
struct exporter {
	struct refused_test *t;
	u64 rounds;
	bool stop;
};

static void *export_and_close(void *data)
{
	struct exporter *exporter = data;
	struct vfio_pci_device *device = exporter->t->device;
	int bar = exporter->t->bar;
	u64 size = device->bars[bar].info.size;

	while (!READ_ONCE(exporter->stop)) {
		VFIO_ASSERT_EQ(close(vfio_pci_dmabuf_export(device, bar, 0, size, ZONE_DEVICE)), 0);
		WRITE_ONCE(exporter->rounds, exporter->rounds + 1);
	}

	return NULL;
}

TEST(not_refused_type1)
{
	struct dma_region region = { .iova = SZ_1G };
	struct exporter exporter = {};
	struct refused_test test;
	const char *reason;
	pthread_t thread;
	u64 unmapped;

	if (!vfio_pci_has_group(device_bdf))
		SKIP(return, "%s has no group", device_bdf);
	if (!strcmp(vfio_pci_group_iommu_mode(device_bdf), MODE_VFIO_NOIOMMU))
		SKIP(return, "no IOMMU");

	reason = refused_test_setup(&test, MODE_VFIO_TYPE1V2_IOMMU);
	if (reason) {
		refused_test_teardown(&test);
		SKIP(return, "%s: %s", device_bdf, reason);
	}
	munmap_bar(test.vaddr, REFUSED_SIZE);
	ASSERT_EQ(0, close(test.fd));
	test.fd = -1;

	region.vaddr = test.device->bars[test.bar].vaddr;
	region.size = test.device->bars[test.bar].info.size;
	exporter.t = &test;
	ASSERT_EQ(0, pthread_create(&thread, NULL, export_and_close, &exporter));
	while (READ_ONCE(exporter.rounds) < 20) {
		ASSERT_EQ(0, __iommu_map(test.iommu, &region));
		ASSERT_EQ(0, __iommu_unmap(test.iommu, &region, &unmapped));
		ASSERT_EQ(region.size, unmapped);
	}
	WRITE_ONCE(exporter.stop, true);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	refused_test_teardown(&test);
}

/* All kinds of pins by those who have not asked for such pages. */
TEST_F(refused, pins)
{
	const unsigned int pins[] = {
		GUP_FAST_BENCHMARK, PIN_FAST_BENCHMARK, PIN_LONGTERM_BENCHMARK,
		GUP_BASIC_TEST, PIN_BASIC_TEST,
	};
	struct pin_longterm_test longterm = {
		.addr = (uintptr_t)self->t.vaddr, .size = SZ_64K,
	};
	int gup, i;

	gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	if (gup < 0)
		SKIP(return, "no /sys/kernel/debug/gup_test: CONFIG_GUP_TEST is not set");

	for (i = 0; i < ARRAY_SIZE(pins); i++) {
		struct gup_test test = {
			.addr = longterm.addr,
			.size = SZ_64K,
			.nr_pages_per_call = 16,
			.gup_flags = FOLL_WRITE,
		};

		/* It tells by the size how much it has got. */
		ioctl(gup, pins[i], &test);
		EXPECT_EQ(0, test.size) {
			TH_LOG("GUP test %d", i);
		}
	}

	for (i = 0; i < 4; i++) {
		longterm.flags = i;
		EXPECT_EQ(-1, ioctl(gup, PIN_LONGTERM_TEST_START, &longterm));
		EXPECT_EQ(EREMOTEIO, errno);
	}
	close(gup);
}

/* The CPU copies here, which is no more than what user space can do. */
TEST_F(refused, not_a_copy)
{
	int file = memfd_create("copy", 0);

	ASSERT_GE(file, 0);
	EXPECT_EQ(self->t.page, write(file, self->t.vaddr, self->t.page));
	close(file);
}

#ifdef __x86_64__
/* A virtual machine with a page of code and a BAR, and one processor in real mode. */
struct machine {
	int vm;
	int cpu;
	struct kvm_run *run;
	size_t run_size;
	void *code;
};

#define MACHINE_CODE 0x1000
#define MACHINE_BAR 0x10000

/* Returns why there is none. */
static const char *machine_init(struct machine *machine, void *vaddr)
{
	/* mov (0), %ax; hlt */
	const u8 code[] = { 0xa1, 0x00, 0x00, 0xf4 };
	struct kvm_userspace_memory_region slot = {
		.guest_phys_addr = MACHINE_CODE, .memory_size = SZ_4K,
	};
	struct kvm_regs regs = { .rip = MACHINE_CODE, .rflags = 2 };
	struct kvm_sregs sregs;
	int kvm;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return "no /dev/kvm";
	machine->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	VFIO_ASSERT_GE(machine->vm, 0);
	machine->run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	close(kvm);

	machine->code = mmap(NULL, SZ_4K, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(machine->code, MAP_FAILED);
	memcpy(machine->code, code, sizeof(code));
	slot.userspace_addr = (uintptr_t)machine->code;
	ioctl_assert(machine->vm, KVM_SET_USER_MEMORY_REGION, &slot);

	slot = (struct kvm_userspace_memory_region) {
		.slot = 1,
		.guest_phys_addr = MACHINE_BAR,
		.memory_size = SZ_64K,
		.userspace_addr = (uintptr_t)vaddr,
	};
	ioctl_assert(machine->vm, KVM_SET_USER_MEMORY_REGION, &slot);

	machine->cpu = ioctl(machine->vm, KVM_CREATE_VCPU, 0);
	VFIO_ASSERT_GE(machine->cpu, 0);
	machine->run = mmap(NULL, machine->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			    machine->cpu, 0);
	VFIO_ASSERT_NE(machine->run, MAP_FAILED);

	ioctl_assert(machine->cpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.ds.base = MACHINE_BAR;
	sregs.ds.selector = MACHINE_BAR >> 4;
	ioctl_assert(machine->cpu, KVM_SET_SREGS, &sregs);
	ioctl_assert(machine->cpu, KVM_SET_REGS, &regs);

	return NULL;
}

/* What its processor reads from the beginning of the BAR, or -errno. */
static int machine_read(struct machine *machine)
{
	struct kvm_regs regs;

	ioctl_assert(machine->cpu, KVM_GET_REGS, &regs);
	regs.rip = MACHINE_CODE;
	ioctl_assert(machine->cpu, KVM_SET_REGS, &regs);
	if (ioctl(machine->cpu, KVM_RUN, NULL))
		return -errno;
	VFIO_ASSERT_EQ(machine->run->exit_reason, KVM_EXIT_HLT);
	ioctl_assert(machine->cpu, KVM_GET_REGS, &regs);

	return regs.rax & 0xffff;
}

static void machine_cleanup(struct machine *machine)
{
	munmap_bar(machine->run, machine->run_size);
	VFIO_ASSERT_EQ(close(machine->cpu), 0);
	VFIO_ASSERT_EQ(close(machine->vm), 0);
	munmap_bar(machine->code, SZ_4K);
}

TEST_F(refused, kvm)
{
	struct refused_test *t = &self->t;
	struct machine machine;
	const char *reason;

	reason = machine_init(&machine, t->vaddr);
	if (reason)
		SKIP(return, "%s", reason);
	EXPECT_EQ(-EFAULT, machine_read(&machine));
	machine_cleanup(&machine);
}

/* It is for a plain buffer that KVM is there, until that is taken away. */
TEST_F(refused, not_kvm_of_a_plain_buffer)
{
	struct refused_test *t = &self->t;
	struct machine machine;
	const char *reason;
	void *vaddr;
	int fd;

	if (!vfio_pci_bar_is_memory(t->device, t->bar))
		SKIP(return, "BAR %d does not behave like memory", t->bar);

	fd = vfio_pci_dmabuf_export(t->device, t->bar, 0, SZ_2M, 0);
	vaddr = mmap_bar(fd, SZ_2M, 0, 0);
	reason = machine_init(&machine, vaddr);
	if (reason)
		SKIP(return, "%s", reason);

	WRITE_ONCE(*(u32 *)vaddr, 0x1234);
	EXPECT_EQ(0x1234, machine_read(&machine));
	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-EFAULT, machine_read(&machine));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(0x1234, machine_read(&machine));
	vfio_pci_dmabuf_revoke(t->device, fd);
	EXPECT_EQ(-EFAULT, machine_read(&machine));

	machine_cleanup(&machine);
	munmap_bar(vaddr, SZ_2M);
	ASSERT_EQ(0, close(fd));
}

/*
 * KVM writes the time to where the guest wants it, to a BAR as well, and keeps a
 * mapping of it. That must not be one which goes away with somebody's pages.
 */
#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01

TEST_F(refused, not_the_time_of_kvm)
{
	struct {
		struct kvm_msrs msrs;
		struct kvm_msr_entry time;
	} set = {
		.msrs = { .nmsrs = 1 },
		.time = { .index = MSR_KVM_SYSTEM_TIME_NEW, .data = MACHINE_BAR | 1 },
	};
	struct kvm_clock_data clock = {};
	struct refused_test *t = &self->t;
	struct machine machine;
	const char *reason;
	u32 version;
	void *vaddr;
	int i;

	/* The BAR as such, and for a part of the time pages of the same memory. */
	vaddr = t->device->bars[t->bar].vaddr;
	if (!vfio_pci_bar_is_memory(t->device, t->bar))
		SKIP(return, "BAR %d does not behave like memory", t->bar);
	reason = machine_init(&machine, vaddr);
	if (reason)
		SKIP(return, "%s", reason);
	ASSERT_EQ(1, ioctl(machine.cpu, KVM_SET_MSRS, &set));

	for (i = 0; i < 3; i++) {
		version = READ_ONCE(*(u32 *)vaddr);
		ASSERT_GE(machine_read(&machine), 0);
		ASSERT_EQ(0, ioctl(machine.vm, KVM_SET_CLOCK, &clock));
		ASSERT_GE(machine_read(&machine), 0);
		ASSERT_NE(version, READ_ONCE(*(u32 *)vaddr));

		if (i)
			continue;
		munmap_bar(t->vaddr, REFUSED_SIZE);
		ASSERT_EQ(0, close(t->fd));
		t->fd = -1;
	}
	machine_cleanup(&machine);
}
#endif /* __x86_64__ */

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);

	return test_harness_run(argc, argv);
}
