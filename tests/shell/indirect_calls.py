#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""
indirect_calls.py MODULE.ko: complain about indirect calls in the module that may reach a function
that the kernel does not export. Exits with 1 if there are any.

ksyms.c finds such functions. Many of them have no ENDBR, so that on a processor with CET an
indirect call to one of them is the end of the kernel. The module therefore makes these calls as
static calls, which are direct. This program checks that

- every static call key of the module is called by its trampoline, and has a function that
  ksyms.c finds
- every other indirect call belongs to a callback: the function around it, which is known by the
  symbol in the object, makes a call by way of a function pointer in its source

Calls of pv_ops do not count, because the kernel makes them direct at boot.
"""
import pathlib
import re
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "tools"))
from csource import built, definitions, headers, read  # noqa: E402

# Callbacks that the kernel declares, as they are called in a source: an I/O has ended; the last
# reference to a memory cgroup is gone (its release function, in an inline function).
KERNEL_CALLBACKS = (r"->ki_complete\(", r"\bmem_cgroup_put\(")
POINTER_MEMBER = re.compile(r"\(\*(\w+)\)\(")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INDIRECT = re.compile(r"\b(call|jmp) +\*")
STATIC_CALL = re.compile(r"R_X86_64_PLT32\s+__SCT__(\w+)")
# What the compiler appends to the symbol of a part or a copy of a function.
SUFFIX = re.compile(r"\.(part|isra|constprop|cold)\b.*")


def objdump(*arguments):
    """The lines that objdump prints."""
    return subprocess.run(["objdump", *arguments], check=True, text=True,
                          stdout=subprocess.PIPE).stdout.splitlines()


def indirect_calls(lines):
    """The symbol of the function and the line of each indirect call in a disassembly."""
    function = None
    for line, following in zip(lines, lines[1:] + [""]):
        found = FUNCTION.match(line)
        if found:
            function = SUFFIX.sub("", found[1])
        elif (INDIRECT.search(line) and "pv_ops" not in following) or \
                re.search("R_X86_64.*indirect", line):
            yield function, line.strip()


def callback_sites():
    """How many calls of callbacks the source of each function has."""
    members = {member for header in headers() for member in POINTER_MEMBER.findall(read(header))}
    site = re.compile("|".join([rf"(?:->|\.){member}\(" for member in sorted(members)] +
                               list(KERNEL_CALLBACKS)))
    sites = {}
    for name in built():
        for function, _, _, body in definitions(read(name)):
            sites[function] = sites.get(function, 0) + len(site.findall(body))
    return sites


def complaints(module):
    """What is wrong with the module."""
    lines = objdump("-dr", "--no-show-raw-insn", module)
    symbols = {line.split()[-1] for line in objdump("-t", module)
               if line and "*UND*" not in line}

    sites = callback_sites()
    # Each tracepoint has a function that calls what is attached to it.
    sites.update({f"__traceiter_{name.removeprefix('__tracepoint_')}": 1 for name in symbols
                  if name.startswith("__tracepoint_")})
    for function, line in indirect_calls(lines):
        sites[function] = sites.get(function, 0) - 1
        if sites[function] < 0:
            yield f"{function}: {line}"

    keys = {name.removeprefix("__SCK__") for name in symbols
            if name.startswith("__SCK__") and not name.startswith("__SCK__tp_func_")}
    called = {name for line in lines for name in STATIC_CALL.findall(line)}
    for name in sorted(keys - called):
        yield f"no static call of {name}"
    # The lists of ksyms.h and arch.h name each static call with the function that ksyms.c finds.
    listed = {name for header in ("ksyms.h", "arch.h")
              for name in re.findall(r"\bX\((\w+), \w+\)", read(header))}
    for name in sorted(keys - listed):
        yield f"ksyms.c finds no function for {name}"
    if not keys:
        yield "no static call"


def main():
    """Print the complaints."""
    found = list(complaints(sys.argv[1]))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


sys.exit(main())
