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
void exmap_reading_begin(struct exmap *exmap, struct exmap_slot *slot);
bool exmap_reading_end(struct exmap *exmap, struct exmap_slot *slot);
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
 * exmap_reading_mark - mark the slots of an address stale, because it has got a page
 * @reading: the reading index, read under the PTE lock
 * @shift: exmap->reading_shift
 * @page: address >> PAGE_SHIFT of a page that has just been mapped; the PTE lock is still held
 */
static __always_inline void exmap_reading_mark(struct hlist_bl_head *reading, unsigned int shift,
					       unsigned long page)
{
	struct hlist_bl_head *bucket = exmap_reading_bucket(reading, shift, page);

	/* exmap_reading_begin() runs under the same PTE lock, so a slot of this address is seen. */
	if (unlikely(!hlist_bl_empty(bucket)))
		__exmap_reading_mark(bucket, page << PAGE_SHIFT);
}

#endif /* EXMAP_READING_H */
