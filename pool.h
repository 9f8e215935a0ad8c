/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free pages: the functions that find them, keep them and charge them. The files are in the order
 * of the list in exmap.h.
 */
#ifndef EXMAP_POOL_H
#define EXMAP_POOL_H

#include <linux/gfp.h>
#include <linux/list_lru.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/page_ref.h>
#include <linux/spinlock.h>
#include <linux/srcu.h>

#include "exmap.h"

/* refill.c */
bool exmap_stock_fetch(struct exmap *exmap, struct exmap_interface *interface, int node);
bool __exmap_stock_draw(struct exmap *exmap, struct exmap_interface *interface, unsigned int want);
int exmap_stock_fill(struct exmap *exmap, struct exmap_interface *interface, unsigned int want);

/* reclaim.c. Its locks are here for locks.c only. */
extern spinlock_t exmap_pools_lock;
extern struct srcu_struct exmap_pools_srcu;
int exmap_pool_init(void);
void exmap_pool_exit(void);
void exmap_pool_expose(struct exmap *exmap);
void exmap_pool_synchronize(void);
void exmap_free_interfaces(struct exmap *exmap, struct exmap_interface *interfaces,
			   unsigned int nr);
void exmap_pool_put_interfaces(struct exmap *exmap);
void exmap_pool_drain(struct exmap *exmap);
unsigned long exmap_depot_drain(struct exmap *exmap, unsigned long want, unsigned long most);
void exmap_pool_destroy(struct exmap *exmap);

/* stock.c */

/* Pages of kernel memory that exmap_stock_setup() takes. */
#define EXMAP_STOCK_PAGES 3

int exmap_stock_setup(struct exmap_interface *interface);
void exmap_stock_destroy(struct exmap_interface *interface);
void exmap_stock_push_full(struct exmap_interface *interface, struct exmap_bundle *bundle);
struct exmap_bundle *exmap_stock_pop_full(struct exmap_interface *interface);
void exmap_stock_pushed(struct exmap_interface *interface);
void exmap_stock_add(struct exmap *exmap, struct exmap_interface *interface, struct page **page,
		     unsigned int nr);
void exmap_stock_next(struct exmap *exmap, struct exmap_interface *interface);
void exmap_stock_settle(struct exmap *exmap, struct exmap_interface *interface,
			struct page **page, unsigned int nr);
void exmap_stock_put(struct exmap *exmap, struct exmap_interface *interface, struct page *page);
unsigned long exmap_stock_drain(struct exmap *exmap, struct exmap_interface *interface,
				unsigned long want);
void __exmap_stock_trim(struct exmap *exmap, struct exmap_interface *interface);
unsigned long exmap_pool_free_pages(struct exmap *exmap);

/**
 * exmap_stock - number of free pages that an interface has at hand
 * @interface: if its lock is not held, the result is only a hint
 *
 * Return: pages.
 */
static inline unsigned int exmap_stock(const struct exmap_interface *interface)
{
	/*
	 * Pairs with those who change the numbers with the lock held: stock.c, exmap_stock_pop(),
	 * exmap_stock_rob(), __exmap_alloc_singles() and exmap_alloc_page().
	 */
	return READ_ONCE(interface->count) + READ_ONCE(interface->nr_full) * EXMAP_BUNDLE_PAGES;
}

/**
 * exmap_stock_draw - bring enough free pages into the stock, if the depot has them
 * @exmap: the exmap
 * @interface: its lock is held
 * @want: number of pages
 *
 * Takes pool->lock. Does not sleep.
 *
 * Return: whether the stock has at least @want pages now.
 */
static inline bool exmap_stock_draw(struct exmap *exmap, struct exmap_interface *interface,
				    unsigned int want)
{
	if (likely(exmap_stock(interface) >= want))
		return true;
	/* A hint, as in exmap_stock_fetch(). Pairs with exmap_depot_count(). */
	return READ_ONCE(exmap->pool.nr_free) && __exmap_stock_draw(exmap, interface, want);
}

/**
 * exmap_stock_pop - take a free page from an interface's stock
 * @exmap: the exmap
 * @interface: its lock is held
 *
 * Return: the page, which the caller must map or put back; NULL if the stock is empty.
 */
static inline struct page *exmap_stock_pop(struct exmap *exmap, struct exmap_interface *interface)
{
	if (unlikely(!interface->count)) {
		if (!interface->nr_full)
			return NULL;
		exmap_stock_next(exmap, interface);
	}
	/* Pairs with exmap_stock(). */
	WRITE_ONCE(interface->count, interface->count - 1);
	return interface->loaded->page[interface->count];
}

/*
 * Full bundles that an interface keeps besides the loaded one, so that alternating ALLOC and FREE
 * stay local.
 */
#define EXMAP_STOCK_FULL 1

/**
 * exmap_stock_trim - move full bundles beyond EXMAP_STOCK_FULL to the depot
 * @exmap: the exmap
 * @interface: its lock is held
 *
 * If the pool has a surplus, pages of the stock go back to the system.
 */
static inline void exmap_stock_trim(struct exmap *exmap, struct exmap_interface *interface)
{
	/*
	 * A hint. Pairs with exmap_pool_resize(). exmap_resize() then looks at every interface.
	 */
	if (unlikely(interface->nr_full > EXMAP_STOCK_FULL || READ_ONCE(exmap->surplus)))
		__exmap_stock_trim(exmap, interface);
}

/* pinned.c. Its lock is here for locks.c only. */
extern spinlock_t exmap_orphans_lock;

/* The most pinned pages that are looked at with pool->lock held. */
#define EXMAP_PINNED_LOOK 64U

unsigned int exmap_pinned_sort(struct exmap *exmap, struct page **page, unsigned int nr);
unsigned int exmap_pinned_take(struct exmap *exmap, struct page *page[EXMAP_PINNED_LOOK],
			       bool leave);
unsigned int exmap_pinned_shrink(struct exmap *exmap);
bool exmap_pinned_replace(struct exmap *exmap, unsigned int want);
void exmap_pinned_drain(struct exmap *exmap);
void exmap_pinned_exit(void);

/**
 * exmap_page_is_good - whether a page can be reused
 * @page: no PTE of the surface has it. Before the flush, a fast GUP that has read the PTE earlier
 *	may still take a reference; it gives that back if the PTE has gone
 *
 * Return: true if nobody else holds a reference, and the hardware has reported no fault in it.
 */
static __always_inline bool exmap_page_is_good(struct page *page)
{
	/* Pairs with fast GUP; see exmap_stock_settle(). */
	return page_ref_count(page) == 1 && !PageHWPoison(page);
}

/**
 * exmap_bundle_node - the NUMA node that a bundle counts as
 * @bundle: a bundle
 * @nr: number of pages in it, not 0
 *
 * Return: the node of the page that would be handed out first.
 */
static inline int exmap_bundle_node(const struct exmap_bundle *bundle, unsigned int nr)
{
	return page_to_nid(bundle->page[nr - 1]);
}

/* pool.c */

/* The most loose pages that are taken at a time. Pointers to them are on the stack. */
#define EXMAP_LOOSE_TAKE 64U

/*
 * Charged to the memcg of the caller; after a touch, to that of the process. If there is no page,
 * the call fails with ENOMEM, and the OOM killer is not invoked.
 */
#define POOL_GFP (GFP_USER | __GFP_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

struct exmap_bundle *exmap_bundle_alloc(void);
void exmap_bundle_free(struct exmap_bundle *bundle);
void exmap_bundle_push(struct exmap_bundle **stack, struct exmap_bundle *bundle);
struct exmap_bundle *exmap_bundle_pop(struct exmap_bundle **stack);
int exmap_home_node(void);
void exmap_depot_push(struct exmap_pool *pool, struct exmap_bundle *bundle);
struct exmap_bundle *exmap_depot_pop(struct exmap_pool *pool, int node);
void exmap_depot_add(struct exmap_pool *pool, int node, struct list_head *pages, unsigned int nr);
unsigned int exmap_depot_take(struct exmap_pool *pool, int node, struct page **page,
			      unsigned int most);
int exmap_pool_setup(struct exmap *exmap, unsigned long pages);
int exmap_pool_resize(struct exmap *exmap, unsigned long pages);
void exmap_pool_trim_bundles(struct exmap *exmap);
void exmap_pool_leave(struct exmap *exmap, unsigned long nr);
void exmap_pool_release(struct exmap *exmap, struct page **page, unsigned int nr);

/* token.c. Its list is here for reclaim.c only. */
extern struct list_lru exmap_tokens;
int exmap_token_make(struct exmap *exmap);
void exmap_token_show(struct exmap *exmap);
void exmap_token_end(struct exmap *exmap);
void exmap_token_follow(struct exmap *exmap);
struct exmap *exmap_tokens_next(struct shrink_control *sc);
unsigned long exmap_tokens_nr(struct shrink_control *sc);
int exmap_tokens_init(void);
void exmap_tokens_exit(void);

/* charge.c */
int exmap_charge_pages(struct mm_struct *mm, unsigned long pages, struct exmap_charge *charge);
int exmap_charge_limit(unsigned long *limit);
int exmap_charge_raise(struct mm_struct *mm, unsigned long pages, unsigned long limit,
		       struct exmap_charge *charge);
void exmap_uncharge(struct mm_struct *mm, struct exmap_charge *charge);
int exmap_charge_more(struct mm_struct *mm, unsigned long pages, struct exmap_charge *charge);
void exmap_charge_less(struct mm_struct *mm, unsigned long pages, struct exmap_charge *charge);
void exmap_charge_leave(struct mm_struct *mm, struct exmap_charge *charge, unsigned long pages);
int exmap_charge_resident(struct mm_struct *mm, unsigned long pages, struct exmap_charge *charge);
void exmap_uncharge_resident(struct mm_struct *mm, struct exmap_charge *charge);

#endif /* EXMAP_POOL_H */
