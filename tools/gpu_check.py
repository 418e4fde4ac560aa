#!/usr/bin/env python3
"""The work of gpu_check.sh: tests at once, measurements alone, and the table."""
import concurrent.futures
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

LIMIT_S = 470  # for everything; machines with a GPU are lent by the minute
TEST_LIMIT_S = 240
MEASURING_S = 200  # left for what comes after the tests
GEOMETRY, TOKENS = "llama-3.1-8b", [131072, 65536, 32768, 8192]  # the first that the device has memory for
SMALL = "phone", [64]  # where there is no GPU, to try the script itself
# Long ones first, so that none runs on alone at the end.
LONG = ["test_failures_runtime", "test_embed", "test_evict_file", "test_reference", "test_layerwise", "test_cache",
        "test_conversation"]
# Devices and allocations take a GPU's driver long: some of the failures, not all, which need no GPU.
SAMPLED = {"LAPROX_TEST_FAILURES": "sampled"}
started = time.monotonic()


def left():
    return LIMIT_S - (time.monotonic() - started)


def run_test(path, variants, folder):
    begin = time.monotonic()
    work = tempfile.mkdtemp(dir=folder)
    limit_s = max(5, min(TEST_LIMIT_S, left() - MEASURING_S))
    try:
        done = subprocess.run([path], cwd=work, env={**os.environ, **SAMPLED, "LAPROX_VARIANTS": variants},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s, errors="replace")
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        status, output = "too slow", ""
    return os.path.basename(path), variants, status, output, time.monotonic() - begin


def print_end(output):
    lines = [l for l in output.splitlines() if not l.startswith(("[ RUN ", "[       OK "))]
    print("\n".join("    " + l for l in lines[-25:]))


def run_tests(build, folder):
    paths = [p for p in sorted(glob.glob(os.path.join(build, "tests", "test_*"))) if os.path.isfile(p) and os.access(p, os.X_OK)]
    order = {name: i for i, name in enumerate(LONG)}
    paths.sort(key=lambda p: order.get(os.path.basename(p), len(LONG)))
    jobs = max(2, min(16, os.cpu_count() or 2))
    failures, passed, skipped = [], 0, 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        work = [pool.submit(run_test, path, variants, folder) for path in paths for variants in ("baseline", "all")]
        for future in concurrent.futures.as_completed(work):
            name, variants, status, output, seconds = future.result()
            passed, skipped = passed + (status == 0), skipped + (status == 77)
            if status not in (0, 77):
                failures.append((name, variants))
                print(f"{name}, {variants}: FAILED ({status}) after {seconds:.0f} s")
                print_end(output)
    # Whether it was the company tells what to look for; it remains a failure.
    for name, variants in failures[:5]:
        if left() < MEASURING_S + 30:
            break
        _, _, status, output, _ = run_test(os.path.join(build, "tests", name), variants, folder)
        print(f"{name}, {variants}: run again alone: {'passed' if status == 0 else status}")
        if status:
            print_end(output)
    print(f"tests, baseline kernels and all: {passed} passed, {len(failures)} failed, {skipped} skipped,"
          f" {time.monotonic() - started:.0f} s\n", flush=True)
    return len(failures)


def run_json(arguments, limit_s, what):
    """A program's JSON object; None after a line that says why not."""
    try:
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=max(5, limit_s), text=True)
    except subprocess.TimeoutExpired:
        print(f"{what}: too slow, {limit_s:.0f} s")
        return None
    if done.returncode:
        last = done.stderr.strip().splitlines()
        print(f"{what}: {last[-1] if last else done.returncode}")
        return None
    return json.loads(done.stdout)


def has_gpu(program):
    devices = run_json([program, "devices", "--json"], 60, "laprox devices")
    return devices and any(d["usable"] and d["type"] != "software" for d in devices["devices"])


def run_bench(program):
    geometry, counts = (GEOMETRY, TOKENS) if has_gpu(program) else SMALL
    for n_tokens in counts:
        bench = run_json([program, "bench", "--geometry", geometry, "--tokens", str(n_tokens), "--json"],
                         min(200, left()), "laprox bench")
        if not bench or bench["results"]:
            return bench, n_tokens
    return None, 0


def run_torch(n_tokens):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "compare_torch.py")
    return run_json([sys.executable, script, "--tokens", str(n_tokens)], min(170, left()), "PyTorch")


def keep(folder, name, value):
    if folder and value:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "w") as file:
            json.dump(value, file, indent=1)


class Table:
    """Lines of ours, theirs, ratio, and the bar that the ratio has to clear."""

    def __init__(self, bench, torch, has_bars):
        self.bench, self.theirs, self.has_bars = bench, torch["times_ms"] if torch else {}, has_bars
        print(f"{'':44}{'ours':>9}{'theirs':>14}{'ratio':>13}   bar")

    def ms(self, kernel, variant=None):
        times = [r["time_us"]["median"] * 1e-3 for r in self.bench["results"]
                 if r["kernel"] == kernel and variant in (None, r["variant"])]
        return min(times, default=None)

    def line(self, what, ours, theirs, ratio, bar=None, unit="ms"):
        if ours is None or theirs is None:
            print(f"{what:44}" + "".join(f"{'-' if x is None else f'{x:.4g}':>9} {unit:<4}" for x in (ours, theirs)))
            return
        verdict = f"{bar:g}  {'met' if ratio >= bar else 'MISSED'}" if bar and self.has_bars else ""
        print(f"{what:44}{ours:>9.4g} {unit:<4}{theirs:>9.4g} {unit:<4}{ratio:>8.3g}   {verdict}")

    def faster(self, what, ours, theirs, bar=None):
        """Theirs : ours."""
        self.line(what, ours, theirs, theirs / ours if ours and theirs else None, bar)

    def best(self, *names):
        return min((self.theirs[n] for n in names if n in self.theirs), default=None)


def print_table(bench, torch, n_tokens):
    ceilings = bench["ceilings"]
    print(f"{bench['device']}, {bench['driver_info']}, laprox {bench['version']}; "
          f"{bench['results'][0]['shape']['geometry']}, {n_tokens} tokens, 5 % kept")
    print(f"copy {ceilings['copy_gbps']:.0f} GB/s, f32 {ceilings['fma_gflops'] / 1e3:.1f} Tflop/s, f16 matrices "
          f"{(ceilings['matrix_gflops'] or 0) / 1e3:.0f} Tflop/s" + (f"; PyTorch {torch['torch']}" if torch else ""))
    print("a ratio is theirs : ours, so more is better; a bar is the least that it should be\n")
    large = n_tokens == TOKENS[0]
    t = Table(bench, torch, large)
    whole, both = t.ms("pass"), None if t.ms("compact") is None else t.ms("select") + t.ms("compact")
    given = both + t.ms("score, sums given") if both and t.ms("score, sums given") else None
    if large and "H200" in bench["device"]:
        t.faster("eviction pass : 12 ms, matrices", t.ms("pass", "matrix"), 12.0, 1)
        t.faster("the same, softmax sums given : 12 ms", given, 12.0)
        t.faster("eviction pass : 150 ms, baseline", t.ms("pass", "baseline"), 150.0, 1)
        t.faster("select : 0.28 ms", t.ms("select"), 0.28, 1)
        t.faster("decode, evicted, layers at once : 0.30 ms", t.ms("evicted, at once"), 0.30, 1)
    t.faster("eviction pass : PyTorch, plain", whole, t.best("plain"), 200)
    t.faster("eviction pass : PyTorch, with the factor", whole, t.best("factor"), 12)
    t.faster("eviction pass : PyTorch, factor, tuned", whole, t.best("tuned"))
    t.faster("window attention : PyTorch, tuned", t.ms("window attention"), t.best("tuned_attention"))
    t.faster("value norm : PyTorch, factor, tuned", t.ms("value norm"), t.best("tuned_values"))
    t.faster("select : torch.topk", t.ms("select"), t.best("topk_unsorted"), 2.5)
    t.faster("select : torch.topk, sorted", t.ms("select"), t.best("topk_sorted"))
    t.faster("select and compact : topk and gather", both, t.best("topk_gather"))
    full = ("decode_full_cudnn", "decode_full_flash")
    t.faster("decode, full, layer by layer : PyTorch", t.ms("decode, full"), t.best(*full))
    t.faster("decode, full, layers at once : cuDNN", t.ms("full, at once"), t.best("decode_full_cudnn"), 0.8)
    t.faster("decode, evicted, layer by layer : dense 5 %", t.ms("decode, evicted"),
             t.best("decode_dense_5_cudnn", "decode_dense_5_flash"))
    t.faster("decode, evicted : own full, layer by layer", t.ms("decode, evicted"), t.ms("decode, full"))
    t.faster("decode, evicted : own full, layers at once", t.ms("evicted, at once"), t.ms("full, at once"), 12)
    t.faster("1,024 tokens by f16 weights : torch.matmul", t.ms("prompt by f16"), t.best("prompt_product"))
    t.faster("1,024 tokens by q8_0 weights : the same", t.ms("prompt by q8_0"), t.best("prompt_product"))
    t.faster("one token by f16 weights : torch.matmul", t.ms("token by f16"), t.best("token_product"))
    t.faster("attention of 1,024 tokens : PyTorch", t.ms("prompt attention"), t.best("prompt_attention"))
    rates = [r["gbps"] for r in bench["results"] if r["kernel"] == "compact"]
    if rates:
        t.line("compaction : copy", max(rates), ceilings["copy_gbps"], max(rates) / ceilings["copy_gbps"], 0.6, "GB/s")
    if torch:
        t.line("copy : PyTorch's", ceilings["copy_gbps"], torch["copy_gbps"], ceilings["copy_gbps"] / torch["copy_gbps"],
               None, "GB/s")


def main():
    build, out = os.path.abspath(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    program = os.path.join(build, "tools", "laprox")
    os.environ["LAPROX_PROGRAM"] = program
    if subprocess.run([program, "devices"]).returncode:
        return 1
    print(flush=True)
    with tempfile.TemporaryDirectory() as folder:
        failed = run_tests(build, folder)
    bench, n_tokens = run_bench(program)
    keep(out, "bench.json", bench)
    if not bench:
        return 1
    torch = run_torch(n_tokens) if n_tokens in TOKENS else None
    keep(out, "torch.json", torch)
    print_table(bench, torch, n_tokens)
    print(f"\n{time.monotonic() - started:.0f} s, {failed} tests failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
