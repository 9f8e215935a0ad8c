// SPDX-License-Identifier: GPL-2.0
/*
 * Quarantines: pages that FREE has unmapped and whose flush is put off (EXMAP_FREE_DEFER). free.c
 * puts pages in; this file flushes them.
 */
#include <linux/gfp.h>
#include <linux/mm.h>

#include "arch.h"
#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "walk.h"

/* Pages of memory that exmap_quarantine_make() allocates. */
#define EXMAP_QUARANTINE_PAGES 2

/*
 * Give a quarantine its memory, unless it has some already. Clears *@bundle, *@address and *@charge
 * if it takes them.
 */
static void exmap_quarantine_give(struct exmap_quarantine *quarantine, struct exmap_bundle **bundle,
				  unsigned long **address, struct exmap_charge *charge)
{
	lockdep_assert_held(&quarantine->lock);
	if (quarantine->address)
		return;
	quarantine->charge = *charge;
	quarantine->bundle = *bundle;
	/*
	 * Publish @address last, because a reader that sees it relies on @bundle. Pairs with
	 * exmap_quarantine_setup() and exmap_quarantine_make().
	 */
	smp_store_release(&quarantine->address, *address);
	*bundle = NULL;
	*address = NULL;
	*charge = (struct exmap_charge){ };
}

/*
 * The slow part of exmap_quarantine_setup(). A separate function, because most calls find the
 * memory allocated.
 */
static noinline int exmap_quarantine_make(struct exmap *exmap,
					 struct exmap_interface *interface)
{
	struct exmap_quarantine *quarantine = &interface->quarantine;
	struct exmap_charge charge = { };
	struct exmap_bundle *bundle;
	unsigned long *address;

	BUILD_BUG_ON(EXMAP_BUNDLE_PAGES * sizeof(*address) > PAGE_SIZE);
	/* Charge before allocating, because a user at the limit may come here with every FREE. */
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
	/*
	 * If the caller is being killed, @address may stay NULL. The caller then takes it for
	 * -ENOMEM, and notices the signal later.
	 */
	if (!mutex_lock_killable(&quarantine->lock)) {
		exmap_quarantine_give(quarantine, &bundle, &address, &charge);
		mutex_unlock(&quarantine->lock);
	}
	exmap_uncharge_resident(exmap->mm, &charge);
	exmap_bundle_free(bundle);
	free_page((unsigned long)address);
	/* Pairs with the release in exmap_quarantine_give(). */
	return smp_load_acquire(&quarantine->address) ? 0 : -ENOMEM;
}

/**
 * exmap_quarantine_setup - allocate the memory of a quarantine, if it has none yet
 * @exmap: has been set up, and belongs to current->mm
 * @interface: the interface with the quarantine; its lock is not held
 *
 * May sleep for memory.
 *
 * Return: 0; or -ENOMEM if no memory is available, the charge would exceed RLIMIT_MEMLOCK, or the
 * caller is being killed.
 */
int exmap_quarantine_setup(struct exmap *exmap, struct exmap_interface *interface)
{
	/* Pairs with the release in exmap_quarantine_give(): @bundle is set. */
	if (likely(smp_load_acquire(&interface->quarantine.address)))
		return 0;
	return exmap_quarantine_make(exmap, interface);
}

/* exmap_walk_lock() without its cond_resched(). */
static bool exmap_walk_lock_atomic(struct exmap_walk *walk, unsigned long address)
{
	if (walk->region == address >> PMD_SHIFT)
		return true;
	exmap_walk_unlock(walk);
	return exmap_walk_table(walk, address);
}

/**
 * exmap_quarantine_end - flush the pages of a quarantine and make them free pages
 * @exmap: its gate is open or being closed
 * @quarantine: the quarantine of any interface; its lock is held
 * @interface: its stock gets the pages; its lock is held
 * @wait: whether this may sleep. If not, it does nothing if a lock is taken or a notifier would
 *	sleep
 *
 * The order is: flush all TLBs, clear the PTEs' marks, hand out the pages. No PTE lock is held on
 * entry.
 */
void exmap_quarantine_end(struct exmap *exmap, struct exmap_quarantine *quarantine,
			  struct exmap_interface *interface, bool wait)
{
	const unsigned long *const end = quarantine->address + quarantine->nr, *address;
	unsigned long lowest = ULONG_MAX, highest = 0;
	struct exmap_walk walk = EXMAP_WALK(exmap);
	bool sent = true;
	pte_t *pte;

	lockdep_assert_held(&quarantine->lock);
	if (!quarantine->nr)
		return;
	for (address = quarantine->address; address < end; address++) {
		lowest = min(lowest, *address);
		highest = max(highest, *address);
	}
	if (wait)
		sent = exmap_shootdown(exmap, lowest, highest + PAGE_SIZE);
	else if (!exmap_shootdown_try(exmap, lowest, highest + PAGE_SIZE))
		return;
	exmap_count(&interface->counts.flushes, sent);
	/* All TLBs are flushed, so others may map pages at these addresses from here on. */
	for (address = quarantine->address; address < end; address++) {
		if (WARN_ON_ONCE(!exmap_walk_lock_atomic(&walk, *address)))
			continue;
		pte = &walk.table[pte_index(*address)];
		if (!WARN_ON_ONCE(!exmap_pte_is_marked(*pte)))
			WRITE_ONCE(*pte, EXMAP_PTE_NONE);
	}
	exmap_walk_unlock(&walk);
	exmap_stock_settle(exmap, interface, quarantine->bundle->page, quarantine->nr);
	/*
	 * Whoever sees 0 also sees that the marks are gone, and that pages have come to a stock.
	 * Pairs with the acquire in exmap_quarantine_flush(), exmap_quarantine_flush_killable() and
	 * exmap_quarantine_recall().
	 */
	smp_store_release(&quarantine->nr, 0);
}

/**
 * exmap_quarantine_flush - make the pages of a quarantine free pages
 * @exmap: its gate is open or being closed
 * @quarantine: the quarantine of any interface; its lock is not held
 * @interface: its stock gets the pages; its lock is held
 *
 * May sleep.
 *
 * Return: true if there were any pages.
 */
bool exmap_quarantine_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
			    struct exmap_interface *interface)
{
	bool any;

	lockdep_assert_held(&interface->lock);
	/*
	 * Pairs with exmap_quarantine_end() and exmap_free_defer(). Pages are added only under the
	 * lock of the quarantine's own interface, which exmap_gate_close() holds.
	 */
	if (!smp_load_acquire(&quarantine->nr))
		return false;
	mutex_lock(&quarantine->lock);
	any = quarantine->nr;
	exmap_quarantine_end(exmap, quarantine, interface, true);
	mutex_unlock(&quarantine->lock);
	return any;
}

/**
 * exmap_quarantine_flush_killable - exmap_quarantine_flush() for a call that can fail
 * @exmap: as for exmap_quarantine_flush()
 * @quarantine: as for exmap_quarantine_flush()
 * @interface: as for exmap_quarantine_flush()
 *
 * Return: 1 if there were any pages; 0 if not; -EINTR if the caller is being killed while it waits
 * for the quarantine's lock.
 */
int exmap_quarantine_flush_killable(struct exmap *exmap, struct exmap_quarantine *quarantine,
				    struct exmap_interface *interface)
{
	int any;

	lockdep_assert_held(&interface->lock);
	/*
	 * Pairs with exmap_quarantine_end() and exmap_free_defer(). If it misses a page, the FREE
	 * of that page is still at work.
	 */
	if (!smp_load_acquire(&quarantine->nr))
		return 0;
	if (mutex_lock_killable(&quarantine->lock))
		return -EINTR;
	any = quarantine->nr > 0;
	exmap_quarantine_end(exmap, quarantine, interface, true);
	mutex_unlock(&quarantine->lock);
	return any;
}

/**
 * exmap_quarantine_try_flush - exmap_quarantine_flush() without waiting for a lock
 * @exmap: as for exmap_quarantine_flush()
 * @quarantine: as for exmap_quarantine_flush()
 * @interface: as for exmap_quarantine_flush()
 *
 * The quarantine stays as it is if a lock is taken or a notifier would have to sleep. May be called
 * with preemption disabled, except on PREEMPT_RT.
 */
void exmap_quarantine_try_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
				struct exmap_interface *interface)
{
	lockdep_assert_held(&interface->lock);
	/* A hint. Pairs with exmap_quarantine_end() and exmap_free_defer(). */
	if (!READ_ONCE(quarantine->nr) || !mutex_trylock(&quarantine->lock))
		return;
	exmap_quarantine_end(exmap, quarantine, interface, false);
	mutex_unlock(&quarantine->lock);
}

/* Whether the page that was mapped at @address is in this quarantine, whose lock is held. */
static bool exmap_quarantine_holds(const struct exmap_quarantine *quarantine, unsigned long address)
{
	unsigned int i;

	for (i = 0; i < quarantine->nr; i++)
		if (quarantine->address[i] == address)
			return true;
	return false;
}

/**
 * exmap_quarantine_recall - flush the quarantine that holds the page of an address
 * @exmap: its gate is open
 * @interface: its stock gets all pages of that quarantine; its lock is held, but no quarantine's
 * @address: an address on the surface
 *
 * May sleep.
 *
 * Return: 0, even if no quarantine holds the page any more; or -EINTR if the caller is being
 * killed.
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
		/*
		 * Pairs with exmap_free_defer(), which changes it with the PTE locked. The caller
		 * has seen the mark in the PTE under the same lock, so this sees the page, or its
		 * flush. In the latter case the acquire pairs with exmap_quarantine_end(): the
		 * caller does not see the mark again.
		 */
		if (!smp_load_acquire(&quarantine->nr))
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
 * exmap_quarantined - count the pages that wait for their flush
 * @exmap: has been set up
 *
 * Return: pages; exact if no call is at work.
 */
unsigned long exmap_quarantined(const struct exmap *exmap)
{
	unsigned long pages = 0;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		/* Pairs with exmap_quarantine_end() and exmap_free_defer(). */
		pages += READ_ONCE(exmap->interfaces[i].quarantine.nr);
	return pages;
}
