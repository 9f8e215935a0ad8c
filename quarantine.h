/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Quarantines: pages that a deferred FREE has unmapped, until their flush. struct exmap_quarantine
 * is in exmap.h.
 */
#ifndef EXMAP_QUARANTINE_H
#define EXMAP_QUARANTINE_H

#include <linux/minmax.h>

#include "exmap.h"

/* quarantine.c */
int exmap_quarantine_setup(struct exmap *exmap, struct exmap_interface *interface);
void exmap_quarantine_destroy(struct exmap_quarantine *quarantine);
void exmap_quarantine_end(struct exmap *exmap, struct exmap_quarantine *quarantine,
			  struct exmap_interface *interface, bool wait);
bool exmap_quarantine_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
			    struct exmap_interface *interface);
int exmap_quarantine_flush_killable(struct exmap *exmap, struct exmap_quarantine *quarantine,
				    struct exmap_interface *interface);
void exmap_quarantine_try_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
				struct exmap_interface *interface);
int exmap_quarantine_recall(struct exmap *exmap, struct exmap_interface *interface,
			    unsigned long address);
unsigned long exmap_quarantine_next(struct exmap_walk *walk, unsigned long address,
				    unsigned long end);
long exmap_quarantine_remap(struct exmap_walk *walk, struct exmap_interface *interface,
			    unsigned long address, unsigned long end);
unsigned long exmap_quarantined(const struct exmap *exmap);

/**
 * exmap_quarantine_room - how many pages can be added without another look at the quarantine
 * @quarantine: has memory; its lock is held
 *
 * Return: pages, which all go to one bundle; 0 if the quarantine is full.
 */
static inline unsigned int exmap_quarantine_room(const struct exmap_quarantine *quarantine)
{
	return min_t(unsigned int, quarantine->size - quarantine->nr,
		     EXMAP_BUNDLE_PAGES - quarantine->nr % EXMAP_BUNDLE_PAGES);
}

/**
 * exmap_quarantine_page - the place of a page in a quarantine
 * @quarantine: has memory; its lock is held
 * @nr: number of the page, below quarantine->size
 *
 * Return: the place.
 */
static inline struct page **exmap_quarantine_page(const struct exmap_quarantine *quarantine,
						  unsigned int nr)
{
	return &quarantine->bundle[nr / EXMAP_BUNDLE_PAGES]->page[nr % EXMAP_BUNDLE_PAGES];
}

#endif /* EXMAP_QUARANTINE_H */
