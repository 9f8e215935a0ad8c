// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of exmap_user.h: the size of the pool, and why a call fails with ENOMEM. The Makefile
 * builds this as C and as C++.
 */
#include "user_common.h"

TEST(size_of_the_pool)
{
	struct exmap_interface interface;
	struct exmap_shortages shortages;
	struct exmap exmap;
	uint64_t surplus;

	open_attached(&exmap, &interface, 10, -1);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 0, 10), 10);
	ck_assert_int_eq(exmap_shortages(&exmap, &shortages), 0);
	ck_assert_int_eq(shortages.ceiling, 0);
	ck_assert_int_eq(exmap_page(&interface, EXMAP_OP_ALLOC, 10), -ENOMEM);
	ck_assert_int_eq(exmap_shortages(&exmap, &shortages), 0);
	ck_assert_int_eq(shortages.ceiling, 1);
	ck_assert_int_eq(shortages.memory, 0);
	ck_assert_int_eq(shortages.tables, 0);

	ck_assert_int_eq(exmap_resize(&exmap, 12, NULL), 0);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_ALLOC, 10, 2), 2);
	ck_assert_int_eq(exmap_resize(&exmap, 5, &surplus), 0);
	ck_assert_int_eq(surplus, 7);
	ck_assert_int_eq(exmap_resize(&exmap, 0, &surplus), -EINVAL);
	ck_assert_int_eq(exmap_run(&interface, EXMAP_OP_FREE, 0, 8), 8);
	ck_assert_int_eq(exmap_resize(&exmap, 5, &surplus), 0);
	ck_assert_int_eq(surplus, 0);

	ck_assert_int_eq(exmap_trim(&exmap, 3), 1);
	ck_assert_int_eq(exmap_trim(&exmap, 0), 0);
	ck_assert_int_eq(exmap_trim_tables(&exmap, 0, SURFACE), 0);
	ck_assert_int_eq(exmap_trim_tables(&exmap, SURFACE, 1), -EFAULT);
	assert_mapped(&exmap, 4);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests of exmap_user.h: the size of the pool.");
}
