// SPDX-License-Identifier: GPL-2.0
/*
 * Pages come to the surface: ALLOC; READ, which reserves pages and installs them when they
 * have been read; and WRITE, which pins what is there.
 */
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>

#include "compat.h"
#include "exmap.h"
#include "trace.h"
#include "walk.h"

/**
 * exmap_walk_flush - make sure that no flush is due at an address
 * @walk: the gate is open; its table may be unlocked by this
 * @interface: its lock is held; takes the pages that had to be flushed
 * @address: on the surface
 *
 * Another thread may have a flush due again the moment it is done: then its page was mapped
 * during this call.
 *
 * Return: 0, or -EINTR if the caller is being killed.
 */
noinline int exmap_walk_flush(struct exmap_walk *walk, struct exmap_interface *interface,
			      unsigned long address)
{
	if (!exmap_walk_lock(walk, address) ||
	    likely(!pte_same(walk->table[pte_index(address)], EXMAP_PTE_DEFERRED)))
		return 0;
	exmap_walk_unlock(walk);
	return exmap_quarantine_recall(walk->exmap, interface, address);
}

/* The page that is mapped at an address, or NULL. It stays as long as the walk does. */
static struct page *exmap_mapped_page(struct exmap_walk *walk, unsigned long address)
{
	pte_t pte;

	if (!exmap_walk_lock(walk, address))
		return NULL;
	pte = walk->table[pte_index(address)];
	return pte_present(pte) ? pte_page(pte) : NULL;
}

/* How many pages of a range are not mapped. */
static unsigned int exmap_missing(struct exmap_walk *walk, unsigned long address, unsigned long end)
{
	unsigned int missing = 0;

	for (; address < end; address += PAGE_SIZE)
		missing += !exmap_mapped_page(walk, address);
	return missing;
}

/*
 * So often the kernel may take a table away while it is being made. Others can always do
 * that; but with another cause of -ENOMEM, each try may wake the OOM killer.
 */
#define EXMAP_TABLE_TRIES 16

/*
 * Make sure that a range has its page tables and no flush due, and the interface as many
 * free pages as are missing there. If it has to release the interface's lock it looks
 * at all of it again. Returns 0; or -ENOMEM, -EPROTO or -EINTR, with nothing changed on the
 * surface and the interface left.
 */
static int exmap_prepare(struct exmap_walk *walk, struct exmap_interface *interface,
			 unsigned long start, unsigned long end)
{
	struct exmap *exmap = walk->exmap;
	unsigned int missing, openings, tries = 0;
	unsigned long address;
	int err, populated;

again:
	for (address = start; address < end; address = pmd_addr_end(address, end)) {
		if (likely(exmap_has_table(exmap, address)))
			continue;
		openings = READ_ONCE(exmap->openings);
		exmap_walk_leave(walk, interface);
		populated = exmap_populate(exmap, address, end);
		/* A refusal matters less than what may have become of the gate. */
		err = exmap_enter(exmap, interface);
		if (err)
			return err;
		if (populated && !(populated == -ENOMEM && exmap_was_closed(exmap, openings) &&
				   ++tries < EXMAP_TABLE_TRIES)) {
			err = populated;
			goto leave;
		}
		goto again;
	}
	/* Before pages are counted: a flush may take a while, and bring some. */
	if (unlikely(READ_ONCE(exmap->deferred)))
		for (address = start; address < end; address += PAGE_SIZE) {
			err = exmap_walk_flush(walk, interface, address);
			if (err)
				goto leave;
		}
	if (likely(exmap_stock(interface) >= (end - start) >> PAGE_SHIFT))
		return 0;

	missing = exmap_missing(walk, start, end);
	if (exmap_stock(interface) >= missing)
		return 0;
	exmap_walk_unlock(walk);
	err = exmap_stock_fill(exmap, interface, missing);
	if (err)
		return err;
	if (READ_ONCE(exmap->gate) != EXMAP_GATE_OPEN) {
		exmap_leave(interface);
		err = exmap_enter(exmap, interface);
		if (err)
			return err;
	}
	goto again;

leave:
	exmap_walk_leave(walk, interface);
	return err;
}

/**
 * exmap_map_run - map pages of the stock wherever none is mapped in a part of a page table
 * @exmap: the exmap; its gate is open
 * @interface: where the pages come from; its lock is held
 * @address: the first address
 * @pte: its entry in the page table, which is locked
 * @nr: how many pages, all in this page table
 * @mapped: increased by how many it mapped, for the caller to count
 *
 * Return: how many pages are done. If they are fewer than @nr, the stock had no page for the
 * next one.
 */
unsigned int exmap_map_run(struct exmap *exmap, struct exmap_interface *interface,
			   unsigned long address, pte_t *pte, unsigned int nr,
			   long *mapped)
{
	const pteval_t bits = exmap->pte;
	unsigned int done, used = 0;

	for (done = 0; done < nr; done++, pte++, address += PAGE_SIZE) {
		struct page *page;

		if (!exmap_pte_free(*pte))
			continue;
		page = exmap_stock_pop(exmap, interface);
		if (unlikely(!page))
			break;
		exmap_pte_set(exmap->mm, address, pte,
			      native_make_pte(bits | page_to_phys(page)));
		used++;
	}
	/* Slots of a page that was mapped before are marked already: to do it again is no harm. */
	if (unlikely(exmap_has_reading(exmap)))
		exmap_reading_mark_range(exmap, address - done * PAGE_SIZE, done);
	*mapped += used;
	return done;
}

/*
 * Map pages of the stock in a range, for which exmap_prepare() has brought in enough of them.
 * Adds to @mapped how many. Returns where it ended: at @end, or before, if another thread
 * freed pages after they had been counted as mapped, and those were mapped again.
 */
static unsigned long exmap_map_range(struct exmap_walk *walk, struct exmap_interface *interface,
				     unsigned long address, unsigned long end, long *mapped)
{
	unsigned int nr, done;

	while (address < end) {
		if (!exmap_walk_lock(walk, address))
			return end;
		nr = (pmd_addr_end(address, end) - address) >> PAGE_SHIFT;
		done = exmap_map_run(walk->exmap, interface, address,
				     &walk->table[pte_index(address)], nr, mapped);
		address += (unsigned long)done << PAGE_SHIFT;
		if (done < nr)
			break;
	}
	return address;
}

/*
 * ALLOC of one entry. Counts the pages it maps, and adds to @mapped how many they are. Returns 0;
 * -EFAULT if the entry leaves the surface; or as exmap_prepare(), with the interface left and the
 * pages from some address on missing.
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
	if (probe && address < end && !exmap_missing(walk, address, address + PAGE_SIZE))
		return 0;
	do {
		err = exmap_prepare(walk, interface, address, end);
		if (err)
			return err;
		before = *mapped;
		address = exmap_map_range(walk, interface, address, end, mapped);
		/* At once: exmap_prepare() may release the lock, and not get it again. */
		exmap_count(&interface->counts.allocs, *mapped - before);
	} while (address < end);
	return 0;
}

/*
 * exmap_walk_lock() for exmap_alloc_singles(). False also if there is a reading index now, and
 * there was none before: a slot can be entered for this page table only until it is locked.
 */
static __always_inline bool exmap_alloc_lock(struct exmap_walk *walk, unsigned long address,
					     const bool reading)
{
	return likely(walk->region == address >> PMD_SHIFT) ||
		(exmap_walk_move(walk, address) &&
		 (reading || likely(!exmap_has_reading(walk->exmap))));
}

/* As exmap_alloc_singles(). @reading: a constant, whether there is a reading index. */
static __always_inline unsigned int
__exmap_alloc_singles(struct exmap_walk *walk, struct exmap_interface *interface,
		      struct exmap_iov *iov, unsigned int nr, long *mapped, const bool reading)
{
	struct exmap *exmap = walk->exmap;
	const unsigned long first = exmap->start >> PAGE_SHIFT;
	const unsigned long pages = (exmap->end >> PAGE_SHIFT) - first;
	const pteval_t bits = exmap->pte;
	/* Set once, so they stay as they are; read here, not for each page. */
	struct hlist_bl_head *const index = reading ? exmap->reading : NULL;
	const unsigned int shift = reading ? exmap->reading_shift : 0;
	struct page **free = &interface->loaded->page[interface->count];
	struct exmap_iov *const end = iov + min(nr, interface->count), *entry;
	unsigned int used;

	lockdep_assert_held(&interface->lock);
	for (entry = iov; entry < end; entry++) {
		unsigned long number = exmap_single(READ_ONCE(entry->value), first, pages);
		pte_t *pte, old;

		if (unlikely(!number || !exmap_alloc_lock(walk, number << PAGE_SHIFT, reading)))
			break;
		pte = &walk->table[number % PTRS_PER_PTE];
		old = *pte;
		if (likely(exmap_pte_free(old))) {
			exmap_pte_set(exmap->mm, number << PAGE_SHIFT, pte,
				      native_make_pte(bits | page_to_phys(*--free)));
			if (reading)
				exmap_reading_mark(index, shift, number);
			exmap_answer(entry, 0, 1);
			continue;
		}
		if (unlikely(!(native_pte_val(old) & _PAGE_PRESENT)))
			break;
		exmap_answer(entry, 0, 0);
	}
	used = &interface->loaded->page[interface->count] - free;
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
 * ALLOC of entries of one page each, which most are, as long as their page tables are
 * there, no flush is due, and there are free pages in the loaded bundle. Counts the pages
 * it maps, and adds to @mapped how many they are. Returns how many entries are done.
 */
static unsigned int exmap_alloc_singles(struct exmap_walk *walk, struct exmap_interface *interface,
					struct exmap_iov *iov, unsigned int nr, long *mapped)
{
	/* In an exmap that never reads it costs nothing more. */
	if (unlikely(exmap_has_reading(walk->exmap)))
		return exmap_alloc_singles_reading(walk, interface, iov, nr, mapped);
	return __exmap_alloc_singles(walk, interface, iov, nr, mapped, false);
}

/**
 * exmap_alloc - carry out ALLOC
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: where the pages come from; its lock is not held
 * @iov: the entries
 * @nr: how many
 * @probe: leave out the entries whose first page is mapped
 *
 * Return: how many entries failed, each holding -EFAULT, -ENOMEM, -EPROTO or -EINTR; or,
 * with nothing done and no entry overwritten, -ENOMEM, -EPROTO where there is no
 * surface, or -EINTR where the caller is being killed.
 */
long exmap_alloc(struct exmap *exmap, struct exmap_interface *interface,
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
		res = exmap_alloc_entry(&walk, interface, READ_ONCE(iov[i].value), probe, &mapped);
		/* A call of which something is done has to say so. */
		if (res && res != -EFAULT && mapped == before)
			break;
		failed += res < 0;
		exmap_answer(&iov[i], res, mapped - before);
		if (res == -EFAULT)
			res = 0;
	}
	/* An error has left the interface already. */
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

/* Undo what exmap_reserve() has done so far. */
static void exmap_unreserve(struct exmap *exmap, struct exmap_interface *interface,
			    struct exmap_slot *slot, unsigned int nr)
{
	for (; nr; nr--, slot++) {
		exmap_reading_end(exmap, slot);
		exmap_stock_put(exmap, interface, slot->page);
	}
}

/**
 * exmap_reserve - take a private page for each that a range lacks
 * @exmap: the exmap; its gate is open
 * @interface: its lock is held, but may be released and taken again; the gate is
 *	open after this. If it returns an error the interface has been left
 * @start: first address
 * @end: first address after the range
 * @reads: the pages are going to be read: enter them into the reading index, which exists
 * @probe: take none where the first page is mapped
 * @slot: set to the pages and where they belong; has room for the whole range, and stays in
 *	its place until exmap_install()
 *
 * Return: how many; or, with none taken, as exmap_prepare().
 */
int exmap_reserve(struct exmap *exmap, struct exmap_interface *interface,
		  unsigned long start, unsigned long end, bool reads, bool probe,
		  struct exmap_slot *slot)
{
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned long address;
	struct page *page;
	int err, nr = 0;

	lockdep_assert_held(&interface->lock);
	if (probe && start < end && !exmap_missing(&walk, start, start + PAGE_SIZE))
		end = start;
again:
	err = exmap_prepare(&walk, interface, start, end);
	if (err)
		return err;
	for (address = start; address < end; address += PAGE_SIZE) {
		/* The tables are there: exmap_prepare() has seen to that, and the gate is open. */
		if (!exmap_walk_lock(&walk, address))
			continue;
		/* A flush that is due even after this one is of a page that came and went now. */
		if (unlikely(pte_same(walk.table[pte_index(address)], EXMAP_PTE_DEFERRED))) {
			err = exmap_walk_flush(&walk, interface, address);
			if (err) {
				exmap_unreserve(exmap, interface, slot, nr);
				exmap_walk_leave(&walk, interface);
				return err;
			}
			if (!exmap_walk_lock(&walk, address))
				continue;
		}
		if (!exmap_pte_free(walk.table[pte_index(address)]))
			continue;
		page = exmap_stock_pop(exmap, interface);
		if (unlikely(!page)) {
			/* Another thread freed pages after they had been counted as mapped. */
			exmap_unreserve(exmap, interface, slot, nr);
			nr = 0;
			goto again;
		}
		slot[nr] = (struct exmap_slot){ .address = address, .page = page };
		/* Under the PTE lock under which there was no page: see reading.c. */
		if (reads)
			exmap_reading_begin(exmap, &slot[nr]);
		nr++;
	}
	exmap_walk_unlock(&walk);
	atomic_add(nr, &interface->in_flight);
	return nr;
}

/**
 * exmap_install - map reserved pages
 * @exmap: the exmap
 * @interface: its lock is held and the gate open; where those pages go that are not wanted:
 *	one with an error, or whose place was taken meanwhile
 * @slot: the pages. Of those that are not mapped @page is set to NULL. One that was read, and
 *	whose address had another page meanwhile that is gone again, is @stale, and its
 *	@error is -EBUSY: what was read may be older than what that page wrote to the file
 * @nr: how many
 *
 * Return: how many it mapped, for the caller to count.
 */
unsigned int exmap_install(struct exmap *exmap, struct exmap_interface *interface,
			   struct exmap_slot *slot, unsigned int nr)
{
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned int mapped = 0;
	bool table, stale;
	pte_t *pte, old;

	lockdep_assert_held(&interface->lock);
	atomic_sub(nr, &interface->in_flight);
	for (; nr; nr--, slot++) {
		/*
		 * A table that was there when the page was reserved may have been
		 * freed by MADV_DONTNEED: as if that had come after us.
		 */
		table = !slot->error && exmap_walk_lock(&walk, slot->address);
		pte = table ? &walk.table[pte_index(slot->address)] : NULL;
		old = table ? *pte : native_make_pte(0);
		/* Under the PTE lock: nobody can map a page, and mark this, before it is mapped. */
		stale = exmap_reading_end(exmap, slot);
		if (likely(table && !stale && exmap_pte_free(old))) {
			exmap_pte_set(exmap->mm, slot->address, pte,
				      __pte(exmap->pte | page_to_phys(slot->page)));
			if (likely(exmap_has_reading(exmap)))
				exmap_reading_mark(exmap->reading, exmap->reading_shift,
						   slot->address >> PAGE_SHIFT);
			mapped++;
			continue;
		}
		/* If a flush is due there was a page. No quarantine's lock is taken here. */
		slot->stale = stale && !slot->error && !pte_present(old);
		if (slot->stale)
			slot->error = -EBUSY;
		exmap_stock_put(exmap, interface, slot->page);
		slot->page = NULL;
	}
	exmap_walk_unlock(&walk);
	exmap_stock_trim(exmap, interface);
	return mapped;
}

/**
 * exmap_discard - give reserved pages back to the system
 * @exmap: the exmap
 * @interface: for which they were reserved; its lock need not be held
 * @slot: the pages; @page is set to NULL
 * @nr: how many
 * @err: why: what exmap_enter() returned; becomes the error of those that have none
 *
 * What is left to do if exmap_install() cannot be had.
 */
void exmap_discard(struct exmap *exmap, struct exmap_interface *interface,
		   struct exmap_slot *slot, unsigned int nr, int err)
{
	atomic_sub(nr, &interface->in_flight);
	for (; nr; nr--, slot++) {
		exmap_reading_end(exmap, slot);
		if (exmap_pinned_sort(exmap, &slot->page, 1))
			exmap_pool_release(exmap, &slot->page, 1);
		slot->page = NULL;
		slot->error = slot->error ?: err;
	}
}

/**
 * exmap_pin - take a reference to each page that is mapped in a range
 * @exmap: the exmap; its gate is open, and some interface's lock held
 * @start: first address
 * @end: first address after the range
 * @slot: set to the pages; has room for the whole range
 *
 * A page that is freed while it is pinned is not handed out again.
 *
 * Return: how many.
 */
int exmap_pin(struct exmap *exmap, unsigned long start, unsigned long end,
	      struct exmap_slot *slot)
{
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned long address, next;
	struct page *page;
	int nr = 0;

	for (address = start; address < end; address = next) {
		next = address + PAGE_SIZE;
		if (!exmap_walk_lock(&walk, address)) {
			next = pmd_addr_end(address, end);
			continue;
		}
		page = exmap_mapped_page(&walk, address);
		if (!page)
			continue;
		get_page(page);
		slot[nr++] = (struct exmap_slot){ .address = address, .page = page };
	}
	exmap_walk_unlock(&walk);
	return nr;
}

/**
 * exmap_mapped - how many pages the surface holds
 * @exmap: has been set up
 *
 * Return: pages; exact where no call is at work.
 */
u64 exmap_mapped(struct exmap *exmap)
{
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
