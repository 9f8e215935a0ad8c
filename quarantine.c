// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that FREE has unmapped and whose flush is put off (EXMAP_FREE_DEFER).
 */
#include <linux/gfp.h>
#include <linux/mm.h>

#include "compat.h"
#include "exmap.h"

/* What exmap_quarantine_setup() takes. */
#define EXMAP_QUARANTINE_PAGES 2

/* The rest of exmap_quarantine_setup(): by itself, since most calls find it done. */
static noinline int exmap_quarantine_make(struct exmap *exmap,
					 struct exmap_interface *interface)
{
	struct exmap_quarantine *quarantine = &interface->quarantine;
	struct exmap_charge charge = { };
	struct exmap_bundle *bundle;
	unsigned long *address;

	BUILD_BUG_ON(EXMAP_BUNDLE_PAGES * sizeof(*address) > PAGE_SIZE);
	/* First: a user who is at his limit may come here with each FREE. */
	if (exmap_charge_resident(exmap->mm, EXMAP_QUARANTINE_PAGES, &charge))
		return -ENOMEM;
	bundle = exmap_bundle_alloc();
	address = (unsigned long *)__get_free_page(POOL_GFP);
	if (!bundle || !address) {
		exmap_bundle_free(bundle);
		free_page((unsigned long)address);
		exmap_uncharge_resident(exmap->mm, &charge);
		return -ENOMEM;
	}
	mutex_lock(&quarantine->lock);
	if (!quarantine->address) {
		quarantine->charge = charge;
		quarantine->bundle = bundle;
		/* Last: who sees it goes by the bundle. */
		smp_store_release(&quarantine->address, address);
		bundle = NULL;
		address = NULL;
		charge = (struct exmap_charge){ };
	}
	mutex_unlock(&quarantine->lock);
	exmap_uncharge_resident(exmap->mm, &charge);
	exmap_bundle_free(bundle);
	free_page((unsigned long)address);
	return 0;
}

/**
 * exmap_quarantine_setup - have room for pages whose flush is put off
 * @exmap: belongs to current->mm
 * @interface: its lock is not held
 *
 * Return: 0; or -ENOMEM, also if that would be above RLIMIT_MEMLOCK.
 */
int exmap_quarantine_setup(struct exmap *exmap, struct exmap_interface *interface)
{
	/* Before the bundle. */
	if (likely(smp_load_acquire(&interface->quarantine.address)))
		return 0;
	return exmap_quarantine_make(exmap, interface);
}
