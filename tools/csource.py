# SPDX-License-Identifier: GPL-2.0
"""What tools/arrows and tests/shell/indirect_calls.py know about the module's sources."""
import pathlib
import re

TOP = pathlib.Path(__file__).resolve().parent.parent
COMMENT_OR_TEXT = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.S)
# A definition begins in the first column and has its body's brace there, too.
DEFINITION = re.compile(r"^(?P<head>\w[^;{}=#]*?\b(?P<name>\w+)\([^;{}]*\))\n\{\n(?P<body>.*?)^\}",
                        re.M | re.S)


def blank(match):
    """Keep the lines, so that their numbers stay right."""
    return re.sub(r"[^\n]", " ", match.group())


def read(name):
    """The code of a file, without comments, strings and preprocessor lines."""
    code = COMMENT_OR_TEXT.sub(blank, (TOP / name).read_text(encoding="utf-8"))
    return re.sub(r"^#include.*$", "", code, flags=re.M)


def definitions(code):
    """Name, whether static, start and text of the body of each function."""
    for match in DEFINITION.finditer(code):
        yield (match["name"], re.search(r"\bstatic\b", match["head"]) is not None,
               match.start("body"), match["body"])


def headers():
    """The headers of the module, from the Makefile's MODULE_SOURCES."""
    text = (TOP / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"\w+\.h\b", re.search(r"^MODULE_SOURCES = (.*)$", text, re.M).group(1))


def built():
    """The files of which Kbuild makes the module."""
    text = (TOP / "Kbuild").read_text(encoding="utf-8").replace("\\\n", " ")
    objects = " ".join(re.findall(r"^exmap-\S+ \S?= (.*)$", text, re.M))
    return [name.replace(".o", ".c") for name in objects.split()]
