#!/usr/bin/env python3
"""The matrix's results as a table: table.py RESULTS.tsv prints it; with --readme README.md it replaces the one that stands
there between the lines <!-- matrix --> and <!-- /matrix -->. With --merge ALL.tsv NEW.tsv, rows of the new results take
the places of the same rigs' old ones, and others follow."""
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


def main(arguments):
    if len(arguments) == 1:
        print(table(arguments[0]))
        return
    if arguments[0] == '--merge':
        merge(*arguments[1:])
        return
    with open(arguments[1], encoding='utf-8') as file:
        text = file.read()
    begin, end = '<!-- matrix -->\n', '<!-- /matrix -->\n'
    if begin not in text or end not in text:
        sys.exit(f'{arguments[1]} has no lines {begin.strip()} and {end.strip()}')
    head, rest = text.split(begin, 1)
    with open(arguments[1], 'w', encoding='utf-8') as file:
        file.write(head + begin + table(arguments[2]) + '\n' + end + rest.split(end, 1)[1])


if __name__ == '__main__':
    if len(sys.argv) == 2 or (len(sys.argv) == 4 and sys.argv[1] in ('--readme', '--merge')):
        main(sys.argv[1:])
    else:
        sys.exit(__doc__)
