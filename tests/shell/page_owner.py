#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""
page_owner.py START END BEFORE NOW: print the stacks of page_owner that go through the code from
the symbol at START to the page of the symbol at END, and that still own pages.

BEFORE and NOW are files in the format of /sys/kernel/debug/page_owner_stacks/show_stacks. A stack
that is in BEFORE belongs to other code, which was unloaded from the same addresses earlier.

Some pages that exmap was the first to need stay with the kernel: those of slab caches (kmemleak
knows the objects in them) and of saved stack traces, and the page tables and KASAN's shadow of the
vmalloc area. They do not count.
"""
import re
import sys

KEPT = re.compile(r"allocate_slab|stack_depot_save|kasan_populate_vmalloc|vmap_[a-z_]*range")
PAGE = 0x1000


def stacks(path):
    """The stacks, each as one text that ends with its number of pages."""
    stack = ""
    with open(path, encoding="utf-8") as file:
        for line in file:
            stack += line
            if line.startswith("nr_base_pages"):
                yield stack
            if line.isspace() or line.startswith("nr_base_pages"):
                stack = ""


def main():
    """Compare the stacks now with those from before."""
    start, end = (int(address, 16) for address in sys.argv[1:3])
    end = (end | (PAGE - 1)) + 1
    before = set(stacks(sys.argv[3]))
    for stack in stacks(sys.argv[4]):
        addresses = (int(found, 16) for found in re.findall(r"^\s*0x(f{8}[0-9a-f]{8})", stack, re.M))
        if any(start <= address < end for address in addresses) and stack not in before and \
                not KEPT.search(stack):
            print(stack, end="")


main()
