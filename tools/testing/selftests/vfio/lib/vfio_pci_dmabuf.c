// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/align.h>
#include <linux/compiler.h>
#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>

#include "kselftest.h"
#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

int __vfio_device_feature(int fd, u32 flags, void *data, size_t size)
{
	size_t argsz = sizeof(struct vfio_device_feature) + size;
	struct vfio_device_feature *feature;
	int ret;

	feature = calloc_assert(1, argsz);
	feature->argsz = argsz;
	feature->flags = flags;
	if (size)
		memcpy(feature->data, data, size);

	ret = ioctl(fd, VFIO_DEVICE_FEATURE, feature);
	if (ret < 0)
		ret = -errno;

	free(feature);
	return ret;
}

static int probe_feature(struct vfio_pci_device *device, u32 op, u16 feature)
{
	return __vfio_device_feature(device->fd,
				     VFIO_DEVICE_FEATURE_PROBE | op | feature,
				     NULL, 0);
}

bool vfio_device_has_feature(struct vfio_pci_device *device, u32 op, u16 feature)
{
	return probe_feature(device, op, feature) == 0;
}

bool env_is_set(const char *name)
{
	const char *value = getenv(name);

	return value && *value && strcmp(value, "0");
}

u64 milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);

	return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t ret;

	if (fd < 0)
		return false;
	ret = write(fd, text, strlen(text));
	close(fd);

	return ret == (ssize_t)strlen(text);
}

bool vfio_pci_dmabuf_exported(struct vfio_pci_device *device)
{
	bool missing = env_is_set("VFIO_SELFTESTS_NO_DMABUF");
	int ret;

	ret = probe_feature(device, VFIO_DEVICE_FEATURE_GET,
			    VFIO_DEVICE_FEATURE_DMA_BUF);
	VFIO_ASSERT_EQ(ret, missing ? -ENOTTY : 0, "probe of DMA_BUF: %d\n", ret);

	return !missing;
}

bool vfio_pci_dmabuf_supported(struct vfio_pci_device *device)
{
	bool exported = vfio_pci_dmabuf_exported(device);
	bool missing = !exported || env_is_set("VFIO_SELFTESTS_NO_DMABUF_REVOKE");
	int ret;

	ret = probe_feature(device, VFIO_DEVICE_FEATURE_SET,
			    VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE);
	VFIO_ASSERT_EQ(ret, missing ? -ENOTTY : 0,
		       "probe of DMA_BUF_REVOKE: %d\n", ret);

	return !missing;
}

int __vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 bar,
			     const struct vfio_region_dma_range *ranges,
			     u32 nr_ranges, u32 open_flags, u32 flags)
{
	size_t size = sizeof(struct vfio_device_feature_dma_buf) +
		      nr_ranges * sizeof(*ranges);
	struct vfio_device_feature_dma_buf *dma_buf;
	int ret;

	dma_buf = calloc_assert(1, size);
	dma_buf->region_index = bar;
	dma_buf->open_flags = open_flags;
	dma_buf->flags = flags;
	dma_buf->nr_ranges = nr_ranges;
	if (nr_ranges)
		memcpy(dma_buf->dma_ranges, ranges, nr_ranges * sizeof(*ranges));

	ret = __vfio_device_feature(device->fd, VFIO_DEVICE_FEATURE_GET |
				    VFIO_DEVICE_FEATURE_DMA_BUF, dma_buf, size);

	free(dma_buf);
	return ret;
}

int vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 bar, u64 offset,
			   u64 length, u32 flags)
{
	struct vfio_region_dma_range range = {
		.offset = offset,
		.length = length,
	};
	int fd;

	fd = __vfio_pci_dmabuf_export(device, bar, &range, 1,
				      O_RDWR | O_CLOEXEC, flags);
	VFIO_ASSERT_GE(fd, 0, "export of BAR %u at %#llx + %#llx, flags %#x: %d\n",
		       bar, (unsigned long long)offset,
		       (unsigned long long)length, flags, fd);

	return fd;
}

int __vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd)
{
	struct vfio_device_feature_dma_buf_revoke revoke = {
		.dmabuf_fd = dmabuf_fd,
	};

	return __vfio_device_feature(device->fd, VFIO_DEVICE_FEATURE_SET |
				     VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE,
				     &revoke, sizeof(revoke));
}

void vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd)
{
	int ret = __vfio_pci_dmabuf_revoke(device, dmabuf_fd);

	VFIO_ASSERT_EQ(ret, 0, "revoke of dma-buf fd %d: %d\n", dmabuf_fd, ret);
}

int __iommu_map_dmabuf(struct iommu *iommu, int dmabuf_fd, u64 start,
		       u64 length, iova_t iova)
{
	struct iommu_ioas_map_file args = {
		.size = sizeof(args),
		.flags = IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE |
			 IOMMU_IOAS_MAP_FIXED_IOVA,
		.ioas_id = iommu->ioas_id,
		.fd = dmabuf_fd,
		.start = start,
		.length = length,
		.iova = iova,
	};

	VFIO_ASSERT_GT(iommu->iommufd, 0);

	if (ioctl(iommu->iommufd, IOMMU_IOAS_MAP_FILE, &args))
		return -errno;

	return 0;
}

int __iommu_unmap_iova(struct iommu *iommu, iova_t iova, u64 length)
{
	struct iommu_ioas_unmap args = {
		.size = sizeof(args),
		.ioas_id = iommu->ioas_id,
		.iova = iova,
		.length = length,
	};

	VFIO_ASSERT_GT(iommu->iommufd, 0);

	if (ioctl(iommu->iommufd, IOMMU_IOAS_UNMAP, &args))
		return -errno;

	return 0;
}

void *mmap_bar(int fd, size_t size, off_t offset, size_t skew)
{
	size_t page = getpagesize();
	void *vaddr, *mapped;

	vaddr = mmap_reserve(ALIGN(size, page), SZ_2M, skew);
	mapped = mmap(vaddr, size, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_FIXED, fd, offset);
	VFIO_ASSERT_EQ((uintptr_t)mapped, (uintptr_t)vaddr,
		       "mmap(fd %d, %#zx at %#llx) failed\n", fd, size,
		       (unsigned long long)offset);

	return mapped;
}

void munmap_bar(void *vaddr, size_t size)
{
	VFIO_ASSERT_EQ(munmap(vaddr, size), 0);
}

int mmap_errno(int fd, size_t size, off_t offset, int prot, int flags)
{
	void *vaddr = mmap(NULL, size, prot, flags, fd, offset);

	if (vaddr == MAP_FAILED)
		return errno;

	munmap(vaddr, size);
	return 0;
}

/*
 * Where a signal of this thread returns to. The handler leaves the signal mask
 * alone (SA_NODEFER), so there is none to be saved and restored.
 */
static __thread sigjmp_buf fault_env;
static __thread sig_atomic_t fault_armed;

static void fault_handler(int sig)
{
	if (READ_ONCE(fault_armed)) {
		WRITE_ONCE(fault_armed, 0);
		siglongjmp(fault_env, sig);
	}

	/* Not ours: die of it when the access is repeated. */
	signal(sig, SIG_DFL);
}

/*
 * Before there are threads: a process that is forked while one of them installs it may
 * inherit the knowledge that it is there without the handler.
 */
static void __attribute__((constructor)) fault_handler_install(void)
{
	struct sigaction action = {
		.sa_handler = fault_handler,
		.sa_flags = SA_NODEFER,
	};

	sigemptyset(&action.sa_mask);
	VFIO_ASSERT_EQ(sigaction(SIGBUS, &action, NULL), 0);
	VFIO_ASSERT_EQ(sigaction(SIGSEGV, &action, NULL), 0);
}

#define TRY(_access) ({						\
	int __sig;						\
								\
	__sig = sigsetjmp(fault_env, 0);			\
	if (!__sig) {						\
		WRITE_ONCE(fault_armed, 1);			\
		barrier();					\
		_access;					\
		barrier();					\
		WRITE_ONCE(fault_armed, 0);			\
	}							\
	__sig;							\
})

int try_read32(const void *vaddr, u32 *value)
{
	return TRY(*value = READ_ONCE(*(const u32 *)vaddr));
}

int try_write32(void *vaddr, u32 value)
{
	return TRY(WRITE_ONCE(*(u32 *)vaddr, value));
}

int try_memcpy(void *dst, const void *src, size_t size)
{
	return TRY(memcpy(dst, src, size));
}

int try_touch(const void *vaddr, size_t size)
{
	size_t page = getpagesize();
	size_t offset;
	u32 value;
	int sig;

	for (offset = 0; offset < size; offset += page) {
		sig = try_read32(vaddr + offset, &value);
		if (sig)
			return sig;
	}

	return 0;
}

struct order_race {
	const void *vaddr;
	bool stop;
};

static void *order_race_reader(void *arg)
{
	struct order_race *race = arg;
	uintptr_t wrong = 0;
	size_t offset = 0;
	u32 value;

	while (!READ_ONCE(race->stop)) {
		offset = (offset + SZ_128K + getpagesize()) % SZ_2M;
		wrong += !!try_read32(race->vaddr + offset, &value);
		/* Not always all at once: the first fault settles it for the others. */
		usleep(offset / getpagesize() % 7 * 2000);
	}
	return (void *)wrong;
}

static void *order_race_chooser(void *arg)
{
	struct order_race *race = arg;

	while (!READ_ONCE(race->stop)) {
		VFIO_ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
		usleep(1000);
		VFIO_ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0), 0);
		usleep(1000);
	}
	return NULL;
}

unsigned int race_orders(int fd, off_t offset, unsigned int ms)
{
	void *vaddr = mmap_bar(fd, SZ_2M, offset, 0);
	struct order_race race = { .vaddr = vaddr };
	u64 end = milliseconds() + ms;
	unsigned int wrong = 0;
	pthread_t threads[4];
	void *result, *next;
	int i;

	for (i = 0; i < ARRAY_SIZE(threads); i++)
		VFIO_ASSERT_EQ(pthread_create(&threads[i], NULL,
					      i ? order_race_reader : order_race_chooser,
					      &race), 0);
	while (milliseconds() < end) {
		/* Into the place of the old one, whose page table goes with it. */
		next = mmap_bar(fd, SZ_2M, offset, 0);
		VFIO_ASSERT_EQ(madvise(next, SZ_2M, MADV_HUGEPAGE), 0);
		next = mremap(next, SZ_2M, SZ_2M, MREMAP_MAYMOVE | MREMAP_FIXED, vaddr);
		VFIO_ASSERT_EQ((uintptr_t)next, (uintptr_t)vaddr);
		usleep(10000);
	}
	WRITE_ONCE(race.stop, true);
	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		VFIO_ASSERT_EQ(pthread_join(threads[i], &result), 0);
		wrong += (uintptr_t)result;
	}
	munmap_bar(vaddr, SZ_2M);

	return wrong;
}

void start_child(struct child *child, int (*fn)(void *data, int arg), void *data)
{
	int request[2], response[2];
	int arg, ret;

	VFIO_ASSERT_EQ(pipe(request), 0);
	VFIO_ASSERT_EQ(pipe(response), 0);

	child->pid = fork();
	VFIO_ASSERT_GE(child->pid, 0);

	if (!child->pid) {
		close(request[1]);
		close(response[0]);

		while (read(request[0], &arg, sizeof(arg)) == sizeof(arg)) {
			ret = fn(data, arg);
			if (write(response[1], &ret, sizeof(ret)) != sizeof(ret))
				break;
		}

		_exit(0);
	}

	close(request[0]);
	close(response[1]);
	child->request = request[1];
	child->response = response[0];
}

int ask_child(struct child *child, int arg)
{
	int ret;

	VFIO_ASSERT_EQ(write(child->request, &arg, sizeof(arg)), sizeof(arg));
	VFIO_ASSERT_EQ(read(child->response, &ret, sizeof(ret)), sizeof(ret),
		       "child %d died\n", child->pid);

	return ret;
}

void stop_child(struct child *child)
{
	int status;

	close(child->request);
	close(child->response);
	VFIO_ASSERT_EQ(waitpid(child->pid, &status, 0), child->pid);
	VFIO_ASSERT_EQ(status, 0);
}

static void *job_thread(void *data)
{
	struct job *job = data;

	job->ret = job->fn(job->data);
	__atomic_store_n(&job->done, true, __ATOMIC_RELEASE);

	return NULL;
}

void start_guard(struct guard *guard, void (*end)(void))
{
	int fds[2];
	char none;

	VFIO_ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
	guard->pid = fork();
	VFIO_ASSERT_GE(guard->pid, 0);
	if (!guard->pid) {
		/* Whose whole process group is killed, if it takes too long. */
		setsid();
		close(fds[1]);
		while (read(fds[0], &none, 1) < 0)
			;
		end();
		_exit(0);
	}
	close(fds[0]);
	guard->alive = fds[1];
}

void stop_guard(struct guard *guard)
{
	close(guard->alive);
	VFIO_ASSERT_EQ(waitpid(guard->pid, NULL, 0), guard->pid);
}

void start_job(struct job *job, long (*fn)(void *data), void *data)
{
	job->fn = fn;
	job->data = data;
	job->done = false;
	VFIO_ASSERT_EQ(pthread_create(&job->thread, NULL, job_thread, job), 0);
}

bool job_is_done(struct job *job, unsigned int ms)
{
	while (!__atomic_load_n(&job->done, __ATOMIC_ACQUIRE)) {
		if (!ms--)
			return false;
		usleep(1000);
	}

	return true;
}

static void job_signal(int sig)
{
}

void interrupt_job(struct job *job)
{
	struct sigaction action = { .sa_handler = job_signal };

	/* No SA_RESTART: what is interrupted returns. */
	sigemptyset(&action.sa_mask);
	VFIO_ASSERT_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	VFIO_ASSERT_EQ(pthread_kill(job->thread, SIGUSR1), 0);
}

long finish_job(struct job *job)
{
	VFIO_ASSERT_EQ(pthread_join(job->thread, NULL), 0);

	return job->ret;
}

bool absent_memory_init(struct absent_memory *memory, size_t size)
{
	struct uffdio_register reg = {
		.range.len = size,
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_api api = { .api = UFFD_API };

	if (access("/proc/sys/vm/unprivileged_userfaultfd", F_OK))
		return false;

	memory->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	VFIO_ASSERT_GE(memory->uffd, 0);
	ioctl_assert(memory->uffd, UFFDIO_API, &api);

	memory->size = size;
	memory->vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(memory->vaddr, MAP_FAILED);
	reg.range.start = (uintptr_t)memory->vaddr;
	ioctl_assert(memory->uffd, UFFDIO_REGISTER, &reg);

	return true;
}

bool absent_memory_is_awaited(struct absent_memory *memory, unsigned int ms)
{
	struct pollfd pollfd = { .fd = memory->uffd, .events = POLLIN };
	struct uffd_msg msg;

	if (poll(&pollfd, 1, ms) != 1)
		return false;

	VFIO_ASSERT_EQ(read(memory->uffd, &msg, sizeof(msg)), sizeof(msg));
	VFIO_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);

	return true;
}

void absent_memory_supply(struct absent_memory *memory)
{
	struct uffdio_zeropage zero = {
		.range.start = (uintptr_t)memory->vaddr,
		.range.len = memory->size,
	};

	ioctl_assert(memory->uffd, UFFDIO_ZEROPAGE, &zero);
}

void absent_memory_cleanup(struct absent_memory *memory)
{
	/* Who still waits for it has waited in vain. */
	VFIO_ASSERT_EQ(close(memory->uffd), 0);
	munmap_bar(memory->vaddr, memory->size);
}

u64 minor_faults(void)
{
	struct rusage usage;

	VFIO_ASSERT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);

	return usage.ru_minflt;
}

u64 touch_faults(const void *vaddr, size_t size)
{
	u64 faults = 0;

	/* Have the code and the data of all this mapped before. */
	VFIO_ASSERT_EQ(try_touch(&faults, 1), 0);
	faults = minor_faults();

	VFIO_ASSERT_EQ(try_touch(vaddr, size), 0);

	return minor_faults() - faults;
}

static u64 pattern(u64 seed, size_t index)
{
	return (seed + index + 1) * 0x9e3779b97f4a7c15ULL;
}

void pattern_fill(void *vaddr, size_t size, u64 seed)
{
	u64 *p = vaddr;
	size_t i;

	for (i = 0; i < size / sizeof(*p); i++)
		WRITE_ONCE(p[i], pattern(seed, i));
}

size_t pattern_check(const void *vaddr, size_t size, u64 seed)
{
	const u64 *p = vaddr;
	size_t i;

	for (i = 0; i < size / sizeof(*p); i++) {
		if (READ_ONCE(p[i]) != pattern(seed, i))
			return i * sizeof(*p);
	}

	return size;
}

int vfio_pci_largest_bar(struct vfio_pci_device *device)
{
	u32 flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE |
		    VFIO_REGION_INFO_FLAG_MMAP;
	int largest = -1;
	u64 size = 0;
	int i;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_region_info *info = &device->bars[i].info;

		if ((info->flags & flags) != flags || info->size <= size)
			continue;

		largest = i;
		size = info->size;
	}

	return largest;
}

bool vfio_pci_bar_is_memory(struct vfio_pci_device *device, int bar)
{
	u32 *p = device->bars[bar].vaddr;
	u32 old, a, b;

	VFIO_ASSERT_NOT_NULL(p);

	old = READ_ONCE(*p);
	WRITE_ONCE(*p, ~old);
	a = READ_ONCE(*p);
	WRITE_ONCE(*p, old);
	b = READ_ONCE(*p);

	return a == ~old && b == old;
}

static bool suspend_memory_supported(struct vfio_pci_device *device)
{
	return true;
}

static void suspend_memory(struct vfio_pci_device *device)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
}

static void resume_memory(struct vfio_pci_device *device)
{
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
}

const struct vfio_pci_suspend vfio_pci_suspend_memory = {
	.name = "memory decoding",
	.supported = suspend_memory_supported,
	.suspend = suspend_memory,
	.resume = resume_memory,
};

u8 vfio_pci_find_cap(struct vfio_pci_device *device, u8 id)
{
	int ttl = 48;
	u8 pos;

	if (!(vfio_pci_config_readw(device, PCI_STATUS) & PCI_STATUS_CAP_LIST))
		return 0;

	pos = vfio_pci_config_readb(device, PCI_CAPABILITY_LIST) & ~3;
	while (pos && ttl--) {
		if (vfio_pci_config_readb(device, pos) == id)
			return pos;
		pos = vfio_pci_config_readb(device, pos + PCI_CAP_LIST_NEXT) & ~3;
	}

	return 0;
}

static void power_state_set(struct vfio_pci_device *device, u16 state)
{
	u8 pos = vfio_pci_find_cap(device, PCI_CAP_ID_PM);
	u16 ctrl;

	VFIO_ASSERT_NE(pos, 0);

	ctrl = vfio_pci_config_readw(device, pos + PCI_PM_CTRL);
	ctrl &= ~PCI_PM_CTRL_STATE_MASK;
	vfio_pci_config_writew(device, pos + PCI_PM_CTRL, ctrl | state);

	ctrl = vfio_pci_config_readw(device, pos + PCI_PM_CTRL);
	VFIO_ASSERT_EQ(ctrl & PCI_PM_CTRL_STATE_MASK, state);
}

static bool suspend_d3_supported(struct vfio_pci_device *device)
{
	return vfio_pci_find_cap(device, PCI_CAP_ID_PM);
}

static void suspend_d3(struct vfio_pci_device *device)
{
	power_state_set(device, 3);
}

static void resume_d3(struct vfio_pci_device *device)
{
	power_state_set(device, 0);
}

const struct vfio_pci_suspend vfio_pci_suspend_d3 = {
	.name = "D3",
	.supported = suspend_d3_supported,
	.suspend = suspend_d3,
	.resume = resume_d3,
};

static bool suspend_low_power_supported(struct vfio_pci_device *device)
{
	return vfio_device_has_feature(device, VFIO_DEVICE_FEATURE_SET,
				       VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY);
}

static void suspend_low_power(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_device_feature(device->fd, VFIO_DEVICE_FEATURE_SET |
					     VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY,
					     NULL, 0), 0);
}

static void resume_low_power(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_device_feature(device->fd, VFIO_DEVICE_FEATURE_SET |
					     VFIO_DEVICE_FEATURE_LOW_POWER_EXIT,
					     NULL, 0), 0);
}

const struct vfio_pci_suspend vfio_pci_suspend_low_power = {
	.name = "low power",
	.supported = suspend_low_power_supported,
	.suspend = suspend_low_power,
	.resume = resume_low_power,
};

static int wakeup_eventfd = -1;

static bool suspend_wakeup_supported(struct vfio_pci_device *device)
{
	return vfio_device_has_feature(device, VFIO_DEVICE_FEATURE_SET,
				       VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP);
}

static void suspend_wakeup(struct vfio_pci_device *device)
{
	struct vfio_device_low_power_entry_with_wakeup entry = {};

	wakeup_eventfd = eventfd(0, EFD_CLOEXEC);
	VFIO_ASSERT_GE(wakeup_eventfd, 0);
	entry.wakeup_eventfd = wakeup_eventfd;
	VFIO_ASSERT_EQ(__vfio_device_feature(device->fd, VFIO_DEVICE_FEATURE_SET |
					     VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
					     &entry, sizeof(entry)), 0);
}

/* Any use of the device but that of its BARs wakes it, once it is asleep. */
static void resume_wakeup(struct vfio_pci_device *device)
{
	struct pollfd event = { .fd = wakeup_eventfd, .events = POLLIN };
	int i, woken = 0;

	for (i = 0; i < 500 && !woken; i++) {
		vfio_pci_config_readw(device, PCI_COMMAND);
		woken = poll(&event, 1, 10);
	}
	VFIO_ASSERT_EQ(woken, 1);
	close(wakeup_eventfd);
}

const struct vfio_pci_suspend vfio_pci_suspend_wakeup = {
	.name = "low power with wakeup",
	.supported = suspend_wakeup_supported,
	.suspend = suspend_wakeup,
	.resume = resume_wakeup,
};

static bool can_hot_reset(struct vfio_pci_device *device)
{
	struct vfio_pci_hot_reset_info info = {
		.argsz = sizeof(info),
	};

	/* -ENOSPC tells that there is something to be told. */
	return !ioctl(device->fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info) ||
	       errno == ENOSPC;
}

bool vfio_pci_can_reset(struct vfio_pci_device *device)
{
	return (device->info.flags & VFIO_DEVICE_FLAGS_RESET) ||
	       can_hot_reset(device);
}

int vfio_pci_any_reset(struct vfio_pci_device *device)
{
	struct vfio_pci_hot_reset *reset;
	size_t argsz = sizeof(*reset);
	int retries = 50;
	int ret;

	if (device->info.flags & VFIO_DEVICE_FLAGS_RESET) {
		/* -EAGAIN: somebody else holds the device's lock. */
		do {
			ret = __vfio_pci_device_reset(device);
			if (ret == -EAGAIN)
				usleep(10000);
		} while (ret == -EAGAIN && retries--);

		return ret;
	}

	if (device->group_fd)
		argsz += sizeof(__s32);

	reset = calloc_assert(1, argsz);
	reset->argsz = argsz;
	if (device->group_fd) {
		reset->count = 1;
		reset->group_fds[0] = device->group_fd;
	}

	ret = ioctl(device->fd, VFIO_DEVICE_PCI_HOT_RESET, reset) ? -errno : 0;
	free(reset);

	return ret;
}

int vfio_pci_sysfs_reset(struct vfio_pci_device *device)
{
	char path[128];
	int fd, ret;

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/reset",
			device->bdf);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;

	ret = write(fd, "1", 1) == 1 ? 0 : -errno;
	close(fd);

	return ret;
}

static bool read_thp_setting(const char *name, char *value, size_t size)
{
	char path[128];
	ssize_t len;
	int fd;

	snprintf_assert(path, sizeof(path),
			"/sys/kernel/mm/transparent_hugepage/%s", name);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return false;

	len = read(fd, value, size - 1);
	VFIO_ASSERT_GT(len, 0);
	value[len] = '\0';
	close(fd);

	return true;
}

bool huge_faults_enabled(void)
{
	char value[64];

	/* No 32-bit architecture has ARCH_SUPPORTS_HUGE_PFNMAP. */
	if (sizeof(void *) < 8)
		return false;

	/* With pages larger than 4 KiB a PMD is too large for most BARs. */
	if (!read_thp_setting("hpage_pmd_size", value, sizeof(value)) ||
	    strtoul(value, NULL, 0) != SZ_2M)
		return false;

	return read_thp_setting("enabled", value, sizeof(value)) &&
	       !strstr(value, "[never]");
}

bool vfio_pci_has_group(const char *bdf)
{
	const char *path = vfio_pci_get_group_path(bdf);
	bool found = !access(path, F_OK);

	free((void *)path);

	return found;
}

const char *vfio_pci_group_iommu_mode(const char *bdf)
{
	return sysfs_iommu_group_is_noiommu(bdf) ? MODE_VFIO_NOIOMMU :
						   MODE_IOMMUFD_COMPAT_TYPE1V2;
}

int vfio_pci_group_reopen(struct vfio_pci_device *device)
{
	struct vfio_pci_device again = { .group_fd = device->group_fd };

	VFIO_ASSERT_GT(device->group_fd, 0);
	__vfio_pci_group_get_device_fd(&again, device->bdf, NULL);
	VFIO_ASSERT_GE(again.fd, 0);

	return again.fd;
}

void vfio_pci_group_close_one(struct vfio_pci_device *device, int again,
			      bool second)
{
	if (!second) {
		vfio_pci_device_close(device);
		VFIO_ASSERT_EQ(dup2(again, device->fd), device->fd);
	}
	VFIO_ASSERT_EQ(close(again), 0);
}

void vfio_pci_device_close(struct vfio_pci_device *device)
{
	size_t page = getpagesize();
	int fd, i;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &device->bars[i];

		if (!bar->vaddr)
			continue;

		munmap_bar(bar->vaddr, ALIGN(bar->info.size, page));
		bar->vaddr = NULL;
	}

	/* The cleanup closes an fd of this number. */
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(dup2(fd, device->fd), device->fd);
	VFIO_ASSERT_EQ(close(fd), 0);
}
