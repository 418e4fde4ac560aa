#!/usr/bin/env python3
"""check_spirv.py HEADER…: the promises that every shader keeps.

Each HEADER is a C array of SPIR-V words as glslangValidator writes it. Valid for Vulkan 1.1 (spirv-val), at most four
storage buffers, at most 128 bytes of push constants, no atomics on floats: what every Vulkan device has. A spirv-val that
is older than cooperative matrices can't judge the modules that have them."""
import os
import re
import struct
import subprocess
import sys
import tempfile

MAX_STORAGE_BUFFERS = 4
MAX_PUSH_BYTES = 128
NOT_KNOWN = "Invalid capability operand: 6022"  # CooperativeMatrixKHR

OP_TYPE_INT, OP_TYPE_FLOAT, OP_TYPE_VECTOR, OP_TYPE_MATRIX, OP_TYPE_ARRAY = 21, 22, 23, 24, 28
OP_TYPE_RUNTIME_ARRAY, OP_TYPE_STRUCT, OP_TYPE_POINTER = 29, 30, 32
OP_CONSTANT, OP_VARIABLE, OP_DECORATE, OP_MEMBER_DECORATE = 43, 59, 71, 72
STORAGE_UNIFORM, STORAGE_PUSH_CONSTANT, STORAGE_STORAGE_BUFFER = 2, 9, 12
DECORATION_BUFFER_BLOCK, DECORATION_ARRAY_STRIDE, DECORATION_MATRIX_STRIDE, DECORATION_OFFSET = 3, 6, 7, 35
DECORATION_BINDING = 33
# Atomics whose result has the type of the value; the store has none, and names its value last.
ATOMICS_WITH_RESULT = {227, 229, 230, 5614, 5615, 6035}
ATOMIC_STORE = 228


def words_of(header):
    with open(header, encoding="ascii") as file:
        text = file.read()
    words = [int(word, 16) for word in re.findall(r"\b0x[0-9a-fA-F]{8}\b", text)]
    if len(words) < 5 or words[0] != 0x07230203:
        raise ValueError("not a C array of SPIR-V")
    return words


def instructions(words):
    at = 5
    while at < len(words):
        count, opcode = words[at] >> 16, words[at] & 0xFFFF
        if count == 0 or at + count > len(words):
            raise ValueError(f"broken instruction at word {at}")
        yield opcode, words[at + 1:at + count]
        at += count


class Module:
    def __init__(self, words):
        self.types, self.constants, self.values = {}, {}, {}
        self.offsets, self.strides, self.buffer_blocks, self.bindings = {}, {}, set(), {}
        self.variables, self.atomics = [], []
        for opcode, operands in instructions(words):
            self.read(opcode, operands)

    def read(self, opcode, o):
        if OP_TYPE_INT <= opcode <= OP_TYPE_POINTER:
            self.types[o[0]] = (opcode, o[1:])
        elif opcode == OP_CONSTANT:
            self.constants[o[1]] = o[2]
        elif opcode == OP_VARIABLE:
            self.variables.append((o[0], o[1], o[2]))
        elif opcode == OP_DECORATE and o[1] == DECORATION_BUFFER_BLOCK:
            self.buffer_blocks.add(o[0])
        elif opcode == OP_DECORATE and o[1] == DECORATION_BINDING:
            self.bindings[o[0]] = o[2]
        elif opcode == OP_DECORATE and o[1] == DECORATION_ARRAY_STRIDE:
            self.strides[o[0]] = o[2]
        elif opcode == OP_MEMBER_DECORATE and o[2] == DECORATION_OFFSET:
            self.offsets[o[0], o[1]] = o[3]
        elif opcode == OP_MEMBER_DECORATE and o[2] == DECORATION_MATRIX_STRIDE:
            self.strides[o[0], o[1]] = o[3]
        elif opcode in ATOMICS_WITH_RESULT:
            self.atomics.append((opcode, o[0]))
        elif opcode == ATOMIC_STORE:
            self.atomics.append((opcode, self.values.get(o[3])))
        elif len(o) >= 2 and o[0] in self.types:
            # A result type and a result, in all instructions that have both; ids are unique, so a false reading of
            # another instruction can't hide a true one that comes first.
            self.values.setdefault(o[1], o[0])

    def size(self, type_id):
        opcode, o = self.types[type_id]
        if opcode in (OP_TYPE_INT, OP_TYPE_FLOAT):
            return o[0] // 8
        if opcode == OP_TYPE_VECTOR:
            return o[1] * self.size(o[0])
        if opcode == OP_TYPE_ARRAY:
            return self.constants[o[1]] * self.strides[type_id]
        if opcode == OP_TYPE_STRUCT:
            return max(self.offsets[type_id, i] + self.member_size(type_id, i, m) for i, m in enumerate(o))
        raise ValueError(f"push constants hold a type of opcode {opcode}")

    def member_size(self, type_id, index, member):
        opcode, o = self.types[member]
        return o[1] * self.strides[type_id, index] if opcode == OP_TYPE_MATRIX else self.size(member)

    def storage_buffers(self):
        """Bindings, of which one may be declared several times with different types."""
        counts = {}
        for pointer, variable, storage in self.variables:
            if storage not in (STORAGE_STORAGE_BUFFER, STORAGE_UNIFORM):
                continue
            pointee, count = self.types[pointer][1][1], 1
            while self.types[pointee][0] in (OP_TYPE_ARRAY, OP_TYPE_RUNTIME_ARRAY):
                opcode, o = self.types[pointee]
                count *= self.constants[o[1]] if opcode == OP_TYPE_ARRAY else MAX_STORAGE_BUFFERS + 1
                pointee = o[0]
            if storage == STORAGE_STORAGE_BUFFER or pointee in self.buffer_blocks:
                binding = self.bindings.get(variable)
                counts[binding] = max(counts.get(binding, 0), count)
        return sum(counts.values())

    def push_bytes(self):
        return sum(self.size(self.types[p][1][1]) for p, _, storage in self.variables if storage == STORAGE_PUSH_CONSTANT)

    def float_atomics(self):
        return [op for op, t in self.atomics if t in self.types and self.types[t][0] == OP_TYPE_FLOAT]


def problems_of(header):
    words = words_of(header)
    with tempfile.NamedTemporaryFile(suffix=".spv") as file:
        file.write(struct.pack(f"<{len(words)}I", *words))
        file.flush()
        valid = subprocess.run(["spirv-val", "--target-env", "vulkan1.1", file.name], capture_output=True, text=True)
    if valid.returncode != 0 and NOT_KNOWN in valid.stderr:
        print(f"{os.path.basename(header)}: not validated, spirv-val doesn't know cooperative matrices")
    elif valid.returncode != 0:
        yield "spirv-val: " + valid.stderr.strip().replace("\n", " ")
    module = Module(words)
    if module.storage_buffers() > MAX_STORAGE_BUFFERS:
        yield f"{module.storage_buffers()} storage buffers (limit {MAX_STORAGE_BUFFERS})"
    if module.push_bytes() > MAX_PUSH_BYTES:
        yield f"{module.push_bytes()} bytes of push constants (limit {MAX_PUSH_BYTES})"
    if module.float_atomics():
        yield f"{len(module.float_atomics())} atomics on floats"


def main():
    headers = sys.argv[1:]
    if not headers:
        sys.exit("check_spirv.py: no shaders given")
    if not any(os.access(os.path.join(p, "spirv-val"), os.X_OK) for p in os.environ.get("PATH", "").split(os.pathsep)):
        print("spirv-val is not installed")
        sys.exit(77)
    failed = 0
    for header in headers:
        for problem in problems_of(header):
            print(f"{os.path.basename(header)}: {problem}")
            failed = 1
    print(f"{len(headers)} shaders checked")
    sys.exit(failed)


if __name__ == "__main__":
    main()
