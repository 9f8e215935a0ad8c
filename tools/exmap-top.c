// SPDX-License-Identifier: GPL-2.0
/*
 * Show all exmaps of the machine, as top shows processes. This only reads /proc/PID/fdinfo/FD, so
 * it sees the exmaps of those processes that its user may inspect.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* The values of an exmap, in the order of the columns of the CSV. */
enum value {
	ID, INTERFACES, CEILING, TAKEN, MAPPED, FREE, DEFERRED, IN_FLIGHT,
	ALLOCS, FREES, READS, WRITES, STEALS, FLUSHES, PINNED, REAPED,
	SURPLUS, NO_ROOM, NO_MEMORY, NO_TABLES, VALUES,
};

enum kind {
	NUMBER,		/* of something that is no page */
	PAGES,		/* as they are now */
	COUNTER,	/* only grows */
};

static const struct {
	const char *fdinfo;	/* the name in fdinfo */
	const char *csv;	/* the heading of the column */
	enum kind kind;
	const char *help;	/* for Prometheus */
} about[VALUES] = {
	[ID] = { "exmap-id", "id", NUMBER, NULL },
	[INTERFACES] = { "exmap-interfaces", "interfaces", NUMBER, "Interfaces of the exmap." },
	[CEILING] = { "exmap-pages-ceiling", "ceiling", PAGES,
		"The most pages that the pool may take from the system." },
	[TAKEN] = { "exmap-pages-system", "system", PAGES,
		"Pages that the pool has taken from the system." },
	[MAPPED] = { "exmap-pages-mapped", "mapped", PAGES, "Pages mapped on the surface." },
	[FREE] = { "exmap-pages-free", "free", PAGES, "Free pages in the pool." },
	[DEFERRED] = { "exmap-pages-deferred", "deferred", PAGES,
		"Pages that wait for a deferred flush." },
	[IN_FLIGHT] = { "exmap-pages-in-flight", "in_flight", PAGES, "Pages that are being read." },
	[ALLOCS] = { "exmap-allocs", "allocs", COUNTER, "Pages allocated." },
	[FREES] = { "exmap-frees", "frees", COUNTER, "Pages freed." },
	[READS] = { "exmap-reads", "reads", COUNTER, "Pages read." },
	[WRITES] = { "exmap-writes", "writes", COUNTER, "Pages written." },
	[STEALS] = { "exmap-steals", "steals", COUNTER, "Pages stolen between interfaces." },
	[FLUSHES] = { "exmap-flushes", "flushes", COUNTER, "TLB shootdowns." },
	[PINNED] = { "exmap-pages-pinned", "pinned", PAGES,
		"Freed pages that a device, a pipe or a registered buffer still holds." },
	[REAPED] = { "exmap-reaped", "reaped", COUNTER, "Pages that the kernel took away." },
	[SURPLUS] = { "exmap-pages-surplus", "surplus", PAGES,
		"Pages that the pool has beyond a ceiling that was lowered." },
	[NO_ROOM] = { "exmap-enomem-ceiling", "enomem_ceiling", COUNTER,
		"Calls that found all pages of the pool in use." },
	[NO_MEMORY] = { "exmap-enomem-memory", "enomem_memory", COUNTER,
		"Calls that found no memory for a page of the pool." },
	[NO_TABLES] = { "exmap-enomem-tables", "enomem_tables", COUNTER,
		"Calls that found no memory for a page table." },
};

/* The columns of the table behind process and command. A narrow terminal shows only the first. */
static const struct column {
	const char *heading;
	int width;
	enum value value;
} columns[] = {
	{ "SYSTEM", 6, TAKEN }, { "MAPPED", 6, MAPPED }, { "FREE", 6, FREE },
	{ "ALLOC", 5, ALLOCS }, { "FREES", 5, FREES }, { "READ", 5, READS },
	{ "WRITE", 5, WRITES }, { "STEAL", 5, STEALS }, { "SHOOT", 5, FLUSHES },
	{ "DEFER", 5, DEFERRED }, { "FLIGHT", 6, IN_FLIGHT }, { "IF", 5, INTERFACES },
	{ "CEILING", 8, CEILING }, { "SURPLUS", 7, SURPLUS }, { "NOROOM", 6, NO_ROOM },
	{ "NOMEM", 5, NO_MEMORY }, { "NOTAB", 5, NO_TABLES },
};

/* One exmap, as it was when it was looked at. */
struct look {
	int pid;
	char command[16];
	uint64_t value[VALUES];
};

/* All exmaps, and the time when they were looked at. */
struct looks {
	struct timespec time;
	size_t nr;
	size_t room;
	struct look *look;
};

static struct {
	double delay;
	long rounds;
	enum { TERMINAL, BATCH, CSV, PROMETHEUS } output;
} option = { .delay = 1.0, .rounds = -1 };

static struct termios terminal;
static volatile sig_atomic_t stopped;
static sigset_t unblocked;	/* the signal mask at the start */

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "exmap-top: ");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

/* Open a file in /proc/PID. NULL if the process is gone, or if its user must not inspect it. */
static FILE *open_of(int pid, const char *format, const char *name)
{
	char path[64 + NAME_MAX];
	int len = snprintf(path, sizeof(path), "/proc/%d/", pid);

	snprintf(path + len, sizeof(path) - len, format, name);
	return fopen(path, "re");
}

/*
 * Whether a file has a path, so it is no socket or the like. The path itself says nothing: the
 * device can be mounted anywhere.
 */
static bool is_on_a_path(int pid, const char *fd)
{
	char path[64 + NAME_MAX], first;

	snprintf(path, sizeof(path), "/proc/%d/fd/%s", pid, fd);
	return readlink(path, &first, 1) == 1 && first == '/';
}

static void read_values(FILE *file, struct look *look)
{
	char line[256], name[64];
	uint64_t number;
	int i;

	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%63[^:]: %" SCNu64, name, &number) != 2)
			continue;
		for (i = 0; i < VALUES; i++)
			if (!strcmp(name, about[i].fdinfo))
				look->value[i] = number;
	}
}

static void read_command(struct look *look)
{
	FILE *file = open_of(look->pid, "%s", "comm");
	char *c;

	strcpy(look->command, "?");
	if (!file)
		return;
	if (fgets(look->command, sizeof(look->command), file))
		look->command[strcspn(look->command, "\n")] = '\0';
	fclose(file);
	/* A process chooses its name, but that name must not control the terminal. */
	for (c = look->command; *c; c++)
		if (!isprint((unsigned char)*c))
			*c = '?';
}

static struct look *find(const struct looks *looks, uint64_t id)
{
	size_t i;

	for (i = 0; i < looks->nr; i++)
		if (looks->look[i].value[ID] == id)
			return &looks->look[i];
	return NULL;
}

/* Add an exmap, unless it is there already: CLONE and fork make several files of one exmap. */
static void look_at_file(struct looks *looks, int pid, const char *fd)
{
	struct look look = { .pid = pid };
	FILE *file = open_of(pid, "fdinfo/%s", fd);

	if (!file)
		return;
	read_values(file, &look);
	fclose(file);
	if (!look.value[INTERFACES] || find(looks, look.value[ID]))
		return;
	read_command(&look);
	if (looks->nr == looks->room) {
		looks->room = looks->room ? 2 * looks->room : 64;
		looks->look = realloc(looks->look, looks->room * sizeof(look));
		if (!looks->look)
			fail("out of memory");
	}
	looks->look[looks->nr++] = look;
}

static void look_at_process(struct looks *looks, int pid)
{
	char path[32];
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]) && is_on_a_path(pid, entry->d_name))
			look_at_file(looks, pid, entry->d_name);
	if (dir)
		closedir(dir);
}

static void look_around(struct looks *looks)
{
	struct dirent *entry;
	DIR *dir = opendir("/proc");

	if (!dir)
		fail("cannot read /proc (%s): is it mounted?", strerror(errno));
	looks->nr = 0;
	clock_gettime(CLOCK_MONOTONIC, &looks->time);
	while ((entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]))
			look_at_process(looks, atoi(entry->d_name));
	closedir(dir);
}

static double rate(const struct looks *now, const struct looks *before, const struct look *look,
		   enum value value)
{
	const struct look *old = find(before, look->value[ID]);
	double seconds = (double)(now->time.tv_sec - before->time.tv_sec) +
			 (double)(now->time.tv_nsec - before->time.tv_nsec) / 1e9;

	if (!old || seconds <= 0 || look->value[value] < old->value[value])
		return 0;
	return (double)(look->value[value] - old->value[value]) / seconds;
}

/* The exmap with most pages comes first. */
static int compare(const void *a, const void *b)
{
	const struct look *x = a, *y = b;

	if (x->value[TAKEN] != y->value[TAKEN])
		return x->value[TAKEN] < y->value[TAKEN] ? 1 : -1;
	return x->value[ID] < y->value[ID] ? -1 : x->value[ID] > y->value[ID];
}

/* Write a number in five columns, with a unit. */
static const char *scaled(double number, char *buffer)
{
	static const char unit[] = " kMGT";
	int i = 0;

	for (; number >= 9999.5 && i < 4; i++)
		number /= 1000;
	sprintf(buffer, "%4.0f%c", number, unit[i]);
	return buffer;
}

/* Write pages in MiB; in GiB or TiB if they need more than @width columns. */
static const char *mebibytes(uint64_t pages, int width, char *buffer)
{
	static const char unit[] = "GT";
	uint64_t number = pages / 256;
	const char *u;

	sprintf(buffer, "%" PRIu64, number);
	for (u = unit; *u && (int)strlen(buffer) > width; u++) {
		number /= 1024;
		sprintf(buffer, "%" PRIu64 "%c", number, *u);
	}
	return buffer;
}

/* Write a name as a field of CSV (RFC 4180). A spreadsheet must not take it for a formula. */
static void print_csv_name(const char *name)
{
	const char *c;

	putchar('"');
	for (c = name; *c; c++) {
		if (*c == '"')
			putchar('"');
		putchar(c == name && strchr("=+-@", *c) ? '?' : *c);
	}
	putchar('"');
}

static void print_csv_heading(void)
{
	int v;

	printf("time,pid,command");
	for (v = 0; v < VALUES; v++)
		printf(",%s", about[v].csv);
	putchar('\n');
}

static void print_csv(const struct looks *now, const struct looks *before)
{
	const struct look *look;
	int v;

	for (look = now->look; look < now->look + now->nr; look++) {
		printf("%lld.%03ld,%d,", (long long)now->time.tv_sec,
		       now->time.tv_nsec / 1000000, look->pid);
		print_csv_name(look->command);
		for (v = 0; v < VALUES; v++) {
			if (about[v].kind == COUNTER)
				printf(",%.0f", rate(now, before, look, v));
			else
				printf(",%" PRIu64, look->value[v]);
		}
		putchar('\n');
	}
}

/* Write the name of a metric: that of fdinfo with underscores, and with _total for a counter. */
static void print_metric(enum value value)
{
	const char *c;

	for (c = about[value].fdinfo; *c; c++)
		putchar(*c == '-' ? '_' : *c);
	if (about[value].kind == COUNTER)
		printf("_total");
}

static void print_sample(const struct look *look, enum value value)
{
	const char *c;

	print_metric(value);
	printf("{id=\"%" PRIu64 "\",pid=\"%d\",command=\"", look->value[ID], look->pid);
	for (c = look->command; *c; c++) {
		if (strchr("\\\"", *c))
			putchar('\\');
		putchar(*c);
	}
	printf("\"} %" PRIu64 "\n", look->value[value]);
}

/* Write what Prometheus' node_exporter reads from the directory of its textfile collector. */
static void print_prometheus(const struct looks *now)
{
	size_t i;
	int v;

	for (v = ID + 1; v < VALUES; v++) {
		printf("# HELP ");
		print_metric(v);
		printf(" %s\n# TYPE ", about[v].help);
		print_metric(v);
		puts(about[v].kind == COUNTER ? " counter" : " gauge");
		for (i = 0; i < now->nr; i++)
			print_sample(&now->look[i], v);
	}
}

static const char *cell(const struct looks *now, const struct looks *before,
			const struct look *look, const struct column *column, char *buffer)
{
	switch (about[column->value].kind) {
	case COUNTER:
		return scaled(rate(now, before, look, column->value), buffer);
	case PAGES:
		return mebibytes(look->value[column->value], column->width, buffer);
	default:
		sprintf(buffer, "%" PRIu64, look->value[column->value]);
		return buffer;
	}
}

/* How many of the columns fit on a terminal of that width. */
static size_t columns_that_fit(int width)
{
	size_t n;

	width -= 20;	/* process and command */
	for (n = 0; n < sizeof(columns) / sizeof(columns[0]); n++) {
		width -= 1 + columns[n].width;
		if (width < 0)
			break;
	}
	return n;
}

static void print_table(const struct looks *now, const struct looks *before, size_t lines,
			int width)
{
	const size_t fit = columns_that_fit(width);
	uint64_t taken = 0;
	char buffer[32], title[128];
	size_t i, n;

	for (i = 0; i < now->nr; i++)
		taken += now->look[i].value[TAKEN];
	snprintf(title, sizeof(title), "exmap-top: %zu exmap%s, %s MiB. "
		 "Pages in MiB; rates in pages/s, SHOOT per s", now->nr, now->nr == 1 ? "" : "s",
		 mebibytes(taken, 16, buffer));
	printf("%.*s\n\n%7s %-12s", width, title, "PID", "COMMAND");
	for (n = 0; n < fit; n++)
		printf(" %*s", columns[n].width, columns[n].heading);
	putchar('\n');
	for (i = 0; i < now->nr && i + 4 < lines; i++) {
		printf("%7d %-12.12s", now->look[i].pid, now->look[i].command);
		for (n = 0; n < fit; n++)
			printf(" %*s", columns[n].width,
			       cell(now, before, &now->look[i], &columns[n], buffer));
		putchar('\n');
	}
}

/* Start at the upper left corner, clear the screen, and wrap no line. */
static void print_screen(const struct looks *now, const struct looks *before)
{
	struct winsize size = { };

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_row || !size.ws_col) {
		size.ws_row = 24;
		size.ws_col = 80;
	}
	printf("\033[H\033[2J\033[?7l");
	print_table(now, before, size.ws_row, size.ws_col);
}

static void print(const struct looks *now, const struct looks *before)
{
	switch (option.output) {
	case TERMINAL:
		print_screen(now, before);
		break;
	case BATCH:
		print_table(now, before, SIZE_MAX, INT_MAX);
		putchar('\n');
		break;
	case CSV:
		print_csv(now, before);
		break;
	case PROMETHEUS:
		print_prometheus(now);
		break;
	}
	if (fflush(stdout) || ferror(stdout))
		fail("cannot write the output: %s", strerror(errno));
}

/* Wait for the next round. False if the program must end instead. */
static bool wait_for_key(void)
{
	struct pollfd key = { .fd = option.output == TERMINAL ? STDIN_FILENO : -1, .events = POLLIN };
	struct timespec delay = { .tv_sec = (time_t)option.delay };
	char c = 0;

	delay.tv_nsec = (long)((option.delay - (double)delay.tv_sec) * 1e9);
	/* Signals are blocked everywhere else, so none can come unnoticed before the wait. */
	if (ppoll(&key, 1, &delay, &unblocked) > 0 &&
	    (read(STDIN_FILENO, &c, 1) <= 0 || c == 'q'))
		return false;
	return !stopped;
}

static void on_signal(int signal)
{
	stopped = 1;
}

/* A signal that ends the program must not leave the terminal in raw mode. */
static void catch_signals(void)
{
	static const int ends[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t set;
	size_t i;

	sigemptyset(&set);
	for (i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		sigaddset(&set, ends[i]);
		sigaction(ends[i], &action, NULL);
	}
	sigprocmask(SIG_BLOCK, &set, &unblocked);
}

static void restore_terminal(void)
{
	printf("\033[?7h\033[?25h\n");
	fflush(stdout);
	tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
}

static void use_terminal(void)
{
	struct termios raw;

	if (!isatty(STDOUT_FILENO) || tcgetattr(STDIN_FILENO, &terminal))
		fail("standard input or output is no terminal: use --batch, --csv or --prometheus");
	atexit(restore_terminal);
	raw = terminal;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	/* A core dump or a stop would leave the terminal in raw mode. */
	raw.c_cc[VQUIT] = _POSIX_VDISABLE;
	raw.c_cc[VSUSP] = _POSIX_VDISABLE;
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	printf("\033[?25l");
}

static void usage(void)
{
	puts("usage: exmap-top [OPTION...]\n"
	     "Show all exmaps of the machine once a second; q ends the program. Without\n"
	     "privileges it shows the exmaps of its user.\n"
	     "\n"
	     "  -b, --batch       write one table after the other, without a terminal\n"
	     "  -c, --csv         write lines of numbers, in pages and pages per second\n"
	     "  -p, --prometheus  write all values once, for node_exporter's textfile collector\n"
	     "  -d, --delay=S     wait S seconds between two rounds (at least 0.1, default 1)\n"
	     "  -n, --rounds=N    end after N rounds\n"
	     "  -h, --help        show this help");
}

static double number(const char *argument, double least)
{
	char *end;
	double value = strtod(argument, &end);

	if (*end || end == argument || !(value >= least && value <= 1e6))
		fail("%s is not a number from %g to 1000000: see --help", argument, least);
	return value;
}

static void options(int argc, char **argv)
{
	static const struct option known[] = {
		{ "batch", no_argument, NULL, 'b' },
		{ "csv", no_argument, NULL, 'c' },
		{ "prometheus", no_argument, NULL, 'p' },
		{ "delay", required_argument, NULL, 'd' },
		{ "rounds", required_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "bcpd:n:h", known, NULL)) >= 0) {
		switch (c) {
		case 'b':
			option.output = BATCH;
			break;
		case 'c':
			option.output = CSV;
			break;
		case 'p':
			option.output = PROMETHEUS;
			break;
		case 'd':
			option.delay = number(optarg, 0.1);
			break;
		case 'n':
			option.rounds = (long)number(optarg, 1);
			break;
		case 'h':
			usage();
			exit(0);
		default:
			exit(1);
		}
	}
	if (optind < argc)
		fail("unexpected argument %s: see --help", argv[optind]);
}

static void look_and_sort(struct looks *looks)
{
	look_around(looks);
	if (looks->nr)
		qsort(looks->look, looks->nr, sizeof(looks->look[0]), compare);
}

int main(int argc, char **argv)
{
	struct looks looks[2] = { };
	int now = 0;

	options(argc, argv);
	catch_signals();
	if (option.output == TERMINAL)
		use_terminal();
	if (option.output == CSV)
		print_csv_heading();
	look_and_sort(&looks[now]);
	if (option.output == PROMETHEUS) {
		print(&looks[now], NULL);
		option.rounds = 0;
	}
	/* A rate needs two looks. */
	while (option.rounds-- && wait_for_key()) {
		now = !now;
		look_and_sort(&looks[now]);
		print(&looks[now], &looks[!now]);
	}
	free(looks[0].look);
	free(looks[1].look);
	return 0;
}
