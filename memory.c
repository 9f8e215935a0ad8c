// SPDX-License-Identifier: GPL-2.0
/*
 * Pages come to the surface. ALLOC maps pages of the stock. READ reserves private pages and
 * installs them once they have been read. WRITE pins the pages that are mapped.
 */
#include <linux/mm.h>
#include <linux/sched/signal.h>

#include "arch.h"
#include "compat.h"
#include "entry.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"
#include "reading.h"
#include "trace.h"
#include "walk.h"

/*
 * The page that is mapped at an address, or NULL. It stays mapped as long as @walk has the table
 * locked.
 */
static struct page *exmap_mapped_page(struct exmap_walk *walk, unsigned long address)
{
	pte_t pte;

	if (!exmap_walk_lock(walk, address))
		return NULL;
	pte = walk->table[pte_index(address)];
	return pte_present(pte) ? pte_page(pte) : NULL;
}

/**
 * exmap_map_run - map pages of the stock at the absent pages of a part of a page table
 * @exmap: the exmap; its gate is open
 * @interface: the pages come from its stock; its lock is held
 * @address: the first address
 * @marks: of the page table, which is locked
 * @pte: the entry of @address in it
 * @nr: number of pages, all within this page table
 * @mapped: increased by the number of pages mapped; the caller adds them to the counters
 *
 * Does not sleep.
 *
 * Return: the number of pages dealt with. If it is less than @nr, the stock had no page for the
 * next one, or a flush is due there.
 */
unsigned int exmap_map_run(struct exmap *exmap, struct exmap_interface *interface,
			   unsigned long address, struct exmap_marks marks, pte_t *pte,
			   unsigned int nr, long *mapped)
{
	const pteval_t bits = exmap->pte;
	unsigned int done, used = 0;

	for (done = 0; done < nr; done++, pte++, address += PAGE_SIZE) {
		struct page *page;

		if (!exmap_pte_free(marks, pte, *pte)) {
			if (unlikely(exmap_pte_is_marked(marks, pte, *pte)))
				break;
			continue;
		}
		page = exmap_stock_pop(exmap, interface);
		if (unlikely(!page))
			break;
		exmap_pte_set(exmap->mm, address, pte, exmap_pte_make(bits, page));
		used++;
	}
	/* Addresses that had a page before are marked already. Marking them again is harmless. */
	if (unlikely(exmap_has_reading(exmap)))
		exmap_reading_mark_range(exmap, address - done * PAGE_SIZE, done);
	*mapped += used;
	return done;
}

/*
 * Map pages of the stock in a range for which exmap_prepare() has returned 0. Adds the number of
 * pages mapped to @mapped. Returns the address where it stopped. That is before @end if a flush is
 * due there, or if the stock ran out, because another thread freed pages that exmap_prepare() had
 * counted as mapped.
 */
static unsigned long exmap_map_range(struct exmap_walk *walk, struct exmap_interface *interface,
				     unsigned long address, unsigned long end, long *mapped)
{
	unsigned int nr, done;

	while (address < end) {
		if (!exmap_walk_lock(walk, address))
			return end;
		nr = (pmd_addr_end(address, end) - address) >> PAGE_SHIFT;
		done = exmap_map_run(walk->exmap, interface, address, walk->marks,
				     &walk->table[pte_index(address)], nr, mapped);
		address += (unsigned long)done << PAGE_SHIFT;
		if (done < nr)
			break;
	}
	return address;
}

/*
 * Make sure that no flush is due in a range for which exmap_prepare() has returned 0: map the pages
 * in quarantine again, and flush what others hold. Counts the pages it maps, and adds their number
 * to @mapped. Returns 0; or -EINTR if the caller is being killed, with the interface left.
 */
static int exmap_alloc_deferred(struct exmap_walk *walk, struct exmap_interface *interface,
				unsigned long address, unsigned long end, long *mapped)
{
	long again;
	int err;

	again = exmap_quarantine_remap(walk, interface, address, end);
	exmap_count(&interface->counts.allocs, again);
	*mapped += again;
	/* Other threads can free the same pages again and again, and bring the caller here. */
	err = fatal_signal_pending(current) ? -EINTR : 0;
	for (; !err && (address = exmap_quarantine_next(walk, address, end)) < end;
	     address += PAGE_SIZE)
		err = exmap_walk_flush(walk, interface, address);
	if (err)
		exmap_walk_leave(walk, interface);
	return err;
}

/*
 * ALLOC of one entry. Counts the pages it maps and adds their number to @mapped. Returns 0; -EFAULT
 * if the entry reaches beyond the surface, with the interface's lock still held; or an error of
 * exmap_prepare(), with the interface left and the pages mapped only up to some address.
 */
static noinline int exmap_alloc_entry(struct exmap_walk *walk, struct exmap_interface *interface,
				      u64 request, bool probe, long *mapped)
{
	unsigned long address, end;
	long before;
	int err;

	err = exmap_request(walk->exmap, request, &address, &end);
	if (err)
		return err;
	if (probe && address < end && exmap_mapped_page(walk, address))
		return 0;
	for (;;) {
		err = exmap_prepare(walk, interface, address, end);
		if (err)
			return err;
		before = *mapped;
		address = exmap_map_range(walk, interface, address, end, mapped);
		/* Count now: exmap_prepare() may release the lock and fail to get it back. */
		exmap_count(&interface->counts.allocs, *mapped - before);
		if (likely(address >= end))
			return 0;
		err = exmap_alloc_deferred(walk, interface, address, end, mapped);
		if (err)
			return err;
	}
}

/*
 * exmap_walk_lock() for exmap_alloc_singles(). Returns false also if @reading is false but the
 * reading index exists. One check after locking a table is enough, because a slot for one of its
 * addresses enters the index only under the same lock.
 */
static __always_inline bool exmap_alloc_lock(struct exmap_walk *walk, unsigned long address,
					     const bool reading)
{
	return likely(walk->region == address >> PMD_SHIFT) ||
		(exmap_walk_move(walk, address) &&
		 (reading || likely(!exmap_has_reading(walk->exmap))));
}

/*
 * exmap_alloc_singles(), compiled once for each value of the constant @reading: whether the reading
 * index exists.
 */
static __always_inline unsigned int
__exmap_alloc_singles(struct exmap_walk *walk, struct exmap_interface *interface,
		      struct exmap_iov *iov, unsigned int nr, long *mapped, const bool reading)
{
	struct exmap *exmap = walk->exmap;
	const unsigned long first = exmap->start >> PAGE_SHIFT;
	const unsigned long pages = (exmap->end >> PAGE_SHIFT) - first;
	const pteval_t bits = exmap->pte;
	/* Both are set once, so read them here instead of for each page. */
	struct hlist_bl_head *const index = reading ? exmap->reading : NULL;
	const unsigned int shift = reading ? exmap->reading_shift : 0;
	struct page **free = &interface->loaded->page[interface->count];
	struct exmap_iov *const end = iov + min(nr, interface->count), *entry;
	unsigned int used;

	lockdep_assert_held(&interface->lock);
	for (entry = iov; entry < end; entry++) {
		/* Read once: user space may be writing to the entry. */
		unsigned long number = exmap_single(READ_ONCE(entry->value), first, pages);
		pte_t *pte, old;

		if (unlikely(!number || !exmap_alloc_lock(walk, number << PAGE_SHIFT, reading)))
			break;
		pte = &walk->table[number % PTRS_PER_PTE];
		old = *pte;
		if (likely(exmap_pte_free(walk->marks, pte, old))) {
			exmap_pte_set(exmap->mm, number << PAGE_SHIFT, pte,
				      exmap_pte_make(bits, *--free));
			if (reading)
				exmap_reading_mark(index, shift, number);
			exmap_answer(entry, 0, 1);
			continue;
		}
		if (unlikely(!exmap_pte_is_valid(old)))
			break;
		exmap_answer(entry, 0, 0);
	}
	used = &interface->loaded->page[interface->count] - free;
	/* Pairs with exmap_stock(). */
	WRITE_ONCE(interface->count, interface->count - used);
	exmap_count(&interface->counts.allocs, used);
	*mapped += used;
	return entry - iov;
}

static noinline unsigned int
exmap_alloc_singles_reading(struct exmap_walk *walk, struct exmap_interface *interface,
			    struct exmap_iov *iov, unsigned int nr, long *mapped)
{
	return __exmap_alloc_singles(walk, interface, iov, nr, mapped, true);
}

/*
 * ALLOC of entries of one page each, which is the most common kind. It stops at the first entry
 * that is of another kind, lacks a page table or has a flush due, and when the loaded bundle is
 * empty. Counts the pages it maps and adds their number to @mapped. Returns the number of entries
 * that are done.
 */
static unsigned int exmap_alloc_singles(struct exmap_walk *walk, struct exmap_interface *interface,
					struct exmap_iov *iov, unsigned int nr, long *mapped)
{
	/* A version without the index costs nothing in an exmap that never reads. */
	if (unlikely(exmap_has_reading(walk->exmap)))
		return exmap_alloc_singles_reading(walk, interface, iov, nr, mapped);
	return __exmap_alloc_singles(walk, interface, iov, nr, mapped, false);
}

/* The rest of exmap_alloc(). */
static noinline long exmap_alloc_entries(struct exmap *exmap, struct exmap_interface *interface,
					 struct exmap_iov *iov, unsigned int nr, bool probe)
{
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned int i, failed = 0;
	long before, mapped = 0;
	long ret;
	int res;

	res = exmap_enter(exmap, interface);
	for (i = 0; i < nr && !res; i++) {
		i += exmap_alloc_singles(&walk, interface, &iov[i], nr - i, &mapped);
		if (i == nr)
			break;
		before = mapped;
		/* Read once: user space may be writing to the entry. */
		res = exmap_alloc_entry(&walk, interface, READ_ONCE(iov[i].value), probe, &mapped);
		/*
		 * An entry that mapped pages must report them. Any other is answered after the
		 * loop, or the call returns the error if this is the first entry.
		 */
		if (res && res != -EFAULT && mapped == before)
			break;
		failed += res < 0;
		exmap_answer(&iov[i], res, mapped - before);
		if (res == -EFAULT)
			res = 0;
	}
	/* After an error the interface has been left already. */
	if (!res)
		exmap_walk_leave(&walk, interface);

	ret = failed;
	if (res < 0 && i == 0)
		ret = res;
	else
		for (; i < nr; i++, ret++)
			exmap_answer(&iov[i], res, 0);
	trace_exmap_alloc(exmap, interface, nr, mapped, ret);
	return ret;
}

/* exmap_alloc_page(), if the short way does not apply. */
static noinline int exmap_alloc_page_slow(struct exmap *exmap, struct exmap_interface *interface,
					  unsigned long page)
{
	struct exmap_iov iov = exmap_one_page(page);

	return exmap_one_result(&iov, exmap_alloc_entries(exmap, interface, &iov, 1, false));
}

/**
 * exmap_alloc_page - ALLOC of one page
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: where the page comes from; its lock is not held
 * @page: which page of the surface
 *
 * The short way needs a free page in the loaded bundle and an existing page table.
 *
 * Return: how many pages it mapped, 1 or 0; -EFAULT if the page is beyond the surface; -ENOMEM;
 * -EPROTO if there is no surface; or -EINTR if the caller is being killed.
 */
int exmap_alloc_page(struct exmap *exmap, struct exmap_interface *interface, unsigned long page)
{
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned long address;
	pte_t *pte, old;

	/* If this fails, the slow way fails as well, and traces the error. */
	if (unlikely(exmap_enter(exmap, interface)))
		goto slow;
	if (unlikely(!interface->count || !exmap_walk_page(&walk, page, &address)))
		goto leave;
	pte = &walk.table[pte_index(address)];
	old = *pte;
	if (unlikely(!exmap_pte_free(walk.marks, pte, old)))
		goto unlock;
	/* Pairs with exmap_stock(). */
	WRITE_ONCE(interface->count, interface->count - 1);
	exmap_map_page(exmap, address, pte, interface->loaded->page[interface->count]);
	exmap_count(&interface->counts.allocs, 1);
	exmap_walk_drop(&walk);
	exmap_leave(interface);
	trace_exmap_alloc(exmap, interface, 1, 1, 0);
	return 1;

unlock:
	exmap_walk_drop(&walk);
leave:
	exmap_leave(interface);
slow:
	return exmap_alloc_page_slow(exmap, interface, page);
}

/**
 * exmap_alloc - carry out ALLOC
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: the pages come from its stock; its lock is not held
 * @iov: the entries; each gets its answer
 * @nr: number of entries
 * @probe: skip the entries whose first page is mapped
 *
 * May sleep and allocate, and may take mmap_lock to make page tables.
 *
 * Return: the number of entries that failed, each of which holds -EFAULT, -ENOMEM, -EPROTO or
 * -EINTR. If no entry was dealt with, none is overwritten, and the error is returned instead:
 * -ENOMEM; -EPROTO if there is no surface; -EINTR if the caller is being killed.
 */
long exmap_alloc(struct exmap *exmap, struct exmap_interface *interface,
		 struct exmap_iov *iov, unsigned int nr, bool probe)
{
	u64 value;

	if (nr != 1)
		return exmap_alloc_entries(exmap, interface, iov, nr, probe);
	/* Read once: user space may be writing to the entry. */
	value = READ_ONCE(iov->value);
	if (!exmap_is_one_page(value))
		return exmap_alloc_entries(exmap, interface, iov, nr, probe);
	return exmap_answer_one(iov, exmap_alloc_page(exmap, interface, exmap_only_page(value)));
}

/* Undo exmap_reserve() for @nr slots. The interface's lock is held. */
static void exmap_unreserve(struct exmap *exmap, struct exmap_interface *interface,
			    struct exmap_slot *slot, unsigned int nr)
{
	/* The last first, so that the stock hands them out in the same order again. */
	while (nr--) {
		exmap_reading_end(exmap, &slot[nr]);
		exmap_stock_put(exmap, interface, slot[nr].page);
	}
}

/* Set a slot. The PTE lock under which its page was absent is still held: see reading.c. */
static __always_inline void exmap_reserve_slot(struct exmap *exmap, struct exmap_slot *slot,
					       unsigned long address, struct page *page,
					       bool reads)
{
	*slot = (struct exmap_slot){ .address = address, .page = page };
	if (reads)
		exmap_reading_begin(exmap, slot);
}

/* exmap_reserve(), if the short way does not apply. */
static noinline int exmap_reserve_range(struct exmap_walk *walk, struct exmap_interface *interface,
					unsigned long start, unsigned long end, bool reads,
					bool probe, struct exmap_slot *slot)
{
	struct exmap *exmap = walk->exmap;
	unsigned long address;
	struct page *page;
	int err, nr = 0;
	pte_t *pte;

	if (probe && start < end && exmap_mapped_page(walk, start))
		end = start;
again:
	err = exmap_prepare(walk, interface, start, end);
	if (err)
		return err;
	for (address = start; address < end; address += PAGE_SIZE) {
		/*
		 * This does not happen: exmap_prepare() made the table, and it stays while the gate
		 * is open.
		 */
		if (!exmap_walk_lock(walk, address))
			continue;
		if (unlikely(exmap_walk_is_marked(walk, address))) {
			err = exmap_walk_flush(walk, interface, address);
			if (err) {
				exmap_unreserve(exmap, interface, slot, nr);
				exmap_walk_leave(walk, interface);
				return err;
			}
			if (!exmap_walk_lock(walk, address))
				continue;
		}
		pte = &walk->table[pte_index(address)];
		if (!exmap_pte_free(walk->marks, pte, *pte))
			continue;
		page = exmap_stock_pop(exmap, interface);
		if (unlikely(!page)) {
			/* Another thread freed pages that exmap_prepare() had counted as mapped. */
			exmap_unreserve(exmap, interface, slot, nr);
			nr = 0;
			goto again;
		}
		exmap_reserve_slot(exmap, &slot[nr++], address, page, reads);
	}
	/* Pairs with exmap_part_find_busy(), by the interface's lock. */
	atomic_add(nr, &interface->in_flight);
	return nr;
}

/**
 * exmap_reserve - take a private page for each absent page of a range
 * @walk: the gate is open; this may leave a table locked
 * @interface: its lock is held. The lock may be released and taken again; on success it is held and
 *	the gate is open, and the caller releases it with exmap_walk_leave(), because the stock may
 *	have got more pages than it needs. On an error the interface has been left in the same way
 * @start: first address
 * @end: first address after the range
 * @reads: the pages are going to be read: enter each slot into the reading index, which exists
 * @probe: take no page if the first page of the range is mapped
 * @slot: receives the pages and their addresses. It has room for the whole range, and must not move
 *	before exmap_install() or exmap_discard()
 *
 * May sleep and allocate, and may take mmap_lock to make page tables.
 *
 * Return: the number of slots set; or, with no page taken, an error of exmap_prepare(): -ENOMEM,
 * -EPROTO or -EINTR.
 */
int exmap_reserve(struct exmap_walk *walk, struct exmap_interface *interface,
		  unsigned long start, unsigned long end, bool reads, bool probe,
		  struct exmap_slot *slot)
{
	lockdep_assert_held(&interface->lock);
	/*
	 * The short way: one page, which is absent, and the loaded bundle has a page for it. If no
	 * table is locked, there is none to unlock, which saves a call.
	 */
	if (end - start != PAGE_SIZE || unlikely(!interface->count) ||
	    !(walk->lock ? exmap_walk_lock(walk, start) : exmap_walk_table(walk, start)) ||
	    unlikely(!exmap_walk_is_unused(walk, start)))
		return exmap_reserve_range(walk, interface, start, end, reads, probe, slot);
	exmap_reserve_slot(walk->exmap, slot, start, exmap_stock_pop(walk->exmap, interface),
			   reads);
	/* Pairs with exmap_part_find_busy(), by the interface's lock. */
	atomic_inc(&interface->in_flight);
	return 1;
}

/* exmap_install() of one slot. Returns whether its page was mapped. */
static __always_inline bool exmap_install_slot(struct exmap_walk *walk,
					       struct exmap_interface *interface,
					       struct exmap_slot *slot)
{
	struct exmap *exmap = walk->exmap;
	struct hlist_bl_head *bucket = NULL;
	bool table, stale;
	pte_t *pte, old;

	/*
	 * The table may be gone: MADV_DONTNEED may have freed it since exmap_reserve(), but not
	 * trim.c, which leaves tables with slots. Treat that as if MADV_DONTNEED had come after
	 * this call, and drop the page.
	 */
	table = !slot->error && exmap_walk_lock(walk, slot->address);
	pte = table ? &walk->table[pte_index(slot->address)] : NULL;
	old = table ? *pte : EXMAP_PTE_NONE;
	if (likely(exmap_has_reading(exmap)))
		bucket = exmap_reading_slot_bucket(exmap, slot);
	/*
	 * Take the slot out under the PTE lock. Nobody can map a page and mark this slot between
	 * this and exmap_pte_set() below.
	 */
	stale = exmap_reading_end_bucket(bucket, slot);
	if (likely(table && !stale && exmap_pte_free(walk->marks, pte, old))) {
		exmap_pte_set(exmap->mm, slot->address, pte,
			      exmap_pte_make(exmap->pte, slot->page));
		if (likely(bucket))
			exmap_reading_mark_bucket(bucket, slot->address);
		return true;
	}
	/*
	 * A page in quarantine is gone, too, so a PTE with a flush due counts as absent. The flush
	 * is not done here, because that takes a quarantine's lock.
	 */
	slot->stale = stale && !slot->error && !pte_present(old);
	if (slot->stale)
		slot->error = -EBUSY;
	exmap_stock_put(exmap, interface, slot->page);
	slot->page = NULL;
	return false;
}

/**
 * exmap_install - map reserved pages
 * @walk: the gate is open; this may leave a table locked
 * @interface: its lock is held; the caller releases it with exmap_walk_leave(). Its stock gets the
 *	pages that are not mapped, because of an error or because another page has taken their place
 * @slot: the slots. @page is set to NULL if the page was not mapped. A slot becomes @stale with
 *	@error -EBUSY if its address had another page since exmap_reserve() that is gone again:
 *	the data read may be older than the data written to the file from that page
 * @nr: number of slots
 *
 * May sleep between page tables.
 *
 * Return: the number of pages mapped; the caller adds them to the counters.
 */
unsigned int exmap_install(struct exmap_walk *walk, struct exmap_interface *interface,
			   struct exmap_slot *slot, unsigned int nr)
{
	unsigned int mapped = 0;

	lockdep_assert_held(&interface->lock);
	/*
	 * Order what the CPU has read into the pages before their PTEs. Pairs with the walks of the
	 * page tables, by hardware and by get_user_pages(): the data depends on the PTE.
	 */
	smp_wmb();
	/*
	 * Pairs with exmap_part_find_busy(), by the interface's lock. Atomic, because
	 * exmap_discard() takes no lock.
	 */
	atomic_sub(nr, &interface->in_flight);
	for (; nr; nr--, slot++)
		mapped += exmap_install_slot(walk, interface, slot);
	return mapped;
}

/**
 * exmap_discard - give reserved pages back to the system
 * @exmap: the exmap
 * @interface: the interface for which they were reserved; its lock need not be held
 * @slot: the slots; @page is set to NULL
 * @nr: number of slots
 * @err: an error of exmap_enter(); set in the slots that have no error yet
 *
 * For callers that cannot call exmap_install(), because exmap_enter() failed. Does not sleep.
 */
void exmap_discard(struct exmap *exmap, struct exmap_interface *interface,
		   struct exmap_slot *slot, unsigned int nr, int err)
{
	unsigned int left;

	for (left = nr; left; left--, slot++) {
		exmap_reading_end(exmap, slot);
		if (exmap_pinned_sort(exmap, &slot->page, 1))
			exmap_pool_release(exmap, &slot->page, 1);
		slot->page = NULL;
		slot->error = slot->error ?: err;
	}
	/*
	 * After all slots have left the index, because exmap_part_find_busy() compares this number
	 * with theirs, and pairs with this.
	 */
	(void)atomic_fetch_sub_release(nr, &interface->in_flight);
}

/**
 * exmap_pin - take a reference to each page that is mapped in a range
 * @walk: the gate is open, and the lock of some interface is held; this may leave a table locked
 * @start: first address
 * @end: first address after the range
 * @slot: receives the pages and their addresses; it has room for the whole range
 *
 * A page that is freed while it is pinned is not handed out again before the reference is dropped;
 * see pinned.c. May sleep between page tables.
 *
 * Return: the number of slots set.
 */
int exmap_pin(struct exmap_walk *walk, unsigned long start, unsigned long end,
	      struct exmap_slot *slot)
{
	unsigned long address, next;
	struct page *page;
	int nr = 0;

	for (address = start; address < end; address = next) {
		next = address + PAGE_SIZE;
		if (!exmap_walk_lock(walk, address)) {
			next = pmd_addr_end(address, end);
			continue;
		}
		page = exmap_mapped_page(walk, address);
		if (!page)
			continue;
		get_page(page);
		slot[nr++] = (struct exmap_slot){ .address = address, .page = page };
	}
	return nr;
}

/**
 * exmap_mapped - count the pages on the surface
 * @exmap: has been set up
 *
 * Takes no lock: it reads counters that other threads may be updating.
 *
 * Return: pages; exact if no call is at work.
 */
u64 exmap_mapped(struct exmap *exmap)
{
	/* Pairs with exmap_reap_flush(), and below with exmap_count(). */
	s64 mapped = -READ_ONCE(exmap->unmapped);
	const struct exmap_counts *counts;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++) {
		counts = &exmap->interfaces[i].counts;
		mapped += READ_ONCE(counts->allocs) + READ_ONCE(counts->reads) -
			  READ_ONCE(counts->frees);
	}
	return max(mapped, 0LL);
}
