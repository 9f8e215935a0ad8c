// SPDX-License-Identifier: GPL-2.0
/*
 * The surface as a mapping: its VMA, mmap, and page faults on absent pages.
 */
#include <linux/file.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "trace.h"
#include "walk.h"

/* Page faults on absent pages */

/*
 * Handle a page fault while the gate is closed. The fault arrives with mmap_lock held, and the task
 * that closed the gate may be waiting for mmap_lock. So drop mmap_lock and wait if the flags allow
 * that; otherwise return and let the access fault again.
 *
 * A caller with FAULT_FLAG_RETRY_NOWAIT must not wait, and VM_FAULT_RETRY tells it so. KVM sets
 * this flag for a virtual CPU. mmap_lock then stays held.
 */
static vm_fault_t exmap_fault_wait(struct exmap *exmap, struct vm_fault *vmf)
{
	struct file *file;

	if (!fault_flag_allow_retry_first(vmf->flags))
		return VM_FAULT_NOPAGE;
	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;
	/* The VMA may go away without mmap_lock. The file keeps the exmap alive. */
	file = get_file(vmf->vma->vm_file);
	mmap_read_unlock(exmap->mm);
	/*
	 * Stop waiting at a fatal signal, which the caller checks for. Pairs with exmap_gate_open()
	 * and exmap_surface_kill(), which change the gate before they wake the waiters.
	 */
	(void)wait_event_killable(exmap->gate_wait, READ_ONCE(exmap->gate) != EXMAP_GATE_CLOSED);
	fput(file);
	return VM_FAULT_RETRY;
}

/*
 * Lock the interface that serves page faults and try to bring a free page into its stock. Returns 0
 * or -ENOMEM with the interface's lock held, or -EINTR with nothing held. After -ENOMEM the caller
 * still checks the PTE: the thread that took the last page may have mapped it at this address.
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
 * Map the page that was touched. VM_FAULT_NOPAGE makes the CPU repeat the access, so return it only
 * if a retry can succeed: an access by the kernel cannot be killed.
 */
static vm_fault_t exmap_fault_alloc(struct exmap *exmap, struct vm_fault *vmf)
{
	struct exmap_interface *interface = &exmap->interfaces[exmap->max_interfaces];
	struct exmap_walk walk = EXMAP_WALK(exmap);
	/* Before the page tables are read. Pairs with exmap_gate_open(). */
	unsigned int openings = smp_load_acquire(&exmap->openings);
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
	/* Pairs with the releases in exmap_surface_map() and exmap_gate_open(). */
	gate = smp_load_acquire(&exmap->gate);
	if (gate == EXMAP_GATE_OPEN && exmap_walk_flush(&walk, interface, vmf->address)) {
		err = -EINTR;
	} else if (gate == EXMAP_GATE_OPEN && exmap_walk_lock(&walk, vmf->address)) {
		pte = &walk.table[pte_index(vmf->address)];
		exmap_map_run(exmap, interface, vmf->address, walk.marks, pte, 1, &mapped);
		/* The thread that took the last page may have mapped it at this address. */
		if (mapped || !exmap_pte_free(walk.marks, pte, *pte))
			err = 0;
	}
	/* If the gate is closed, the touch is repeated: there may be a page by then. */
	if (gate == EXMAP_GATE_CLOSED)
		err = 0;
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

/* A separate function, in which tests/shell/no-indirect-call expects the call of the last put. */
static noinline void exmap_memcg_put(struct mem_cgroup *memcg)
{
	mem_cgroup_put(memcg);
}

static vm_fault_t exmap_vma_fault(struct vm_fault *vmf)
{
	struct exmap *exmap = vmf->vma->vm_private_data;
	struct mem_cgroup *memcg, *before;
	vm_fault_t ret;

	/*
	 * A VMA copied to a child process has no pages and never gets any. The acquire pairs with
	 * exmap_setup(): @flags and the number of interfaces are set.
	 */
	if (vmf->vma->vm_mm != exmap->mm || !smp_load_acquire(&exmap->interfaces) ||
	    !(exmap->flags & EXMAP_PAGEFAULT_ALLOC))
		return VM_FAULT_SIGSEGV;
	/*
	 * Charge the exmap's process. The current task may be a debugger or a kernel thread, and a
	 * kernel thread has no memory limit.
	 */
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
 * @vma: the surface or the page of an interface; mmap_lock is held for writing
 *
 * A child process must not inherit a page. User space can clear VM_DONTCOPY with MADV_DOFORK, which
 * newer kernels refuse. It can clear VM_WIPEONFORK with MADV_KEEPONFORK. If both are clear, fork
 * copies the VMA. It does not copy the page tables, because vma_needs_copy() finds no reason to do
 * so for a shared file mapping.
 *
 * VM_MIXEDMAP and VM_PFNMAP must never be set, because each is a reason for vma_needs_copy().
 * Nothing here depends on VM_MIXEDMAP. VM_DONTEXPAND is in VM_SPECIAL too, so mm does not lock,
 * merge, age or collapse the pages. EXMAP_VMA_POLICY keeps NUMA balancing away.
 */
void exmap_vma_protect(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTCOPY | VM_DONTDUMP | VM_WIPEONFORK);
}

/**
 * exmap_vma_open - handle a copy of the VMA of the surface or of an interface
 * @vma: the copy; mmap_lock of its mm is held for writing
 *
 * This is a second line of defense for child processes. vma_needs_copy() also finds a reason to
 * copy page tables if a user with CAP_SYS_PTRACE tracks forks with userfaultfd. The flag set here
 * helps only if the kernel calls this function before it copies the page tables: 6.9 and later do,
 * and older kernels that have this change backported.
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

/*
 * Pages of kernel memory that an unused surface takes: the array of leaves, and @reaped. See
 * exmap_surface_map().
 */
static unsigned long exmap_surface_pages(unsigned long leaves)
{
	return DIV_ROUND_UP(leaves * sizeof(struct exmap_leaf *), PAGE_SIZE) + 1;
}

/**
 * exmap_surface_map - make a mapping the surface
 * @exmap: has had no surface yet; mmap_lock is held for writing
 * @vma: a shared mapping that belongs to exmap->mm
 *
 * Allocates the directory and opens the gate. Page tables are made later, by exmap_populate().
 *
 * Return: 0; -ENOMEM; -EINVAL if the mapping is PROT_NONE, or if it is executable and exmap cannot
 * do that on this processor.
 */
int exmap_surface_map(struct exmap *exmap, struct vm_area_struct *vma)
{
	pgprot_t prot = vm_get_page_prot(vma->vm_flags);
	unsigned long nr = exmap_leaves(vma->vm_start, vma->vm_end);

	mmap_assert_write_locked(exmap->mm);
	/*
	 * With PROT_NONE the PTEs would not be present, and exmap takes such a PTE for an absent
	 * page.
	 */
	if (!(vma->vm_flags & (VM_READ | VM_WRITE | VM_EXEC)))
		return -EINVAL;
	if (vma->vm_flags & EXMAP_VM_REFUSED)
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
	 * The PTEs are ordinary ones, so that get_user_pages() works. They are young and dirty from
	 * the start, so that the hardware never has to set these bits. The protection bits are kept
	 * in exmap->pte, because clear_refs removes write permission from the VMA's vm_page_prot.
	 */
	exmap_vma_protect(vma);
	vm_flags_set(vma, VM_NOHUGEPAGE);
	exmap->pte = pte_val(pte_mkdirty(pte_mkyoung(pfn_pte(0, prot))));
	vma->vm_ops = &exmap_vma_ops;
	vma->vm_private_data = exmap;
	exmap->mapping = vma->vm_file->f_mapping;
	exmap->start = vma->vm_start;
	/* Publish @end after @start. Pairs with the acquire in exmap_concerns(). */
	smp_store_release(&exmap->end, vma->vm_end);

	spin_lock(&exmap->gate_lock);
	/*
	 * Publish the gate after @start, @end, @pte and @directory. Pairs with the acquire in
	 * exmap_has_surface(), exmap_enter(), exmap_enter_late(), exmap_prepare_stock() and
	 * exmap_fault_alloc().
	 */
	smp_store_release(&exmap->gate, EXMAP_GATE_OPEN);
	spin_unlock(&exmap->gate_lock);
	return 0;
}

/**
 * exmap_surface_destroy - free the memory that exmap_surface_map() allocated, if it was called
 * @exmap: nobody else uses it; or it has no surface yet and mmap_lock is held for writing
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
