#!/usr/bin/env python3
"""replace_table.py FILE NAME: standard input takes the place of what stands in FILE between the lines <!-- NAME --> and
<!-- /NAME -->."""
import sys


def main(name, table):
    with open(name, encoding='utf-8') as file:
        text = file.read()
    begin, end = f'<!-- {table} -->\n', f'<!-- /{table} -->\n'
    if begin not in text or end not in text:
        sys.exit(f'{name} has no lines {begin.strip()} and {end.strip()}')
    new = sys.stdin.read()
    if not new:
        sys.exit(f'{name}: nothing to put between {begin.strip()} and {end.strip()}')
    head, rest = text.split(begin, 1)
    with open(name, 'w', encoding='utf-8') as file:
        file.write(head + begin + new + end + rest.split(end, 1)[1])


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
