// SPDX-License-Identifier: GPL-2.0
/*
 * The surface: page tables, TLBs, and what happens when the kernel takes the
 * surface away.
 *
 * A call works inside the gate: it holds its interface's lock, and the gate is
 * open. There the page tables of the surface stay where they are, and nobody but
 * other calls has a page come or go. Whatever the kernel may do to a mapping it
 * announces to our MMU notifier, which closes the gate first.
 */
#include <linux/file.h>
#include <linux/io.h>
#include <linux/memcontrol.h>
#include <linux/nospec.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include <asm/tlbflush.h>

#include "compat.h"
#include "exmap.h"
#include "ksyms.h"
#include "trace.h"

static const struct vm_operations_struct exmap_vma_ops;
static const struct mmu_notifier_ops exmap_notifier_ops;

static int exmap_quarantine_recall(struct exmap *exmap, struct exmap_interface *interface,
				   unsigned long address);

/* Where a call is in the page tables; what it looked up last is still locked. */
struct exmap_walk {
	struct exmap *exmap;
	unsigned long region;	/* address >> PMD_SHIFT of @table, or NO_REGION */
	pte_t *table;
	spinlock_t *lock;	/* the PTE lock of @table, held; NULL: none is */
};

/*
 * What stands in place of a PTE whose page is in quarantine: ALLOC must not map another
 * one there before the flush. For the kernel it is none, and a touch a page fault:
 * pte_none() has to overlook this bit, which some Xeon Phi set by mistake
 * (_PAGE_KNL_ERRATUM_MASK of all kernels; those processors exmap refuses).
 */
#define EXMAP_PTE_DEFERRED native_make_pte(_PAGE_ACCESSED)

/* No table is locked. */
#define NO_REGION ULONG_MAX
#define EXMAP_WALK(of) { .exmap = (of), .region = NO_REGION }

/* Stands in the directory for every leaf that has not been made: it saves a check for NULL. */
static const struct exmap_leaf exmap_no_leaf;

/* The table with the pmd_t for an address on the surface, or NULL if there is none yet. */
static pmd_t *exmap_pmds(const struct exmap *exmap, unsigned long address)
{
	const struct exmap_leaf *leaf = READ_ONCE(exmap->directory[address >> P4D_SHIFT]);

	return READ_ONCE(leaf->pmds[pud_index(address)]);
}

/* The page table that a pmd_t names. The surface has no huge pages. */
static pte_t *exmap_table(pmd_t pmd)
{
	return __va(native_pmd_val(pmd) & PTE_PFN_MASK);
}

static bool exmap_has_table(const struct exmap *exmap, unsigned long address)
{
	pmd_t *pmds = exmap_pmds(exmap, address);

	return pmds && !pmd_none(READ_ONCE(pmds[pmd_index(address)]));
}

static void exmap_walk_unlock(struct exmap_walk *walk)
{
	if (!walk->lock)
		return;
	__acquire(walk->lock);	/* sparse cannot follow a lock across functions */
	spin_unlock(walk->lock);
	walk->lock = NULL;
	walk->region = NO_REGION;
}

/*
 * Look a page table up and lock it. False where there is none. It stays as long as the
 * gate is open.
 */
static bool exmap_walk_table(struct exmap_walk *walk, unsigned long address)
{
	pmd_t *pmds = exmap_pmds(walk->exmap, address);
	pmd_t value;

	if (!pmds)
		return false;
	value = READ_ONCE(pmds[pmd_index(address)]);
	if (!native_pmd_val(value))
		return false;
	walk->table = exmap_table(value);
	walk->lock = ptep_lockptr(walk->exmap->mm, walk->table);
	walk->region = address >> PMD_SHIFT;
	spin_lock(walk->lock);
	__release(walk->lock);
	return true;
}

/*
 * The same with the gate closed, where madvise() elsewhere may be freeing an empty table,
 * by RCU: then it is not in its place any more once it can be locked.
 */
static bool exmap_walk_table_closed(struct exmap_walk *walk, unsigned long address)
{
	bool found;
	pmd_t *pmd;

	rcu_read_lock();
	while ((found = exmap_walk_table(walk, address))) {
		pmd = exmap_pmds(walk->exmap, address) + pmd_index(address);
		if (walk->table == exmap_table(READ_ONCE(*pmd)))
			break;
		exmap_walk_unlock(walk);
	}
	rcu_read_unlock();
	return found;
}

/* Go on to another page table. False where there is none. */
static noinline bool exmap_walk_move(struct exmap_walk *walk, unsigned long address)
{
	if (walk->lock) {
		exmap_walk_unlock(walk);
		/* It is a call: random pages are each in another table. */
		if (need_resched())
			cond_resched();
	}
	return exmap_walk_table(walk, address);
}

/* Have the page table for an address locked. False where there is none. */
static __always_inline bool exmap_walk_lock(struct exmap_walk *walk, unsigned long address)
{
	return likely(walk->region == address >> PMD_SHIFT) || exmap_walk_move(walk, address);
}

/**
 * exmap_enter_late - enter once the gate is open
 * @exmap: as for exmap_enter()
 * @interface: its lock is held
 * @gate: what the gate was; not open
 *
 * Return: as exmap_enter().
 */
int exmap_enter_late(struct exmap *exmap, struct exmap_interface *interface, enum exmap_gate gate)
{
	while (gate != EXMAP_GATE_OPEN) {
		exmap_leave(interface);
		if (gate != EXMAP_GATE_CLOSED)
			return -EPROTO;
		if (wait_event_killable(exmap->gate_wait,
					READ_ONCE(exmap->gate) != EXMAP_GATE_CLOSED) ||
		    mutex_lock_killable(&interface->lock))
			return -EINTR;
		/* As in exmap_enter(). */
		gate = smp_load_acquire(&exmap->gate);
	}
	return 0;
}

/* Leave the interface, with no table locked. */
static void exmap_walk_leave(struct exmap_walk *walk, struct exmap_interface *interface)
{
	exmap_walk_unlock(walk);
	exmap_stock_trim(walk->exmap, interface);
	exmap_leave(interface);
}

/*
 * The surface's VMA. What munmap() has taken out of the tree is not found, and it
 * cannot take out what is found as long as mmap_lock is held.
 */
static struct vm_area_struct *exmap_vma(struct exmap *exmap)
{
	struct vm_area_struct *vma;

	mmap_assert_locked(exmap->mm);
	vma = find_vma(exmap->mm, exmap->start);
	if (vma && vma->vm_start == exmap->start && vma->vm_ops == &exmap_vma_ops &&
	    vma->vm_private_data == exmap)
		return vma;
	return NULL;
}

/*
 * Whether the kernel has been at work on the page tables since exmap->openings was
 * read, with the gate open or mmap_lock held. Where it frees a table (MADV_DONTNEED does,
 * since 6.14) that apply_to_page_range() is looking at, that says -ENOMEM, too.
 */
static bool exmap_was_closed(const struct exmap *exmap, unsigned int openings)
{
	/* It is counted before it is open again. */
	return smp_load_acquire(&exmap->gate) == EXMAP_GATE_CLOSED ||
		READ_ONCE(exmap->openings) != openings;
}

/*
 * The leaf for an address, which is made if it is missing; NULL if there is no memory for it.
 * mmap_lock is held for reading, so several threads may be making the same one.
 */
static struct exmap_leaf *exmap_leaf_get(struct exmap *exmap, unsigned long address)
{
	struct exmap_leaf **place = &exmap->directory[address >> P4D_SHIFT];
	struct exmap_leaf *const none = (struct exmap_leaf *)&exmap_no_leaf;
	struct exmap_leaf *leaf = READ_ONCE(*place), *made;

	BUILD_BUG_ON(sizeof(*leaf) != PAGE_SIZE);
	if (likely(leaf != none))
		return leaf;
	made = (struct exmap_leaf *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (!made)
		return NULL;
	leaf = cmpxchg(place, none, made);
	if (leaf == none) {
		exmap_rss_add(exmap->mm, 1);
		return made;
	}
	free_page((unsigned long)made);
	return leaf;
}

/* Have the page table for one address. mmap_lock is held, and the VMA there. */
static int exmap_populate_one(struct exmap *exmap, unsigned long address)
{
	struct exmap_leaf *leaf;
	pmd_t *pmd;
	int err;

	mmap_assert_locked(exmap->mm);
	leaf = exmap_leaf_get(exmap, address);
	if (!leaf)
		return -ENOMEM;
	/* Without a function it does just this: it allocates every level. */
	err = apply_to_page_range(exmap->mm, address & PAGE_MASK, PAGE_SIZE, NULL, NULL);
	if (err)
		return err;
	pmd = pmd_offset(pud_offset(p4d_offset(pgd_offset(exmap->mm, address), address), address),
			 address & PUD_MASK);
	WRITE_ONCE(leaf->pmds[pud_index(address)], pmd);
	return 0;
}

/*
 * Have all page tables for a range. Takes mmap_lock: no other lock may be held.
 * Returns 0, -ENOMEM, -EPROTO where the surface is gone, or -EINTR.
 */
static int exmap_populate(struct exmap *exmap, unsigned long address, unsigned long end)
{
	int err;

	if (mmap_read_lock_killable(exmap->mm))
		return -EINTR;
	err = exmap_vma(exmap) ? 0 : -EPROTO;
	for (; !err && address < end; address = pmd_addr_end(address, end))
		if (!exmap_has_table(exmap, address))
			err = exmap_populate_one(exmap, address);
	mmap_read_unlock(exmap->mm);
	return fatal_signal_pending(current) ? -EINTR : err;
}

/*
 * Whether there is neither a page nor a flush due. What else the kernel can leave there stands
 * for no memory, and gives way to a page, as with any page fault: markers of
 * userfaultfd (UFFD_FEATURE_WP_ASYNC), which had any VMA from 6.7 on, and until 6.12.105.
 */
static __always_inline bool exmap_pte_free(pte_t pte)
{
	return likely(!native_pte_val(pte)) ||
		(!pte_present(pte) && !pte_same(pte, EXMAP_PTE_DEFERRED));
}

/*
 * Make sure that no flush is due at an address. @interface: its lock is held; takes the pages that
 * had to be flushed. Another thread may have one due again the moment it is done: then its page
 * was mapped during this call. Returns 0, or -EINTR if the caller is being killed.
 */
static noinline int exmap_walk_flush(struct exmap_walk *walk, struct exmap_interface *interface,
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

/*
 * Map pages of the stock wherever none is, @nr pages of the table from @pte, @address, on.
 * Adds to @mapped how many. Returns how many pages are done: there was none for the next.
 */
static unsigned int exmap_map_run(struct exmap *exmap, struct exmap_interface *interface,
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

/**
 * exmap_request - what an entry asks for
 * @exmap: the exmap
 * @value: the entry, read just once: another thread may be writing to it
 * @start: set to the address of the first page
 * @end: set to the first address after the last
 *
 * Return: 0, or -EFAULT where the entry leaves the surface.
 */
int exmap_request(const struct exmap *exmap, u64 value, unsigned long *start, unsigned long *end)
{
	struct exmap_iov request = { .value = value };
	unsigned long pages = (exmap->end - exmap->start) >> PAGE_SHIFT;
	unsigned long page = request.page, len = request.len;

	*start = 0;
	*end = 0;
	if (page > pages || len > pages - page)
		return -EFAULT;
	page = array_index_nospec(page, pages + 1);
	len = array_index_nospec(len, pages - page + 1);
	*start = exmap->start + (page << PAGE_SHIFT);
	*end = *start + (len << PAGE_SHIFT);
	return 0;
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
 * The only page of an entry, counted as addresses are; or 0 where the entry has more
 * pages, or none, or leaves the surface.
 */
static __always_inline unsigned long exmap_single(u64 request, unsigned long first,
						  unsigned long pages)
{
	/* Of another length this is beyond any surface. */
	unsigned long page = request - (1UL << (64 - EXMAP_PAGE_LEN_BITS));

	return page < pages ? first + array_index_nospec(page, pages) : 0;
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

/*
 * Nobody can reach what was unmapped between @start and @end after this; a page that
 * was there may be put to another use.
 *
 * Other MMUs that follow our page tables (KVM, IOMMUs with shared addresses, GPUs) hold no
 * reference to a page, so they have to be told like the generic code tells them. That they
 * hear of it only now is early enough: until now the pages were nobody else's, and whoever
 * took one from its PTE before that was cleared, and has not installed it yet, has to look
 * again. Our own notifier knows these ranges by their owner.
 *
 * One that is registered between the two calls would be told just the end, and KVM then
 * waits for beginnings and ends to match. Registration keeps those out that hold mmap_lock, or
 * the lock of some file mapping or anonymous memory of the process
 * (mm_take_all_locks()): ours is that of the surface's file. No one who holds the lock of
 * another mapping waits for an interface, which lockdep, knowing only its kind, could not
 * tell.
 *
 * The kernel's inline wrappers would tell lockdep that memory may be reclaimed
 * under an interface's lock. That is not so: a callback is not allowed to allocate.
 */
static void exmap_shootdown(struct exmap *exmap, unsigned long start, unsigned long end)
{
	struct mmu_notifier_range range = {
		.mm = exmap->mm,
		.start = start,
		.end = end,
		.flags = MMU_NOTIFIER_RANGE_BLOCKABLE,
		.event = MMU_NOTIFY_CLEAR,
		.owner = (void *)&exmap_notifier_ops,
	};

	down_read_non_owner(&exmap->mapping->i_mmap_rwsem);
	static_call(exmap_mmu_notifier_start)(&range);
	static_call(exmap_flush_tlb_mm_range)(exmap->mm, start, end, PAGE_SHIFT, false);
	exmap_invalidate_end(&range);
	up_read_non_owner(&exmap->mapping->i_mmap_rwsem);
}

/*
 * The same without waiting for any lock. False where that did not work out: nothing is
 * flushed then. Notifiers that cannot do without waiting say so (-EAGAIN); the kernel has
 * then told those that could of the end.
 */
static bool exmap_shootdown_try(struct exmap *exmap, unsigned long start, unsigned long end)
{
	struct mmu_notifier_range range = {
		.mm = exmap->mm,
		.start = start,
		.end = end,
		.event = MMU_NOTIFY_CLEAR,
		.owner = (void *)&exmap_notifier_ops,
	};
	bool told;

	if (!down_read_trylock(&exmap->mapping->i_mmap_rwsem))
		return false;
	told = !static_call(exmap_mmu_notifier_start)(&range);
	if (told) {
		static_call(exmap_flush_tlb_mm_range)(exmap->mm, start, end, PAGE_SHIFT, false);
		exmap_invalidate_end(&range);
	}
	up_read(&exmap->mapping->i_mmap_rwsem);
	return told;
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

/* As exmap_walk_lock(), where nothing may sleep. */
static bool exmap_walk_lock_atomic(struct exmap_walk *walk, unsigned long address)
{
	if (walk->region == address >> PMD_SHIFT)
		return true;
	exmap_walk_unlock(walk);
	return exmap_walk_table(walk, address);
}

/*
 * Flush what is in quarantine, and make it free pages of @interface. Both locks are
 * held; the gate is open, or is being closed. Unless it may @wait nothing sleeps in here,
 * and it may come to nothing.
 */
static void exmap_quarantine_end(struct exmap *exmap, struct exmap_quarantine *quarantine,
				 struct exmap_interface *interface, bool wait)
{
	const unsigned long *const end = quarantine->address + quarantine->nr, *address;
	unsigned long lowest = ULONG_MAX, highest = 0;
	struct exmap_walk walk = EXMAP_WALK(exmap);
	pte_t *pte;

	lockdep_assert_held(&quarantine->lock);
	if (!quarantine->nr)
		return;
	for (address = quarantine->address; address < end; address++) {
		lowest = min(lowest, *address);
		highest = max(highest, *address);
	}
	if (wait)
		exmap_shootdown(exmap, lowest, highest + PAGE_SIZE);
	else if (!exmap_shootdown_try(exmap, lowest, highest + PAGE_SIZE))
		return;
	exmap_count(&interface->counts.flushes, 1);
	/* Others may map there now. */
	for (address = quarantine->address; address < end; address++) {
		if (WARN_ON_ONCE(!exmap_walk_lock_atomic(&walk, *address)))
			continue;
		pte = &walk.table[pte_index(*address)];
		if (!WARN_ON_ONCE(!pte_same(*pte, EXMAP_PTE_DEFERRED)))
			WRITE_ONCE(*pte, native_make_pte(0));
	}
	exmap_walk_unlock(&walk);
	exmap_stock_settle(exmap, interface, &quarantine->bundle, quarantine->nr);
	WRITE_ONCE(quarantine->nr, 0);
}

/**
 * exmap_quarantine_flush - make the pages of a quarantine free pages
 * @exmap: the exmap
 * @quarantine: any interface's
 * @interface: where the pages go; its lock is held
 *
 * Return: whether there were any.
 */
bool exmap_quarantine_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
			    struct exmap_interface *interface)
{
	bool any;

	lockdep_assert_held(&interface->lock);
	if (!READ_ONCE(quarantine->nr))
		return false;
	mutex_lock(&quarantine->lock);
	any = quarantine->nr;
	exmap_quarantine_end(exmap, quarantine, interface, true);
	mutex_unlock(&quarantine->lock);
	return any;
}

/**
 * exmap_quarantine_flush_killable - the same for a call that can fail
 * @exmap: the exmap
 * @quarantine: any interface's
 * @interface: where the pages go; its lock is held
 *
 * Return: 1 if there were any, 0 if not; -EINTR if the caller is being killed while it waits.
 */
int exmap_quarantine_flush_killable(struct exmap *exmap, struct exmap_quarantine *quarantine,
				    struct exmap_interface *interface)
{
	int any;

	lockdep_assert_held(&interface->lock);
	if (!READ_ONCE(quarantine->nr))
		return 0;
	if (mutex_lock_killable(&quarantine->lock))
		return -EINTR;
	any = quarantine->nr > 0;
	exmap_quarantine_end(exmap, quarantine, interface, true);
	mutex_unlock(&quarantine->lock);
	return any;
}

/**
 * exmap_quarantine_try_flush - the same without waiting for anybody
 * @exmap: as for exmap_quarantine_flush()
 * @quarantine: as there
 * @interface: as there
 *
 * Where that does not work out the quarantine stays as it is. May be called with preemption
 * off, except on PREEMPT_RT.
 */
void exmap_quarantine_try_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
				struct exmap_interface *interface)
{
	lockdep_assert_held(&interface->lock);
	if (!READ_ONCE(quarantine->nr) || !mutex_trylock(&quarantine->lock))
		return;
	exmap_quarantine_end(exmap, quarantine, interface, false);
	mutex_unlock(&quarantine->lock);
}

/* Whether what was mapped at an address is in this quarantine. */
static bool exmap_quarantine_holds(const struct exmap_quarantine *quarantine, unsigned long address)
{
	unsigned int i;

	for (i = 0; i < quarantine->nr; i++)
		if (quarantine->address[i] == address)
			return true;
	return false;
}

/*
 * Flush what was mapped at an address, and what is in quarantine with it. Returns 0, or -EINTR if
 * the caller is being killed.
 */
static int exmap_quarantine_recall(struct exmap *exmap, struct exmap_interface *interface,
				   unsigned long address)
{
	struct exmap_quarantine *quarantine;
	bool found = false;
	unsigned int i;

	address &= PAGE_MASK;
	for (i = 0; !found && i < exmap_nr_interfaces(exmap); i++) {
		quarantine = &exmap->interfaces[i].quarantine;
		if (!READ_ONCE(quarantine->nr))
			continue;
		if (mutex_lock_killable(&quarantine->lock))
			return -EINTR;
		found = exmap_quarantine_holds(quarantine, address);
		if (found)
			exmap_quarantine_end(exmap, quarantine, interface, true);
		mutex_unlock(&quarantine->lock);
	}
	return 0;
}

/**
 * exmap_quarantined - how many pages wait for their flush
 * @exmap: has been set up
 *
 * Return: pages; exact where no call is at work.
 */
unsigned long exmap_quarantined(const struct exmap *exmap)
{
	unsigned long pages = 0;
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		pages += READ_ONCE(exmap->interfaces[i].quarantine.nr);
	return pages;
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

/* Page faults: a page that is not there */

/*
 * The gate is closed. The fault comes with mmap_lock held, which whoever closed
 * it may be waiting for: let go of it if we may, or else just try again. Who must not
 * wait (a guest's CPU: KVM has others wait for it) is told so, and keeps mmap_lock.
 */
static vm_fault_t exmap_fault_wait(struct exmap *exmap, struct vm_fault *vmf)
{
	struct file *file;

	if (!fault_flag_allow_retry_first(vmf->flags))
		return VM_FAULT_NOPAGE;
	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;
	/* Without mmap_lock the VMA may go, but not what its file holds. */
	file = get_file(vmf->vma->vm_file);
	mmap_read_unlock(exmap->mm);
	/* A fatal signal is the caller's to notice. */
	(void)wait_event_killable(exmap->gate_wait, READ_ONCE(exmap->gate) != EXMAP_GATE_CLOSED);
	fput(file);
	return VM_FAULT_RETRY;
}

/*
 * Get the interface that serves page faults, with a free page in its stock unless there is none.
 * Returns 0 or -ENOMEM, with its lock held; or -EINTR, with nothing held. Whoever took the last
 * page may have mapped it where the touch was: so go on after -ENOMEM.
 */
static int exmap_fault_enter(struct exmap *exmap, struct exmap_interface *interface)
{
	int err;

	if (mutex_lock_killable(&interface->lock))
		return -EINTR;
	err = exmap_stock_fill(exmap, interface, 1);
	if (err == -ENOMEM && mutex_lock_killable(&interface->lock))
		return -EINTR;
	return err;
}

/*
 * Map the page that was touched. VM_FAULT_NOPAGE, which has the access repeated,
 * only where that can succeed: an access by the kernel cannot be killed.
 */
static vm_fault_t exmap_fault_alloc(struct exmap *exmap, struct vm_fault *vmf)
{
	struct exmap_interface *interface = &exmap->interfaces[exmap->max_interfaces];
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned int openings = READ_ONCE(exmap->openings);
	vm_fault_t ret = VM_FAULT_NOPAGE;
	long mapped = 0;
	enum exmap_gate gate;
	pte_t *pte;
	int err;

	if (exmap_populate_one(exmap, vmf->address))
		return exmap_was_closed(exmap, openings) ? exmap_fault_wait(exmap, vmf) :
			VM_FAULT_SIGBUS;
	err = exmap_fault_enter(exmap, interface);
	if (err == -EINTR)
		return VM_FAULT_SIGBUS;
	/* As in exmap_enter(). */
	gate = smp_load_acquire(&exmap->gate);
	if (gate == EXMAP_GATE_OPEN && exmap_walk_flush(&walk, interface, vmf->address)) {
		err = -EINTR;
	} else if (gate == EXMAP_GATE_OPEN && exmap_walk_lock(&walk, vmf->address)) {
		pte = &walk.table[pte_index(vmf->address)];
		exmap_map_run(exmap, interface, vmf->address, pte, 1, &mapped);
		/* Whoever took the last page may have mapped it right here. */
		if (mapped || !exmap_pte_free(*pte))
			err = 0;
	}
	if (err)
		ret = VM_FAULT_SIGBUS;
	if (gate == EXMAP_GATE_DEAD) {
		err = -EPROTO;
		ret = VM_FAULT_SIGSEGV;
	}
	exmap_count(&interface->counts.allocs, mapped);
	exmap_walk_leave(&walk, interface);
	if (mapped || err)
		trace_exmap_alloc(exmap, interface, 1, mapped, err);
	if (!(ret & VM_FAULT_ERROR) && gate == EXMAP_GATE_CLOSED)
		return exmap_fault_wait(exmap, vmf);
	return ret;
}

/* By itself: it calls the last reference's callback, which test-all has to know of. */
static noinline void exmap_memcg_put(struct mem_cgroup *memcg)
{
	mem_cgroup_put(memcg);
}

static vm_fault_t exmap_vma_fault(struct vm_fault *vmf)
{
	struct exmap *exmap = vmf->vma->vm_private_data;
	struct mem_cgroup *memcg, *before;
	vm_fault_t ret;

	/* A copy in a child holds nothing and never will. */
	if (vmf->vma->vm_mm != exmap->mm || !smp_load_acquire(&exmap->interfaces) ||
	    !(exmap->flags & EXMAP_PAGEFAULT_ALLOC))
		return VM_FAULT_SIGSEGV;
	/* Who touches it may be a debugger, or a thread of the kernel, whose limit is none. */
	memcg = get_mem_cgroup_from_mm(exmap->mm);
	before = set_active_memcg(memcg);
	ret = exmap_fault_alloc(exmap, vmf);
	set_active_memcg(before);
	exmap_memcg_put(memcg);
	return ret;
}

/* The VMA */

/**
 * exmap_vma_protect - set the flags of a new mapping
 * @vma: the surface or an interface; mmap_lock is held for writing
 *
 * A child must not inherit a page. User space can clear VM_DONTCOPY with MADV_DOFORK, which newer
 * kernels refuse, and VM_WIPEONFORK with MADV_KEEPONFORK. Then fork copies the VMA, but
 * vma_needs_copy() finds no reason to copy its page tables, because it maps a file and is shared.
 * So neither VM_MIXEDMAP nor VM_PFNMAP may ever be set: each is such a reason. Nothing depends
 * on VM_MIXEDMAP: VM_DONTEXPAND is part of VM_SPECIAL too, so mm does not lock, merge, age or
 * collapse the pages, and EXMAP_VMA_POLICY keeps NUMA balancing away.
 */
void exmap_vma_protect(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTCOPY | VM_DONTDUMP | VM_WIPEONFORK);
}

/**
 * exmap_vma_open - the kernel has copied the VMA of the surface or of an interface
 * @vma: the copy
 *
 * In a child, this is the second line of defense: vma_needs_copy() also says yes if a user with
 * CAP_SYS_PTRACE follows forks with userfaultfd. It only helps on kernels that call this before
 * they copy page tables: 6.9 and later, and older ones that have that change.
 */
void exmap_vma_open(struct vm_area_struct *vma)
{
	struct exmap *exmap = vma->vm_private_data;

	if (vma->vm_mm != exmap->mm)
		vm_flags_set(vma, VM_WIPEONFORK);
}

static int exmap_vma_may_split(struct vm_area_struct *vma, unsigned long address)
{
	return -EINVAL;
}

static int exmap_vma_mprotect(struct vm_area_struct *vma, unsigned long start,
			      unsigned long end, unsigned long flags)
{
	return -EACCES;
}

static int exmap_vma_mremap(struct vm_area_struct *vma)
{
	return -EINVAL;
}

static const struct vm_operations_struct exmap_vma_ops = {
	.open = exmap_vma_open,
	.may_split = exmap_vma_may_split,
	.mprotect = exmap_vma_mprotect,
	.mremap = exmap_vma_mremap,
	.fault = exmap_vma_fault,
	EXMAP_VMA_POLICY
};

/* How many leaves the directory has, made or not, if it reaches from @start to @end. */
static unsigned long exmap_leaves(unsigned long start, unsigned long end)
{
	return ((end - 1) >> P4D_SHIFT) - (start >> P4D_SHIFT) + 1;
}

/* What a surface takes of kernel memory while it is unused, in pages: see exmap_surface_map(). */
static unsigned long exmap_surface_pages(unsigned long leaves)
{
	return DIV_ROUND_UP(leaves * sizeof(struct exmap_leaf *), PAGE_SIZE) + 1;
}

/**
 * exmap_surface_map - make a mapping the surface
 * @exmap: mmap_lock is held for writing; it has had no surface yet
 * @vma: the mapping, shared, of exmap->mm
 *
 * Return: 0, -ENOMEM, or -EINVAL where it is PROT_NONE.
 */
int exmap_surface_map(struct exmap *exmap, struct vm_area_struct *vma)
{
	pgprot_t prot = vm_get_page_prot(vma->vm_flags);
	unsigned long nr = exmap_leaves(vma->vm_start, vma->vm_end);

	BUILD_BUG_ON(!pte_none(EXMAP_PTE_DEFERRED) || pte_present(EXMAP_PTE_DEFERRED));
	mmap_assert_write_locked(exmap->mm);
	/* A PTE that is not present is no place for a page. */
	if (!(vma->vm_flags & (VM_READ | VM_WRITE | VM_EXEC)))
		return -EINVAL;
	exmap->leaves = kvmalloc_array(nr, sizeof(*exmap->leaves),
				       GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	exmap->reaped = (struct exmap_bundle *)__get_free_page(GFP_KERNEL_ACCOUNT);
	if (!exmap->leaves || !exmap->reaped) {
		exmap_surface_destroy(exmap);
		return -ENOMEM;
	}
	exmap_rss_add(exmap->mm, exmap_surface_pages(nr));
	memset_p((void **)exmap->leaves, (void *)&exmap_no_leaf, nr);
	exmap->directory = exmap->leaves - (vma->vm_start >> P4D_SHIFT);
	/*
	 * Ordinary PTEs: get_user_pages() works. Young and dirty from the start: the
	 * hardware never has to set these bits. The protection is kept here since
	 * clear_refs takes write permission out of the VMA's.
	 */
	exmap_vma_protect(vma);
	vm_flags_set(vma, VM_NOHUGEPAGE);
	exmap->pte = pte_val(pte_mkdirty(pte_mkyoung(pfn_pte(0, prot))));
	vma->vm_ops = &exmap_vma_ops;
	vma->vm_private_data = exmap;
	exmap->mapping = vma->vm_file->f_mapping;
	exmap->start = vma->vm_start;
	/* After the start: see exmap_concerns(). */
	smp_store_release(&exmap->end, vma->vm_end);

	spin_lock(&exmap->gate_lock);
	/* After the addresses: see exmap_has_surface(). */
	smp_store_release(&exmap->gate, EXMAP_GATE_OPEN);
	spin_unlock(&exmap->gate_lock);
	return 0;
}

/* Free the leaves that have been made. Nobody looks at the directory but who called this. */
static void exmap_leaves_free(struct exmap *exmap)
{
	unsigned long i, nr = exmap_leaves(exmap->start, exmap->end);
	struct exmap_leaf *const none = (struct exmap_leaf *)&exmap_no_leaf;

	for (i = 0; i < nr; i++) {
		cond_resched();
		if (exmap->leaves[i] == none)
			continue;
		free_page((unsigned long)exmap->leaves[i]);
		exmap->leaves[i] = none;
		exmap_rss_add(exmap->mm, -1);
	}
}

/**
 * exmap_surface_destroy - free what exmap_surface_map() allocated, if it was called
 * @exmap: nobody else has it, or it is still without a surface
 */
void exmap_surface_destroy(struct exmap *exmap)
{
	if (exmap->end) {
		exmap_leaves_free(exmap);
		exmap_rss_add(exmap->mm,
			      -(long)exmap_surface_pages(exmap_leaves(exmap->start, exmap->end)));
	}
	kvfree(exmap->leaves);
	free_page((unsigned long)exmap->reaped);
	exmap->leaves = NULL;
	exmap->reaped = NULL;
}

/* The kernel at work on the surface */

/*
 * Close the gate, for good or for now. Nobody is inside when it returns, and no flush
 * due: generic code would overlook what stands for one, and may free the page table. False
 * where the surface was dead already: then its page tables may be gone, too, and the exmap
 * may be about to be freed. No interface is looked at then.
 */
static bool exmap_gate_close(struct exmap *exmap, enum exmap_gate gate)
{
	struct exmap_interface *interfaces;
	unsigned int i;
	bool alive;

	spin_lock(&exmap->gate_lock);
	exmap->closers++;
	alive = exmap->gate != EXMAP_GATE_DEAD;
	if (alive)
		WRITE_ONCE(exmap->gate, gate);
	interfaces = exmap->interfaces;
	spin_unlock(&exmap->gate_lock);
	if (!alive)
		return false;

	/* An interface that comes later finds the gate closed. */
	for (i = 0; interfaces && i < exmap_nr_interfaces(exmap); i++) {
		mutex_lock(&interfaces[i].lock);
		if (exmap_quarantine_flush(exmap, &interfaces[i].quarantine, &interfaces[i]))
			exmap_stock_trim(exmap, &interfaces[i]);
		mutex_unlock(&interfaces[i].lock);
	}
	return true;
}

static void exmap_gate_open(struct exmap *exmap)
{
	spin_lock(&exmap->gate_lock);
	WRITE_ONCE(exmap->openings, exmap->openings + 1);
	exmap->closers--;
	if (!exmap->closers && exmap->gate == EXMAP_GATE_CLOSED) {
		/* After the count: see exmap_was_closed(). */
		smp_store_release(&exmap->gate, EXMAP_GATE_OPEN);
	}
	spin_unlock(&exmap->gate_lock);
	wake_up_all(&exmap->gate_wait);
}

static void exmap_reap_flush(struct exmap *exmap, unsigned long start, unsigned long end,
			     unsigned int nr)
{
	if (!nr)
		return;
	exmap_shootdown(exmap, start, end);
	WRITE_ONCE(exmap->unmapped, exmap->unmapped + nr);
	nr = exmap_pinned_sort(exmap, exmap->reaped->page, nr);
	exmap_pool_release(exmap, exmap->reaped->page, nr);
}

/*
 * The first address from @address on that may have a page table, by the directory; @end if
 * none has. It looks at one leaf only.
 */
static unsigned long exmap_reap_skip(const struct exmap *exmap, unsigned long address,
				     unsigned long end)
{
	if (READ_ONCE(exmap->directory[address >> P4D_SHIFT]) == &exmap_no_leaf)
		return min(end, (address | ~P4D_MASK) + 1);
	while (address < end && !exmap_pmds(exmap, address)) {
		address = pud_addr_end(address, end);
		if (!(address & ~P4D_MASK))
			break;
	}
	return address;
}

/*
 * Unmap a part of the surface and give its pages back to the system, so that
 * generic code finds nothing there. The gate is closed. Generic code may be
 * freeing empty page tables meanwhile, but none of the directory's.
 *
 * Other notifiers may not have heard of this yet, or, where they are told after
 * the fact, only later: so they hear it from us before a page is let go.
 */
static void exmap_reap(struct exmap *exmap, unsigned long start, unsigned long end)
{
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned long address, next;
	unsigned int nr = 0;
	pte_t *pte;

	mutex_lock(&exmap->reap_lock);
	for (address = start; address < end; address = next) {
		if (walk.region != address >> PMD_SHIFT) {
			exmap_walk_unlock(&walk);
			cond_resched();
			next = exmap_reap_skip(exmap, address, end);
			if (next != address)
				continue;
			if (!exmap_walk_table_closed(&walk, address)) {
				next = pmd_addr_end(address, end);
				continue;
			}
		}
		next = address + PAGE_SIZE;
		pte = &walk.table[pte_index(address)];
		if (!pte_present(*pte))
			continue;
		exmap->reaped->page[nr++] = pte_page(*pte);
		exmap_pte_clear(exmap->mm, address, pte, *pte);
		if (nr == EXMAP_BUNDLE_PAGES) {
			exmap_walk_unlock(&walk);
			exmap_reap_flush(exmap, start, end, nr);
			nr = 0;
		}
	}
	exmap_walk_unlock(&walk);
	exmap_reap_flush(exmap, start, end, nr);
	mutex_unlock(&exmap->reap_lock);
}

/* The surface is gone for good: nothing can be mapped on it any more. */
static void exmap_surface_kill(struct exmap *exmap)
{
	if (!exmap_gate_close(exmap, EXMAP_GATE_DEAD))
		return;
	wake_up_all(&exmap->gate_wait);
	exmap_reap(exmap, exmap->start, exmap->end);
	mutex_lock(&exmap->reap_lock);
	exmap_leaves_free(exmap);
	mutex_unlock(&exmap->reap_lock);
	/* With the pool that SETUP made ready before it. */
	if (smp_load_acquire(&exmap->interfaces))
		exmap_pool_drain(exmap);
}

/*
 * Whether a range is an exmap's business: not what is at the surface's place after its
 * death. The OOM reaper's ranges, which must not block, leave shared mappings alone.
 *
 * Who changes protection or unmaps may do so with many VMAs at once, holding mmap_lock. Who
 * zaps pages, or comes by way of a page (rmap; ours has none), does it in one VMA, and the
 * surface is not split. What sticks out of it is the 2 MiB around a huge page of a
 * neighbour, which 6.1 and 6.12 announce where they split it (__split_huge_pmd() for rmap),
 * though nothing happens to the surface. They hold no lock then that would keep others from
 * mapping one there, or from SETUP.
 */
static bool exmap_concerns(const struct exmap *exmap, const struct mmu_notifier_range *range)
{
	/* Before the start, which mmap has set first. */
	const unsigned long end = smp_load_acquire(&exmap->end);

	if (range->start >= end || range->end <= exmap->start ||
	    READ_ONCE(exmap->gate) == EXMAP_GATE_DEAD || !mmu_notifier_range_blockable(range))
		return false;
	switch (range->event) {
	case MMU_NOTIFY_UNMAP:
	case MMU_NOTIFY_PROTECTION_VMA:
	case MMU_NOTIFY_SOFT_DIRTY:
		return true;
	default:
		return range->start >= exmap->start && range->end <= end;
	}
}

/*
 * The kernel is about to change page tables: of all the process has mapped, so
 * compare addresses. The VMA cannot be looked up here: munmap() has taken it out
 * of the tree by now.
 */
static void exmap_invalidate(struct exmap *exmap, const struct mmu_notifier_range *range)
{
	switch (range->event) {
	case MMU_NOTIFY_UNMAP:
		/* Also where mremap() is about to move it, and will fail. */
		exmap_surface_kill(exmap);
		break;
	case MMU_NOTIFY_PROTECTION_VMA:
	case MMU_NOTIFY_PROTECTION_PAGE:
	case MMU_NOTIFY_SOFT_DIRTY:
		exmap_gate_close(exmap, EXMAP_GATE_CLOSED);
		break;
	default:
		/* MADV_DONTNEED; and whatever may zap a page */
		if (exmap_gate_close(exmap, EXMAP_GATE_CLOSED))
			exmap_reap(exmap, range->start, range->end);
	}
}

/* Of a process, for all its exmaps: what any of them has announced is no other's business. */
static bool exmap_is_own(const struct mmu_notifier_range *range)
{
	return range->owner == &exmap_notifier_ops;
}

static int exmap_invalidate_range_start(struct mmu_notifier *notifier,
					const struct mmu_notifier_range *range)
{
	struct exmap_watch *watch = container_of(notifier, struct exmap_watch, notifier);
	struct exmap *exmap;

	if (exmap_is_own(range))
		return 0;
	list_for_each_entry_rcu(exmap, &watch->exmaps, neighbours, true)
		if (exmap_concerns(exmap, range))
			exmap_invalidate(exmap, range);
	return 0;
}

static void exmap_invalidate_range_end(struct mmu_notifier *notifier,
				       const struct mmu_notifier_range *range)
{
	struct exmap_watch *watch = container_of(notifier, struct exmap_watch, notifier);
	struct exmap *exmap;

	if (exmap_is_own(range))
		return;
	list_for_each_entry_rcu(exmap, &watch->exmaps, neighbours, true)
		if (exmap_concerns(exmap, range))
			exmap_gate_open(exmap);
}

/* The mm goes: no thread is left in it. Only files may remain elsewhere. */
static void exmap_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct exmap_watch *watch = container_of(notifier, struct exmap_watch, notifier);
	struct exmap *exmap;

	list_for_each_entry_rcu(exmap, &watch->exmaps, neighbours, true)
		if (READ_ONCE(exmap->end))
			exmap_surface_kill(exmap);
}

/* For exmap_watch_exit(): their memory is freed after an SRCU grace period. */
static atomic_t exmap_watches = ATOMIC_INIT(0);

static struct mmu_notifier *exmap_watch_alloc(struct mm_struct *mm)
{
	struct exmap_watch *watch = kzalloc(sizeof(*watch), GFP_KERNEL_ACCOUNT);

	if (!watch)
		return ERR_PTR(-ENOMEM);
	atomic_inc(&exmap_watches);
	spin_lock_init(&watch->lock);
	INIT_LIST_HEAD(&watch->exmaps);
	return &watch->notifier;
}

static void exmap_watch_free(struct mmu_notifier *notifier)
{
	kfree(container_of(notifier, struct exmap_watch, notifier));
	if (atomic_dec_and_test(&exmap_watches))
		wake_up_var(&exmap_watches);
}

static const struct mmu_notifier_ops exmap_notifier_ops = {
	.release = exmap_release,
	.invalidate_range_start = exmap_invalidate_range_start,
	.invalidate_range_end = exmap_invalidate_range_end,
	.alloc_notifier = exmap_watch_alloc,
	.free_notifier = exmap_watch_free,
};

/**
 * exmap_watch_join - be told what the kernel does to the surface, or will do
 * @exmap: its lock is held; mmap_lock is not
 *
 * The kernel calls every notifier of a process for each FREE at any of its exmaps, so these
 * have one between them. Who unmapped the surface before this did not announce it to us.
 *
 * Return: 0, -ENOMEM, or -EINTR where there is a signal to be dealt with.
 */
int exmap_watch_join(struct exmap *exmap)
{
	struct mmu_notifier *notifier;
	struct vm_area_struct *vma;
	int err = 0;

	if (mmap_write_lock_killable(exmap->mm))
		return -EINTR;
	notifier = mmu_notifier_get_locked(&exmap_notifier_ops, exmap->mm);
	if (IS_ERR(notifier)) {
		err = PTR_ERR(notifier);
		goto unlock;
	}
	vma = exmap->end ? exmap_vma(exmap) : NULL;
	if (vma) {
		/*
		 * Nobody is at work on it, who had announced the beginning to others: the
		 * end alone would open a gate that another has closed. (Who is holds mmap_lock
		 * or the VMA's lock from beginning to end.)
		 */
		vma_start_write(vma);
	} else if (exmap->end) {
		spin_lock(&exmap->gate_lock);
		WRITE_ONCE(exmap->gate, EXMAP_GATE_DEAD);
		spin_unlock(&exmap->gate_lock);
	}
	exmap->watch = container_of(notifier, struct exmap_watch, notifier);
	spin_lock(&exmap->watch->lock);
	list_add_tail_rcu(&exmap->neighbours, &exmap->watch->exmaps);
	spin_unlock(&exmap->watch->lock);
unlock:
	mmap_write_unlock(exmap->mm);
	return err;
}

/**
 * exmap_watch_leave - undo exmap_watch_join()
 * @exmap: nobody else has it, and its surface, if it had any, is gone
 *
 * A callback that began before may still look at it, until mmu_notifier_synchronize(). It
 * finds the gate dead, or no surface, and does nothing.
 */
void exmap_watch_leave(struct exmap *exmap)
{
	struct exmap_watch *watch = exmap->watch;

	spin_lock(&exmap->gate_lock);
	WRITE_ONCE(exmap->gate, EXMAP_GATE_DEAD);
	spin_unlock(&exmap->gate_lock);
	spin_lock(&watch->lock);
	list_del_rcu(&exmap->neighbours);
	spin_unlock(&watch->lock);
	mmu_notifier_put(&watch->notifier);
}

/**
 * exmap_watch_exit - wait for what exmap_watch_leave() has left to SRCU; no exmap is left
 */
void exmap_watch_exit(void)
{
	wait_var_event(&exmap_watches, !atomic_read(&exmap_watches));
	/* And for the callback in which the last was freed: it runs with BH off. */
	synchronize_rcu();
}
