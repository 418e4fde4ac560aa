#!/usr/bin/env python3
"""The matrix's results as a table: table.py RESULTS.tsv prints it. With --merge ALL.tsv NEW.tsv, rows of the new results
take the places of the same rigs' old ones, and others follow."""
import sys

KINDS = {'executed': 'Executed: tests ran, results checked',
         'compiled': "Compiled: every pipeline made by the vendor's Mesa compiler, without hardware"}


def read(name):
    with open(name, encoding='utf-8') as file:
        return [line.rstrip('\n').split('\t') for line in file]


def merge(name, new_name):
    rows = {(row[0], row[1]): row for row in read(name)}
    rows.update({(row[0], row[1]): row for row in read(new_name)})
    with open(name, 'w', encoding='utf-8') as file:
        file.writelines('\t'.join(row) + '\n' for row in rows.values())


def table(name):
    rows = read(name)
    lines = []
    for kind, title in KINDS.items():
        lines += ['', f'| {title} | driver | result |', '|---|---|---|']
        for row_kind, rig, status, device, driver, what, _ in rows:
            if row_kind == kind:
                shown = rig if not device or device in rig else f'{rig}: {device}'
                lines.append(f'| {shown} | {driver} | {"" if status == "ok" else status + ": "}{what} |')
    return '\n'.join(lines[1:])


if __name__ == '__main__':
    if len(sys.argv) == 2:
        print(table(sys.argv[1]))
    elif len(sys.argv) == 4 and sys.argv[1] == '--merge':
        merge(*sys.argv[2:])
    else:
        sys.exit(__doc__)
