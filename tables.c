// SPDX-License-Identifier: GPL-2.0
/*
 * The page tables of the surface: the directory that finds them, and the calls that make them.
 * Lookups are in walk.h.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched/signal.h>

#include "arch.h"
#include "compat.h"
#include "exmap.h"
#include "walk.h"

/* The most page tables that one address may lack: of ptes, pmds and puds. */
#define EXMAP_TABLE_LEVELS 3

/* A leaf takes so many pages, as a power of two. */
#define EXMAP_LEAF_ORDER get_order(sizeof(struct exmap_leaf))

/* The directory's entry for every leaf that has not been made, which saves a check for NULL. */
const struct exmap_leaf exmap_no_leaf;

/**
 * exmap_walk_move - lock the page table of an address
 * @walk: has another table locked, or none
 * @address: an address on the surface. The gate is open, and an interface's lock is held
 *
 * The slow part of exmap_walk_lock(). Unlocks the table that @walk had. May sleep before it locks
 * the new one.
 *
 * Return: true, with @walk at the locked table; false if there is no table, and then none is
 * locked.
 */
bool exmap_walk_move(struct exmap_walk *walk, unsigned long address)
{
	if (walk->lock) {
		exmap_walk_unlock(walk);
		/*
		 * Test first, because cond_resched() is a function call and random addresses are
		 * each in another table.
		 */
		if (need_resched())
			cond_resched();
	}
	return exmap_walk_table(walk, address);
}

/**
 * exmap_vma - find the surface's VMA
 * @exmap: has a surface; mmap_lock is held for reading or writing
 *
 * munmap() removes a VMA from the tree under mmap_lock before it unmaps the pages. So a VMA that is
 * being unmapped is not found, and one that is found stays as long as mmap_lock is held.
 *
 * Return: the VMA; or NULL if the surface has been unmapped.
 */
struct vm_area_struct *exmap_vma(struct exmap *exmap)
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
 * Returns the leaf for an address, and makes it if it is missing; NULL if no memory is available.
 * mmap_lock is held, possibly for reading, so several threads may be making the same leaf.
 */
static struct exmap_leaf *exmap_leaf_get(struct exmap *exmap, unsigned long address)
{
	struct exmap_leaf **place = &exmap->directory[address >> P4D_SHIFT];
	struct exmap_leaf *const none = (struct exmap_leaf *)&exmap_no_leaf;
	/* Pairs with the cmpxchg() below. */
	struct exmap_leaf *leaf = READ_ONCE(*place), *made;

	/* exmap_arch_problem() refuses to be loaded with pages of another size. */
	BUILD_BUG_ON(PAGE_SIZE == 4096 && sizeof(*leaf) != PAGE_SIZE << EXMAP_LEAF_ORDER);
	if (likely(leaf != none))
		return leaf;
	made = (struct exmap_leaf *)__get_free_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO,
						     EXMAP_LEAF_ORDER);
	if (!made)
		return NULL;
	/* Publish the zeroed leaf. Pairs with the reads here and in exmap_pmds(). */
	leaf = cmpxchg(place, none, made);
	if (leaf == none) {
		exmap_rss_add(exmap->mm, 1 << EXMAP_LEAF_ORDER);
		return made;
	}
	free_pages((unsigned long)made, EXMAP_LEAF_ORDER);
	return leaf;
}

/*
 * Whether there is memory for the page tables of an address. The kernel allocates page tables in a
 * way that calls the OOM killer if memory is short. So allocate and free as many pages first, in
 * the way in which the pool does. The memcg keeps the charge of freed pages for a while, on this
 * CPU, and uses it for the page tables.
 */
static bool exmap_tables_fit(const struct exmap_leaf *leaf, unsigned long address)
{
	struct page *page[EXMAP_TABLE_LEVELS];
	/* Pairs with exmap_populate_one(). */
	unsigned int nr, want = READ_ONCE(leaf->pmds[pud_index(address)]) ? 1 : ARRAY_SIZE(page);
	bool fit;

	for (nr = 0; nr < want; nr++) {
		page[nr] = alloc_page(POOL_GFP);
		if (!page[nr])
			break;
	}
	fit = nr == want;
	while (nr)
		__free_page(page[--nr]);
	return fit;
}

/*
 * Make the marks of the page table for an address, if they are missing. Returns whether they exist.
 * mmap_lock is held, possibly for reading.
 */
static bool exmap_marks_get(struct exmap *exmap, struct exmap_leaf *leaf, unsigned long address)
{
	int pages = exmap_marks_make(&leaf->marks, address);

	if (pages > 0)
		exmap_rss_add(exmap->mm, pages);
	return pages >= 0;
}

/**
 * exmap_populate_one - make the page table for one address
 * @exmap: mmap_lock is held and the VMA exists; no lock is held that the MMU notifier takes
 * @address: an address on the surface
 *
 * May sleep for memory.
 *
 * Return: 0 or -ENOMEM. See exmap_was_closed() for a second cause of -ENOMEM.
 */
int exmap_populate_one(struct exmap *exmap, unsigned long address)
{
	struct exmap_leaf *leaf;
	pmd_t *pmd;
	int err;

	mmap_assert_locked(exmap->mm);
	leaf = exmap_leaf_get(exmap, address);
	if (!leaf || !exmap_marks_get(exmap, leaf, address) || !exmap_tables_fit(leaf, address)) {
		/* Pairs with exmap_show_shortages(). */
		atomic64_inc(&exmap->pool.shortages[EXMAP_SHORT_TABLES]);
		return -ENOMEM;
	}
	/* With a NULL function it allocates every level of page tables and does nothing else. */
	err = apply_to_page_range(exmap->mm, address & PAGE_MASK, PAGE_SIZE, NULL, NULL);
	if (err)
		return err;
	pmd = pmd_offset(pud_offset(p4d_offset(pgd_offset(exmap->mm, address), address), address),
			 address & PUD_MASK);
	/*
	 * Publish the table, which another CPU may have made just now. Pairs with the dependency in
	 * exmap_pmds().
	 */
	smp_store_release(&leaf->pmds[pud_index(address)], pmd);
	return 0;
}

/**
 * exmap_populate - make all page tables for a range
 * @exmap: has a surface; no lock is held, because this takes mmap_lock
 * @address: the first address
 * @end: the first address after the range
 *
 * May sleep for memory.
 *
 * Return: 0; -ENOMEM, as exmap_populate_one(); -EPROTO if the surface has been unmapped; -EINTR if
 * the caller is being killed.
 */
int exmap_populate(struct exmap *exmap, unsigned long address, unsigned long end)
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

/**
 * exmap_leaves - number of leaves in a directory, whether made yet or not
 * @start: first address of the surface
 * @end: first address after it
 *
 * A leaf covers 512 GiB.
 *
 * Return: leaves.
 */
unsigned long exmap_leaves(unsigned long start, unsigned long end)
{
	return ((end - 1) >> P4D_SHIFT) - (start >> P4D_SHIFT) + 1;
}

/**
 * exmap_leaves_free - free the leaves that have been made
 * @exmap: only the caller uses its directory, because the surface is dead and exmap->reap_lock is
 *	held; or because nobody else uses the exmap
 *
 * May sleep.
 */
void exmap_leaves_free(struct exmap *exmap)
{
	unsigned long i, gib, nr = exmap_leaves(exmap->start, exmap->end);
	struct exmap_leaf *const none = (struct exmap_leaf *)&exmap_no_leaf;
	struct exmap_leaf *leaf;
	long pages;

	for (i = 0; i < nr; i++) {
		cond_resched();
		leaf = exmap->leaves[i];
		if (leaf == none)
			continue;
		pages = 1 << EXMAP_LEAF_ORDER;
		for (gib = 0; gib < PTRS_PER_PUD; gib++)
			pages += exmap_marks_free(&leaf->marks, gib << PUD_SHIFT);
		free_pages((unsigned long)leaf, EXMAP_LEAF_ORDER);
		exmap->leaves[i] = none;
		exmap_rss_add(exmap->mm, -pages);
	}
}
