#!/usr/bin/env python3
"""table.py RESULTS.json... prints what `laprox eval` has found as Markdown tables. With --svg OUT.svg accuracy against
bytes is drawn."""
import argparse
import json
import math

Z = 1.959963984540054
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, KEY = 470, 300, 48, 14, 34, 44, 160
# What the picture shows: more lines can't be told apart.
DRAWN = ['laprox', 'laprox+gqa=joint', 'laprox+no-normalize', 'snapkv', 'adakv', 'layer-defensivekv', 'tova', 'keydiff',
         'streaming', 'laprox+probe', 'snapkv+probe', 'full', 'full+kv=q8_0', 'full+kv=q4_0']
# At eviction.
QUESTION = {'known': 'question known', 'unknown': 'question not known'}


def wilson(mean, n):
    scale, middle = 1 + Z * Z / n, mean + Z * Z / (2 * n)
    reach = Z * math.sqrt(max(mean * (1 - mean) / n + Z * Z / (4 * n * n), 0))
    return max((middle - reach) / scale, 0), min((middle + reach) / scale, 1)


def read(names):
    results, fidelity, heads = [], [], []
    for name in names:
        with open(name, encoding='utf-8') as file:
            root = json.load(file)
        heads.append(root)
        results += root['results']
        fidelity += root['fidelity']
    return heads, results, fidelity


def together(rows):
    """All tasks as one cell: mean, interval, prompts, bytes."""
    n = sum(row['n'] for row in rows)
    mean = sum(row['score'] * row['n'] for row in rows) / n
    low, high = wilson(mean, n)
    return {'score': mean, 'low': low, 'high': high, 'n': n,
            'bytes': sum(row['kv_bytes'] * row['n'] for row in rows) / n,
            'full': sum(row['kv_full_bytes'] * row['n'] for row in rows) / n}


def in_order(values):
    return list(dict.fromkeys(values))


def percent(text):
    return float(text.rstrip('%')) if text.endswith('%') else float(text)


def group(results, question, length):
    """{settings: {budget: cell}} in the order of the results."""
    rows = [r for r in results if r['question'] == question and (length is None or r['length'] == length)]
    cells = {s: {b: together([r for r in rows if (r['settings'], r['budget']) == (s, b)])
                for b in in_order(r['budget'] for r in rows if r['settings'] == s)}
            for s in in_order(r['settings'] for r in rows)}
    # Quantised caches are held against the same full cache as the others.
    full = cells['full']['100%']['bytes'] if 'full' in cells else None
    for row in cells.values():
        for cell in row.values():
            cell['share'] = cell['bytes'] / (full or cell['full'])
    return cells


def spaced(budget):
    return budget.replace('%', ' %')


def table_head(about, budgets):
    return [f'| {about} | ' + ' | '.join(spaced(b) for b in budgets) + ' |', '|---|' + '---|' * len(budgets)]


def shown(cell):
    return f"{100 * cell['score']:.0f} ({100 * cell['low']:.0f}-{100 * cell['high']:.0f})" if cell else ''


def accuracy_table(results, question, length):
    cells = group(results, question, length)
    budgets = sorted({b for row in cells.values() for b in row if b != '100%'}, key=percent, reverse=True)
    lines = table_head(f'{length} tokens, {QUESTION[question]} at eviction', budgets)
    for settings, row in cells.items():
        if set(row) == {'100%'}:
            cell = row['100%']
            name = f"`{settings}` ({100 * cell['share']:.0f} % of the bytes)"
            lines.append(f'| {name} | {shown(cell)} |' + ' |' * (len(budgets) - 1))
        else:
            less = next(iter(row.values()))
            less = less['full'] * less['share'] / less['bytes']
            name = f'`{settings}`' + (f' (bytes × {less:.2f})' if less < 0.99 else '')
            lines.append(f'| {name} | ' + ' | '.join(shown(row.get(b)) for b in budgets) + ' |')
    return lines


def fidelity_table(fidelity):
    rows = [r for r in fidelity if r['budget'] != '100%' and '+probe' not in r['settings']]
    if not rows:
        return []
    budgets = sorted({r['budget'] for r in rows}, key=percent, reverse=True)
    lines = table_head(f"{rows[0]['n']} passages: KL from the full cache, nats a token; same best token; share of "
                       'attention kept; error of its output', budgets)
    for settings in in_order(r['settings'] for r in rows):
        own = {r['budget']: r for r in rows if r['settings'] == settings}
        lines.append(f'| `{settings}` | ' + ' | '.join(
            f"{own[b]['kl']:.3f}; {100 * own[b]['top1_agreement']:.0f} %; {100 * own[b]['attention_kept']:.0f} %; "
            f"{own[b]['output_error']:.2f}" if b in own else '' for b in budgets) + ' |')
    return lines


def is_own(settings):
    return settings.split('+')[0] == 'laprox' and '+kv=' not in settings


def verdicts(results):
    """What follows: the best own setting, and whatever beats the default with intervals apart."""
    lines = []
    for question in in_order(r['question'] for r in results):
        cells = group(results, question, None)
        own = {s: sum(c['score'] for c in row.values()) / len(row) for s, row in cells.items()
               if is_own(s) and '+probe' not in s}
        if 'laprox' not in own:
            continue
        ranks = ', '.join(f'`{s}` {100 * v:.1f}' for s, v in sorted(own.items(), key=lambda x: -x[1]))
        lines.append(f"- LaProx's settings, {QUESTION[question]}, mean over budgets and lengths: {ranks}.")
        for base, kind in (('laprox', ''), ('laprox+probe', '+probe')):
            if base not in cells:
                continue
            rivals = {s: row for s, row in cells.items() if not is_own(s) and s.endswith('+probe') == bool(kind)}
            better = [f"`{s}` at {spaced(b)} ({100 * c['score']:.0f} against {100 * cells[base][b]['score']:.0f})"
                      for s, row in rivals.items() for b, c in row.items()
                      if b in cells[base] and c['low'] > cells[base][b]['high']]
            lines.append(f'- Rivals beyond `{base}`, intervals apart, {QUESTION[question]}: '
                         + (', '.join(better) if better else 'none') + '.')
    return lines


def losses(results):
    """Where about 50 entries a head are left and the question is known: points lost against the full cache."""
    lines = []
    for length in sorted({r['length'] for r in results}):
        cells = group(results, 'known', length)
        for budget in in_order(r['budget'] for r in results):
            if 'full' not in cells or not 45 <= length * percent(budget) / 100 <= 60:
                continue
            full = cells['full']['100%']['score']
            lost = sorted((100 * (full - row[budget]['score']), s) for s, row in cells.items() if budget in row)
            lines.append(f'- Lost against the full cache at {spaced(budget)} of {length} tokens, question known, points: '
                         + ', '.join(f'`{s}` {value:.1f}' for value, s in lost) + '.')
    return lines


def folded(title, lines):
    return ['<details>', f'<summary>{title}</summary>', '', *lines, '', '</details>', ''] if lines else []


def tables(heads, results, fidelity):
    n = max(sum(r['n'] for r in results if (r['settings'], r['budget'], r['question'], r['length']) == key)
            for key in {(r['settings'], r['budget'], r['question'], r['length']) for r in results})
    names = in_order(r['task'] for r in results)
    lines = [f"{', '.join(names)} together, {n} prompts a cell, per cent right with 95 % intervals, on "
             f"{heads[0]['device']}. A budget below the window's 32 entries and one more is those 33, as 5 % and 2.5 % of "
             '512 tokens and 2.5 % of 1,024 are.', '']
    lines += verdicts(results) + losses(results) + ['']
    for question in in_order(r['question'] for r in results):
        for length in sorted({r['length'] for r in results if r['question'] == question}):
            lines += folded(f'{length} tokens, {QUESTION[question]} at eviction', accuracy_table(results, question, length))
    for root in heads:
        if 'probes' in root:
            texts = ', '.join(f'"{text.strip()}"' for text in root['probes']['texts'])
            lines += [f"`+probe`: the {root['probes']['combine']} of the scores by {texts}.", '']
            break
    return '\n'.join(lines + folded('Fidelity', fidelity_table(fidelity))).rstrip() + '\n'


# ---- the picture ----

STYLE = """<style>
text{font:12px sans-serif;fill:#444}.title{font-weight:600;fill:#222}.grid{stroke:#ddd}.back{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#bbb}.title{fill:#eee}.grid{stroke:#444}.back{fill:#16181c}}
</style>"""
COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8a8a8a', '#7b5fd0', '#c0392b', '#a0522d',
           '#4b7f2b', '#ff5da2', '#b8860b', '#00a0a0']


def panel(out, cells, title, left, names):
    shares = [c['share'] for s in names if s in cells for c in cells[s].values()]
    low, high = math.log(min(shares)), math.log(max(max(shares), 1.0))

    def x(share):
        return left + LEFT + max(math.log(share) - low, 0) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(score):
        return TOP + (1 - score) * (HEIGHT - TOP - BOTTOM)

    out.append(f'<text class="title" x="{left + LEFT}" y="20">{title}</text>')
    for tick in range(0, 101, 25):
        out.append(f'<path class="grid" d="M{left + LEFT} {y(tick / 100):.1f}H{left + WIDTH - RIGHT}"/>')
        out.append(f'<text x="{left + LEFT - 6}" y="{y(tick / 100) + 4:.1f}" text-anchor="end">{tick}</text>')
    for share in (0.025, 0.05, 0.1, 0.2, 0.4, 1):
        if low - 0.05 <= math.log(share) <= high:
            out.append(f'<text x="{x(share):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{100 * share:g}</text>')
    out.append(f'<text x="{left + (LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
               'K and V, per cent of the full cache (logarithmic)</text>')
    for settings in names:
        if settings not in cells:
            continue
        colour = COLOURS[DRAWN.index(settings)]
        points = sorted(cells[settings].values(), key=lambda c: c['share'])
        path = ''.join(f"{'L' if i else 'M'}{x(c['share']):.1f} {y(c['score']):.1f}" for i, c in enumerate(points))
        out.append(f'<g stroke="{colour}" fill="none" stroke-width="2"><path d="{path}"/>' + ''.join(
            f'<path stroke-width="1" d="M{x(c["share"]):.1f} {y(c["low"]):.1f}V{y(c["high"]):.1f}"/>'
            f'<circle cx="{x(c["share"]):.1f}" cy="{y(c["score"]):.1f}" r="3" fill="{colour}" stroke="none"/>' for c in points)
            + '</g>')


def draw(results):
    names = [s for s in DRAWN if any(r['settings'] == s for r in results)]
    panes = [q for q in ('known', 'unknown') if any(r['question'] == q for r in results)]
    width, out = WIDTH * len(panes) + KEY, []
    for i, question in enumerate(panes):
        title = f'Per cent right, {QUESTION[question]} at eviction'
        panel(out, group(results, question, None), title, i * WIDTH, names)
    for i, settings in enumerate(names):
        at = TOP + 4 + 18 * i
        out.append(f'<path stroke="{COLOURS[DRAWN.index(settings)]}" stroke-width="3" '
                   f'd="M{width - KEY + 4} {at - 4}h14"/><text x="{width - KEY + 23}" y="{at}">{settings}</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" font-size="12">{STYLE}'
            f'<rect class="back" width="{width}" height="{HEIGHT}"/>' + ''.join(out) + '</svg>\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('results', nargs='+')
    parser.add_argument('--svg')
    options = parser.parse_args()
    heads, results, fidelity = read(options.results)
    if options.svg:
        with open(options.svg, 'w', encoding='utf-8') as file:
            file.write(draw(results))
    print(tables(heads, results, fidelity), end='')


if __name__ == '__main__':
    main()
