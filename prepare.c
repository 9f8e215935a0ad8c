// SPDX-License-Identifier: GPL-2.0
/*
 * What ALLOC and READ need before pages can come to a range of the surface: page tables, enough
 * free pages, and no flush that is due.
 */
#include <linux/mm.h>

#include "arch.h"
#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"
#include "walk.h"

/**
 * exmap_walk_flush - make sure that no flush is due at an address
 * @walk: the gate is open; this may unlock its table
 * @interface: its lock is held; gets the pages that had to be flushed
 * @address: an address on the surface
 *
 * May sleep. A flush may be due again when this returns, if another thread has mapped a page at
 * @address and freed it with EXMAP_FREE_DEFER. That page was mapped after this call began.
 *
 * Return: 0, or -EINTR if the caller is being killed.
 */
noinline int exmap_walk_flush(struct exmap_walk *walk, struct exmap_interface *interface,
			      unsigned long address)
{
	if (!exmap_walk_lock(walk, address) ||
	    likely(!exmap_walk_is_marked(walk, address)))
		return 0;
	exmap_walk_unlock(walk);
	return exmap_quarantine_recall(walk->exmap, interface, address);
}

/* Count the pages of a range that are not mapped. */
static unsigned int exmap_missing(struct exmap_walk *walk, unsigned long address, unsigned long end)
{
	unsigned int missing = 0;

	for (; address < end; address += PAGE_SIZE)
		missing += !exmap_walk_lock(walk, address) ||
			   !pte_present(walk->table[pte_index(address)]);
	return missing;
}

/* Returns the first address of a range that has no page table, or @end. */
static unsigned long exmap_no_table(const struct exmap *exmap, unsigned long address,
				    unsigned long end)
{
	while (address < end && likely(exmap_has_table(exmap, address)))
		address = pmd_addr_end(address, end);
	return address;
}

/*
 * Maximum retries if the kernel frees a page table while exmap_populate() makes it; bounded, because
 * another thread can cause that with madvise() at any time. -ENOMEM can also mean that memory is
 * short.
 */
#define EXMAP_TABLE_TRIES 16

/*
 * Make the page tables that a range lacks. The interface's lock may be released and taken again.
 * Returns 0 with the lock held and the gate open; or an error, and the interface has been left.
 */
static int exmap_prepare_tables(struct exmap_walk *walk, struct exmap_interface *interface,
				unsigned long start, unsigned long end)
{
	struct exmap *exmap = walk->exmap;
	unsigned int openings, tries = 0;
	unsigned long address;
	int err, populated;

	while (unlikely((address = exmap_no_table(exmap, start, end)) < end)) {
		/* Before the page tables are read. Pairs with exmap_gate_open(). */
		openings = smp_load_acquire(&exmap->openings);
		exmap_walk_leave(walk, interface);
		populated = exmap_populate(exmap, address, end);
		/* An error of exmap_enter() takes precedence over one in @populated. */
		err = exmap_enter(exmap, interface);
		if (err)
			return err;
		if (populated && !(populated == -ENOMEM && exmap_was_closed(exmap, openings) &&
				   ++tries < EXMAP_TABLE_TRIES)) {
			exmap_walk_leave(walk, interface);
			return populated;
		}
	}
	return 0;
}

/*
 * Make sure that the stock has a page for each absent page of a range. Returns 0 if it has, with
 * the interface's lock held throughout; 1 if the lock was released meanwhile, with the lock held
 * and the gate open again; or an error, and the interface has been left.
 */
static int exmap_prepare_stock(struct exmap_walk *walk, struct exmap_interface *interface,
			       unsigned long start, unsigned long end)
{
	struct exmap *exmap = walk->exmap;
	unsigned int missing;
	int err;

	/* Most ranges lack all pages. So count absent pages only if the depot has not enough. */
	if (likely(exmap_stock_draw(exmap, interface, (end - start) >> PAGE_SHIFT)))
		return 0;
	missing = exmap_missing(walk, start, end);
	if (exmap_stock(interface) >= missing)
		return 0;
	exmap_walk_unlock(walk);
	err = exmap_stock_fill(exmap, interface, missing);
	if (err == -ENOMEM) {
		/* Another thread may have mapped pages of this range, with the last free pages. */
		err = exmap_enter(exmap, interface);
		if (err || exmap_missing(walk, start, end) < missing)
			return err ?: 1;
		exmap_walk_leave(walk, interface);
		return -ENOMEM;
	}
	/*
	 * The lock was released, so the gate may be closed now. Or it has been opened again. Then
	 * this pairs with the release in exmap_gate_open(): the page tables are looked up afresh.
	 */
	if (!err && smp_load_acquire(&exmap->gate) != EXMAP_GATE_OPEN) {
		exmap_leave(interface);
		err = exmap_enter(exmap, interface);
	}
	return err ?: 1;
}

/**
 * exmap_prepare - make sure that a range has all that ALLOC and READ need there
 * @walk: the gate is open; this may unlock its table
 * @interface: its lock is held. The lock may be released and taken again; on success it is held and
 *	the gate is open. On an error the interface has been left
 * @start: first address
 * @end: first address after the range
 *
 * The range has its page tables, and the stock has a page for each absent page of the range. After
 * releasing the interface's lock this checks the whole range again. A flush may still be due.
 *
 * May sleep and allocate, and may take mmap_lock to make page tables.
 *
 * Return: 0; or -ENOMEM, -EPROTO if there is no surface any more, or -EINTR if the caller is being
 * killed, with the surface unchanged.
 */
int exmap_prepare(struct exmap_walk *walk, struct exmap_interface *interface, unsigned long start,
		  unsigned long end)
{
	int ret;

	do {
		ret = exmap_prepare_tables(walk, interface, start, end);
		if (likely(!ret))
			ret = exmap_prepare_stock(walk, interface, start, end);
	} while (ret > 0);
	return ret;
}
