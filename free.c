// SPDX-License-Identifier: GPL-2.0
/*
 * FREE: pages leave the surface. The TLB flush comes at the end of the call. With
 * EXMAP_FREE_DEFER it comes later, and the pages wait for it in the interface's quarantine.
 *
 * Both kinds of FREE share one source: each caller of a function with a parameter const bool
 * defer passes a constant, and the compiler makes one copy of the loop for each kind. So
 * neither kind pays for the other.
 */
#include <linux/mm.h>

#include "arch.h"
#include "compat.h"
#include "entry.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"
#include "trace.h"
#include "walk.h"

/**
 * struct exmap_unmap - a FREE under way
 * @walk: its place in the page tables
 * @start: where the flush of limbo has to begin
 * @end: where it has to end; 0 if limbo is empty
 * @list: the addresses of the pages in limbo
 *
 * If the flush is put off, limbo is empty, and the addresses are not used.
 */
struct exmap_unmap {
	struct exmap_walk walk;
	unsigned long start;
	unsigned long end;
	struct exmap_page_list list;
};

/* Flush the TLBs of all pages in limbo, and make them free pages. */
static void exmap_free_flush(struct exmap_unmap *unmap, struct exmap_interface *interface)
{
	struct exmap *exmap = unmap->walk.exmap;

	exmap_walk_unlock(&unmap->walk);
	if (!unmap->end)
		return;
	if (exmap_shootdown(exmap, unmap->start, unmap->end, exmap_page_list_end(&unmap->list)))
		exmap_count(&interface->counts.flushes, 1);
	unmap->start = ULONG_MAX;
	unmap->end = 0;
	exmap_stock_settle(exmap, interface, interface->limbo->page, interface->nr_limbo);
	interface->nr_limbo = 0;
}

/* How many more pages the current bundle of limbo or quarantine has room for. */
static __always_inline unsigned int exmap_free_left(const struct exmap_interface *interface,
						    const bool defer)
{
	return defer ? exmap_quarantine_room(&interface->quarantine) :
		EXMAP_BUNDLE_PAGES - interface->nr_limbo;
}

/* Where the next page goes, in limbo or quarantine. exmap_free_left() is not 0. */
static __always_inline struct page **exmap_free_place(const struct exmap_interface *interface,
						      const bool defer)
{
	return defer ? exmap_quarantine_page(&interface->quarantine, interface->quarantine.nr) :
		&interface->limbo->page[interface->nr_limbo];
}

/*
 * Make room for a page in limbo or quarantine: flush it if it is full. Returns the number of pages
 * that the current bundle has room for.
 */
static __always_inline unsigned int exmap_free_room(struct exmap_unmap *unmap,
						    struct exmap_interface *interface,
						    const bool defer)
{
	unsigned int left = exmap_free_left(interface, defer);

	if (likely(left))
		return left;
	if (defer) {
		exmap_walk_unlock(&unmap->walk);
		exmap_quarantine_end(unmap->walk.exmap, &interface->quarantine, interface, true);
	} else {
		exmap_free_flush(unmap, interface);
	}
	return exmap_free_left(interface, defer);
}

/*
 * Complete the move of a page to the quarantine, which has the page itself already: record its
 * address there, and mark its PTE, which is locked. @marks are those of its page table.
 */
static __always_inline void exmap_free_defer(struct exmap_quarantine *quarantine,
					     unsigned long address, struct exmap_marks marks,
					     pte_t *pte)
{
	unsigned int nr = quarantine->nr;

	exmap_pte_mark(marks, pte);
	quarantine->address[nr] = address;
	/*
	 * Before the PTE is unlocked. Pairs with exmap_quarantine_lock(), whose caller has seen the
	 * mark and must find the page. Other readers without the quarantine's lock may miss it.
	 */
	WRITE_ONCE(quarantine->nr, nr + 1);
}

/*
 * Fetch the struct page of an unmapped page, which exmap_stock_settle() reads after the flush. On
 * x86, prefetch() is for data that is used once and soon: the caches keep few such lines, but 512
 * of them have to stay during the flush.
 */
static __always_inline void exmap_free_prefetch(const struct page *page)
{
	__builtin_prefetch(page);
}

/*
 * Unmap a part of the locked page table: @nr entries from @pte on, which is for @address. The pages
 * go to limbo or quarantine, which has room for @nr. Returns how many pages were mapped.
 */
static __always_inline unsigned int
exmap_free_run(struct exmap_unmap *unmap, struct exmap_interface *interface, unsigned long address,
	       pte_t *pte, unsigned int nr, const bool defer)
{
	struct exmap_quarantine *quarantine = &interface->quarantine;
	struct page **page = exmap_free_place(interface, defer);
	const struct exmap_marks marks = unmap->walk.marks;
	struct mm_struct *const mm = unmap->walk.exmap->mm;
	unsigned int unmapped = 0;

	for (; nr; nr--, pte++, address += PAGE_SIZE) {
		pte_t old = *pte;

		if (!pte_present(old))
			continue;
		exmap_pte_clear(mm, address, pte, old);
		page[unmapped] = pte_page(old);
		if (defer) {
			exmap_free_defer(quarantine, address, marks, pte);
		} else {
			exmap_free_prefetch(page[unmapped]);
			exmap_page_list_add(&unmap->list, address);
		}
		unmapped++;
	}
	if (!defer)
		interface->nr_limbo += unmapped;
	return unmapped;
}

/*
 * FREE of one entry. Returns how many pages it unmapped, or -EFAULT if the entry leaves the
 * surface.
 */
static noinline int exmap_free_entry(struct exmap_unmap *unmap, struct exmap_interface *interface,
				     u64 request, bool defer)
{
	struct exmap_walk *walk = &unmap->walk;
	unsigned long start, end, address, next, room;
	unsigned int unmapped = 0, was, nr;
	pte_t *pte;
	int err;

	err = exmap_request(walk->exmap, request, &start, &end);
	if (err)
		return err;
	for (address = start; address < end; address = next) {
		room = exmap_free_room(unmap, interface, defer);
		next = pmd_addr_end(address, end);
		if (!exmap_walk_lock(walk, address))
			continue;
		next = min(next, address + room * PAGE_SIZE);
		nr = (next - address) >> PAGE_SHIFT;
		pte = &walk->table[pte_index(address)];
		was = defer ? exmap_free_run(unmap, interface, address, pte, nr, true) :
			exmap_free_run(unmap, interface, address, pte, nr, false);
		if (!was)
			continue;
		unmapped += was;
		unmap->start = min(unmap->start, address);
		unmap->end = max(unmap->end, next);
	}
	return unmapped;
}

/*
 * FREE of entries of one page each, as most are. Stops at the first entry that has another
 * length, leaves the surface or is not mapped, and when limbo or quarantine is full. Returns how
 * many entries are done.
 */
static __always_inline unsigned int
exmap_free_singles(struct exmap_unmap *unmap, struct exmap_interface *interface,
		   struct exmap_iov *iov, unsigned int nr, const bool defer)
{
	struct exmap_walk *walk = &unmap->walk;
	struct exmap *exmap = walk->exmap;
	const unsigned long first = exmap->start >> PAGE_SHIFT;
	const unsigned long pages = (exmap->end >> PAGE_SHIFT) - first;
	struct exmap_quarantine *quarantine = &interface->quarantine;
	struct page **page = exmap_free_place(interface, defer);
	const unsigned int room = exmap_free_left(interface, defer);
	struct exmap_iov *const end = iov + min(nr, room), *entry;
	const bool few = !defer && end - iov <= EXMAP_FLUSH_SINGLE;
	unsigned long lowest = few ? ULONG_MAX : first;
	unsigned long highest = few ? 0 : first + pages - 1;

	lockdep_assert_held(&interface->lock);
	if (defer)
		lockdep_assert_held(&quarantine->lock);
	for (entry = iov; entry < end; entry++) {
		/* Read once: user space may be writing to the entry. */
		unsigned long number = exmap_single(READ_ONCE(entry->value), first, pages);
		pte_t *pte, old;

		if (unlikely(!number || !exmap_walk_lock(walk, number << PAGE_SHIFT)))
			break;
		pte = &walk->table[number % PTRS_PER_PTE];
		old = *pte;
		if (unlikely(!exmap_pte_is_valid(old)))
			break;
		exmap_pte_clear(exmap->mm, number << PAGE_SHIFT, pte, old);
		*page = exmap_pte_page(old);
		if (defer) {
			exmap_free_defer(quarantine, number << PAGE_SHIFT, walk->marks, pte);
		} else {
			exmap_free_prefetch(*page);
			exmap_page_list_add(&unmap->list, number << PAGE_SHIFT);
		}
		page++;
		if (few) {
			lowest = min(lowest, number);
			highest = max(highest, number);
		}
		exmap_answer(entry, 0, 1);
	}
	if (defer || entry == iov)
		return entry - iov;
	unmap->start = min(unmap->start, lowest << PAGE_SHIFT);
	unmap->end = max(unmap->end, (highest + 1) << PAGE_SHIFT);
	interface->nr_limbo += entry - iov;
	return entry - iov;
}

/*
 * FREE of all entries. At its end, pages may be left in limbo, with their page table locked. Adds
 * to @unmapped how many pages it unmapped. Returns how many entries failed.
 */
static __always_inline long
exmap_free_entries(struct exmap_unmap *unmap, struct exmap_interface *interface,
		   struct exmap_iov *iov, unsigned int nr, long *unmapped, const bool defer)
{
	unsigned int i, singles;
	long failed = 0;
	int res;

	for (i = 0; i < nr; i++) {
		exmap_free_room(unmap, interface, defer);
		singles = exmap_free_singles(unmap, interface, &iov[i], nr - i, defer);
		*unmapped += singles;
		i += singles;
		if (i == nr)
			break;
		/* Read once: user space may be writing to the entry. */
		res = exmap_free_entry(unmap, interface, READ_ONCE(iov[i].value), defer);
		exmap_answer(&iov[i], min(res, 0), max(res, 0));
		*unmapped += max(res, 0);
		failed += res < 0;
	}
	return failed;
}

/*
 * FREE whose flush comes at its end. The interface's lock is held. Returns how many entries
 * failed.
 */
static long exmap_free_now(struct exmap *exmap, struct exmap_interface *interface,
			   struct exmap_iov *iov, unsigned int nr, long *unmapped)
{
	struct exmap_page_room room;
	struct exmap_unmap unmap = {
		.walk = EXMAP_WALK(exmap), .start = ULONG_MAX, .list = exmap_page_list(&room)
	};
	long failed = exmap_free_entries(&unmap, interface, iov, nr, unmapped, false);

	exmap_free_flush(&unmap, interface);
	return failed;
}

/*
 * FREE whose flush is put off. The interface's lock is held. Returns how many entries failed; or
 * -EINTR, with nothing done, if the caller is being killed.
 */
static long exmap_free_later(struct exmap *exmap, struct exmap_interface *interface,
				      struct exmap_iov *iov, unsigned int nr, long *unmapped)
{
	struct exmap_unmap unmap = { .walk = EXMAP_WALK(exmap) };
	long failed;

	if (mutex_lock_killable(&interface->quarantine.lock))
		return -EINTR;
	/* Pairs with exmap_call_quarantine() and exmap_defer_page(). All store the same value. */
	if (!data_race(exmap->deferred))
		WRITE_ONCE(exmap->deferred, true);
	failed = exmap_free_entries(&unmap, interface, iov, nr, unmapped, true);
	exmap_walk_unlock(&unmap.walk);
	mutex_unlock(&interface->quarantine.lock);
	if (*unmapped)
		exmap_stock_pushed(interface);
	return failed;
}

/* exmap_free(), for any entries. */
static noinline long exmap_free_call(struct exmap *exmap, struct exmap_interface *interface,
				     struct exmap_iov *iov, unsigned int nr, bool defer)
{
	long ret, unmapped = 0;

	if (defer && exmap_quarantine_setup(exmap, interface))
		defer = false;
	ret = exmap_enter(exmap, interface);
	if (ret)
		goto out;
	ret = defer ? exmap_free_later(exmap, interface, iov, nr, &unmapped) :
		exmap_free_now(exmap, interface, iov, nr, &unmapped);
	exmap_count(&interface->counts.frees, unmapped);
	exmap_stock_trim(exmap, interface);
	exmap_leave(interface);
out:
	trace_exmap_free(exmap, interface, nr, unmapped, ret);
	return ret;
}

/* FREE of one page by the loop for any entries, if the short way does not apply. */
static noinline int exmap_free_page_slow(struct exmap *exmap, struct exmap_interface *interface,
					 unsigned long page, bool defer)
{
	struct exmap_iov iov = exmap_one_page(page);

	return exmap_one_result(&iov, exmap_free_call(exmap, interface, &iov, 1, defer));
}

/**
 * exmap_free_page - FREE of one page
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: the page goes to its stock; its lock is not held
 * @page: which page of the surface
 *
 * Flushes the TLBs before the page can be used again.
 *
 * Return: how many pages it unmapped, 1 or 0; -EFAULT if the page is beyond the surface; -EPROTO
 * if there is no surface; or -EINTR if the caller is being killed.
 */
int exmap_free_page(struct exmap *exmap, struct exmap_interface *interface, unsigned long page)
{
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned long address;
	pte_t *pte, old;

	/* If this fails, the slow way fails as well, and traces the error. */
	if (unlikely(exmap_enter(exmap, interface)))
		goto slow;
	if (unlikely(!exmap_walk_page(&walk, page, &address)))
		goto leave;
	pte = &walk.table[pte_index(address)];
	old = *pte;
	if (unlikely(!exmap_pte_is_valid(old)))
		goto unlock;
	exmap_pte_clear(exmap->mm, address, pte, old);
	exmap_walk_drop(&walk);
	if (exmap_shootdown(exmap, address, address + PAGE_SIZE, exmap_pages_at(&address, 1)))
		exmap_count(&interface->counts.flushes, 1);
	exmap_count(&interface->counts.frees, 1);
	exmap_stock_put(exmap, interface, exmap_pte_page(old));
	exmap_stock_trim(exmap, interface);
	exmap_leave(interface);
	trace_exmap_free(exmap, interface, 1, 1, 0);
	return 1;

unlock:
	exmap_walk_drop(&walk);
leave:
	exmap_leave(interface);
slow:
	return exmap_free_page_slow(exmap, interface, page, false);
}

/**
 * exmap_defer_page - FREE of one page, with its flush put off
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: the page goes to its quarantine; its lock is not held
 * @page: which page of the surface
 *
 * Return: as exmap_free_page().
 */
int exmap_defer_page(struct exmap *exmap, struct exmap_interface *interface, unsigned long page)
{
	struct exmap_quarantine *quarantine = &interface->quarantine;
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned long address;
	pte_t *pte, old;

	if (unlikely(exmap_quarantine_setup(exmap, interface)))
		return exmap_free_page(exmap, interface, page);
	if (unlikely(exmap_enter(exmap, interface)))
		goto slow;
	if (unlikely(!mutex_trylock(&quarantine->lock)))
		goto leave;
	/* @deferred pairs with exmap_free_later(), where the slow way goes if this misses it. */
	if (unlikely(quarantine->nr == quarantine->size || !READ_ONCE(exmap->deferred)))
		goto unlock_quarantine;
	if (unlikely(!exmap_walk_page(&walk, page, &address)))
		goto unlock_quarantine;
	pte = &walk.table[pte_index(address)];
	old = *pte;
	if (unlikely(!exmap_pte_is_valid(old)))
		goto unlock;
	exmap_pte_clear(exmap->mm, address, pte, old);
	*exmap_quarantine_page(quarantine, quarantine->nr) = exmap_pte_page(old);
	exmap_free_defer(quarantine, address, walk.marks, pte);
	exmap_walk_drop(&walk);
	mutex_unlock(&quarantine->lock);
	exmap_count(&interface->counts.frees, 1);
	exmap_stock_pushed(interface);
	exmap_leave(interface);
	trace_exmap_free(exmap, interface, 1, 1, 0);
	return 1;

unlock:
	exmap_walk_drop(&walk);
unlock_quarantine:
	mutex_unlock(&quarantine->lock);
leave:
	exmap_leave(interface);
slow:
	return exmap_free_page_slow(exmap, interface, page, true);
}

/**
 * exmap_free - carry out FREE
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: where the pages go; its lock is not held
 * @iov: the entries
 * @nr: number of entries
 * @defer: put the flush off
 *
 * Without @defer, this flushes the TLBs once per 512 pages, and at its end. No page can be used
 * again before its flush.
 *
 * With @defer, the pages wait in the interface's quarantine. They are flushed when the quarantine
 * is full, when the pool is empty, when READ takes a page for one of the addresses or a touch maps
 * one, by exmap_flush(), and when the kernel is at work on the surface. ALLOC maps the same page
 * again at its address, and needs no flush for that. If there is no memory for a quarantine, or
 * RLIMIT_MEMLOCK has no room for it, @defer is ignored.
 *
 * Return: how many entries failed, each holding -EFAULT; or, with nothing done
 * and no entry overwritten, -EPROTO if there is no surface, or -EINTR if
 * the caller is being killed.
 */
long exmap_free(struct exmap *exmap, struct exmap_interface *interface,
		struct exmap_iov *iov, unsigned int nr, bool defer)
{
	u64 value;
	int ret;

	if (nr != 1)
		return exmap_free_call(exmap, interface, iov, nr, defer);
	/* Read once: user space may be writing to the entry. */
	value = READ_ONCE(iov->value);
	if (!exmap_is_one_page(value))
		return exmap_free_call(exmap, interface, iov, nr, defer);
	if (defer)
		ret = exmap_defer_page(exmap, interface, exmap_only_page(value));
	else
		ret = exmap_free_page(exmap, interface, exmap_only_page(value));
	return exmap_answer_one(iov, ret);
}

/**
 * exmap_flush - make the pages in an interface's quarantine free pages
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: the interface; its lock is not held
 *
 * Return: 0; -EPROTO if there is no surface; -EINTR if the caller is being killed.
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
