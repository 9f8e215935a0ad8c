/* SPDX-License-Identifier: GPL-2.0 */
/*
 * An open file of /dev/exmap, and what a call finds by it: the exmap, and an interface of it.
 */
#ifndef EXMAP_FILE_H
#define EXMAP_FILE_H

#include <linux/fs.h>
#include <linux/nospec.h>

#include "exmap.h"

/**
 * struct exmap_file - an open file of /dev/exmap
 * @mm: the mm that opened it
 * @exmap: the exmap that its calls work on; changed by CLONE, at most once
 * @first: the exmap that open made, if CLONE has changed @exmap; or NULL. It is kept because a
 *	call on another thread may still use it
 * @mapping: the file's own address_space, without pages, instead of the device's. FREE takes its
 *	i_mmap_rwsem, which FREE at other exmaps then does not touch
 *
 * In cache lines of its own; each call reads the first.
 */
struct exmap_file {
	struct mm_struct *mm;
	struct exmap *exmap;
	struct exmap *first;
	struct address_space mapping ____cacheline_aligned_in_smp;
} ____cacheline_aligned_in_smp;

/* ioctl.c */
long exmap_ioctl(struct file *file, unsigned int cmd, unsigned long arg);
int exmap_fadvise(struct file *file, loff_t offset, loff_t len, int advice);

/**
 * exmap_of_any - the exmap of a file, of whatever process
 * @file: an open file of the device
 *
 * Return: the exmap. @file keeps it alive.
 */
static inline struct exmap *exmap_of_any(const struct file *file)
{
	struct exmap_file *owner = file->private_data;

	/* Pairs with the release in exmap_call_clone(). */
	return smp_load_acquire(&owner->exmap);
}

/**
 * exmap_is_ours - whether this process has opened a file
 * @file: an open file of the device
 *
 * Return: true if so. Others may not use it.
 */
static inline bool exmap_is_ours(const struct file *file)
{
	struct exmap_file *owner = file->private_data;

	return likely(owner->mm == current->mm);
}

/**
 * exmap_of - the exmap of a file of this process
 * @file: an open file of the device
 *
 * Return: the exmap; or -EPERM if another process has opened the file.
 */
static inline struct exmap *exmap_of(const struct file *file)
{
	return exmap_is_ours(file) ? exmap_of_any(file) : ERR_PTR(-EPERM);
}

/**
 * exmap_ready - whether SETUP is done
 * @exmap: the exmap
 *
 * Return: true, and then all that SETUP sets can be read; or false.
 */
static inline bool exmap_ready(struct exmap *exmap)
{
	/* Pairs with the release in exmap_setup(). */
	return smp_load_acquire(&exmap->interfaces);
}

/**
 * exmap_nth_interface - an interface, which may not have been used yet
 * @exmap: has been set up
 * @nr: the number that user space gave
 *
 * Return: the interface, or NULL if there is none of that number.
 */
static __always_inline struct exmap_interface *exmap_nth_interface(struct exmap *exmap,
								   unsigned long nr)
{
	if (nr >= exmap->max_interfaces)
		return NULL;
	return &exmap->interfaces[array_index_nospec(nr, exmap->max_interfaces)];
}

/**
 * exmap_interface_used - whether exmap_make_interface() is done
 * @interface: the interface
 *
 * Return: true, and then its bundles are set; or false.
 */
static __always_inline bool exmap_interface_used(struct exmap_interface *interface)
{
	/* Pairs with the release in exmap_make_interface(). */
	return likely(smp_load_acquire(&interface->user));
}

/**
 * exmap_get_interface - an interface, ready for use
 * @exmap: has been set up, and belongs to current->mm
 * @nr: the number that user space gave
 *
 * May sleep for memory if the interface is used for the first time.
 *
 * Return: the interface; -EINVAL if there is none of that number; or an error of
 * exmap_make_interface().
 */
static __always_inline struct exmap_interface *exmap_get_interface(struct exmap *exmap,
								   unsigned long nr)
{
	struct exmap_interface *interface = exmap_nth_interface(exmap, nr);
	int err;

	if (!interface)
		return ERR_PTR(-EINVAL);
	if (exmap_interface_used(interface))
		return interface;
	err = exmap_make_interface(exmap, interface);
	return err ? ERR_PTR(err) : interface;
}

#endif
