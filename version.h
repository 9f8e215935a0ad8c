/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The version of the kernel, for compat.h, and what arch.h must know of it.
 */
#ifndef EXMAP_VERSION_H
#define EXMAP_VERSION_H

#include <linux/version.h>

/*
 * The version whose functions the kernel has. Red Hat's kernels are newer than their number says.
 * RHEL 9.6 is called 5.14, and has most of 6.9. RHEL 10 is 6.12. Fedora's kernels are what their
 * number says, and call themselves 9.99 or 10.99.
 */
#ifdef RHEL_RELEASE_CODE
#if RHEL_RELEASE_CODE >= RHEL_RELEASE_VERSION(9, 6) && \
	RHEL_RELEASE_CODE < RHEL_RELEASE_VERSION(9, 99)
#define EXMAP_KERNEL KERNEL_VERSION(6, 9, 0)
#endif
#endif
#ifndef EXMAP_KERNEL
#define EXMAP_KERNEL LINUX_VERSION_CODE
#endif

/* To try another one nevertheless: make KCFLAGS=-DEXMAP_ANY_KERNEL */
#if !defined(EXMAP_ANY_KERNEL) && \
	(EXMAP_KERNEL < KERNEL_VERSION(6, 1, 0) || EXMAP_KERNEL >= KERNEL_VERSION(7, 4, 0))
#error "exmap supports Linux 6.1 to 7.3; make KCFLAGS=-DEXMAP_ANY_KERNEL builds it for others"
#endif

/* Since 6.6, the inline functions that flush the TLBs of arm64 call a function for other TLBs. */
#if EXMAP_KERNEL >= KERNEL_VERSION(6, 6, 0)
#define EXMAP_HAS_SECONDARY_TLBS
#endif

#endif /* EXMAP_VERSION_H */
