// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of what vfio-pci dma-bufs do without a device: ranges, and who is
 * let in.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/sizes.h>

#include "vfio_pci_priv.h"

#ifdef CONFIG_PHYS_ADDR_T_64BIT
#define BAR	0x380000000000ULL
#else
#define BAR	0x80000000UL
#endif

static void put_buf(void *buf)
{
	vfio_pci_dma_buf_put(buf);
}

static struct vfio_pci_dma_buf *make_buf(struct kunit *test, u32 nr_ranges)
{
	struct vfio_pci_dma_buf *buf = vfio_pci_dma_buf_alloc(nr_ranges);

	KUNIT_ASSERT_NOT_NULL(test, buf);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, put_buf, buf));
	return buf;
}

static struct vfio_pci_dma_buf *buf_of(struct kunit *test, u32 nr_ranges,
				       const struct phys_vec *vec)
{
	struct vfio_pci_dma_buf *buf = make_buf(test, nr_ranges);
	u32 i;

	for (i = 0; i < nr_ranges; i++)
		buf->phys_vec[i] = vec[i];
	vfio_pci_dma_buf_index_ranges(buf);
	return buf;
}

static void expect_pfn(struct kunit *test, struct vfio_pci_dma_buf *buf,
		       unsigned long pgoff, unsigned long nr, phys_addr_t addr)
{
	unsigned long pfn = ~0UL;

	KUNIT_EXPECT_TRUE_MSG(test,
			      vfio_pci_dma_buf_lookup(buf, pgoff, nr, &pfn),
			      "%lu pages at %lu", nr, pgoff);
	KUNIT_EXPECT_EQ_MSG(test, pfn, (unsigned long)PHYS_PFN(addr),
			    "%lu pages at %lu", nr, pgoff);
}

static void expect_no_pfn(struct kunit *test, struct vfio_pci_dma_buf *buf,
			  unsigned long pgoff, unsigned long nr)
{
	unsigned long pfn;

	KUNIT_EXPECT_FALSE_MSG(test,
			       vfio_pci_dma_buf_lookup(buf, pgoff, nr, &pfn),
			       "%lu pages at %lu", nr, pgoff);
}

static void lookup_finds_both_ends_of_one_range(struct kunit *test)
{
	struct phys_vec vec = { BAR, 8 * PAGE_SIZE };
	struct vfio_pci_dma_buf *buf = buf_of(test, 1, &vec);

	expect_pfn(test, buf, 0, 1, BAR);
	expect_pfn(test, buf, 7, 1, BAR + 7 * PAGE_SIZE);
	expect_pfn(test, buf, 0, 8, BAR);
}

static void lookup_refuses_what_is_past_the_end(struct kunit *test)
{
	struct phys_vec vec = { BAR, 8 * PAGE_SIZE };
	struct vfio_pci_dma_buf *buf = buf_of(test, 1, &vec);

	expect_no_pfn(test, buf, 8, 1);
	expect_no_pfn(test, buf, 7, 2);
	expect_no_pfn(test, buf, 0, 9);
	expect_no_pfn(test, buf, ULONG_MAX, 1);
	expect_no_pfn(test, buf, 1, ULONG_MAX);
}

static void ranges_are_concatenated_in_the_order_given(struct kunit *test)
{
	struct phys_vec vec[] = {
		{ BAR + SZ_1M, 2 * PAGE_SIZE },
		{ BAR, PAGE_SIZE },
		{ BAR + SZ_64K, 3 * PAGE_SIZE },
	};
	struct vfio_pci_dma_buf *buf = buf_of(test, ARRAY_SIZE(vec), vec);

	KUNIT_EXPECT_EQ(test, buf->nr_ranges, 3);
	expect_pfn(test, buf, 0, 2, BAR + SZ_1M);
	expect_pfn(test, buf, 1, 1, BAR + SZ_1M + PAGE_SIZE);
	expect_pfn(test, buf, 2, 1, BAR);
	expect_pfn(test, buf, 3, 3, BAR + SZ_64K);
	expect_pfn(test, buf, 5, 1, BAR + SZ_64K + 2 * PAGE_SIZE);
	expect_no_pfn(test, buf, 6, 1);
}

static void lookup_does_not_cross_a_seam(struct kunit *test)
{
	struct phys_vec vec[] = {
		{ BAR + SZ_1M, 2 * PAGE_SIZE },
		{ BAR, 2 * PAGE_SIZE },
	};
	struct vfio_pci_dma_buf *buf = buf_of(test, ARRAY_SIZE(vec), vec);

	expect_no_pfn(test, buf, 1, 2);
	expect_no_pfn(test, buf, 0, 4);
	expect_pfn(test, buf, 2, 2, BAR);
}

static void contiguous_neighbours_are_merged(struct kunit *test)
{
	struct phys_vec vec[] = {
		{ BAR, SZ_1M },
		{ BAR + SZ_1M, SZ_1M },
		{ BAR + SZ_2M, PAGE_SIZE },
		{ BAR + SZ_8M, PAGE_SIZE },
	};
	struct vfio_pci_dma_buf *buf = buf_of(test, ARRAY_SIZE(vec), vec);

	KUNIT_EXPECT_EQ(test, buf->nr_ranges, 2);
	expect_pfn(test, buf, 0, (SZ_2M + PAGE_SIZE) >> PAGE_SHIFT, BAR);
	expect_pfn(test, buf, (SZ_2M + PAGE_SIZE) >> PAGE_SHIFT, 1,
		   BAR + SZ_8M);
}

static void other_neighbours_are_not_merged(struct kunit *test)
{
	struct phys_vec vec[] = {
		{ BAR + SZ_1M, SZ_1M },
		{ BAR, SZ_1M },			/* ends where the last began */
		{ BAR, SZ_1M },			/* the same */
		{ BAR + SZ_1M + PAGE_SIZE, SZ_1M },	/* a gap */
		{ BAR + SZ_1M, SZ_1M },		/* an overlap */
	};
	struct vfio_pci_dma_buf *buf = buf_of(test, ARRAY_SIZE(vec), vec);

	KUNIT_EXPECT_EQ(test, buf->nr_ranges, ARRAY_SIZE(vec));
}

static void lookup_finds_each_of_4096_ranges(struct kunit *test)
{
	struct vfio_pci_dma_buf *buf = make_buf(test, 4096);
	unsigned long pgoff = 0;
	u32 i;

	/* Descending, so that none are merged, of 1 to 7 pages */
	for (i = 0; i < 4096; i++) {
		buf->phys_vec[i].paddr = BAR + (4096 - i) * (u64)SZ_64K;
		buf->phys_vec[i].len = (i % 7 + 1) * PAGE_SIZE;
	}
	vfio_pci_dma_buf_index_ranges(buf);
	KUNIT_ASSERT_EQ(test, buf->nr_ranges, 4096);

	for (i = 0; i < 4096; i++) {
		unsigned long nr = i % 7 + 1;
		phys_addr_t addr = BAR + (4096 - i) * (u64)SZ_64K;

		expect_pfn(test, buf, pgoff, nr, addr);
		expect_pfn(test, buf, pgoff + nr - 1, 1,
			   addr + (nr - 1) * PAGE_SIZE);
		expect_no_pfn(test, buf, pgoff, nr + 1);
		pgoff += nr;
	}
	expect_no_pfn(test, buf, pgoff, 1);
}

static void only_live_buffers_are_entered(struct kunit *test)
{
	struct vfio_pci_dma_buf *buf = make_buf(test, 1);

	KUNIT_EXPECT_EQ(test, buf->state, VFIO_PCI_DMA_BUF_SUSPENDED);
	KUNIT_EXPECT_FALSE(test, vfio_pci_dma_buf_try_enter(buf));

	buf->state = VFIO_PCI_DMA_BUF_LIVE;
	KUNIT_ASSERT_TRUE(test, vfio_pci_dma_buf_try_enter(buf));
	KUNIT_EXPECT_FALSE(test, down_write_trylock(&buf->lock));
	vfio_pci_dma_buf_exit(buf);
	KUNIT_ASSERT_TRUE(test, down_write_trylock(&buf->lock));
	up_write(&buf->lock);

	buf->state = VFIO_PCI_DMA_BUF_REVOKED;
	KUNIT_EXPECT_FALSE(test, vfio_pci_dma_buf_try_enter(buf));
}

static void importers_are_accounted_for_while_live(struct kunit *test)
{
	struct vfio_pci_dma_buf *buf = make_buf(test, 1);

	KUNIT_EXPECT_EQ(test, vfio_pci_dma_buf_get_map(buf), -ENODEV);
	KUNIT_EXPECT_EQ(test, atomic_read(&buf->nr_maps), 0);

	buf->state = VFIO_PCI_DMA_BUF_LIVE;
	KUNIT_EXPECT_EQ(test, vfio_pci_dma_buf_get_map(buf), 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&buf->nr_maps), 1);
	vfio_pci_dma_buf_put_map(buf);
	KUNIT_EXPECT_EQ(test, atomic_read(&buf->nr_maps), 0);
}

static struct kunit_case vfio_pci_dmabuf_cases[] = {
	KUNIT_CASE(lookup_finds_both_ends_of_one_range),
	KUNIT_CASE(lookup_refuses_what_is_past_the_end),
	KUNIT_CASE(ranges_are_concatenated_in_the_order_given),
	KUNIT_CASE(lookup_does_not_cross_a_seam),
	KUNIT_CASE(contiguous_neighbours_are_merged),
	KUNIT_CASE(other_neighbours_are_not_merged),
	KUNIT_CASE(lookup_finds_each_of_4096_ranges),
	KUNIT_CASE(only_live_buffers_are_entered),
	KUNIT_CASE(importers_are_accounted_for_while_live),
	{}
};

static struct kunit_suite vfio_pci_dmabuf_suite = {
	.name = "vfio-pci-dmabuf",
	.test_cases = vfio_pci_dmabuf_cases,
};

kunit_test_suite(vfio_pci_dmabuf_suite);
