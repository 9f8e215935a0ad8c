// SPDX-License-Identifier: GPL-2.0
/*
 * The page tables of the surface: the directory that finds them, and having them made.
 * walk.h looks into them.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched/signal.h>

#include "compat.h"
#include "exmap.h"
#include "walk.h"

/* Stands in the directory for every leaf that has not been made: it saves a check for NULL. */
const struct exmap_leaf exmap_no_leaf;

/**
 * exmap_walk_move - go on to another page table; see exmap_walk_lock()
 * @walk: has another table locked, or none
 * @address: on the surface. The gate is open, and an interface's lock is held
 *
 * May sleep.
 *
 * Return: true, with @walk at the table; false if there is no table, and then none is locked.
 */
bool exmap_walk_move(struct exmap_walk *walk, unsigned long address)
{
	if (walk->lock) {
		exmap_walk_unlock(walk);
		/* It is a call: random pages are each in another table. */
		if (need_resched())
			cond_resched();
	}
	return exmap_walk_table(walk, address);
}

/**
 * exmap_vma - find the surface's VMA
 * @exmap: has a surface; mmap_lock is held
 *
 * What munmap() has taken out of the tree is not found, and it cannot take out what is found
 * as long as mmap_lock is held.
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

/**
 * exmap_populate_one - have the page table for one address
 * @exmap: mmap_lock is held, and the VMA is there; no lock is held that a notifier takes
 * @address: on the surface
 *
 * May sleep for memory.
 *
 * Return: 0 or -ENOMEM.
 */
int exmap_populate_one(struct exmap *exmap, unsigned long address)
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

/**
 * exmap_populate - have all page tables for a range
 * @exmap: has a surface. Takes mmap_lock: no other lock may be held
 * @address: the first address
 * @end: the first address after the range
 *
 * Return: 0; -ENOMEM; -EPROTO if the surface is gone; or -EINTR.
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
 * exmap_leaves - how many leaves a directory has, made or not
 * @start: first address of the surface
 * @end: first address after it
 *
 * Return: leaves.
 */
unsigned long exmap_leaves(unsigned long start, unsigned long end)
{
	return ((end - 1) >> P4D_SHIFT) - (start >> P4D_SHIFT) + 1;
}

/**
 * exmap_leaves_free - free the leaves that have been made
 * @exmap: only the caller looks at its directory: exmap->reap_lock is held, and the surface is
 *	dead; or nobody else has the exmap
 */
void exmap_leaves_free(struct exmap *exmap)
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
