// SPDX-License-Identifier: GPL-2.0
/*
 * Page tables of the surface go back to the system (EXMAP_TRIM_TABLES).
 *
 * Here exmap does what munmap() does, with the same functions of the kernel, but keeps the VMA. Who
 * might use a page table meanwhile, and what keeps them out:
 *   - calls of exmap: the gate, which is closed
 *   - page faults and everything else that needs mmap_lock or the VMA's lock, the MMU notifier
 *     included: both locks, which are held for writing
 *   - the shrinker, completions: they use page tables only for pages in quarantine, and inside the
 *     gate
 *   - a READ or ALLOC that has left the gate, and comes back to map pages: it needs the table then,
 *     so a table with such addresses stays
 *   - fast GUP and the hardware: free_pgd_range() and tlb_finish_mmu(), which flush what the
 *     processors cache of page tables, and free the tables only after that
 * Reverse mapping finds no page of the surface.
 */
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched/signal.h>

#include "arch.h"
#include "compat.h"
#include "exmap.h"
#include "ksyms.h"
#include "reading.h"
#include "walk.h"

#include <asm/tlb.h>

/* The most tries for a part in which a call is about to map a page, which keeps its tables. */
#define EXMAP_TRIM_TRIES 16

/*
 * Addresses within one GiB, which share a table of pmd_t. Whole page tables. mmap_lock and the VMA
 * are locked for writing.
 */
struct exmap_part {
	struct exmap *exmap;
	unsigned long start;
	unsigned long end;
	pmd_t *pmds;
	DECLARE_BITMAP(busy, PTRS_PER_PMD);	/* tables that READs under way will need */
};

/* Whether a page table exists for an address of a part, and has no page. */
static bool exmap_table_empty(const struct exmap_part *part, unsigned long address)
{
	/* Pairs with pmd_install() of the kernel. */
	const pmd_t pmd = READ_ONCE(part->pmds[pmd_index(address)]);
	const pte_t *pte, *end;

	if (exmap_pmd_is_none(pmd))
		return false;
	pte = exmap_table(pmd);
	for (end = pte + PTRS_PER_PTE; pte < end; pte++) {
		/*
		 * If the gate is open, calls may change it at any time. Pairs with exmap_pte_set(),
		 * exmap_pte_clear(), exmap_pte_mark() and exmap_quarantine_settle().
		 */
		const pte_t entry = READ_ONCE(*pte);

		/* A mark is no page, and pte_none() ignores it. */
		if (!pte_none(entry))
			return false;
	}
	return true;
}

/* Whether a part seems to have an empty table. A hint, because the gate is open. */
static bool exmap_part_has_empty(const struct exmap_part *part)
{
	unsigned long address;

	for (address = part->start; address < part->end; address += PMD_SIZE)
		if (exmap_table_empty(part, address))
			return true;
	return false;
}

/*
 * Find the tables of a part that calls under way will need. Returns false if some call is about to
 * map pages without being in the reading index, so that any table may be needed. The gate is
 * closed.
 */
static bool exmap_part_find_busy(struct exmap_part *part)
{
	struct exmap *exmap = part->exmap;
	unsigned long in_flight = 0;
	unsigned int i;

	bitmap_zero(part->busy, PTRS_PER_PMD);
	for (i = 0; i < exmap_nr_interfaces(exmap); i++)
		/* Before the index. Pairs with exmap_discard(), which needs no lock. */
		in_flight += atomic_read_acquire(&exmap->interfaces[i].in_flight);
	return !in_flight || (exmap_has_reading(exmap) &&
		exmap_reading_tables(exmap, part->start & PUD_MASK, part->busy) >= in_flight);
}

/*
 * Free the empty page tables of a part; and the table that refers to them, and their marks, if all
 * of them are gone. The gate is closed. Returns the number of tables.
 */
static unsigned long exmap_part_free(struct exmap_part *part)
{
	struct exmap *exmap = part->exmap;
	bool all = part->end - part->start == PUD_SIZE;
	unsigned long address, tables = 0;
	struct exmap_leaf *leaf;
	struct mmu_gather tlb;
	long marks;

	static_call(exmap_tlb_gather_mmu)(&tlb, exmap->mm);
	for (address = part->start; address < part->end; address += PMD_SIZE) {
		if (test_bit(pmd_index(address), part->busy) || !exmap_table_empty(part, address)) {
			all &= pmd_none(part->pmds[pmd_index(address)]);
			continue;
		}
		static_call(exmap_free_pgd_range)(&tlb, address, address + PMD_SIZE, address,
						  address + PMD_SIZE);
		tables++;
	}
	if (all) {
		leaf = exmap->directory[part->start >> P4D_SHIFT];
		/*
		 * Pairs with exmap_pmds(). Nobody reads it meanwhile. exmap_gate_open(), mmap_lock
		 * and the VMA's lock order it before later reads.
		 */
		WRITE_ONCE(leaf->pmds[pud_index(part->start)], NULL);
		marks = exmap_marks_free(&leaf->marks, part->start);
		if (marks)
			exmap_rss_add(exmap->mm, -marks);
		static_call(exmap_free_pgd_range)(&tlb, part->start, part->end, part->start,
						  part->end);
		tables++;
	}
	static_call(exmap_tlb_finish_mmu)(&tlb);
	return tables;
}

/* Close the gate and free the empty page tables of a part. Returns their number, or an error. */
static long exmap_part_trim(struct exmap_part *part)
{
	struct exmap *exmap = part->exmap;
	long tables = -EPROTO;

	if (exmap_gate_close(exmap, EXMAP_GATE_CLOSED))
		tables = exmap_part_find_busy(part) ? exmap_part_free(part) : -EAGAIN;
	exmap_gate_open(exmap);
	return tables;
}

/*
 * Find the first part from *@address on that has page tables, and free those that are empty. Moves
 * *@address behind the part. Returns their number; -EAGAIN if the part has to be tried again; or
 * -EPROTO or -EINTR.
 */
static long exmap_trim_next(struct exmap *exmap, unsigned long *address, unsigned long end)
{
	struct exmap_part part = { .exmap = exmap };
	struct vm_area_struct *vma;
	long tables = 0;

	if (mmap_write_lock_killable(exmap->mm))
		return -EINTR;
	vma = exmap_vma(exmap);
	if (!vma) {
		tables = -EPROTO;
		goto unlock;
	}
	/* From here on MADV_DONTNEED, which needs no mmap_lock since 6.14, frees no table. */
	vma_start_write(vma);
	part.start = exmap_reap_skip(exmap, *address, end);
	part.end = pud_addr_end(part.start, end);
	part.pmds = part.start < end ? exmap_pmds(exmap, part.start) : NULL;
	*address = part.start;
	if (part.pmds && exmap_part_has_empty(&part))
		tables = exmap_part_trim(&part);
	if (tables >= 0 && part.pmds)
		*address = part.end;
unlock:
	mmap_write_unlock(exmap->mm);
	return tables;
}

/**
 * exmap_trim_tables - free the page tables of a range in which no page is mapped
 * @exmap: has been set up, and belongs to current->mm; no lock is held
 * @start: first address
 * @end: first address after the range, on the surface
 *
 * Tables that are only partly in the range stay. Holds mmap_lock for writing, and the gate closed,
 * for 1 GiB at a time. May sleep.
 *
 * Return: the number of tables; -EPROTO if the surface has been unmapped; -EINTR if the caller is
 * being killed.
 */
long exmap_trim_tables(struct exmap *exmap, unsigned long start, unsigned long end)
{
	unsigned long address = ALIGN(start, PMD_SIZE), tables = 0;
	unsigned int tries = 0;
	long ret;

	end &= PMD_MASK;
	while (address < end) {
		ret = exmap_trim_next(exmap, &address, end);
		if (ret == -EAGAIN) {
			if (++tries < EXMAP_TRIM_TRIES)
				continue;
			address = pud_addr_end(address, end);
			ret = 0;
		}
		if (ret < 0)
			return ret;
		tries = 0;
		tables += ret;
		cond_resched();
	}
	return tables;
}
