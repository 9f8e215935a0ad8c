// SPDX-License-Identifier: GPL-2.0
/*
 * The reading index: which addresses are being read, and which of them had a page since.
 *
 * A READ takes its pages long before it maps them. If a page comes to one of its addresses
 * meanwhile, is written to the file and goes again, then what the READ holds is older than
 * the file. So a READ enters each of its slots here, under the PTE lock under which it found
 * no page. Whoever maps a page at an address, under the same lock, takes all slots of that
 * address out again and marks them stale. A page that goes marks nothing: it had come.
 *
 * No barrier is needed between the two: the PTE lock orders them. If the page table was
 * replaced in between then so is its lock, but then the gate was closed: whoever closes it
 * takes the interface's lock that the reader held, and whoever maps a page in the new table
 * found the gate open again.
 *
 * A bucket's lock is a bit in it: a spinlock, the innermost of all. A chain is as long as there
 * are pages in flight for its addresses. A slot that is marked leaves it, so however often one
 * address is read at the same time, each of its slots is looked at once.
 */
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "compat.h"
#include "exmap.h"

/* The index has a bucket for so many pages of the pool's ceiling, and its size has limits. */
#define EXMAP_READING_PAGES 16
#define EXMAP_READING_MIN (PAGE_SIZE / sizeof(struct hlist_bl_head))
#define EXMAP_READING_MAX (SZ_1M / sizeof(struct hlist_bl_head))

/* How many pages an index of 1 << @bits buckets takes. */
static long exmap_reading_pages(unsigned int bits)
{
	return DIV_ROUND_UP(sizeof(struct hlist_bl_head) << bits, PAGE_SIZE);
}

/**
 * __exmap_reading_setup - make the index
 * @exmap: has been set up; no lock is held
 *
 * An exmap that never reads has none, and its ALLOC never looks for one. The index is part of
 * the process's resident set, so that the OOM killer sees it.
 *
 * Return: 0 or -ENOMEM.
 */
int __exmap_reading_setup(struct exmap *exmap)
{
	unsigned long nr = clamp(exmap->pool.ceiling / EXMAP_READING_PAGES, EXMAP_READING_MIN,
				 EXMAP_READING_MAX);
	unsigned int bits = order_base_2(nr);
	struct hlist_bl_head *reading;

	reading = kvcalloc(1UL << bits, sizeof(*reading), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!reading)
		return -ENOMEM;
	/* Another thread that is here at the same time finds the same number. */
	WRITE_ONCE(exmap->reading_shift, 64 - bits);
	/* Release: pairs with the acquire in exmap_has_reading(). */
	if (cmpxchg_release(&exmap->reading, NULL, reading))
		kvfree(reading);
	else
		exmap_rss_add(exmap->mm, exmap_reading_pages(bits));
	return 0;
}

/**
 * exmap_reading_destroy - free the index
 * @exmap: nobody else has it
 */
void exmap_reading_destroy(struct exmap *exmap)
{
	if (!exmap->reading)
		return;
	kvfree(exmap->reading);
	exmap_rss_add(exmap->mm, -exmap_reading_pages(64 - exmap->reading_shift));
}

static struct hlist_bl_head *exmap_reading_slot_bucket(const struct exmap *exmap,
						       const struct exmap_slot *slot)
{
	return exmap_reading_bucket(exmap->reading, exmap->reading_shift,
				    slot->address >> PAGE_SHIFT);
}

/**
 * exmap_reading_begin - enter a slot into the index
 * @exmap: has an index
 * @slot: its address is set; the PTE lock under which there was no page is still held
 */
void exmap_reading_begin(struct exmap *exmap, struct exmap_slot *slot)
{
	struct hlist_bl_head *bucket = exmap_reading_slot_bucket(exmap, slot);

	slot->reads = true;
	slot->stale = false;
	hlist_bl_lock(bucket);
	hlist_bl_add_head(&slot->node, bucket);
	hlist_bl_unlock(bucket);
}

/**
 * exmap_reading_end - take a slot out of the index again
 * @exmap: the exmap
 * @slot: the slot; if it is to be mapped then the PTE lock is held, and still will be
 *
 * Return: whether there was a page at its address since exmap_reading_begin(). There was none
 * as far as it matters if the slot never was in the index.
 */
bool exmap_reading_end(struct exmap *exmap, struct exmap_slot *slot)
{
	struct hlist_bl_head *bucket;
	bool stale;

	if (!slot->reads)
		return false;
	bucket = exmap_reading_slot_bucket(exmap, slot);
	hlist_bl_lock(bucket);
	hlist_bl_del_init(&slot->node);
	stale = slot->stale;
	hlist_bl_unlock(bucket);
	return stale;
}

/**
 * __exmap_reading_mark - mark the slots of an address, if its bucket is not empty
 * @bucket: the address's
 * @address: where a page has just been mapped; the PTE lock is held
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
 * exmap_reading_mark_range - mark the slots of some addresses
 * @exmap: has an index
 * @address: the first; each of them has a page, and the PTE lock is held
 * @nr: how many
 */
void exmap_reading_mark_range(struct exmap *exmap, unsigned long address, unsigned int nr)
{
	unsigned long page;

	for (page = address >> PAGE_SHIFT; nr; nr--, page++)
		exmap_reading_mark(exmap->reading, exmap->reading_shift, page);
}
