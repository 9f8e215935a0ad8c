// SPDX-License-Identifier: GPL-2.0
/*
 * Find the functions that exmap needs and the kernel does not export.
 *
 * A kprobe finds the address of a symbol. The calls are static calls, and so direct ones. An
 * indirect call would fault on hardware with CET, because many of these functions have lost their
 * ENDBR.
 */
#include <linux/init.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>

#include "exmap.h"
#include "ksyms.h"

#define EXMAP_KSYM_DEFINE(call, function) DEFINE_STATIC_CALL_NULL(call, function);
EXMAP_KSYMS(EXMAP_KSYM_DEFINE)

/*
 * Returns the address of a function, or NULL after a message. The probe may sit behind the first
 * instruction of the function, for example after an ENDBR. So ask kallsyms for the offset.
 */
static void *__init exmap_resolve(const char *name)
{
	struct kprobe probe = { .symbol_name = name, .flags = KPROBE_FLAG_DISABLED };
	static char where[KSYM_SYMBOL_LEN] __initdata;
	size_t len = strlen(name);
	unsigned long offset;
	int err;

	err = register_kprobe(&probe);
	if (err) {
		pr_err("cannot find %s in this kernel (error %d): exmap needs CONFIG_KPROBES and a supported kernel\n",
		       name, err);
		return NULL;
	}
	sprint_symbol(where, (unsigned long)probe.addr);
	unregister_kprobe(&probe);
	if (strncmp(where, name, len) || sscanf(where + len, "+%lx/", &offset) != 1) {
		pr_err("cannot resolve %s: its kprobe is at %s\n", name, where);
		return NULL;
	}
	return (void *)probe.addr - offset;
}

/**
 * exmap_ksyms_resolve - set the targets of the static calls of ksyms.h
 *
 * To be called once, before any of these calls. May sleep.
 *
 * Return: 0; or -ENOENT, after a message in the kernel log that names each missing function.
 */
int __init exmap_ksyms_resolve(void)
{
	int err = 0;

#define EXMAP_KSYM_RESOLVE(call, function)				\
	do {								\
		typeof(&function) target = exmap_resolve(#function);	\
									\
		if (target)						\
			static_call_update(call, target);		\
		else							\
			err = -ENOENT;					\
	} while (0);
	EXMAP_KSYMS(EXMAP_KSYM_RESOLVE)
	return err;
}
