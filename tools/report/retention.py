#!/usr/bin/env python3
"""retention.py OUT.svg TITLE=KEPT.safetensors ... [--mark FIRST-LAST=LABEL ...]: which positions each (layer, KV head) has kept.

The inputs are what `laprox run --dump-kept` writes. One panel a file; a mark shades positions and names them."""
import json
import struct
import sys

WIDTH, LEFT, RIGHT, ROW, GAP = 960, 110, 70, 18, 58


def kept_positions(path):
    """[(layer, head, positions)] in order."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()

        def numbers(name):
            begin, end = header[name]["data_offsets"]
            file.seek(start + begin)
            return struct.unpack(f"<{(end - begin) // 4}i", file.read(end - begin))

        rows = []
        layer = 0
        while f"layers.{layer}.indices" in header:
            offsets, indices = numbers(f"layers.{layer}.cu_seqlens"), numbers(f"layers.{layer}.indices")
            rows += [(layer, h, indices[offsets[h]:offsets[h + 1]]) for h in range(len(offsets) - 1)]
            layer += 1
    return rows


def runs(positions):
    """Consecutive positions as (first, count)."""
    out = []
    for p in positions:
        if out and out[-1][0] + out[-1][1] == p:
            out[-1][1] += 1
        else:
            out.append([p, 1])
    return out


def panel(out, top, title, rows, n, marks):
    scale = (WIDTH - LEFT - RIGHT) / n
    height = ROW * len(rows)
    kept = sum(len(r[2]) for r in rows)
    out.append(f'<text class="title" x="{LEFT}" y="{top - 24}">{title}: {kept:,} of {n * len(rows):,} entries '
               f'({100 * kept / (n * len(rows)):.0f} %)</text>')
    for first, last, label in marks:
        x, width = LEFT + first * scale, max((last - first + 1) * scale, 5)
        out.append(f'<rect class="mark" x="{x - 1:.1f}" y="{top - 4}" width="{width + 2:.1f}" height="{height + 8}"/>')
        out.append(f'<text class="small" text-anchor="middle" x="{x + width / 2:.1f}" y="{top - 8}">{label}</text>')
    for i, (layer, head, positions) in enumerate(rows):
        y = top + i * ROW
        out.append(f'<text class="small" text-anchor="end" x="{LEFT - 8}" y="{y + 13}">layer {layer}, head {head}</text>')
        out.append(f'<rect class="row" x="{LEFT}" y="{y + 2}" width="{n * scale:.1f}" height="{ROW - 4}"/>')
        path = "".join(f"M{LEFT + p * scale:.1f} {y + 2}h{max(c * scale, 1.1):.1f}v{ROW - 4}h-{max(c * scale, 1.1):.1f}z"
                       for p, c in runs(positions))
        out.append(f'<path class="kept" d="{path}"/>')
        out.append(f'<text class="small" x="{WIDTH - RIGHT + 8}" y="{y + 13}">{len(positions)}</text>')
    return top + height + GAP


def main(arguments):
    marks, panels = [], []
    expect_mark = False
    for argument in arguments[1:]:
        if argument == "--mark":
            expect_mark = True
            continue
        name, value = argument.split("=", 1)
        if expect_mark:
            first, last = name.split("-")
            marks.append((int(first), int(last), value))
        else:
            panels.append((name, kept_positions(value)))
        expect_mark = False
    n = 1 + max(p[-1] for _, rows in panels for _, _, p in rows if p)
    body, top = [], 52
    for title, rows in panels:
        top = panel(body, top, title, rows, n, marks)
    height = top - GAP + 34
    body.append(f'<text class="small" x="{LEFT}" y="{height - 10}">position 0</text>')
    body.append(f'<text class="small" text-anchor="end" x="{WIDTH - RIGHT}" y="{height - 10}">{n - 1:,}</text>')
    style = (".title{font:600 15px sans-serif;fill:#1f2933}.small{font:11px sans-serif;fill:#52606d}.row{fill:#e4e7eb}"
             ".kept{fill:#0b69a3}.mark{fill:#f7c948;opacity:.75}.page{fill:#fff}")
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
           f"<style>{style}</style><rect class=\"page\" width=\"100%\" height=\"100%\"/>" + "".join(body) + "</svg>\n")
    with open(arguments[0], "w", encoding="utf-8") as file:
        file.write(svg)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
