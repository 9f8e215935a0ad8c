// SPDX-License-Identifier: GPL-2.0
/*
 * The physical pages of an exmap: the pool's books, its bundles of 512 pages, and the depot,
 * through which interfaces exchange full bundles. refill.c takes pages from the system, and
 * reclaim.c gives them back.
 *
 * After Bonwick and Adams, "Magazines and Vmem" (USENIX 2001). Each interface has bundles of its
 * own. So an interface takes the depot's lock at most once per 512 pages, and not at all if it
 * frees what it allocates.
 *
 * If the system has several NUMA nodes, the depot has a part for each. An interface that frees pages
 * of another node than its own puts them there as loose pages, once per call and node.
 *
 * Bundles cannot run out. Each interface brings three: the loaded one, limbo and a spare. (Those of
 * its quarantine always stay there.) Another pool->bundles came with the pages, at least one per
 * 512 pages of pool->taken. Suppose that a page comes back and the interface's own bundles are
 * all in use. Fewer than pool->bundles bundles are full then, because the page is in none of them.
 * So the depot has an empty one.
 */
#include <linux/gfp.h>
#include <linux/mm.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"

/**
 * exmap_bundle_alloc - allocate a bundle
 *
 * May sleep for memory. No lock of ours is held, except exmap->lock or pool->transit.
 *
 * Return: the bundle, not cleared; or NULL.
 */
struct exmap_bundle *exmap_bundle_alloc(void)
{
	return (struct exmap_bundle *)__get_free_page(POOL_GFP);
}

/**
 * exmap_bundle_free - free a bundle
 * @bundle: the bundle, which is on no stack; or NULL. The pages in it are not freed
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
 * The link is in the bundle's struct page, because the bundle itself has no room for one.
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
 * exmap_home_node - the NUMA node that the current task's free pages should come from
 *
 * Return: the node; or NUMA_NO_NODE if it makes no difference, because there is only one node, or
 * because the task's memory policy spreads pages over several.
 */
int exmap_home_node(void)
{
	return likely(nr_online_nodes == 1) ? NUMA_NO_NODE : exmap_policy_node();
}

/*
 * Change the number of pages in the depot of one node. pool->lock is held. Pairs with those who
 * read the numbers without it: exmap_stock_draw(), exmap_stock_fetch(), exmap_stock_grow() and
 * exmap_pool_free_pages().
 */
static void exmap_depot_count(struct exmap_pool *pool, struct exmap_depot *depot, long more)
{
	lockdep_assert_held(&pool->lock);
	WRITE_ONCE(depot->nr_free, depot->nr_free + more);
	WRITE_ONCE(pool->nr_free, pool->nr_free + more);
}

/* Count an arrival of pages in the depot, so that a hunt looks again. pool->lock is held. */
static void exmap_depot_pushed(struct exmap_pool *pool)
{
	lockdep_assert_held(&pool->lock);
	/* Count after @nr_free. Pairs with the acquire in exmap_pool_pushes(). */
	smp_store_release(&pool->pushes, pool->pushes + 1);
}

/**
 * exmap_depot_push - put a full bundle into the depot
 * @pool: the pool; pool->lock is held
 * @bundle: the bundle, which goes to the part of its node
 */
void exmap_depot_push(struct exmap_pool *pool, struct exmap_bundle *bundle)
{
	/* On a system with one node, this need not read the struct page. */
	int node = nr_node_ids == 1 ? 0 : exmap_bundle_node(bundle, EXMAP_BUNDLE_PAGES);
	struct exmap_depot *depot = &pool->depot[node];

	exmap_bundle_push(&depot->full, bundle);
	exmap_depot_count(pool, depot, EXMAP_BUNDLE_PAGES);
	exmap_depot_pushed(pool);
}

/* The first and the last node whose depots a caller asks for, with a node or with NUMA_NO_NODE. */
static int exmap_depot_first(int node)
{
	return node == NUMA_NO_NODE ? 0 : node;
}

static int exmap_depot_last(int node)
{
	return node == NUMA_NO_NODE ? (int)nr_node_ids - 1 : node;
}

/**
 * exmap_depot_pop - take a full bundle out of the depot
 * @pool: the pool; pool->lock is held
 * @node: the NUMA node whose pages are wanted, or NUMA_NO_NODE for any
 *
 * Return: the bundle, or NULL if the depot has no full one.
 */
struct exmap_bundle *exmap_depot_pop(struct exmap_pool *pool, int node)
{
	int last = exmap_depot_last(node), i;
	struct exmap_bundle *bundle;

	lockdep_assert_held(&pool->lock);
	for (i = exmap_depot_first(node); i <= last; i++) {
		bundle = exmap_bundle_pop(&pool->depot[i].full);
		if (bundle) {
			exmap_depot_count(pool, &pool->depot[i], -(long)EXMAP_BUNDLE_PAGES);
			return bundle;
		}
	}
	return NULL;
}

/**
 * exmap_depot_add - add loose pages of one NUMA node to the depot
 * @pool: the pool; takes pool->lock
 * @node: the node
 * @pages: free pages, linked through page->lru, in the order in which they are to be handed out.
 *	The list is empty afterwards
 * @nr: number of pages
 */
void exmap_depot_add(struct exmap_pool *pool, int node, struct list_head *pages, unsigned int nr)
{
	struct exmap_depot *depot = &pool->depot[node];

	spin_lock(&pool->lock);
	list_splice_init(pages, &depot->loose);
	exmap_depot_count(pool, depot, nr);
	exmap_depot_pushed(pool);
	spin_unlock(&pool->lock);
}

/**
 * exmap_depot_take - take loose pages out of the depot
 * @pool: the pool; pool->lock is held
 * @node: the NUMA node whose pages are wanted, or NUMA_NO_NODE for any
 * @page: receives the pages; the last is to be handed out first, as in a bundle
 * @most: the most pages to take
 *
 * Return: the number of pages.
 */
unsigned int exmap_depot_take(struct exmap_pool *pool, int node, struct page **page,
			      unsigned int most)
{
	int last = exmap_depot_last(node), i;
	unsigned int nr = 0, before;
	struct list_head *loose;
	struct page *taken;

	lockdep_assert_held(&pool->lock);
	for (i = exmap_depot_first(node); i <= last && nr < most; i++) {
		loose = &pool->depot[i].loose;
		for (before = nr; nr < most && !list_empty(loose); ) {
			taken = list_first_entry(loose, struct page, lru);
			list_del(&taken->lru);
			/* From the end on, because a stock hands out its last page first. */
			page[most - 1 - nr++] = taken;
		}
		exmap_depot_count(pool, &pool->depot[i], -(long)(nr - before));
	}
	memmove(page, page + most - nr, nr * sizeof(*page));
	return nr;
}

/**
 * exmap_pool_setup - initialize a pool, which takes no pages yet
 * @exmap: exmap->lock is held, and @interfaces is not set yet
 * @pages: the ceiling, in pages
 *
 * Charges the ceiling. May sleep for memory.
 *
 * Return: 0; -ENOMEM if no memory is available or @pages would exceed RLIMIT_MEMLOCK; -EPERM if
 * that limit is 0.
 */
int exmap_pool_setup(struct exmap *exmap, unsigned long pages)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned int node;
	int err;

	lockdep_assert_held(&exmap->lock);
	pool->ceiling = pages;
	pool->most = pages;
	for (node = 0; node < nr_node_ids; node++)
		INIT_LIST_HEAD(&pool->depot[node].loose);
	INIT_LIST_HEAD(&pool->pinned);
	INIT_LIST_HEAD(&pool->sibling);
	err = exmap_charge_pages(exmap->mm, pages, &pool->charge);
	if (err)
		return err;
	err = exmap_token_make(exmap);
	if (err)
		exmap_uncharge(exmap->mm, &pool->charge);
	return err;
}

/*
 * Free a bundle that the pool does not need any more, if the depot has an empty one. Otherwise a
 * user could keep bundles for a ceiling that is not charged any more. pool->lock is held. Returns
 * whether it has freed one.
 */
static bool exmap_bundle_trim(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;

	lockdep_assert_held(&pool->lock);
	if (!pool->empty ||
	    pool->taken + EXMAP_BUNDLE_PAGES > pool->bundles * EXMAP_BUNDLE_PAGES)
		return false;
	exmap_bundle_free(exmap_bundle_pop(&pool->empty));
	pool->bundles--;
	exmap_rss_add(exmap->mm, -1);
	return true;
}

/**
 * exmap_pool_trim_bundles - free bundles that the pool does not need any more
 * @exmap: has been set up; no lock is held
 *
 * May sleep.
 */
void exmap_pool_trim_bundles(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;
	bool freed;

	do {
		spin_lock(&pool->lock);
		freed = exmap_bundle_trim(exmap);
		spin_unlock(&pool->lock);
		cond_resched();
	} while (freed);
}

/**
 * exmap_pool_leave - remove pages from the books of a pool
 * @exmap: the exmap; pool->lock is held
 * @nr: number of pages, at most EXMAP_BUNDLE_PAGES
 *
 * If the pool has a surplus, the charge goes down with it, and so does the number of bundles.
 */
void exmap_pool_leave(struct exmap *exmap, unsigned long nr)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long surplus;

	lockdep_assert_held(&pool->lock);
	/*
	 * Pairs with exmap_stock_grow(), exmap_stock_more(), exmap_shrinker_cost() and
	 * exmap_pool_count().
	 */
	WRITE_ONCE(pool->taken, pool->taken - nr);
	if (likely(!exmap->surplus))
		return;
	surplus = pool->taken - min(pool->taken, pool->most);
	exmap_charge_less(exmap->mm, exmap->surplus - surplus, &pool->charge);
	/* Pairs with exmap_stock_trim(), exmap_stock_fill() and exmap_stock_sort(). */
	WRITE_ONCE(exmap->surplus, surplus);
	/* One is enough for EXMAP_BUNDLE_PAGES pages, and no caller removes more at a time. */
	exmap_bundle_trim(exmap);
}

/**
 * exmap_pool_resize - change the ceiling of a pool
 * @exmap: has been set up, and belongs to current->mm
 * @pages: the new ceiling, in pages
 *
 * Pages beyond a lower ceiling are the surplus. It stays charged until the pages have left. Does
 * not sleep.
 *
 * Return: 0; or, with nothing changed, -ENOMEM if RLIMIT_MEMLOCK has no room, -EPERM if it is 0,
 * -EPROTO if the surface has been unmapped.
 */
int exmap_pool_resize(struct exmap *exmap, unsigned long pages)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long limit, most, before, after;
	int err;

	err = exmap_charge_limit(&limit);
	if (err)
		return err;
	spin_lock(&pool->lock);
	/*
	 * exmap_pinned_drain() gives a part of the charge to orphans. It runs after the surface's
	 * death, and takes pool->lock. Pairs with exmap_gate_close().
	 */
	if (READ_ONCE(exmap->gate) == EXMAP_GATE_DEAD) {
		err = -EPROTO;
		goto unlock;
	}
	most = pages + (pool->most - pool->ceiling);
	before = pool->most + exmap->surplus;
	after = max(most, pool->taken);
	if (after > before) {
		err = exmap_charge_raise(exmap->mm, after - before, limit, &pool->charge);
		if (err)
			goto unlock;
	} else {
		exmap_charge_less(exmap->mm, before - after, &pool->charge);
	}
	/*
	 * The ceiling pairs with exmap_stock_fill() and __exmap_reading_setup(), @most with
	 * exmap_stock_grow(), and the surplus with exmap_stock_trim(), exmap_stock_fill() and
	 * exmap_stock_sort().
	 */
	WRITE_ONCE(pool->ceiling, pages);
	WRITE_ONCE(pool->most, most);
	WRITE_ONCE(exmap->surplus, after - most);
unlock:
	spin_unlock(&pool->lock);
	return err;
}

/**
 * exmap_pool_release - give pages back to the system
 * @exmap: the exmap whose pool took the pages
 * @page: the pages. Nobody else holds them, unless they are faulty
 * @nr: number of pages
 *
 * Takes pool->lock. Does not sleep.
 */
void exmap_pool_release(struct exmap *exmap, struct page **page, unsigned int nr)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned int i;

	for (i = 0; i < nr; i++)
		put_page(page[i]);
	exmap_rss_add(exmap->mm, -(long)nr);
	spin_lock(&pool->lock);
	exmap_pool_leave(exmap, nr);
	spin_unlock(&pool->lock);
}
