// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that were taken off the surface while others still hold them: a device that writes
 * to them, a pipe, a registered buffer.
 *
 * We keep our reference until it is the only one. If we let go first, the other holder is
 * the last owner, and the kernel may make such a page anything: splice into a FUSE file with
 * SPLICE_F_MOVE made it page cache that reclaim cannot reach. While the exmap is in use these
 * pages stay in its books: in pool->taken and in the RSS. If no other page is free, the pool may
 * take a fresh one in the place of each, which is charged like the ceiling; without room in
 * RLIMIT_MEMLOCK it has to wait until the others let go. What is left when
 * the pool is drained becomes an orphan, which the module looks after until its holder lets
 * go. An orphan stays charged to its memcg and to its user's RLIMIT_MEMLOCK.
 */
#include <linux/cred.h>
#include <linux/mm.h>
#include <linux/sched/user.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "exmap.h"

/* Look at so many orphans in a row. All of them are looked at once a second. */
#define ORPHANS_LOOK 4096

static void exmap_orphans_work(struct work_struct *work);

/* Linked through page->lru. page->private is a reference to whose RLIMIT_MEMLOCK, or NULL. */
static LIST_HEAD(exmap_orphans);
static unsigned long exmap_nr_orphans;
/* Guards both. */
static DEFINE_SPINLOCK(exmap_orphans_lock);
static DECLARE_DELAYED_WORK(exmap_orphans_looker, exmap_orphans_work);

/*
 * Whether there is no reason to keep a page. Whoever found the fault in a faulty page may
 * hold it for ever, and the page allocator does not hand it out again.
 */
static bool exmap_page_may_go(struct page *page)
{
	return page_ref_count(page) == 1 || PageHWPoison(page);
}

static void exmap_pinned_add(struct exmap_pool *pool, struct page *page)
{
	spin_lock(&pool->lock);
	list_add_tail(&page->lru, &pool->pinned);
	WRITE_ONCE(pool->nr_pinned, pool->nr_pinned + 1);
	/* After the page: see exmap_pool_pushes(). */
	smp_store_release(&pool->pushes, pool->pushes + 1);
	spin_unlock(&pool->lock);
}

/**
 * exmap_pinned_sort - find out which pages are good to be used again
 * @exmap: whose pool they were taken for
 * @page: the pages, no PTE and no TLB of the surface holding one any more. The good ones
 *	are moved to the front
 * @nr: how many
 *
 * Pages that others hold are kept aside. Faulty ones go back to the system.
 *
 * Return: how many are good; the caller has these, and none of the others.
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

/* How many pages the pool has been allowed to take in the place of pinned ones. */
static unsigned long exmap_pinned_replaced(const struct exmap_pool *pool)
{
	lockdep_assert_held(&pool->lock);
	return pool->most - pool->ceiling;
}

/**
 * exmap_pinned_replace - let the pool take fresh pages in the place of pinned ones
 * @exmap: the exmap; none of its pages is free
 * @want: how many
 *
 * Return: true, and the ceiling is that much higher until as many pinned pages come back; false
 * if fewer are pinned, or RLIMIT_MEMLOCK has no room.
 */
bool exmap_pinned_replace(struct exmap *exmap, unsigned int want)
{
	struct exmap_pool *pool = &exmap->pool;
	bool replaced;

	spin_lock(&pool->lock);
	replaced = want <= pool->nr_pinned - exmap_pinned_replaced(pool) &&
		!exmap_charge_more(exmap->mm, want, &pool->charge);
	if (replaced)
		WRITE_ONCE(pool->most, pool->most + want);
	spin_unlock(&pool->lock);
	return replaced;
}

/*
 * @nr pages that were pinned leave the pool: take them out of its books, those first that were
 * replaced by others.
 */
static void exmap_pinned_leave(struct exmap *exmap, unsigned int nr)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long replaced = min_t(unsigned long, nr, exmap_pinned_replaced(pool));

	/* As in exmap_depot_drain_one(). */
	WRITE_ONCE(pool->taken, pool->taken - nr);
	exmap_rss_add(exmap->mm, -(long)nr);
	WRITE_ONCE(pool->most, pool->most - replaced);
	exmap_charge_less(exmap->mm, replaced, &pool->charge);
}

/**
 * exmap_pinned_take - take back pages that nobody else holds any more
 * @exmap: the exmap
 * @page: set to the pages that the caller has now
 * @leave: all of them are to leave the pool
 *
 * Looks at the EXMAP_PINNED_LOOK pages that were not looked at for the longest time. Those that
 * were replaced by fresh ones leave the pool in any case.
 *
 * Return: how many pages there are in @page.
 */
unsigned int exmap_pinned_take(struct exmap *exmap, struct page *page[EXMAP_PINNED_LOOK],
			       bool leave)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned int look, left, nr = 0;
	struct page *first;

	spin_lock(&pool->lock);
	for (look = min(pool->nr_pinned, EXMAP_PINNED_LOOK); look; look--) {
		first = list_first_entry(&pool->pinned, struct page, lru);
		if (exmap_page_may_go(first)) {
			list_del(&first->lru);
			page[nr++] = first;
		} else {
			list_move_tail(&first->lru, &pool->pinned);
		}
	}
	WRITE_ONCE(pool->nr_pinned, pool->nr_pinned - nr);
	left = leave ? nr : min_t(unsigned long, nr, exmap_pinned_replaced(pool));
	exmap_pinned_leave(exmap, left);
	spin_unlock(&pool->lock);
	if (leave)
		return nr;
	while (left--)
		put_page(page[--nr]);
	return nr;
}

/**
 * exmap_pinned_shrink - give pages back to the system that nobody else holds any more
 * @exmap: the exmap
 *
 * Looks at a few of them.
 *
 * Return: how many.
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
	atomic_long_dec(&cred->user->locked_vm);
	put_cred(cred);
}

/**
 * exmap_pinned_drain - take all out of a pool's books
 * @exmap: its surface is dead or has never been
 *
 * What others still hold is the module's from here on.
 */
void exmap_pinned_drain(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long nr, kept = 0;
	struct page *page, *next;
	const struct cred *cred;
	LIST_HEAD(pages);

	if (!READ_ONCE(pool->nr_pinned))
		return;
	spin_lock(&pool->lock);
	list_splice_init(&pool->pinned, &pages);
	nr = pool->nr_pinned;
	WRITE_ONCE(pool->nr_pinned, 0);
	WRITE_ONCE(pool->taken, pool->taken - nr);
	exmap_rss_add(exmap->mm, -(long)nr);
	/* What is charged for those that were replaced goes with the orphans, or with the pool. */
	WRITE_ONCE(pool->most, pool->ceiling);
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

/* Take a few orphans from the front of the list. Returns how many. */
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

/* Let go of the orphans that nobody else holds any more. */
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
 * exmap_pinned_exit - let go of all orphans; no exmap is left
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
