// SPDX-License-Identifier: GPL-2.0
/*
 * Lets a test be the driver that adds and removes p2pmem: what is written to
 * /sys/kernel/debug/p2pmem-ctl is done before write() returns.
 *
 *	add BDF BAR [SIZE [OFFSET]]	under the device's lock, like a probe
 *	remove BDF BAR			the same
 *	publish BDF 0|1
 *	alloc BDF SIZE			kernel memory, one at a time
 *	free BDF SIZE
 */
#include <linux/debugfs.h>
#include <linux/device.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/pci-p2pdma.h>
#include <linux/uaccess.h>

#ifdef NO_REMOVE
#define pci_p2pdma_remove_resource(pdev, bar)	(-EOPNOTSUPP)
#endif

static struct dentry *file;
static DEFINE_MUTEX(allocated_mutex);
static void *allocated;

static struct pci_dev *find(const char *bdf)
{
	struct device *dev = bus_find_device_by_name(&pci_bus_type, NULL, bdf);

	return dev ? to_pci_dev(dev) : NULL;
}

static int run(struct pci_dev *pdev, const char *what,
	       unsigned long arg, size_t size, u64 offset)
{
	int ret = -EINVAL;

	if (!strcmp(what, "alloc") || !strcmp(what, "free")) {
		mutex_lock(&allocated_mutex);
		if (!strcmp(what, "alloc") && !allocated) {
			allocated = pci_alloc_p2pmem(pdev, arg);
			ret = allocated ? 0 : -ENOMEM;
		} else if (!strcmp(what, "free") && allocated) {
			pci_free_p2pmem(pdev, allocated, arg);
			allocated = NULL;
			ret = 0;
		}
		mutex_unlock(&allocated_mutex);
		return ret;
	}

	if (!strcmp(what, "publish")) {
		pci_p2pmem_publish(pdev, arg);
		return 0;
	}

	device_lock(&pdev->dev);
	if (!pdev->dev.driver)
		ret = -ENODEV;
	else if (!strcmp(what, "add"))
		ret = pci_p2pdma_add_resource(pdev, arg, size, offset);
	else if (!strcmp(what, "remove"))
		ret = pci_p2pdma_remove_resource(pdev, arg);
	device_unlock(&pdev->dev);
	return ret;
}

static ssize_t p2pmem_ctl_write(struct file *filp, const char __user *from,
				size_t count, loff_t *pos)
{
	char text[80], what[16], bdf[32];
	unsigned long arg, size = 0;
	struct pci_dev *pdev;
	u64 offset = 0;
	int ret;

	if (count >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, count))
		return -EFAULT;
	text[count] = 0;
	if (sscanf(text, "%15s %31s %lu %lu %llu", what, bdf, &arg, &size,
		   &offset) < 3)
		return -EINVAL;

	pdev = find(bdf);
	if (!pdev)
		return -ENXIO;
	ret = run(pdev, what, arg, size, offset);
	pci_dev_put(pdev);
	return ret ?: count;
}

static const struct file_operations p2pmem_ctl_fops = {
	.owner = THIS_MODULE,
	.write = p2pmem_ctl_write,
};

static int __init p2pmem_ctl_init(void)
{
	file = debugfs_create_file("p2pmem-ctl", 0200, NULL, NULL,
				   &p2pmem_ctl_fops);
	return PTR_ERR_OR_ZERO(file);
}

static void __exit p2pmem_ctl_exit(void)
{
	debugfs_remove(file);
}

module_init(p2pmem_ctl_init);
module_exit(p2pmem_ctl_exit);
MODULE_DESCRIPTION("Adds and removes p2pmem for tests");
MODULE_LICENSE("GPL");
