// SPDX-License-Identifier: GPL-2.0
/*
 * The stock: the free pages that an interface has at hand, in bundles of its own. See pool.c
 * for why there is always a bundle for a page that comes back.
 */
#include <linux/mm.h>

#include "compat.h"
#include "exmap.h"

/**
 * exmap_stock_destroy - undo exmap_stock_setup(), if it was done
 * @interface: not in use, and without free pages
 */
void exmap_stock_destroy(struct exmap_interface *interface)
{
	exmap_bundle_free(interface->loaded);
	exmap_bundle_free(interface->limbo);
	exmap_bundle_free(interface->empty);
	exmap_bundle_free(interface->quarantine.bundle);
	free_page((unsigned long)interface->quarantine.address);
	interface->loaded = NULL;
	interface->limbo = NULL;
	interface->empty = NULL;
}

/**
 * exmap_stock_setup - give an interface its bundles
 * @interface: has none yet, and is not in use
 *
 * Return: 0 or -ENOMEM.
 */
int exmap_stock_setup(struct exmap_interface *interface)
{
	/* As many as EXMAP_STOCK_PAGES says, which the caller charges. */
	struct exmap_bundle *loaded = exmap_bundle_alloc();
	struct exmap_bundle *limbo = exmap_bundle_alloc();
	struct exmap_bundle *empty = exmap_bundle_alloc();

	interface->loaded = loaded;
	interface->limbo = limbo;
	interface->empty = empty;
	if (loaded && limbo && empty)
		return 0;
	exmap_stock_destroy(interface);
	return -ENOMEM;
}

/* The interface's spare bundle, or one of the depot's: see the top of pool.c. */
static struct exmap_bundle *exmap_stock_empty(struct exmap *exmap,
					      struct exmap_interface *interface)
{
	struct exmap_bundle *bundle = interface->empty;

	interface->empty = NULL;
	if (!bundle) {
		spin_lock(&exmap->pool.lock);
		bundle = exmap_bundle_pop(&exmap->pool.empty);
		spin_unlock(&exmap->pool.lock);
	}
	return bundle;
}

/**
 * exmap_stock_push_full - add a full bundle to the stock
 * @interface: its lock is held
 * @bundle: a full bundle
 *
 * The caller also calls exmap_stock_pushed() if the pages come from elsewhere.
 */
void exmap_stock_push_full(struct exmap_interface *interface, struct exmap_bundle *bundle)
{
	exmap_bundle_push(&interface->full, bundle);
	WRITE_ONCE(interface->nr_full, interface->nr_full + 1);
}

/**
 * exmap_stock_pop_full - take a full bundle out of the stock
 * @interface: its lock is held; its @nr_full is not 0
 *
 * Return: the bundle.
 */
struct exmap_bundle *exmap_stock_pop_full(struct exmap_interface *interface)
{
	WRITE_ONCE(interface->nr_full, interface->nr_full - 1);
	return exmap_bundle_pop(&interface->full);
}

/**
 * exmap_stock_pushed - pages came in: whoever is looking for the last free page must look again
 * @interface: its lock is held; they are in its stock or its quarantine
 */
void exmap_stock_pushed(struct exmap_interface *interface)
{
	WRITE_ONCE(interface->pushes, interface->pushes + 1);
}

/**
 * exmap_stock_add - put pages on top of the stock
 * @exmap: the exmap
 * @interface: its lock is held
 * @page: the pages; only we hold a reference to them
 * @nr: how many pages, at most EXMAP_BUNDLE_PAGES
 */
void exmap_stock_add(struct exmap *exmap, struct exmap_interface *interface,
		     struct page **page, unsigned int nr)
{
	unsigned int room = EXMAP_BUNDLE_PAGES - interface->count;
	unsigned int here = min(nr, room);

	memcpy(&interface->loaded->page[interface->count], page, here * sizeof(*page));
	WRITE_ONCE(interface->count, interface->count + here);
	if (nr > here) {
		exmap_stock_push_full(interface, interface->loaded);
		interface->loaded = exmap_stock_empty(exmap, interface);
		memcpy(interface->loaded->page, page + here, (nr - here) * sizeof(*page));
		WRITE_ONCE(interface->count, nr - here);
	}
	exmap_stock_pushed(interface);
}

/**
 * exmap_stock_next - load the next full bundle
 * @exmap: the exmap
 * @interface: its lock is held, its loaded bundle empty, another one full
 */
void exmap_stock_next(struct exmap *exmap, struct exmap_interface *interface)
{
	struct exmap_bundle *empty = interface->loaded;

	lockdep_assert_held(&interface->lock);
	interface->loaded = exmap_stock_pop_full(interface);
	WRITE_ONCE(interface->count, EXMAP_BUNDLE_PAGES);
	if (!interface->empty) {
		interface->empty = empty;
		return;
	}
	spin_lock(&exmap->pool.lock);
	exmap_bundle_push(&exmap->pool.empty, empty);
	spin_unlock(&exmap->pool.lock);
}

/*
 * Copy pages that no PTE and no TLB holds. True if all of them can be used again, as
 * exmap_page_is_good() says of one: nobody else holds any, so all counts together are 1.
 */
static __always_inline bool exmap_stock_copy(struct page **to, struct page **from, unsigned int nr)
{
	unsigned long flags = 0;
	unsigned int i;
	int counts = 1;

	for (i = 0; i < nr; i++) {
		struct page *page = from[i];

		counts |= page_ref_count(page);
		flags |= exmap_page_flags(page);
		to[i] = page;
	}
	return counts == 1 && !(flags & __PG_HWPOISON);
}

/**
 * exmap_stock_settle - make pages in limbo free pages
 * @exmap: the exmap
 * @interface: where they go; its lock is held
 * @limbo: the pages; every TLB has been flushed since the last of them was unmapped. May
 *	be exchanged for another bundle
 * @nr: how many; not 0
 *
 * A page that someone still has pinned is not ours to hand out again: it is kept aside. A
 * faulty page goes back to the system. No new reference can turn up after the flush, since
 * it takes a PTE to get one.
 */
void exmap_stock_settle(struct exmap *exmap, struct exmap_interface *interface,
			struct exmap_bundle **limbo, unsigned int nr)
{
	struct exmap_bundle *bundle = *limbo;
	struct page **from = bundle->page;
	unsigned int count = interface->count;

	lockdep_assert_held(&interface->lock);
	/* Where the loaded bundle is empty this one takes its place, and they stay in it. */
	if (!count) {
		*limbo = interface->loaded;
		interface->loaded = bundle;
	}
	for (;;) {
		struct page **to = &interface->loaded->page[count];
		unsigned int here = min_t(unsigned int, nr, EXMAP_BUNDLE_PAGES - count);

		if (likely(exmap_stock_copy(to, from, here)))
			count += here;
		else
			count += exmap_pinned_sort(exmap, to, here);
		nr -= here;
		if (likely(!nr))
			break;
		from += here;
		if (count < EXMAP_BUNDLE_PAGES)
			continue;
		exmap_stock_push_full(interface, interface->loaded);
		interface->loaded = exmap_stock_empty(exmap, interface);
		count = 0;
	}
	WRITE_ONCE(interface->count, count);
	exmap_stock_pushed(interface);
}

/**
 * exmap_stock_put - take back a page that was taken from the stock
 * @exmap: the exmap
 * @interface: its lock is held
 * @page: has not been mapped
 */
void exmap_stock_put(struct exmap *exmap, struct exmap_interface *interface, struct page *page)
{
	lockdep_assert_held(&interface->lock);
	/* A device, or whoever filled it for the file, may not have let go yet. */
	if (likely(exmap_page_is_good(page)) || exmap_pinned_sort(exmap, &page, 1))
		exmap_stock_add(exmap, interface, &page, 1);
}

/**
 * __exmap_stock_trim - bring what an interface has too much to the depot
 * @exmap: the exmap
 * @interface: its lock is held
 */
void __exmap_stock_trim(struct exmap *exmap, struct exmap_interface *interface)
{
	struct exmap_pool *pool = &exmap->pool;
	struct exmap_bundle *bundle;

	lockdep_assert_held(&interface->lock);
	while (interface->nr_full > EXMAP_STOCK_FULL) {
		bundle = exmap_stock_pop_full(interface);
		spin_lock(&pool->lock);
		exmap_bundle_push(&pool->full, bundle);
		WRITE_ONCE(pool->nr_full, pool->nr_full + 1);
		/* After the bundle: see exmap_pool_pushes(). */
		smp_store_release(&pool->pushes, pool->pushes + 1);
		spin_unlock(&pool->lock);
	}
}

/**
 * exmap_pool_free_pages - how many free pages there are
 * @exmap: has been set up
 *
 * Return: pages; exact where no call is at work.
 */
unsigned long exmap_pool_free_pages(struct exmap *exmap)
{
	unsigned long pages = READ_ONCE(exmap->pool.nr_full) * EXMAP_BUNDLE_PAGES;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		pages += exmap_stock(&exmap->interfaces[i]);
	return pages;
}
