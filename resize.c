// SPDX-License-Identifier: GPL-2.0
/*
 * The ceiling of the pool changes while the exmap is in use (EXMAP_IOCTL_RESIZE).
 */
#include "compat.h"
#include "exmap.h"
#include "pool.h"

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

	if (!err && surplus)
		exmap_pool_give(exmap, surplus);
	return err;
}
