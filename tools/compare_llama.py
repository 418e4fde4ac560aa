#!/usr/bin/env python3
"""compare_llama.py: for compare_llama.sh: runs `laprox bench` and llama-bench in turns and prints the ratios."""
import argparse
import json
import statistics
import subprocess
import sys

N_GENERATED = 16


def run(options, program, *arguments):
    """The JSON that a program of the tree writes."""
    command = ["bash", "-c", 'in_tree "$@"', "in_tree", options.tree, "lvp", "-", program, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        sys.exit(f"compare_llama.py: {program}: exit status {done.returncode}: {last}")


def llama(options, n_prompt, n_generated, depth):
    """Tokens a second; refuses what ran elsewhere than on the Vulkan device."""
    (row,) = run(options, options.llama, "-m", options.model, "-ngl", "99", "-r", "1", "-o", "json",
                 "-p", str(n_prompt), "-n", str(n_generated), "-d", str(depth))
    if "Vulkan" not in row["backends"] or "llvmpipe" not in row["gpu_info"]:
        sys.exit(f"compare_llama.py: llama.cpp ran on \"{row['gpu_info'] or row['cpu_info']}\", not on lavapipe")
    return row["avg_ts"]


def laprox(options, n_tokens):
    """Tokens a second of prefill and of decoding, full and evicted; eviction's share of prefill."""
    result = run(options, options.laprox, "bench", "--model", options.model, "--tokens", str(n_tokens), "--json")
    ms = {row["kernel"]: row["time_us"]["median"] / 1e3 for row in result["results"]}
    return {"prefill": n_tokens * 1e3 / ms["prefill"], "full": 1e3 / ms["generate, full"],
            "evicted": 1e3 / ms["generate, evicted"], "evict_share": ms["evict"] / ms["prefill"]}


def measure(options, n_tokens):
    ours, prefill, decode = [], [], []
    for _ in range(options.rounds):
        prefill.append(llama(options, n_tokens, 0, 0))
        ours.append(laprox(options, n_tokens))
        decode.append(llama(options, 0, N_GENERATED, n_tokens))
    own = {key: statistics.median(row[key] for row in ours) for key in ours[0]}
    theirs = {"prefill": statistics.median(prefill), "full": statistics.median(decode)}
    return {"tokens": n_tokens, "laprox": own, "llama.cpp": theirs,
            "prefill_ratio": own["prefill"] / theirs["prefill"], "decode_ratio": own["full"] / theirs["full"]}


def speed(number):
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def main():
    parser = argparse.ArgumentParser()
    for name in ("versions", "model", "laprox", "llama", "tree"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("lengths", type=int, nargs="+")
    options = parser.parse_args()
    rows = []
    for n_tokens in options.lengths:
        rows.append(measure(options, n_tokens))
        print(f"{n_tokens} tokens: done", file=sys.stderr)
    if options.json:
        print(json.dumps({"versions": options.versions, "rounds": options.rounds, "results": rows}))
        return
    print(f"{options.versions}; tokens a second, medians of {options.rounds}\n")
    print("| tokens | prefill | llama.cpp | ratio | decode, full | llama.cpp | ratio "
          "| decode, 5 % kept | eviction / prefill |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        own, theirs = row["laprox"], row["llama.cpp"]
        print(f"| {row['tokens']:,} | {speed(own['prefill'])} | {speed(theirs['prefill'])} | {row['prefill_ratio']:.2f} "
              f"| {speed(own['full'])} | {speed(theirs['full'])} | {row['decode_ratio']:.2f} | {speed(own['evicted'])} "
              f"| {100 * own['evict_share']:.1f} % |")


main()
