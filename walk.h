/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Looking into the page tables of the surface. What makes them is in tables.c.
 */
#ifndef EXMAP_WALK_H
#define EXMAP_WALK_H

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/spinlock.h>

#include "compat.h"
#include "exmap.h"

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
extern const struct exmap_leaf exmap_no_leaf;

/* tables.c */
bool exmap_walk_move(struct exmap_walk *walk, unsigned long address);
struct vm_area_struct *exmap_vma(struct exmap *exmap);
int exmap_populate_one(struct exmap *exmap, unsigned long address);
int exmap_populate(struct exmap *exmap, unsigned long address, unsigned long end);
unsigned long exmap_leaves(unsigned long start, unsigned long end);
void exmap_leaves_free(struct exmap *exmap);

/**
 * exmap_pmds - look up the table with the pmd_t for an address
 * @exmap: has a surface
 * @address: on the surface
 *
 * Return: the table; or NULL if there is none yet.
 */
static inline pmd_t *exmap_pmds(const struct exmap *exmap, unsigned long address)
{
	const struct exmap_leaf *leaf = READ_ONCE(exmap->directory[address >> P4D_SHIFT]);

	return READ_ONCE(leaf->pmds[pud_index(address)]);
}

/**
 * exmap_table - the page table that a pmd_t names
 * @pmd: is not none. The surface has no huge pages
 *
 * Return: the page table's first entry.
 */
static inline pte_t *exmap_table(pmd_t pmd)
{
	return __va(native_pmd_val(pmd) & PTE_PFN_MASK);
}

/**
 * exmap_has_table - whether there is a page table for an address
 * @exmap: has a surface
 * @address: on the surface
 *
 * Return: whether there is one. It stays as long as the gate is open.
 */
static inline bool exmap_has_table(const struct exmap *exmap, unsigned long address)
{
	pmd_t *pmds = exmap_pmds(exmap, address);

	return pmds && !pmd_none(READ_ONCE(pmds[pmd_index(address)]));
}

/**
 * exmap_walk_unlock - unlock the page table that a walk has locked, if it has
 * @walk: the walk
 */
static inline void exmap_walk_unlock(struct exmap_walk *walk)
{
	if (!walk->lock)
		return;
	__acquire(walk->lock);	/* sparse cannot follow a lock across functions */
	spin_unlock(walk->lock);
	walk->lock = NULL;
	walk->region = NO_REGION;
}

/**
 * exmap_walk_table - look a page table up and lock it
 * @walk: has no table locked
 * @address: on the surface
 *
 * Spins for the PTE lock; does not sleep. The table stays as long as the gate is open.
 *
 * Return: true, with @walk at the table; false if there is no table.
 */
static inline bool exmap_walk_table(struct exmap_walk *walk, unsigned long address)
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

/**
 * exmap_walk_lock - have the page table for an address locked
 * @walk: may have this table locked, another one, or none
 * @address: on the surface. The gate is open, and an interface's lock is held
 *
 * May sleep before it locks another table.
 *
 * Return: true, with @walk at the table; false if there is no table, and then none is locked.
 */
static __always_inline bool exmap_walk_lock(struct exmap_walk *walk, unsigned long address)
{
	return likely(walk->region == address >> PMD_SHIFT) || exmap_walk_move(walk, address);
}

/**
 * exmap_walk_leave - leave the interface, with no table locked
 * @walk: the walk
 * @interface: its lock is held, and released
 */
static inline void exmap_walk_leave(struct exmap_walk *walk, struct exmap_interface *interface)
{
	exmap_walk_unlock(walk);
	exmap_stock_trim(walk->exmap, interface);
	exmap_leave(interface);
}

/**
 * exmap_pte_free - whether a PTE has neither a page nor a flush due
 * @pte: read under the PTE lock
 *
 * What else the kernel can leave there stands for no memory, and gives way to a page, as with
 * any page fault: markers of userfaultfd (UFFD_FEATURE_WP_ASYNC), which had any VMA from 6.7
 * on, and until 6.12.105.
 *
 * Return: whether a page may be mapped there.
 */
static __always_inline bool exmap_pte_free(pte_t pte)
{
	return likely(!native_pte_val(pte)) ||
		(!pte_present(pte) && !pte_same(pte, EXMAP_PTE_DEFERRED));
}

#endif /* EXMAP_WALK_H */
