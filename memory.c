// SPDX-License-Identifier: GPL-2.0
/*
 * The surface: page tables, TLBs, and what happens when the kernel takes the
 * surface away.
 *
 * A call works inside the gate: it holds its interface's lock, and the gate is
 * open. There the page tables of the surface stay where they are, and nobody but
 * other calls writes to them. Whatever the kernel may do to a mapping it
 * announces to our MMU notifier, which closes the gate first.
 */
#include <linux/io.h>
#include <linux/nospec.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include <asm/tlbflush.h>

#include "compat.h"
#include "exmap.h"
#include "ksyms.h"

/* Where a call is in the page tables; what it looked up last is still locked. */
struct exmap_walk {
	struct exmap *exmap;
	unsigned long region;	/* address >> PMD_SHIFT of @table */
	pte_t *table;
	spinlock_t *lock;	/* the PTE lock of @table, held; NULL: none is */
};

static unsigned int exmap_directory_index(const struct exmap *exmap, unsigned long address)
{
	return (address >> PUD_SHIFT) - (exmap->start >> PUD_SHIFT);
}

/* The pmd_t for an address on the surface, or NULL where there is none yet. */
static pmd_t *exmap_pmd(const struct exmap *exmap, unsigned long address)
{
	pmd_t *pmds = READ_ONCE(exmap->directory[exmap_directory_index(exmap, address)]);

	return pmds ? pmds + pmd_index(address) : NULL;
}

static bool exmap_has_table(const struct exmap *exmap, unsigned long address)
{
	pmd_t *pmd = exmap_pmd(exmap, address);

	return pmd && !pmd_none(READ_ONCE(*pmd));
}

static void exmap_walk_unlock(struct exmap_walk *walk)
{
	if (!walk->lock)
		return;
	__acquire(walk->lock);	/* sparse cannot follow a lock across functions */
	spin_unlock(walk->lock);
	walk->lock = NULL;
}

/* Look a page table up and lock it. False where there is none. */
static bool exmap_walk_table(struct exmap_walk *walk, unsigned long address)
{
	pmd_t *pmd = exmap_pmd(walk->exmap, address);
	pmd_t value;

	if (!pmd)
		return false;
	for (;;) {
		value = READ_ONCE(*pmd);
		if (pmd_none(value))
			return false;
		walk->lock = pte_lockptr(walk->exmap->mm, &value);
		spin_lock(walk->lock);
		__release(walk->lock);
		if (likely(pmd_same(value, READ_ONCE(*pmd))))
			break;
		exmap_walk_unlock(walk);
	}
	walk->region = address >> PMD_SHIFT;
	walk->table = (pte_t *)pmd_page_vaddr(value);
	return true;
}

/* Have the page table for an address locked. False where there is none. */
static bool exmap_walk_lock(struct exmap_walk *walk, unsigned long address)
{
	if (likely(walk->lock && walk->region == address >> PMD_SHIFT))
		return true;
	exmap_walk_unlock(walk);
	cond_resched();
	return exmap_walk_table(walk, address);
}

/*
 * Take an interface's lock when the gate is open. Returns with the lock held in
 * any case: 0, -EPROTO where there is no surface, -EINTR where the caller is
 * being killed. Must not be called with mmap_lock held: who closed the gate may
 * be waiting for it.
 */
static int exmap_enter(struct exmap *exmap, struct exmap_interface *interface)
{
	enum exmap_gate gate;
	int err = 0;

	for (;;) {
		mutex_lock(&interface->lock);
		/* Just once: from here on it may change any time, and waits for us. */
		gate = READ_ONCE(exmap->gate);
		if (likely(gate == EXMAP_GATE_OPEN))
			return 0;
		if (gate != EXMAP_GATE_CLOSED)
			return -EPROTO;
		if (err)
			return -EINTR;
		mutex_unlock(&interface->lock);
		err = wait_event_killable(exmap->gate_wait,
					  READ_ONCE(exmap->gate) != EXMAP_GATE_CLOSED);
	}
}

static int exmap_reenter(struct exmap *exmap, struct exmap_interface *interface)
{
	mutex_unlock(&interface->lock);
	return exmap_enter(exmap, interface);
}

/* Have the page table for one address. mmap_lock is held, and the VMA there. */
static int exmap_populate_one(struct exmap *exmap, unsigned long address)
{
	pmd_t *pmd;
	int err;

	mmap_assert_locked(exmap->mm);
	/* Without a function it does just this: it allocates every level. */
	err = apply_to_page_range(exmap->mm, address & PAGE_MASK, PAGE_SIZE, NULL, NULL);
	if (err)
		return err;
	pmd = pmd_offset(pud_offset(p4d_offset(pgd_offset(exmap->mm, address), address), address),
			 address & PUD_MASK);
	WRITE_ONCE(exmap->directory[exmap_directory_index(exmap, address)], pmd);
	return 0;
}

/*
 * Have all page tables for a range. Takes mmap_lock: no other lock may be held.
 * Returns 0, -ENOMEM, -EPROTO where the surface is gone, or -EINTR.
 */
static int exmap_populate(struct exmap *exmap, unsigned long address, unsigned long end)
{
	struct vm_area_struct *vma;
	int err = 0;

	if (mmap_read_lock_killable(exmap->mm))
		return -EINTR;
	/*
	 * What munmap() has taken out of the tree is not found, and it cannot
	 * take out what is found as long as we hold the lock.
	 */
	vma = find_vma(exmap->mm, exmap->start);
	if (!vma || vma->vm_start != exmap->start || vma->vm_private_data != exmap)
		err = -EPROTO;
	for (; !err && address < end; address = pmd_addr_end(address, end))
		if (!exmap_has_table(exmap, address))
			err = exmap_populate_one(exmap, address);
	mmap_read_unlock(exmap->mm);
	return err ?: fatal_signal_pending(current) ? -EINTR : 0;
}

/* How many pages of a range are not mapped. */
static unsigned int exmap_missing(struct exmap_walk *walk, unsigned long address, unsigned long end)
{
	unsigned int missing = 0;

	for (; address < end; address += PAGE_SIZE)
		if (!exmap_walk_lock(walk, address) ||
		    pte_none(walk->table[pte_index(address)]))
			missing++;
	return missing;
}

/*
 * Make sure that a range has its page tables, and the interface as many free
 * pages as are missing there. Where it has to drop the interface's lock it looks
 * at both again. Returns 0, or with nothing changed on the surface -ENOMEM,
 * -EPROTO or -EINTR.
 */
static int exmap_prepare(struct exmap_walk *walk, struct exmap_interface *interface,
			 unsigned long start, unsigned long end)
{
	struct exmap *exmap = walk->exmap;
	unsigned long address;
	unsigned int missing;
	int err;

again:
	for (address = start; address < end; address = pmd_addr_end(address, end)) {
		if (likely(exmap_has_table(exmap, address)))
			continue;
		exmap_walk_unlock(walk);
		mutex_unlock(&interface->lock);
		err = exmap_populate(exmap, address, end);
		/* Its refusal matters less than what may have become of the gate. */
		err = exmap_enter(exmap, interface) ?: err;
		if (err)
			return err;
		goto again;
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
		err = exmap_reenter(exmap, interface);
		if (err)
			return err;
	}
	goto again;
}

/* Map pages of the stock wherever none is, @nr pages of the table from @pte on. */
static unsigned int exmap_map_run(struct exmap *exmap, struct exmap_interface *interface,
				  pte_t *pte, unsigned int nr)
{
	const pteval_t bits = exmap->pte;
	unsigned int mapped = 0;

	for (; nr; nr--, pte++) {
		struct page *page;

		if (!pte_none(*pte))
			continue;
		if (unlikely(!interface->count)) {
			/*
			 * Another thread is freeing what was there when we
			 * counted: it was mapped then, and that is an answer.
			 */
			if (!interface->nr_full)
				break;
			exmap_stock_next(exmap, interface);
		}
		page = interface->loaded->page[interface->count - 1];
		WRITE_ONCE(interface->count, interface->count - 1);
		WRITE_ONCE(*pte, __pte(bits | page_to_phys(page)));
		mapped++;
	}
	return mapped;
}

/* ALLOC of one entry. Returns how many pages it mapped, or as exmap_prepare(). */
static int exmap_alloc_entry(struct exmap_walk *walk, struct exmap_interface *interface,
			     unsigned long start, unsigned long end, bool probe)
{
	unsigned int mapped = 0;
	unsigned long address, next;
	int err;

	if (probe && start < end && !exmap_missing(walk, start, start + PAGE_SIZE))
		return 0;
	err = exmap_prepare(walk, interface, start, end);
	if (err)
		return err;
	for (address = start; address < end; address = next) {
		next = pmd_addr_end(address, end);
		if (!exmap_walk_lock(walk, address))
			break;
		mapped += exmap_map_run(walk->exmap, interface,
					&walk->table[pte_index(address)],
					(next - address) >> PAGE_SHIFT);
	}
	return mapped;
}

/* The answer replaces the request in one store, so nobody sees half of it. */
static void exmap_answer(struct exmap_iov *iov, int res, unsigned int pages)
{
	struct exmap_iov answer = { .value = 0 };

	answer.res = res;
	answer.pages = pages;
	WRITE_ONCE(iov->value, answer.value);
}

/*
 * Read an entry, just once: another thread may be writing to it. Returns 0, or
 * -EFAULT where the entry leaves the surface.
 */
static int exmap_request(const struct exmap *exmap, const struct exmap_iov *iov,
			 unsigned long *start, unsigned long *end)
{
	struct exmap_iov request = { .value = READ_ONCE(iov->value) };
	unsigned long pages = (exmap->end - exmap->start) >> PAGE_SHIFT;
	unsigned long page = request.page, len = request.len;

	if (page > pages || len > pages - page)
		return -EFAULT;
	page = array_index_nospec(page, pages + 1);
	*start = exmap->start + (page << PAGE_SHIFT);
	*end = *start + (len << PAGE_SHIFT);
	return 0;
}

static void exmap_count(struct exmap_interface *interface, long mapped)
{
	WRITE_ONCE(interface->mapped, interface->mapped + mapped);
}

/**
 * exmap_alloc - carry out ALLOC
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: whose entries; its lock is not held
 * @nr: how many, at most EXMAP_USER_INTERFACE_PAGES
 * @probe: leave out the entries whose first page is mapped
 *
 * Return: how many entries failed, each holding -EFAULT, -ENOMEM or -EPROTO; or,
 * with nothing done and no entry overwritten, -ENOMEM, -EPROTO where there is no
 * surface, or -EINTR where the caller is being killed.
 */
long exmap_alloc(struct exmap *exmap, struct exmap_interface *interface,
		 unsigned int nr, bool probe)
{
	struct exmap_iov *iov = interface->user->iov;
	struct exmap_walk walk = { .exmap = exmap };
	unsigned long start, end;
	unsigned int i, failed = 0;
	long mapped = 0;
	long ret;
	int res;

	res = exmap_enter(exmap, interface);
	for (i = 0; i < nr && !res; i++) {
		if (exmap_request(exmap, &iov[i], &start, &end)) {
			exmap_answer(&iov[i], -EFAULT, 0);
			failed++;
			continue;
		}
		res = exmap_alloc_entry(&walk, interface, start, end, probe);
		if (res < 0)
			break;
		exmap_answer(&iov[i], 0, res);
		mapped += res;
		res = 0;
	}
	exmap_walk_unlock(&walk);
	exmap_count(interface, mapped);
	exmap_stock_trim(exmap, interface);

	ret = failed;
	if (res < 0 && i == 0)
		ret = res;
	else
		for (; i < nr; i++, ret++)
			exmap_answer(&iov[i], res, 0);
	mutex_unlock(&interface->lock);
	return ret;
}

/*
 * Unmap @nr pages of the table from @pte on into the interface's limbo, which
 * has room for them. Returns how many there were.
 *
 * The PTE lock is held, and the hardware sets bits only in an entry that is
 * present at that moment, so a plain store will do.
 */
static unsigned int exmap_unmap_run(struct exmap_interface *interface, pte_t *pte, unsigned int nr)
{
	struct page **limbo = &interface->limbo->page[interface->nr_limbo];
	unsigned int unmapped = 0;

	for (; nr; nr--, pte++) {
		pte_t old = *pte;

		if (!pte_present(old))
			continue;
		WRITE_ONCE(*pte, __pte(0));
		limbo[unmapped++] = pte_page(old);
	}
	interface->nr_limbo += unmapped;
	return unmapped;
}

/* Addresses that were unmapped and not yet flushed. */
struct exmap_range {
	unsigned long start;
	unsigned long end;
};

static void exmap_flush(struct exmap *exmap, struct exmap_interface *interface,
			struct exmap_range *range)
{
	if (!interface->nr_limbo)
		return;
	static_call(exmap_flush_tlb_mm_range)(exmap->mm, range->start, range->end,
					      PAGE_SHIFT, false);
	exmap_stock_settle(exmap, interface);
	*range = (struct exmap_range){ .start = ULONG_MAX };
}

/* FREE of one entry. Returns how many pages it unmapped. */
static unsigned int exmap_free_entry(struct exmap_walk *walk, struct exmap_interface *interface,
				     struct exmap_range *range,
				     unsigned long start, unsigned long end)
{
	unsigned int unmapped = 0, was, room;
	unsigned long address, next;

	for (address = start; address < end; address = next) {
		room = EXMAP_BUNDLE_PAGES - interface->nr_limbo;
		next = min(pmd_addr_end(address, end), address + room * PAGE_SIZE);
		if (!exmap_walk_lock(walk, address))
			continue;
		was = exmap_unmap_run(interface, &walk->table[pte_index(address)],
				      (next - address) >> PAGE_SHIFT);
		if (!was)
			continue;
		unmapped += was;
		range->start = min(range->start, address);
		range->end = max(range->end, next);
		if (interface->nr_limbo == EXMAP_BUNDLE_PAGES) {
			exmap_walk_unlock(walk);
			exmap_flush(walk->exmap, interface, range);
		}
	}
	return unmapped;
}

/**
 * exmap_free - carry out FREE
 * @exmap: has been set up, and belongs to current->mm; mmap_lock is not held
 * @interface: whose entries, and where the pages go; its lock is not held
 * @nr: how many, at most EXMAP_USER_INTERFACE_PAGES
 *
 * Flushes the TLBs once, or once per 512 pages, before any of the pages can be
 * used again.
 *
 * Return: how many entries failed, each holding -EFAULT; or, with nothing done
 * and no entry overwritten, -EPROTO where there is no surface, or -EINTR where
 * the caller is being killed.
 */
long exmap_free(struct exmap *exmap, struct exmap_interface *interface, unsigned int nr)
{
	struct exmap_iov *iov = interface->user->iov;
	struct exmap_range range = { .start = ULONG_MAX };
	struct exmap_walk walk = { .exmap = exmap };
	unsigned long start, end;
	unsigned int i, was, failed = 0;
	long unmapped = 0;
	int err;

	err = exmap_enter(exmap, interface);
	if (err)
		goto leave;
	for (i = 0; i < nr; i++) {
		if (exmap_request(exmap, &iov[i], &start, &end)) {
			exmap_answer(&iov[i], -EFAULT, 0);
			failed++;
			continue;
		}
		was = exmap_free_entry(&walk, interface, &range, start, end);
		exmap_answer(&iov[i], 0, was);
		unmapped += was;
	}
	exmap_walk_unlock(&walk);
	exmap_flush(exmap, interface, &range);
	exmap_count(interface, -unmapped);
	exmap_stock_trim(exmap, interface);
leave:
	mutex_unlock(&interface->lock);
	return err ?: failed;
}

/**
 * exmap_mapped - how many pages the surface holds
 * @exmap: has been set up
 *
 * Exact where no call is at work.
 */
u64 exmap_mapped(struct exmap *exmap)
{
	s64 mapped = -READ_ONCE(exmap->unmapped);
	unsigned int i;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		mapped += READ_ONCE(exmap->interfaces[i].mapped);
	return max(mapped, 0LL);
}

/* Page faults: a page that is not there */

/*
 * Map the page that was touched. Called with mmap_lock held, so it neither waits
 * for the gate nor takes that lock: it has the fault repeated instead.
 */
static vm_fault_t exmap_fault_alloc(struct exmap *exmap, unsigned long address)
{
	struct exmap_interface *interface = &exmap->interfaces[exmap->max_interfaces];
	struct exmap_walk walk = { .exmap = exmap };
	vm_fault_t ret = VM_FAULT_NOPAGE;
	int err;

	if (exmap_populate_one(exmap, address))
		return VM_FAULT_OOM;
	mutex_lock(&interface->lock);
	err = exmap_stock_fill(exmap, interface, 1);
	if (err)
		ret = err == -EINTR ? VM_FAULT_NOPAGE : VM_FAULT_SIGBUS;
	else if (READ_ONCE(exmap->gate) == EXMAP_GATE_OPEN && exmap_walk_lock(&walk, address))
		exmap_count(interface, exmap_map_run(exmap, interface,
						     &walk.table[pte_index(address)], 1));
	exmap_walk_unlock(&walk);
	exmap_stock_trim(exmap, interface);
	mutex_unlock(&interface->lock);
	return ret;
}

static vm_fault_t exmap_vma_fault(struct vm_fault *vmf)
{
	struct exmap *exmap = vmf->vma->vm_private_data;

	/* A copy in a child holds nothing and never will. */
	if (vmf->vma->vm_mm != exmap->mm || !smp_load_acquire(&exmap->interfaces) ||
	    !(exmap->flags & EXMAP_PAGEFAULT_ALLOC))
		return VM_FAULT_SIGSEGV;
	return exmap_fault_alloc(exmap, vmf->address);
}

/* The VMA */

/*
 * A fork after MADV_DOFORK copies the VMA in spite of VM_DONTCOPY. This runs
 * before its page tables would be copied: have it start, and stay, empty.
 */
static void exmap_vma_open(struct vm_area_struct *vma)
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
};

/**
 * exmap_surface_map - make a mapping the surface
 * @exmap: its lock is held, mmap_lock too, for writing; it has had no surface yet
 * @vma: the mapping, shared, of exmap->mm
 *
 * Return: 0, -ENOMEM, or -EINVAL where it is PROT_NONE.
 */
int exmap_surface_map(struct exmap *exmap, struct vm_area_struct *vma)
{
	pgprot_t prot = vm_get_page_prot(vma->vm_flags);
	unsigned int gigabytes = ((vma->vm_end - 1) >> PUD_SHIFT) -
				 (vma->vm_start >> PUD_SHIFT) + 1;

	lockdep_assert_held(&exmap->lock);
	/* A PTE that is not present is no place for a page. */
	if (!(vma->vm_flags & (VM_READ | VM_WRITE | VM_EXEC)))
		return -EINVAL;
	exmap->directory = kvcalloc(gigabytes, sizeof(*exmap->directory), GFP_KERNEL_ACCOUNT);
	exmap->reaped = (struct exmap_bundle *)__get_free_page(GFP_KERNEL_ACCOUNT);
	if (!exmap->directory || !exmap->reaped) {
		exmap_surface_destroy(exmap);
		return -ENOMEM;
	}
	/*
	 * MIXEDMAP with ordinary PTEs: get_user_pages() works, and the rest of mm
	 * leaves the pages alone. Young and dirty from the start: the hardware
	 * never has to set these bits. The protection is kept here since
	 * clear_refs takes write permission out of the VMA's.
	 */
	vm_flags_set(vma, VM_MIXEDMAP | VM_DONTEXPAND | VM_DONTCOPY | VM_DONTDUMP | VM_NOHUGEPAGE);
	exmap->pte = pte_val(pte_mkdirty(pte_mkyoung(pfn_pte(0, prot))));
	vma->vm_ops = &exmap_vma_ops;
	vma->vm_private_data = exmap;
	exmap->start = vma->vm_start;
	WRITE_ONCE(exmap->end, vma->vm_end);

	spin_lock(&exmap->gate_lock);
	WRITE_ONCE(exmap->gate, EXMAP_GATE_OPEN);
	spin_unlock(&exmap->gate_lock);
	return 0;
}

/**
 * exmap_surface_destroy - free what exmap_surface_map() allocated, if it was called
 * @exmap: nobody else has it, or it is still without a surface
 */
void exmap_surface_destroy(struct exmap *exmap)
{
	kvfree(exmap->directory);
	free_page((unsigned long)exmap->reaped);
	exmap->directory = NULL;
	exmap->reaped = NULL;
}

/* The kernel at work on the surface */

/*
 * Close the gate, for good or for now. Nobody is inside when it returns. False
 * where the surface was dead already: then its page tables may be gone, too.
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

	/* An interface that comes later finds the gate closed. */
	for (i = 0; interfaces && i < exmap_nr_interfaces(exmap); i++) {
		mutex_lock(&interfaces[i].lock);
		mutex_unlock(&interfaces[i].lock);
	}
	return alive;
}

static void exmap_gate_open(struct exmap *exmap)
{
	spin_lock(&exmap->gate_lock);
	if (!--exmap->closers && exmap->gate == EXMAP_GATE_CLOSED)
		WRITE_ONCE(exmap->gate, EXMAP_GATE_OPEN);
	spin_unlock(&exmap->gate_lock);
	wake_up_all(&exmap->gate_wait);
}

static void exmap_reap_flush(struct exmap *exmap, unsigned int nr)
{
	if (!nr)
		return;
	static_call(exmap_flush_tlb_mm_range)(exmap->mm, exmap->start, exmap->end,
					      PAGE_SHIFT, false);
	exmap_pool_release(exmap, exmap->reaped->page, nr);
	WRITE_ONCE(exmap->unmapped, exmap->unmapped + nr);
}

/*
 * Unmap a part of the surface and give its pages back to the system, so that
 * generic code finds nothing there. The gate is closed. Generic code may be
 * freeing empty page tables meanwhile, but none of the directory's.
 */
static void exmap_reap(struct exmap *exmap, unsigned long start, unsigned long end)
{
	struct exmap_walk walk = { .exmap = exmap };
	unsigned long address, next;
	unsigned int nr = 0;
	bool found;
	pte_t *pte;

	mutex_lock(&exmap->reap_lock);
	for (address = start; address < end; address = next) {
		if (!exmap_pmd(exmap, address)) {
			next = pud_addr_end(address, end);
			continue;
		}
		if (!walk.lock || walk.region != address >> PMD_SHIFT) {
			exmap_walk_unlock(&walk);
			cond_resched();
			/* madvise() elsewhere may be freeing an empty table. */
			rcu_read_lock();
			found = exmap_walk_table(&walk, address);
			rcu_read_unlock();
			if (!found) {
				next = pmd_addr_end(address, end);
				continue;
			}
		}
		next = address + PAGE_SIZE;
		pte = &walk.table[pte_index(address)];
		if (!pte_present(*pte))
			continue;
		exmap->reaped->page[nr++] = pte_page(*pte);
		WRITE_ONCE(*pte, __pte(0));
		if (nr == EXMAP_BUNDLE_PAGES) {
			exmap_walk_unlock(&walk);
			exmap_reap_flush(exmap, nr);
			nr = 0;
		}
	}
	exmap_walk_unlock(&walk);
	exmap_reap_flush(exmap, nr);
	mutex_unlock(&exmap->reap_lock);
}

/* The surface is gone for good: nothing can be mapped on it any more. */
static void exmap_surface_kill(struct exmap *exmap)
{
	if (!exmap_gate_close(exmap, EXMAP_GATE_DEAD))
		return;
	exmap_reap(exmap, exmap->start, exmap->end);
	if (smp_load_acquire(&exmap->interfaces))
		exmap_pool_drain(exmap);
}

static bool exmap_overlaps(const struct exmap *exmap, const struct mmu_notifier_range *range)
{
	return range->start < READ_ONCE(exmap->end) && range->end > exmap->start;
}

/*
 * The kernel is about to change page tables: of all the process has mapped, so
 * compare addresses. The VMA cannot be looked up here: munmap() has taken it out
 * of the tree by now.
 */
static int exmap_invalidate_range_start(struct mmu_notifier *notifier,
					const struct mmu_notifier_range *range)
{
	struct exmap *exmap = container_of(notifier, struct exmap, notifier);

	if (!exmap_overlaps(exmap, range))
		return 0;
	/* The OOM reaper; it leaves shared mappings alone anyway. */
	if (!mmu_notifier_range_blockable(range))
		return -EAGAIN;

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
			exmap_reap(exmap, max(range->start, exmap->start), min(range->end, exmap->end));
	}
	return 0;
}

static void exmap_invalidate_range_end(struct mmu_notifier *notifier,
				       const struct mmu_notifier_range *range)
{
	struct exmap *exmap = container_of(notifier, struct exmap, notifier);

	if (exmap_overlaps(exmap, range))
		exmap_gate_open(exmap);
}

/* The mm goes: no thread is left in it. Only files may remain elsewhere. */
static void exmap_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct exmap *exmap = container_of(notifier, struct exmap, notifier);

	if (READ_ONCE(exmap->end))
		exmap_surface_kill(exmap);
}

const struct mmu_notifier_ops exmap_notifier_ops = {
	.release = exmap_release,
	.invalidate_range_start = exmap_invalidate_range_start,
	.invalidate_range_end = exmap_invalidate_range_end,
};
