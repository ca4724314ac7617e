// SPDX-License-Identifier: GPL-2.0-only
/*
 * The state of a vfio-pci dma-buf, its lifetime, and the one way in which
 * access to a BAR is given and taken back.
 *
 * A buffer is LIVE, SUSPENDED (memory decoding is off, the device is in D3 or
 * is being reset) or REVOKED (at its owner's request, because its device was
 * closed, or because its last user is gone).  LIVE and SUSPENDED alternate,
 * REVOKED is final.
 *
 * The state alone decides.  Whoever is about to let something reach the BAR,
 * a fault or an importer's map, asks the buffer with
 * vfio_pci_dma_buf_try_enter() (or, with the dma_resv lock that step 3 takes
 * held, looks at the state), never the registers of the device: each event
 * that takes the BAR away comes through vfio_pci_dma_buf_suspend(),
 * vfio_pci_dma_buf_reset_begin(), vfio_pci_dma_buf_error(),
 * vfio_pci_dma_buf_cleanup() or vfio_pci_dma_buf_revoke() first.
 *
 * Taking access away has four steps.  Each is done for all of a device's
 * buffers, and for all devices that are reset together, before the next one
 * begins, so that the CPUs are cut off at once and no importer waits for another
 * to be told:
 *
 *  1. the state is set: nobody enters any more, and all who did have left,
 *  2. the page table entries of all mappings are zapped,
 *  3. importers are told to stop,
 *  4. the importers' fences and mappings, and references to pages of the BAR,
 *     are waited for.
 *
 * A reset from outside of vfio does without step 4: those who would be waited
 * for may be waiting for that reset, as the driver of another device on the bus
 * that is being reset does.  The recovery of an error leaves steps 3 and 4 to
 * a transition that follows it, for the same reason.
 *
 * When all of it is over the buffer is drained: nothing reaches the BAR through it,
 * and nothing will, until it is LIVE again.  Becoming LIVE changes the state
 * and nothing else.  The next fault maps again; importers map again when they
 * want to.
 *
 * Locks, outermost first:
 *
 *  vdev->memory_lock, for write
 *	The registers that say whether the BARs can be accessed.  Never taken
 *	under mmap_lock.
 *  vdev->dmabufs_lock
 *	Serialises the transitions of a device.  Most come with memory_lock
 *	held, but a reset from outside of vfio and an error cannot: whoever has
 *	memory_lock may be waiting for their end, with an access to config space
 *	that they block, or for I/O of a device that they reset.  Nor do they
 *	wait for whoever holds this lock in step 4.
 *  buf->drain_lock
 *	Serialises who drains one buffer, and keeps buf->dmabuf in place for
 *	them.  Held during step 4, so that nothing that step 4 waits for may
 *	take it: it is not taken under mmap_lock or a dma_resv lock.
 *  buf->dmabuf->resv
 *  buf->lock
 *	The state.  Read: what is let in while LIVE stays within.  Write: held
 *	for the change alone, never across a step.  Taken under mmap_lock.
 *  vfio_pci_dma_bufs_lock
 *	A spinlock, innermost.  A device's list of buffers, buf->vdev, and
 *	whether new buffers begin SUSPENDED.  There is one for all devices, as
 *	a buffer has to take it without knowing whether its device still exists.
 *
 * A buffer is freed with its last reference.  The dma-buf holds one until it is
 * released, everyone who finds the buffer on the list takes one.  It is on the
 * list, and holds its device's registration, from vfio_pci_dma_buf_add() until
 * it is freed or the device is closed.  buf->dmabuf goes away with the dma-buf.
 * Its file goes away earlier (an O_PATH descriptor defers the release, but not
 * the freeing of the file) and is not looked at here at all; the inode, which
 * is needed to find the mappings, has a reference of its own.
 */
#include <linux/delay.h>
#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>

#include "vfio_pci_priv.h"

MODULE_IMPORT_NS("DMA_BUF");

static DEFINE_SPINLOCK(vfio_pci_dma_bufs_lock);

/**
 * vfio_pci_dma_buf_alloc - allocate a buffer
 * @nr_ranges: number of physical ranges to make room for
 *
 * The caller fills in the ranges, passes the buffer to dma_buf_export() as
 * priv, and then to vfio_pci_dma_buf_add().
 *
 * Context: May sleep.
 * Return: the buffer with one reference, to be given to the dma-buf or put with
 * vfio_pci_dma_buf_put(), or NULL.
 */
struct vfio_pci_dma_buf *vfio_pci_dma_buf_alloc(u32 nr_ranges)
{
	struct vfio_pci_dma_buf *buf;

	buf = kzalloc_obj(*buf, GFP_KERNEL_ACCOUNT);
	if (!buf)
		return NULL;

	kref_init(&buf->kref);
	init_rwsem(&buf->lock);
	mutex_init(&buf->drain_lock);
	INIT_LIST_HEAD(&buf->dmabufs_elm);
	buf->state = VFIO_PCI_DMA_BUF_SUSPENDED;
	buf->drained = true;
	buf->nr_ranges = nr_ranges;
	buf->phys_vec = kvcalloc(nr_ranges, sizeof(*buf->phys_vec),
				 GFP_KERNEL_ACCOUNT);
	buf->range_pgoff = kvcalloc(nr_ranges, sizeof(*buf->range_pgoff),
				    GFP_KERNEL_ACCOUNT);
	if (!buf->phys_vec || !buf->range_pgoff) {
		vfio_pci_dma_buf_put(buf);
		return NULL;
	}
	return buf;
}

static void vfio_pci_dma_buf_free(struct kref *kref)
	__releases(&vfio_pci_dma_bufs_lock)
{
	struct vfio_pci_dma_buf *buf =
		container_of(kref, struct vfio_pci_dma_buf, kref);
	struct vfio_pci_core_device *vdev = buf->vdev;

	/* Still a device's: it is open or its close has not come this far */
	if (vdev)
		list_del(&buf->dmabufs_elm);
	spin_unlock(&vfio_pci_dma_bufs_lock);

	if (buf->kind && buf->kind->release)
		buf->kind->release(buf);
	if (vdev)
		vfio_device_put_registration(&vdev->vdev);
	if (buf->inode)
		iput(buf->inode);
	mutex_destroy(&buf->drain_lock);
	kvfree(buf->range_pgoff);
	kvfree(buf->phys_vec);
	kfree(buf);
}

/**
 * vfio_pci_dma_buf_put - drop a reference to a buffer
 * @buf: the buffer
 *
 * Context: May sleep.
 */
void vfio_pci_dma_buf_put(struct vfio_pci_dma_buf *buf)
{
	kref_put_lock(&buf->kref, vfio_pci_dma_buf_free,
		      &vfio_pci_dma_bufs_lock);
}

/**
 * vfio_pci_dma_buf_add - make a buffer one of its device's
 * @vdev: the device, open
 * @buf: the buffer, complete
 * @dmabuf: the dma-buf that was exported with @buf as its priv
 *
 * From here on the buffer takes part in the device's transitions.  It begins
 * SUSPENDED if the device is.
 *
 * Context: May sleep.  Any locks but the ones that the top of this file puts
 * below vfio_pci_dma_bufs_lock, mmap_lock included.
 * Return: 0, or -ENODEV if the device is being unregistered.
 */
int vfio_pci_dma_buf_add(struct vfio_pci_core_device *vdev,
			 struct vfio_pci_dma_buf *buf, struct dma_buf *dmabuf)
{
	if (!vfio_device_try_get_registration(&vdev->vdev))
		return -ENODEV;

	buf->inode = file_inode(dmabuf->file);
	ihold(buf->inode);

	spin_lock(&vfio_pci_dma_bufs_lock);
	buf->dmabuf = dmabuf;
	buf->vdev = vdev;
	buf->state = vdev->dmabufs_suspended ? VFIO_PCI_DMA_BUF_SUSPENDED :
					       VFIO_PCI_DMA_BUF_LIVE;
	buf->notified = vdev->dmabufs_suspended;
	buf->drained = vdev->dmabufs_suspended;
	list_add_tail(&buf->dmabufs_elm, &vdev->dmabufs);
	spin_unlock(&vfio_pci_dma_bufs_lock);
	return 0;
}

/* The buffer after @prev, whose reference is dropped, or the first one */
static struct vfio_pci_dma_buf *
vfio_pci_dma_buf_next(struct vfio_pci_core_device *vdev,
		      struct vfio_pci_dma_buf *prev)
{
	struct vfio_pci_dma_buf *buf = prev;

	/* Only cleanup unlinks a buffer that has references, at its end */
	lockdep_assert_held(&vdev->dmabufs_lock);

	spin_lock(&vfio_pci_dma_bufs_lock);
	buf = list_prepare_entry(buf, &vdev->dmabufs, dmabufs_elm);
	buf = list_next_entry(buf, dmabufs_elm);
	if (list_entry_is_head(buf, &vdev->dmabufs, dmabufs_elm))
		buf = NULL;
	else
		kref_get(&buf->kref);
	spin_unlock(&vfio_pci_dma_bufs_lock);

	if (prev)
		vfio_pci_dma_buf_put(prev);
	return buf;
}

/* Steps 1 and 2.  Returns the state that the buffer had. */
static enum vfio_pci_dma_buf_state
vfio_pci_dma_buf_cut(struct vfio_pci_dma_buf *buf,
		     enum vfio_pci_dma_buf_state state)
{
	enum vfio_pci_dma_buf_state old;

	down_write(&buf->lock);
	old = buf->state;
	if (state > old)
		WRITE_ONCE(buf->state, state);
	up_write(&buf->lock);

	if (!READ_ONCE(buf->drained))
		unmap_mapping_range(buf->inode->i_mapping, 0, 0, true);
	return old;
}

static void vfio_pci_dma_buf_notify_locked(struct vfio_pci_dma_buf *buf)
{
	lockdep_assert_held(&buf->drain_lock);

	if (buf->notified || !buf->dmabuf)
		return;

	dma_resv_lock(buf->dmabuf->resv, NULL);
	dma_buf_invalidate_mappings(buf->dmabuf);
	dma_resv_unlock(buf->dmabuf->resv);
	buf->notified = true;
}

/* Step 3, ahead of step 4 */
static void vfio_pci_dma_buf_notify(struct vfio_pci_dma_buf *buf)
{
	/* Whoever holds the lock has done this or is about to */
	if (!mutex_trylock(&buf->drain_lock))
		return;
	vfio_pci_dma_buf_notify_locked(buf);
	mutex_unlock(&buf->drain_lock);
}

static int vfio_pci_dma_buf_wait(struct vfio_pci_dma_buf *buf, bool intr)
{
	long ret;

	if (buf->dmabuf) {
		ret = dma_resv_wait_timeout(buf->dmabuf->resv,
					    DMA_RESV_USAGE_BOOKKEEP, intr,
					    MAX_SCHEDULE_TIMEOUT);
		if (ret < 0)
			return ret;
	}

	if (!intr)
		wait_var_event(&buf->nr_maps,
			       !atomic_read_acquire(&buf->nr_maps));
	else if (wait_var_event_interruptible(&buf->nr_maps,
					      !atomic_read_acquire(&buf->nr_maps)))
		return -EINTR;

	if (buf->kind && buf->kind->drain)
		return buf->kind->drain(buf, intr);
	return 0;
}

/*
 * Steps 3 and 4.  Returns 0 when the buffer is drained, 1 if it was already, or
 * -EINTR, which can only be if @intr is set.
 */
static int vfio_pci_dma_buf_drain(struct vfio_pci_dma_buf *buf, bool intr)
{
	int ret = 0;

	if (!intr)
		mutex_lock(&buf->drain_lock);
	else if (mutex_lock_interruptible(&buf->drain_lock))
		return -EINTR;

	if (buf->drained) {
		ret = 1;
	} else {
		vfio_pci_dma_buf_notify_locked(buf);
		if (vfio_pci_dma_buf_wait(buf, intr))
			ret = -EINTR;
		else
			WRITE_ONCE(buf->drained, true);
	}

	/* Nobody enters again, nobody is in: what only they need can go */
	if (ret >= 0 && READ_ONCE(buf->state) == VFIO_PCI_DMA_BUF_REVOKED &&
	    buf->kind && buf->kind->release)
		buf->kind->release(buf);

	mutex_unlock(&buf->drain_lock);
	return ret;
}

/* Returns the reasons that there are now for new buffers to begin SUSPENDED */
static unsigned int
vfio_pci_dma_bufs_change_reasons(struct vfio_pci_core_device *vdev,
				 unsigned int clear, unsigned int set)
{
	unsigned int reasons;

	spin_lock(&vfio_pci_dma_bufs_lock);
	reasons = (vdev->dmabufs_suspended & ~clear) | set;
	WRITE_ONCE(vdev->dmabufs_suspended, reasons);
	spin_unlock(&vfio_pci_dma_bufs_lock);
	return reasons;
}

/* Steps 1 and 2 for all buffers */
static void vfio_pci_dma_bufs_cut(struct vfio_pci_core_device *vdev,
				  enum vfio_pci_dma_buf_state state)
{
	struct vfio_pci_dma_buf *buf = NULL;

	while ((buf = vfio_pci_dma_buf_next(vdev, buf)))
		vfio_pci_dma_buf_cut(buf, state);
}

/* The same, for all but resets from outside, which can tell when it is done */
static void vfio_pci_dma_bufs_off(struct vfio_pci_core_device *vdev,
				  enum vfio_pci_dma_buf_state state)
{
	vfio_pci_dma_bufs_change_reasons(vdev, 0, VFIO_PCI_BARS_OFF);
	vfio_pci_dma_bufs_cut(vdev, state);
	vfio_pci_dma_bufs_change_reasons(vdev, 0, VFIO_PCI_BARS_CUT);
}

/* Step 3 for all buffers */
static void vfio_pci_dma_bufs_notify(struct vfio_pci_core_device *vdev)
{
	struct vfio_pci_dma_buf *buf = NULL;

	while ((buf = vfio_pci_dma_buf_next(vdev, buf)))
		vfio_pci_dma_buf_notify(buf);
}

/* Step 4 for all buffers */
static void vfio_pci_dma_bufs_drain(struct vfio_pci_core_device *vdev)
{
	struct vfio_pci_dma_buf *buf = NULL;

	while ((buf = vfio_pci_dma_buf_next(vdev, buf)))
		vfio_pci_dma_buf_drain(buf, false);
}

static void vfio_pci_dma_bufs_give_back(struct vfio_pci_core_device *vdev)
{
	struct vfio_pci_dma_buf *buf = NULL;

	while ((buf = vfio_pci_dma_buf_next(vdev, buf))) {
		down_write(&buf->lock);
		/* Who drains SUSPENDED buffers holds dmabufs_lock: nobody does */
		if (buf->state == VFIO_PCI_DMA_BUF_SUSPENDED) {
			buf->notified = false;
			WRITE_ONCE(buf->drained, false);
			WRITE_ONCE(buf->state, VFIO_PCI_DMA_BUF_LIVE);
		}
		up_write(&buf->lock);
	}
}

/**
 * vfio_pci_dma_buf_suspend - take all access through a device's buffers back
 * @vdev: the device
 *
 * To be called before memory decoding goes off, the device goes to D3 or is
 * reset.  Returns when nothing reaches a BAR through a buffer any more.  Does
 * not wait again for buffers that are drained.
 *
 * Context: memory_lock held for write.  Waits, uninterruptibly, for importers
 * and for I/O that holds references to pages of a buffer.
 */
void vfio_pci_dma_buf_suspend(struct vfio_pci_core_device *vdev)
{
	lockdep_assert_held_write(&vdev->memory_lock);

	mutex_lock(&vdev->dmabufs_lock);
	vfio_pci_dma_bufs_off(vdev, VFIO_PCI_DMA_BUF_SUSPENDED);
	vfio_pci_dma_bufs_notify(vdev);
	vfio_pci_dma_bufs_drain(vdev);
	mutex_unlock(&vdev->dmabufs_lock);
}

/**
 * vfio_pci_dma_buf_suspend_set - the same for devices that are reset together
 * @dev_set: the devices, all of them vfio-pci's
 *
 * Each step is done for all devices before the next one begins.
 *
 * Context: as vfio_pci_dma_buf_suspend(), with memory_lock of all devices.
 */
void vfio_pci_dma_buf_suspend_set(struct vfio_device_set *dev_set)
{
	struct vfio_pci_core_device *vdev;

	lockdep_assert_held(&dev_set->lock);

	/*
	 * A device's lock is not kept between the steps: it is never held while
	 * waiting for another device.  With VFIO_PCI_BARS_OFF set nobody gives
	 * access back in between.
	 */
	list_for_each_entry(vdev, &dev_set->device_list, vdev.dev_set_list) {
		lockdep_assert_held_write(&vdev->memory_lock);

		mutex_lock(&vdev->dmabufs_lock);
		vfio_pci_dma_bufs_off(vdev, VFIO_PCI_DMA_BUF_SUSPENDED);
		mutex_unlock(&vdev->dmabufs_lock);
	}
	list_for_each_entry(vdev, &dev_set->device_list, vdev.dev_set_list) {
		mutex_lock(&vdev->dmabufs_lock);
		vfio_pci_dma_bufs_notify(vdev);
		mutex_unlock(&vdev->dmabufs_lock);
	}
	list_for_each_entry(vdev, &dev_set->device_list, vdev.dev_set_list) {
		mutex_lock(&vdev->dmabufs_lock);
		vfio_pci_dma_bufs_drain(vdev);
		mutex_unlock(&vdev->dmabufs_lock);
	}
}

/**
 * vfio_pci_dma_buf_resume - make a device's suspended buffers LIVE
 * @vdev: the device, its BARs accessible unless somebody else resets it
 *
 * Context: memory_lock held for write.
 */
void vfio_pci_dma_buf_resume(struct vfio_pci_core_device *vdev)
{
	lockdep_assert_held_write(&vdev->memory_lock);

	mutex_lock(&vdev->dmabufs_lock);
	if (!vfio_pci_dma_bufs_change_reasons(vdev, VFIO_PCI_BARS_OFF |
						    VFIO_PCI_BARS_CUT, 0))
		vfio_pci_dma_bufs_give_back(vdev);
	mutex_unlock(&vdev->dmabufs_lock);
}

/*
 * For a reset from outside, not to wait for a transition that waits: the CPUs
 * are cut off then, importers have been told or are about to be, and nothing is
 * given back before the end of it.
 */
static bool vfio_pci_dma_bufs_lock_unless_cut(struct vfio_pci_core_device *vdev)
{
	while (!mutex_trylock(&vdev->dmabufs_lock)) {
		if (READ_ONCE(vdev->dmabufs_suspended) & VFIO_PCI_BARS_CUT)
			return false;
		usleep_range(100, 1000);
	}
	return true;
}

/**
 * vfio_pci_dma_buf_reset_begin - somebody begins to reset a device
 * @vdev: the device
 *
 * Takes access back from the CPUs and tells importers, but waits for nobody.
 *
 * Context: May sleep.  Without memory_lock, or with it if the buffers are
 * suspended.
 */
void vfio_pci_dma_buf_reset_begin(struct vfio_pci_core_device *vdev)
{
	vfio_pci_dma_bufs_change_reasons(vdev, 0, VFIO_PCI_BARS_RESET);
	if (!vfio_pci_dma_bufs_lock_unless_cut(vdev))
		return;

	vfio_pci_dma_bufs_cut(vdev, VFIO_PCI_DMA_BUF_SUSPENDED);
	vfio_pci_dma_bufs_notify(vdev);
	mutex_unlock(&vdev->dmabufs_lock);
}

/**
 * vfio_pci_dma_buf_reset_end - the reset is over
 * @vdev: the device
 *
 * Makes the buffers LIVE if the reset was the only reason for them not to be.
 *
 * Context: as vfio_pci_dma_buf_reset_begin()
 */
void vfio_pci_dma_buf_reset_end(struct vfio_pci_core_device *vdev)
{
	vfio_pci_dma_bufs_change_reasons(vdev, VFIO_PCI_BARS_RESET, 0);
	if (!vfio_pci_dma_bufs_lock_unless_cut(vdev))
		return;

	if (!READ_ONCE(vdev->dmabufs_suspended))
		vfio_pci_dma_bufs_give_back(vdev);
	mutex_unlock(&vdev->dmabufs_lock);
}

/**
 * vfio_pci_dma_buf_error - an error takes a device's BARs away
 * @vdev: the device
 * @over: false if its recovery begins, and its end will be told
 *
 * Takes access back from the CPUs.  Importers are for the next
 * vfio_pci_dma_buf_suspend() to tell: one may be waiting for the recovery of its
 * own device by the thread that calls this.  Nothing is given back before
 * vfio_pci_dma_buf_error_over(), so that nobody does who has looked at the device
 * earlier.
 *
 * Context: as vfio_pci_dma_buf_reset_begin()
 */
void vfio_pci_dma_buf_error(struct vfio_pci_core_device *vdev, bool over)
{
	if (over)
		vfio_pci_dma_bufs_change_reasons(vdev, 0, VFIO_PCI_BARS_ERROR |
						 VFIO_PCI_BARS_ERROR_OVER);
	else
		vfio_pci_dma_bufs_change_reasons(vdev, VFIO_PCI_BARS_ERROR_OVER,
						 VFIO_PCI_BARS_ERROR);
	if (!vfio_pci_dma_bufs_lock_unless_cut(vdev))
		return;

	vfio_pci_dma_bufs_cut(vdev, VFIO_PCI_DMA_BUF_SUSPENDED);
	mutex_unlock(&vdev->dmabufs_lock);
}

/**
 * vfio_pci_dma_buf_error_over - an error is a reason no more if it is over
 * @vdev: the device, its buffers suspended
 *
 * Context: memory_lock held for write.
 */
void vfio_pci_dma_buf_error_over(struct vfio_pci_core_device *vdev)
{
	lockdep_assert_held_write(&vdev->memory_lock);

	spin_lock(&vfio_pci_dma_bufs_lock);
	if (vdev->dmabufs_suspended & VFIO_PCI_BARS_ERROR_OVER)
		WRITE_ONCE(vdev->dmabufs_suspended, vdev->dmabufs_suspended &
			   ~(VFIO_PCI_BARS_ERROR | VFIO_PCI_BARS_ERROR_OVER));
	spin_unlock(&vfio_pci_dma_bufs_lock);
}

/**
 * vfio_pci_dma_buf_cleanup - revoke a device's buffers and let go of them
 * @vdev: the device, being closed
 *
 * Context: May sleep, waits like vfio_pci_dma_buf_suspend().
 */
void vfio_pci_dma_buf_cleanup(struct vfio_pci_core_device *vdev)
{
	struct vfio_pci_dma_buf *buf;
	unsigned int nr = 0;

	down_write(&vdev->memory_lock);
	mutex_lock(&vdev->dmabufs_lock);
	vfio_pci_dma_bufs_off(vdev, VFIO_PCI_DMA_BUF_REVOKED);
	vfio_pci_dma_bufs_notify(vdev);
	vfio_pci_dma_bufs_drain(vdev);

	spin_lock(&vfio_pci_dma_bufs_lock);
	while ((buf = list_first_entry_or_null(&vdev->dmabufs, typeof(*buf),
					       dmabufs_elm))) {
		list_del_init(&buf->dmabufs_elm);
		WRITE_ONCE(buf->vdev, NULL);
		nr++;
	}
	spin_unlock(&vfio_pci_dma_bufs_lock);
	mutex_unlock(&vdev->dmabufs_lock);
	up_write(&vdev->memory_lock);

	while (nr--)
		vfio_device_put_registration(&vdev->vdev);
}

/**
 * vfio_pci_dma_buf_revoke - revoke one buffer for good
 * @buf: the buffer
 *
 * Access is cut when this starts to wait for the rest, and stays so.
 *
 * Context: May sleep.  No locks held: the wait for importers and page
 * references is interruptible, and only as long as theirs.
 * Return: 0 when the buffer is drained; -EINTR if interrupted, call again to go
 * on waiting; -EBADFD if it was revoked and drained before.
 */
int vfio_pci_dma_buf_revoke(struct vfio_pci_dma_buf *buf)
{
	enum vfio_pci_dma_buf_state old;
	int ret;

	old = vfio_pci_dma_buf_cut(buf, VFIO_PCI_DMA_BUF_REVOKED);
	ret = vfio_pci_dma_buf_drain(buf, true);
	if (ret < 0)
		return ret;
	return ret && old == VFIO_PCI_DMA_BUF_REVOKED ? -EBADFD : 0;
}

/**
 * vfio_pci_dma_buf_release - the last user of a dma-buf is gone
 * @dmabuf: the dma-buf
 *
 * The release operation of all vfio-pci dma-bufs.  No mapping and no importer
 * is left, but there can be I/O in flight that holds page references, and a
 * transition of the device may be at work on the buffer.
 *
 * Context: May sleep.
 */
void vfio_pci_dma_buf_release(struct dma_buf *dmabuf)
{
	struct vfio_pci_dma_buf *buf = dmabuf->priv;

	mutex_lock(&buf->drain_lock);
	buf->dmabuf = NULL;
	mutex_unlock(&buf->drain_lock);

	if (buf->inode) {
		vfio_pci_dma_buf_cut(buf, VFIO_PCI_DMA_BUF_REVOKED);
		vfio_pci_dma_buf_drain(buf, false);
	}
	vfio_pci_dma_buf_put(buf);
}

/**
 * vfio_pci_dma_buf_get_map - account for an importer's mapping
 * @buf: the buffer
 *
 * Return: 0, to be undone with vfio_pci_dma_buf_put_map(), or -ENODEV if the
 * buffer is not LIVE.
 */
int vfio_pci_dma_buf_get_map(struct vfio_pci_dma_buf *buf)
{
	if (!vfio_pci_dma_buf_try_enter(buf))
		return -ENODEV;
	atomic_inc(&buf->nr_maps);
	vfio_pci_dma_buf_exit(buf);
	return 0;
}

/**
 * vfio_pci_dma_buf_put_map - an importer's mapping is gone
 * @buf: the buffer
 */
void vfio_pci_dma_buf_put_map(struct vfio_pci_dma_buf *buf)
{
	if (atomic_dec_and_test(&buf->nr_maps))
		wake_up_var(&buf->nr_maps);
}
