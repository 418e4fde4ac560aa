#!/usr/bin/env python3
"""check_abi.py [--update] INCLUDE STORED CC…: holds the binary interface of 64-bit x86 against the stored one.

The interface is what the public headers say to a compiler: functions, sizes and offsets of structs, values of enums
and constants. --update writes it down anew.
"""
import difflib
import os
import re
import subprocess
import sys
import tempfile

HEADERS = "".join(f"#include <laprox/{name}.h>\n" for name in ("laprox", "vulkan", "runtime"))


def run(*command, text=None):
    return subprocess.run(command, check=True, input=text, stdout=subprocess.PIPE, encoding="utf-8").stdout


def functions(cc, include):
    text = run(*cc, "-E", "-P", "-I", include, "-x", "c", "-", text=HEADERS)
    for found in re.findall(r'__attribute__\(\(visibility\("default"\)\)\)([^;]*);', text):
        yield "function " + re.sub(r"\s+", " ", found).strip()


def constants(cc, include):
    text = run(*cc, "-E", "-dM", "-I", include, "-x", "c", "-", text=HEADERS)
    for name, value in re.findall(r"^#define (LAPROX_\w+) (\w+)$", text, re.M):
        if not name.endswith("_H") and name != "LAPROX_API":
            yield f"constant {name} {value}"


class Dwarf:
    """Types of an object file, by the offsets of their entries."""

    def __init__(self, path):
        self.entries, self.children = {}, {}
        open_entries = {}
        for line in run("readelf", "--debug-dump=info", "--wide", path).splitlines():
            start = re.match(r" *<(\d+)><([0-9a-f]+)>: .*\((DW_TAG_\w+)\)", line)
            if start:
                depth, offset, tag = int(start[1]), start[2], start[3]
                entry = self.entries[offset] = {"tag": tag.removeprefix("DW_TAG_")}
                self.children[offset] = []
                open_entries[depth] = offset
                if depth:
                    self.children[open_entries[depth - 1]].append(offset)
                continue
            # "(indirect string, offset: 0x1): name", "(data1) 8", "(ref4) <0x1f>, name", or just the value
            attribute = re.match(r" *<[0-9a-f]+> +DW_AT_(\w+) *: (?:\([^)]*\):? ?)*(?:<0x([0-9a-f]+)>|(.*?)\s*$)", line)
            if attribute and self.entries:
                entry[attribute[1]] = attribute[2] or attribute[3]

    def name(self, offset):
        """A type in words."""
        if offset is None:
            return "void"
        entry = self.entries[offset]
        tag, inner = entry["tag"], entry.get("type")
        if "name" in entry:
            return entry["name"]
        if tag == "array_type":
            bounds = [self.entries[c] for c in self.children[offset]]
            return self.name(inner) + "".join(f"[{b.get('count') or int(b['upper_bound'], 0) + 1}]" for b in bounds)
        if tag in ("structure_type", "union_type"):
            return tag.split("_")[0] + " {" + "; ".join(self.fields(offset)) + "}"
        if tag == "subroutine_type":
            return f"{self.name(inner)} ({', '.join(self.name(self.entries[c].get('type')) for c in self.children[offset])})"
        return {"pointer_type": "{} *", "const_type": "const {}"}[tag].format(self.name(inner))

    def fields(self, offset):
        for field in map(self.entries.get, self.children[offset]):
            if field["tag"] == "member":
                name = field.get("name", "unnamed")
                yield f"at {field.get('data_member_location', '0'):>3}: {name}: {self.name(field['type'])}"

    def types(self):
        """One block of lines for each type."""
        for offset, entry in self.entries.items():
            if not entry.get("name", "").startswith("laprox_") or "declaration" in entry:
                continue
            if entry["tag"] == "structure_type":
                name = f"struct {entry['name']} "
                yield name + f"of {entry['byte_size']} bytes", *(name + field for field in self.fields(offset))
            elif entry["tag"] == "enumeration_type":
                values = map(self.entries.get, self.children[offset])
                yield tuple(f"enum {entry['name']} {value['name']} {value['const_value']}" for value in values)
            elif entry["tag"] == "typedef" and self.entries.get(entry.get("type"), {}).get("tag") == "pointer_type":
                yield (f"type {entry['name']} {self.name(entry['type'])}",)


def main():
    update = sys.argv[1] == "--update"
    include, stored, *cc = sys.argv[1 + update:]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "headers.o")
        subprocess.run([*cc, "-g3", "-gdwarf-4", "-fno-eliminate-unused-debug-types", "-I", include, "-x", "c", "-c", "-o",
                        path, "-"], check=True, input=HEADERS, encoding="utf-8")
        now = [*sorted(constants(cc, include)), *sorted(functions(cc, include))]
        for block in sorted(set(Dwarf(path).types())):
            now += block
    if update:
        with open(stored, "w", encoding="utf-8") as file:
            file.write("\n".join(now) + "\n")
        return
    before = open(stored, encoding="utf-8").read().splitlines()
    changes = [line for line in difflib.unified_diff(before, now, "stored", "now", lineterm="", n=0) if line[:2] != "@@"]
    if not changes:
        print(f"{len(now)} lines, as stored")
        return
    print("\n".join(changes))
    gone = [line for line in changes if line.startswith("-") and not line.startswith("---")]
    sys.exit("the binary interface " + ("breaks programs built before: a new LAPROX_API_NUMBER, unless no release has this one"
             if gone else "has grown") + "; then tests/check_abi.py --update (CONTRIBUTING.md)")


main()
