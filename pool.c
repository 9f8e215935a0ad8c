// SPDX-License-Identifier: GPL-2.0
/*
 * The physical pages of an exmap: the pool's books, its bundles of 512 pages, and the depot,
 * through which interfaces exchange full bundles. refill.c takes pages from the system,
 * reclaim.c gives them back.
 *
 * After Bonwick and Adams, "Magazines and Vmem" (USENIX 2001): each interface
 * has bundles of its own, so the depot's lock is taken once per 512 pages at
 * most, and not at all by an interface that frees what it allocates.
 *
 * Bundles cannot run out. An interface brings three (loaded, limbo and one
 * spare; a fourth stays in its quarantine), and pool->bundles more, one per 512
 * pages of pool->taken at least, came with the pages. A page that has to be put
 * back where all an interface's own are in use finds fewer than that full, hence
 * an empty one in the depot.
 */
#include <linux/gfp.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/random.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/srcu.h>

#include <linux/gfp.h>
#include <linux/mm.h>

#include "compat.h"
#include "exmap.h"

/**
 * exmap_bundle_alloc - allocate a bundle
 *
 * May sleep for memory: no lock of ours is held.
 *
 * Return: the bundle, not cleared; or NULL.
 */
struct exmap_bundle *exmap_bundle_alloc(void)
{
	return (struct exmap_bundle *)__get_free_page(POOL_GFP);
}

/**
 * exmap_bundle_free - free a bundle
 * @bundle: is on no stack; the pages in it are not freed. Or NULL
 */
void exmap_bundle_free(struct exmap_bundle *bundle)
{
	free_page((unsigned long)bundle);
}

/**
 * exmap_bundle_push - put a bundle on a stack
 * @stack: the stack; the lock that guards it is held
 * @bundle: the bundle
 *
 * Bundles are stacked through their struct page: all of their own is in use.
 */
void exmap_bundle_push(struct exmap_bundle **stack, struct exmap_bundle *bundle)
{
	set_page_private(virt_to_page(bundle), (unsigned long)*stack);
	*stack = bundle;
}

/**
 * exmap_bundle_pop - take the top bundle off a stack
 * @stack: the stack; the lock that guards it is held
 *
 * Return: the bundle, or NULL if the stack is empty.
 */
struct exmap_bundle *exmap_bundle_pop(struct exmap_bundle **stack)
{
	struct exmap_bundle *bundle = *stack;

	if (bundle) {
		*stack = (struct exmap_bundle *)page_private(virt_to_page(bundle));
		set_page_private(virt_to_page(bundle), 0);
	}
	return bundle;
}

/**
 * exmap_depot_pop - take a full bundle out of the depot
 * @pool: its lock is held
 *
 * Return: the bundle, or NULL if the depot has none that is full.
 */
struct exmap_bundle *exmap_depot_pop(struct exmap_pool *pool)
{
	struct exmap_bundle *bundle;

	lockdep_assert_held(&pool->lock);
	bundle = exmap_bundle_pop(&pool->full);
	if (bundle)
		WRITE_ONCE(pool->nr_full, pool->nr_full - 1);
	return bundle;
}

/**
 * exmap_pool_setup - get a pool ready; it takes no page yet
 * @exmap: its lock is held, and its interfaces are not there yet
 * @pages: the most that the pool may take from the system
 *
 * Return: 0, -ENOMEM where @pages is above RLIMIT_MEMLOCK, -EPERM where that
 * limit is 0.
 */
int exmap_pool_setup(struct exmap *exmap, unsigned long pages)
{
	struct exmap_pool *pool = &exmap->pool;

	lockdep_assert_held(&exmap->lock);
	spin_lock_init(&pool->lock);
	init_rwsem(&pool->transit);
	pool->ceiling = pages;
	pool->most = pages;
	INIT_LIST_HEAD(&pool->pinned);
	INIT_LIST_HEAD(&pool->sibling);
	return exmap_charge(exmap->mm, pages, &pool->charge);
}

/**
 * exmap_pool_release - give pages back to the system
 * @exmap: whose pool they were taken for
 * @page: the pages, which nobody else holds, unless they are faulty
 * @nr: how many
 */
void exmap_pool_release(struct exmap *exmap, struct page **page, unsigned int nr)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned int i;

	for (i = 0; i < nr; i++)
		put_page(page[i]);
	exmap_rss_add(exmap->mm, -(long)nr);
	spin_lock(&pool->lock);
	WRITE_ONCE(pool->taken, pool->taken - nr);
	spin_unlock(&pool->lock);
}
