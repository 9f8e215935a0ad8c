/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints, which perf and trace-cmd list as exmap:*. Each event has the number of the exmap,
 * which is also in /proc/PID/fdinfo/FD. All pages are of 4 KiB.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM exmap

#if !defined(EXMAP_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define EXMAP_TRACE_H

#include <linux/tracepoint.h>

#include "exmap.h"

TRACE_EVENT(exmap_setup,
	TP_PROTO(const struct exmap *exmap, unsigned int interfaces, unsigned long pages,
		 u64 flags, int ret),
	TP_ARGS(exmap, interfaces, pages, flags, ret),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(unsigned int, interfaces)
		__field(unsigned long, pages)
		__field(u64, flags)
		__field(int, ret)
	),
	TP_fast_assign(
		__entry->id = exmap->id;
		__entry->interfaces = interfaces;
		__entry->pages = pages;
		__entry->flags = flags;
		__entry->ret = ret;
	),
	TP_printk("id=%llu interfaces=%u pages=%lu flags=%#llx ret=%d",
		  __entry->id, __entry->interfaces, __entry->pages, __entry->flags, __entry->ret)
);

TRACE_EVENT(exmap_teardown,
	TP_PROTO(const struct exmap *exmap),
	TP_ARGS(exmap),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u64, reaped)
	),
	TP_fast_assign(
		__entry->id = exmap->id;
		__entry->reaped = exmap->unmapped;
	),
	TP_printk("id=%llu reaped=%llu", __entry->id, __entry->reaped)
);

/*
 * A call that did something, or one window of a READ or WRITE. @pages is the number of pages that
 * were mapped, unmapped, read or written. @ret is the number of entries that failed, or the error
 * of the call.
 */
DECLARE_EVENT_CLASS(exmap_call,
	TP_PROTO(const struct exmap *exmap, const struct exmap_interface *interface,
		 unsigned int entries, unsigned long pages, long ret),
	TP_ARGS(exmap, interface, entries, pages, ret),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(unsigned int, interface)
		__field(unsigned int, entries)
		__field(unsigned long, pages)
		__field(long, ret)
	),
	TP_fast_assign(
		__entry->id = exmap->id;
		__entry->interface = interface - exmap->interfaces;
		__entry->entries = entries;
		__entry->pages = pages;
		__entry->ret = ret;
	),
	TP_printk("id=%llu interface=%u entries=%u pages=%lu ret=%ld", __entry->id,
		  __entry->interface, __entry->entries, __entry->pages, __entry->ret)
);

#define EXMAP_CALL_EVENT(name)								\
DEFINE_EVENT(exmap_call, name,								\
	TP_PROTO(const struct exmap *exmap, const struct exmap_interface *interface,	\
		 unsigned int entries, unsigned long pages, long ret),			\
	TP_ARGS(exmap, interface, entries, pages, ret))

EXMAP_CALL_EVENT(exmap_alloc);
EXMAP_CALL_EVENT(exmap_free);
EXMAP_CALL_EVENT(exmap_read);
EXMAP_CALL_EVENT(exmap_write);

TRACE_EVENT(exmap_steal,
	TP_PROTO(const struct exmap *exmap, const struct exmap_interface *interface,
		 const struct exmap_interface *victim, unsigned int pages),
	TP_ARGS(exmap, interface, victim, pages),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(unsigned int, interface)
		__field(unsigned int, victim)
		__field(unsigned int, pages)
	),
	TP_fast_assign(
		__entry->id = exmap->id;
		__entry->interface = interface - exmap->interfaces;
		__entry->victim = victim - exmap->interfaces;
		__entry->pages = pages;
	),
	TP_printk("id=%llu interface=%u victim=%u pages=%u",
		  __entry->id, __entry->interface, __entry->victim, __entry->pages)
);

#endif /* EXMAP_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
