/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The main function of a test program. It runs each test in a process of its own, with the check
 * library, and then looks for complaints in the kernel log. It looks after each test's process
 * has ended, because some damage shows only then.
 */
#ifndef CHECK_MAIN_H
#define CHECK_MAIN_H

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <regex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"

/* A test, as TEST() defines it. Fields that TEST() does not name are zero. */
struct test {
	const char *name;
	const TTest *test;
	int order;	/* tests run in this order: that of their definitions */
	int signal;	/* the test must end by this signal; 0: it must return */
	const char *needs;	/* the test is skipped without this file */
	const char *needs_env;	/* the test is skipped without the file that this variable names */
	bool needs_module;	/* the test does not exist if $EXMAP_BACKEND is set */
	const char *needs_cpu;	/* the test is skipped without this flag in /proc/cpuinfo */
	const char *expects;	/* a kernel message with this text is no complaint */
};

/*
 * TEST(name, .field = value...) { body } defines a test, and registers it: the linker collects
 * the pointers of one section, and check_main() runs what they point to.
 */
#define TEST(fn, ...)								\
	static void fn##_body(int loop_);					\
	static const TTest fn##_ttest = { #fn, fn##_body, __FILE__, __LINE__ };	\
	static const struct test fn##_test = {					\
		.name = #fn, .test = &fn##_ttest, .order = __COUNTER__, ##__VA_ARGS__	\
	};									\
	static const struct test *fn##_registered				\
		__attribute__((used, section("exmap_tests"))) = &fn##_test;	\
	static void fn##_body(int loop_ __attribute__((unused)))

/* The linker defines both: the ends of that section. */
extern const struct test *__start_exmap_tests[], *__stop_exmap_tests[];

static bool test_exists(const struct test *test)
{
	return !test->needs_module || !getenv("EXMAP_BACKEND");
}

#define for_each_test(test)							\
	for (const struct test **test##_at = __start_exmap_tests, *test;	\
	     test##_at < __stop_exmap_tests && (test = *test##_at, true); test##_at++)	\
		if (test_exists(test))

struct results {
	int all;
	int failed;
	int skipped;
};

/*
 * The first complaint in the kernel log since the last call, or NULL. A line with @expected in it
 * is no complaint; nor, if @expected is set, are the lines of a call stack. The caller frees the
 * line. Only root may read the log; for others this returns NULL.
 */
static char *kernel_complaint(const char *expected)
{
	static int kmsg = -1;
	static regex_t complaint;
	char line[8192], *found = NULL;
	ssize_t len;

	if (kmsg < 0) {
		kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (kmsg < 0)
			return NULL;
		lseek(kmsg, 0, SEEK_END);
		if (regcomp(&complaint, KERNEL_COMPLAINTS, REG_EXTENDED | REG_NOSUB))
			abort();
	}
	for (;;) {
		len = read(kmsg, line, sizeof(line) - 1);
		if (len < 0 && errno == EPIPE)	/* overwritten before it was read */
			continue;
		if (len < 0)
			break;
		line[len] = 0;
		if (!found && !regexec(&complaint, line, 0, NULL, 0) &&
		    !(expected && (strstr(line, expected) || strstr(line, "+0x")))) {
			char *text = strchr(line, ';');

			found = strdup(text ? text + 1 : line);
			found[strcspn(found, "\n")] = 0;
		}
	}
	return found;
}

/* Whether /proc/cpuinfo shows this flag: the processor has the feature, and the kernel uses it. */
static bool cpu_has(const char *flag)
{
	char line[16384], *word = NULL, *rest;
	FILE *f = fopen("/proc/cpuinfo", "r");

	while (f && !word && fgets(line, sizeof(line), f))
		if (!strncmp(line, "flags", 5))
			for (word = strtok_r(line, "\n ", &rest); word && strcmp(word, flag);)
				word = strtok_r(NULL, "\n ", &rest);
	if (f)
		fclose(f);
	return word;
}

/* The name of what @test needs and this machine lacks, or NULL if nothing is missing. */
static const char *missing_for(const struct test *test)
{
	const char *file = test->needs_env ? getenv(test->needs_env) : NULL;

	if (test->needs_cpu && !cpu_has(test->needs_cpu))
		return test->needs_cpu;
	if (test->needs_env && !file)
		return test->needs_env;
	if (file && access(file, R_OK | W_OK))
		return file;
	return test->needs && access(test->needs, R_OK | W_OK) ? test->needs : NULL;
}

/* Run one test, print its result and count it. */
static void run_test(const struct test *test, struct results *count)
{
	int nr = ++count->all;

	SRunner *runner;
	Suite *suite;
	TCase *tcase;
	char *complaint, *message = NULL;
	const char *missing;
	TestResult **results;
	bool ok;

	missing = missing_for(test);
	if (missing) {
		printf("ok %d - %s # SKIP no %s\n", nr, test->name, missing);
		count->skipped++;
		return;
	}
	tcase = tcase_create(test->name);
	suite = suite_create(test->name);
	runner = srunner_create(suite);
	/* A test that takes 300 seconds hangs: on an idle machine none takes a tenth of that. */
	tcase_set_timeout(tcase, 300);
	tcase_add_test_raise_signal(tcase, test->test, test->signal);
	suite_add_tcase(suite, tcase);
	srunner_run_all(runner, CK_SILENT);
	ok = !srunner_ntests_failed(runner);
	if (!ok) {
		results = srunner_failures(runner);
		if (asprintf(&message, "%s:%d: %s", tr_lfile(results[0]), tr_lno(results[0]),
			     tr_msg(results[0])) < 0)
			abort();
		free(results);
	}
	srunner_free(runner);
	complaint = kernel_complaint(test->expects);
	ok = ok && !complaint;

	printf("%s %d - %s\n", ok ? "ok" : "not ok", nr, test->name);
	if (message)
		printf("# %s\n", message);
	if (complaint)
		printf("# kernel log: %s\n", complaint);
	fflush(stdout);
	free(message);
	free(complaint);
	count->failed += !ok;
}

static void usage(FILE *out, const char *program, const char *about)
{
	fprintf(out,
		"usage: %s [--tap] [--list] [TEST...]\n"
		"\n"
		"%s\n"
		"Runs the given tests, or all tests, each in a process of its own.\n"
		"\n"
		"  --tap   print results in TAP (Test Anything Protocol)\n"
		"  --list  print the names of all tests\n"
		"  --help  print this help\n"
		"\n"
		"Exits with 0 if no test failed, 1 if one failed, 77 if /dev/exmap is missing.\n",
		program, about);
}

static const struct test *find_test(const char *name)
{
	for_each_test(test)
		if (!strcmp(test->name, name))
			return test;
	return NULL;
}

static int compare_order(const void *a, const void *b)
{
	const struct test *const *one = (const struct test *const *)a;
	const struct test *const *other = (const struct test *const *)b;

	return (*one)->order - (*other)->order;
}

/* The main function of a test program. */
static int check_main(int argc, char **argv, const char *about)
{
	static const struct option options[] = {
		{ "tap", no_argument, NULL, 't' },
		{ "list", no_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	struct results count = { };
	bool tap = false;
	int option, all = 0;

	/* Both are ends of one array. cppcheck takes them for two arrays. */
	/* cppcheck-suppress comparePointers */
	qsort(__start_exmap_tests, __stop_exmap_tests - __start_exmap_tests,
	      sizeof(*__start_exmap_tests), compare_order);
	for_each_test(test)
		all++;
	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (option) {
		case 't':
			tap = true;
			break;
		case 'l':
			for_each_test(test)
				puts(test->name);
			return 0;
		case 'h':
			usage(stdout, argv[0], about);
			return 0;
		default:
			usage(stderr, argv[0], about);
			return 1;
		}
	}
	for (int i = optind; i < argc; i++) {
		if (!find_test(argv[i])) {
			fprintf(stderr, "%s: no test is called %s; --list shows all tests\n",
				argv[0], argv[i]);
			return 1;
		}
	}
	if (!getenv("EXMAP_BACKEND") && access("/dev/exmap", F_OK)) {
		fprintf(stderr, "%s: /dev/exmap is missing; load the module first (./load.sh)\n",
			argv[0]);
		return 77;
	}
	kernel_complaint(NULL);

	if (optind < argc)
		all = argc - optind;
	if (tap)
		printf("1..%d\n", all);
	if (optind < argc)
		for (int i = optind; i < argc; i++)
			run_test(find_test(argv[i]), &count);
	else
		for_each_test(test)
			run_test(test, &count);
	if (!tap)
		printf("%d passed, %d failed, %d skipped\n",
		       count.all - count.failed - count.skipped, count.failed, count.skipped);
	return count.failed ? 1 : 0;
}

#endif /* CHECK_MAIN_H */
