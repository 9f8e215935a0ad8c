// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that FREE has unmapped and whose flush is put off (EXMAP_FREE_DEFER): the
 * quarantines, and how they are flushed. free.c puts pages in.
 */
#include <linux/gfp.h>
#include <linux/mm.h>

#include "compat.h"
#include "exmap.h"
#include "walk.h"

/* What exmap_quarantine_setup() takes. */
#define EXMAP_QUARANTINE_PAGES 2

/* Set a quarantine's memory if it has none, and take it from the caller. */
static void exmap_quarantine_give(struct exmap_quarantine *quarantine, struct exmap_bundle **bundle,
				  unsigned long **address, struct exmap_charge *charge)
{
	lockdep_assert_held(&quarantine->lock);
	if (quarantine->address)
		return;
	quarantine->charge = *charge;
	quarantine->bundle = *bundle;
	/* Last: who sees it goes by the bundle. */
	smp_store_release(&quarantine->address, *address);
	*bundle = NULL;
	*address = NULL;
	*charge = (struct exmap_charge){ };
}

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
	/* A caller that is being killed finds no quarantine, and then notices. */
	if (!mutex_lock_killable(&quarantine->lock)) {
		exmap_quarantine_give(quarantine, &bundle, &address, &charge);
		mutex_unlock(&quarantine->lock);
	}
	exmap_uncharge_resident(exmap->mm, &charge);
	exmap_bundle_free(bundle);
	free_page((unsigned long)address);
	/* As in exmap_quarantine_setup(). */
	return smp_load_acquire(&quarantine->address) ? 0 : -ENOMEM;
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

/* As exmap_walk_lock(), where nothing may sleep. */
static bool exmap_walk_lock_atomic(struct exmap_walk *walk, unsigned long address)
{
	if (walk->region == address >> PMD_SHIFT)
		return true;
	exmap_walk_unlock(walk);
	return exmap_walk_table(walk, address);
}

/**
 * exmap_quarantine_end - flush what is in quarantine, and make it free pages
 * @exmap: its gate is open, or is being closed
 * @quarantine: any interface's; its lock is held
 * @interface: where the pages go; its lock is held
 * @wait: whether it may wait. If not, nothing sleeps in here, and it may come to nothing
 */
void exmap_quarantine_end(struct exmap *exmap, struct exmap_quarantine *quarantine,
			  struct exmap_interface *interface, bool wait)
{
	const unsigned long *const end = quarantine->address + quarantine->nr, *address;
	unsigned long lowest = ULONG_MAX, highest = 0;
	struct exmap_walk walk = EXMAP_WALK(exmap);
	pte_t *pte;

	lockdep_assert_held(&quarantine->lock);
	if (!quarantine->nr)
		return;
	for (address = quarantine->address; address < end; address++) {
		lowest = min(lowest, *address);
		highest = max(highest, *address);
	}
	if (wait)
		exmap_shootdown(exmap, lowest, highest + PAGE_SIZE);
	else if (!exmap_shootdown_try(exmap, lowest, highest + PAGE_SIZE))
		return;
	exmap_count(&interface->counts.flushes, 1);
	/* Others may map there now. */
	for (address = quarantine->address; address < end; address++) {
		if (WARN_ON_ONCE(!exmap_walk_lock_atomic(&walk, *address)))
			continue;
		pte = &walk.table[pte_index(*address)];
		if (!WARN_ON_ONCE(!pte_same(*pte, EXMAP_PTE_DEFERRED)))
			WRITE_ONCE(*pte, native_make_pte(0));
	}
	exmap_walk_unlock(&walk);
	exmap_stock_settle(exmap, interface, &quarantine->bundle, quarantine->nr);
	WRITE_ONCE(quarantine->nr, 0);
}

/**
 * exmap_quarantine_flush - make the pages of a quarantine free pages
 * @exmap: the exmap
 * @quarantine: any interface's
 * @interface: where the pages go; its lock is held
 *
 * Return: whether there were any.
 */
bool exmap_quarantine_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
			    struct exmap_interface *interface)
{
	bool any;

	lockdep_assert_held(&interface->lock);
	if (!READ_ONCE(quarantine->nr))
		return false;
	mutex_lock(&quarantine->lock);
	any = quarantine->nr;
	exmap_quarantine_end(exmap, quarantine, interface, true);
	mutex_unlock(&quarantine->lock);
	return any;
}

/**
 * exmap_quarantine_flush_killable - the same for a call that can fail
 * @exmap: the exmap
 * @quarantine: any interface's
 * @interface: where the pages go; its lock is held
 *
 * Return: 1 if there were any, 0 if not; -EINTR if the caller is being killed while it waits.
 */
int exmap_quarantine_flush_killable(struct exmap *exmap, struct exmap_quarantine *quarantine,
				    struct exmap_interface *interface)
{
	int any;

	lockdep_assert_held(&interface->lock);
	if (!READ_ONCE(quarantine->nr))
		return 0;
	if (mutex_lock_killable(&quarantine->lock))
		return -EINTR;
	any = quarantine->nr > 0;
	exmap_quarantine_end(exmap, quarantine, interface, true);
	mutex_unlock(&quarantine->lock);
	return any;
}

/**
 * exmap_quarantine_try_flush - the same without waiting for anybody
 * @exmap: as for exmap_quarantine_flush()
 * @quarantine: as there
 * @interface: as there
 *
 * Where that does not work out the quarantine stays as it is. May be called with preemption
 * off, except on PREEMPT_RT.
 */
void exmap_quarantine_try_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
				struct exmap_interface *interface)
{
	lockdep_assert_held(&interface->lock);
	if (!READ_ONCE(quarantine->nr) || !mutex_trylock(&quarantine->lock))
		return;
	exmap_quarantine_end(exmap, quarantine, interface, false);
	mutex_unlock(&quarantine->lock);
}

/* Whether what was mapped at an address is in this quarantine. */
static bool exmap_quarantine_holds(const struct exmap_quarantine *quarantine, unsigned long address)
{
	unsigned int i;

	for (i = 0; i < quarantine->nr; i++)
		if (quarantine->address[i] == address)
			return true;
	return false;
}

/**
 * exmap_quarantine_recall - flush what was mapped at an address, and what is in quarantine with it
 * @exmap: its gate is open
 * @interface: where the pages go; its lock is held, but no quarantine's
 * @address: on the surface
 *
 * Return: 0, or -EINTR if the caller is being killed.
 */
int exmap_quarantine_recall(struct exmap *exmap, struct exmap_interface *interface,
			    unsigned long address)
{
	struct exmap_quarantine *quarantine;
	bool found = false;
	unsigned int i;

	address &= PAGE_MASK;
	for (i = 0; !found && i < exmap_nr_interfaces(exmap); i++) {
		quarantine = &exmap->interfaces[i].quarantine;
		if (!READ_ONCE(quarantine->nr))
			continue;
		if (mutex_lock_killable(&quarantine->lock))
			return -EINTR;
		found = exmap_quarantine_holds(quarantine, address);
		if (found)
			exmap_quarantine_end(exmap, quarantine, interface, true);
		mutex_unlock(&quarantine->lock);
	}
	return 0;
}

/**
 * exmap_quarantined - how many pages wait for their flush
 * @exmap: has been set up
 *
 * Return: pages; exact where no call is at work.
 */
unsigned long exmap_quarantined(const struct exmap *exmap)
{
	unsigned long pages = 0;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		pages += READ_ONCE(exmap->interfaces[i].quarantine.nr);
	return pages;
}
