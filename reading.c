// SPDX-License-Identifier: GPL-2.0
/*
 * The reading index: which addresses are being read, and which of them had a page since.
 *
 * A READ takes its pages long before it maps them. Meanwhile another page may come to one of its
 * addresses, be written to the file, and go again. The data of the READ is then older than the
 * file. So a READ enters each of its slots into this index, under the PTE lock under which the page
 * was absent. A thread that maps a page at an address, under the same lock, removes all slots of
 * that address and marks them stale. Unmapping a page marks nothing, because mapping it did.
 *
 * No barrier is needed between the two, because the PTE lock orders them. A page table that is
 * replaced in between has another lock, but then the gate was closed. exmap_gate_close() takes the
 * interface's lock that the reader held, and a thread that maps a page in the new table saw the
 * gate open again.
 *
 * The lock of a bucket is a bit in its head, used as a spinlock. No lock is taken inside it. Most
 * chains have a single slot, which enters and leaves by one atomic exchange of the head, without
 * the lock. The exchange fails if somebody holds the lock.
 *
 * A chain has one slot for each page in flight for its addresses. A marked slot leaves the chain.
 * So each slot is looked at once per address, however often one address is read at the same time.
 */
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "compat.h"
#include "exmap.h"
#include "reading.h"

/* The index has one bucket for this many pages of the ceiling, within the limits below. */
#define EXMAP_READING_PAGES 16
#define EXMAP_READING_MIN (PAGE_SIZE / sizeof(struct hlist_bl_head))
#define EXMAP_READING_MAX (SZ_1M / sizeof(struct hlist_bl_head))

/* The number of pages that an index of 1 << @bits buckets takes. */
static long exmap_reading_pages(unsigned int bits)
{
	return DIV_ROUND_UP(sizeof(struct hlist_bl_head) << bits, PAGE_SIZE);
}

/**
 * __exmap_reading_setup - make the reading index
 * @exmap: has been set up; no lock is held
 *
 * Makes the index only for an exmap that reads, so that ALLOC need not look for slots in others.
 * The index is part of the process's resident set, so that the OOM killer sees it. May sleep for
 * memory.
 *
 * Return: 0, even if another thread made it first; or -ENOMEM.
 */
int __exmap_reading_setup(struct exmap *exmap)
{
	/* Pairs with exmap_pool_resize(). */
	unsigned long nr = clamp(READ_ONCE(exmap->pool.ceiling) / EXMAP_READING_PAGES,
				 EXMAP_READING_MIN, EXMAP_READING_MAX);
	unsigned int bits = order_base_2(nr), shift;
	struct hlist_bl_head *reading;

	/*
	 * The first caller decides, because the ceiling may change. Pairs with itself: the others
	 * get the first one's number.
	 */
	shift = cmpxchg(&exmap->reading_shift, 0, 64 - bits);
	if (shift)
		bits = 64 - shift;
	reading = kvcalloc(1UL << bits, sizeof(*reading), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!reading)
		return -ENOMEM;
	/* Publish @reading after @reading_shift. Pairs with the acquire in exmap_has_reading(). */
	if (cmpxchg_release(&exmap->reading, NULL, reading))
		kvfree(reading);
	else
		exmap_rss_add(exmap->mm, exmap_reading_pages(bits));
	return 0;
}

/**
 * exmap_reading_destroy - free the reading index, if there is one
 * @exmap: nobody else uses it
 */
void exmap_reading_destroy(struct exmap *exmap)
{
	if (!exmap->reading)
		return;
	kvfree(exmap->reading);
	exmap_rss_add(exmap->mm, -exmap_reading_pages(64 - exmap->reading_shift));
}

/**
 * exmap_reading_tables - find the page tables that slots will need
 * @exmap: has a reading index; its gate is closed
 * @start: first address of a GiB
 * @tables: the bits of tables in that GiB that a slot will need are set
 *
 * Return: the number of slots in the index, for any address.
 */
unsigned long exmap_reading_tables(struct exmap *exmap, unsigned long start, unsigned long *tables)
{
	struct hlist_bl_head *bucket = exmap->reading;
	const struct hlist_bl_head *const end = bucket + (1UL << (64 - exmap->reading_shift));
	struct hlist_bl_node *node;
	struct exmap_slot *slot;
	unsigned long slots = 0;

	for (; bucket < end; bucket++) {
		/*
		 * Pairs with exmap_reading_begin(), by the interface's lock that exmap_gate_close()
		 * took, and with exmap_discard(): see exmap_part_find_busy().
		 */
		if (hlist_bl_empty(bucket))
			continue;
		hlist_bl_lock(bucket);
		hlist_bl_for_each_entry(slot, node, bucket, node) {
			if (slot->address - start < PUD_SIZE)
				__set_bit((slot->address - start) >> PMD_SHIFT, tables);
			slots++;
		}
		hlist_bl_unlock(bucket);
	}
	return slots;
}

/**
 * __exmap_reading_mark - mark the slots of an address stale
 * @bucket: the bucket of the address
 * @address: a page has just been mapped here, and the PTE lock is still held
 */
void __exmap_reading_mark(struct hlist_bl_head *bucket, unsigned long address)
{
	struct hlist_bl_node *node, *next;
	struct exmap_slot *slot;

	hlist_bl_lock(bucket);
	hlist_bl_for_each_entry_safe(slot, node, next, bucket, node) {
		if (slot->address != address)
			continue;
		slot->stale = true;
		hlist_bl_del_init(&slot->node);
	}
	hlist_bl_unlock(bucket);
}

/**
 * exmap_reading_mark_range - mark the slots of adjacent addresses stale
 * @exmap: has a reading index
 * @address: the first address. Each address has a page, and the PTE lock is held
 * @nr: number of addresses
 */
void exmap_reading_mark_range(struct exmap *exmap, unsigned long address, unsigned int nr)
{
	unsigned long page;

	for (page = address >> PAGE_SHIFT; nr; nr--, page++)
		exmap_reading_mark(exmap->reading, exmap->reading_shift, page);
}
