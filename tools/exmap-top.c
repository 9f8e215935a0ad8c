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

/* The values in fdinfo that are shown; name_of[] has their names there. */
enum value {
	ID, INTERFACES, CEILING, TAKEN, MAPPED, FREE, DEFERRED, IN_FLIGHT,
	ALLOCS, FREES, READS, WRITES, STEALS, FLUSHES, VALUES,
};

static const char *const name_of[VALUES] = {
	[ID] = "exmap-id", [INTERFACES] = "exmap-interfaces",
	[CEILING] = "exmap-pages-ceiling", [TAKEN] = "exmap-pages-system",
	[MAPPED] = "exmap-pages-mapped", [FREE] = "exmap-pages-free",
	[DEFERRED] = "exmap-pages-deferred", [IN_FLIGHT] = "exmap-pages-in-flight",
	[ALLOCS] = "exmap-allocs", [FREES] = "exmap-frees", [READS] = "exmap-reads",
	[WRITES] = "exmap-writes", [STEALS] = "exmap-steals", [FLUSHES] = "exmap-flushes",
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
	bool batch;
	bool csv;
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
			if (!strcmp(name, name_of[i]))
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
	/* A process chooses its name, but that name must not control the screen or the CSV. */
	for (c = look->command; *c; c++)
		if (!isprint((unsigned char)*c) || strchr(",\"'", *c) ||
		    (c == look->command && strchr("=+-@", *c)))
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

static const char *mebibytes(uint64_t pages, char *buffer)
{
	sprintf(buffer, "%" PRIu64, pages / 256);
	return buffer;
}

static void print_csv(const struct looks *now, const struct looks *before)
{
	size_t i;
	int v;

	for (i = 0; i < now->nr; i++) {
		printf("%lld.%03ld,%d,%s", (long long)now->time.tv_sec,
		       now->time.tv_nsec / 1000000, now->look[i].pid, now->look[i].command);
		for (v = ID; v < ALLOCS; v++)
			printf(",%" PRIu64, now->look[i].value[v]);
		for (; v < VALUES; v++)
			printf(",%.0f", rate(now, before, &now->look[i], v));
		putchar('\n');
	}
}

/* The first columns are those that fit on 80 characters. */
static void print_table(const struct looks *now, const struct looks *before, int lines)
{
	uint64_t taken = 0;
	char buffer[32];
	size_t i;
	int v;

	for (i = 0; i < now->nr; i++)
		taken += now->look[i].value[TAKEN];
	printf("exmap-top: %zu exmaps, %s MiB. Pages in MiB; rates in pages, shootdowns per second\n\n",
	       now->nr, mebibytes(taken, buffer));
	printf("%7s %-12s %6s %6s %6s %5s %5s %5s %5s %5s %5s %5s %6s %4s %8s\n", "PID", "COMMAND",
	       "SYSTEM", "MAPPED", "FREE", "ALLOC", "FREES", "READ", "WRITE", "STEAL", "SHOOT",
	       "DEFER", "FLIGHT", "IF", "CEILING");
	for (i = 0; i < now->nr && (lines < 0 || i + 4 < (size_t)lines); i++) {
		const uint64_t *value = now->look[i].value;

		printf("%7d %-12.12s", now->look[i].pid, now->look[i].command);
		printf(" %6s", mebibytes(value[TAKEN], buffer));
		printf(" %6s", mebibytes(value[MAPPED], buffer));
		printf(" %6s", mebibytes(value[FREE], buffer));
		for (v = ALLOCS; v < VALUES; v++)
			printf(" %5s", scaled(rate(now, before, &now->look[i], v), buffer));
		printf(" %5s", mebibytes(value[DEFERRED], buffer));
		printf(" %6s", mebibytes(value[IN_FLIGHT], buffer));
		printf(" %4" PRIu64, value[INTERFACES]);
		printf(" %8s\n", mebibytes(value[CEILING], buffer));
	}
}

static void print(const struct looks *now, const struct looks *before)
{
	struct winsize size = { .ws_row = 24 };

	if (option.csv) {
		print_csv(now, before);
	} else if (option.batch) {
		print_table(now, before, -1);
		putchar('\n');
	} else {
		if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_row)
			size.ws_row = 24;
		/* Start at the upper left corner, clear the screen, and wrap no line. */
		printf("\033[H\033[2J\033[?7l");
		print_table(now, before, size.ws_row);
	}
	if (fflush(stdout) || ferror(stdout))
		fail("cannot write the output: %s", strerror(errno));
}

/* Wait for the next round. False if the program must end instead. */
static bool wait_for_key(void)
{
	struct pollfd key = { .fd = option.batch ? -1 : STDIN_FILENO, .events = POLLIN };
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
		fail("standard input or output is no terminal: use --batch or --csv");
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
	     "  -b, --batch      write one table after the other, without a terminal\n"
	     "  -c, --csv        write lines of numbers, in pages and pages per second\n"
	     "  -d, --delay=S    wait S seconds between two rounds (at least 0.1, default 1)\n"
	     "  -n, --rounds=N   end after N rounds\n"
	     "  -h, --help       show this help");
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
		{ "delay", required_argument, NULL, 'd' },
		{ "rounds", required_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "bcd:n:h", known, NULL)) >= 0) {
		switch (c) {
		case 'b':
			option.batch = true;
			break;
		case 'c':
			option.batch = true;
			option.csv = true;
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

int main(int argc, char **argv)
{
	struct looks looks[2] = { };
	int now = 0;

	options(argc, argv);
	catch_signals();
	if (!option.batch)
		use_terminal();
	if (option.csv)
		puts("time,pid,command,id,interfaces,ceiling,system,mapped,free,deferred,in_flight,allocs,frees,reads,writes,steals,flushes");
	look_around(&looks[now]);
	/* A rate needs two looks. */
	while (option.rounds-- && wait_for_key()) {
		now = !now;
		look_around(&looks[now]);
		if (looks[now].nr)
			qsort(looks[now].look, looks[now].nr, sizeof(looks[now].look[0]), compare);
		print(&looks[now], &looks[!now]);
	}
	free(looks[0].look);
	free(looks[1].look);
	return 0;
}
