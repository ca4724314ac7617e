// SPDX-License-Identifier: GPL-2.0
/*
 * An importer of dma-bufs that does what it is told, and lets go of them when it
 * is told. Each open file of /sys/kernel/debug/dmabuf-importer is one; what is
 * written to it is done before write() returns, closing it ends all of it.
 *
 *	attach FD BDF	on behalf of a PCI device
 *	attach FD BDF pinned|host
 *			as an importer that cannot be told to let go, or that
 *			wants memory of the host
 *	map, unmap	as often as wanted, one mapping at a time
 *	detach
 *	slow WHAT	what the next "map" makes it slow at when the exporter
 *			invalidates the mapping:
 *		no		it unmaps at once
 *		unmap		the mapping stays
 *		fence		the mapping goes, but there is a fence from
 *				"map" on that has not been signaled
 *		callback	it does not return from the callback, under the
 *				lock of the reservation object, and unmaps then
 *	go		it is slow no more: unmaps, signals, returns
 *
 * Reading it tells how often it was told to let go since it attached, whether it
 * has a mapping, and whether it is in the callback.
 *
 * Nobody is slow for ever: a test that went wrong has to come to its end.
 */
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-resv.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

MODULE_IMPORT_NS("DMA_BUF");

#define PATIENCE	(45 * HZ)

enum slow { SLOW_NO, SLOW_UNMAP, SLOW_FENCE, SLOW_CALLBACK };

static const char * const slow_names[] = { "no", "unmap", "fence", "callback" };

struct importer {
	struct mutex lock;		/* one command at a time */
	struct dma_buf_attachment *attach;
	struct pci_dev *pdev;
	struct dma_fence *fence;
	struct completion go;
	struct delayed_work timeout;
	atomic_t told;
	atomic_t in_callback;

	/* Under the lock of the reservation object */
	enum slow slow;
	struct sg_table *sgt;
};

static struct dentry *file;
static u64 fence_context;
static atomic64_t fence_seqno;

static const char *importer_fence_name(struct dma_fence *fence)
{
	return KBUILD_MODNAME;
}

static const struct dma_fence_ops importer_fence_ops = {
	.get_driver_name = importer_fence_name,
	.get_timeline_name = importer_fence_name,
};

static void unmap_locked(struct importer *imp)
{
	if (!imp->sgt)
		return;
	dma_buf_unmap_attachment(imp->attach, imp->sgt, DMA_BIDIRECTIONAL);
	imp->sgt = NULL;
}

static void importer_invalidate(struct dma_buf_attachment *attach)
{
	struct importer *imp = attach->importer_priv;

	dma_resv_assert_held(attach->dmabuf->resv);

	atomic_inc(&imp->told);
	if (!imp->sgt)
		return;

	schedule_delayed_work(&imp->timeout, PATIENCE);
	if (imp->slow == SLOW_UNMAP)
		return;
	if (imp->slow == SLOW_CALLBACK) {
		atomic_inc(&imp->in_callback);
		wait_for_completion(&imp->go);
		atomic_dec(&imp->in_callback);
	}
	unmap_locked(imp);
}

static const struct dma_buf_attach_ops importer_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = importer_invalidate,
};

static const struct dma_buf_attach_ops importer_pinned_ops = {
	.allow_peer2peer = true,
};

static const struct dma_buf_attach_ops importer_host_ops = {
	.invalidate_mappings = importer_invalidate,
};

static int do_attach(struct importer *imp, int fd, const char *bdf,
		     const char *kind)
{
	const struct dma_buf_attach_ops *ops = &importer_ops;
	struct dma_buf_attachment *attach;
	struct dma_buf *dmabuf;
	struct device *dev;

	if (imp->attach)
		return -EBUSY;
	if (!strcmp(kind, "pinned"))
		ops = &importer_pinned_ops;
	else if (!strcmp(kind, "host"))
		ops = &importer_host_ops;
	else if (*kind)
		return -EINVAL;

	dev = bus_find_device_by_name(&pci_bus_type, NULL, bdf);
	if (!dev)
		return -ENXIO;
	dmabuf = dma_buf_get(fd);
	if (IS_ERR(dmabuf)) {
		put_device(dev);
		return PTR_ERR(dmabuf);
	}

	atomic_set(&imp->told, 0);
	attach = dma_buf_dynamic_attach(dmabuf, dev, ops, imp);
	if (IS_ERR(attach)) {
		dma_buf_put(dmabuf);
		put_device(dev);
		return PTR_ERR(attach);
	}
	imp->attach = attach;
	imp->pdev = to_pci_dev(dev);
	return 0;
}

static int add_fence_locked(struct importer *imp)
{
	struct dma_resv *resv = imp->attach->dmabuf->resv;
	struct dma_fence *fence;
	int ret;

	ret = dma_resv_reserve_fences(resv, 1);
	if (ret)
		return ret;
	fence = kzalloc_obj(*fence);
	if (!fence)
		return -ENOMEM;

	dma_fence_init64(fence, &importer_fence_ops, NULL, fence_context,
			 atomic64_inc_return(&fence_seqno));
	dma_resv_add_fence(resv, fence, DMA_RESV_USAGE_BOOKKEEP);
	imp->fence = fence;
	return 0;
}

static int do_map(struct importer *imp)
{
	struct dma_resv *resv = imp->attach->dmabuf->resv;
	struct sg_table *sgt;
	int ret;

	dma_resv_lock(resv, NULL);
	if (imp->sgt || imp->fence) {
		ret = -EBUSY;
		goto unlock;
	}
	sgt = dma_buf_map_attachment(imp->attach, DMA_BIDIRECTIONAL);
	ret = PTR_ERR_OR_ZERO(sgt);
	if (ret)
		goto unlock;
	imp->sgt = sgt;
	reinit_completion(&imp->go);
	if (imp->slow == SLOW_FENCE)
		ret = add_fence_locked(imp);
unlock:
	dma_resv_unlock(resv);
	return ret;
}

static int do_unmap(struct importer *imp)
{
	struct dma_resv *resv = imp->attach->dmabuf->resv;
	int ret;

	dma_resv_lock(resv, NULL);
	ret = imp->sgt ? 0 : -EINVAL;
	unmap_locked(imp);
	dma_resv_unlock(resv);
	return ret;
}

static void do_go(struct importer *imp)
{
	struct dma_resv *resv = imp->attach->dmabuf->resv;

	/* Who is in the callback holds the lock */
	complete_all(&imp->go);

	dma_resv_lock(resv, NULL);
	if (imp->fence) {
		dma_fence_signal(imp->fence);
		dma_fence_put(imp->fence);
		imp->fence = NULL;
	}
	if (imp->slow == SLOW_UNMAP)
		unmap_locked(imp);
	dma_resv_unlock(resv);
}

static void importer_timeout(struct work_struct *work)
{
	do_go(container_of(to_delayed_work(work), struct importer, timeout));
}

static int do_slow(struct importer *imp, const char *what)
{
	int slow = match_string(slow_names, ARRAY_SIZE(slow_names), what);

	if (slow < 0)
		return slow;
	dma_resv_lock(imp->attach->dmabuf->resv, NULL);
	imp->slow = slow;
	dma_resv_unlock(imp->attach->dmabuf->resv);
	return 0;
}

static void do_detach(struct importer *imp)
{
	struct dma_buf *dmabuf = imp->attach->dmabuf;

	do_go(imp);
	do_unmap(imp);
	/* Only a callback that finds a mapping starts it */
	cancel_delayed_work_sync(&imp->timeout);
	dma_buf_detach(dmabuf, imp->attach);
	dma_buf_put(dmabuf);
	pci_dev_put(imp->pdev);
	imp->attach = NULL;
	imp->slow = SLOW_NO;
}

static int run(struct importer *imp, const char *what, int fd, const char *arg,
	       const char *kind)
{
	if (!strcmp(what, "attach"))
		return do_attach(imp, fd, arg, kind);
	if (!imp->attach)
		return -EINVAL;

	if (!strcmp(what, "map"))
		return do_map(imp);
	if (!strcmp(what, "unmap"))
		return do_unmap(imp);
	if (!strcmp(what, "slow"))
		return do_slow(imp, arg);
	if (!strcmp(what, "go"))
		do_go(imp);
	else if (!strcmp(what, "detach"))
		do_detach(imp);
	else
		return -EINVAL;
	return 0;
}

static ssize_t importer_write(struct file *filp, const char __user *from,
			      size_t count, loff_t *pos)
{
	char text[80], what[16], arg[32] = "", kind[16] = "";
	struct importer *imp = filp->private_data;
	int ret, fd = -1;

	if (count >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, count))
		return -EFAULT;
	text[count] = 0;
	if (sscanf(text, "attach %d %31s %15s", &fd, arg, kind) >= 2)
		strscpy(what, "attach");
	else if (sscanf(text, "%15s %31s", what, arg) < 1)
		return -EINVAL;

	/* The command that holds the lock may wait for who is in the callback */
	if (!strcmp(what, "go"))
		complete_all(&imp->go);

	mutex_lock(&imp->lock);
	ret = run(imp, what, fd, arg, kind);
	mutex_unlock(&imp->lock);
	return ret ?: count;
}

static ssize_t importer_read(struct file *filp, char __user *to, size_t count,
			     loff_t *pos)
{
	struct importer *imp = filp->private_data;
	char text[64];
	int length;

	length = scnprintf(text, sizeof(text), "told %d mapped %d in_callback %d\n",
			   atomic_read(&imp->told), !!READ_ONCE(imp->sgt),
			   atomic_read(&imp->in_callback));
	return simple_read_from_buffer(to, count, pos, text, length);
}

static int importer_open(struct inode *inode, struct file *filp)
{
	struct importer *imp = kzalloc_obj(*imp);

	if (!imp)
		return -ENOMEM;
	mutex_init(&imp->lock);
	init_completion(&imp->go);
	INIT_DELAYED_WORK(&imp->timeout, importer_timeout);
	filp->private_data = imp;
	return 0;
}

static int importer_release(struct inode *inode, struct file *filp)
{
	struct importer *imp = filp->private_data;

	if (imp->attach)
		do_detach(imp);
	mutex_destroy(&imp->lock);
	kfree(imp);
	return 0;
}

static const struct file_operations importer_fops = {
	.owner = THIS_MODULE,
	.open = importer_open,
	.release = importer_release,
	.read = importer_read,
	.write = importer_write,
};

static int __init importer_init(void)
{
	fence_context = dma_fence_context_alloc(1);
	file = debugfs_create_file("dmabuf-importer", 0600, NULL, NULL,
				   &importer_fops);
	return PTR_ERR_OR_ZERO(file);
}

static void __exit importer_exit(void)
{
	debugfs_remove(file);
	/* Signaled fences do not need this module, but for who still looks */
	synchronize_rcu();
}

module_init(importer_init);
module_exit(importer_exit);
MODULE_DESCRIPTION("Imports dma-bufs and lets go of them late, for tests");
MODULE_LICENSE("GPL");
