// SPDX-License-Identifier: GPL-2.0
/*
 * The surface as a mapping: its VMA, mmap, and touches of pages that are not there.
 */
#include <linux/file.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "compat.h"
#include "exmap.h"
#include "trace.h"
#include "walk.h"

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

const struct vm_operations_struct exmap_vma_ops = {
	.open = exmap_vma_open,
	.may_split = exmap_vma_may_split,
	.mprotect = exmap_vma_mprotect,
	.mremap = exmap_vma_mremap,
	.fault = exmap_vma_fault,
	EXMAP_VMA_POLICY
};

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
