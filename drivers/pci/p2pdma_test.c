// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of PCI peer-to-peer DMA support.
 *
 * They bring the hardware along: a host bridge whose config space is memory,
 * ports and endpoints below it, and BARs in a window where there is nothing.
 * The bus addresses in that window differ from the physical ones.
 *
 *	00.0 root port ---- 00.0 switch --+-- 00.0 port ---- 00.0 six (6 BARs)
 *	(bus 0)		    (bus 1)	  |   (bus 2)	     (bus 3)
 *					  +-- 01.0 port ---- 00.0 two
 *							     (bus 4)
 *	01.0 root port ---- 00.0 far
 *			    (bus 5)
 *
 * Nothing may touch the memory: the tests make page table entries and look at
 * struct pages, they do not read or write.
 */
#include <kunit/test.h>
#include <linux/anon_inodes.h>
#include <linux/completion.h>
#include <linux/cpufeature.h>
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/error-injection.h>
#include <linux/file.h>
#include <linux/ioport.h>
#include <linux/kernfs.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/pci.h>
#include <linux/pci-p2pdma.h>
#include <linux/random.h>
#include <linux/scatterlist.h>
#include <linux/sizes.h>
#include <linux/sysfs.h>

#include "p2pdma.h"

#define TEST_DOMAIN	0x7e57
#define TEST_VENDOR	PCI_VENDOR_ID_GOOGLE	/* any of theirs may do P2P */
#define TEST_DEVICE	0x7e57
#define TEST_BUS_ADDR	SZ_2G
#define TEST_WINDOW	SZ_128M

#define PCIE_CAP	0x40
#define ACS_CAP		0x100

/* -- config space ------------------------------------------------------- */

enum {
	ROOT_PORT, SWITCH_UP, PORT_SIX, PORT_TWO, SIX, TWO, ROOT_PORT_FAR, FAR,
	NR_DEVS
};

struct test_dev {
	u8 bus, devfn;
	u8 type;		/* PCI_EXP_TYPE_* */
	u8 secondary, subordinate;
	u32 bar_size[PCI_STD_NUM_BARS];
	u32 bar_flags[PCI_STD_NUM_BARS];

	u32 config[PCI_CFG_SPACE_EXP_SIZE / 4];
	u32 writable[PCI_CFG_SPACE_EXP_SIZE / 4];
};

#define BAR64	(PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH)

static const struct test_dev test_devs[NR_DEVS] = {
	[ROOT_PORT] = { 0, PCI_DEVFN(0, 0), PCI_EXP_TYPE_ROOT_PORT, 1, 4 },
	[SWITCH_UP] = { 1, PCI_DEVFN(0, 0), PCI_EXP_TYPE_UPSTREAM, 2, 4 },
	[PORT_SIX] = { 2, PCI_DEVFN(0, 0), PCI_EXP_TYPE_DOWNSTREAM, 3, 3 },
	[PORT_TWO] = { 2, PCI_DEVFN(1, 0), PCI_EXP_TYPE_DOWNSTREAM, 4, 4 },
	[SIX] = { 3, PCI_DEVFN(0, 0), PCI_EXP_TYPE_ENDPOINT,
		  .bar_size = { SZ_8M, SZ_2M, SZ_2M, SZ_2M, SZ_2M, SZ_4M } },
	[TWO] = { 4, PCI_DEVFN(0, 0), PCI_EXP_TYPE_ENDPOINT,
		  .bar_size = { SZ_16M, 0, SZ_2M, SZ_256 },
		  .bar_flags = { BAR64, 0, 0, PCI_BASE_ADDRESS_SPACE_IO } },
	[ROOT_PORT_FAR] = { 0, PCI_DEVFN(1, 0), PCI_EXP_TYPE_ROOT_PORT, 5, 5 },
	[FAR] = { 5, PCI_DEVFN(0, 0), PCI_EXP_TYPE_ENDPOINT,
		  .bar_size = { SZ_2M } },
};

struct test_host {
	struct pci_sysdata sysdata;	/* first: found through bus->sysdata */
	struct test_dev devs[NR_DEVS];
	struct resource *window;
	struct resource busn;
	struct pci_bus *bus;
	struct pci_dev *pdev[NR_DEVS];
};

static struct test_dev *test_dev(struct pci_bus *bus, unsigned int devfn)
{
	struct test_host *host = container_of(to_pci_sysdata(bus),
					      struct test_host, sysdata);
	int i;

	for (i = 0; i < NR_DEVS; i++)
		if (host->devs[i].bus == bus->number &&
		    host->devs[i].devfn == devfn)
			return &host->devs[i];
	return NULL;
}

static int test_config_read(struct pci_bus *bus, unsigned int devfn, int where,
			    int size, u32 *val)
{
	struct test_dev *dev = test_dev(bus, devfn);

	if (!dev) {
		PCI_SET_ERROR_RESPONSE(val);
		return PCIBIOS_DEVICE_NOT_FOUND;
	}

	*val = dev->config[where / 4] >> (where % 4 * 8);
	if (size < 4)
		*val &= GENMASK(size * 8 - 1, 0);
	return PCIBIOS_SUCCESSFUL;
}

static int test_config_write(struct pci_bus *bus, unsigned int devfn, int where,
			     int size, u32 val)
{
	struct test_dev *dev = test_dev(bus, devfn);
	u32 mask;

	if (!dev)
		return PCIBIOS_DEVICE_NOT_FOUND;

	mask = GENMASK(size * 8 - 1, 0) << (where % 4 * 8);
	mask &= dev->writable[where / 4];
	val <<= where % 4 * 8;
	dev->config[where / 4] &= ~mask;
	dev->config[where / 4] |= val & mask;
	return PCIBIOS_SUCCESSFUL;
}

static struct pci_ops test_config_ops = {
	.read = test_config_read,
	.write = test_config_write,
};

static void test_dev_init(struct test_dev *dev, u16 vendor)
{
	bool bridge = dev->secondary;
	int i;

	dev->config[PCI_VENDOR_ID / 4] = vendor | TEST_DEVICE << 16;
	dev->config[PCI_COMMAND / 4] = PCI_STATUS_CAP_LIST << 16;
	dev->writable[PCI_COMMAND / 4] = PCI_COMMAND_IO | PCI_COMMAND_MEMORY |
		PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE;
	dev->config[PCI_CLASS_REVISION / 4] = bridge ?
		PCI_CLASS_BRIDGE_PCI_NORMAL << 8 : PCI_CLASS_MEMORY_OTHER << 16;
	dev->config[PCI_CACHE_LINE_SIZE / 4] = bridge << 16;
	dev->config[PCI_CAPABILITY_LIST / 4] = PCIE_CAP;
	dev->config[PCIE_CAP / 4] = PCI_CAP_ID_EXP |
				    (dev->type << 4 | 2) << 16;

	if (!bridge) {
		for (i = 0; i < PCI_STD_NUM_BARS; i++) {
			if (!dev->bar_size[i])
				continue;
			dev->config[PCI_BASE_ADDRESS_0 / 4 + i] =
				dev->bar_flags[i];
			dev->writable[PCI_BASE_ADDRESS_0 / 4 + i] =
				-dev->bar_size[i];
			if (dev->bar_flags[i] & PCI_BASE_ADDRESS_MEM_TYPE_64)
				dev->writable[PCI_BASE_ADDRESS_0 / 4 + i + 1] =
					~0;
		}
		return;
	}

	dev->config[PCI_PRIMARY_BUS / 4] = dev->bus | dev->secondary << 8 |
					   dev->subordinate << 16;
	dev->writable[PCI_PRIMARY_BUS / 4] = 0xffffff;
	dev->writable[PCI_MEMORY_BASE / 4] = 0xfff0fff0;
	dev->config[PCI_PREF_MEMORY_BASE / 4] = PCI_PREF_RANGE_TYPE_64 |
						PCI_PREF_RANGE_TYPE_64 << 16;
	dev->writable[PCI_PREF_MEMORY_BASE / 4] = 0xfff0fff0;
	dev->writable[PCI_PREF_BASE_UPPER32 / 4] = ~0;
	dev->writable[PCI_PREF_LIMIT_UPPER32 / 4] = ~0;
	/* Nothing forwarded yet */
	dev->config[PCI_MEMORY_BASE / 4] = 0x0000fff0;
	dev->config[PCI_PREF_MEMORY_BASE / 4] |= 0x0000fff0;

	if (dev->type != PCI_EXP_TYPE_UPSTREAM) {
		u32 ctrl = PCI_ACS_SV | PCI_ACS_RR | PCI_ACS_CR | PCI_ACS_UF;

		dev->config[ACS_CAP / 4] = PCI_EXT_CAP_ID_ACS | 1 << 16;
		dev->config[ACS_CAP / 4 + 1] = ctrl;
		dev->writable[ACS_CAP / 4 + 1] = ctrl << 16;
	}
}

/* -- the hierarchy ------------------------------------------------------ */

static void test_host_remove(struct test_host *host)
{
	int i;

	if (host->bus) {
		pci_lock_rescan_remove();
		for (i = 0; i < NR_DEVS; i++)
			pci_dev_put(host->pdev[i]);
		pci_stop_root_bus(host->bus);
		pci_remove_root_bus(host->bus);
		pci_unlock_rescan_remove();
	}
	if (host->window)
		release_mem_region(host->window->start,
				   resource_size(host->window));
	kvfree(host);
}

static struct test_host *test_host_add(int domain, u16 vendor)
{
	struct test_host *host;
	struct pci_dev *pdev;
	LIST_HEAD(resources);
	int i;

	host = kvzalloc_obj(*host);
	if (!host)
		return NULL;

	memcpy(host->devs, test_devs, sizeof(test_devs));
	for (i = 0; i < NR_DEVS; i++)
		test_dev_init(&host->devs[i], vendor);

	host->window = request_free_mem_region(&iomem_resource, TEST_WINDOW,
					       "p2pdma test");
	if (IS_ERR(host->window)) {
		host->window = NULL;
		goto err;
	}

	host->sysdata.domain = domain;
	host->sysdata.node = NUMA_NO_NODE;
	host->busn = DEFINE_RES_NAMED(0, 16, "p2pdma test", IORESOURCE_BUS);
	pci_add_resource(&resources, &host->busn);
	pci_add_resource_offset(&resources, host->window,
				host->window->start - TEST_BUS_ADDR);

	pci_lock_rescan_remove();
	host->bus = pci_create_root_bus(NULL, 0, &test_config_ops,
					&host->sysdata, &resources);
	if (!host->bus) {
		pci_unlock_rescan_remove();
		pci_free_resource_list(&resources);
		goto err;
	}
	pci_scan_child_bus(host->bus);
	pci_assign_unassigned_bus_resources(host->bus);
	for (i = 0; i < NR_DEVS; i++) {
		pdev = pci_get_domain_bus_and_slot(domain, host->devs[i].bus,
						   host->devs[i].devfn);
		host->pdev[i] = pdev;
		/* The ports need no driver */
		if (pdev && !host->devs[i].secondary)
			pci_bus_add_device(pdev);
	}
	pci_unlock_rescan_remove();
	for (i = 0; i < NR_DEVS; i++)
		if (!host->pdev[i])
			goto err;
	return host;

err:
	test_host_remove(host);
	return NULL;
}

static int test_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return 0;
}

static const struct pci_device_id test_ids[] = {
	{ PCI_DEVICE(TEST_VENDOR, TEST_DEVICE) },
	{ }
};

static struct pci_driver test_driver = {
	.name = "p2pdma-test",
	.id_table = test_ids,
	.probe = test_probe,
};

static struct test_host *host;

static int p2pdma_suite_init(struct kunit_suite *suite)
{
	int ret;

	ret = pci_register_driver(&test_driver);
	if (ret)
		return ret;

	host = test_host_add(TEST_DOMAIN, TEST_VENDOR);
	if (!host) {
		pci_unregister_driver(&test_driver);
		return -ENODEV;
	}
	return 0;
}

static void p2pdma_suite_exit(struct kunit_suite *suite)
{
	if (!host)
		return;
	test_host_remove(host);
	pci_unregister_driver(&test_driver);
	host = NULL;
}

static void unbind(struct pci_dev *pdev)
{
	device_release_driver(&pdev->dev);
}

static int bind(struct pci_dev *pdev)
{
	return device_attach(&pdev->dev) == 1 ? 0 : -ENODEV;
}

static int p2pdma_test_init(struct kunit *test)
{
	int i, ret;

	for (i = 0; i < NR_DEVS; i++) {
		if (host->devs[i].secondary || host->pdev[i]->dev.driver)
			continue;
		ret = bind(host->pdev[i]);
		if (ret)
			return ret;
	}
	return 0;
}

static bool has_pages(struct pci_dev *pdev, int bar)
{
	struct dev_pagemap *pgmap =
		get_dev_pagemap(PHYS_PFN(pci_resource_start(pdev, bar)));

	if (pgmap)
		put_dev_pagemap(pgmap);
	return pgmap;
}

/* What a test leaves behind, devres takes away */
static void p2pdma_test_exit(struct kunit *test)
{
	int i, bar;

	for (i = 0; i < NR_DEVS; i++) {
		if (host->devs[i].secondary)
			continue;
		unbind(host->pdev[i]);
		KUNIT_EXPECT_NULL(test, rcu_access_pointer(host->pdev[i]->p2pdma));
		for (bar = 0; bar < PCI_STD_NUM_BARS; bar++)
			if (pci_resource_flags(host->pdev[i], bar) &
			    IORESOURCE_MEM)
				KUNIT_EXPECT_FALSE(test,
						   has_pages(host->pdev[i], bar));
	}
	for (i = 0; i < NR_DEVS; i++)
		if (!host->devs[i].secondary)
			KUNIT_EXPECT_EQ(test, 0, bind(host->pdev[i]));
}

/* -- sysfs, without sysfs being mounted --------------------------------- */

static struct attribute *p2pmem_attr(struct pci_dev *pdev, const char *name)
{
	struct kernfs_node *dir, *file = NULL;
	struct attribute *attr = NULL;

	dir = kernfs_find_and_get(pdev->dev.kobj.sd, "p2pmem");
	if (dir)
		file = kernfs_find_and_get(dir, name);
	if (file)
		attr = file->priv;
	kernfs_put(file);
	kernfs_put(dir);
	return attr;
}

/* A number that is in sysfs, or -1 if it is not there */
static long p2pmem_show(struct pci_dev *pdev, const char *name)
{
	struct attribute *attr = p2pmem_attr(pdev, name);
	struct device_attribute *dev_attr;
	long value;
	char *buf;

	if (!attr)
		return -1;

	dev_attr = container_of(attr, struct device_attribute, attr);
	buf = (char *)get_zeroed_page(GFP_KERNEL);
	if (!buf)
		return -ENOMEM;
	dev_attr->show(&pdev->dev, dev_attr, buf);
	if (kstrtol(buf, 0, &value))
		value = -EINVAL;
	free_page((unsigned long)buf);
	return value;
}

static void expect_sysfs(struct kunit *test, int line, struct pci_dev *pdev,
			 long size, long available, long published)
{
	KUNIT_EXPECT_EQ_MSG(test, size, p2pmem_show(pdev, "size"),
			    "from line %d", line);
	KUNIT_EXPECT_EQ_MSG(test, available, p2pmem_show(pdev, "available"),
			    "from line %d", line);
	KUNIT_EXPECT_EQ_MSG(test, published, p2pmem_show(pdev, "published"),
			    "from line %d", line);
}

#define EXPECT_SYSFS(test, ...)	expect_sysfs(test, __LINE__, __VA_ARGS__)
#define EXPECT_NO_SYSFS(test, pdev)	EXPECT_SYSFS(test, pdev, -1, -1, -1)

static bool in_bar(struct pci_dev *pdev, int bar, void *addr)
{
	phys_addr_t phys = page_to_phys(virt_to_page(addr));

	return phys >= pci_resource_start(pdev, bar) &&
	       phys <= pci_resource_end(pdev, bar);
}

/* -- providers ---------------------------------------------------------- */

static void provider_lifetime(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[TWO];
	struct p2pdma_provider *provider;

	KUNIT_EXPECT_NULL(test, rcu_access_pointer(pdev->p2pdma));
	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(pdev));
	KUNIT_EXPECT_EQ(test, 0, pcim_p2pdma_init(pdev));

	provider = pcim_p2pdma_provider(pdev, 0);
	KUNIT_ASSERT_NOT_NULL(test, provider);
	KUNIT_EXPECT_PTR_EQ(test, provider->owner, &pdev->dev);
	KUNIT_EXPECT_EQ(test, provider->bus_offset,
			TEST_BUS_ADDR - host->window->start);
	KUNIT_EXPECT_EQ(test, pci_bus_address(pdev, 0),
			pci_p2pdma_bus_addr_map(provider,
						pci_resource_start(pdev, 0)));
	KUNIT_EXPECT_NOT_NULL(test, pcim_p2pdma_provider(pdev, 2));
	KUNIT_EXPECT_NULL(test, pcim_p2pdma_provider(pdev, 1));	/* upper half */
	KUNIT_EXPECT_NULL(test, pcim_p2pdma_provider(pdev, 3));	/* ports */
	KUNIT_EXPECT_NULL(test, pcim_p2pdma_provider(pdev, 5));	/* nothing */
	EXPECT_NO_SYSFS(test, pdev);

	unbind(pdev);
	KUNIT_EXPECT_NULL(test, rcu_access_pointer(pdev->p2pdma));
	KUNIT_ASSERT_EQ(test, 0, bind(pdev));
	KUNIT_EXPECT_EQ(test, 0, pcim_p2pdma_init(pdev));
}

static void provider_refused(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[TWO];

	pdev->non_mappable_bars = true;
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, pcim_p2pdma_init(pdev));
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
			pci_p2pdma_add_resource(pdev, 0, 0, 0));
	KUNIT_EXPECT_NULL(test, pcim_p2pdma_provider(pdev, 0));
	pdev->non_mappable_bars = false;
}

/* Providers and no memory: as with vfio-pci */
static void provider_without_memory(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[TWO];
	void *foreign = test;

	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(pdev));
	KUNIT_EXPECT_NULL(test, pci_alloc_p2pmem(pdev, PAGE_SIZE));
	KUNIT_EXPECT_EQ(test, (pci_bus_addr_t)-1,
			pci_p2pmem_virt_to_bus(pdev, foreign));
	KUNIT_EXPECT_EQ(test, -ENOENT, pci_p2pdma_remove_resource(pdev, 0));
}

/* -- resources ---------------------------------------------------------- */

static void add_refused(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[TWO];

	KUNIT_EXPECT_EQ(test, -EINVAL, pci_p2pdma_add_resource(pdev, 3, 0, 0));
	KUNIT_EXPECT_EQ(test, -EINVAL, pci_p2pdma_add_resource(pdev, 5, 0, 0));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			pci_p2pdma_add_resource(pdev, 0, 0, SZ_16M));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			pci_p2pdma_add_resource(pdev, 0, SZ_16M, SZ_2M));
	EXPECT_NO_SYSFS(test, pdev);
}

static void remove_refused(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	int bar;

	for (bar = -1; bar <= PCI_STD_NUM_BARS; bar++)
		KUNIT_EXPECT_EQ(test, -ENOENT,
				pci_p2pdma_remove_resource(pdev, bar));

	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	for (bar = -1; bar <= PCI_STD_NUM_BARS; bar++)
		if (bar != 1)
			KUNIT_EXPECT_EQ(test, -ENOENT,
					pci_p2pdma_remove_resource(pdev, bar));

	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 1));
	KUNIT_EXPECT_EQ(test, -ENOENT, pci_p2pdma_remove_resource(pdev, 1));
}

/* Every BAR goes, one by one, while what is left goes on to work */
static void add_remove_bars(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	int nr = *(const int *)test->param_value;
	int round, i, bar, left;
	void *addr, *other;
	long size;

	for (round = 0; round < 3; round++) {
		for (size = 0, bar = 0; bar < nr; bar++) {
			KUNIT_ASSERT_EQ(test, 0,
					pci_p2pdma_add_resource(pdev, bar, 0, 0));
			KUNIT_EXPECT_TRUE(test, has_pages(pdev, bar));
			size += pci_resource_len(pdev, bar);
			EXPECT_SYSFS(test, pdev, size, size, 0);
		}
		pci_p2pmem_publish(pdev, true);

		for (i = 0; i < nr; i++) {
			/* A different one first, each time */
			bar = (i + round) % nr;
			left = (bar + 1) % nr;

			KUNIT_EXPECT_EQ(test, 0,
					pci_p2pdma_remove_resource(pdev, bar));
			KUNIT_EXPECT_FALSE(test, has_pages(pdev, bar));
			size -= pci_resource_len(pdev, bar);
			if (i == nr - 1) {
				EXPECT_NO_SYSFS(test, pdev);
				break;
			}

			EXPECT_SYSFS(test, pdev, size, size, 1);
			KUNIT_EXPECT_TRUE(test, has_pages(pdev, left));
			addr = pci_alloc_p2pmem(pdev, SZ_1M);
			other = pci_alloc_p2pmem(pdev, PAGE_SIZE);
			KUNIT_ASSERT_NOT_NULL(test, addr);
			KUNIT_ASSERT_NOT_NULL(test, other);
			KUNIT_EXPECT_FALSE(test, in_bar(pdev, bar, addr));
			EXPECT_SYSFS(test, pdev, size,
				     size - SZ_1M - PAGE_SIZE, 1);
			pci_free_p2pmem(pdev, addr, SZ_1M);
			pci_free_p2pmem(pdev, other, PAGE_SIZE);
			EXPECT_SYSFS(test, pdev, size, size, 1);
		}
		KUNIT_EXPECT_NULL(test, pci_alloc_p2pmem(pdev, PAGE_SIZE));
	}
}

static const int nr_bars[] = { 1, 2, 6 };

static void nr_bars_desc(const int *nr, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "%d", *nr);
}

KUNIT_ARRAY_PARAM(nr_bars, nr_bars, nr_bars_desc);

/* Any mixture is released at unbind; the test's exit looks */
static void unbind_mixture(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	int bar;

	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++)
		KUNIT_ASSERT_EQ(test, 0,
				pci_p2pdma_add_resource(pdev, bar, 0, 0));
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 3));
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 0));
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 3, 0, 0));
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 5));
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 0, SZ_4M, SZ_4M));

	unbind(pdev);
	EXPECT_NO_SYSFS(test, pdev);
	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++)
		KUNIT_EXPECT_FALSE(test, has_pages(pdev, bar));
	KUNIT_EXPECT_NULL(test, pci_alloc_p2pmem(pdev, PAGE_SIZE));
	KUNIT_ASSERT_EQ(test, 0, bind(pdev));
	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 0, 0, 0));
}

/* A BAR that was added in two parts is removed with both */
static void remove_parts(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	void *addr;

	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 0, SZ_2M, 0));
	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	KUNIT_ASSERT_EQ(test, 0,
			pci_p2pdma_add_resource(pdev, 0, SZ_2M, SZ_4M));
	EXPECT_SYSFS(test, pdev, 3 * SZ_2M, 3 * SZ_2M, 0);

	/* The newest serves first, and nothing spans two */
	KUNIT_EXPECT_NULL(test, pci_alloc_p2pmem(pdev, SZ_4M));
	addr = pci_alloc_p2pmem(pdev, SZ_2M);
	KUNIT_ASSERT_NOT_NULL(test, addr);
	KUNIT_EXPECT_EQ(test, pci_p2pmem_virt_to_bus(pdev, addr),
			pci_bus_address(pdev, 0) + SZ_4M);
	pci_free_p2pmem(pdev, addr, SZ_2M);

	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 0));
	EXPECT_SYSFS(test, pdev, SZ_2M, SZ_2M, 0);
	addr = pci_alloc_p2pmem(pdev, PAGE_SIZE);
	KUNIT_ASSERT_NOT_NULL(test, addr);
	KUNIT_EXPECT_TRUE(test, in_bar(pdev, 1, addr));
	pci_free_p2pmem(pdev, addr, PAGE_SIZE);
}

static void bus_addresses(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct scatterlist *sgl;
	unsigned int nents;
	void *addr;

	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 0, 0, SZ_4M));
	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 2, 0, 0));

	KUNIT_EXPECT_EQ(test, 0, pci_p2pmem_virt_to_bus(pdev, NULL));
	addr = pci_alloc_p2pmem(pdev, SZ_4M);
	KUNIT_ASSERT_NOT_NULL(test, addr);
	KUNIT_EXPECT_EQ(test, pci_p2pmem_virt_to_bus(pdev, addr),
			pci_bus_address(pdev, 0) + SZ_4M);
	KUNIT_EXPECT_EQ(test, pci_p2pmem_virt_to_bus(pdev, addr + 4711),
			pci_bus_address(pdev, 0) + SZ_4M + 4711);
	pci_free_p2pmem(pdev, addr, SZ_4M);

	sgl = pci_p2pmem_alloc_sgl(pdev, &nents, SZ_64K);
	KUNIT_ASSERT_NOT_NULL(test, sgl);
	KUNIT_EXPECT_EQ(test, 1, nents);
	KUNIT_EXPECT_EQ(test, SZ_64K, sgl->length);
	KUNIT_EXPECT_TRUE(test, in_bar(pdev, 2, sg_virt(sgl)));
	KUNIT_EXPECT_TRUE(test, is_pci_p2pdma_page(sg_page(sgl)));
	EXPECT_SYSFS(test, pdev, SZ_4M + SZ_2M, SZ_4M + SZ_2M - SZ_64K, 0);
	pci_p2pmem_free_sgl(pdev, sgl);
	KUNIT_EXPECT_NULL(test, pci_p2pmem_alloc_sgl(pdev, &nents, SZ_8M));
	EXPECT_SYSFS(test, pdev, SZ_4M + SZ_2M, SZ_4M + SZ_2M, 0);
}

/* -- removal while somebody has memory ---------------------------------- */

struct remover {
	struct pci_dev *pdev;
	struct p2pdma_pages *pages;	/* instead: wait for these */
	int bar, ret;
	struct completion done;
};

static int remover_thread(void *data)
{
	struct remover *remover = data;

	if (remover->pages)
		remover->ret = pci_p2pdma_wait_pages(remover->pages, false);
	else
		remover->ret = pci_p2pdma_remove_resource(remover->pdev,
							  remover->bar);
	complete(&remover->done);
	return 0;
}

/* @remover is static: the thread of a test that has failed may still run */
static void remover_start(struct kunit *test, struct remover *remover)
{
	struct task_struct *task;

	init_completion(&remover->done);
	task = kthread_run(remover_thread, remover, "p2pdma-test-remove");
	KUNIT_ASSERT_FALSE(test, IS_ERR(task));
}

static bool remover_finished(struct remover *remover, unsigned int ms)
{
	return wait_for_completion_timeout(&remover->done,
					   msecs_to_jiffies(ms));
}

static void remove_waits(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	static struct remover remover;
	void *held, *other;

	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 0, 0, 0));
	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	held = pci_alloc_p2pmem(pdev, SZ_1M);
	KUNIT_ASSERT_NOT_NULL(test, held);
	KUNIT_ASSERT_TRUE(test, in_bar(pdev, 1, held));

	remover = (struct remover){ .pdev = pdev, .bar = 1 };
	remover_start(test, &remover);
	KUNIT_EXPECT_FALSE(test, remover_finished(&remover, 300));

	/* Nothing new from that BAR, all that is wanted from the other */
	EXPECT_SYSFS(test, pdev, SZ_8M, SZ_8M, 0);
	other = pci_alloc_p2pmem(pdev, PAGE_SIZE);
	KUNIT_EXPECT_NOT_NULL(test, other);
	if (other) {
		KUNIT_EXPECT_TRUE(test, in_bar(pdev, 0, other));
		pci_free_p2pmem(pdev, other, PAGE_SIZE);
	}
	KUNIT_EXPECT_TRUE(test, has_pages(pdev, 1));
	KUNIT_EXPECT_EQ(test, pci_p2pmem_virt_to_bus(pdev, held),
			pci_bus_address(pdev, 1));

	pci_free_p2pmem(pdev, held, SZ_1M);
	KUNIT_EXPECT_TRUE(test, remover_finished(&remover, 10000));
	KUNIT_EXPECT_EQ(test, 0, remover.ret);
	KUNIT_EXPECT_FALSE(test, has_pages(pdev, 1));
	EXPECT_SYSFS(test, pdev, SZ_8M, SZ_8M, 0);
}

struct allocator {
	struct pci_dev *pdev;
	struct task_struct *task;
	unsigned long got, refused;
};

static int allocator_thread(void *data)
{
	struct allocator *allocator = data;
	struct pci_dev *pdev = allocator->pdev;
	size_t size;
	void *addr;

	while (!kthread_should_stop()) {
		size = PAGE_SIZE << get_random_u32_below(8);
		addr = pci_alloc_p2pmem(pdev, size);
		if (addr) {
			allocator->got++;
			if (get_random_u32_below(64) == 0)
				fsleep(1000);
			pci_free_p2pmem(pdev, addr, size);
		} else {
			allocator->refused++;
		}
		cond_resched();
	}
	return 0;
}

static void remove_races_alloc(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct allocator allocators[3] = { };
	unsigned long got = 0, refused = 0;
	int i;

	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	for (i = 0; i < ARRAY_SIZE(allocators); i++) {
		allocators[i].pdev = pdev;
		allocators[i].task = kthread_run(allocator_thread,
						 &allocators[i],
						 "p2pdma-test-alloc");
		KUNIT_EXPECT_FALSE(test, IS_ERR(allocators[i].task));
	}

	for (i = 0; i < 20; i++) {
		/* BAR 2 comes and goes beside, then there is nothing at all */
		KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 2, 0, 0));
		fsleep(2000);
		KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 1));
		KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 2));
		EXPECT_NO_SYSFS(test, pdev);
		fsleep(2000);
		KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	}

	for (i = 0; i < ARRAY_SIZE(allocators); i++) {
		if (IS_ERR(allocators[i].task))
			continue;
		kthread_stop(allocators[i].task);
		got += allocators[i].got;
		refused += allocators[i].refused;
	}
	kunit_info(test, "%lu allocations, %lu refused", got, refused);
	KUNIT_EXPECT_GT(test, got, 0);
	KUNIT_EXPECT_GT(test, refused, 0);
	EXPECT_SYSFS(test, pdev, SZ_2M, SZ_2M, 0);
}

/* -- user mappings ------------------------------------------------------ */

static void put_file(void *file)
{
	fput(file);
}

struct mapping {
	unsigned long addr, len;
};

static void unmap(struct mapping *mapping)
{
	vm_munmap(mapping->addr, mapping->len);
}

/* What is still mapped goes with the address space, at the test's end */
static struct mapping *map_file(struct kunit *test, struct file *file,
				unsigned long len, unsigned long offset)
{
	struct mapping *mapping = kunit_kzalloc(test, sizeof(*mapping),
						GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, mapping);
	KUNIT_ASSERT_EQ(test, 0, kunit_attach_mm());
	mapping->addr = vm_mmap(file, 0, len, PROT_READ | PROT_WRITE,
				MAP_SHARED, offset);
	if (IS_ERR_VALUE(mapping->addr))
		return ERR_PTR(mapping->addr);
	mapping->len = len;
	return mapping;
}

/* As sysfs does it */
static int allocate_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct pci_dev *pdev = file->private_data;
	struct attribute *attr = p2pmem_attr(pdev, "allocate");
	const struct bin_attribute *bin_attr;

	if (!attr)
		return -ENODEV;
	bin_attr = container_of(attr, const struct bin_attribute, attr);
	return bin_attr->mmap(file, &pdev->dev.kobj, bin_attr, vma);
}

static const struct file_operations allocate_fops = {
	.mmap = allocate_mmap,
};

static struct file *allocate_open(struct kunit *test, struct pci_dev *pdev)
{
	struct attribute *attr = p2pmem_attr(pdev, "allocate");
	const struct bin_attribute *bin_attr;
	struct file *file;

	KUNIT_ASSERT_NOT_NULL(test, attr);
	bin_attr = container_of(attr, const struct bin_attribute, attr);
	KUNIT_ASSERT_NOT_NULL(test, bin_attr->f_mapping);

	file = anon_inode_getfile("p2pdma-test", &allocate_fops, pdev, O_RDWR);
	KUNIT_ASSERT_FALSE(test, IS_ERR(file));
	file->f_mapping = bin_attr->f_mapping();
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, put_file, file));
	return file;
}

/* Pin what is mapped at an address, which touches nothing */
static struct page *pin(unsigned long addr)
{
	struct page *page;

	if (pin_user_pages_fast(addr, 1, FOLL_WRITE | FOLL_PCI_P2PDMA,
				&page) != 1)
		return NULL;
	return page;
}

static void unpin(struct page *page)
{
	unpin_user_pages(&page, 1);
}

static bool mapped(unsigned long addr)
{
	struct page *page = pin(addr);

	if (page)
		unpin(page);
	return page;
}

static void remove_zaps_only_its_bar(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct mapping *map0, *map1, *map1b;
	struct file *file;
	struct page *page;

	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 0, 0, 0));
	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	file = allocate_open(test, pdev);

	/* The newest BAR serves until it is full */
	map1 = map_file(test, file, SZ_1M, 0);
	map1b = map_file(test, file, SZ_1M, 0);
	map0 = map_file(test, file, SZ_1M, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(map0));
	KUNIT_ASSERT_FALSE(test, IS_ERR(map1));
	KUNIT_ASSERT_FALSE(test, IS_ERR(map1b));
	page = pin(map0->addr);
	KUNIT_ASSERT_NOT_NULL(test, page);
	KUNIT_EXPECT_EQ(test, page_to_phys(page), pci_resource_start(pdev, 0));
	unpin(page);
	KUNIT_EXPECT_TRUE(test, mapped(map1->addr + SZ_1M - PAGE_SIZE));
	EXPECT_SYSFS(test, pdev, SZ_8M + SZ_2M, SZ_8M - SZ_1M, 0);

	/* A part of one VMA is gone before */
	vm_munmap(map1->addr + SZ_64K, SZ_64K);
	EXPECT_SYSFS(test, pdev, SZ_8M + SZ_2M, SZ_8M - SZ_1M + SZ_64K, 0);

	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 1));
	KUNIT_EXPECT_FALSE(test, has_pages(pdev, 1));
	KUNIT_EXPECT_FALSE(test, mapped(map1->addr));
	KUNIT_EXPECT_FALSE(test, mapped(map1->addr + SZ_1M - PAGE_SIZE));
	KUNIT_EXPECT_FALSE(test, mapped(map1b->addr));
	KUNIT_EXPECT_TRUE(test, mapped(map0->addr));
	KUNIT_EXPECT_TRUE(test, mapped(map0->addr + SZ_1M - PAGE_SIZE));
	EXPECT_SYSFS(test, pdev, SZ_8M, SZ_8M - SZ_1M, 0);

	/* The file goes on to serve, and the BAR can come back */
	unmap(map0);
	EXPECT_SYSFS(test, pdev, SZ_8M, SZ_8M, 0);
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	KUNIT_EXPECT_FALSE(test, mapped(map1->addr));
	map0 = map_file(test, file, SZ_4M, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(map0));
	KUNIT_EXPECT_EQ(test, -ENOMEM, PTR_ERR(map_file(test, file, SZ_8M, 0)));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			PTR_ERR(map_file(test, file, SZ_4K, SZ_4K)));
	EXPECT_SYSFS(test, pdev, SZ_8M + SZ_2M, SZ_4M + SZ_2M, 0);
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 0));
	KUNIT_EXPECT_FALSE(test, mapped(map0->addr));
}

static void remove_waits_for_pins(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	static struct remover remover;
	struct mapping *mapping;
	struct page *page;

	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	mapping = map_file(test, allocate_open(test, pdev), SZ_64K, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(mapping));
	page = pin(mapping->addr + PAGE_SIZE);
	KUNIT_ASSERT_NOT_NULL(test, page);

	remover = (struct remover){ .pdev = pdev, .bar = 1 };
	remover_start(test, &remover);
	KUNIT_EXPECT_FALSE(test, remover_finished(&remover, 300));
	KUNIT_EXPECT_FALSE(test, mapped(mapping->addr + PAGE_SIZE));
	/* One reference per page is taken, but for GUP's of small folios */
	KUNIT_EXPECT_GT(test, page_ref_count(page), 0);
	KUNIT_EXPECT_TRUE(test, has_pages(pdev, 1));

	unpin(page);
	KUNIT_EXPECT_TRUE(test, remover_finished(&remover, 10000));
	KUNIT_EXPECT_EQ(test, 0, remover.ret);
	KUNIT_EXPECT_FALSE(test, has_pages(pdev, 1));
}

/* -- functions that fail ------------------------------------------------ */

#if IS_ENABLED(CONFIG_FUNCTION_ERROR_INJECTION) && IS_ENABLED(CONFIG_KPROBES)

static struct task_struct *failing_task;
static unsigned long failing_value;
static unsigned int failing_hits;

static int failing_handler(struct kprobe *probe, struct pt_regs *regs)
{
	if (current != failing_task)
		return 0;

	failing_hits++;
	regs_set_return_value(regs, failing_value);
	override_function_with_return(regs);
	return 1;
}

/* The path of execution cannot be changed from an optimized probe */
static void failing_post_handler(struct kprobe *probe, struct pt_regs *regs,
				 unsigned long flags)
{
}

static struct kprobe failing_probe = {
	.pre_handler = failing_handler,
	.post_handler = failing_post_handler,
};

/* Until failing_stop() the function returns a value and does nothing else */
static void failing_start(struct kunit *test, const char *function, long value)
{
	failing_probe.symbol_name = function;
	failing_probe.addr = NULL;
	failing_probe.flags = 0;
	failing_value = value;
	failing_hits = 0;
	failing_task = current;
	KUNIT_ASSERT_EQ(test, 0, register_kprobe(&failing_probe));
}

static void failing_stop(struct kunit *test)
{
	unregister_kprobe(&failing_probe);
	failing_task = NULL;
	KUNIT_EXPECT_GT_MSG(test, failing_hits, 0, "no call of %s",
			    failing_probe.symbol_name);
}

#else

static void failing_start(struct kunit *test, const char *function, long value)
{
	kunit_skip(test, "needs CONFIG_FUNCTION_ERROR_INJECTION");
}

static void failing_stop(struct kunit *test)
{
}

#endif

struct failure {
	const char *function;
	long value;
	int error;
};

static void failure_desc(const struct failure *failure, char *desc)
{
	strscpy(desc, failure->function, KUNIT_PARAM_DESC_SIZE);
}

static const struct failure failures[] = {
	{ "percpu_ref_init", -ENOMEM, -ENOMEM },
	{ "gen_pool_create", 0, -ENOMEM },
	{ "memremap_pages", -ENXIO, -ENXIO },
	{ "gen_pool_add_owner", -ENOMEM, -ENOMEM },
	{ "sysfs_create_group", -EEXIST, -EEXIST },
	{ "__devm_add_action", -ENOMEM, -ENOMEM },
};

KUNIT_ARRAY_PARAM(failures, failures, failure_desc);

static int add_failing(struct kunit *test, const char *function, long value,
		       struct pci_dev *pdev, int bar)
{
	int ret;

	failing_start(test, function, value);
	ret = pci_p2pdma_add_resource(pdev, bar, 0, 0);
	failing_stop(test);
	return ret;
}

/* A failure leaves nothing behind: not now, not at unbind, not for others */
static void add_fails(struct kunit *test)
{
	const struct failure *failure = test->param_value;
	bool group = !strcmp(failure->function, "sysfs_create_group");
	struct pci_dev *pdev = host->pdev[SIX];
	struct mapping *mapping;
	struct file *file;

	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(pdev));
	KUNIT_EXPECT_EQ(test, failure->error,
			add_failing(test, failure->function, failure->value,
				    pdev, 1));
	KUNIT_EXPECT_FALSE(test, has_pages(pdev, 1));
	EXPECT_NO_SYSFS(test, pdev);
	KUNIT_EXPECT_EQ(test, -ENOENT, pci_p2pdma_remove_resource(pdev, 1));

	/* Beside one that is there and mapped */
	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 0, 0, 0));
	file = allocate_open(test, pdev);
	mapping = map_file(test, file, SZ_64K, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(mapping));
	if (!group)
		KUNIT_EXPECT_EQ(test, failure->error,
				add_failing(test, failure->function,
					    failure->value, pdev, 1));
	KUNIT_EXPECT_FALSE(test, has_pages(pdev, 1));
	KUNIT_EXPECT_TRUE(test, mapped(mapping->addr));
	KUNIT_EXPECT_NOT_NULL(test, p2pmem_attr(pdev, "allocate"));
	EXPECT_SYSFS(test, pdev, SZ_8M, SZ_8M - SZ_64K, 0);
	unmap(mapping);

	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	EXPECT_SYSFS(test, pdev, SZ_8M + SZ_2M, SZ_8M + SZ_2M, 0);
	unbind(pdev);
	EXPECT_NO_SYSFS(test, pdev);
	KUNIT_ASSERT_EQ(test, 0, bind(pdev));
}

static void init_fails(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];

	KUNIT_EXPECT_EQ(test, -ENOMEM,
			add_failing(test, "__devm_add_action", -ENOMEM, pdev, 1));
	KUNIT_EXPECT_NULL(test, rcu_access_pointer(pdev->p2pdma));
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
}

static void pages_fail(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct phys_vec range = { .paddr = pci_resource_start(pdev, 0),
				  .len = SZ_2M };
	struct p2pdma_pages *pages;

	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(pdev));
	failing_start(test, "memremap_pages", -ENXIO);
	pages = pci_p2pdma_create_pages(pcim_p2pdma_provider(pdev, 0),
					&range, 1);
	failing_stop(test);
	KUNIT_EXPECT_EQ(test, -ENXIO, PTR_ERR(pages));
	KUNIT_EXPECT_FALSE(test, has_pages(pdev, 0));

	/* The mutex is free again */
	pages = pci_p2pdma_create_pages(pcim_p2pdma_provider(pdev, 0),
					&range, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(pages));
	pci_p2pdma_destroy_pages(pages);
}

/* -- pages that belong to the driver ------------------------------------ */

static struct p2pdma_pages *create(struct pci_dev *pdev, int bar,
				   const struct phys_vec *offsets,
				   unsigned int nr)
{
	struct phys_vec ranges[4];
	unsigned int i;

	for (i = 0; i < nr; i++) {
		ranges[i] = offsets[i];
		ranges[i].paddr += pci_resource_start(pdev, bar);
	}
	return pci_p2pdma_create_pages(pcim_p2pdma_provider(pdev, bar),
				       ranges, nr);
}

#define VEC(offset, length)	((struct phys_vec){ .paddr = (offset), \
						    .len = (length) })

static void pages_create(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct phys_vec two[] = { VEC(SZ_4M, SZ_2M), VEC(0, SZ_2M) };
	unsigned long pfn = PHYS_PFN(pci_resource_start(pdev, 0));
	struct p2pdma_pages *pages;
	struct folio *folio;
	int i;

	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(pdev));
	for (i = 0; i < 3; i++) {
		pages = create(pdev, 0, two, 2);
		KUNIT_ASSERT_FALSE(test, IS_ERR(pages));
		folio = page_folio(pfn_to_page(pfn));
		KUNIT_EXPECT_TRUE(test, is_pci_p2pdma_page(&folio->page));
		KUNIT_EXPECT_EQ(test, 0, folio_ref_count(folio));
		if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
			KUNIT_EXPECT_EQ(test, PMD_ORDER, folio_order(folio));
		KUNIT_EXPECT_PTR_EQ(test, folio->pgmap,
				    page_folio(pfn_to_page(pfn + PHYS_PFN(SZ_4M)))->pgmap);
		/* Nobody has any of it */
		KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_wait_pages(pages, true));
		KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_wait_pages(pages, false));
		pci_p2pdma_destroy_pages(pages);
		KUNIT_EXPECT_FALSE(test, has_pages(pdev, 0));
	}
}

/*
 * PTEs of a folio count on the page that they map, if there are such counts: none
 * may be one that the memmap shares between several.
 */
static void pages_have_each_a_struct_page(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct phys_vec range = VEC(0, SZ_2M);
	struct p2pdma_pages *pages;
	unsigned int i, wrong = 0;
	struct page *page;

	if (IS_ENABLED(CONFIG_NO_PAGE_MAPCOUNT))
		kunit_skip(test, "CONFIG_NO_PAGE_MAPCOUNT: tails may be shared");

	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(pdev));
	pages = create(pdev, 0, &range, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(pages));

	/* What the first ones have is the folio's */
	page = pfn_to_page(PHYS_PFN(pci_resource_start(pdev, 0)));
	for (i = 8; i < PHYS_PFN(SZ_2M); i++)
		set_page_private(page + i, i);
	for (i = 8; i < PHYS_PFN(SZ_2M); i++)
		wrong += page_private(page + i) != i;
	for (i = 8; i < PHYS_PFN(SZ_2M); i++)
		set_page_private(page + i, 0);
	KUNIT_EXPECT_EQ(test, 0, wrong);
	pci_p2pdma_destroy_pages(pages);
}

static void pages_refused(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct phys_vec overlap[] = { VEC(0, SZ_4M), VEC(SZ_2M, SZ_2M) };
	struct phys_vec inside = VEC(SZ_2M, SZ_2M), all = VEC(0, SZ_8M);
	struct phys_vec bad[] = { VEC(0, 0), VEC(SZ_1M, SZ_2M), VEC(0, SZ_1M),
				  VEC(PAGE_SIZE, PAGE_SIZE) };
	/* Further away than the direct map goes */
	struct phys_vec far = VEC(1ULL << MAX_PHYSMEM_BITS, SZ_2M);
	struct p2pdma_pages *pages;
	int i;

	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(pdev));
	pages = pci_p2pdma_create_pages(pcim_p2pdma_provider(pdev, 0), &far, 1);
	KUNIT_EXPECT_EQ(test, -ERANGE, PTR_ERR(pages));
	for (i = 0; i < ARRAY_SIZE(bad); i++)
		KUNIT_EXPECT_EQ(test, -EINVAL,
				PTR_ERR(create(pdev, 0, &bad[i], 1)));
	KUNIT_EXPECT_EQ(test, -EBUSY, PTR_ERR(create(pdev, 0, overlap, 2)));

	/* One in the middle is found from both ends, and so is p2pmem */
	pages = create(pdev, 0, &inside, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(pages));
	KUNIT_EXPECT_EQ(test, -EBUSY, PTR_ERR(create(pdev, 0, &all, 1)));
	KUNIT_EXPECT_EQ(test, -EBUSY, PTR_ERR(create(pdev, 0, &inside, 1)));
	pci_p2pdma_destroy_pages(pages);

	KUNIT_ASSERT_EQ(test, 0,
			pci_p2pdma_add_resource(pdev, 0, SZ_2M, SZ_2M));
	KUNIT_EXPECT_EQ(test, -EBUSY, PTR_ERR(create(pdev, 0, &all, 1)));
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 0));
	pages = create(pdev, 0, &all, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(pages));
	pci_p2pdma_destroy_pages(pages);
}

/* Removing p2pmem does not concern the driver's own pages of that BAR */
static void pages_beside_p2pmem(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct phys_vec upper = VEC(SZ_4M, SZ_4M);
	struct p2pdma_pages *pages;

	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 0, SZ_4M, 0));
	pages = create(pdev, 0, &upper, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(pages));
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(pdev, 0));
	KUNIT_EXPECT_FALSE(test, has_pages(pdev, 0));
	KUNIT_EXPECT_EQ(test, -EBUSY, PTR_ERR(create(pdev, 0, &upper, 1)));
	pci_p2pdma_destroy_pages(pages);
}

struct pages_file {
	struct p2pdma_pages *pages;
	unsigned long pfn;
	struct file *file;
};

static vm_fault_t pages_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct pages_file *pf = vmf->vma->vm_private_data;
	unsigned long nr = 1UL << order;
	unsigned long addr = ALIGN_DOWN(vmf->address, PAGE_SIZE << order);

	if (!pf->pages)
		return VM_FAULT_SIGBUS;
	if (order && (order != PMD_ORDER || addr < vmf->vma->vm_start ||
		      addr + nr * PAGE_SIZE > vmf->vma->vm_end))
		return VM_FAULT_FALLBACK;
	return pci_p2pdma_insert_pages(pf->pages, vmf, pf->pfn +
				       linear_page_index(vmf->vma, addr), order);
}

static vm_fault_t pages_fault(struct vm_fault *vmf)
{
	return pages_huge_fault(vmf, 0);
}

static const struct vm_operations_struct pages_vm_ops = {
	.fault = pages_fault,
	.huge_fault = pages_huge_fault,
};

static int pages_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_private_data = file->private_data;
	vma->vm_ops = &pages_vm_ops;
	vm_flags_set(vma, VM_HUGEPAGE | VM_DONTEXPAND | VM_DONTDUMP);
	return 0;
}

/* Where a PMD can be mapped */
static unsigned long pages_area(struct file *file, unsigned long addr,
				unsigned long len, unsigned long pgoff,
				unsigned long flags)
{
	addr = mm_get_unmapped_area(NULL, addr, len + PMD_SIZE, 0, flags);
	return IS_ERR_VALUE(addr) ? addr : ALIGN(addr, PMD_SIZE);
}

static const struct file_operations pages_fops = {
	.mmap = pages_mmap,
	.get_unmapped_area = pages_area,
};

static void pages_file_open(struct kunit *test, struct pages_file *pf,
			    struct pci_dev *pdev, int bar)
{
	struct phys_vec range = VEC(0, SZ_4M);

	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(pdev));
	pf->pages = create(pdev, bar, &range, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(pf->pages));
	pf->pfn = PHYS_PFN(pci_resource_start(pdev, bar));
	/* Its own inode: the mapping of the others is shared */
	pf->file = anon_inode_create_getfile("p2pdma-test", &pages_fops, pf,
					     O_RDWR, NULL);
	KUNIT_ASSERT_FALSE(test, IS_ERR(pf->file));
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, put_file, pf->file));
}

static void pages_zap(struct pages_file *pf)
{
	unmap_mapping_range(pf->file->f_mapping, 0, 0, 1);
}

/* 0 -> 1 -> 0, by PTEs and by a PMD, frozen and thawed */
static void pages_walk(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct p2pdma_pages *pages;
	struct mapping *map, *odd;
	struct pages_file pf;
	struct folio *folio;
	int round;

	pages_file_open(test, &pf, pdev, 0);
	pages = pf.pages;
	folio = page_folio(pfn_to_page(pf.pfn));
	map = map_file(test, pf.file, SZ_4M, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(map));
	odd = map_file(test, pf.file, SZ_64K, SZ_64K);
	KUNIT_ASSERT_FALSE(test, IS_ERR(odd));

	for (round = 0; round < 3; round++) {
		KUNIT_EXPECT_EQ(test, 0, folio_ref_count(folio));
		KUNIT_EXPECT_TRUE(test, mapped(map->addr));
		KUNIT_EXPECT_EQ(test, 1, folio_ref_count(folio));
		KUNIT_EXPECT_EQ(test, 1, folio_mapcount(folio));
		if (folio_order(folio)) {
			/* It is all mapped */
			KUNIT_EXPECT_TRUE(test, mapped(map->addr + PAGE_SIZE));
			KUNIT_EXPECT_EQ(test, 1, folio_ref_count(folio));
		}

		/* PTEs of the same folio, each with a reference */
		KUNIT_EXPECT_TRUE(test, mapped(odd->addr));
		KUNIT_EXPECT_TRUE(test, mapped(odd->addr + PAGE_SIZE));
		if (folio_order(folio))
			KUNIT_EXPECT_EQ(test, 3, folio_ref_count(folio));

		/* The second folio */
		KUNIT_EXPECT_TRUE(test, mapped(map->addr + SZ_2M));

		/* Frozen: no new ones, all back */
		pf.pages = NULL;
		pages_zap(&pf);
		KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_wait_pages(pages, false));
		KUNIT_EXPECT_EQ(test, 0, folio_ref_count(folio));
		KUNIT_EXPECT_FALSE(test, mapped(map->addr));
		KUNIT_EXPECT_FALSE(test, mapped(odd->addr));
		KUNIT_EXPECT_EQ(test, 0, folio_ref_count(folio));

		/* Thawed */
		pf.pages = pages;
	}

	pf.pages = NULL;
	pci_p2pdma_destroy_pages(pages);
}

/* A PMD that is split in the middle gives back all that it held */
static void pages_split(struct kunit *test)
{
	struct pages_file pf;
	struct mapping *map;
	struct folio *folio;

	pages_file_open(test, &pf, host->pdev[SIX], 0);
	folio = page_folio(pfn_to_page(pf.pfn));
	map = map_file(test, pf.file, SZ_4M, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(map));
	KUNIT_EXPECT_TRUE(test, mapped(map->addr));
	if (folio_order(folio))
		KUNIT_EXPECT_TRUE(test, mapped(map->addr + SZ_1M));
	KUNIT_EXPECT_EQ(test, 1, folio_ref_count(folio));
	vm_munmap(map->addr + SZ_1M, PAGE_SIZE);
	KUNIT_EXPECT_TRUE(test, mapped(map->addr));
	KUNIT_EXPECT_FALSE(test, mapped(map->addr + SZ_1M));
	KUNIT_EXPECT_TRUE(test, mapped(map->addr + SZ_1M + PAGE_SIZE));
	pages_zap(&pf);
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_wait_pages(pf.pages, false));
	KUNIT_EXPECT_EQ(test, 0, folio_ref_count(folio));
	unmap(map);
	pci_p2pdma_destroy_pages(pf.pages);
}

/* If some are shared, nobody writes to them, whatever is done with their pages */
static void pages_leave_tails_alone(struct kunit *test)
{
	const unsigned int first = PAGE_SIZE / sizeof(struct page);
	const unsigned int nr = PHYS_PFN(SZ_2M);
	const size_t size = (nr - first) * sizeof(struct page);
	struct mapping *map, *odd;
	struct page *page, *pinned;
	struct p2pdma_pages *pages;
	struct pages_file pf;
	unsigned int i;
	void *before;

	if (!IS_ENABLED(CONFIG_NO_PAGE_MAPCOUNT))
		kunit_skip(test, "CONFIG_NO_PAGE_MAPCOUNT is not set: none are shared");

	pages_file_open(test, &pf, host->pdev[SIX], 0);
	pages = pf.pages;
	page = pfn_to_page(pf.pfn);
	if (IS_ENABLED(CONFIG_ARCH_WANT_OPTIMIZE_DAX_VMEMMAP)) {
		set_page_private(page + nr - 1, 1);
		KUNIT_EXPECT_EQ(test, 1, page_private(page + 2 * first - 1));
		set_page_private(page + nr - 1, 0);
	}

	before = kunit_kmalloc(test, size, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, before);
	memcpy(before, page + first, size);

	map = map_file(test, pf.file, SZ_4M, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(map));
	odd = map_file(test, pf.file, SZ_2M - SZ_64K, SZ_64K);
	KUNIT_ASSERT_FALSE(test, IS_ERR(odd));
	for (i = 0; i < nr; i++)
		KUNIT_EXPECT_TRUE(test, mapped(map->addr + i * PAGE_SIZE));
	for (i = 0; i < nr - PHYS_PFN(SZ_64K); i++)
		KUNIT_EXPECT_TRUE(test, mapped(odd->addr + i * PAGE_SIZE));
	pinned = pin(odd->addr + SZ_1M);
	KUNIT_ASSERT_NOT_NULL(test, pinned);
	KUNIT_EXPECT_EQ(test, 0, memcmp(before, page + first, size));
	unpin(pinned);

	pf.pages = NULL;
	pages_zap(&pf);
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_wait_pages(pages, false));
	KUNIT_EXPECT_EQ(test, 0, memcmp(before, page + first, size));
	pci_p2pdma_destroy_pages(pages);
}

static void pages_wait_for_pins(struct kunit *test)
{
	static struct remover remover;
	struct pages_file pf;
	struct mapping *map;
	struct page *page;

	pages_file_open(test, &pf, host->pdev[SIX], 0);
	map = map_file(test, pf.file, SZ_4M, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(map));
	page = pin(map->addr + SZ_1M);
	KUNIT_ASSERT_NOT_NULL(test, page);

	remover = (struct remover){ .pages = pf.pages };
	pf.pages = NULL;
	pages_zap(&pf);
	remover_start(test, &remover);
	KUNIT_EXPECT_FALSE(test, remover_finished(&remover, 200));
	KUNIT_EXPECT_GT(test, folio_ref_count(page_folio(page)), 0);
	unpin(page);
	KUNIT_EXPECT_TRUE(test, remover_finished(&remover, 10000));
	KUNIT_EXPECT_EQ(test, 0, remover.ret);
	pci_p2pdma_destroy_pages(remover.pages);
}

/* -- map types ---------------------------------------------------------- */

static void set_acs(struct test_host *h, int port, u16 ctrl)
{
	pci_write_config_word(h->pdev[port], ACS_CAP + PCI_ACS_CTRL, ctrl);
}

static void map_types(struct kunit *test)
{
	struct pci_dev *six = host->pdev[SIX], *two = host->pdev[TWO];
	struct pci_dev *far = host->pdev[FAR];
	struct p2pdma_provider *provider;
	int redirect;

	for (redirect = 0; redirect < 2; redirect++) {
		set_acs(host, ROOT_PORT, 0);
		set_acs(host, ROOT_PORT_FAR, 0);
		set_acs(host, PORT_SIX, redirect ? PCI_ACS_RR : PCI_ACS_SV);
		set_acs(host, PORT_TWO, 0);

		KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(six));
		provider = pcim_p2pdma_provider(six, 0);
		KUNIT_EXPECT_EQ(test, redirect ? PCI_P2PDMA_MAP_THRU_HOST_BRIDGE :
				PCI_P2PDMA_MAP_BUS_ADDR,
				pci_p2pdma_map_type(provider, &two->dev));
		/* And from the cache */
		KUNIT_EXPECT_EQ(test, redirect ? PCI_P2PDMA_MAP_THRU_HOST_BRIDGE :
				PCI_P2PDMA_MAP_BUS_ADDR,
				pci_p2pdma_map_type(provider, &two->dev));
		KUNIT_EXPECT_EQ(test, PCI_P2PDMA_MAP_THRU_HOST_BRIDGE,
				pci_p2pdma_map_type(provider, &far->dev));
		KUNIT_EXPECT_EQ(test, 4,
				pci_p2pdma_distance(six, &two->dev, false));
		KUNIT_EXPECT_EQ(test, 0,
				pci_p2pdma_distance(six, &six->dev, false));
		KUNIT_EXPECT_GT(test,
				pci_p2pdma_distance(six, &far->dev, false), 4);

		/* The types go with the provider */
		unbind(six);
		KUNIT_EXPECT_EQ(test, PCI_P2PDMA_MAP_NOT_SUPPORTED,
				pci_p2pdma_map_type(&(struct p2pdma_provider){
					.owner = &six->dev }, &two->dev));
		KUNIT_ASSERT_EQ(test, 0, bind(six));
	}

	/* The client's port counts like the provider's */
	set_acs(host, PORT_SIX, 0);
	set_acs(host, PORT_TWO, PCI_ACS_CR);
	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(six));
	KUNIT_EXPECT_EQ(test, PCI_P2PDMA_MAP_THRU_HOST_BRIDGE,
			pci_p2pdma_map_type(pcim_p2pdma_provider(six, 1),
					    &two->dev));
	set_acs(host, PORT_TWO, 0);
}

/* Pages of both kinds lead to their provider */
static void map_type_of_pages(struct kunit *test)
{
	struct pci_dev *pdev = host->pdev[SIX];
	struct phys_vec range = VEC(0, SZ_2M);
	struct pci_p2pdma_map_state state = { };
	struct p2pdma_pages *pages;
	struct page *page;

	set_acs(host, ROOT_PORT, 0);
	set_acs(host, PORT_SIX, 0);
	set_acs(host, PORT_TWO, 0);
	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(pdev, 1, 0, 0));
	pages = create(pdev, 0, &range, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(pages));

	page = pfn_to_page(PHYS_PFN(pci_resource_start(pdev, 0)));
	KUNIT_EXPECT_EQ(test, PCI_P2PDMA_MAP_BUS_ADDR,
			pci_p2pdma_state(&state, &host->pdev[TWO]->dev, page));
	KUNIT_EXPECT_PTR_EQ(test, state.mem, pcim_p2pdma_provider(pdev, 0));
	page = pfn_to_page(PHYS_PFN(pci_resource_start(pdev, 1)));
	KUNIT_EXPECT_EQ(test, PCI_P2PDMA_MAP_BUS_ADDR,
			pci_p2pdma_state(&state, &host->pdev[TWO]->dev, page));
	KUNIT_EXPECT_PTR_EQ(test, state.mem, pcim_p2pdma_provider(pdev, 1));
	pci_p2pdma_destroy_pages(pages);
}

static bool cpu_allows_all(void)
{
	return boot_cpu_data.x86_vendor == X86_VENDOR_AMD &&
	       boot_cpu_data.x86 >= 0x17;
}

/* Below a host bridge that nobody knows */
static void map_type_unknown_bridge(struct kunit *test)
{
	enum pci_p2pdma_map_type through = cpu_allows_all() ?
		PCI_P2PDMA_MAP_THRU_HOST_BRIDGE : PCI_P2PDMA_MAP_NOT_SUPPORTED;
	struct test_host *other;
	struct pci_dev *six;

	other = test_host_add(TEST_DOMAIN + 1, PCI_VENDOR_ID_REDHAT_QUMRANET);
	KUNIT_ASSERT_NOT_NULL(test, other);
	six = other->pdev[SIX];
	set_acs(other, ROOT_PORT, 0);
	set_acs(other, PORT_SIX, 0);
	set_acs(other, PORT_TWO, 0);

	KUNIT_EXPECT_EQ(test, 4, pci_p2pdma_distance(six, &other->pdev[TWO]->dev,
						     false));
	set_acs(other, PORT_TWO, PCI_ACS_RR);
	if (cpu_allows_all())
		KUNIT_EXPECT_EQ(test, 4,
				pci_p2pdma_distance(six, &other->pdev[TWO]->dev,
						    false));
	else
		KUNIT_EXPECT_EQ(test, -1,
				pci_p2pdma_distance(six, &other->pdev[TWO]->dev,
						    false));

	/* From one domain to the other: the unknown one decides */
	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(host->pdev[SIX]));
	KUNIT_EXPECT_EQ(test, through,
			pci_p2pdma_map_type(pcim_p2pdma_provider(host->pdev[SIX],
								 0), &six->dev));
	test_host_remove(other);
}

static void find_published(struct kunit *test)
{
	struct pci_dev *six = host->pdev[SIX], *found;
	struct device *client = &host->pdev[TWO]->dev;

	set_acs(host, PORT_SIX, 0);
	set_acs(host, PORT_TWO, 0);
	KUNIT_ASSERT_EQ(test, 0, pci_p2pdma_add_resource(six, 1, 0, 0));
	found = pci_p2pmem_find(client);
	KUNIT_EXPECT_PTR_NE(test, found, six);
	pci_dev_put(found);

	pci_p2pmem_publish(six, true);
	found = pci_p2pmem_find(client);
	KUNIT_EXPECT_PTR_EQ(test, found, six);
	pci_dev_put(found);

	/* There is nothing to be had any more */
	KUNIT_EXPECT_EQ(test, 0, pci_p2pdma_remove_resource(six, 1));
	found = pci_p2pmem_find(client);
	KUNIT_EXPECT_PTR_NE(test, found, six);
	pci_dev_put(found);
}

static struct kunit_case p2pdma_cases[] = {
	KUNIT_CASE(provider_lifetime),
	KUNIT_CASE(provider_refused),
	KUNIT_CASE(provider_without_memory),
	KUNIT_CASE(add_refused),
	KUNIT_CASE(remove_refused),
	KUNIT_CASE_PARAM(add_remove_bars, nr_bars_gen_params),
	KUNIT_CASE(unbind_mixture),
	KUNIT_CASE(remove_parts),
	KUNIT_CASE(bus_addresses),
	KUNIT_CASE(remove_waits),
	KUNIT_CASE_SLOW(remove_races_alloc),
	KUNIT_CASE(remove_zaps_only_its_bar),
	KUNIT_CASE(remove_waits_for_pins),
	KUNIT_CASE_PARAM(add_fails, failures_gen_params),
	KUNIT_CASE(init_fails),
	KUNIT_CASE(pages_fail),
	KUNIT_CASE(pages_create),
	KUNIT_CASE(pages_have_each_a_struct_page),
	KUNIT_CASE(pages_refused),
	KUNIT_CASE(pages_beside_p2pmem),
	KUNIT_CASE(pages_walk),
	KUNIT_CASE(pages_split),
	KUNIT_CASE(pages_leave_tails_alone),
	KUNIT_CASE(pages_wait_for_pins),
	KUNIT_CASE(map_types),
	KUNIT_CASE(map_type_of_pages),
	KUNIT_CASE(map_type_unknown_bridge),
	KUNIT_CASE(find_published),
	{ }
};

static struct kunit_suite p2pdma_suite = {
	.name = "pci-p2pdma",
	.suite_init = p2pdma_suite_init,
	.suite_exit = p2pdma_suite_exit,
	.init = p2pdma_test_init,
	.exit = p2pdma_test_exit,
	.test_cases = p2pdma_cases,
};

kunit_test_suite(p2pdma_suite);

MODULE_DESCRIPTION("KUnit tests of PCI peer-to-peer DMA support");
MODULE_LICENSE("GPL");
