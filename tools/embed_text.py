#!/usr/bin/env python3
"""embed_text.py OUT.c --NAME FILE ... [--NAME FILE ...]: texts as C strings, the files of one name joined by a line end."""
import sys

texts = {}
for argument in sys.argv[2:]:
    if argument.startswith("--"):
        files = texts.setdefault(argument[2:], [])
    else:
        with open(argument, "rb") as file:
            files.append(file.read().rstrip(b"\n"))
with open(sys.argv[1], "w", encoding="ascii") as out:
    out.write('#include "texts.h"\n')
    for name, files in texts.items():
        data = b"\n".join(files) + b"\0"
        out.write(f"\nconst char {name}[{len(data)}] = {{\n")
        for i in range(0, len(data), 24):
            out.write("  " + ",".join(str(b) if b < 128 else f"(char){b}" for b in data[i:i + 24]) + ",\n")
        out.write("};\n")
