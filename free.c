// SPDX-License-Identifier: GPL-2.0
/*
 * FREE: pages go from the surface, with the flush at the end of the call or put off.
 */
#include <linux/mm.h>

#include "compat.h"
#include "exmap.h"
#include "trace.h"
#include "walk.h"

/*
 * Unmap @nr pages of the table from @pte, @address, on into the interface's limbo,
 * which has room for them. Returns how many there were.
 */
static unsigned int exmap_unmap_run(struct exmap *exmap, struct exmap_interface *interface,
				    unsigned long address, pte_t *pte, unsigned int nr)
{
	struct page **limbo = &interface->limbo->page[interface->nr_limbo];
	unsigned int unmapped = 0;

	for (; nr; nr--, pte++, address += PAGE_SIZE) {
		pte_t old = *pte;

		if (!pte_present(old))
			continue;
		exmap_pte_clear(exmap->mm, address, pte, old);
		limbo[unmapped++] = pte_page(old);
	}
	interface->nr_limbo += unmapped;
	return unmapped;
}

/* What one FREE has unmapped and not yet flushed; its walk. */
struct exmap_unmap {
	struct exmap_walk walk;
	unsigned long start;
	unsigned long end;	/* 0: nothing */
};

/* Flush it, and make the pages in limbo free pages. */
static void exmap_free_flush(struct exmap_unmap *unmap, struct exmap_interface *interface)
{
	struct exmap *exmap = unmap->walk.exmap;

	exmap_walk_unlock(&unmap->walk);
	if (!unmap->end)
		return;
	exmap_shootdown(exmap, unmap->start, unmap->end);
	unmap->start = ULONG_MAX;
	unmap->end = 0;
	exmap_count(&interface->counts.flushes, 1);
	exmap_stock_settle(exmap, interface, &interface->limbo, interface->nr_limbo);
	interface->nr_limbo = 0;
}

/* Have room in limbo: it holds as much as is flushed at once. */
static __always_inline void exmap_free_room(struct exmap_unmap *unmap,
					    struct exmap_interface *interface)
{
	if (unlikely(interface->nr_limbo == EXMAP_BUNDLE_PAGES))
		exmap_free_flush(unmap, interface);
}

/*
 * FREE of one entry. Returns how many pages it unmapped, or -EFAULT where the entry leaves
 * the surface.
 */
static noinline int exmap_free_entry(struct exmap_unmap *unmap, struct exmap_interface *interface,
				     u64 request)
{
	struct exmap_walk *walk = &unmap->walk;
	unsigned long start, end, address, next;
	unsigned int unmapped = 0, was, room;
	int err;

	err = exmap_request(walk->exmap, request, &start, &end);
	if (err)
		return err;
	for (address = start; address < end; address = next) {
		exmap_free_room(unmap, interface);
		room = EXMAP_BUNDLE_PAGES - interface->nr_limbo;
		next = min(pmd_addr_end(address, end), address + room * PAGE_SIZE);
		if (!exmap_walk_lock(walk, address))
			continue;
		was = exmap_unmap_run(walk->exmap, interface, address,
				      &walk->table[pte_index(address)],
				      (next - address) >> PAGE_SHIFT);
		if (!was)
			continue;
		unmapped += was;
		unmap->start = min(unmap->start, address);
		unmap->end = max(unmap->end, next);
	}
	return unmapped;
}

/*
 * More pages than that the kernel does not flush one by one, but all that the TLBs hold
 * (tlb_single_page_flush_ceiling, Linux 6.1 to 7.3): then it does not matter where they are.
 */
#define EXMAP_FLUSH_SINGLE 33

/*
 * FREE of entries of one page each, as long as these are mapped and there is room in
 * limbo. Returns how many are done.
 */
static unsigned int exmap_free_singles(struct exmap_unmap *unmap, struct exmap_interface *interface,
				       struct exmap_iov *iov, unsigned int nr)
{
	struct exmap_walk *walk = &unmap->walk;
	struct exmap *exmap = walk->exmap;
	const unsigned long first = exmap->start >> PAGE_SHIFT;
	const unsigned long pages = (exmap->end >> PAGE_SHIFT) - first;
	struct page **limbo = &interface->limbo->page[interface->nr_limbo];
	const unsigned int room = EXMAP_BUNDLE_PAGES - interface->nr_limbo;
	struct exmap_iov *const end = iov + min(nr, room), *entry;
	const bool few = end - iov <= EXMAP_FLUSH_SINGLE;
	unsigned long lowest = few ? ULONG_MAX : first;
	unsigned long highest = few ? 0 : first + pages - 1;

	lockdep_assert_held(&interface->lock);
	for (entry = iov; entry < end; entry++) {
		unsigned long number = exmap_single(READ_ONCE(entry->value), first, pages);
		pte_t *pte, old;

		if (unlikely(!number || !exmap_walk_lock(walk, number << PAGE_SHIFT)))
			break;
		pte = &walk->table[number % PTRS_PER_PTE];
		old = *pte;
		if (unlikely(!(native_pte_val(old) & _PAGE_PRESENT)))
			break;
		exmap_pte_clear(exmap->mm, number << PAGE_SHIFT, pte, old);
		*limbo++ = pfn_to_page((native_pte_val(old) & PTE_PFN_MASK) >> PAGE_SHIFT);
		if (few) {
			lowest = min(lowest, number);
			highest = max(highest, number);
		}
		exmap_answer(entry, 0, 1);
	}
	if (entry == iov)
		return 0;
	unmap->start = min(unmap->start, lowest << PAGE_SHIFT);
	unmap->end = max(unmap->end, (highest + 1) << PAGE_SHIFT);
	interface->nr_limbo += entry - iov;
	return entry - iov;
}

/**
 * exmap_free - carry out FREE
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: where the pages go; its lock is not held
 * @iov: the entries
 * @nr: how many
 *
 * Flushes the TLBs once, or once per 512 pages, before any of the pages can be
 * used again.
 *
 * Return: how many entries failed, each holding -EFAULT; or, with nothing done
 * and no entry overwritten, -EPROTO where there is no surface, or -EINTR where
 * the caller is being killed.
 */
long exmap_free(struct exmap *exmap, struct exmap_interface *interface,
		struct exmap_iov *iov, unsigned int nr)
{
	struct exmap_unmap unmap = { .walk = EXMAP_WALK(exmap), .start = ULONG_MAX };
	long unmapped = 0, failed = 0;
	unsigned int i, singles;
	int err, res;

	err = exmap_enter(exmap, interface);
	if (err)
		goto out;
	for (i = 0; i < nr; i++) {
		exmap_free_room(&unmap, interface);
		singles = exmap_free_singles(&unmap, interface, &iov[i], nr - i);
		unmapped += singles;
		i += singles;
		if (i == nr)
			break;
		res = exmap_free_entry(&unmap, interface, READ_ONCE(iov[i].value));
		exmap_answer(&iov[i], min(res, 0), max(res, 0));
		unmapped += max(res, 0);
		failed += res < 0;
	}
	exmap_free_flush(&unmap, interface);
	exmap_count(&interface->counts.frees, unmapped);
	exmap_stock_trim(exmap, interface);
	exmap_leave(interface);
out:
	trace_exmap_free(exmap, interface, nr, unmapped, err ?: failed);
	return err ?: failed;
}

/* FREE whose flush is put off */

/*
 * Unmap a page, whose PTE is locked, into quarantine, which has room for it. False where
 * there is none.
 */
static __always_inline bool exmap_defer_page(struct exmap *exmap,
					     struct exmap_quarantine *quarantine,
					     unsigned long address, pte_t *pte)
{
	unsigned int nr = quarantine->nr;
	pte_t old = *pte;

	if (unlikely(!(native_pte_val(old) & _PAGE_PRESENT)))
		return false;
	exmap_pte_clear(exmap->mm, address, pte, old);
	WRITE_ONCE(*pte, EXMAP_PTE_DEFERRED);
	quarantine->bundle->page[nr] =
		pfn_to_page((native_pte_val(old) & PTE_PFN_MASK) >> PAGE_SHIFT);
	quarantine->address[nr] = address;
	/* Before the PTE is unlocked: who finds a flush due there finds it here, too. */
	WRITE_ONCE(quarantine->nr, nr + 1);
	return true;
}

/* Have room in quarantine: it holds as much as is flushed at once. */
static __always_inline void exmap_defer_room(struct exmap_walk *walk,
					     struct exmap_interface *interface)
{
	if (likely(interface->quarantine.nr < EXMAP_BUNDLE_PAGES))
		return;
	exmap_walk_unlock(walk);
	exmap_quarantine_end(walk->exmap, &interface->quarantine, interface, true);
}

/* FREE of one entry into quarantine. Returns as exmap_free_entry(). */
static noinline int exmap_defer_entry(struct exmap_walk *walk, struct exmap_interface *interface,
				      u64 request)
{
	struct exmap_quarantine *quarantine = &interface->quarantine;
	unsigned long start, end, address, next;
	unsigned int unmapped = 0;
	int err;

	err = exmap_request(walk->exmap, request, &start, &end);
	if (err)
		return err;
	for (address = start; address < end; address = next) {
		next = address + PAGE_SIZE;
		exmap_defer_room(walk, interface);
		if (exmap_walk_lock(walk, address))
			unmapped += exmap_defer_page(walk->exmap, quarantine, address,
						     &walk->table[pte_index(address)]);
		else
			next = pmd_addr_end(address, end);
	}
	return unmapped;
}

/*
 * FREE of entries of one page each into quarantine, as long as these are mapped and there
 * is room. Returns how many are done.
 */
static unsigned int exmap_defer_singles(struct exmap_walk *walk, struct exmap_interface *interface,
					struct exmap_iov *iov, unsigned int nr)
{
	struct exmap *exmap = walk->exmap;
	const unsigned long first = exmap->start >> PAGE_SHIFT;
	const unsigned long pages = (exmap->end >> PAGE_SHIFT) - first;
	struct exmap_quarantine *quarantine = &interface->quarantine;
	const unsigned int room = EXMAP_BUNDLE_PAGES - quarantine->nr;
	struct exmap_iov *const end = iov + min(nr, room), *entry;

	lockdep_assert_held(&quarantine->lock);
	for (entry = iov; entry < end; entry++) {
		unsigned long number = exmap_single(READ_ONCE(entry->value), first, pages);

		if (unlikely(!number || !exmap_walk_lock(walk, number << PAGE_SHIFT)) ||
		    unlikely(!exmap_defer_page(exmap, quarantine, number << PAGE_SHIFT,
					       &walk->table[number % PTRS_PER_PTE])))
			break;
		exmap_answer(entry, 0, 1);
	}
	return entry - iov;
}

/**
 * exmap_free_deferred - carry out FREE, and put the flush off
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: in whose quarantine the pages wait; its lock is not held
 * @iov: the entries
 * @nr: how many
 *
 * The pages are flushed when the quarantine is full, when the pool is empty, when ALLOC
 * is about to map one of the addresses again, when READ takes a page for one, by
 * exmap_flush(), and when the kernel is at work on the surface. Where there is no memory
 * for a quarantine, or it would be above RLIMIT_MEMLOCK, they are flushed at once.
 *
 * Return: as exmap_free().
 */
long exmap_free_deferred(struct exmap *exmap, struct exmap_interface *interface,
			 struct exmap_iov *iov, unsigned int nr)
{
	struct exmap_walk walk = EXMAP_WALK(exmap);
	long unmapped = 0, failed = 0;
	unsigned int i, singles;
	int err, res;

	if (exmap_quarantine_setup(exmap, interface))
		return exmap_free(exmap, interface, iov, nr);
	err = exmap_enter(exmap, interface);
	if (err)
		goto out;
	err = mutex_lock_killable(&interface->quarantine.lock);
	if (err)
		goto leave;
	if (!exmap->deferred)
		WRITE_ONCE(exmap->deferred, true);
	for (i = 0; i < nr; i++) {
		exmap_defer_room(&walk, interface);
		singles = exmap_defer_singles(&walk, interface, &iov[i], nr - i);
		unmapped += singles;
		i += singles;
		if (i == nr)
			break;
		res = exmap_defer_entry(&walk, interface, READ_ONCE(iov[i].value));
		exmap_answer(&iov[i], min(res, 0), max(res, 0));
		unmapped += max(res, 0);
		failed += res < 0;
	}
	exmap_walk_unlock(&walk);
	mutex_unlock(&interface->quarantine.lock);
	exmap_count(&interface->counts.frees, unmapped);
	if (unmapped)
		exmap_stock_pushed(interface);
	exmap_stock_trim(exmap, interface);
leave:
	exmap_leave(interface);
out:
	trace_exmap_free(exmap, interface, nr, unmapped, err ?: failed);
	return err ?: failed;
}

/**
 * exmap_flush - flush what an interface has freed with the flush put off
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: the interface; its lock is not held
 *
 * Return: 0; -EPROTO where there is no surface; -EINTR where the caller is being killed.
 */
long exmap_flush(struct exmap *exmap, struct exmap_interface *interface)
{
	int err = exmap_enter(exmap, interface);

	if (err)
		return err;
	err = exmap_quarantine_flush_killable(exmap, &interface->quarantine, interface);
	exmap_stock_trim(exmap, interface);
	exmap_leave(interface);
	return min(err, 0);
}
