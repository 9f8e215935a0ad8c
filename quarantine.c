// SPDX-License-Identifier: GPL-2.0
/*
 * Quarantines: pages that FREE has unmapped and whose flush is put off (EXMAP_FREE_DEFER). free.c
 * puts pages in; this file flushes them.
 */
#include <linux/gfp.h>
#include <linux/hash.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "arch.h"
#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"
#include "walk.h"

/* log2 of the number of hashes in a quarantine's index. */
static unsigned int exmap_quarantine_bits(const struct exmap_quarantine *quarantine)
{
	return max(order_base_2(quarantine->size), 1);
}

/* How many bundles a quarantine has. */
static unsigned int exmap_quarantine_bundles(const struct exmap_quarantine *quarantine)
{
	return DIV_ROUND_UP(quarantine->size, EXMAP_BUNDLE_PAGES);
}

/*
 * The index: for each hash, the number of a page plus 1; or 0. Behind that it has for each page the
 * next one with the same hash, in the same way.
 */
static u16 *exmap_quarantine_heads(const struct exmap_quarantine *quarantine)
{
	return (u16 *)(quarantine->address + quarantine->size);
}

/* In the index: what comes after page number @nr. */
static u16 *exmap_quarantine_after(const struct exmap_quarantine *quarantine, unsigned int nr)
{
	return exmap_quarantine_heads(quarantine) + (1UL << exmap_quarantine_bits(quarantine)) + nr;
}

/* Bytes of the memory at quarantine->bundle: pointers to bundles, addresses, index. */
static size_t exmap_quarantine_bytes(const struct exmap_quarantine *quarantine)
{
	return exmap_quarantine_bundles(quarantine) * sizeof(*quarantine->bundle) +
		quarantine->size * (sizeof(*quarantine->address) + sizeof(u16)) +
		(sizeof(u16) << exmap_quarantine_bits(quarantine));
}

/**
 * exmap_quarantine_destroy - free a quarantine's memory, if it has any
 * @quarantine: not in use, and without pages
 */
void exmap_quarantine_destroy(struct exmap_quarantine *quarantine)
{
	unsigned int i;

	for (i = 0; quarantine->bundle && i < exmap_quarantine_bundles(quarantine); i++)
		exmap_bundle_free(quarantine->bundle[i]);
	kvfree(quarantine->bundle);
}

/* Allocate the memory of a quarantine whose size is set. Returns 0 or -ENOMEM. */
static int exmap_quarantine_alloc(struct exmap_quarantine *quarantine)
{
	const unsigned int bundles = exmap_quarantine_bundles(quarantine);
	unsigned int i;

	quarantine->bundle = kvzalloc(exmap_quarantine_bytes(quarantine), POOL_GFP);
	if (!quarantine->bundle)
		return -ENOMEM;
	quarantine->address = (unsigned long *)(quarantine->bundle + bundles);
	for (i = 0; i < bundles; i++) {
		quarantine->bundle[i] = exmap_bundle_alloc();
		if (!quarantine->bundle[i])
			return -ENOMEM;
	}
	return 0;
}

/* Give a quarantine the memory of @new, unless it has some already. Returns whether it took it. */
static bool exmap_quarantine_give(struct exmap_quarantine *quarantine,
				  const struct exmap_quarantine *new)
{
	lockdep_assert_held(&quarantine->lock);
	if (quarantine->address)
		return false;
	quarantine->charge = new->charge;
	quarantine->size = new->size;
	quarantine->bundle = new->bundle;
	/*
	 * Publish @address last, because a reader that sees it relies on the other fields. Pairs
	 * with exmap_quarantine_setup() and exmap_quarantine_make().
	 */
	smp_store_release(&quarantine->address, new->address);
	return true;
}

/*
 * The slow part of exmap_quarantine_setup(). A separate function, because most calls find the
 * memory allocated.
 */
static noinline int exmap_quarantine_make(struct exmap *exmap,
					 struct exmap_interface *interface)
{
	struct exmap_quarantine *quarantine = &interface->quarantine;
	/* Pairs with exmap_call_quarantine(). */
	struct exmap_quarantine new = { .size = READ_ONCE(exmap->quarantine_size) };
	bool given = false;
	int err;

	BUILD_BUG_ON(EXMAP_MAX_QUARANTINE > U16_MAX);
	/* This FREE fails. EXMAP_IOCTL_QUARANTINE may still set another size. */
	if (!exmap_has_surface(exmap))
		return -EPROTO;
	/* Charge before allocating, because a user at the limit may come here with every FREE. */
	err = exmap_charge_resident(exmap->mm, exmap_quarantine_bundles(&new) +
				    DIV_ROUND_UP(exmap_quarantine_bytes(&new), PAGE_SIZE),
				    &new.charge);
	if (err)
		return -ENOMEM;
	err = exmap_quarantine_alloc(&new);
	/*
	 * If the caller is being killed, @address may stay NULL. The caller then takes it for
	 * -ENOMEM, and notices the signal later.
	 */
	if (!err && !mutex_lock_killable(&quarantine->lock)) {
		given = exmap_quarantine_give(quarantine, &new);
		mutex_unlock(&quarantine->lock);
	}
	if (!given) {
		exmap_quarantine_destroy(&new);
		exmap_uncharge_resident(exmap->mm, &new.charge);
	}
	/* Pairs with the release in exmap_quarantine_give(). */
	return smp_load_acquire(&quarantine->address) ? 0 : -ENOMEM;
}

/**
 * exmap_quarantine_setup - allocate the memory of a quarantine, if it has none yet
 * @exmap: has been set up, and belongs to current->mm
 * @interface: the interface with the quarantine; its lock is not held
 *
 * May sleep for memory.
 *
 * Return: 0; -ENOMEM if no memory is available, the charge would exceed RLIMIT_MEMLOCK, or the
 * caller is being killed; -EPROTO if there is no surface yet. On each error, the caller flushes at
 * once.
 */
int exmap_quarantine_setup(struct exmap *exmap, struct exmap_interface *interface)
{
	/* Pairs with the release in exmap_quarantine_give(): the other fields are set. */
	if (likely(smp_load_acquire(&interface->quarantine.address)))
		return 0;
	return exmap_quarantine_make(exmap, interface);
}

/* exmap_walk_lock() without its cond_resched(). */
static bool exmap_walk_lock_atomic(struct exmap_walk *walk, unsigned long address)
{
	if (walk->region == address >> PMD_SHIFT)
		return true;
	exmap_walk_unlock(walk);
	return exmap_walk_table(walk, address);
}

/* Flush the pages from number @first on. Returns false if @wait is false and a lock is taken. */
static bool exmap_quarantine_shootdown(struct exmap *exmap, struct exmap_quarantine *quarantine,
				       unsigned int first, struct exmap_interface *interface,
				       bool wait)
{
	const bool few = quarantine->nr - first <= EXMAP_FLUSH_SINGLE;
	unsigned long start = few ? ULONG_MAX : exmap->start;
	unsigned long end = few ? 0 : exmap->end;
	struct exmap_pages pages;
	bool sent = true;
	unsigned int i;

	for (i = first; few && i < quarantine->nr; i++) {
		start = min(start, quarantine->address[i]);
		end = max(end, quarantine->address[i] + PAGE_SIZE);
	}
	pages = exmap_pages_at(quarantine->address + first, few ? quarantine->nr - first : 0);
	if (wait)
		sent = exmap_shootdown(exmap, start, end, pages);
	else if (!exmap_shootdown_try(exmap, start, end, pages))
		return false;
	exmap_count(&interface->counts.flushes, sent);
	return true;
}

/*
 * Make the pages of the last bundle free pages. All TLBs are flushed, so others may map pages at
 * their addresses from here on. The addresses are not in the index any more.
 */
static void exmap_quarantine_settle(struct exmap *exmap, struct exmap_quarantine *quarantine,
				    struct exmap_interface *interface)
{
	const unsigned int bundle = (quarantine->nr - 1) / EXMAP_BUNDLE_PAGES;
	const unsigned int first = bundle * EXMAP_BUNDLE_PAGES;
	const unsigned long *const end = quarantine->address + quarantine->nr, *address;
	struct exmap_walk walk = EXMAP_WALK(exmap);
	pte_t *pte;

	for (address = quarantine->address + first; address < end; address++) {
		if (WARN_ON_ONCE(!exmap_walk_lock_atomic(&walk, *address)))
			continue;
		pte = &walk.table[pte_index(*address)];
		if (WARN_ON_ONCE(!exmap_pte_is_marked(walk.marks, pte, *pte)))
			continue;
		exmap_pte_unmark(walk.marks, pte);
		/*
		 * Pairs with the walk of the hardware and with fast GUP, to which a mark is none,
		 * too, and with exmap_table_empty().
		 */
		WRITE_ONCE(*pte, EXMAP_PTE_NONE);
	}
	exmap_walk_unlock(&walk);
	exmap_stock_settle(exmap, interface, quarantine->bundle[bundle]->page,
			   quarantine->nr - first);
	/*
	 * Whoever sees 0 also sees that the marks are gone, and that pages have come to a stock.
	 * Pairs with the acquire in exmap_quarantine_flush(), exmap_quarantine_flush_killable() and
	 * exmap_quarantine_lock().
	 */
	smp_store_release(&quarantine->nr, first);
}

/**
 * exmap_quarantine_end - flush the pages of a quarantine and make them free pages
 * @exmap: its gate is open or being closed
 * @quarantine: the quarantine of any interface; its lock is held
 * @interface: its stock gets the pages; its lock is held
 * @wait: whether this may sleep. If not, it takes at most one bundle of pages, because preemption
 *	may be disabled, and does nothing if a lock is taken or a notifier would sleep
 *
 * The order is: flush all TLBs, clear the PTEs' marks, hand out the pages. No PTE lock is held on
 * entry.
 */
void exmap_quarantine_end(struct exmap *exmap, struct exmap_quarantine *quarantine,
			  struct exmap_interface *interface, bool wait)
{
	unsigned int first = 0;

	lockdep_assert_held(&quarantine->lock);
	if (!quarantine->nr)
		return;
	if (!wait)
		first = round_down(quarantine->nr - 1, EXMAP_BUNDLE_PAGES);
	if (!exmap_quarantine_shootdown(exmap, quarantine, first, interface, wait))
		return;
	if (quarantine->indexed) {
		memset(exmap_quarantine_heads(quarantine), 0,
		       sizeof(u16) << exmap_quarantine_bits(quarantine));
		quarantine->indexed = 0;
	}
	while (quarantine->nr > first) {
		exmap_quarantine_settle(exmap, quarantine, interface);
		if (wait)
			cond_resched();
	}
}

/**
 * exmap_quarantine_flush - make the pages of a quarantine free pages
 * @exmap: its gate is open or being closed
 * @quarantine: the quarantine of any interface; its lock is not held
 * @interface: its stock gets the pages; its lock is held
 *
 * May sleep.
 *
 * Return: true if there were any pages.
 */
bool exmap_quarantine_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
			    struct exmap_interface *interface)
{
	bool any;

	lockdep_assert_held(&interface->lock);
	/*
	 * Pairs with exmap_quarantine_settle() and exmap_free_defer(). Pages are added only under
	 * the lock of the quarantine's own interface, which exmap_gate_close() holds.
	 */
	if (!smp_load_acquire(&quarantine->nr))
		return false;
	mutex_lock(&quarantine->lock);
	any = quarantine->nr;
	exmap_quarantine_end(exmap, quarantine, interface, true);
	mutex_unlock(&quarantine->lock);
	return any;
}

/**
 * exmap_quarantine_flush_killable - exmap_quarantine_flush() for a call that can fail
 * @exmap: as for exmap_quarantine_flush()
 * @quarantine: as for exmap_quarantine_flush()
 * @interface: as for exmap_quarantine_flush()
 *
 * Return: 1 if there were any pages; 0 if not; -EINTR if the caller is being killed while it waits
 * for the quarantine's lock.
 */
int exmap_quarantine_flush_killable(struct exmap *exmap, struct exmap_quarantine *quarantine,
				    struct exmap_interface *interface)
{
	int any;

	lockdep_assert_held(&interface->lock);
	/*
	 * Pairs with exmap_quarantine_settle() and exmap_free_defer(). If it misses a page, the
	 * FREE of that page is still at work.
	 */
	if (!smp_load_acquire(&quarantine->nr))
		return 0;
	if (mutex_lock_killable(&quarantine->lock))
		return -EINTR;
	any = quarantine->nr > 0;
	exmap_quarantine_end(exmap, quarantine, interface, true);
	mutex_unlock(&quarantine->lock);
	return any;
}

/**
 * exmap_quarantine_try_flush - exmap_quarantine_flush() without waiting for a lock
 * @exmap: as for exmap_quarantine_flush()
 * @quarantine: as for exmap_quarantine_flush()
 * @interface: as for exmap_quarantine_flush()
 *
 * Takes at most one bundle of pages. The quarantine stays as it is if a lock is taken or a notifier
 * would have to sleep. May be called with preemption disabled, except on PREEMPT_RT.
 */
void exmap_quarantine_try_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
				struct exmap_interface *interface)
{
	lockdep_assert_held(&interface->lock);
	/* A hint. Pairs with exmap_quarantine_settle() and exmap_free_defer(). */
	if (!READ_ONCE(quarantine->nr) || !mutex_trylock(&quarantine->lock))
		return;
	exmap_quarantine_end(exmap, quarantine, interface, false);
	mutex_unlock(&quarantine->lock);
}

/* Where the index of a quarantine begins to look for an address. */
static u16 *exmap_quarantine_head(const struct exmap_quarantine *quarantine, unsigned long address)
{
	return exmap_quarantine_heads(quarantine) +
		hash_long(address >> PAGE_SHIFT, exmap_quarantine_bits(quarantine));
}

/*
 * Returns what refers to the page of @address in the index, which holds all pages: the page's
 * number plus 1, or 0 if the quarantine does not have it.
 */
static u16 *exmap_quarantine_find(const struct exmap_quarantine *quarantine, unsigned long address)
{
	u16 *link = exmap_quarantine_head(quarantine, address);

	while (*link && quarantine->address[*link - 1] != address)
		link = exmap_quarantine_after(quarantine, *link - 1);
	return link;
}

/*
 * Enter all pages into the index. FREE does not do that, so it costs nothing as long as no address
 * is looked for, and each page once otherwise.
 */
static void exmap_quarantine_index(struct exmap_quarantine *quarantine)
{
	unsigned int i;
	u16 *head;

	lockdep_assert_held(&quarantine->lock);
	for (i = quarantine->indexed; i < quarantine->nr; i++) {
		head = exmap_quarantine_head(quarantine, quarantine->address[i]);
		*exmap_quarantine_after(quarantine, i) = *head;
		*head = i + 1;
	}
	quarantine->indexed = i;
}

/*
 * Remove a page, to which @link refers in the index. The last page takes its place. The PTE of the
 * removed page is locked.
 */
static void exmap_quarantine_remove(struct exmap_quarantine *quarantine, u16 *link)
{
	const unsigned int i = *link - 1, last = quarantine->nr - 1;

	*link = *exmap_quarantine_after(quarantine, i);
	if (i != last) {
		link = exmap_quarantine_find(quarantine, quarantine->address[last]);
		*link = i + 1;
		*exmap_quarantine_after(quarantine, i) =
			*exmap_quarantine_after(quarantine, last);
		quarantine->address[i] = quarantine->address[last];
		*exmap_quarantine_page(quarantine, i) = *exmap_quarantine_page(quarantine, last);
	}
	quarantine->indexed = last;
	/*
	 * The PTE of the removed page is locked until the page is mapped there. Whoever sees this
	 * number and then locks the PTE sees that page. Pairs with exmap_quarantine_lock().
	 */
	smp_store_release(&quarantine->nr, last);
}

/*
 * The quarantine number @i of those that may have an address, beginning with @interface's own,
 * with its lock held and all its pages in the index. Returns NULL if it is empty; -EINTR if the
 * caller is being killed.
 */
static struct exmap_quarantine *
exmap_quarantine_lock(struct exmap *exmap, struct exmap_interface *interface, unsigned int i)
{
	struct exmap_quarantine *quarantine;

	i += interface - exmap->interfaces;
	quarantine = &exmap->interfaces[i % exmap_nr_interfaces(exmap)].quarantine;
	/*
	 * Pairs with exmap_free_defer(), which changes it with the PTE locked. The caller has seen
	 * the mark in the PTE under the same lock, so this sees the page, or its flush. In the
	 * latter case the acquire pairs with exmap_quarantine_settle() and
	 * exmap_quarantine_remove(): the caller does not see the mark again.
	 */
	if (!smp_load_acquire(&quarantine->nr))
		return NULL;
	if (mutex_lock_killable(&quarantine->lock))
		return ERR_PTR(-EINTR);
	exmap_quarantine_index(quarantine);
	return quarantine;
}

/**
 * exmap_quarantine_recall - flush the quarantine that holds the page of an address
 * @exmap: its gate is open
 * @interface: its stock gets all pages of that quarantine; its lock is held, but no quarantine's
 * @address: an address on the surface
 *
 * May sleep.
 *
 * Return: 0, even if no quarantine holds the page any more; or -EINTR if the caller is being
 * killed.
 */
int exmap_quarantine_recall(struct exmap *exmap, struct exmap_interface *interface,
			    unsigned long address)
{
	struct exmap_quarantine *quarantine;
	bool found = false;
	unsigned int i;

	for (i = 0; !found && i < exmap_nr_interfaces(exmap); i++) {
		quarantine = exmap_quarantine_lock(exmap, interface, i);
		if (IS_ERR(quarantine))
			return PTR_ERR(quarantine);
		if (!quarantine)
			continue;
		found = *exmap_quarantine_find(quarantine, address & PAGE_MASK);
		if (found)
			exmap_quarantine_end(exmap, quarantine, interface, true);
		mutex_unlock(&quarantine->lock);
	}
	return 0;
}

/**
 * exmap_quarantine_next - find the next page that waits for its flush
 * @walk: the gate is open; may have a table locked, and may have another one locked afterwards
 * @address: where to begin
 * @end: where to stop
 *
 * May sleep between page tables.
 *
 * Return: the first address whose PTE is marked; or @end.
 */
unsigned long exmap_quarantine_next(struct exmap_walk *walk, unsigned long address,
				    unsigned long end)
{
	unsigned long next;
	const pte_t *pte;

	for (; address < end; address = next) {
		next = pmd_addr_end(address, end);
		if (!exmap_walk_lock(walk, address))
			continue;
		pte = &walk->table[pte_index(address)];
		for (; address < next; address += PAGE_SIZE, pte++)
			if (unlikely(exmap_pte_is_marked(walk->marks, pte, *pte)))
				return address;
	}
	return end;
}

/*
 * Map pages of one quarantine again, at those addresses of a range that are in it. Its lock is
 * held. Returns the number of pages.
 */
static long exmap_quarantine_remap_from(struct exmap_walk *walk,
					struct exmap_quarantine *quarantine,
					unsigned long address, unsigned long end)
{
	struct page *page;
	long mapped = 0;
	u16 *link;

	for (; (address = exmap_quarantine_next(walk, address, end)) < end; address += PAGE_SIZE) {
		link = exmap_quarantine_find(quarantine, address);
		if (!*link)
			continue;
		page = *exmap_quarantine_page(quarantine, *link - 1);
		/*
		 * Others still hold it, and must not see what is written at its address from now on.
		 */
		if (!exmap_page_is_good(page))
			continue;
		exmap_quarantine_remove(quarantine, link);
		exmap_pte_unmark(walk->marks, &walk->table[pte_index(address)]);
		exmap_map_page(walk->exmap, address, &walk->table[pte_index(address)], page);
		mapped++;
	}
	exmap_walk_unlock(walk);
	return mapped;
}

/**
 * exmap_quarantine_remap - map pages in quarantine again, at the same addresses
 * @walk: the gate is open; this unlocks its table
 * @interface: its lock is held, but no quarantine's
 * @address: first address
 * @end: first address after the range
 *
 * This needs no flush: a TLB that still has such a page has the right one. A page that others hold
 * stays in quarantine. May sleep.
 *
 * Return: the number of pages mapped; the caller adds them to the counters.
 */
long exmap_quarantine_remap(struct exmap_walk *walk, struct exmap_interface *interface,
			    unsigned long address, unsigned long end)
{
	struct exmap *exmap = walk->exmap;
	struct exmap_quarantine *quarantine;
	long mapped = 0;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++) {
		address = exmap_quarantine_next(walk, address, end);
		exmap_walk_unlock(walk);
		if (address == end)
			break;
		quarantine = exmap_quarantine_lock(exmap, interface, i);
		/* The caller notices the signal when it looks for what is left. */
		if (IS_ERR(quarantine))
			break;
		if (!quarantine)
			continue;
		mapped += exmap_quarantine_remap_from(walk, quarantine, address, end);
		mutex_unlock(&quarantine->lock);
	}
	return mapped;
}

/**
 * exmap_quarantined - count the pages that wait for their flush
 * @exmap: has been set up
 *
 * Return: pages; exact if no call is at work.
 */
unsigned long exmap_quarantined(const struct exmap *exmap)
{
	unsigned long pages = 0;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		/* Pairs with exmap_quarantine_settle() and exmap_free_defer(). */
		pages += READ_ONCE(exmap->interfaces[i].quarantine.nr);
	return pages;
}
