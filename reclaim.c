// SPDX-License-Identifier: GPL-2.0
/*
 * Free pages go back to the system: when a surface dies, when an exmap is destroyed, and when
 * memory is short and the kernel calls the shrinker.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/srcu.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"

/* All pools that may have pages. The shrinker looks at the first one next. */
static LIST_HEAD(exmap_pools);
static unsigned int exmap_nr_pools;
/* The sum of pool->spare of all pools in the list. */
static unsigned long exmap_spare;
/*
 * Guards the three above, and each pool's @sibling and @spare. Its holder runs only a few
 * instructions.
 */
DEFINE_SPINLOCK(exmap_pools_lock);
/* Read-held by tasks that use a pool that they found in the list. */
DEFINE_SRCU(exmap_pools_srcu);
static struct shrinker *exmap_shrinker;

static void exmap_bundle_free_all(struct exmap_bundle **stack)
{
	struct exmap_bundle *bundle;

	while ((bundle = exmap_bundle_pop(stack))) {
		exmap_bundle_free(bundle);
		cond_resched();
	}
}

/**
 * exmap_pool_expose - let the shrinker take back a pool's free pages
 * @exmap: has just been set up; exmap->lock is held, and pool->transit for writing
 */
void exmap_pool_expose(struct exmap *exmap)
{
	lockdep_assert_held_write(&exmap->pool.transit);
	spin_lock(&exmap_pools_lock);
	list_add_tail(&exmap->pool.sibling, &exmap_pools);
	/*
	 * Before the shrinker finds the pool. Pairs with exmap_pools_next() and, by the lock of
	 * exmap_tokens, with exmap_token_found().
	 */
	refcount_set(&exmap->pool.lookers, 1);
	/* Pairs with exmap_pools_nr(). */
	WRITE_ONCE(exmap_nr_pools, exmap_nr_pools + 1);
	spin_unlock(&exmap_pools_lock);
	exmap_token_show(exmap);
}

/* Hide a pool from the shrinker, which may still be working on it. */
static void exmap_pool_hide(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;

	spin_lock(&exmap_pools_lock);
	if (!list_empty(&pool->sibling)) {
		list_del_init(&pool->sibling);
		/* Pairs with exmap_pools_nr() and exmap_shrinker_count(). */
		WRITE_ONCE(exmap_nr_pools, exmap_nr_pools - 1);
		WRITE_ONCE(exmap_spare, exmap_spare - pool->spare);
	}
	spin_unlock(&exmap_pools_lock);
	exmap_token_end(exmap);
}

/**
 * exmap_free_interfaces - free an array of interfaces
 * @exmap: the exmap to which the array is charged
 * @interfaces: the array, which nobody uses any more. The memory of the interfaces is freed already
 * @nr: number of interfaces
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
 * exmap_pool_put_interfaces - drop a reference to an exmap's interfaces
 * @exmap: has been set up. If the caller is the last put of the exmap, its pool is destroyed
 *
 * The last reference frees the array. So closing an exmap waits for no shrinker. MMU notifiers need
 * no reference, because they use no interface if the gate is dead or there is no surface.
 */
void exmap_pool_put_interfaces(struct exmap *exmap)
{
	/*
	 * Pairs with the puts of others: what they have done comes before what the last does.
	 * exmap_pools_next() and exmap_token_found() take references.
	 */
	if (refcount_dec_and_test(&exmap->pool.lookers))
		exmap_free_interfaces(exmap, exmap->interfaces, exmap_nr_interfaces(exmap));
}

/**
 * exmap_pool_synchronize - wait until the shrinker uses no pool that has been destroyed
 *
 * May sleep. No lock is held.
 */
void exmap_pool_synchronize(void)
{
	synchronize_srcu(&exmap_pools_srcu);
}

/*
 * Give a full bundle or a few loose pages of the depot, at most @want pages, back to the system.
 * Returns the number of pages; 0 if the depot has none, or only bundles that are larger than @want.
 *
 * The books are updated before pool->lock is dropped, because a task that finds the depot empty may
 * rely on them: it may be about to check the counters of the mm, or to report that no page is left.
 */
static unsigned int exmap_depot_drain_one(struct exmap *exmap, unsigned long want)
{
	struct page *loose[EXMAP_LOOSE_TAKE], **page = loose;
	struct exmap_pool *pool = &exmap->pool;
	struct exmap_bundle *bundle = NULL;
	unsigned int i, nr;

	spin_lock(&pool->lock);
	if (want >= EXMAP_BUNDLE_PAGES)
		bundle = exmap_depot_pop(pool, NUMA_NO_NODE);
	if (bundle) {
		page = bundle->page;
		nr = EXMAP_BUNDLE_PAGES;
		/* First, because exmap_pool_leave() may free a bundle that is not needed. */
		pool->bundles--;
		exmap_rss_add(exmap->mm, -1);
	} else {
		nr = exmap_depot_take(pool, NUMA_NO_NODE, loose,
				      min_t(unsigned long, want, EXMAP_LOOSE_TAKE));
	}
	exmap_pool_leave(exmap, nr);
	exmap_rss_add(exmap->mm, -(long)nr);
	spin_unlock(&pool->lock);
	for (i = 0; i < nr; i++)
		put_page(page[i]);
	exmap_bundle_free(bundle);
	return nr;
}

/**
 * exmap_depot_drain - give pages of the depot back to the system
 * @exmap: has been set up
 * @want: stop after this many pages
 * @most: the most pages to give; at least @want
 *
 * May sleep.
 *
 * Return: the number of pages. It is less than @want if the depot has no more, or only bundles that
 * are too large for @most.
 */
unsigned long exmap_depot_drain(struct exmap *exmap, unsigned long want, unsigned long most)
{
	unsigned long pages = 0;
	unsigned int nr;

	while (pages < want && (nr = exmap_depot_drain_one(exmap, most - pages))) {
		pages += nr;
		cond_resched();
	}
	return pages;
}

/**
 * exmap_pool_drain - give all free pages of a pool back to the system
 * @exmap: has been set up; its surface is dead, or it never had one
 *
 * A call that has not noticed the death yet may still take pages from the system. Those stay until
 * exmap_pool_destroy(). May sleep for the locks of interfaces.
 */
void exmap_pool_drain(struct exmap *exmap)
{
	struct exmap_interface *interface;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++) {
		interface = &exmap->interfaces[i];
		mutex_lock(&interface->lock);
		exmap_stock_drain(exmap, interface, ULONG_MAX);
		mutex_unlock(&interface->lock);
	}
	exmap_depot_drain(exmap, ULONG_MAX, ULONG_MAX);
	exmap_pinned_drain(exmap);
}

/**
 * exmap_pool_destroy - undo exmap_pool_setup()
 * @exmap: nobody else uses it, and no page is on its surface
 *
 * May sleep. The shrinker may still look for pages in the pool, and use the mm, until
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

/* The shrinker */

/*
 * Lock an interface in the shrinker, if that is possible at once.
 *
 * The shrinker runs in the task that needs memory. That task may hold any lock, and may have the
 * lowest priority. So the shrinker never waits for a lock that a user can hold; it only tries.
 * While it holds a lock that a user may wait for, an interface's or one taken inside it, it must
 * not be preempted.
 *
 * PREEMPT_RT needs no such protection, because there the holder of a mutex inherits the priority of
 * its waiters. Nor can PREEMPT_RT free pages with preemption disabled.
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

/* Interfaces that one call of the shrinker may look at. The next call goes on from there. */
#define SHRINKER_INTERFACES 1024

/* Times that one call looks at EXMAP_PINNED_LOOK pinned pages of a pool. */
#define SHRINKER_PINNED 16

/* The number of interfaces that looking at a pool counts for. */
static unsigned int exmap_shrinker_cost(struct exmap *exmap)
{
	/* Pairs with exmap_pool_reserve() and exmap_pool_release(). An estimate. */
	return READ_ONCE(exmap->pool.taken) ? exmap_nr_interfaces(exmap) : 1;
}

/* The number of pools that the shrinker is asked about. It only limits loops. */
static unsigned long exmap_pools_nr(struct shrink_control *sc)
{
	/* Pairs with exmap_pool_expose() and exmap_pool_hide(). */
	return exmap_shrinker_is_global(sc) ? READ_ONCE(exmap_nr_pools) : exmap_tokens_nr(sc);
}

/*
 * Of the pools that the shrinker is asked about, returns the one that has not been looked at for
 * the longest time, or NULL. The caller holds exmap_pools_srcu, which keeps the exmap allocated. It
 * gets a reference to the interfaces, to be dropped with exmap_pool_put_interfaces().
 */
static struct exmap *exmap_pools_next(struct shrink_control *sc)
{
	struct exmap *exmap;

	if (!exmap_shrinker_is_global(sc))
		return exmap_tokens_next(sc);
	spin_lock(&exmap_pools_lock);
	exmap = list_first_entry_or_null(&exmap_pools, struct exmap, pool.sibling);
	if (exmap) {
		list_move_tail(&exmap->pool.sibling, &exmap_pools);
		/*
		 * Pairs with exmap_pool_put_interfaces(). The pool is in the list, so the exmap
		 * still has its own reference.
		 */
		refcount_inc(&exmap->pool.lookers);
	}
	spin_unlock(&exmap_pools_lock);
	return exmap;
}

/* Update pool->spare, the number of pages that the shrinker could get from a pool, and the sum. */
static void exmap_pool_count(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long spare = 0;

	/* Pairs with exmap_pool_reserve(), exmap_pool_release(), exmap_pinned_add(). Estimates. */
	if (READ_ONCE(pool->taken))
		spare = exmap_pool_free_pages(exmap) + exmap_quarantined(exmap) +
			READ_ONCE(pool->nr_pinned);
	spin_lock(&exmap_pools_lock);
	if (!list_empty(&pool->sibling)) {
		WRITE_ONCE(exmap_spare, exmap_spare + spare - pool->spare);
		WRITE_ONCE(pool->spare, spare);
	}
	spin_unlock(&exmap_pools_lock);
}

/*
 * Returns the number of pages that the shrinker could free. The number is up to date if there are
 * few interfaces. With many interfaces, some pools of the system count with the number last seen
 * there, and some of a memory cgroup do not count.
 */
static unsigned long exmap_shrinker_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	unsigned long pools = exmap_pools_nr(sc), spare = 0;
	unsigned int cost = 0;
	struct exmap *exmap;
	int srcu;

	/* Then the kernel does not ask about this memory cgroup again until it gets a pool. */
	if (!pools)
		return SHRINK_EMPTY;
	srcu = srcu_read_lock(&exmap_pools_srcu);
	for (; pools && cost < SHRINKER_INTERFACES; pools--) {
		exmap = exmap_pools_next(sc);
		if (!exmap)
			break;
		cost += exmap_shrinker_cost(exmap);
		exmap_pool_count(exmap);
		/* Pairs with exmap_pool_count(). An estimate. */
		spare += READ_ONCE(exmap->pool.spare);
		exmap_pool_put_interfaces(exmap);
		cond_resched();
	}
	srcu_read_unlock(&exmap_pools_srcu, srcu);
	/* Pairs with exmap_pool_count() and exmap_pool_hide(). An estimate. */
	return exmap_shrinker_is_global(sc) ? READ_ONCE(exmap_spare) : spare;
}

/*
 * Give at least @want pages of a pool back to the system, if it has them. Returns the number of
 * pages.
 */
static unsigned long exmap_pool_shrink(struct exmap *exmap, unsigned long want)
{
	unsigned long pages = exmap_depot_drain(exmap, want, ULONG_MAX);
	struct exmap_interface *interface;
	unsigned int i;

	/*
	 * exmap_pinned_shrink() takes the pinned pages in turn, so a few calls are enough. The read
	 * pairs with exmap_pinned_add() and exmap_pinned_take().
	 */
	for (i = 0; pages < want && i < SHRINKER_PINNED && READ_ONCE(exmap->pool.nr_pinned); i++)
		pages += exmap_pinned_shrink(exmap);
	for (i = 0; pages < want && i < exmap_nr_interfaces(exmap); i++) {
		interface = &exmap->interfaces[i];
		/*
		 * Skip an interface that is in a call, because it needs its pages soon. The reads
		 * are hints. They pair with exmap_stock_add(), exmap_free_defer() and
		 * exmap_quarantine_settle().
		 */
		if (!(exmap_stock(interface) || READ_ONCE(interface->quarantine.nr)) ||
		    !exmap_shrinker_trylock(interface))
			continue;
		/*
		 * Leave the pages to a task that has released the lock in exmap_stock_fill(). Pairs
		 * with its atomic_inc(), which the lock orders before this.
		 */
		if (!atomic_read(&interface->fillers)) {
			exmap_quarantine_try_flush(exmap, &interface->quarantine, interface);
			pages += exmap_stock_drain(exmap, interface, ULONG_MAX);
		}
		exmap_shrinker_unlock(interface);
	}
	/* If there are several NUMA nodes, the flushes may have put pages there. */
	if (pages < want)
		pages += exmap_depot_drain(exmap, want - pages, ULONG_MAX);
	return pages;
}

static unsigned long exmap_shrinker_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	unsigned long pools = exmap_pools_nr(sc), pages = 0;
	unsigned int cost = 0;
	struct exmap *exmap;
	int srcu;

	srcu = srcu_read_lock(&exmap_pools_srcu);
	for (; pools && pages < sc->nr_to_scan && cost < SHRINKER_INTERFACES; pools--) {
		exmap = exmap_pools_next(sc);
		if (!exmap)
			break;
		/* Pairs with exmap_pool_count(). An estimate. */
		if (READ_ONCE(exmap->pool.spare)) {
			cost += exmap_shrinker_cost(exmap);
			pages += exmap_pool_shrink(exmap, sc->nr_to_scan - pages);
			exmap_pool_count(exmap);
		}
		exmap_pool_put_interfaces(exmap);
		cond_resched();
	}
	srcu_read_unlock(&exmap_pools_srcu, srcu);
	exmap_reclaimed(pages);
	return pages ?: SHRINK_STOP;
}

/**
 * exmap_pool_init - register the shrinker
 *
 * The kernel calls the shrinker when the system is short of memory, and when a memory cgroup that
 * has a token is (see token.c).
 *
 * Return: 0 or -ENOMEM.
 */
int __init exmap_pool_init(void)
{
	int err = exmap_tokens_init();

	if (err)
		return err;
	exmap_shrinker = exmap_shrinker_register("exmap", exmap_shrinker_count,
						 exmap_shrinker_scan, EXMAP_BUNDLE_PAGES,
						 &exmap_tokens);
	if (exmap_shrinker)
		return 0;
	exmap_tokens_exit();
	return -ENOMEM;
}

/**
 * exmap_pool_exit - undo exmap_pool_init()
 *
 * Called at module exit, when no exmap is left.
 */
void exmap_pool_exit(void)
{
	exmap_shrinker_free(exmap_shrinker, &exmap_tokens);
	exmap_tokens_exit();
}
