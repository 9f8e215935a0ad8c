/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The reading index. See reading.c for what it is for.
 */
#ifndef EXMAP_READING_H
#define EXMAP_READING_H

#include <linux/hash.h>
#include <linux/list_bl.h>
#include <linux/mm.h>

#include "exmap.h"

int __exmap_reading_setup(struct exmap *exmap);
void exmap_reading_destroy(struct exmap *exmap);
unsigned long exmap_reading_tables(struct exmap *exmap, unsigned long start, unsigned long *tables);
void __exmap_reading_mark(struct hlist_bl_head *bucket, unsigned long address);
void exmap_reading_mark_range(struct exmap *exmap, unsigned long address, unsigned int nr);

/**
 * exmap_has_reading - whether there is a reading index
 * @exmap: has been set up
 *
 * Return: true if there is one. If it is false while a PTE lock is held, no address of that page
 * table is being read, nor will be before the lock is released.
 */
static inline bool exmap_has_reading(const struct exmap *exmap)
{
	/* Pairs with the release in __exmap_reading_setup(). */
	return smp_load_acquire(&exmap->reading);
}

/**
 * exmap_reading_setup - make the reading index if there is none yet
 * @exmap: has been set up; no lock is held
 *
 * Return: 0, and slots may be entered; or -ENOMEM.
 */
static inline int exmap_reading_setup(struct exmap *exmap)
{
	return likely(exmap_has_reading(exmap)) ? 0 : __exmap_reading_setup(exmap);
}

/**
 * exmap_reading_bucket - find the bucket for the slots of a page
 * @reading: the reading index
 * @shift: exmap->reading_shift
 * @page: address >> PAGE_SHIFT
 *
 * Eight adjacent pages share a cache line of buckets. Pages at a regular distance are spread over
 * many buckets.
 *
 * Return: the bucket.
 */
static __always_inline struct hlist_bl_head *
exmap_reading_bucket(struct hlist_bl_head *reading, unsigned int shift, unsigned long page)
{
	return &reading[(page / 8 * GOLDEN_RATIO_64 >> shift) ^ page % 8];
}

/**
 * exmap_reading_slot_bucket - exmap_reading_bucket() of a slot
 * @exmap: has a reading index
 * @slot: its address is set
 *
 * Return: the bucket of the slot's address.
 */
static __always_inline struct hlist_bl_head *
exmap_reading_slot_bucket(const struct exmap *exmap, const struct exmap_slot *slot)
{
	return exmap_reading_bucket(exmap->reading, exmap->reading_shift,
				    slot->address >> PAGE_SHIFT);
}

/**
 * exmap_reading_begin - enter a slot into the reading index
 * @exmap: has a reading index
 * @slot: its address is set. The PTE lock under which the page was absent is still held
 */
static __always_inline void exmap_reading_begin(struct exmap *exmap, struct exmap_slot *slot)
{
	struct hlist_bl_head *bucket = exmap_reading_slot_bucket(exmap, slot);

	slot->reads = true;
	slot->stale = false;
	slot->node.next = NULL;
	slot->node.pprev = &bucket->first;
	/*
	 * One exchange is enough if the chain is empty and nobody holds its lock. It publishes the
	 * slot. Pairs with hlist_bl_lock() here, in exmap_reading_end_bucket(), in
	 * __exmap_reading_mark() and in exmap_reading_tables().
	 */
	if (likely(!cmpxchg(&bucket->first, NULL, &slot->node)))
		return;
	hlist_bl_lock(bucket);
	hlist_bl_add_head(&slot->node, bucket);
	hlist_bl_unlock(bucket);
}

/**
 * exmap_reading_end_bucket - exmap_reading_end() if the bucket is known
 * @bucket: the bucket of the slot's address; not used if the slot was never in the index
 * @slot: as for exmap_reading_end()
 *
 * Return: as exmap_reading_end().
 */
static __always_inline bool exmap_reading_end_bucket(struct hlist_bl_head *bucket,
						     struct exmap_slot *slot)
{
	bool stale;

	if (!slot->reads)
		return false;
	/*
	 * If the slot is the only one in its chain, and nobody holds the chain's lock, one exchange
	 * removes it. Slots are added in front, so the last slot of a chain stays the last, and the
	 * first read is good enough. A slot in a chain is not stale. If __exmap_reading_mark() has
	 * removed the slot, or is at work, then the exchange fails. Otherwise it pairs with the
	 * unlock of those who held the chain's lock before: they do not look at the slot any more.
	 */
	if (likely(!READ_ONCE(slot->node.next) &&
		   cmpxchg(&bucket->first, &slot->node, NULL) == &slot->node)) {
		INIT_HLIST_BL_NODE(&slot->node);
		return false;
	}
	hlist_bl_lock(bucket);
	hlist_bl_del_init(&slot->node);
	stale = slot->stale;
	hlist_bl_unlock(bucket);
	return stale;
}

/**
 * exmap_reading_end - remove a slot from the reading index
 * @exmap: the exmap
 * @slot: the slot. If its page is going to be mapped, the PTE lock is held until it is
 *
 * Return: true if its address had a page since exmap_reading_begin(); false otherwise, and false if
 * the slot was never in the index.
 */
static inline bool exmap_reading_end(struct exmap *exmap, struct exmap_slot *slot)
{
	return slot->reads &&
		exmap_reading_end_bucket(exmap_reading_slot_bucket(exmap, slot), slot);
}

/**
 * exmap_reading_mark_bucket - exmap_reading_mark() if the bucket is known
 * @bucket: the bucket of @address
 * @address: a page has just been mapped here, and the PTE lock is still held
 */
static __always_inline void exmap_reading_mark_bucket(struct hlist_bl_head *bucket,
						      unsigned long address)
{
	/* Pairs with exmap_reading_begin(), by the PTE lock: a slot of this address is seen. */
	if (unlikely(!hlist_bl_empty(bucket)))
		__exmap_reading_mark(bucket, address);
}

/**
 * exmap_reading_mark - mark the slots of an address stale, because it has got a page
 * @reading: the reading index, read under the PTE lock
 * @shift: exmap->reading_shift
 * @page: address >> PAGE_SHIFT of a page that has just been mapped; the PTE lock is still held
 */
static __always_inline void exmap_reading_mark(struct hlist_bl_head *reading, unsigned int shift,
					       unsigned long page)
{
	exmap_reading_mark_bucket(exmap_reading_bucket(reading, shift, page), page << PAGE_SHIFT);
}

#endif /* EXMAP_READING_H */
