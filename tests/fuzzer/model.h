/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files that run with one thread share: model.c, model_calls.c and model_steps.c.
 */
#ifndef FUZZER_MODEL_H
#define FUZZER_MODEL_H

#include "fuzzer.h"

/* What a call must have done for an entry. */
struct outcome {
	int res;
	unsigned int pages;
	unsigned int good;	/* the first page that the call left out */
};

/* model.c */
void check_stats(struct exmap *ex);
bool is_mapped(const struct exmap *ex, uint64_t page);
void check_mapped(struct exmap *ex, unsigned int page, unsigned int nr);
void check_content(struct exmap *ex, unsigned int page);
void model_map(struct exmap *ex, unsigned int page, const struct content *content);
void model_unmap(struct exmap *ex, unsigned int page);
void model_flush(struct exmap *ex, uint8_t from);
bool is_due(const struct exmap *ex, unsigned int page);
void model_check_books(struct exmap *ex);
void flush(struct exmap *ex, unsigned int interface);
void model_tag(struct exmap *ex, unsigned int page);
void check_table(struct exmap *ex, unsigned int page);
void check_absent(struct exmap *ex, unsigned int page);
void write_to_absent(struct exmap *ex, unsigned int page);
void learn_mapped(struct exmap *ex, unsigned int page, unsigned int nr);
void check_all(struct exmap *ex);
int model_entry(struct exmap *ex, const struct call *call, uint64_t page, unsigned int len,
		struct outcome *out);

/* model_calls.c */
void pick(struct exmap *ex, unsigned int most, unsigned int *page, unsigned int *len);
void do_call(struct exmap *ex, const struct call *call, unsigned int nr);
void do_action(struct exmap *ex);
void do_flush(struct exmap *ex);
void do_defer(struct exmap *ex);
void do_bad_action(struct exmap *ex);
void do_proxy(struct exmap *ex);

/* model_steps.c */
void do_touch(struct exmap *ex);

#endif /* FUZZER_MODEL_H */
