/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Ways to the surface past exmap's own calls. WAY(name) { body } defines two tests, name_alone
 * and name_while_busy. The body returns what its system calls do to the surface @ex.
 */
#ifndef TEST_WAYS_H
#define TEST_WAYS_H

#include "busy.h"

/* Test a way on an exmap that is otherwise idle. */
static inline void alone(enum fate (*way)(struct exmap *ex))
{
	become_hostile();
	struct exmap *ex = stamped_exmap(-1);

	assert_fate(ex, way(ex));
}

/* Test a way again and again while a busy thread uses the exmap. */
static inline void while_busy(enum fate (*way)(struct exmap *ex))
{
	become_hostile();
	int file = sparse_file();

	for (int round = scaled(10); round; round--) {
		pid_t pid = fork();

		assert_ok(pid);
		if (!pid) {
			struct exmap *ex = stamped_exmap(file);
			enum fate fate = KEEPS;
			struct busy b;

			busy_start(&b, ex, ex->fd, false);
			do
				fate = way(ex);
			while (fate != ENDS && atomic_load(&b.rounds) < 5);
			busy_join(&b, fate == ENDS);
			assert_fate(ex, fate);
			_exit(0);
		}
		wait_child(pid, 0);
	}
}

#define WAY(name)								\
	static enum fate way_##name(struct exmap *ex);				\
	TEST(name##_alone) { alone(way_##name); }				\
	TEST(name##_while_busy) { while_busy(way_##name); }			\
	static enum fate way_##name(struct exmap *ex)

/* Let a child do something to the surface of this process. */
static inline void by_another(void (*how)(struct exmap *ex, pid_t pid), struct exmap *ex)
{
	pid_t self = getpid(), pid;

	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	pid = fork();
	assert_ok(pid);
	if (!pid) {
		how(ex, self);
		_exit(0);
	}
	wait_child(pid, 0);
}

#endif /* TEST_WAYS_H */
