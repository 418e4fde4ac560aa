#!/usr/bin/env python3
"""check_symbols.py CC… -- INCLUDE API_NUMBER LIBRARY…: what the shared libraries export and what they need.

Exported are exactly the functions that the public headers declare, under the API number's soname. Needed is nothing
beyond libc, libm and what portable_symbols.txt lists, all of which Android 10 (API 29) and musl have.
"""
import os
import re
import subprocess
import sys

HEADERS = {"liblaprox": ["laprox.h", "vulkan.h"], "liblaprox-runtime": ["laprox.h", "vulkan.h", "runtime.h"]}
LIBRARIES = {"liblaprox": r"lib[cm]\.", "liblaprox-runtime": r"lib([cm]|dl|pthread|jansson|pcre2-8)\."}
# The linker's own, and what compilers call without being asked.
TOOLCHAIN = re.compile(r"_ITM_|__gmon_start__|__cxa_finalize|__stack_chk_|__aeabi_|_GLOBAL_OFFSET_TABLE_|__tls_get_addr"
                       r"|__deregister_frame_info|__register_frame_info")
OTHER_LIBRARIES = re.compile(r"json_|pcre2_")
# What headers of glibc make of a portable name.
DECORATED = {"__errno_location": "errno", "__errno": "errno", "__ctype_b_loc": "isdigit",
             "__ctype_tolower_loc": "tolower"}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def plain(name):
    name = DECORATED.get(name, name)
    return re.sub(r"^__isoc\d\d_|^__(?=\w+_chk$)|_chk$|64$|_time64$", "", name)


def declared(cc, include, headers):
    text = "".join(f"#include <laprox/{header}>\n" for header in headers)
    seen = subprocess.run([*cc, "-E", "-P", "-I", include, "-x", "c", "-"], input=text, check=True, capture_output=True,
                          encoding="utf-8").stdout
    marked = r'(?:__attribute__\(\(visibility\("default"\)\)\)|__declspec\(dll\w+\))'
    return set(re.findall(marked + r"[^;(]*?\b(laprox_\w+)\s*\(", seen))


def portable(path):
    sections, name = {}, None
    for line in open(path, encoding="utf-8"):
        line = line.split("#")[0].strip()
        if line.startswith("["):
            name = line.strip("[]")
            sections[name] = set()
        elif line:
            sections[name].update(line.split())
    return sections


def check_dll(tool, library, wanted, complain):
    exported = set(re.findall(r"^\s*\[\s*\d+\].*?\b(laprox_\w+|lpx_\w+)$", run(tool("objdump"), "-p", library), re.M))
    complain("exported, but not declared", exported - wanted)
    complain("declared, but not exported", wanted - exported)


def check_elf(tool, library, kind, api, wanted, allowed, complain):
    exported = {line.split()[-1].split("@")[0] for line in run(tool("nm"), "-D", "--defined-only", library).splitlines()}
    complain("exported, but not declared", exported - wanted)
    complain("declared, but not exported", wanted - exported)
    needed = {line.split()[-1].split("@")[0] for line in run(tool("nm"), "-D", "--undefined-only", library).splitlines()}
    needed = {plain(name) for name in needed if not TOOLCHAIN.match(name)}
    if kind != "liblaprox":
        needed = {name for name in needed if not OTHER_LIBRARIES.match(name)}
    complain("needed, but not in portable_symbols.txt", needed - allowed)
    dynamic = run(tool("readelf"), "-d", library)
    soname = re.findall(r"soname: \[(.*)\]", dynamic)
    complain("soname", set(soname) ^ {f"{kind}.so.{api}"})
    complain("library needed", {name for name in re.findall(r"Shared library: \[(.*)\]", dynamic)
                                if not re.match(LIBRARIES[kind] + r"|ld-linux|libgcc_s|libclang_rt", name)})


def main():
    split = sys.argv.index("--")
    cc = sys.argv[1:split]
    include, api, *libraries = sys.argv[split + 1:]
    prefix = re.sub(r"(gcc|clang|cc)(-[\d.]+)?$", "", os.path.basename(cc[-1]) if len(cc) == 1 else "")
    sections = portable(os.path.join(os.path.dirname(os.path.abspath(__file__)), "portable_symbols.txt"))
    failed = False
    for library in libraries:
        kind = re.match(r"liblaprox(-runtime)?(?=[.-])", os.path.basename(library)).group()

        def complain(what, names):
            nonlocal failed
            for name in sorted(names):
                failed = True
                print(f"{library}: {what}: {name}", file=sys.stderr)

        wanted = declared(cc, include, HEADERS[kind])
        if not wanted:
            sys.exit("check_symbols.py: no function found in the headers")
        allowed = sections["core"] | (sections["runtime"] if kind != "liblaprox" else set())
        tool = lambda name: prefix + name if prefix and prefix != "musl-" else name
        if library.endswith(".dll"):
            check_dll(tool, library, wanted, complain)
        else:
            check_elf(tool, library, kind, api, wanted, allowed, complain)
        print(f"{library}: {len(wanted)} functions")
    sys.exit(failed)


main()
