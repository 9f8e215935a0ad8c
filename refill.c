// SPDX-License-Identifier: GPL-2.0
/*
 * Where an interface gets more free pages: from the depot, from pages that others held, from
 * the system, from its own quarantine, by stealing from other interfaces. If all of that
 * fails, one task at a time hunts in every place until it is certain that no page is free.
 */
#include <linux/gfp.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/random.h>
#include <linux/sched/signal.h>

#include "compat.h"
#include "exmap.h"
#include "trace.h"

/* Take this many pages from the system at once, where more than none are wanted. */
#define POOL_GROW_PAGES 64

/* Fetch a full bundle from the depot. */
static bool exmap_stock_fetch(struct exmap *exmap, struct exmap_interface *interface)
{
	struct exmap_pool *pool = &exmap->pool;
	struct exmap_bundle *bundle;

	if (!READ_ONCE(pool->nr_full))
		return false;
	spin_lock(&pool->lock);
	bundle = exmap_depot_pop(pool);
	spin_unlock(&pool->lock);
	if (!bundle)
		return false;
	exmap_stock_push_full(interface, bundle);
	exmap_stock_pushed(interface);
	return true;
}

/* Take back some of the pages that others held. False where they still hold those. */
static bool exmap_stock_unpin(struct exmap *exmap, struct exmap_interface *interface)
{
	struct page *page[EXMAP_PINNED_LOOK];
	unsigned int nr;

	if (likely(!READ_ONCE(exmap->pool.nr_pinned)))
		return false;
	nr = exmap_pinned_take(exmap, page, false);
	nr = exmap_pinned_sort(exmap, page, nr);
	if (!nr)
		return false;
	exmap_stock_add(exmap, interface, page, nr);
	return true;
}

/* Look at all of them, until there are enough free pages. */
static void exmap_stock_unpin_all(struct exmap *exmap, struct exmap_interface *interface,
				  unsigned int want)
{
	unsigned long left = DIV_ROUND_UP(READ_ONCE(exmap->pool.nr_pinned), EXMAP_PINNED_LOOK);

	for (; left && exmap_stock(interface) < want; left--) {
		exmap_stock_unpin(exmap, interface);
		cond_resched();
	}
}

/*
 * Reserve up to @nr pages below the ceiling, and room for them in bundles.
 * Returns how many, 0 where the ceiling is reached, or -ENOMEM.
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
	WRITE_ONCE(pool->taken, pool->taken + nr);
	spin_unlock(&pool->lock);
	return nr;
}

/*
 * Take zeroed pages from the system, at most 1 << *@order; *@order says how many
 * they are. What is not there at once is not worth waiting for while smaller
 * blocks are.
 */
static struct page *exmap_pool_take(unsigned int *order)
{
	struct page *page;

	for (; *order; --*order) {
		page = alloc_pages((POOL_GFP & ~__GFP_RECLAIM) | __GFP_ZERO, *order);
		if (page) {
			split_page(page, *order);
			return page;
		}
	}
	return alloc_page(POOL_GFP | __GFP_ZERO);
}

/*
 * Add pages from the system to the stock, with the interface's lock released meanwhile.
 * Returns how many, 0 if the ceiling is reached, or -ENOMEM; or -EINTR, with the lock not held.
 */
static long exmap_stock_grow(struct exmap *exmap, struct exmap_interface *interface,
			     unsigned int want)
{
	struct exmap_pool *pool = &exmap->pool;
	struct page *block = NULL, *page;
	unsigned int order;
	long reserved, nr, left;
	bool killed;

	if (READ_ONCE(pool->taken) >= READ_ONCE(pool->most))
		return 0;
	mutex_unlock(&interface->lock);
	/* What is taken is zeroed: the way here is long if many are wanted. */
	cond_resched();
	if (down_read_killable(&pool->transit))
		return -EINTR;
	reserved = exmap_pool_reserve(exmap, clamp_t(unsigned long, want, POOL_GROW_PAGES,
						     EXMAP_BUNDLE_PAGES));
	nr = reserved;
	if (reserved <= 0)
		goto out;

	order = ilog2(reserved);
	block = exmap_pool_take(&order);
	nr = block ? 1L << order : -ENOMEM;
	spin_lock(&pool->lock);
	WRITE_ONCE(pool->taken, pool->taken - (reserved - max(nr, 0L)));
	spin_unlock(&pool->lock);
	exmap_rss_add(exmap->mm, max(nr, 0L));
out:
	killed = mutex_lock_killable(&interface->lock);
	/* From the end, so that they are handed out in the order of their addresses. */
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

/* Move some of @victim's pages to @interface. Both locks are held. */
static bool exmap_stock_rob(struct exmap *exmap, struct exmap_interface *interface,
			    struct exmap_interface *victim, unsigned int want)
{
	unsigned int nr = EXMAP_BUNDLE_PAGES;

	if (!exmap_stock(victim))
		return false;
	if (victim->nr_full) {
		exmap_stock_push_full(interface, exmap_stock_pop_full(victim));
		exmap_stock_pushed(interface);
	} else {
		/* What is wanted, or half: who is short now will be short again. */
		nr = max(min(want, victim->count), DIV_ROUND_UP(victim->count, 2));
		WRITE_ONCE(victim->count, victim->count - nr);
		exmap_stock_add(exmap, interface, &victim->loaded->page[victim->count], nr);
	}
	exmap_count(&interface->counts.steals, nr);
	trace_exmap_steal(exmap, interface, victim, nr);
	return true;
}

static bool exmap_stock_try_rob(struct exmap *exmap, struct exmap_interface *interface,
				unsigned int from, unsigned int want)
{
	struct exmap_interface *victim = &exmap->interfaces[from];
	bool robbed;

	if (victim == interface || !exmap_stock(victim) || !mutex_trylock(&victim->lock))
		return false;
	robbed = exmap_stock_rob(exmap, interface, victim, want);
	mutex_unlock(&victim->lock);
	if (robbed)
		interface->victim = from;
	return robbed;
}

/*
 * Steal from another interface, without waiting: where it last worked, then from
 * the fuller of two picked at random, then from the first that has something
 * (section 4.2 of the paper).
 */
static bool exmap_stock_steal(struct exmap *exmap, struct exmap_interface *interface,
			      unsigned int want)
{
	unsigned int all = exmap_nr_interfaces(exmap);
	u32 random = get_random_u32();
	unsigned int a = reciprocal_scale(random, all);
	unsigned int b = reciprocal_scale(random << 16, all);
	unsigned int i;

	if (exmap_stock_try_rob(exmap, interface, interface->victim, want))
		return true;
	if (exmap_stock(&exmap->interfaces[a]) < exmap_stock(&exmap->interfaces[b]))
		a = b;
	for (i = 0; i < all; i++)
		if (exmap_stock_try_rob(exmap, interface, (a + i) % all, want))
			return true;
	return false;
}

/* Changes whenever a free page has come to any place where one can be found. */
static u64 exmap_pool_pushes(struct exmap *exmap)
{
	/* Before a look at pool->nr_full without its lock: what it counts is there. */
	u64 pushes = smp_load_acquire(&exmap->pool.pushes);
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		pushes += READ_ONCE(exmap->interfaces[i].pushes);
	return pushes;
}

/*
 * Take what one interface has, in quarantine or free, until there are @want. pool->transit is held
 * for writing. Returns 0, or -EINTR if the caller is being killed while it waits.
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
	       exmap_stock_rob(exmap, interface, victim, want - exmap_stock(interface)))
		;
	mutex_unlock(&victim->lock);
	return 0;
}

/*
 * Look for free pages everywhere until there are enough or it is certain that
 * there are not. Only one task hunts at a time, and no page is on its way from
 * the system meanwhile. So where all places were empty when visited, and nothing
 * has come to any of them since the round began, none was free at its end. What is in
 * quarantine is free; it just has to be flushed. What others hold is not, until they let go.
 *
 * Returns 0 if it found some or if fewer than @limit pages are taken again, or -ENOMEM if there
 * are not enough; or -EINTR if the caller is being killed, with the interface's lock not held.
 */
static int exmap_stock_hunt(struct exmap *exmap, struct exmap_interface *interface,
			    unsigned int want, unsigned long limit)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned int i;
	u64 pushes;
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
		while (exmap_stock(interface) < want && exmap_stock_fetch(exmap, interface))
			;
		exmap_stock_unpin_all(exmap, interface, want);
		for (i = 0; !err && i < exmap_nr_interfaces(exmap); i++)
			err = exmap_stock_collect(exmap, interface, &exmap->interfaces[i], want);
		if (err || exmap_stock(interface) >= want)
			break;
		if (READ_ONCE(pool->taken) < min(limit, READ_ONCE(pool->most)))
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
 * Get more free pages from anywhere but the depot. *@limit is lowered to what the pool has taken
 * once the system has no more. Returns 0 if there may be some now, or -ENOMEM; or -EINTR if the
 * caller is being killed, with the interface's lock not held.
 */
static int exmap_stock_more(struct exmap *exmap, struct exmap_interface *interface,
			    unsigned int want, unsigned long *limit)
{
	unsigned int more = want - exmap_stock(interface);
	unsigned long taken = READ_ONCE(exmap->pool.taken);
	long got;
	int err;

	/* The system zeroes what it gives: this can take long. */
	if (fatal_signal_pending(current))
		goto killed;
	if (taken < *limit) {
		got = exmap_stock_grow(exmap, interface, more);
		if (got > 0 || got == -EINTR)
			return min(got, 0L);
		/* It has none, unless some of ours go back to it. */
		if (got < 0)
			*limit = taken;
	}
	got = exmap_quarantine_flush_killable(exmap, &interface->quarantine, interface);
	if (got < 0)
		goto killed;
	if (got || exmap_stock_steal(exmap, interface, more))
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
 * exmap_stock_fill - have enough free pages at hand
 * @exmap: the exmap
 * @interface: its lock is held, but may be released and taken again: the gate may be
 *	closed after this. If it returns an error the lock is not held any more
 * @want: how many pages
 *
 * From the depot; from what others held; from the system up to the ceiling; from its own
 * quarantine; from other interfaces. The memory is charged to the caller's memcg, or the active
 * one.
 *
 * Return: 0, and the pages stay as long as the lock is held; -ENOMEM if there
 * are not that many free pages in all of the exmap and the system has none, or
 * the ceiling is reached; -EINTR if the caller is being killed.
 */
int exmap_stock_fill(struct exmap *exmap, struct exmap_interface *interface, unsigned int want)
{
	/* With so many taken there are no more to be had from the system. */
	unsigned long limit = ULONG_MAX;	/* not known yet */
	int err = want > exmap->pool.ceiling ? -ENOMEM : 0;

	lockdep_assert_held(&interface->lock);
	atomic_inc(&interface->fillers);
	while (!err && exmap_stock(interface) < want)
		if (!exmap_stock_fetch(exmap, interface) && !exmap_stock_unpin(exmap, interface))
			err = exmap_stock_more(exmap, interface, want, &limit);
	atomic_dec(&interface->fillers);
	if (err == -ENOMEM) {
		exmap_stock_trim(exmap, interface);
		mutex_unlock(&interface->lock);
	}
	return err;
}
