// SPDX-License-Identifier: GPL-2.0
/*
 * Pinned pages: pages that others still hold after they left the surface. The holder may be a
 * device that writes to the page, a pipe, or a registered buffer.
 *
 * We keep our reference until it is the only one. If we dropped it first, the other holder would be
 * the last owner, and the kernel could turn the page into anything. For example, splice into a FUSE
 * file with SPLICE_F_MOVE made such a page part of the page cache, where reclaim cannot reach it.
 *
 * While the exmap is in use, pinned pages stay in its books: in pool->taken and in the resident
 * set. If no other page is free, the pool may take a fresh page in place of each pinned one. That
 * page is charged like the ceiling. If RLIMIT_MEMLOCK has no room, the pool has to wait until the
 * others let go.
 *
 * Pages that are still held when the pool is drained become orphans. The module looks after an
 * orphan until its holder lets go. An orphan stays charged to its memcg and to its user's
 * RLIMIT_MEMLOCK.
 */
#include <linux/cred.h>
#include <linux/mm.h>
#include <linux/sched/user.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"

/*
 * The number of orphans to look at in one run of the work. The work runs once a second, or more
 * often if there are more orphans, so that each one is looked at about once a second.
 */
#define ORPHANS_LOOK 4096UL

static void exmap_orphans_work(struct work_struct *work);

/*
 * Linked through page->lru. page->private is the cred whose RLIMIT_MEMLOCK the page is charged to,
 * with a reference, or NULL.
 */
static LIST_HEAD(exmap_orphans);
static unsigned long exmap_nr_orphans;
/* Guards the list and the number. */
DEFINE_SPINLOCK(exmap_orphans_lock);
static DECLARE_DELAYED_WORK(exmap_orphans_looker, exmap_orphans_work);

/*
 * Whether a page need not be kept: nobody else holds it, or it is faulty. The holder of a faulty
 * page may keep it forever, and the page allocator does not hand it out again. The read of the
 * count pairs with put_page() of the others.
 */
static bool exmap_page_may_go(struct page *page)
{
	return page_ref_count(page) == 1 || PageHWPoison(page);
}

static void exmap_pinned_add(struct exmap_pool *pool, struct page *page)
{
	spin_lock(&pool->lock);
	list_add_tail(&page->lru, &pool->pinned);
	/* Pairs with exmap_stock_unpin() and others who read it without the lock. */
	WRITE_ONCE(pool->nr_pinned, pool->nr_pinned + 1);
	/* Count after @nr_pinned. Pairs with the acquire in exmap_pool_pushes(). */
	smp_store_release(&pool->pushes, pool->pushes + 1);
	spin_unlock(&pool->lock);
}

/**
 * exmap_pinned_sort - move the pages that can be used again to the front
 * @exmap: the exmap whose pool took the pages
 * @page: the pages; no PTE and no TLB of the surface refers to them
 * @nr: number of pages
 *
 * Keeps pages that others hold aside, and gives faulty ones back to the system. Takes pool->lock.
 * Does not sleep.
 *
 * Return: the number of good pages. The caller owns these, at the front of @page, and none of the
 * rest.
 */
unsigned int exmap_pinned_sort(struct exmap *exmap, struct page **page, unsigned int nr)
{
	struct page **good = page, **const end = page + nr;

	for (; page < end; page++) {
		if (exmap_page_is_good(*page))
			*good++ = *page;
		else if (PageHWPoison(*page))
			exmap_pool_release(exmap, page, 1);
		else
			exmap_pinned_add(&exmap->pool, *page);
	}
	return nr - (end - good);
}

/* The number of pages that the pool may take in place of pinned ones. */
static unsigned long exmap_pinned_replaced(const struct exmap_pool *pool)
{
	lockdep_assert_held(&pool->lock);
	return pool->most - pool->ceiling;
}

/**
 * exmap_pinned_replace - let the pool take fresh pages in place of pinned ones
 * @exmap: the exmap; none of its pages is free
 * @want: number of pages
 *
 * Takes pool->lock. Does not sleep.
 *
 * Return: true, and @most is higher until as many pinned pages come back, so that @want pages can
 * be taken; false if too few pages are pinned and not replaced yet, or RLIMIT_MEMLOCK has no room.
 */
bool exmap_pinned_replace(struct exmap *exmap, unsigned int want)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long more;
	bool replaced;

	spin_lock(&pool->lock);
	/* A surplus is charged already. */
	more = want + exmap->surplus;
	replaced = more <= pool->nr_pinned - exmap_pinned_replaced(pool) &&
		!exmap_charge_more(exmap->mm, want, &pool->charge);
	if (replaced) {
		/*
		 * @most pairs with exmap_stock_grow(), the surplus with exmap_stock_trim(),
		 * exmap_stock_fill() and exmap_stock_sort().
		 */
		WRITE_ONCE(pool->most, pool->most + more);
		WRITE_ONCE(exmap->surplus, 0);
	}
	spin_unlock(&pool->lock);
	return replaced;
}

/*
 * Remove @nr pages that were pinned from the books of the pool. Lower @most by as many of them as
 * fresh pages have replaced. pool->lock is held.
 */
static void exmap_pinned_leave(struct exmap *exmap, unsigned int nr)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long replaced = min_t(unsigned long, nr, exmap_pinned_replaced(pool));

	/*
	 * Update the books before pool->lock is dropped: see exmap_depot_drain_one(). @most pairs
	 * with exmap_stock_grow().
	 */
	WRITE_ONCE(pool->most, pool->most - replaced);
	exmap_charge_less(exmap->mm, replaced, &pool->charge);
	exmap_pool_leave(exmap, nr);
	exmap_rss_add(exmap->mm, -(long)nr);
}

/**
 * exmap_pinned_take - take back pages that nobody else holds any more
 * @exmap: the exmap
 * @page: receives the pages
 * @leave: remove all of them from the books, because the caller gives them back to the system
 *
 * Looks at up to EXMAP_PINNED_LOOK pages, those first that were not looked at for the longest time.
 * Pages that fresh ones have replaced, and a surplus, go back to the system in any case. Takes
 * pool->lock. Does not sleep.
 *
 * Return: the number of pages in @page, which the caller owns.
 */
unsigned int exmap_pinned_take(struct exmap *exmap, struct page *page[EXMAP_PINNED_LOOK],
			       bool leave)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned int look, left, nr = 0;
	struct page *first;

	spin_lock(&pool->lock);
	for (look = min_t(unsigned long, pool->nr_pinned, EXMAP_PINNED_LOOK); look; look--) {
		first = list_first_entry(&pool->pinned, struct page, lru);
		if (exmap_page_may_go(first)) {
			list_del(&first->lru);
			page[nr++] = first;
		} else {
			list_move_tail(&first->lru, &pool->pinned);
		}
	}
	/* Pairs with exmap_stock_unpin() and others who read it without the lock. */
	WRITE_ONCE(pool->nr_pinned, pool->nr_pinned - nr);
	left = leave ? nr : min_t(unsigned long, nr,
				  max(exmap_pinned_replaced(pool), exmap->surplus));
	exmap_pinned_leave(exmap, left);
	spin_unlock(&pool->lock);
	if (leave)
		return nr;
	while (left--)
		put_page(page[--nr]);
	return nr;
}

/**
 * exmap_pinned_shrink - give pinned pages that nobody else holds any more back to the system
 * @exmap: the exmap
 *
 * Looks at up to EXMAP_PINNED_LOOK pages.
 *
 * Return: the number of pages.
 */
unsigned int exmap_pinned_shrink(struct exmap *exmap)
{
	struct page *page[EXMAP_PINNED_LOOK];
	unsigned int i, nr = exmap_pinned_take(exmap, page, true);

	for (i = 0; i < nr; i++)
		put_page(page[i]);
	return nr;
}

static void exmap_orphan_put(struct page *page)
{
	const struct cred *cred = (const struct cred *)page_private(page);

	set_page_private(page, 0);
	put_page(page);
	if (!cred)
		return;
	/* Pairs with exmap_charge_locked(), and with others who charge this user. */
	atomic_long_dec(&cred->user->locked_vm);
	put_cred(cred);
}

/**
 * exmap_pinned_drain - remove all pinned pages from the books of a pool
 * @exmap: has been set up; its surface is dead, or it never had one
 *
 * Pages that others still hold become orphans. May sleep.
 */
void exmap_pinned_drain(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long nr, kept = 0;
	struct page *page, *next;
	const struct cred *cred;
	LIST_HEAD(pages);

	/* Pairs with exmap_pinned_add(). exmap_pool_destroy() gets what this misses. */
	if (!READ_ONCE(pool->nr_pinned))
		return;
	spin_lock(&pool->lock);
	list_splice_init(&pool->pinned, &pages);
	nr = pool->nr_pinned;
	/*
	 * @nr_pinned pairs with exmap_stock_unpin(), and @taken with exmap_stock_grow(). Both pair
	 * with others who read them without the lock.
	 */
	WRITE_ONCE(pool->nr_pinned, 0);
	WRITE_ONCE(pool->taken, pool->taken - nr);
	exmap_rss_add(exmap->mm, -(long)nr);
	/*
	 * The charge for replaced pages and a surplus goes with the orphans, or ends with the pool.
	 * Pairs with exmap_stock_grow() and exmap_stock_fill(), as in exmap_pinned_replace().
	 */
	WRITE_ONCE(pool->most, pool->ceiling);
	WRITE_ONCE(exmap->surplus, 0);
	spin_unlock(&pool->lock);

	list_for_each_entry_safe(page, next, &pages, lru) {
		cond_resched();
		if (exmap_page_may_go(page)) {
			list_del(&page->lru);
			put_page(page);
			continue;
		}
		cred = pool->charge.cred;
		set_page_private(page, (unsigned long)(cred ? get_cred(cred) : NULL));
		kept++;
	}
	if (!kept)
		return;
	spin_lock(&pool->lock);
	exmap_charge_leave(exmap->mm, &pool->charge, kept);
	spin_unlock(&pool->lock);
	spin_lock(&exmap_orphans_lock);
	list_splice_tail(&pages, &exmap_orphans);
	exmap_nr_orphans += kept;
	spin_unlock(&exmap_orphans_lock);
	schedule_delayed_work(&exmap_orphans_looker, HZ);
}

/* Move a few orphans from the front of the list to @pages. Returns the number of orphans. */
static unsigned int exmap_orphans_take(struct list_head *pages)
{
	struct page *page;
	unsigned int nr;

	spin_lock(&exmap_orphans_lock);
	for (nr = 0; nr < EXMAP_PINNED_LOOK && !list_empty(&exmap_orphans); nr++) {
		page = list_first_entry(&exmap_orphans, struct page, lru);
		list_move_tail(&page->lru, pages);
	}
	exmap_nr_orphans -= nr;
	spin_unlock(&exmap_orphans_lock);
	return nr;
}

/* Release the orphans that nobody else holds any more. */
static void exmap_orphans_work(struct work_struct *work)
{
	unsigned int nr, kept, looked = 0;
	struct page *page, *next;
	unsigned long left;
	LIST_HEAD(pages);

	do {
		nr = exmap_orphans_take(&pages);
		kept = nr;
		list_for_each_entry_safe(page, next, &pages, lru) {
			if (!exmap_page_may_go(page))
				continue;
			list_del(&page->lru);
			exmap_orphan_put(page);
			kept--;
		}
		spin_lock(&exmap_orphans_lock);
		list_splice_tail_init(&pages, &exmap_orphans);
		exmap_nr_orphans += kept;
		left = exmap_nr_orphans;
		spin_unlock(&exmap_orphans_lock);
		looked += nr;
		cond_resched();
	} while (looked < min(left, ORPHANS_LOOK));
	if (left)
		schedule_delayed_work(&exmap_orphans_looker,
				      clamp(HZ * ORPHANS_LOOK / left, 1UL, (unsigned long)HZ));
}

/**
 * exmap_pinned_exit - release all orphans, whether others hold them or not
 *
 * Called at module exit, when no exmap is left. May sleep.
 */
void exmap_pinned_exit(void)
{
	struct page *page, *next;
	LIST_HEAD(pages);

	cancel_delayed_work_sync(&exmap_orphans_looker);
	while (exmap_orphans_take(&pages)) {
		list_for_each_entry_safe(page, next, &pages, lru) {
			list_del(&page->lru);
			exmap_orphan_put(page);
		}
		cond_resched();
	}
}
