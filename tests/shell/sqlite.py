#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""tests/shell/sqlite.py TEST FILE: one test of the SQLite extension, on a new database FILE.

Fails by an exception. "stock" is the VFS of SQLite, "exmap" that of the extension.
"""
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

SCRIPT, TEST, FILE = sys.argv[0], sys.argv[1], sys.argv[2]
SLOWDOWN = int(os.environ.get("EXMAP_TEST_SLOWDOWN", "1"))
POOL, ROWS = 1 << 18, 600  # the pool is the smallest; the table is larger
ACCOUNTS, TOTAL = 120, 120 * 1000


def load():
    """Load the extension, which stays."""
    with sqlite3.connect(":memory:") as connection:
        connection.enable_load_extension(True)
        connection.load_extension("examples/sqlite/exmap_vfs")


def connect(vfs="exmap", pool=POOL):
    """Open FILE."""
    name = "unix" if vfs == "stock" else vfs
    connection = sqlite3.connect(f"file:{FILE}?vfs={name}", uri=True, isolation_level=None,
                                 timeout=600)
    connection.execute("pragma cache_size = 10")
    connection.execute("pragma wal_autocheckpoint = 20")
    connection.execute("pragma synchronous = off")  # kill -9 loses nothing that was written
    if vfs == "exmap":
        assert one(connection, f"pragma mmap_size = {pool}") == pool, one(connection, "pragma exmap")
    return connection


def one(connection, sql, *values):
    """The first column of the only row."""
    (row,) = connection.execute(sql, values).fetchall()
    return row[0]


def status(connection):
    """PRAGMA exmap as a dictionary."""
    pairs = (pair.split("=") for pair in one(connection, "pragma exmap").split())
    return {name: int(value) for name, value in pairs}


def equal(first, second, what):
    """Complain if two values differ."""
    assert first == second, f"{what}: {first!r} and {second!r}"


def compare(connection):
    """The database is sound, and both VFSs see the same."""
    queries = ("pragma integrity_check", "select count(*), sum(n), sum(length(v)) from t",
               "select id, n, v from t order by id", "select id from t order by n")
    stock = connect("stock")
    for query in queries:
        equal(connection.execute(query).fetchall(), stock.execute(query).fetchall(), query)
    equal(one(connection, queries[0]), "ok", queries[0])
    stock.close()


def fill(connection, page_size, journal):
    """A table with an index, larger than the pool."""
    connection.execute(f"pragma page_size = {page_size}")
    connection.execute("pragma auto_vacuum = incremental")
    equal(one(connection, f"pragma journal_mode = {journal}"), journal, "journal_mode")
    connection.execute("create table t(id integer primary key, n integer, v blob)")
    connection.execute("create index by_n on t(n)")
    connection.execute("begin")
    rows = ((i, random.randrange(10 ** 6), random.randbytes(700)) for i in range(ROWS))
    connection.executemany("insert into t values(?, ?, ?)", rows)
    connection.execute("commit")


def change(connection):
    """Change a part of the table in many transactions, and undo some."""
    for i in range(30):
        connection.execute("begin")
        for _ in range(10):
            row = random.randrange(ROWS)
            connection.execute("update t set n = n + 1, v = ? where id = ?",
                               (random.randbytes(random.choice((10, 700, 9000))), row))
            one(connection, "select count(*) from t where id = ?", row)
        connection.execute("rollback" if i % 4 == 0 else "commit")


def page_sizes():
    """All sizes of a page and both journals, with changes, truncation and VACUUM."""
    for page_size in (512, 4096, 65536) if SLOWDOWN > 1 else (512, 1024, 4096, 8192, 65536):
        for journal in "delete", "wal":
            if os.path.exists(FILE):
                os.unlink(FILE)
            connection = connect()
            fill(connection, page_size, journal)
            compare(connection)
            change(connection)
            compare(connection)
            connection.execute("delete from t where id % 3 = 0")
            connection.executescript("pragma incremental_vacuum")  # execute() takes one step only
            compare(connection)
            equal(one(connection, "pragma page_size"), page_size, "page_size")
            counts = status(connection)
            assert counts["evicted"] and counts["hits"], counts
            assert page_size == 65536 or counts["reads"] < counts["read"], counts
            connection.execute("vacuum")
            compare(connection)
            connection.close()


def truncation_frees(journal):
    """What lies behind the end of the file leaves memory when the file is truncated."""
    connection = connect()
    fill(connection, 4096, journal)
    equal(one(connection, "select count(*) from t where length(v) = 700"), ROWS, "count")
    connection.execute("delete from t where id >= 20")
    resident = status(connection)["resident"]
    connection.executescript("pragma incremental_vacuum")  # execute() takes one step only
    connection.execute("pragma wal_checkpoint(truncate)").fetchall()
    pages = one(connection, "pragma page_count")
    assert resident > pages >= status(connection)["resident"], (resident, pages, status(connection))
    compare(connection)


def vacuum_to_another_size():
    """VACUUM changes the size of a page, and the pages follow."""
    connection = connect()
    fill(connection, 512, "delete")
    for page_size in 16384, 1024, 4096:
        connection.execute(f"pragma page_size = {page_size}")
        connection.execute("vacuum")
        equal(one(connection, "pragma page_size"), page_size, "page_size")
        compare(connection)


def elsewhere(*statements):
    """Execute statements in another process, by the stock VFS."""
    script = "import sqlite3, sys\n" \
             "c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)\n" \
             "for s in sys.argv[2:]: print(c.execute(s).fetchall())"
    return subprocess.run([sys.executable, "-c", script, FILE, *statements], check=False,
                          capture_output=True, text=True)


def value_of(connection):
    """What the database says of row 300."""
    return one(connection, "select n from t where id = 300")


def others_change_it(journal):
    """What another process commits is seen, also if a checkpoint has moved it."""
    connection = connect()
    fill(connection, 4096, journal)
    connection.execute("pragma wal_checkpoint(truncate)")
    for value in range(20):
        value_of(connection)
        statements = [f"update t set n = {value} where id = 300"]
        statements += ["pragma wal_checkpoint"] * (value % 2)
        result = elsewhere(*statements)
        equal(result.returncode, 0, result.stderr)
        equal(value_of(connection), value, "n")
    # SQLite itself does not tell of a checkpoint of what this connection has written.
    for value in range(20):
        value_of(connection)
        connection.execute("update t set n = ? where id = 300", (value,))
        result = elsewhere("pragma wal_checkpoint")
        equal(result.returncode, 0, result.stderr)
        equal(value_of(connection), value, "n after a checkpoint")
    compare(connection)
    if journal == "wal":
        # A checkpoint of its own leaves the pages in memory.
        connection.execute("select sum(length(v)) from t").fetchall()
        before = status(connection)["forgotten"]
        for value in range(3):
            connection.execute("update t set n = ? where id = 300", (value,))
            connection.execute("pragma wal_checkpoint").fetchall()
            equal(value_of(connection), value, "n after a checkpoint of its own")
        equal(status(connection)["forgotten"], before, "forgotten")


def two_connections(journal):
    """Two connections of one process see what the other one commits, and keep their pages."""
    pair = connect(), connect()
    fill(pair[0], 4096, journal)
    for value in range(20):
        writer, reader = pair[value % 2], pair[1 - value % 2]
        value_of(reader)
        writer.execute("update t set n = ? where id = 300", (value,))
        if value % 3 == 0:
            writer.execute("pragma wal_checkpoint").fetchall()
        for connection in pair:
            equal(value_of(connection), value, "n")
    for connection in pair:
        compare(connection)
        assert status(connection)["hits"], status(connection)


def pinned_pages_stay():
    """A page under a cursor is not evicted, whatever else is read."""
    connection = connect()
    fill(connection, 4096, "delete")
    want = {i: one(connection, "select v from t where id = ?", i) for i in range(0, ROWS, 40)}
    cursors = {}
    for i in want:
        cursors[i] = connection.execute("select id, v from t where id >= ? order by id", (i,))
        equal(next(cursors[i])[0], i, "id")
    pinned = status(connection)["pinned"]
    assert pinned >= len(want), pinned
    for _ in range(3):
        equal(one(connection, "select count(*) from t where length(v) = 700"), ROWS, "count")
    for i, cursor in cursors.items():
        equal(next(cursor)[0], i + 1, "id")
        equal(want[i], one(connection, "select v from t where id = ?", i), "v")
    del cursor
    cursors.clear()
    equal(status(connection)["pinned"], 0, "pinned")
    compare(connection)


def locks_are_kept():
    """Opening and closing pages drops no lock that the process has on the database."""
    connection = connect()
    fill(connection, 4096, "delete")
    connection.execute("begin immediate")
    for _ in range(2):
        other = connect()
        assert elsewhere("begin immediate").returncode != 0, "the lock is gone: other one open"
        other.execute("pragma mmap_size = 0")
        assert elsewhere("begin immediate").returncode != 0, "the lock is gone: pages closed"
        other.close()
        assert elsewhere("begin immediate").returncode != 0, "the lock is gone: other one closed"
    # Without the module they could not be kept, so there are no pages.
    os.environ["EXMAP_BACKEND"] = "madvise"
    other = sqlite3.connect(f"file:{FILE}?vfs=exmap", uri=True)
    size = one(other, f"pragma mmap_size = {POOL}")
    assert elsewhere("begin immediate").returncode != 0, "the lock is gone: no module"
    equal(size, 0, "mmap_size without the module")
    connection.execute("commit")
    equal(elsewhere("begin immediate").returncode, 0, "after the commit")


def make_accounts(journal):
    """A table of accounts, and a total that transfers do not change."""
    connection = connect()
    equal(one(connection, f"pragma journal_mode = {journal}"), journal, "journal_mode")
    connection.execute("create table account(id integer primary key, n integer, v blob)")
    connection.execute("begin")
    connection.executemany("insert into account values(?, 1000, ?)",
                           ((i, bytes(3000)) for i in range(ACCOUNTS)))
    connection.execute("create table log(worker integer, n integer)")
    connection.execute("commit")
    connection.close()


def transfer(connection, worker, number):
    """One transaction, and a look at all accounts."""
    total = one(connection, "select sum(n) from account where length(v) = 3000")
    equal(total, TOTAL, f"total, seen by {worker}")
    connection.execute("begin immediate")
    amount = random.randrange(100)
    for sign in -1, 1:
        connection.execute("update account set n = n + ?, v = ? where id = ?",
                           (sign * amount, random.randbytes(3000), random.randrange(ACCOUNTS)))
    connection.execute("insert into log values(?, ?)", (worker, number))
    connection.execute("commit")


def work():
    """A process of two_writers() or killed_writer(): transfers."""
    worker, transfers = int(sys.argv[3]), int(sys.argv[4])
    connection = connect()
    for number in range(transfers):
        transfer(connection, worker, number)
        if number == 0:
            print("at work", flush=True)


def start(worker, transfers):
    """Start a process with work()."""
    return subprocess.Popen([SCRIPT, "work", FILE, str(worker), str(transfers)],
                            stdout=subprocess.PIPE)


def check_accounts():
    """Both VFSs find all accounts as they should be."""
    for vfs in "exmap", "stock":
        connection = connect(vfs)
        equal(one(connection, "select sum(n) from account"), TOTAL, f"total by {vfs}")
        equal(one(connection, "pragma integrity_check"), "ok", f"integrity_check by {vfs}")
        yield connection
        connection.close()


def two_writers(journal):
    """Two processes write, and see all that the other one writes."""
    make_accounts(journal)
    transfers = 60 // SLOWDOWN
    workers = [start(worker, transfers) for worker in range(2)]
    for worker in workers:
        equal(worker.wait(), 0, "exit status")
    for connection in check_accounts():
        equal(one(connection, "select count(*) from log"), 2 * transfers, "transactions")


def killed_writer(journal):
    """A process dies in the middle of its writes, again and again."""
    make_accounts(journal)
    for _ in range(5 if SLOWDOWN == 1 else 2):
        worker = start(0, 10 ** 6)
        worker.stdout.readline()
        time.sleep(random.random() / 20)  # any moment will do
        worker.send_signal(signal.SIGKILL)
        equal(worker.wait(), -signal.SIGKILL, "exit status")
        for connection in check_accounts():
            assert one(connection, "select count(*) from log") > 0
    connection = connect()
    transfer(connection, 1, 0)


load()
name, _, argument = TEST.partition(":")
globals()[name](*[argument] if argument else [])
