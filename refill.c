// SPDX-License-Identifier: GPL-2.0
/*
 * Refilling the stock of an interface: from the depot, from pages that others held, from the
 * system, from its own quarantine, or by stealing from other interfaces. If all of these fail, one
 * task at a time hunts through every place until it is certain that no page is free.
 */
#include <linux/gfp.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/random.h>
#include <linux/sched/signal.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"
#include "trace.h"

/* Ask the system for at least this many pages at once. */
#define POOL_GROW_PAGES 64

/*
 * Move a few loose pages from the depot to the stock. Returns false if the depot has none. The
 * interface's lock is held. Not inline, because of the stack, which the kernel may clear.
 */
static noinline bool exmap_stock_fetch_loose(struct exmap *exmap, struct exmap_interface *interface,
					     int node)
{
	struct page *loose[EXMAP_LOOSE_TAKE];
	unsigned int nr;

	spin_lock(&exmap->pool.lock);
	nr = exmap_depot_take(&exmap->pool, node, loose, EXMAP_LOOSE_TAKE);
	spin_unlock(&exmap->pool.lock);
	if (!nr)
		return false;
	exmap_stock_add(exmap, interface, loose, nr);
	return true;
}

/**
 * exmap_stock_fetch - move pages from the depot to the stock: a full bundle, or a few loose pages
 * @exmap: the exmap
 * @interface: its lock is held
 * @node: the NUMA node whose pages are wanted, or NUMA_NO_NODE for any
 *
 * Takes pool->lock. Does not sleep.
 *
 * Return: false if the depot has no such page.
 */
bool exmap_stock_fetch(struct exmap *exmap, struct exmap_interface *interface, int node)
{
	struct exmap_pool *pool = &exmap->pool;
	const unsigned long *hint = node == NUMA_NO_NODE ? &pool->nr_free :
		&pool->depot[node].nr_free;
	struct exmap_bundle *bundle;

	/* Pairs with exmap_depot_count(). If it misses a page, the hunt finds it. */
	if (!READ_ONCE(*hint))
		return false;
	spin_lock(&pool->lock);
	bundle = exmap_depot_pop(pool, node);
	spin_unlock(&pool->lock);
	if (!bundle)
		return exmap_stock_fetch_loose(exmap, interface, node);
	exmap_stock_push_full(interface, bundle);
	exmap_stock_pushed(interface);
	return true;
}

/**
 * __exmap_stock_draw - bring enough free pages into the stock, if the depot has them
 * @exmap: the exmap
 * @interface: its lock is held
 * @want: number of pages
 *
 * The slow part of exmap_stock_draw().
 *
 * Return: whether the stock has at least @want pages now.
 */
bool __exmap_stock_draw(struct exmap *exmap, struct exmap_interface *interface, unsigned int want)
{
	interface->node = exmap_home_node();
	while (exmap_stock(interface) < want)
		if (!exmap_stock_fetch(exmap, interface, interface->node))
			return false;
	return true;
}

/* exmap_stock_unpin(), if there are pinned pages. Not inline, because of the stack. */
static noinline bool __exmap_stock_unpin(struct exmap *exmap, struct exmap_interface *interface)
{
	struct page *page[EXMAP_PINNED_LOOK];
	unsigned int nr;

	nr = exmap_pinned_take(exmap, page, false);
	nr = exmap_pinned_sort(exmap, page, nr);
	if (!nr)
		return false;
	exmap_stock_add(exmap, interface, page, nr);
	return true;
}

/*
 * Move pages that others have let go of to the stock. Looks at a few of the pinned pages. Returns
 * false if it got none. The interface's lock is held.
 */
static bool exmap_stock_unpin(struct exmap *exmap, struct exmap_interface *interface)
{
	/*
	 * Pairs with exmap_pinned_add() and exmap_pinned_take(). If it misses a page, the hunt
	 * finds it.
	 */
	return unlikely(READ_ONCE(exmap->pool.nr_pinned)) && __exmap_stock_unpin(exmap, interface);
}

/* Look at all pinned pages once, until the stock has @want pages. The interface's lock is held. */
static void exmap_stock_unpin_all(struct exmap *exmap, struct exmap_interface *interface,
				  unsigned int want)
{
	/* Pairs with exmap_pinned_add(); see exmap_pool_pushes(). */
	unsigned long left = DIV_ROUND_UP(READ_ONCE(exmap->pool.nr_pinned), EXMAP_PINNED_LOOK);

	for (; left && exmap_stock(interface) < want; left--) {
		exmap_stock_unpin(exmap, interface);
		cond_resched();
	}
}

/*
 * Reserve up to @nr pages below the ceiling, and room for them in bundles. May sleep for memory;
 * pool->transit is held for reading. Returns the number of pages, a power of two; 0 if the ceiling
 * is reached; or -ENOMEM.
 */
static long exmap_pool_reserve(struct exmap *exmap, unsigned long nr)
{
	struct exmap_pool *pool = &exmap->pool;
	struct exmap_bundle *bundle = NULL;

	for (;;) {
		spin_lock(&pool->lock);
		if (bundle) {
			exmap_bundle_push(&pool->empty, bundle);
			pool->bundles++;
			exmap_rss_add(exmap->mm, 1);
		}
		nr = min(nr, pool->most - min(pool->most, pool->taken));
		if (pool->taken + nr <= pool->bundles * EXMAP_BUNDLE_PAGES)
			break;
		spin_unlock(&pool->lock);
		bundle = exmap_bundle_alloc();
		if (!bundle)
			return -ENOMEM;
	}
	if (nr)
		nr = rounddown_pow_of_two(nr);
	/*
	 * Pairs with exmap_stock_grow(), exmap_stock_more(), exmap_shrinker_cost() and
	 * exmap_pool_count().
	 */
	WRITE_ONCE(pool->taken, pool->taken + nr);
	spin_unlock(&pool->lock);
	return nr;
}

/*
 * Take up to 1 << *@order zeroed pages from the system, and set *@order to what it got. Reclaim is
 * allowed only for a single page: waiting for a larger block is not worth it while smaller ones are
 * free. @gfp is for a single page. Returns the first page, each page with a reference of its own; or
 * NULL.
 */
static struct page *exmap_pool_take(unsigned int *order, gfp_t gfp)
{
	struct page *page;

	for (; *order; --*order) {
		page = alloc_pages((POOL_GFP & ~__GFP_RECLAIM) | __GFP_ZERO, *order);
		if (page) {
			split_page(page, *order);
			return page;
		}
	}
	return alloc_page(gfp | __GFP_ZERO);
}

/*
 * How many pages to ask the system for, if a call wants @want pages and the stock lacks @more of
 * them. A long run gets a block for all of it, not just for what the stock lacks, because its pages
 * are then adjacent in memory. What it does not need now is at most the interface's share of the
 * @room below the ceiling, because the other interfaces would have to steal it.
 */
static unsigned long exmap_grow_size(const struct exmap *exmap, unsigned long want,
				     unsigned long more, unsigned long room)
{
	unsigned long block = min(roundup_pow_of_two(want), room / exmap->max_interfaces);

	return clamp_t(unsigned long, max(block, more), POOL_GROW_PAGES, EXMAP_BUNDLE_PAGES);
}

/*
 * Add pages from the system to the stock, for a call that wants @want pages in all. Releases the
 * interface's lock meanwhile, because allocation may sleep. Returns the number of pages, 0 if the
 * ceiling is reached, -ENOMEM, or -EAGAIN if the depot has free pages of another NUMA node and the
 * system has none without reclaim, with the lock held again; or -EINTR, with the lock released.
 */
static long exmap_stock_grow(struct exmap *exmap, struct exmap_interface *interface,
			     unsigned int want)
{
	struct exmap_pool *pool = &exmap->pool;
	/*
	 * Pairs with exmap_pool_reserve() and exmap_pinned_replace(). exmap_pool_reserve() decides,
	 * with pool->lock held.
	 */
	const unsigned long taken = READ_ONCE(pool->taken), most = READ_ONCE(pool->most);
	/* A hint. Pairs with exmap_depot_count(). */
	const bool foreign = READ_ONCE(pool->nr_free);
	struct page *block = NULL, *page;
	unsigned long size;
	unsigned int order;
	long reserved, nr, left;
	bool killed;

	if (taken >= most)
		return 0;
	size = exmap_grow_size(exmap, want, want - exmap_stock(interface), most - taken);
	mutex_unlock(&interface->lock);
	/* The system zeroes the pages, so a large request spends a long time here. */
	cond_resched();
	if (down_read_killable(&pool->transit))
		return -EINTR;
	reserved = exmap_pool_reserve(exmap, size);
	nr = reserved;
	if (reserved <= 0)
		goto out;

	order = ilog2(reserved);
	block = exmap_pool_take(&order, foreign ? POOL_GFP & ~__GFP_DIRECT_RECLAIM : POOL_GFP);
	nr = block ? 1L << order : foreign ? -EAGAIN : -ENOMEM;
	spin_lock(&pool->lock);
	exmap_pool_leave(exmap, reserved - max(nr, 0L));
	spin_unlock(&pool->lock);
	exmap_rss_add(exmap->mm, max(nr, 0L));
	if (block)
		exmap_token_follow(exmap);
out:
	/*
	 * The pages' zeros come before any PTE that will map them, because the unlock of pool->lock
	 * above and this lock order all stores before them with all stores after them.
	 */
	killed = mutex_lock_killable(&interface->lock);
	/*
	 * Add the last page first, because the stock is a stack: pages are then handed out in the
	 * order of their addresses.
	 */
	for (left = nr; left > 0; left--) {
		page = block + left - 1;
		if (killed)
			exmap_pool_release(exmap, &page, 1);
		else
			exmap_stock_add(exmap, interface, &page, 1);
	}
	up_read(&pool->transit);
	return killed ? -EINTR : nr;
}

/* Whether the page that would be stolen first is of a node. The victim's lock is held. */
static bool exmap_stock_is_of(const struct exmap_interface *victim, int node)
{
	if (likely(node == NUMA_NO_NODE))
		return true;
	return node == (victim->nr_full ? exmap_bundle_node(victim->full, EXMAP_BUNDLE_PAGES) :
			exmap_bundle_node(victim->loaded, victim->count));
}

/*
 * Move some of @victim's pages to @interface, about @want. The locks of both are held. Returns
 * false if @victim has none of @node, which may be NUMA_NO_NODE.
 */
static bool exmap_stock_rob(struct exmap *exmap, struct exmap_interface *interface,
			    struct exmap_interface *victim, int node, unsigned int want)
{
	unsigned int nr = EXMAP_BUNDLE_PAGES;

	if (!exmap_stock(victim) || !exmap_stock_is_of(victim, node))
		return false;
	if (victim->nr_full) {
		exmap_stock_push_full(interface, exmap_stock_pop_full(victim));
		exmap_stock_pushed(interface);
	} else {
		/* Take at least half: an interface that is short now will be short again. */
		nr = max(min(want, victim->count), DIV_ROUND_UP(victim->count, 2));
		/* Pairs with exmap_stock(). */
		WRITE_ONCE(victim->count, victim->count - nr);
		exmap_stock_add(exmap, interface, &victim->loaded->page[victim->count], nr);
	}
	exmap_count(&interface->counts.steals, nr);
	trace_exmap_steal(exmap, interface, victim, nr);
	return true;
}

static bool exmap_stock_try_rob(struct exmap *exmap, struct exmap_interface *interface,
				unsigned int from, int node, unsigned int want)
{
	struct exmap_interface *victim = &exmap->interfaces[from];
	bool robbed;

	/* exmap_stock() is a hint here. exmap_stock_rob() looks again with the lock held. */
	if (victim == interface || !exmap_stock(victim) || !mutex_trylock(&victim->lock))
		return false;
	robbed = exmap_stock_rob(exmap, interface, victim, node, want);
	mutex_unlock(&victim->lock);
	if (robbed)
		interface->victim = from;
	return robbed;
}

/*
 * Steal pages from another interface without waiting for a lock. Try the last victim first, then
 * the fuller of two picked at random, then all others in turn from there on (section 4.2 of the
 * paper, "Virtual-Memory Assisted Buffer Management"). @node is the NUMA node whose pages are
 * wanted, or NUMA_NO_NODE. The interface's lock is held.
 */
static bool exmap_stock_steal(struct exmap *exmap, struct exmap_interface *interface, int node,
			      unsigned int want)
{
	unsigned int all = exmap_nr_interfaces(exmap);
	u32 random = get_random_u32();
	unsigned int a = reciprocal_scale(random, all);
	unsigned int b = reciprocal_scale(random << 16, all);
	unsigned int i;

	if (exmap_stock_try_rob(exmap, interface, interface->victim, node, want))
		return true;
	/* Hints: both change while this looks. */
	if (exmap_stock(&exmap->interfaces[a]) < exmap_stock(&exmap->interfaces[b]))
		a = b;
	for (i = 0; i < all; i++)
		if (exmap_stock_try_rob(exmap, interface, (a + i) % all, node, want))
			return true;
	return false;
}

/* A sum that changes whenever free pages arrive in any place where a hunt can find them. */
static u64 exmap_pool_pushes(struct exmap *exmap)
{
	/*
	 * Pairs with the releases in exmap_depot_pushed() and exmap_pinned_add(). A reader of the
	 * new count also sees the nr_free or nr_pinned that goes with it.
	 */
	u64 pushes = smp_load_acquire(&exmap->pool.pushes);
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		/*
		 * Pairs with the release in exmap_stock_pushed(): a reader of the new count also
		 * sees the quarantine's @nr. The hunt takes the lock that guards the stock.
		 */
		pushes += smp_load_acquire(&exmap->interfaces[i].pushes);
	return pushes;
}

/*
 * Take pages of one interface, both from its quarantine and from its stock, until @interface has
 * @want. pool->transit is held for writing, and @interface's lock is held. That makes it safe to
 * wait for @victim's lock. Returns 0, or -EINTR if the caller is being killed while it waits.
 */
static int exmap_stock_collect(struct exmap *exmap, struct exmap_interface *interface,
			       struct exmap_interface *victim, unsigned int want)
{
	int err;

	if (exmap_stock(interface) < want) {
		err = exmap_quarantine_flush_killable(exmap, &victim->quarantine, interface);
		if (err < 0)
			return err;
	}
	if (victim == interface)
		return 0;
	if (mutex_lock_killable_nested(&victim->lock, SINGLE_DEPTH_NESTING))
		return -EINTR;
	while (exmap_stock(interface) < want &&
	       exmap_stock_rob(exmap, interface, victim, NUMA_NO_NODE,
			       want - exmap_stock(interface)))
		;
	mutex_unlock(&victim->lock);
	return 0;
}

/*
 * Look for free pages everywhere, until there are @want or it is certain that there are not.
 *
 * Only one task hunts at a time, and no page is between the system and an interface meanwhile,
 * because this holds pool->transit for writing. Suppose that every place was empty when the hunt
 * visited it, and nothing arrived in any place since the round began. Then no page was free at the
 * end of the round. Pages in quarantine count as free, because they only need a flush. Pages that
 * others hold do not count until their holders let go.
 *
 * Returns 0 if it found enough, or if fewer than @limit pages are taken by now, so that the system
 * can be asked again; -ENOMEM if there are not enough; or -EINTR if the caller is being killed,
 * with the interface's lock released.
 */
static int exmap_stock_hunt(struct exmap *exmap, struct exmap_interface *interface,
			    unsigned int want, unsigned long limit)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned int i;
	u64 pushes;
	bool room;
	int err = 0;

	mutex_unlock(&interface->lock);
	if (down_write_killable(&pool->transit))
		return -EINTR;
	if (mutex_lock_killable(&interface->lock)) {
		up_write(&pool->transit);
		return -EINTR;
	}
	do {
		pushes = exmap_pool_pushes(exmap);
		while (exmap_stock(interface) < want &&
		       exmap_stock_fetch(exmap, interface, NUMA_NO_NODE))
			;
		exmap_stock_unpin_all(exmap, interface, want);
		for (i = 0; !err && i < exmap_nr_interfaces(exmap); i++)
			err = exmap_stock_collect(exmap, interface, &exmap->interfaces[i], want);
		if (err || exmap_stock(interface) >= want)
			break;
		/*
		 * With the lock, because exmap_stock_fetch() and exmap_stock_unpin() may have read
		 * 0 without it, while another task was moving pages from there to the system.
		 */
		spin_lock(&pool->lock);
		room = pool->taken < min(limit, pool->most);
		spin_unlock(&pool->lock);
		if (room)
			break;
		cond_resched();
		if (fatal_signal_pending(current))
			err = -EINTR;
		else if (pushes == exmap_pool_pushes(exmap))
			err = -ENOMEM;
	} while (!err);
	if (err == -EINTR)
		mutex_unlock(&interface->lock);
	up_write(&pool->transit);
	return err;
}

/*
 * Get more free pages from anywhere but the depot. Lowers *@limit to what the pool has taken if the
 * system has no more. Returns 0 if there may be enough now, or -ENOMEM; or -EINTR if the caller is
 * being killed, with the interface's lock released.
 */
static int exmap_stock_more(struct exmap *exmap, struct exmap_interface *interface,
			    unsigned int want, unsigned long *limit)
{
	unsigned int more = want - exmap_stock(interface);
	/* Pairs with exmap_pool_reserve() and exmap_pool_release(). */
	unsigned long taken = READ_ONCE(exmap->pool.taken);
	long got;
	int err;

	/* The system zeroes the pages, so a large request goes through here many times. */
	if (fatal_signal_pending(current))
		goto killed;
	if (taken < *limit) {
		got = exmap_stock_grow(exmap, interface, want);
		if (got > 0 || got == -EINTR)
			return min(got, 0L);
		if (got == -EAGAIN) {
			exmap_stock_fetch(exmap, interface, NUMA_NO_NODE);
			return 0;
		}
		/*
		 * Allocation failed: treat the current size as the ceiling, unless some pages go
		 * back to the system.
		 */
		if (got < 0)
			*limit = taken;
	}
	got = exmap_quarantine_flush_killable(exmap, &interface->quarantine, interface);
	if (got < 0)
		goto killed;
	/* With NUMA_NO_NODE, the first steal takes pages of any node. */
	if (got || exmap_stock_steal(exmap, interface, interface->node, more))
		return 0;
	if (interface->node != NUMA_NO_NODE &&
	    (exmap_stock_fetch(exmap, interface, NUMA_NO_NODE) ||
	     exmap_stock_steal(exmap, interface, NUMA_NO_NODE, more)))
		return 0;
	err = exmap_stock_hunt(exmap, interface, want, *limit);
	if (err == -ENOMEM && *limit == ULONG_MAX &&
	    exmap_pinned_replace(exmap, want - exmap_stock(interface)))
		return 0;
	return err;

killed:
	mutex_unlock(&interface->lock);
	return -EINTR;
}

/**
 * exmap_stock_fill - bring enough free pages into the stock
 * @exmap: the exmap
 * @interface: its lock is held. The lock may be released and taken again, so the gate may be closed
 *	when this returns. On an error the lock is released
 * @want: number of pages
 *
 * Takes them from the depot; from pages that others held; from the system, up to the ceiling; from
 * its own quarantine; and from other interfaces. The depot's and other interfaces' pages of another
 * NUMA node than the caller's come last. New pages are charged to the caller's memcg, or to the
 * active one. May sleep and allocate.
 *
 * Return: 0, and the pages stay in the stock as long as the lock is held; -ENOMEM if the exmap does
 * not have that many free pages, and the system has none or the ceiling is reached; -EINTR if the
 * caller is being killed.
 */
int exmap_stock_fill(struct exmap *exmap, struct exmap_interface *interface, unsigned int want)
{
	/* Once the pool has taken this many pages, the system has no more. */
	unsigned long limit = ULONG_MAX;	/* not known yet */
	unsigned long surplus;
	/* Pairs with exmap_pool_resize(). */
	int err = want > READ_ONCE(exmap->pool.ceiling) ? -ENOMEM : 0;

	lockdep_assert_held(&interface->lock);
	/* Before the lock is released. Pairs with exmap_pool_shrink(), which holds the lock. */
	atomic_inc(&interface->fillers);
	interface->node = exmap_home_node();
	while (!err) {
		/* A surplus is not to be used again. Pairs with exmap_pool_leave(). */
		surplus = READ_ONCE(exmap->surplus);
		if (unlikely(surplus))
			exmap_stock_drain(exmap, interface, surplus);
		if (exmap_stock(interface) >= want)
			break;
		if (!exmap_stock_fetch(exmap, interface, interface->node) &&
		    !exmap_stock_unpin(exmap, interface))
			err = exmap_stock_more(exmap, interface, want, &limit);
	}
	/*
	 * Pairs with exmap_pool_shrink(). Atomic, because after an error the lock may have been
	 * released, and another task may be counting.
	 */
	atomic_dec(&interface->fillers);
	if (err == -ENOMEM) {
		/* Pairs with exmap_show_shortages(). */
		atomic64_inc(&exmap->pool.shortages[limit == ULONG_MAX ? EXMAP_SHORT_CEILING :
						    EXMAP_SHORT_MEMORY]);
		exmap_stock_trim(exmap, interface);
		mutex_unlock(&interface->lock);
	}
	return err;
}
