// SPDX-License-Identifier: GPL-2.0
/*
 * The size of the pool while the exmap is in use: its ceiling (EXMAP_IOCTL_RESIZE), and the free
 * pages that it keeps (EXMAP_IOCTL_TRIM).
 */
#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"

/*
 * Give at most @want pages back to the system: from one interface, and a bundle of the depot if
 * there are fewer there. Always takes the interface's lock: then a call has either put its pages
 * into the stock or the depot before, or it sees the surplus that this is about, in
 * exmap_stock_sort() and exmap_stock_trim().
 */
static unsigned long exmap_interface_give(struct exmap *exmap, struct exmap_interface *interface,
					  unsigned long want)
{
	unsigned long pages = 0;

	/* Without a surface there are no free pages. */
	if (exmap_enter(exmap, interface))
		return 0;
	if (interface->loaded) {
		if (exmap_stock(interface) < want)
			exmap_quarantine_flush_killable(exmap, &interface->quarantine, interface);
		if (exmap_stock(interface) < want)
			exmap_stock_fetch(exmap, interface, NUMA_NO_NODE);
		pages = exmap_stock_drain(exmap, interface, want);
		exmap_stock_trim(exmap, interface);
	}
	exmap_leave(interface);
	return pages;
}

/**
 * exmap_pool_give - give free pages back to the system
 * @exmap: has been set up; the caller holds no lock
 * @want: the most pages to give
 *
 * Looks at every place once, and frees bundles that are not needed. May sleep.
 *
 * Return: the number of pages. It is less than @want if no more are free, or if the caller is being
 * killed.
 */
unsigned long exmap_pool_give(struct exmap *exmap, unsigned long want)
{
	struct exmap_pool *pool = &exmap->pool;
	/* Pairs with exmap_pinned_add(). */
	unsigned long left = DIV_ROUND_UP(READ_ONCE(pool->nr_pinned), EXMAP_PINNED_LOOK);
	unsigned long pages = 0;
	unsigned int i;

	for (; left && pages + EXMAP_PINNED_LOOK <= want; left--) {
		pages += exmap_pinned_shrink(exmap);
		cond_resched();
	}
	pages += exmap_depot_drain(exmap, want - pages, want - pages);
	for (i = 0; i < exmap_nr_interfaces(exmap) && pages < want; i++) {
		pages += exmap_interface_give(exmap, &exmap->interfaces[i], want - pages);
		cond_resched();
	}
	/* What the interfaces' calls, and the flushes above, have put there meanwhile. */
	pages += exmap_depot_drain(exmap, want - pages, want - pages);
	exmap_pool_trim_bundles(exmap);
	return pages;
}

/**
 * exmap_resize - carry out EXMAP_IOCTL_RESIZE
 * @exmap: has been set up, and belongs to current->mm; no lock is held
 * @pages: the new ceiling, in pages
 *
 * If pages are free, a surplus goes back to the system at once. exmap_stock_trim() gives the rest
 * back as pages become free. May sleep.
 *
 * Return: as exmap_pool_resize().
 */
int exmap_resize(struct exmap *exmap, unsigned long pages)
{
	int err = exmap_pool_resize(exmap, pages);
	/* Pairs with exmap_pool_leave(). */
	unsigned long surplus = READ_ONCE(exmap->surplus);

	/* Without a surplus, bundles may still be left of a larger pool. */
	if (!err)
		exmap_pool_give(exmap, surplus);
	return err;
}
