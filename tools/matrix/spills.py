#!/usr/bin/env python3
"""What vendors' compilers made of the kernels: reads the JSON that tools/pipelines prints, one file a device.

spills.py --line FILE       one line for the matrix: pipelines, registers, shared memory, spills; exit status 1 where a
                            pipeline failed or a hot kernel spills
spills.py --table FILE…     every kernel of every device as tab-separated text
"""
import json
import os
import re
import sys

# What runs once for each token, key or score. The others prepare tables or add up partial results.
HOT = ('matmul', 'matvec', 'attention_prefill', 'attention_decode', 'window_softmax', 'attention_norm', 'value_norm',
       'value_joint', 'pool', 'select_histogram', 'select_count', 'select_emit', 'compact')

# Names of the same thing: RADV, ANV, NVK, Turnip, Honeykrisp, PanVK, V3DV, PowerVR.
REGISTERS = ('VGPRs', 'Number of GPRs', 'GPRs', 'Registers used', 'Max live registers', 'Work registers', 'Registers',
             'Register count', 'Temps')
SPILLS = ('Spilled VGPRs', 'Spills to memory', 'Spills', 'Spill count', 'Spill Count', 'STP Count', 'Spill Size',
          'Fills from memory', 'Fills', 'Fill count', 'LDP Count')
SCRATCH = ('Scratch size', 'SLM size', 'Scratch', 'Scratch Memory Size', 'Scratch space', 'Spilling')
SHARED = ('LDS size', 'Shared Memory', 'Workgroup Memory Size', 'Shared memory size', 'Shared')


def first(statistics, names):
    return next((int(statistics[name]) for name in names if name in statistics), None)


def load(name):
    """The device; what its driver says of spills in the log alone (PanVK, to BIFROST_MESA_DEBUG=shaderdb) as statistics."""
    with open(name, encoding='utf-8') as file:
        device = json.load(file)
    said = []
    with open(os.path.splitext(name)[0] + '.log', encoding='utf-8', errors='replace') as file:
        for line in file:
            if found := re.search(r'(\d+):(\d+) spills:fills$', line):
                said.append({'Spills': found[1], 'Fills': found[2]})
    if len(said) == len(device['pipelines']):
        for pipeline, numbers in zip(device['pipelines'], said):
            pipeline['statistics'][0].update(numbers)
    return device


def rows(device):
    """Each pipeline with the worst of its executables."""
    for pipeline in device['pipelines']:
        found = pipeline['statistics']
        worst = lambda names: max((value for one in found if (value := first(one, names)) is not None), default=None)
        spills = max((int(one[name]) for one in found for name in SPILLS if name in one), default=None)
        yield {'shader': pipeline['shader'], 'constants': pipeline['constants'], 'used': pipeline['used'],
               'ms': pipeline['compile_ms'], 'registers': worst(REGISTERS), 'spills': spills,
               'scratch': worst(SCRATCH), 'shared': worst(SHARED)}


def is_hot(row):
    return row['used'] and row['shader'].startswith(HOT)


def line(device):
    every = list(rows(device))
    # Scratch without spills is an array that is indexed at run time: as slow.
    spilling = sorted({row['shader'] for row in every if is_hot(row) and (row['spills'] or row['scratch'])})
    registers = [row['registers'] for row in every if row['used'] and row['registers'] is not None]
    parts = [f'{len(every)} pipelines']
    if device['failed']:
        parts.append(f'{len(device["failed"])} FAILED ({", ".join(sorted({p["shader"] for p in device["failed"]}))})')
    if registers:
        parts.append(f'at most {max(registers)} registers')
    if not device['has_statistics']:
        parts.append('no statistics')
    elif spilling:
        parts.append('SPILLS: ' + ', '.join(spilling))
    else:
        parts.append('no spills')
    print('; '.join(parts))
    return bool(device['failed'] or spilling)


def table(names):
    print('device', 'kernel', 'constants', 'registers', 'spills', 'scratch', 'shared', 'compile ms', sep='\t')
    for name in filter(os.path.exists, names):
        device = load(name)
        for row in sorted(rows(device), key=lambda row: (row['shader'], row['constants'])):
            cells = [row[key] for key in ('registers', 'spills', 'scratch', 'shared')]
            print(device['device'].strip(), row['shader'], ','.join(map(str, row['constants'])),
                  *('' if cell is None else cell for cell in cells), f'{row["ms"]:.1f}', sep='\t')


if __name__ == '__main__':
    if len(sys.argv) < 3 or sys.argv[1] not in ('--line', '--table'):
        sys.exit(__doc__)
    if sys.argv[1] == '--table':
        table(sys.argv[2:])
    else:
        sys.exit(line(load(sys.argv[2])))
