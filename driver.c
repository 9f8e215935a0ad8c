// SPDX-License-Identifier: GPL-2.0
/*
 * exmap: explicit control over a piece of virtual memory.
 *
 * The device and its open files: mmap, and the calls that reach a file like any other. See exmap.h
 * for who owns what, and for the list of files.
 */
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "arch.h"
#include "compat.h"
#include "exmap.h"
#include "file.h"
#include "ksyms.h"
#include "pool.h"

/* Initialize an address_space as that of a new inode. It never has a page. */
static void exmap_mapping_init(struct address_space *mapping, struct inode *inode)
{
	address_space_init_once(mapping);
	init_rwsem(&mapping->invalidate_lock);
	mapping_set_gfp_mask(mapping, GFP_HIGHUSER_MOVABLE);
	mapping->host = inode;
	mapping->a_ops = &empty_aops;
}

static int exmap_open(struct inode *inode, struct file *file)
{
	struct exmap_file *owner;
	struct exmap *exmap;

	if (!current->mm)
		return -EINVAL;
	owner = kzalloc(sizeof(*owner), GFP_KERNEL_ACCOUNT);
	if (!owner)
		return -ENOMEM;
	exmap = exmap_create();
	if (!exmap) {
		kfree(owner);
		return -ENOMEM;
	}
	owner->mm = exmap->mm;
	owner->exmap = exmap;
	exmap_mapping_init(&owner->mapping, inode);
	file->f_mapping = &owner->mapping;
	file->private_data = owner;
	/*
	 * FMODE_NOWAIT: io_uring tries a call in the caller's context before it asks a thread.
	 * FMODE_NOCMTIME: a write fault does not update the times of the device's node. 6.1 and
	 * 6.12 do not look at it there, so a touch may wait while that file system is frozen.
	 */
	file->f_mode |= FMODE_NOWAIT | FMODE_NOCMTIME;
	return 0;
}

static int exmap_fop_release(struct inode *inode, struct file *file)
{
	struct exmap_file *owner = file->private_data;

	exmap_put(owner->exmap);
	if (owner->first)
		exmap_put(owner->first);
	kfree(owner);
	return 0;
}

/* mmap */

static int exmap_mmap_surface(struct exmap *exmap, struct vm_area_struct *vma)
{
	/*
	 * mmap_lock is held for writing, so no other mmap runs at the same time. @orphan pairs with
	 * exmap_call_clone(), which holds another lock: see there what happens if this misses it.
	 */
	if (exmap->end || READ_ONCE(exmap->orphan))
		return -EBUSY;
	return exmap_surface_map(exmap, vma);
}

/*
 * The number of the interface at an offset of mmap, which counts pages; above any interface's if
 * the offset is not that of an interface. Offsets with and without the sign bit are the same.
 */
static unsigned long exmap_interface_at(unsigned long pgoff)
{
	const unsigned long sign = ~EXMAP_OFF_INTERFACE_POSITIVE_BASE & EXMAP_OFF_INTERFACE_BASE;

	return (pgoff | sign >> PAGE_SHIFT) - (EXMAP_OFF_INTERFACE_BASE >> PAGE_SHIFT);
}

/*
 * Map the interface's page at its first touch, not in mmap, because vm_insert_page() would set
 * VM_MIXEDMAP, and then fork copies page tables (see exmap_vma_protect()).
 */
static vm_fault_t exmap_interface_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct exmap *exmap = vma->vm_private_data;
	unsigned long nr = exmap_interface_at(vma->vm_pgoff);

	/* A child's copy of the mapping never gets a page. */
	if (vma->vm_mm != exmap->mm)
		return VM_FAULT_SIGSEGV;
	/*
	 * exmap_mmap_interface() has called exmap_get_interface(), so the page exists. mmap_lock or
	 * the VMA's lock orders its acquire of @user before this.
	 */
	vmf->page = virt_to_page(exmap->interfaces[nr].user);
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct exmap_interface_ops = {
	.open = exmap_vma_open,
	.fault = exmap_interface_fault,
	EXMAP_VMA_POLICY
};

static int exmap_mmap_interface(struct exmap *exmap, struct vm_area_struct *vma, unsigned long nr)
{
	struct exmap_interface *interface;

	if (vma_pages(vma) != 1)
		return -EINVAL;
	if (!exmap_ready(exmap) || nr >= exmap->max_interfaces)
		return -ENXIO;
	interface = exmap_get_interface(exmap, nr);
	if (IS_ERR(interface))
		return PTR_ERR(interface);
	exmap_vma_protect(vma);
	vma->vm_ops = &exmap_interface_ops;
	vma->vm_private_data = exmap;
	return 0;
}

static int exmap_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct exmap *exmap = exmap_of(file);
	const unsigned long numbers =
		(EXMAP_OFF_INTERFACE_MAX - EXMAP_OFF_INTERFACE_BASE) >> PAGE_SHIFT;
	unsigned long nr;

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
	/* The kernel would copy pages of a private mapping when they are written. */
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_pgoff == EXMAP_OFF_EXMAP >> PAGE_SHIFT)
		return exmap_mmap_surface(exmap, vma);
	nr = exmap_interface_at(vma->vm_pgoff);
	if (nr < numbers)
		return exmap_mmap_interface(exmap, vma, nr);
	return -EINVAL;
}

/* The file as a proxy for the backing file, and io_uring */

/*
 * The interface in a file offset or in the opcode of an io_uring command. Sets *@opcode to the
 * opcode in it, which must be in the bit mask @opcodes. Returns the interface or an error.
 */
static struct exmap_interface *exmap_get_target(struct exmap *exmap, u64 target,
						unsigned long opcodes, unsigned int *opcode)
{
	if (!exmap_ready(exmap))
		return ERR_PTR(-EBADF);
	*opcode = target >> 8;
	if (target >> 16 || *opcode > EXMAP_OP_WRITE || !(opcodes & BIT(*opcode)))
		return ERR_PTR(-EINVAL);
	if (!exmap->file && (*opcode == EXMAP_OP_READ || *opcode == EXMAP_OP_WRITE))
		return ERR_PTR(-EOPNOTSUPP);
	return exmap_get_interface(exmap, target & 0xff);
}

static ssize_t exmap_proxy(struct kiocb *iocb, struct iov_iter *iter, unsigned long opcodes)
{
	struct exmap *exmap = exmap_of(iocb->ki_filp);
	struct exmap_interface *interface;
	unsigned int opcode;

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
	interface = exmap_get_target(exmap, iocb->ki_pos, opcodes, &opcode);
	if (IS_ERR(interface))
		return PTR_ERR(interface);
	return exmap_io_proxy(exmap, interface, iocb, iter, opcode);
}

static ssize_t exmap_read_iter(struct kiocb *iocb, struct iov_iter *iter)
{
	return exmap_proxy(iocb, iter, BIT(EXMAP_OP_READ) | BIT(EXMAP_OP_ALLOC));
}

static ssize_t exmap_write_iter(struct kiocb *iocb, struct iov_iter *iter)
{
	return exmap_proxy(iocb, iter, BIT(EXMAP_OP_WRITE));
}

static int exmap_fop_uring_cmd(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	struct exmap *exmap = exmap_of(cmd->file);
	struct exmap_interface *interface;
	unsigned int opcode;

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
	if (cmd->flags & IORING_URING_CMD_MASK & ~IORING_URING_CMD_FIXED)
		return -EINVAL;
	interface = exmap_get_target(exmap, cmd->cmd_op, ~0UL, &opcode);
	if (IS_ERR(interface))
		return PTR_ERR(interface);
	return exmap_uring_issue(exmap, interface, cmd, opcode, issue_flags);
}

static int exmap_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	/*
	 * libaio calls this from a kernel thread, which has no mm. That does not say whose request
	 * it is, and exmap is not called when the request is submitted. So other processes that
	 * hold the file can fsync it by libaio.
	 */
	struct exmap *exmap = current->mm ? exmap_of(file) : exmap_of_any(file);

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
	if (!exmap_ready(exmap))
		return -EBADF;
	if (!exmap->file)
		return -EOPNOTSUPP;
	return vfs_fsync_range(exmap->file, start, end, datasync);
}

/*
 * /proc/PID/fdinfo/FD. The reader is any process that may look into PID, and PID may have inherited
 * the file from the exmap's process.
 */
static void exmap_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct exmap *exmap = exmap_of_any(file);

	seq_printf(m, "exmap-id:\t%llu\n", exmap->id);
	if (exmap_ready(exmap))
		exmap_fdinfo(m, exmap);
}

static const struct file_operations exmap_fops = {
	.owner = THIS_MODULE,
	.read_iter = exmap_read_iter,
	.write_iter = exmap_write_iter,
	.uring_cmd = exmap_fop_uring_cmd,
	.fadvise = exmap_fadvise,
	.fsync = exmap_fsync,
	.open = exmap_open,
	.release = exmap_fop_release,
	.unlocked_ioctl = exmap_ioctl,
	.mmap = exmap_mmap,
	.show_fdinfo = exmap_show_fdinfo,
};

static struct miscdevice exmap_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "exmap",
	.mode = 0666,
	.fops = &exmap_fops,
};

/* A device node in a container outlives a reload of the module only if the number stays. */
module_param_named(minor, exmap_device.minor, int, 0444);
MODULE_PARM_DESC(minor, "minor number of /dev/exmap, 0 to 254 (default: one that is free)");

static int __init exmap_init(void)
{
	const char *problem = exmap_arch_problem();
	int err;

	if (problem) {
		pr_err("%s\n", problem);
		return -ENODEV;
	}
	if (exmap_device.minor < 0 || exmap_device.minor > MISC_DYNAMIC_MINOR) {
		pr_err("minor=%d is not a number from 0 to 254\n", exmap_device.minor);
		return -EINVAL;
	}
	exmap_locks_prime();
	err = exmap_ksyms_resolve() ?: exmap_queue_init();
	if (err)
		return err;
	err = exmap_io_init();
	if (err)
		goto queue_exit;
	err = exmap_pool_init();
	if (err)
		goto io_exit;
	err = misc_register(&exmap_device);
	if (err)
		goto pool_exit;
	return 0;

pool_exit:
	exmap_pool_exit();
io_exit:
	exmap_io_exit();
queue_exit:
	exmap_queue_exit();
	return err;
}

static void __exit exmap_exit(void)
{
	misc_deregister(&exmap_device);
	exmap_setup_exit();
	exmap_watch_exit();
	exmap_pinned_exit();
	exmap_pool_exit();
	exmap_queue_exit();
	exmap_io_exit();
}

module_init(exmap_init);
module_exit(exmap_exit);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("The exmap authors");
MODULE_VERSION(EXMAP_VERSION);
MODULE_DESCRIPTION("Explicit control over a piece of virtual memory");
