// SPDX-License-Identifier: GPL-2.0
/*
 * What /proc/PID/fdinfo/FD shows of an exmap. exmap(4) documents the keys.
 */
#include <linux/seq_file.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"

/* The reads pair with exmap_count(). */
static void exmap_counts_add(struct exmap_counts *sum, const struct exmap_counts *counts)
{
	sum->allocs += READ_ONCE(counts->allocs);
	sum->frees += READ_ONCE(counts->frees);
	sum->reads += READ_ONCE(counts->reads);
	sum->writes += READ_ONCE(counts->writes);
	sum->steals += READ_ONCE(counts->steals);
	sum->flushes += READ_ONCE(counts->flushes);
}

static void exmap_show_interfaces(struct seq_file *m, struct exmap *exmap)
{
	const struct exmap_interface *interface;
	unsigned int i;

	for (i = 0; i < exmap->max_interfaces; i++) {
		struct exmap_counts counts = { };

		interface = &exmap->interfaces[i];
		/* Pairs with exmap_make_interface(). The counters exist before. */
		if (!READ_ONCE(interface->user))
			continue;
		exmap_counts_add(&counts, &interface->counts);
		seq_printf(m, "exmap-interface-%u:\t%llu %llu %llu %llu %llu %llu\n", i,
			   counts.allocs, counts.frees, counts.reads, counts.writes,
			   counts.steals, counts.flushes);
	}
}

static void exmap_show_shortages(struct seq_file *m, const struct exmap_pool *pool)
{
	static const char *const name[EXMAP_SHORTAGES] = {
		[EXMAP_SHORT_CEILING] = "ceiling",
		[EXMAP_SHORT_MEMORY] = "memory",
		[EXMAP_SHORT_TABLES] = "tables",
	};
	int i;

	/* Pairs with exmap_stock_fill() and exmap_populate_one(). */
	for (i = 0; i < EXMAP_SHORTAGES; i++)
		seq_printf(m, "exmap-enomem-%s:\t%lld\n", name[i],
			   (long long)atomic64_read(&pool->shortages[i]));
}

/**
 * exmap_fdinfo - print the numbers of an exmap
 * @m: where to
 * @exmap: has been set up
 *
 * Calls may be at work, so the numbers need not add up. The reads pair with:
 *   in_flight      exmap_reserve(), exmap_install(), exmap_discard()
 *   pool->ceiling  exmap_pool_resize()
 *   surplus        exmap_pool_resize(), exmap_pool_leave(), exmap_pinned_replace()
 *   pool->taken    exmap_pool_reserve(), exmap_pool_leave(), exmap_pinned_drain()
 *   nr_pinned      exmap_pinned_add(), exmap_pinned_take(), exmap_pinned_drain()
 *   unmapped       exmap_reap_flush()
 */
void exmap_fdinfo(struct seq_file *m, struct exmap *exmap)
{
	struct exmap_counts counts = { };
	unsigned int i, in_flight = 0;

	for (i = 0; i < exmap_nr_interfaces(exmap); i++) {
		exmap_counts_add(&counts, &exmap->interfaces[i].counts);
		in_flight += atomic_read(&exmap->interfaces[i].in_flight);
	}
	seq_printf(m, "exmap-interfaces:\t%u\n", exmap->max_interfaces);
	seq_printf(m, "exmap-pages-surface:\t%lu\n",
		   exmap_has_surface(exmap) ? (exmap->end - exmap->start) >> PAGE_SHIFT : 0);
	seq_printf(m, "exmap-pages-ceiling:\t%lu\n", READ_ONCE(exmap->pool.ceiling));
	seq_printf(m, "exmap-pages-surplus:\t%lu\n", READ_ONCE(exmap->surplus));
	seq_printf(m, "exmap-pages-system:\t%lu\n", READ_ONCE(exmap->pool.taken));
	seq_printf(m, "exmap-pages-mapped:\t%llu\n", exmap_mapped(exmap));
	seq_printf(m, "exmap-pages-free:\t%lu\n", exmap_pool_free_pages(exmap));
	seq_printf(m, "exmap-pages-deferred:\t%lu\n", exmap_quarantined(exmap));
	seq_printf(m, "exmap-pages-in-flight:\t%u\n", in_flight);
	seq_printf(m, "exmap-pages-pinned:\t%lu\n", READ_ONCE(exmap->pool.nr_pinned));
	seq_printf(m, "exmap-allocs:\t%llu\n", counts.allocs);
	seq_printf(m, "exmap-frees:\t%llu\n", counts.frees);
	seq_printf(m, "exmap-reads:\t%llu\n", counts.reads);
	seq_printf(m, "exmap-writes:\t%llu\n", counts.writes);
	seq_printf(m, "exmap-steals:\t%llu\n", counts.steals);
	seq_printf(m, "exmap-flushes:\t%llu\n", counts.flushes);
	seq_printf(m, "exmap-reaped:\t%llu\n", (u64)READ_ONCE(exmap->unmapped));
	exmap_show_shortages(m, &exmap->pool);
	exmap_show_interfaces(m, exmap);
}
