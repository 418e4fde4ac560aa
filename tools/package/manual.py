#!/usr/bin/env python3
"""manual.py PROGRAM PAGE: writes the manual page from what the program says about itself by --help.

A line that does not look like help is an error, so that a page never silently lacks something.
"""
import re
import subprocess
import sys


def ask(*arguments):
    return subprocess.run(arguments, check=True, capture_output=True, encoding="utf-8").stdout.rstrip("\n").split("\n")


def escape(text):
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("…", "\\[u2026]")
    return "\\&" + text if text.startswith(".") else text


def blocks(lines):
    """Runs of lines between empty ones."""
    block = []
    for line in lines + [""]:
        if line:
            block.append(line)
        elif block:
            yield block
            block = []


def examples(lines):
    """Commands, indented by two, each followed by what it shows, indented by six."""
    page = []
    for line in lines:
        if line.startswith("      "):
            page += [".RS", escape(line.strip()), ".RE"]
        elif line.startswith("  laprox"):
            page += [".PP", ".EX", escape(line.strip()), ".EE"]
        else:
            sys.exit(f"manual.py: not an example: {line}")
    return page


def subcommand(program, name):
    usage, about, options, shown = blocks(ask(program, name, "--help"))
    if not usage[0].startswith("usage: laprox ") or options[0] != "Options:" or shown[0] != "Examples:":
        sys.exit(f"manual.py: laprox {name} --help has changed its form")
    page = [f".SS laprox {name}", f".B {escape(usage[0].removeprefix('usage: '))}", ".PP"] + [escape(a) for a in about]
    for line in options[1:]:
        # what stands before the text is as wide as 28 columns, or wider and followed by one space
        match = re.fullmatch(r"  (?:-(\w),|   ) --([a-z-]+)(?: (\S+))? +(.+)", line)
        if not match:
            sys.exit(f"manual.py: laprox {name}: not an option: {line}")
        letter, word, argument, text = match.groups()
        left = (f"\\fB\\-{letter}\\fR, " if letter else "") + f"\\fB\\-\\-{escape(word)}\\fR"
        page += [".TP", left + (f" \\fI{escape(argument)}\\fR" if argument else ""), escape(text)]
    return page + examples(shown[1:])


def main():
    program, path = sys.argv[1:]
    version = ask(program, "--version")[0]
    about, usage, names, walk, notes = blocks(ask(program, "--help"))
    page = [f'.TH LAPROX 1 "" "{escape(version)}"', ".SH NAME",
            escape("laprox - keeps the part of a KV cache that matters"), ".SH SYNOPSIS",
            f".B {escape(usage[0].removeprefix('usage: '))}", ".SH DESCRIPTION"] + [escape(line) for line in about]
    other = {"LAPROX_": [], "Exit status: ": []}
    for line in notes:
        key = next((key for key in other if line.startswith(key)), None)
        if key:
            other[key].append(escape(line.removeprefix("Exit status: ")))
        else:
            page += [".PP", escape(line)]
    page += [".SH SUBCOMMANDS"]
    for line in names:
        page += subcommand(program, line.split()[0])
    page += [".SH EXAMPLES"] + examples(walk[1:])
    page += [".SH ENVIRONMENT", *other["LAPROX_"], ".SH EXIT STATUS", *other["Exit status: "]]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(page) + "\n")


main()
