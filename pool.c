// SPDX-License-Identifier: GPL-2.0
/*
 * The physical pages of an exmap: taken from the system when first needed, kept
 * in bundles of 512, handed to and fro between interfaces through a depot.
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

#include "compat.h"
#include "exmap.h"
#include "trace.h"

/*
 * Charged to the memcg of the caller, or, where it is a touch, of the process. A page that
 * cannot be had is the caller's problem (ENOMEM), not a reason to kill somebody.
 */
#define POOL_GFP (GFP_USER | __GFP_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

/* Take this many pages from the system at once, where more than none are wanted. */
#define POOL_GROW_PAGES 64

/* What exmap_quarantine_setup() takes. */
#define EXMAP_QUARANTINE_PAGES 2

/* Every pool that may have pages; the one to be looked at next comes first. */
static LIST_HEAD(exmap_pools);
static unsigned int exmap_nr_pools;
/* The sum of pool->spare. */
static unsigned long exmap_spare;
/* Guards the three, and pool->spare. Held for a few instructions only. */
static DEFINE_SPINLOCK(exmap_pools_lock);
/* Read-held by whoever looks at a pool that he has from the list. */
DEFINE_STATIC_SRCU(exmap_pools_srcu);
static struct shrinker *exmap_shrinker;

static struct exmap_bundle *exmap_bundle_alloc(void)
{
	return (struct exmap_bundle *)__get_free_page(POOL_GFP);
}

static void exmap_bundle_free(struct exmap_bundle *bundle)
{
	free_page((unsigned long)bundle);
}

/* Bundles are stacked through their struct page: all of their own is in use. */
static void exmap_bundle_push(struct exmap_bundle **stack, struct exmap_bundle *bundle)
{
	set_page_private(virt_to_page(bundle), (unsigned long)*stack);
	*stack = bundle;
}

static struct exmap_bundle *exmap_bundle_pop(struct exmap_bundle **stack)
{
	struct exmap_bundle *bundle = *stack;

	if (bundle) {
		*stack = (struct exmap_bundle *)page_private(virt_to_page(bundle));
		set_page_private(virt_to_page(bundle), 0);
	}
	return bundle;
}

static void exmap_bundle_free_all(struct exmap_bundle **stack)
{
	struct exmap_bundle *bundle;

	while ((bundle = exmap_bundle_pop(stack)))
		exmap_bundle_free(bundle);
}

/* A full bundle from the depot, or NULL. */
static struct exmap_bundle *exmap_depot_pop(struct exmap_pool *pool)
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
	INIT_LIST_HEAD(&pool->pinned);
	INIT_LIST_HEAD(&pool->sibling);
	return exmap_charge(exmap->mm, pages, &pool->charge);
}

/**
 * exmap_pool_expose - let the kernel take back free pages when it is short of memory
 * @exmap: has just been set up
 */
void exmap_pool_expose(struct exmap *exmap)
{
	spin_lock(&exmap_pools_lock);
	list_add_tail(&exmap->pool.sibling, &exmap_pools);
	exmap_nr_pools++;
	spin_unlock(&exmap_pools_lock);
}

/* The shrinker does not find the pool any more, but may still be at it. */
static void exmap_pool_hide(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;

	spin_lock(&exmap_pools_lock);
	if (!list_empty(&pool->sibling)) {
		list_del_init(&pool->sibling);
		exmap_nr_pools--;
		exmap_spare -= pool->spare;
	}
	spin_unlock(&exmap_pools_lock);
}

/**
 * exmap_pool_synchronize - wait until the shrinker looks at no pool that has been destroyed
 */
void exmap_pool_synchronize(void)
{
	synchronize_srcu(&exmap_pools_srcu);
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

/* Give all free pages of an interface back to the system. Returns how many. */
static unsigned long exmap_stock_drain(struct exmap *exmap, struct exmap_interface *interface)
{
	unsigned long drained = 0;

	lockdep_assert_held(&interface->lock);
	while (exmap_stock(interface)) {
		if (!interface->count)
			exmap_stock_next(exmap, interface);
		drained += interface->count;
		exmap_pool_release(exmap, interface->loaded->page, interface->count);
		WRITE_ONCE(interface->count, 0);
	}
	return drained;
}

/*
 * Give a full bundle of the depot back to the system. The books are right before
 * @pool->lock is let go: who finds the depot empty may be about to check the mm's, or to
 * say that there is no page left.
 */
static bool exmap_depot_drain_one(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;
	struct exmap_bundle *bundle;
	unsigned int i;

	spin_lock(&pool->lock);
	bundle = exmap_depot_pop(pool);
	if (bundle) {
		WRITE_ONCE(pool->taken, pool->taken - EXMAP_BUNDLE_PAGES);
		pool->bundles--;
		exmap_rss_add(exmap->mm, -(long)EXMAP_BUNDLE_PAGES - 1);
	}
	spin_unlock(&pool->lock);
	if (!bundle)
		return false;
	for (i = 0; i < EXMAP_BUNDLE_PAGES; i++)
		put_page(bundle->page[i]);
	exmap_bundle_free(bundle);
	return true;
}

/**
 * exmap_pool_drain - give all free pages back to the system
 * @exmap: has been set up; its surface is dead or has never been
 *
 * A call that is about to find the surface dead may still bring in pages; those
 * stay until exmap_pool_destroy().
 */
void exmap_pool_drain(struct exmap *exmap)
{
	struct exmap_interface *interface;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++) {
		interface = &exmap->interfaces[i];
		mutex_lock(&interface->lock);
		exmap_stock_drain(exmap, interface);
		mutex_unlock(&interface->lock);
	}
	while (exmap_depot_drain_one(exmap))
		cond_resched();
	exmap_pinned_drain(exmap);
}

/**
 * exmap_pool_destroy - undo exmap_pool_setup()
 * @exmap: nobody else has it, and no page is on its surface
 *
 * The shrinker may still look for pages in it, and at its mm, until
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

/* The rest of exmap_quarantine_setup(): by itself, since most calls find it done. */
static noinline int exmap_quarantine_make(struct exmap *exmap,
					 struct exmap_interface *interface)
{
	struct exmap_quarantine *quarantine = &interface->quarantine;
	struct exmap_charge charge = { };
	struct exmap_bundle *bundle;
	unsigned long *address;

	BUILD_BUG_ON(EXMAP_BUNDLE_PAGES * sizeof(*address) > PAGE_SIZE);
	/* First: a user who is at his limit may come here with each FREE. */
	if (exmap_charge_resident(exmap->mm, EXMAP_QUARANTINE_PAGES, &charge))
		return -ENOMEM;
	bundle = exmap_bundle_alloc();
	address = (unsigned long *)__get_free_page(POOL_GFP);
	if (!bundle || !address) {
		exmap_bundle_free(bundle);
		free_page((unsigned long)address);
		exmap_uncharge_resident(exmap->mm, &charge);
		return -ENOMEM;
	}
	mutex_lock(&quarantine->lock);
	if (!quarantine->address) {
		quarantine->charge = charge;
		quarantine->bundle = bundle;
		/* Last: who sees it goes by the bundle. */
		smp_store_release(&quarantine->address, address);
		bundle = NULL;
		address = NULL;
		charge = (struct exmap_charge){ };
	}
	mutex_unlock(&quarantine->lock);
	exmap_uncharge_resident(exmap->mm, &charge);
	exmap_bundle_free(bundle);
	free_page((unsigned long)address);
	return 0;
}

/**
 * exmap_quarantine_setup - have room for pages whose flush is put off
 * @exmap: belongs to current->mm
 * @interface: its lock is not held
 *
 * Return: 0; or -ENOMEM, also if that would be above RLIMIT_MEMLOCK.
 */
int exmap_quarantine_setup(struct exmap *exmap, struct exmap_interface *interface)
{
	/* Before the bundle. */
	if (likely(smp_load_acquire(&interface->quarantine.address)))
		return 0;
	return exmap_quarantine_make(exmap, interface);
}

/* The interface's spare bundle, or one of the depot's: see the top. */
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

static void exmap_stock_push_full(struct exmap_interface *interface, struct exmap_bundle *bundle)
{
	exmap_bundle_push(&interface->full, bundle);
	WRITE_ONCE(interface->nr_full, interface->nr_full + 1);
}

static struct exmap_bundle *exmap_stock_pop_full(struct exmap_interface *interface)
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

/* Put pages on top of the stock. */
static void exmap_stock_add(struct exmap *exmap, struct exmap_interface *interface,
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
		nr = min(nr, pool->ceiling - pool->taken);
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

	if (READ_ONCE(pool->taken) >= pool->ceiling)
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
		if (READ_ONCE(pool->taken) < limit)
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
	return exmap_stock_hunt(exmap, interface, want, *limit);

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
	unsigned long limit = exmap->pool.ceiling;
	int err = want > limit ? -ENOMEM : 0;

	lockdep_assert_held(&interface->lock);
	atomic_inc(&interface->fillers);
	while (!err && exmap_stock(interface) < want)
		if (!exmap_stock_fetch(exmap, interface) && !exmap_stock_unpin(exmap, interface))
			err = exmap_stock_more(exmap, interface, want, &limit);
	atomic_dec(&interface->fillers);
	if (err == -ENOMEM)
		mutex_unlock(&interface->lock);
	return err;
}

/* When the system is short of memory */

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

/*
 * The shrinker runs on behalf of whoever needs memory, and he may hold any lock and be of the
 * lowest priority. So it waits for no lock that a user can hold: it tries. And while it holds
 * one that a user may wait for, an interface's and what is inside it, it cannot be preempted.
 * (PREEMPT_RT lends the holder of a mutex the priority of whoever waits, and does not free
 * pages with preemption off.)
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

/* Look at so many interfaces in one call of the shrinker, and go on with the others next time. */
#define SHRINKER_INTERFACES 1024

/* What one has been looked at for. */
static unsigned int exmap_shrinker_cost(struct exmap *exmap)
{
	return READ_ONCE(exmap->pool.taken) ? exmap_nr_interfaces(exmap) : 1;
}

/* The pool that has not been looked at for the longest time. Under exmap_pools_srcu. */
static struct exmap *exmap_pools_next(void)
{
	struct exmap *exmap;

	spin_lock(&exmap_pools_lock);
	exmap = list_first_entry_or_null(&exmap_pools, struct exmap, pool.sibling);
	if (exmap)
		list_move_tail(&exmap->pool.sibling, &exmap_pools);
	spin_unlock(&exmap_pools_lock);
	return exmap;
}

/* Note what the shrinker could have of a pool. */
static void exmap_pool_count(struct exmap *exmap)
{
	struct exmap_pool *pool = &exmap->pool;
	unsigned long spare = 0;

	if (READ_ONCE(pool->taken))
		spare = exmap_pool_free_pages(exmap) + exmap_quarantined(exmap) +
			READ_ONCE(pool->nr_pinned);
	spin_lock(&exmap_pools_lock);
	if (!list_empty(&pool->sibling)) {
		exmap_spare += spare - pool->spare;
		WRITE_ONCE(pool->spare, spare);
	}
	spin_unlock(&exmap_pools_lock);
}

/* Exact where there are few interfaces. Of many pools it knows what it last saw in each. */
static unsigned long exmap_shrinker_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	unsigned int pools = READ_ONCE(exmap_nr_pools), cost = 0;
	struct exmap *exmap;
	int srcu;

	srcu = srcu_read_lock(&exmap_pools_srcu);
	for (; pools && cost < SHRINKER_INTERFACES; pools--) {
		exmap = exmap_pools_next();
		if (!exmap)
			break;
		cost += exmap_shrinker_cost(exmap);
		exmap_pool_count(exmap);
		cond_resched();
	}
	srcu_read_unlock(&exmap_pools_srcu, srcu);
	return READ_ONCE(exmap_spare);
}

/* Give back so many pages of a pool, if there are, or some more. Returns how many. */
static unsigned long exmap_pool_shrink(struct exmap *exmap, unsigned long want)
{
	struct exmap_interface *interface;
	unsigned long pages = 0;
	unsigned int i;

	while (pages < want && exmap_depot_drain_one(exmap))
		pages += EXMAP_BUNDLE_PAGES;
	for (i = DIV_ROUND_UP(READ_ONCE(exmap->pool.nr_pinned), EXMAP_PINNED_LOOK);
	     pages < want && i; i--)
		pages += exmap_pinned_shrink(exmap);
	for (i = 0; pages < want && i < exmap_nr_interfaces(exmap); i++) {
		interface = &exmap->interfaces[i];
		/* One that is at work needs its pages in a moment. */
		if (!(exmap_stock(interface) || READ_ONCE(interface->quarantine.nr)) ||
		    !exmap_shrinker_trylock(interface))
			continue;
		if (!atomic_read(&interface->fillers)) {
			exmap_quarantine_try_flush(exmap, &interface->quarantine, interface);
			pages += exmap_stock_drain(exmap, interface);
		}
		exmap_shrinker_unlock(interface);
	}
	return pages;
}

static unsigned long exmap_shrinker_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	unsigned int pools = READ_ONCE(exmap_nr_pools), cost = 0;
	unsigned long pages = 0;
	struct exmap *exmap;
	int srcu;

	srcu = srcu_read_lock(&exmap_pools_srcu);
	for (; pools && pages < sc->nr_to_scan && cost < SHRINKER_INTERFACES; pools--) {
		exmap = exmap_pools_next();
		if (!exmap)
			break;
		if (READ_ONCE(exmap->pool.spare)) {
			cost += exmap_shrinker_cost(exmap);
			pages += exmap_pool_shrink(exmap, sc->nr_to_scan - pages);
			exmap_pool_count(exmap);
		}
		cond_resched();
	}
	srcu_read_unlock(&exmap_pools_srcu, srcu);
	return pages ?: SHRINK_STOP;
}

/**
 * exmap_pool_init - have the kernel ask for free pages when it is short of memory
 *
 * It asks when the system is short, not when a memory cgroup is: of modules it
 * asks only those then whose objects are in a list_lru.
 *
 * Return: 0 or -ENOMEM.
 */
int __init exmap_pool_init(void)
{
	exmap_shrinker = exmap_shrinker_register("exmap", exmap_shrinker_count,
						 exmap_shrinker_scan, EXMAP_BUNDLE_PAGES);
	return exmap_shrinker ? 0 : -ENOMEM;
}

/**
 * exmap_pool_exit - undo exmap_pool_init(); no exmap is left
 */
void exmap_pool_exit(void)
{
	exmap_shrinker_free(exmap_shrinker);
}
