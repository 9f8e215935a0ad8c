#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""
Turn what bench/measure has measured into tables.

    bench/tables.py budget|contention|cost|growth|lines|sharing|tlbi
        reads from standard input what bench/measure printed, and prints Markdown; for lines and
        tlbi, a line "counted" follows, and what the plugin of QEMU wrote
    bench/tables.py figure8|figure9|figure10|shootdowns|bufferpool
        reads NAME.csv in the current directory, and prints a text for people
    bench/tables.py summary
        reads figure8.csv and figure10.csv, and prints in one sentence what they show
    bench/tables.py apart FILE FILE
        adds up what test-bench-alloc printed in two processes, and prints a line of CSV
"""
import collections
import csv
import pathlib
import sys
import textwrap

BENCH = pathlib.Path(__file__).resolve().parent

# Rows of the tables. The budget of a row is a part of the cost of a plain pread, or None.
BUDGET_ROWS = (  # scenario, batch, budget, name
    ("populated", 1, None, "`pread` of the device to memory that is there: a plain pread"),
    ("surface", 1, None, "the same to a page of an exmap that is there"),
    ("pread", 512, None, "the same to memory that was never touched"),
    ("populated-adjacent", 512, None, "a plain pread of 512 adjacent pages"),
    ("fd", 1, 1.15, "`pread` through the exmap's fd"),
    ("fd", 512, 0.6, "`preadv` through it: 512 scattered pages"),
    ("fd-adjacent", 512, 0.15, "`pread` through it: 512 adjacent pages"),
    ("fd-dense", 512, 0.15, "`preadv` through it: 512 adjacent pages, a buffer for each"),
    ("action", 1, None, "READ of one page"),
    ("action", 512, 0.6, "READ of 512 scattered pages"),
    ("action-adjacent", 512, 0.15, "READ of 512 adjacent pages"),
)
WRITE_ROWS = (  # the same for writes, compared with a plain pwrite
    ("pwrite", 1, None, "`pwrite` of the device: a plain pwrite"),
    ("pwrite-adjacent", 512, None, "a plain pwrite of 512 adjacent pages"),
    ("write", 1, None, "WRITE of one page"),
    ("write", 512, 0.6, "WRITE of 512 scattered pages"),
    ("write-adjacent", 512, 0.15, "WRITE of 512 adjacent pages"),
)
CONTENTION_ROWS = (  # scenario, least ratio to one thread with 1 IF, name
    ("1if", 1.85, "1 IF, a file descriptor for each"),
    ("1if-shared", None, "1 IF, one file descriptor for both"),
    ("1if-own", None, "an exmap for each, in the same process"),
    ("1if-apart", None, "a process for each, which is what these processors can do"),
    ("1if-own-16384", None, "an exmap for each, with one shootdown per 16384 pages"),
    ("1if-apart-16384", None, "a process for each, with one shootdown per 16384 pages"),
    ("pool", 0.75,
     "pool, one allocates and the other frees: pages per instruction, on one processor"),
    ("pool-calls", 0.75, "the same without the program and its waiting: the calls alone"),
)
COST_ROWS = (  # operation, stride, name
    ("alloc", 1, "ALLOC, contiguous"),
    ("alloc", 16, "ALLOC, every 16th page"),
    ("free", 1, "FREE, contiguous"),
    ("free", 16, "FREE, every 16th page"),
    ("free-deferred", 1, "FREE, contiguous, with `EXMAP_FREE_DEFER`, its flushes included"),
    ("alloc-run", 1, "ALLOC of adjacent pages by `fadvise64`"),
    ("alloc-pread", 1, "ALLOC of adjacent pages by `pread` of the exmap's fd"),
    ("free-run", 1, "FREE of adjacent pages by `fadvise64`"),
    ("free-run-deferred", 1, "the same with `EXMAP_FREE_DEFER`, its flushes included"),
    ("alloc-elsewhere", 1, "ALLOC of pages freed at another interface (2 IF, pool)"),
    ("free-elsewhere", 1, "FREE of pages allocated at another interface"),
    ("1if", 1, "1 IF: ALLOC and FREE, by turns"),
    ("2if", 1, "2 IF: the same at two interfaces"),
    ("pool", 1, "pool: 8 ALLOCs at one interface, then 8 FREEs at another"),
    ("steal", 1, "ALLOC of pages stolen from another interface"),
    ("alloc-new", 1, "ALLOC of pages new from the system, zeroing included"),
    ("read", 16, "READ, every 16th page, of a null_blk"),
    ("read-run", 1, "READ of adjacent pages by `fadvise64`, of a null_blk"),
    ("touch", 1, "first touch after ALLOC"),
    ("fault", 1, "page fault of anonymous memory, zeroing included"),
    ("populate", 1, "`MADV_POPULATE_WRITE`, zeroing included"),
    ("zeroing", 1, "zeroing alone"),
    ("madvise", 1, "`MADV_DONTNEED`"),
    ("process_madvise", 1, "`process_madvise` (Linux 6.13 and later)"),
    ("syscall", 1, "a system call that does nothing"),
    ("refused", 1, "an ioctl that exmap refuses"),
)
# Each group of rows is compared with its first row; "processes" with the first of "exmaps".
GROWTH_ROWS = (  # what, size, name
    ("surface", 1, "surface of 1 GiB"),
    ("surface", 64, "64 GiB"),
    ("surface", 4096, "4 TiB"),
    ("interfaces", 1, "1 interface in use"),
    ("interfaces", 32, "32"),
    ("interfaces", 1024, "1024"),
    ("exmaps", 1, "1 exmap open"),
    ("exmaps", 8, "8 in the same process"),
    ("exmaps", 64, "64 in the same process"),
    ("processes", 8, "8 in as many processes"),
    ("processes", 64, "64 in as many processes"),
)
NEIGHBOR_ROWS = (  # what, sizes of groups with a budget, name
    ("neighbors-order", (4, 16), "single pages, in order"),
    ("neighbors-shuffled", (4, 16), "single pages, in shuffled groups of 16"),
    ("neighbors-deferred", (4, 16), "single pages, in order, with `EXMAP_FREE_DEFER`"),
    ("neighbors-runs", (4, 16, 512), "runs of 512 pages, in order"),
)
SETUP_ROWS = (  # MiB, name
    (1, "SETUP of a pool of 1 MiB"),
    (1024, "1 GiB"),
    (65536, "64 GiB"),
)
LINE_COLUMNS = (  # call, stride, name
    ("alloc", 1, "ALLOC, adjacent pages"),
    ("free-alloc", 1, "FREE"),
    ("alloc", 16, "ALLOC, every 16th page"),
    ("free-alloc", 16, "FREE"),
    ("read", 16, "READ, every 16th page"),
)
LINE_ROWS = (  # kind, name
    ("entry", "entries: requests and answers, 8 bytes a page"),
    ("table", "page tables: the page's entry, 8 bytes"),
    ("array", "bundles: pointers to free pages and to pages in limbo, 8 bytes a page; of READ also "
              "its slots and requests"),
    ("struct", "`struct page`: whether others hold the page"),
    ("rest", "all else: stacks, locks, counters, and what the kernel reads and writes"),
)
TLBI_COLUMNS = (  # way, strides, name
    ("single", (1,), "adjacent pages"),
    ("single", (2,), "every 2nd page"),
    ("single", (3,), "every 3rd"),
    ("single", (16,), "every 16th"),
    ("single", (512,), "every 512th"),
    ("deferred", (1, 2, 3, 16, 512), "deferred"),
    ("run", (1, 2, 3, 16, 512), "one run"),
    ("mixed", (1, 2, 3, 16, 512), "runs of 1 to 4"),
)
MEMORY_ROWS = (  # what, size, name
    ("memory-surface", 4096, "a page of a surface of 4 TiB that was never used"),
    ("memory-interface", 64, "an interface"),
    ("memory-pool", 1, "a page of a pool of 256 MiB, 1 interface in use"),
    ("memory-pool", 64, "64 interfaces, the pool 1024 pages for each"),
)


def sections():
    """What bench/measure printed on standard input: rows of CSV by the names above them."""
    found, rows = {}, None
    for row in csv.reader(sys.stdin):
        if len(row) == 1 and row[0].isalpha():
            rows = found.setdefault(row[0], [])
        elif row:
            rows.append(row)
    return found


def heading(*cells):
    """The first two lines of a table in Markdown."""
    return [line(*cells), "|" + "---|" * len(cells)]


def line(*cells):
    """A line of a table in Markdown. An empty first cell of a heading is one blank wide."""
    return "| " + " | ".join(cells).lstrip() + " |"


def short(value):
    """A number with a decimal if it is small."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def judged(value, budget, missed):
    """The cell of a budget, which says if the value misses it."""
    return f"{budget}: missed" if budget and missed(value, budget) else str(budget or "")


def budget():
    """What reading and writing a page cost, and how that compares with pread and pwrite."""
    cost = {(row[0], row[2]): row[4] for row in sections()["budget"]}
    for rows, call in ((BUDGET_ROWS, "pread"), (WRITE_ROWS, "pwrite")):
        if rows is WRITE_ROWS:
            yield ""
        plain = float(cost[rows[0][0], "1"])
        yield from heading("", "instructions per page", f"of a plain {call}", "budget")
        for scenario, batch, limit, name in rows:
            value = float(cost[scenario, str(batch)])
            yield line(name, f"{value:.1f}", f"{value / plain:.3f}",
                       judged(value / plain, limit, lambda ratio, most: ratio > most))


def part(values, share, key=None):
    """The value at that place in the order of the values: 0 least, 0.5 median, 1 most."""
    return sorted(values, key=key)[int((len(values) - 1) * share + 0.5)]


def contention():
    """What two threads do compared with one thread, which ran in the same round just before."""
    found = sections()
    cost = {(row[0], row[1]): row[3] for row in found["cost"]}
    # The fewer instructions a page costs, the better.
    ratios = {"pool-calls": [float(cost["1if", "512"]) / float(cost["pool", "512"])]}
    one = None
    for scenario, threads, _, rate, *_ in found["pool"] + found["contention"]:
        if threads == "1":
            one = float(rate)
        elif threads == "2":
            ratios.setdefault(scenario, []).append(float(rate) / one)
    yield from heading("two threads, 512 single pages at a time",
                       "ratio to one thread: median", "least", "most", "budget")
    for scenario, limit, name in CONTENTION_ROWS:
        median, least, most = (part(ratios[scenario], share) for share in (0.5, 0, 1))
        yield line(name, f"{median:.2f}", f"{least:.2f}", f"{most:.2f}",
                   judged(median, limit, lambda ratio, want: ratio < want))


def cost():
    """What each call costs per page."""
    found = {(row[0], row[2], row[1]): row[3] for row in sections()["cost"]}
    yield from heading("instructions per page, with calls of", "1 page", "8", "64", "512")
    for operation, stride, name in COST_ROWS:
        values = (found.get((operation, str(stride), batch)) for batch in ("1", "8", "64", "512"))
        yield line(name, *(short(float(value)) if value else "" for value in values))


def growth():
    """Does the cost grow with surface, interfaces, exmaps or pool? And what memory exmap takes."""
    found = {tuple(row[:4]): row[4] for row in sections()["growth"]}
    columns = [(call, pages) for pages in ("1", "512") for call in ("alloc", "free")]

    def value(what, size, call="", pages=""):
        return float(found[what, str(size), call, pages])

    yield from heading("instructions per page", "ALLOC, 1 page", "FREE, 1 page", "ALLOC, 512",
                       "FREE, 512", "worst ratio to the first row", "budget")
    first = None
    for what, size, name in GROWTH_ROWS:
        costs = [value(what, size, *column) for column in columns]
        if first is None or what not in (first[0], "processes"):
            first = what, costs
            ratio = ["", ""]
        else:
            worst = max(here / there for here, there in zip(costs, first[1]))
            ratio = [f"{worst:.3f}", judged(worst, 1.1, lambda ratio, most: ratio > most)]
        yield line(name, *map(short, costs), *ratio)

    yield ""
    yield from heading("pages that are still adjacent in memory", "groups of 4", "16", "512",
                       "budget")
    for what, sizes, name in NEIGHBOR_ROWS:
        shares = {size: value(what, size) for size in (4, 16, 512)}
        missed = any(shares[size] < 0.9 for size in sizes)
        yield line(name, *(f"{share * 100:.0f} %" for share in shares.values()),
                   f"90 % for {', '.join(map(str, sizes))}" + (": missed" if missed else ""))

    yield ""
    yield from heading("", "instructions", "ratio to the first row", "budget")
    for size, name in SETUP_ROWS:
        ratio = value("setup", size) / value("setup", SETUP_ROWS[0][0])
        cells = [f"{ratio:.3f}", judged(ratio, 1.01, lambda ratio, most: ratio > most)]
        yield line(name, f"{value('setup', size):.0f}",
                   *(cells if size != SETUP_ROWS[0][0] else ["", ""]))

    yield ""
    yield from heading("kernel memory", "bytes", "of pool and page tables", "budget")
    for what, size, name in MEMORY_ROWS:
        size_in_bytes = value(what, size)
        cells = ["", ""]
        if what == "memory-pool":
            share = value("memory-share", size) * 100
            cells = [f"{share:.2f} %", "1 %" + (": missed" if share > 1 else "")]
        yield line(name, short(size_in_bytes) if size_in_bytes >= 1 else f"{size_in_bytes:.6f}",
                   *cells)


# Where the kernel has its array of struct page, on x86-64 without KASLR.
STRUCT_PAGES = range(0xffffea0000000000, 0xffffeb0000000000)


def kinds(touched, frames):
    """How many lines of each kind a call has only read, and how many it has written."""
    in_frame = collections.Counter(int(line, 16) // 64 for line, *_ in touched)
    count = {kind: [0, 0] for kind, _ in LINE_ROWS}
    for number, address, _, written in touched:
        frame = int(number, 16) // 64
        kind = frames.get(frame)
        if not kind and int(address, 16) in STRUCT_PAGES:
            kind = "struct"
        # No other memory is used as densely as an array.
        if not kind:
            kind = "array" if in_frame[frame] >= 32 else "rest"
        count[kind][int(written)] += 1
    return count


def lines():
    """How many cache lines a call of 512 single pages reads and writes per page."""
    found = sections()
    frames = {int(row[2], 16): row[1] for row in found["lines"] if row[0] == "frame"}
    calls = {}
    for call, measurement, *touched in found["counted"]:
        calls.setdefault((measurement, int(call)), []).append(touched)
    columns = {}
    for _, number, call, stride in (row for row in found["lines"] if row[0] == "measurement"):
        # The call in the middle: an interrupt makes some use more lines.
        middle = part([touched for (of, _), touched in calls.items() if of == number], 0.5, len)
        columns[call, int(stride)] = kinds(middle, frames)

    yield from heading("cache lines per page, only read (r) and written (w)",
                       *(name for *_, name in LINE_COLUMNS))
    for kind, name in LINE_ROWS:
        cells = ([f"{lines / 512:.2f} {how}"
                  for lines, how in zip(columns[call, stride][kind], "rw") if lines >= 3]
                 for call, stride, _ in LINE_COLUMNS)
        yield line(name, *(" + ".join(cell) for cell in cells))
    sums = (sum(sum(both) for both in columns[call, stride].values())
            for call, stride, _ in LINE_COLUMNS)
    yield line("all", *(f"{lines / 512:.2f}" for lines in sums))


def sharing():
    """What threads save that share flushes, compared with those that do not in the same round."""
    found = sections()
    cells = {}
    for name in ("exmap", "alone"):
        for _, threads, batch, rate, interrupts in found[name]:
            if threads.isdigit():
                cells.setdefault((int(threads), int(batch)), {}).setdefault(name, []).append(
                    (float(rate), float(interrupts)))
    yield from heading("threads", "pages per call", "interrupts per page: alone", "shared",
                       "million pages/s: alone", "shared", "ratio: median", "least", "most")
    for (threads, batch), runs in sorted(cells.items()):
        median = {name: [part([run[i] for run in rounds], 0.5) for i in (0, 1)]
                  for name, rounds in runs.items()}
        ratios = [ours[0] / other[0] for ours, other in zip(runs["exmap"], runs["alone"])]
        yield line(str(threads), str(batch),
                   *(f"{median[name][1]:.4f}" for name in ("alone", "exmap")),
                   *(f"{median[name][0] / 1e6:.3f}" for name in ("alone", "exmap")),
                   *(f"{part(ratios, share):.2f}" for share in (0.5, 0, 1)))


def tlbi_cell(counts, pages):
    """TLBIs per page, the most of several calls of so many pages, and what is wrong with them."""
    cell = f"{max(sum(count) for count in counts) / pages:.3f}"
    if any(sum(count) > 1.1 * pages for count in counts):
        cell += ": missed"
    # If no TLBI is of more than one page, each page needs its own.
    if any(by_page < pages for by_page, ranges, everything in counts if not ranges + everything):
        cell += ": too few"
    return cell


def tlbi():
    """How many TLBIs each freed page takes on arm64."""
    found = sections()
    rounds = collections.defaultdict(list)
    for measurement, *count in found["counted"]:
        rounds[measurement].append([int(number) for number in count])
    # The least of several rounds: in the others the kernel has flushed something, too.
    least = {(way, int(pages), int(stride)): min(rounds[number], key=sum)
             for number, way, pages, stride in found["tlbi"]}

    yield from heading("pages per call", *(name for *_, name in TLBI_COLUMNS))
    for pages in sorted({pages for _, pages, _ in least}):
        yield line(str(pages),
                   *(tlbi_cell([least[way, pages, stride][:3] for stride in strides], pages)
                     for way, strides, _ in TLBI_COLUMNS))
    syncs = max(count[3] for count in least.values())
    if syncs:
        yield ""
        yield f"Besides, the kernel executes {syncs} TLBI of address 0 in each call."


def read_csv(name):
    """The heading and the other rows of a file."""
    with open(name, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], rows[1:]


def compared(title, figure, scenarios):
    """The numbers of a figure beside those of the paper."""
    paper = {(row[1], row[2]): row[3] for row in read_csv(BENCH / "paper.csv")[1]
             if row[0] == figure.removeprefix("figure")}
    names, rows = read_csv(f"{figure}.csv")
    counted = names[4] == "shootdowns_per_page"
    here, shootdowns = {}, {}
    for scenario, threads, _, fourth, fifth, *_ in rows:
        rate = float(fourth if counted else fifth) / 1e6
        here[scenario, threads] = f"{rate:.3f}" if rate < 1 else f"{rate:.2f}"
        shootdowns[scenario, threads] = fifth

    def show(last, name, *cells):
        return "".join([f"{name:<16}", *(f" {cell:>9}" for cell in cells),
                        f" {last:>12}" if counted else ""])

    def get(numbers, scenario, threads):
        missing = "n/a" if scenario == "process_madvise" else "-"
        return numbers.get((scenario, threads), missing)

    yield f"{title}, million pages/s"
    yield ""
    yield show("shootdowns", "", "1 thread", "", "2 threads", "")
    yield show("per page (2)", "", "here", "paper", "here", "paper")
    for scenario in scenarios:
        last = shootdowns.get((scenario, "2"))
        yield show(f"{float(last):.4f}" if last else "-", scenario,
                   *(get(numbers, scenario, threads)
                     for threads in ("1", "2") for numbers in (here, paper)))
    yield ""


def figure8():
    """The paper's Figure 8: ALLOC and FREE."""
    yield from compared("Figure 8: alloc+free of 512 single pages at a time", "figure8",
                        ("1if", "2if", "pool", "madvise", "process_madvise"))
    if not any(row[0] == "process_madvise" for row in read_csv("figure8.csv")[1]):
        yield "n/a: this kernel refuses process_madvise for the own process; 6.13 and later take it"
        yield "(bench/demo 8 -k 7.3)."
        yield ""


def figure9():
    """The paper's Figure 9: reads by io_uring."""
    here = {(row[3], row[0], row[1]): float(row[4]) / 1e6 for row in read_csv("figure9.csv")[1]}
    yield "Figure 9: reads by io_uring of a device that takes 100 us, million pages/s"
    yield ""
    yield f"{'reads':<16} {'exmap':>9} {'':>9} {'memory':>9} {'':>9}"
    yield f"{'under way':<16} {'1 thread':>9} {'2':>9} {'1 thread':>9} {'2':>9}"
    for depth in (2 ** power for power in range(9)):
        yield f"{depth:<16}" + "".join(
            f" {here.get((str(depth), scenario, threads), 0):9.4f}"
            for scenario in ("uring", "uring-device") for threads in ("1", "2"))
    yield ""


def figure10():
    """The paper's Figure 10: reads of a device that answers at once."""
    yield from compared(
        "Figure 10: reads of 512 single pages at a time, of a device that answers at once",
        "figure10", ("pread", "populated", "surface", "fd", "action", "uring-device", "uring",
                         "uring-command"))
    yield """\
pread, populated, surface: a call per page, to memory that is thrown away afterwards, to
memory that is there, and to pages of an exmap that are there. fd, action: a call per
batch, to pages that are not there, and FREE. uring-device is as populated, uring as fd, and
uring-command by commands; all with 256 reads under way, of a multi-queue device.
"""


def shootdowns():
    """What EXMAP_FREE_DEFER saves, and how much of it depends on the size of quarantines."""
    rows = {(row[0], row[2]): (float(row[4]), float(row[3]) / 1e6)
            for row in read_csv("shootdowns.csv")[1]}
    names = ("1if", "1if-deferred", "1if-4096", "1if-16384")
    titles = ("at once", "512", "4096", "16384")
    yield "FREE of single pages by two threads: at once, and with EXMAP_FREE_DEFER and quarantines"
    yield "of 512, 4096 and 16384 pages. Shootdowns per page, then million pages/s."
    yield ""
    yield f"{'pages per call':<16}" + "".join(f"{title:>10}" for title in titles * 2)
    for batch in (2 ** power for power in range(10)):
        both = [rows.get((name, str(batch)), (0, 0)) for name in names]
        yield (f"{batch:<16}" + "".join(f"{shootdowns:10.5f}" for shootdowns, _ in both) +
               "".join(f"{rate:10.3f}" for _, rate in both))
    yield ""


def bufferpool():
    """What the example does."""
    here = {(row[0], row[1]): float(row[2]) for row in read_csv("bufferpool.csv")[1]}
    yield "examples/bufferpool: a buffer pool of 64 MiB over 512 MiB, operations/s"
    yield ""
    yield f"{'':<16} {'1 thread':>9} {'2 threads':>9}"
    for backend in ("exmap", "madvise"):
        yield f"{backend:<16}" + "".join(f" {int(here.get((backend, threads), 0)):9d}"
                                         for threads in ("1", "2"))
    yield ""


def summary():
    """What somebody who has never seen exmap has just seen."""
    freed = {(row[0], row[1]): float(row[3]) for row in read_csv("figure8.csv")[1]}
    read = {(row[0], row[1]): float(row[4]) for row in read_csv("figure10.csv")[1]}
    yield from textwrap.wrap(
        f"You have just seen one thread allocate and free 512 scattered pages "
        f"{freed['1if', '1'] / freed['madvise', '1']:.0f} times as fast with exmap as with page "
        f"faults and madvise, and read such pages {read['action', '1'] / read['pread', '1']:.1f} "
        f"times as fast as pread into fresh memory, because one call handles all 512 pages and "
        f"one TLB shootdown frees them.", 90)


TABLES = (budget, contention, cost, growth, lines, sharing, tlbi, figure8, figure9, figure10,
          shootdowns, bufferpool, summary)


def apart(files):
    """Two processes as one line: the sum of their rates, the mean of their shootdowns."""
    lines = [pathlib.Path(file).read_text(encoding="utf-8").strip().split(",") for file in files]
    rate = sum(float(line[3]) for line in lines)
    mean = sum(float(line[4]) for line in lines) / len(lines)
    scenario = lines[0][0].replace("1if", "1if-apart", 1)
    return f"{scenario},{len(lines)},{lines[0][2]},{rate:.0f},{mean:.4f}"


def main():
    """Print the table that the argument names."""
    tables = {table.__name__: table for table in TABLES}
    if sys.argv[1:2] == ["apart"] and len(sys.argv) == 4:
        print(apart(sys.argv[2:]))
        return 0
    if len(sys.argv) != 2 or sys.argv[1] not in tables:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    print("\n".join(tables[sys.argv[1]]()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
