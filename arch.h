/* SPDX-License-Identifier: GPL-2.0 */
/*
 * All differences between the processors that exmap runs on. Each has the same names here. The
 * other files read as if only one processor existed, except arm64.c, which is built for arm64 only.
 *
 *   EXMAP_ARCH_KSYMS(X)    kernel functions that only this processor needs, as for EXMAP_KSYMS()
 *   EXMAP_FLUSH_SINGLE     the most pages that are flushed one by one. If there are more, all that
 *                          the TLBs hold is flushed, and the addresses do not matter
 *   EXMAP_FLUSH_SHARED     1 if threads that flush at the same time share a flush, because each
 *                          flush interrupts other CPUs
 *   EXMAP_VM_REFUSED       flags of a VMA that the surface must not have
 *   EXMAP_PTE_NONE         an empty PTE
 *   struct exmap_marks       the marks of one page table, if they are not in its entries
 *   struct exmap_leaf_marks  finds the marks of all page tables of 512 GiB
 *   struct exmap_pages     the addresses of the pages to flush, if the flush goes by them
 *   struct exmap_page_list collects these addresses, in
 *   struct exmap_page_room its memory
 */
#ifndef EXMAP_ARCH_H
#define EXMAP_ARCH_H

#include <linux/init.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/static_call.h>

#include "version.h"

#if defined(CONFIG_X86_64)

#include <asm/cpu_device_id.h>

/* asm/tlbflush.h hides this declaration from modules. */
void flush_tlb_mm_range(struct mm_struct *mm, unsigned long start, unsigned long end,
			unsigned int stride_shift, bool freed_tables);

DECLARE_STATIC_CALL(exmap_flush_tlb_mm_range, flush_tlb_mm_range);
#define EXMAP_ARCH_KSYMS(X) X(exmap_flush_tlb_mm_range, flush_tlb_mm_range)

/* tlb_single_page_flush_ceiling, Linux 6.1 to 7.3 */
#define EXMAP_FLUSH_SINGLE 33
/* Another value may come from KCFLAGS: bench/sharing also builds exmap with 0. */
#ifndef EXMAP_FLUSH_SHARED
#define EXMAP_FLUSH_SHARED 1
#endif
#define EXMAP_VM_REFUSED 0

/* PTEs are used without paravirt_ops: Xen PV, which needs them, is refused. */
#define EXMAP_PTE_NONE native_make_pte(0)

/*
 * Placeholder for the PTE of a page in quarantine: no page may be mapped here before the flush. To
 * the kernel it is a none PTE, so an access causes a page fault. pte_none() of every kernel ignores
 * this bit, because some Xeon Phi processors set it by mistake (_PAGE_KNL_ERRATUM_MASK).
 */
#define EXMAP_PTE_MARK native_make_pte(_PAGE_ACCESSED)

struct exmap_marks { };
struct exmap_leaf_marks { };

/* The kernel flushes a range, or everything. */
struct exmap_pages { };
struct exmap_page_list { };
struct exmap_page_room { };

/**
 * exmap_arch_problem - whether exmap can run on this machine
 *
 * Return: NULL; or why it cannot.
 */
static inline const char *__init exmap_arch_problem(void)
{
	static const struct x86_cpu_id phi[] __initconst = {
		X86_MATCH_VENDOR_FAM_MODEL(INTEL, 6, 0x57, NULL),	/* Knights Landing */
		X86_MATCH_VENDOR_FAM_MODEL(INTEL, 6, 0x85, NULL),	/* Knights Mill */
		{ }
	};

	/* These may set bits in a PTE that is not present (_PAGE_KNL_ERRATUM_MASK). */
	if (x86_match_cpu(phi))
		return "Xeon Phi processors are not supported";
	/* Xen PV guests do not own their page tables. */
	if (boot_cpu_has(X86_FEATURE_XENPV))
		return "Xen PV guests are not supported";
	return NULL;
}

/**
 * exmap_pte_make - make a PTE
 * @bits: all of it but the page frame
 * @page: the page
 *
 * Return: the PTE.
 */
static __always_inline pte_t exmap_pte_make(pteval_t bits, struct page *page)
{
	return native_make_pte(bits | page_to_phys(page));
}

/**
 * exmap_pte_is_unused - whether all bits of a PTE are 0, and it is not marked
 * @marks: of its page table
 * @pte: the PTE
 * @value: its value, read under its PTE lock
 *
 * Return: true if so.
 */
static __always_inline bool exmap_pte_is_unused(struct exmap_marks marks, const pte_t *pte,
						pte_t value)
{
	return !native_pte_val(value);
}

/**
 * exmap_pte_is_valid - whether the hardware finds a page in a PTE
 * @pte: the PTE
 *
 * Return: true if it does, which pte_present() does not imply.
 */
static __always_inline bool exmap_pte_is_valid(pte_t pte)
{
	return native_pte_val(pte) & _PAGE_PRESENT;
}

/**
 * exmap_pte_page - the page that a PTE maps
 * @pte: exmap_pte_is_valid() is true of it
 *
 * Return: the page. Unlike pte_page(), this does not ask the hypervisor what the PTE is.
 */
static __always_inline struct page *exmap_pte_page(pte_t pte)
{
	return pfn_to_page((native_pte_val(pte) & PTE_PFN_MASK) >> PAGE_SHIFT);
}

/**
 * exmap_pte_is_marked - whether a PTE is marked, because a flush is due
 * @marks: of its page table
 * @pte: the PTE
 * @value: its value, read under its PTE lock
 *
 * Return: true if it is.
 */
static __always_inline bool exmap_pte_is_marked(struct exmap_marks marks, const pte_t *pte,
						pte_t value)
{
	return pte_same(value, EXMAP_PTE_MARK);
}

/**
 * exmap_pte_mark - mark a PTE, because a flush is due
 * @marks: of its page table
 * @pte: the PTE, which is empty; its PTE lock is held
 *
 * The store pairs with the walk of the hardware and with fast GUP, to which the mark is none, and
 * with exmap_table_empty().
 */
static __always_inline void exmap_pte_mark(struct exmap_marks marks, pte_t *pte)
{
	BUILD_BUG_ON(!pte_none(EXMAP_PTE_MARK) || pte_present(EXMAP_PTE_MARK));
	WRITE_ONCE(*pte, EXMAP_PTE_MARK);
}

/**
 * exmap_pte_unmark - remove the part of a mark that is not in the PTE
 * @marks: of its page table
 * @pte: the PTE; its PTE lock is held. The caller then writes another value to it
 */
static __always_inline void exmap_pte_unmark(struct exmap_marks marks, const pte_t *pte)
{
}

/**
 * exmap_marks_find - find the marks of a page table
 * @of: of the leaf for @address, which may be exmap_no_leaf. The leaf cannot be freed meanwhile
 * @address: an address of the page table
 * @marks: set to the marks
 *
 * Return: true; or false if exmap_marks_make() has not made them. Then the page table has never had
 * a page, because exmap takes it for missing.
 */
static __always_inline bool exmap_marks_find(const struct exmap_leaf_marks *of,
					     unsigned long address, struct exmap_marks *marks)
{
	return true;
}

/**
 * exmap_marks_make - allocate the marks of a page table, if they have not been made
 * @of: of the leaf for @address
 * @address: an address of the page table
 *
 * May sleep for memory. Several threads may call it for one page table.
 *
 * Return: the number of pages allocated, for the resident set of the process; or -ENOMEM.
 */
static inline int exmap_marks_make(struct exmap_leaf_marks *of, unsigned long address)
{
	return 0;
}

/**
 * exmap_marks_free - free the marks of all page tables of one GiB
 * @of: of the leaf for @address
 * @address: an address in that GiB. Nobody else uses its marks, and none is set
 *
 * Return: the number of pages freed, as for exmap_marks_make().
 */
static inline int exmap_marks_free(struct exmap_leaf_marks *of, unsigned long address)
{
	return 0;
}

/**
 * exmap_pmd_is_none - whether a pmd_t refers to no page table
 * @pmd: the pmd_t
 *
 * Return: true if it does not.
 */
static __always_inline bool exmap_pmd_is_none(pmd_t pmd)
{
	return !native_pmd_val(pmd);
}

/**
 * exmap_table - find the page table that a pmd_t refers to
 * @pmd: not none. It is not a huge page, because the surface has none
 *
 * Return: the first entry of the page table.
 */
static __always_inline pte_t *exmap_table(pmd_t pmd)
{
	return __va(native_pmd_val(pmd) & PTE_PFN_MASK);
}

/**
 * exmap_table_page - the struct page of the page table that a pmd_t refers to
 * @pmd: as for exmap_table()
 *
 * Return: the struct page.
 */
static __always_inline struct page *exmap_table_page(pmd_t pmd)
{
	return pfn_to_page((native_pmd_val(pmd) & PTE_PFN_MASK) >> PAGE_SHIFT);
}

/**
 * exmap_pages_at - the pages of a flush
 * @address: their addresses, without order. The array must stay until the flush has ended; NULL if
 *	the addresses are not known
 * @nr: number of pages; 0 if any page of the range may be affected
 *
 * Return: the argument for exmap_flush_tlb().
 */
static __always_inline struct exmap_pages exmap_pages_at(const unsigned long *address,
							 unsigned int nr)
{
	return (struct exmap_pages){ };
}

/**
 * exmap_page_list - an empty list
 * @room: its memory, which must stay as long as the list is used
 *
 * Return: the list.
 */
static __always_inline struct exmap_page_list exmap_page_list(struct exmap_page_room *room)
{
	return (struct exmap_page_list){ };
}

/**
 * exmap_page_list_add - collect the address of an unmapped page
 * @list: the list
 * @address: the address
 */
static __always_inline void exmap_page_list_add(struct exmap_page_list *list,
						unsigned long address)
{
}

/**
 * exmap_page_list_end - the pages of a list, for one flush
 * @list: the list, which is empty after that. It may be filled again only after the flush
 *
 * Return: as exmap_pages_at().
 */
static __always_inline struct exmap_pages exmap_page_list_end(struct exmap_page_list *list)
{
	return (struct exmap_pages){ };
}

/**
 * exmap_flush_tlb - flush pages from the TLBs of all CPUs
 * @mm: whose address space
 * @start: first address of the range that has the pages
 * @end: first address after the range
 * @pages: which pages of the range. Others may be flushed, too
 *
 * Page tables stay. It is a full barrier.
 */
static __always_inline void exmap_flush_tlb(struct mm_struct *mm, unsigned long start,
					    unsigned long end, struct exmap_pages pages)
{
	static_call(exmap_flush_tlb_mm_range)(mm, start, end, PAGE_SHIFT, false);
}

#elif defined(CONFIG_ARM64)

#include <linux/mmu_notifier.h>

/*
 * After a PTE is written, no DSB follows, because the kernel's set_pte() has none for user space
 * either. A CPU whose walk comes too early takes a page fault, and the kernel finds the page there.
 */

/*
 * The inline functions with which arm64.c flushes call these. arm64.c defines them under the same
 * names, which are not exported, and passes the calls on.
 */
#ifdef EXMAP_HAS_SECONDARY_TLBS
DECLARE_STATIC_CALL(exmap_secondary_tlbs, __mmu_notifier_arch_invalidate_secondary_tlbs);
#define EXMAP_KSYM_SECONDARY(X) \
	X(exmap_secondary_tlbs, __mmu_notifier_arch_invalidate_secondary_tlbs)
#else
#define EXMAP_KSYM_SECONDARY(X)
#endif
#ifdef CONFIG_ARM64_ERRATUM_4193714
void sme_do_dvmsync(const struct cpumask *mask);
DECLARE_STATIC_CALL(exmap_sme_do_dvmsync, sme_do_dvmsync);
#define EXMAP_KSYM_DVMSYNC(X) X(exmap_sme_do_dvmsync, sme_do_dvmsync)
#else
#define EXMAP_KSYM_DVMSYNC(X)
#endif
#define EXMAP_ARCH_KSYMS(X) EXMAP_KSYM_SECONDARY(X) EXMAP_KSYM_DVMSYNC(X)

/* The kernel flushes everything if a range has 512 pages or more (MAX_DVM_OPS). */
#define EXMAP_FLUSH_SINGLE 511
/* A flush interrupts nobody, and flushes of several CPUs do not disturb each other. */
#ifndef EXMAP_FLUSH_SHARED
#define EXMAP_FLUSH_SHARED 0
#endif
/* exmap does not keep the instruction cache in step with the pages. */
#define EXMAP_VM_REFUSED VM_EXEC

#define EXMAP_PTE_NONE __pte(0)

/*
 * pte_none() overlooks no bit of a PTE, so a mark cannot be in it. Each page table has a bitmap
 * beside it, in which bit n is the mark of entry n. The PTE lock guards both. A bitmap goes with
 * its addresses: if the kernel frees the page table and makes another one, it stays. That is
 * correct because no mark is set while the gate is closed.
 */
struct exmap_marks {
	unsigned long *bits;
};

/* The number of page tables whose marks are in one page. */
#define EXMAP_MARKS_PER_PAGE (PAGE_SIZE * BITS_PER_BYTE / PTRS_PER_PTE)

/* For each GiB: an array of pages of marks, each NULL until it is needed. Or NULL. */
struct exmap_leaf_marks {
	unsigned long **gib[PTRS_PER_PUD];
};

/* The most pages that a list holds. */
#define EXMAP_PAGE_LIST 64

struct exmap_pages {
	const unsigned long *address;
	unsigned int nr;
};

/* @nr counts all pages, @room holds the first of them. */
struct exmap_page_list {
	unsigned int nr;
	struct exmap_page_room *room;
};

/*
 * It is not part of the list, because a FREE that initializes its list would clear it. A FREE has
 * it on its stack.
 */
struct exmap_page_room {
	unsigned long address[EXMAP_PAGE_LIST];
};

static inline const char *__init exmap_arch_problem(void)
{
	if (PAGE_SIZE != 4096)
		return "kernels with pages of other than 4 KiB are not supported";
	if (IS_ENABLED(CONFIG_CPU_BIG_ENDIAN))
		return "big endian kernels are not supported";
	return NULL;
}

/* The bits of a physical address are not all in one place. */
static __always_inline pte_t exmap_pte_make(pteval_t bits, struct page *page)
{
	return __pte(bits | __phys_to_pte_val(page_to_phys(page)));
}

static __always_inline bool exmap_pte_is_valid(pte_t pte)
{
	return pte_val(pte) & PTE_VALID;
}

static __always_inline struct page *exmap_pte_page(pte_t pte)
{
	return pte_page(pte);
}

/**
 * exmap_pte_number - the number of a PTE in its page table
 * @pte: the PTE
 *
 * Return: 0 to PTRS_PER_PTE - 1.
 */
static __always_inline unsigned int exmap_pte_number(const pte_t *pte)
{
	return (unsigned long)pte / sizeof(*pte) % PTRS_PER_PTE;
}

static __always_inline bool exmap_pte_is_marked(struct exmap_marks marks, const pte_t *pte,
						pte_t value)
{
	return test_bit(exmap_pte_number(pte), marks.bits);
}

static __always_inline bool exmap_pte_is_unused(struct exmap_marks marks, const pte_t *pte,
						pte_t value)
{
	return !pte_val(value) && !exmap_pte_is_marked(marks, pte, value);
}

static __always_inline void exmap_pte_mark(struct exmap_marks marks, pte_t *pte)
{
	__set_bit(exmap_pte_number(pte), marks.bits);
}

static __always_inline void exmap_pte_unmark(struct exmap_marks marks, const pte_t *pte)
{
	__clear_bit(exmap_pte_number(pte), marks.bits);
}

static __always_inline bool exmap_marks_find(const struct exmap_leaf_marks *of,
					     unsigned long address, struct exmap_marks *marks)
{
	const unsigned int table = pmd_index(address);
	unsigned long *const *gib, *page = NULL;

	/* Both reads pair with exmap_marks_make(), by an address dependency. */
	gib = READ_ONCE(of->gib[pud_index(address)]);
	if (gib)
		page = READ_ONCE(gib[table / EXMAP_MARKS_PER_PAGE]);
	if (!page)
		return false;
	marks->bits = page + table % EXMAP_MARKS_PER_PAGE * BITS_TO_LONGS(PTRS_PER_PTE);
	return true;
}

static __always_inline bool exmap_pmd_is_none(pmd_t pmd)
{
	return !pmd_val(pmd);
}

static __always_inline pte_t *exmap_table(pmd_t pmd)
{
	return __va(__pmd_to_phys(pmd));
}

static __always_inline struct page *exmap_table_page(pmd_t pmd)
{
	return pmd_page(pmd);
}

static __always_inline struct exmap_pages exmap_pages_at(const unsigned long *address,
							 unsigned int nr)
{
	return (struct exmap_pages){ .address = address, .nr = nr };
}

static __always_inline struct exmap_page_list exmap_page_list(struct exmap_page_room *room)
{
	return (struct exmap_page_list){ .room = room };
}

static __always_inline void exmap_page_list_add(struct exmap_page_list *list,
						unsigned long address)
{
	if (list->nr < EXMAP_PAGE_LIST)
		list->room->address[list->nr] = address;
	list->nr++;
}

static __always_inline struct exmap_pages exmap_page_list_end(struct exmap_page_list *list)
{
	const unsigned int nr = list->nr;

	list->nr = 0;
	return exmap_pages_at(nr <= EXMAP_PAGE_LIST ? list->room->address : NULL, nr);
}

/* arm64.c */
int exmap_marks_make(struct exmap_leaf_marks *of, unsigned long address);
int exmap_marks_free(struct exmap_leaf_marks *of, unsigned long address);
void exmap_flush_tlb(struct mm_struct *mm, unsigned long start, unsigned long end,
		     struct exmap_pages pages);

#else
#error "exmap supports x86-64 and arm64 only"
#endif

#endif /* EXMAP_ARCH_H */
