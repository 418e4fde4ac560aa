#!/usr/bin/env python3
"""check_symbols.py INCLUDE LIBRARY…: what the libraries export and what they need.

Shared ones export exactly the functions that the public headers declare, under the API number's soname, and need no
other library than the few below. Archives call nothing beyond each other and what portable_symbols.txt lists.
"""
import os
import re
import subprocess
import sys

KINDS = {
    "liblaprox": (["laprox.h", "vulkan.h"], ["core"], r"lib[cm]\."),
    "liblaprox-runtime": (["laprox.h", "vulkan.h", "runtime.h"], ["core", "runtime"],
                          r"lib([cm]|dl|pthread|jansson|pcre2-8)\."),
}
# What compilers and linkers call without being asked.
TOOLCHAIN = re.compile(r"_GLOBAL_OFFSET_TABLE_$|__stack_chk_|__aeabi_|__aarch64_|__tls_get_addr$")
OTHER_LIBRARIES = re.compile(r"json_|pcre2_")
# What headers of C libraries make of a portable name.
DECORATED = {"__errno_location": "errno", "__errno": "errno", "__ctype_b_loc": "isdigit", "__ctype_tolower_loc": "tolower"}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def plain(name):
    name = DECORATED.get(name, name)
    return re.sub(r"^__isoc\d\d_|^__(?=\w+_(chk|time64)$)|_chk$|(_time)?64$", "", name)


def declared(include, headers):
    """Function names as compilers see them, and the API number."""
    text = "".join(open(os.path.join(include, "laprox", header), encoding="utf-8").read() for header in headers)
    number = re.search(r"^#define LAPROX_API_NUMBER (\d+)$", text, re.M).group(1)
    versioned = re.findall(r"^#define (\w+) LAPROX_VERSIONED\(\1\)$", text, re.M)
    names = re.findall(r"^LAPROX_API\b[^;(]*?\b(laprox_\w+)\(", text, re.M)
    return {f"{name}_{number}" if name in versioned else name for name in names}, number


def listed():
    """Sections of portable_symbols.txt."""
    sections, name = {}, None
    for line in open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "portable_symbols.txt"), encoding="utf-8"):
        line = line.split("#")[0].strip()
        if line.startswith("["):
            name = line.strip("[]")
            sections[name] = set()
        elif line:
            sections[name].update(line.split())
    return sections


def check_archive(library, kind, allowed, complain):
    """The runtime may call jansson and PCRE2 too."""
    symbols = [line.split() for line in run("nm", library).splitlines() if re.match(r"[0-9a-f ]{8,} \w ", line)]
    defined = {words[-1] for words in symbols if words[-2] != "U"}
    needed = {plain(words[-1]) for words in symbols
              if words[-2] == "U" and words[-1] not in defined and not TOOLCHAIN.match(words[-1])}
    complain("needed, but not in portable_symbols.txt",
             {name for name in needed - allowed if kind == "liblaprox" or not OTHER_LIBRARIES.match(name)})


def check_shared(library, kind, functions, number, others, complain):
    if library.endswith(".dll"):
        exported = set(re.findall(r"^\s*\[\s*\d+\].* (\w+)$", run("objdump", "-p", library), re.M)) - {"RVA"}
        complain("name", set() if library.endswith(f"-{number}.dll") else {f"not of API number {number}"})
    else:
        exported = {line.split()[-1].split("@")[0] for line in run("nm", "-D", "--defined-only", library).splitlines()}
        dynamic = run("readelf", "-d", library)
        complain("soname", {name for name in re.findall(r"soname: \[(.*)\]", dynamic)
                            if name not in (f"{kind}.so.{number}", f"{kind}.so")})
        complain("library needed", {name for name in re.findall(r"Shared library: \[(.*)\]", dynamic)
                                    if not re.match(others + r"|ld-linux|libgcc_s", name)})
    complain("exported, but not declared", exported - functions - {"_init", "_fini"})
    complain("declared, but not exported", functions - exported)


def main():
    include, *libraries = sys.argv[1:]
    sections = listed()
    failed = False
    for library in libraries:

        def complain(what, names):
            nonlocal failed
            for name in sorted(names):
                failed = True
                print(f"{library}: {what}: {name}", file=sys.stderr)

        kind = re.match(r"liblaprox(-runtime)?(?=[.-])", os.path.basename(library)).group()
        headers, allowed, others = KINDS[kind]
        functions, number = declared(include, headers)
        if library.endswith(".a"):
            check_archive(library, kind, set().union(*(sections[name] for name in allowed)), complain)
        else:
            check_shared(library, kind, functions, number, others, complain)
        print(f"{library}: {len(functions)} functions")
    sys.exit(failed)


main()
