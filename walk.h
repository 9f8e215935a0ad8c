/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Lookups in the page tables of the surface. tables.c makes page tables.
 */
#ifndef EXMAP_WALK_H
#define EXMAP_WALK_H

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/spinlock.h>

#include "arch.h"
#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "reading.h"

/*
 * A position in the page tables of the surface. At most one table is locked at a time. On the stack
 * of one task.
 */
struct exmap_walk {
	struct exmap *exmap;
	unsigned long region;	/* address >> PMD_SHIFT of @table, or NO_REGION */
	pte_t *table;
	struct exmap_marks marks;	/* of @table */
	spinlock_t *lock;	/* the PTE lock of @table, which is held; NULL if none is */
};

/* The value of @region if no table is locked. */
#define NO_REGION ULONG_MAX
#define EXMAP_WALK(of) { .exmap = (of), .region = NO_REGION }

/* The directory's entry for every leaf that has not been made, which saves a check for NULL. */
extern const struct exmap_leaf exmap_no_leaf;

/* tables.c */
bool exmap_walk_move(struct exmap_walk *walk, unsigned long address);
struct vm_area_struct *exmap_vma(struct exmap *exmap);
int exmap_populate_one(struct exmap *exmap, unsigned long address);
int exmap_populate(struct exmap *exmap, unsigned long address, unsigned long end);
unsigned long exmap_leaves(unsigned long start, unsigned long end);
void exmap_leaves_free(struct exmap *exmap);

/**
 * exmap_leaf_of - look up the leaf of an address
 * @exmap: has a surface
 * @address: an address on the surface
 *
 * Pairs with exmap_leaf_get(); see exmap_pmds().
 *
 * Return: the leaf; or &exmap_no_leaf if it has not been made yet.
 */
static inline const struct exmap_leaf *exmap_leaf_of(const struct exmap *exmap,
						     unsigned long address)
{
	return READ_ONCE(exmap->directory[address >> P4D_SHIFT]);
}

/**
 * exmap_pmds - look up the table that holds the pmd_t of an address
 * @exmap: has a surface
 * @address: an address on the surface
 *
 * The gate is open and an interface's lock is held, or mmap_lock is held, or the kernel is at work
 * on the surface. So trim.c clears no entry meanwhile. The reads pair with exmap_leaf_get() and
 * exmap_populate_one(): an address dependency orders them before the accesses to the tables they
 * point to.
 *
 * Return: the table; or NULL if none has been made yet.
 */
static inline pmd_t *exmap_pmds(const struct exmap *exmap, unsigned long address)
{
	return READ_ONCE(exmap_leaf_of(exmap, address)->pmds[pud_index(address)]);
}

/**
 * exmap_has_table - whether there is a page table for an address
 * @exmap: has a surface
 * @address: an address on the surface
 *
 * Return: true if the table and its marks exist. It stays as long as the gate is open.
 */
static inline bool exmap_has_table(const struct exmap *exmap, unsigned long address)
{
	const struct exmap_leaf *leaf = exmap_leaf_of(exmap, address);
	/* Pairs with exmap_populate_one(), as in exmap_pmds(). */
	pmd_t *pmds = READ_ONCE(leaf->pmds[pud_index(address)]);
	struct exmap_marks marks;

	/* Read once: generic code may be setting it. Pairs with pmd_install() of the kernel. */
	return pmds && !pmd_none(READ_ONCE(pmds[pmd_index(address)])) &&
		exmap_marks_find(&leaf->marks, address, &marks);
}

/**
 * exmap_walk_unlock - unlock the table of a walk, if one is locked
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
 * exmap_walk_table - look up a page table and lock it
 * @walk: has no table locked
 * @address: an address on the surface
 *
 * Spins for the PTE lock; does not sleep. The table stays as long as the gate is open; if the gate
 * is closed, see exmap_walk_table_closed().
 *
 * Return: true, with @walk at the locked table; false if there is no table that may have a page.
 */
static inline bool exmap_walk_table(struct exmap_walk *walk, unsigned long address)
{
	const struct exmap_leaf *leaf = exmap_leaf_of(walk->exmap, address);
	/* Pairs with exmap_populate_one(), as in exmap_pmds(). */
	pmd_t *pmds = READ_ONCE(leaf->pmds[pud_index(address)]);
	pmd_t value;

	if (!pmds)
		return false;
	/* Pairs with pmd_install() of the kernel. The table's address depends on this value. */
	value = READ_ONCE(pmds[pmd_index(address)]);
	if (exmap_pmd_is_none(value) || !exmap_marks_find(&leaf->marks, address, &walk->marks))
		return false;
	walk->table = exmap_table(value);
	walk->lock = exmap_table_lock(walk->exmap->mm, exmap_table_page(value));
	walk->region = address >> PMD_SHIFT;
	spin_lock(walk->lock);
	__release(walk->lock);
	return true;
}

/**
 * exmap_walk_lock - lock the page table of an address, unless it is locked already
 * @walk: may have this table locked, another one, or none
 * @address: an address on the surface. The gate is open, and an interface's lock is held
 *
 * Unlocks the table that @walk had. May sleep before it locks another one.
 *
 * Return: true, with @walk at the locked table; false if there is no table, and then none is
 * locked.
 */
static __always_inline bool exmap_walk_lock(struct exmap_walk *walk, unsigned long address)
{
	return likely(walk->region == address >> PMD_SHIFT) || exmap_walk_move(walk, address);
}

/**
 * exmap_walk_leave - unlock the table of a walk and leave the interface
 * @walk: the walk
 * @interface: its lock is held, and is released
 */
static inline void exmap_walk_leave(struct exmap_walk *walk, struct exmap_interface *interface)
{
	exmap_walk_unlock(walk);
	exmap_stock_trim(walk->exmap, interface);
	exmap_leave(interface);
}

/**
 * exmap_walk_is_marked - whether the PTE of an address is marked
 * @walk: has the page table of @address locked
 * @address: an address on the surface
 *
 * Return: true if a flush is due there.
 */
static __always_inline bool exmap_walk_is_marked(const struct exmap_walk *walk,
						 unsigned long address)
{
	const pte_t *pte = &walk->table[pte_index(address)];

	return exmap_pte_is_marked(walk->marks, pte, *pte);
}

/**
 * exmap_walk_is_unused - whether a PTE is 0 and not marked
 * @walk: has the page table of @address locked
 * @address: an address on the surface
 *
 * Return: true if so. Then a page may be mapped there.
 */
static __always_inline bool exmap_walk_is_unused(const struct exmap_walk *walk,
						 unsigned long address)
{
	const pte_t *pte = &walk->table[pte_index(address)];

	return exmap_pte_is_unused(walk->marks, pte, *pte);
}

/**
 * exmap_pte_free - whether a page may be mapped at a PTE
 * @marks: of its page table
 * @pte: the PTE
 * @value: its value, read under its PTE lock
 *
 * A PTE that is not present and has no flush due does not stand for memory. It can be a marker of
 * userfaultfd (UFFD_FEATURE_WP_ASYNC), which the kernel set in any VMA from 6.7 until 6.12.105. A
 * page replaces the marker, as in any page fault.
 *
 * Return: true if the PTE has neither a page nor a flush due.
 */
static __always_inline bool exmap_pte_free(struct exmap_marks marks, const pte_t *pte,
					   pte_t value)
{
	return likely(exmap_pte_is_unused(marks, pte, value)) ||
		(!pte_present(value) && !exmap_pte_is_marked(marks, pte, value));
}

/**
 * exmap_walk_page - lock the page table for a page of the surface
 * @walk: has no table locked. The gate is open
 * @page: which page of the surface, or a number beyond it
 * @address: set to the page's address
 *
 * Return: true, with @walk at the table; false if @page is beyond the surface, or has no table.
 */
static __always_inline bool exmap_walk_page(struct exmap_walk *walk, unsigned long page,
					    unsigned long *address)
{
	const struct exmap *exmap = walk->exmap;
	const unsigned long pages = (exmap->end - exmap->start) >> PAGE_SHIFT;

	if (unlikely(page >= pages))
		return false;
	*address = exmap->start + (array_index_nospec(page, pages) << PAGE_SHIFT);
	return exmap_walk_table(walk, *address);
}

/**
 * exmap_walk_drop - unlock the page table that exmap_walk_page() has locked
 * @walk: not to be used any more
 */
static __always_inline void exmap_walk_drop(struct exmap_walk *walk)
{
	__acquire(walk->lock);	/* see exmap_walk_unlock() */
	spin_unlock(walk->lock);
}

/**
 * exmap_map_page - put a page into a PTE
 * @exmap: the exmap
 * @address: what the entry is for
 * @pte: the entry, of which exmap_pte_free() is true; its page table is locked
 * @page: the page
 */
static __always_inline void exmap_map_page(struct exmap *exmap, unsigned long address, pte_t *pte,
					   struct page *page)
{
	exmap_pte_set(exmap->mm, address, pte, exmap_pte_make(exmap->pte, page));
	if (unlikely(exmap_has_reading(exmap)))
		exmap_reading_mark(exmap->reading, exmap->reading_shift, address >> PAGE_SHIFT);
}

#endif /* EXMAP_WALK_H */
