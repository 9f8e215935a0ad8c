// SPDX-License-Identifier: GPL-2.0
/*
 * The stock: the free pages that an interface has at hand, in bundles of its own. The top of pool.c
 * explains why a bundle with room for a returning page can always be found.
 */
#include <linux/mm.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"

/**
 * exmap_stock_destroy - free an interface's bundles
 * @interface: not in use, and without free pages
 */
void exmap_stock_destroy(struct exmap_interface *interface)
{
	exmap_bundle_free(interface->loaded);
	exmap_bundle_free(interface->limbo);
	exmap_bundle_free(interface->empty);
	interface->loaded = NULL;
	interface->limbo = NULL;
	interface->empty = NULL;
}

/**
 * exmap_stock_setup - give an interface its bundles
 * @interface: has no bundles yet, and is not in use
 *
 * May sleep for memory.
 *
 * Return: 0 or -ENOMEM.
 */
int exmap_stock_setup(struct exmap_interface *interface)
{
	/* EXMAP_STOCK_PAGES pages, which the caller charges. */
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

/*
 * Returns the interface's spare bundle, or an empty one of the depot. The top of pool.c explains
 * why there is one. The interface's lock is held.
 */
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
 * The caller also calls exmap_stock_pushed() if the pages come from outside the stock.
 */
void exmap_stock_push_full(struct exmap_interface *interface, struct exmap_bundle *bundle)
{
	exmap_bundle_push(&interface->full, bundle);
	/* Pairs with exmap_stock(). */
	WRITE_ONCE(interface->nr_full, interface->nr_full + 1);
}

/**
 * exmap_stock_pop_full - take a full bundle out of the stock
 * @interface: its lock is held, and @nr_full is not 0
 *
 * Return: the bundle.
 */
struct exmap_bundle *exmap_stock_pop_full(struct exmap_interface *interface)
{
	/* Pairs with exmap_stock(). */
	WRITE_ONCE(interface->nr_full, interface->nr_full - 1);
	return exmap_bundle_pop(&interface->full);
}

/**
 * exmap_stock_pushed - count an arrival of pages, so that a hunt looks again
 * @interface: its lock is held; the pages are in its stock or its quarantine
 */
void exmap_stock_pushed(struct exmap_interface *interface)
{
	/* After the quarantine's @nr. Pairs with the acquire in exmap_pool_pushes(). */
	smp_store_release(&interface->pushes, interface->pushes + 1);
}

/**
 * exmap_stock_add - put pages on top of the stock
 * @exmap: the exmap
 * @interface: its lock is held
 * @page: the pages; each has one reference, which is ours
 * @nr: number of pages, at most EXMAP_BUNDLE_PAGES
 *
 * Takes pool->lock if the loaded bundle fills up. Does not sleep.
 */
void exmap_stock_add(struct exmap *exmap, struct exmap_interface *interface,
		     struct page **page, unsigned int nr)
{
	unsigned int room = EXMAP_BUNDLE_PAGES - interface->count;
	unsigned int here = min(nr, room);

	memcpy(&interface->loaded->page[interface->count], page, here * sizeof(*page));
	/* Both writes pair with exmap_stock(). */
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
 * @interface: its lock is held. Its loaded bundle is empty, and @nr_full is not 0
 */
void exmap_stock_next(struct exmap *exmap, struct exmap_interface *interface)
{
	struct exmap_bundle *empty = interface->loaded;

	lockdep_assert_held(&interface->lock);
	interface->loaded = exmap_stock_pop_full(interface);
	/* Pairs with exmap_stock(). */
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
 * Copy the last @nr page pointers before @end, in reverse order. No PTE and no TLB refers to the
 * pages. Returns true if all of them can be used again, in the sense of exmap_page_is_good(). Each
 * reference count is then 1, so OR-ing them together gives 1. The reads of the counts pair with
 * fast GUP; see exmap_stock_settle().
 */
static __always_inline bool exmap_stock_copy(struct page **to, struct page **end, unsigned int nr)
{
	struct page **const last = to + nr;
	unsigned long flags = 0;
	int counts = 1;

	/* Half of the loop would be counting. */
#pragma GCC unroll 4
	while (to < last) {
		struct page *page = *--end;

		counts |= page_ref_count(page);
		flags |= exmap_page_flags(page);
		*to++ = page;
	}
	return counts == 1 && !(flags & __PG_HWPOISON);
}

/*
 * Move the free pages that are of another NUMA node than the stock to the depot. Interfaces that
 * are used on that node find them there. Returns the number of pages that are left in @page, in the
 * same order. Pages that others hold stay there, too. The interface's lock is held.
 *
 * A surplus stays in the stock, where exmap_stock_trim() finds it.
 */
static noinline unsigned int exmap_stock_sort(struct exmap *exmap,
					      struct exmap_interface *interface,
					      struct page **page, unsigned int nr)
{
	/* At an interface that only frees, the pages of the thread's own node stay. */
	int home = interface->node == NUMA_NO_NODE ? exmap_home_node() : interface->node;
	unsigned int i, kept, moved;
	LIST_HEAD(foreign);
	int node;

	lockdep_assert_held(&interface->lock);
	/* Pairs with exmap_pool_resize(). exmap_resize() looks at the depot last. */
	if (home == NUMA_NO_NODE || READ_ONCE(exmap->surplus))
		return nr;
	/* One node at a time. */
	do {
		node = NUMA_NO_NODE;
		kept = 0;
		for (i = 0; i < nr; i++) {
			int own = page_to_nid(page[i]);

			if (own == home || (node != NUMA_NO_NODE && own != node) ||
			    !exmap_page_is_good(page[i])) {
				page[kept++] = page[i];
			} else {
				node = own;
				list_add_tail(&page[i]->lru, &foreign);
			}
		}
		moved = nr - kept;
		nr = kept;
		if (moved)
			exmap_depot_add(&exmap->pool, node, &foreign, moved);
	} while (moved);
	return nr;
}

/**
 * exmap_stock_settle - make unmapped pages free pages
 * @exmap: the exmap
 * @interface: its stock gets the pages; its lock is held
 * @page: the pages, in the order in which they were unmapped. All TLBs have been flushed since
 * @nr: number of pages; not 0
 *
 * The stock is a stack, so the pages go there from the last to the first. They are then handed out
 * in the order in which they were unmapped, and pages that were adjacent on the surface come
 * adjacent again.
 *
 * If the system has several NUMA nodes, pages of another node than the interface's go to the depot
 * instead, and @page is changed.
 *
 * A page that others still hold is kept aside and not handed out again. A faulty page goes back to
 * the system. No lasting reference can be taken after the flush, because that takes a PTE.
 *
 * Fast GUP may take one for a moment, also after the flush: not every processor's flush waits for
 * CPUs with interrupts off. The flush is a full barrier between the clearing of the PTE and the
 * read of the reference count. It pairs with the atomic increment in try_get_folio(), after which
 * fast GUP reads the PTE again. So either this sees the reference, or fast GUP sees that the PTE
 * has changed, and drops it. A page that such a reference keeps aside comes back from there.
 */
void exmap_stock_settle(struct exmap *exmap, struct exmap_interface *interface,
			struct page **page, unsigned int nr)
{
	unsigned int count = interface->count;

	lockdep_assert_held(&interface->lock);
	if (unlikely(nr_online_nodes > 1))
		nr = exmap_stock_sort(exmap, interface, page, nr);
	for (;;) {
		struct page **to = &interface->loaded->page[count];
		unsigned int here = min_t(unsigned int, nr, EXMAP_BUNDLE_PAGES - count);

		if (likely(exmap_stock_copy(to, page + nr, here)))
			count += here;
		else
			count += exmap_pinned_sort(exmap, to, here);
		nr -= here;
		if (likely(!nr))
			break;
		if (count < EXMAP_BUNDLE_PAGES)
			continue;
		exmap_stock_push_full(interface, interface->loaded);
		interface->loaded = exmap_stock_empty(exmap, interface);
		count = 0;
	}
	/* Pairs with exmap_stock(). */
	WRITE_ONCE(interface->count, count);
	exmap_stock_pushed(interface);
}

/*
 * exmap_stock_put(), if the page is not good, or the loaded bundle is full, or the system has
 * several NUMA nodes.
 */
static noinline void exmap_stock_put_slow(struct exmap *exmap, struct exmap_interface *interface,
					  struct page *page)
{
	if (!exmap_page_is_good(page) && !exmap_pinned_sort(exmap, &page, 1))
		return;
	if (nr_online_nodes == 1 || exmap_stock_sort(exmap, interface, &page, 1))
		exmap_stock_add(exmap, interface, &page, 1);
}

/**
 * exmap_stock_put - put one page on top of the stock
 * @exmap: the exmap
 * @interface: its lock is held
 * @page: a page of this exmap that has no PTE and is in no TLB
 *
 * A page that somebody still holds is kept aside, as exmap_stock_settle() does: a device, or the
 * task that filled it for the file, may not have let go of it yet.
 */
void exmap_stock_put(struct exmap *exmap, struct exmap_interface *interface, struct page *page)
{
	lockdep_assert_held(&interface->lock);
	if (unlikely(!exmap_page_is_good(page) || interface->count == EXMAP_BUNDLE_PAGES ||
		     nr_online_nodes > 1)) {
		exmap_stock_put_slow(exmap, interface, page);
		return;
	}
	interface->loaded->page[interface->count] = page;
	/* Pairs with exmap_stock(). */
	WRITE_ONCE(interface->count, interface->count + 1);
	exmap_stock_pushed(interface);
}

/**
 * exmap_stock_drain - give free pages of an interface back to the system
 * @exmap: the exmap
 * @interface: its lock is held
 * @want: the most pages to give
 *
 * Return: the number of pages.
 */
unsigned long exmap_stock_drain(struct exmap *exmap, struct exmap_interface *interface,
				unsigned long want)
{
	unsigned long drained = 0;
	unsigned int nr;

	lockdep_assert_held(&interface->lock);
	while (drained < want && exmap_stock(interface)) {
		if (!interface->count)
			exmap_stock_next(exmap, interface);
		nr = min_t(unsigned long, interface->count, want - drained);
		/* Pairs with exmap_stock(). */
		WRITE_ONCE(interface->count, interface->count - nr);
		exmap_pool_release(exmap, &interface->loaded->page[interface->count], nr);
		drained += nr;
	}
	return drained;
}

/**
 * __exmap_stock_trim - give a surplus back, and move extra full bundles to the depot
 * @exmap: the exmap
 * @interface: its lock is held
 *
 * The slow part of exmap_stock_trim().
 */
void __exmap_stock_trim(struct exmap *exmap, struct exmap_interface *interface)
{
	struct exmap_pool *pool = &exmap->pool;
	struct exmap_bundle *bundle;

	lockdep_assert_held(&interface->lock);
	/* Pairs with exmap_pool_leave(). Two interfaces may both give what one should. */
	exmap_stock_drain(exmap, interface, READ_ONCE(exmap->surplus));
	while (interface->nr_full > EXMAP_STOCK_FULL) {
		bundle = exmap_stock_pop_full(interface);
		spin_lock(&pool->lock);
		exmap_depot_push(pool, bundle);
		spin_unlock(&pool->lock);
	}
}

/**
 * exmap_pool_free_pages - count the free pages of an exmap
 * @exmap: has been set up
 *
 * Takes no lock. Pages in quarantine are not included; see exmap_quarantined().
 *
 * Return: pages; exact if no call is at work.
 */
unsigned long exmap_pool_free_pages(struct exmap *exmap)
{
	/* Pairs with exmap_depot_count(). */
	unsigned long pages = READ_ONCE(exmap->pool.nr_free);
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		pages += exmap_stock(&exmap->interfaces[i]);
	return pages;
}
