// SPDX-License-Identifier: GPL-2.0
/*
 * Free pages go back to the system: when a surface dies, when an exmap is destroyed, and
 * when the kernel is short of memory and calls the shrinker.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/srcu.h>

#include "compat.h"
#include "exmap.h"

/* Every pool that may have pages; the one to be looked at next comes first. */
static LIST_HEAD(exmap_pools);
static unsigned int exmap_nr_pools;
/* The sum of pool->spare. */
static unsigned long exmap_spare;
/* Guards the three, and pool->spare. Held for a few instructions only. */
static DEFINE_SPINLOCK(exmap_pools_lock);
/* Read-held by whoever looks at a pool that he has from the list. */
DEFINE_STATIC_SRCU(exmap_pools_srcu);
static struct shrinker *exmap_shrinker;

static void exmap_bundle_free_all(struct exmap_bundle **stack)
{
	struct exmap_bundle *bundle;

	while ((bundle = exmap_bundle_pop(stack)))
		exmap_bundle_free(bundle);
}

/**
 * exmap_pool_expose - let the kernel take back free pages when it is short of memory
 * @exmap: has just been set up
 */
void exmap_pool_expose(struct exmap *exmap)
{
	spin_lock(&exmap_pools_lock);
	list_add_tail(&exmap->pool.sibling, &exmap_pools);
	exmap->pool.lookers = 1;
	exmap_nr_pools++;
	spin_unlock(&exmap_pools_lock);
}

/* The shrinker does not find the pool any more, but may still be at it. */
static void exmap_pool_hide(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;

	spin_lock(&exmap_pools_lock);
	if (!list_empty(&pool->sibling)) {
		list_del_init(&pool->sibling);
		exmap_nr_pools--;
		exmap_spare -= pool->spare;
	}
	spin_unlock(&exmap_pools_lock);
}

/**
 * exmap_free_interfaces - free an array of interfaces
 * @exmap: whose
 * @interfaces: the array; nobody looks at it
 * @nr: how many
 */
void exmap_free_interfaces(struct exmap *exmap, struct exmap_interface *interfaces,
			   unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		mutex_destroy(&interfaces[i].quarantine.lock);
		mutex_destroy(&interfaces[i].lock);
	}
	kvfree(interfaces);
	exmap_uncharge_resident(exmap->mm, &exmap->charge);
}

/**
 * exmap_pool_put_interfaces - look at an exmap's interfaces no more
 * @exmap: has been set up. If its last file is closed, its pool is destroyed
 *
 * The last one frees them: an exmap that is closed waits for no shrinker, and MMU notifiers look at
 * none while the gate is dead, or there is no surface.
 */
void exmap_pool_put_interfaces(struct exmap *exmap)
{
	bool last;

	spin_lock(&exmap_pools_lock);
	last = !--exmap->pool.lookers;
	spin_unlock(&exmap_pools_lock);
	if (last)
		exmap_free_interfaces(exmap, exmap->interfaces, exmap_nr_interfaces(exmap));
}

/**
 * exmap_pool_synchronize - wait until the shrinker looks at no pool that has been destroyed
 */
void exmap_pool_synchronize(void)
{
	synchronize_srcu(&exmap_pools_srcu);
}

/* Give all free pages of an interface back to the system. Returns how many. */
static unsigned long exmap_stock_drain(struct exmap *exmap, struct exmap_interface *interface)
{
	unsigned long drained = 0;

	lockdep_assert_held(&interface->lock);
	while (exmap_stock(interface)) {
		if (!interface->count)
			exmap_stock_next(exmap, interface);
		drained += interface->count;
		exmap_pool_release(exmap, interface->loaded->page, interface->count);
		WRITE_ONCE(interface->count, 0);
	}
	return drained;
}

/*
 * Give a full bundle of the depot back to the system. The books are right before
 * @pool->lock is let go: who finds the depot empty may be about to check the mm's, or to
 * say that there is no page left.
 */
static bool exmap_depot_drain_one(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;
	struct exmap_bundle *bundle;
	unsigned int i;

	spin_lock(&pool->lock);
	bundle = exmap_depot_pop(pool);
	if (bundle) {
		WRITE_ONCE(pool->taken, pool->taken - EXMAP_BUNDLE_PAGES);
		pool->bundles--;
		exmap_rss_add(exmap->mm, -(long)EXMAP_BUNDLE_PAGES - 1);
	}
	spin_unlock(&pool->lock);
	if (!bundle)
		return false;
	for (i = 0; i < EXMAP_BUNDLE_PAGES; i++)
		put_page(bundle->page[i]);
	exmap_bundle_free(bundle);
	return true;
}

/**
 * exmap_pool_drain - give all free pages back to the system
 * @exmap: has been set up; its surface is dead or has never been
 *
 * A call that is about to find the surface dead may still bring in pages; those
 * stay until exmap_pool_destroy().
 */
void exmap_pool_drain(struct exmap *exmap)
{
	struct exmap_interface *interface;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++) {
		interface = &exmap->interfaces[i];
		mutex_lock(&interface->lock);
		exmap_stock_drain(exmap, interface);
		mutex_unlock(&interface->lock);
	}
	while (exmap_depot_drain_one(exmap))
		cond_resched();
	exmap_pinned_drain(exmap);
}

/**
 * exmap_pool_destroy - undo exmap_pool_setup()
 * @exmap: nobody else has it, and no page is on its surface
 *
 * The shrinker may still look for pages in it, and at its mm, until
 * exmap_pool_synchronize(). It finds none.
 */
void exmap_pool_destroy(struct exmap *exmap)
{
	exmap_pool_hide(exmap);
	if (exmap->interfaces)
		exmap_pool_drain(exmap);
	WARN_ONCE(exmap->pool.taken, "exmap: %lu pages lost\n", exmap->pool.taken);
	exmap_bundle_free_all(&exmap->pool.empty);
	exmap_rss_add(exmap->mm, -(long)exmap->pool.bundles);
	exmap_uncharge(exmap->mm, &exmap->pool.charge);
}

/* When the system is short of memory */

/*
 * The shrinker runs on behalf of whoever needs memory, and he may hold any lock and be of the
 * lowest priority. So it waits for no lock that a user can hold: it tries. And while it holds
 * one that a user may wait for, an interface's and what is inside it, it cannot be preempted.
 * (PREEMPT_RT lends the holder of a mutex the priority of whoever waits, and does not free
 * pages with preemption off.)
 */
static bool exmap_shrinker_trylock(struct exmap_interface *interface)
{
	if (!IS_ENABLED(CONFIG_PREEMPT_RT))
		preempt_disable();
	if (mutex_trylock(&interface->lock))
		return true;
	if (!IS_ENABLED(CONFIG_PREEMPT_RT))
		preempt_enable();
	return false;
}

static void exmap_shrinker_unlock(struct exmap_interface *interface)
{
	mutex_unlock(&interface->lock);
	if (!IS_ENABLED(CONFIG_PREEMPT_RT))
		preempt_enable();
}

/* Look at so many interfaces in one call of the shrinker, and go on with the others next time. */
#define SHRINKER_INTERFACES 1024

/* Look at pinned pages so many times EXMAP_PINNED_LOOK in one pool. */
#define SHRINKER_PINNED 16

/* What one has been looked at for. */
static unsigned int exmap_shrinker_cost(struct exmap *exmap)
{
	return READ_ONCE(exmap->pool.taken) ? exmap_nr_interfaces(exmap) : 1;
}

/*
 * The pool that has not been looked at for the longest time. Under exmap_pools_srcu, which keeps
 * the exmap, and with a count of lookers more, which keeps its interfaces.
 */
static struct exmap *exmap_pools_next(void)
{
	struct exmap *exmap;

	spin_lock(&exmap_pools_lock);
	exmap = list_first_entry_or_null(&exmap_pools, struct exmap, pool.sibling);
	if (exmap) {
		list_move_tail(&exmap->pool.sibling, &exmap_pools);
		exmap->pool.lookers++;
	}
	spin_unlock(&exmap_pools_lock);
	return exmap;
}

/* Note what the shrinker could have of a pool. */
static void exmap_pool_count(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long spare = 0;

	if (READ_ONCE(pool->taken))
		spare = exmap_pool_free_pages(exmap) + exmap_quarantined(exmap) +
			READ_ONCE(pool->nr_pinned);
	spin_lock(&exmap_pools_lock);
	if (!list_empty(&pool->sibling)) {
		exmap_spare += spare - pool->spare;
		WRITE_ONCE(pool->spare, spare);
	}
	spin_unlock(&exmap_pools_lock);
}

/* Exact where there are few interfaces. Of many pools it knows what it last saw in each. */
static unsigned long exmap_shrinker_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	unsigned int pools = READ_ONCE(exmap_nr_pools), cost = 0;
	struct exmap *exmap;
	int srcu;

	srcu = srcu_read_lock(&exmap_pools_srcu);
	for (; pools && cost < SHRINKER_INTERFACES; pools--) {
		exmap = exmap_pools_next();
		if (!exmap)
			break;
		cost += exmap_shrinker_cost(exmap);
		exmap_pool_count(exmap);
		exmap_pool_put_interfaces(exmap);
		cond_resched();
	}
	srcu_read_unlock(&exmap_pools_srcu, srcu);
	return READ_ONCE(exmap_spare);
}

/* Give back so many pages of a pool, if there are, or some more. Returns how many. */
static unsigned long exmap_pool_shrink(struct exmap *exmap, unsigned long want)
{
	struct exmap_interface *interface;
	unsigned long pages = 0;
	unsigned int i;

	while (pages < want && exmap_depot_drain_one(exmap))
		pages += EXMAP_BUNDLE_PAGES;
	/* They are looked at in turns, so a few times are enough. */
	for (i = 0; pages < want && i < SHRINKER_PINNED && READ_ONCE(exmap->pool.nr_pinned); i++)
		pages += exmap_pinned_shrink(exmap);
	for (i = 0; pages < want && i < exmap_nr_interfaces(exmap); i++) {
		interface = &exmap->interfaces[i];
		/* One that is at work needs its pages in a moment. */
		if (!(exmap_stock(interface) || READ_ONCE(interface->quarantine.nr)) ||
		    !exmap_shrinker_trylock(interface))
			continue;
		if (!atomic_read(&interface->fillers)) {
			exmap_quarantine_try_flush(exmap, &interface->quarantine, interface);
			pages += exmap_stock_drain(exmap, interface);
		}
		exmap_shrinker_unlock(interface);
	}
	return pages;
}

static unsigned long exmap_shrinker_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	unsigned int pools = READ_ONCE(exmap_nr_pools), cost = 0;
	unsigned long pages = 0;
	struct exmap *exmap;
	int srcu;

	srcu = srcu_read_lock(&exmap_pools_srcu);
	for (; pools && pages < sc->nr_to_scan && cost < SHRINKER_INTERFACES; pools--) {
		exmap = exmap_pools_next();
		if (!exmap)
			break;
		if (READ_ONCE(exmap->pool.spare)) {
			cost += exmap_shrinker_cost(exmap);
			pages += exmap_pool_shrink(exmap, sc->nr_to_scan - pages);
			exmap_pool_count(exmap);
		}
		exmap_pool_put_interfaces(exmap);
		cond_resched();
	}
	srcu_read_unlock(&exmap_pools_srcu, srcu);
	return pages ?: SHRINK_STOP;
}

/**
 * exmap_pool_init - have the kernel ask for free pages when it is short of memory
 *
 * It asks when the system is short, not when a memory cgroup is: of modules it
 * asks only those then whose objects are in a list_lru.
 *
 * Return: 0 or -ENOMEM.
 */
int __init exmap_pool_init(void)
{
	exmap_shrinker = exmap_shrinker_register("exmap", exmap_shrinker_count,
						 exmap_shrinker_scan, EXMAP_BUNDLE_PAGES);
	return exmap_shrinker ? 0 : -ENOMEM;
}

/**
 * exmap_pool_exit - undo exmap_pool_init(); no exmap is left
 */
void exmap_pool_exit(void)
{
	exmap_shrinker_free(exmap_shrinker);
}
