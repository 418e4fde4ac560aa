#!/usr/bin/env python3
"""Times in PyTorch what laprox does, on a cache of Llama-3.1-8B's shape, and prints one JSON object.

plain   the score as the paper writes it: V W_O head by head, softmax in f32 over repeated keys
factor  the same score from a triangular factor of W_O W_O^T, head by head, without repeated keys
tuned   the same with the query heads of a KV head in one product, and f32 only inside softmax and norms
topk    torch.topk over the scores of the whole model; gather copies what it picks
decode  scaled_dot_product_attention of one token over all layers, full cache and a dense 5 %, the fastest form of each
        backend
prompt  attention of the last 1,024 tokens over one layer's cache, and their product with f16 weights, four times as many
        as the model is wide; token: that of a single one
copy    bytes read and written a second by Tensor.copy_

Times are medians in milliseconds by the device's own clock, with caches overwritten before each repetition.
"""
import argparse
import json
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("compare_torch.py: there is no PyTorch here")

WINDOW, POOL = 32, 7
PROMPT_ROWS = 1024


class Clock:
    def __init__(self, device, repeats):
        self.device, self.repeats = device, repeats
        self.scrub = torch.empty(256 << 20 if device.type == "cuda" else 1 << 20, dtype=torch.uint8, device=device)

    def once(self, work):
        self.scrub.zero_()
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e3
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    def ms(self, work, warm=1, repeats=0):
        for _ in range(warm):
            work()
        return statistics.median(self.once(work) for _ in range(repeats or self.repeats))

    def graph_ms(self, work):
        """Without the time that launching kernel after kernel takes on the host."""
        if self.device.type != "cuda":
            return self.ms(work)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return self.ms(graph.replay)


class Cache:
    def __init__(self, args, device):
        self.n_layers, self.n_heads, self.n_kv, self.d = args.layers, 32, 8, 128
        self.n, self.group, self.dim = args.tokens, 4, 4096
        half = dict(dtype=torch.float16, device=device)
        torch.manual_seed(1)
        self.q = torch.randn(self.n_heads, WINDOW, self.d, **half)
        self.k = [torch.randn(self.n_kv, self.n, self.d, **half) for _ in range(self.n_layers)]
        self.v = [torch.randn(self.n_kv, self.n, self.d, **half) for _ in range(self.n_layers)]
        self.w = torch.randn(self.n_heads, self.d, self.dim, **half) / self.dim**0.5
        gram = self.w.double() @ self.w.double().transpose(1, 2)
        # R^T R = W W^T with R upper triangular, as the cache is multiplied from the left: v W -> v R^T.
        self.r = torch.linalg.cholesky(gram).transpose(1, 2).to(torch.float16)
        self.mask = torch.zeros(WINDOW, self.n, dtype=torch.bool, device=device)
        for t in range(WINDOW):
            self.mask[t, self.n - WINDOW + t + 1 :] = True


def plain_attention(c, layer):
    k = c.k[layer].repeat_interleave(c.group, dim=0)
    logits = (c.q @ k.transpose(1, 2)).float() / c.d**0.5
    logits.masked_fill_(c.mask, float("-inf"))
    return torch.softmax(logits, dim=-1).norm(dim=1)


def plain_values(c, layer):
    norms = torch.empty(c.n_heads, c.n, device=c.q.device)
    for head in range(c.n_heads):
        projected = c.v[layer][head // c.group] @ c.w[head]
        norms[head] = projected.float().norm(dim=1)
    return norms


def factor_attention(c, layer):
    q = c.q.view(c.n_kv, c.group * WINDOW, c.d)
    logits = (q @ c.k[layer].transpose(1, 2)).float().view(c.n_heads, WINDOW, c.n) / c.d**0.5
    logits.masked_fill_(c.mask, float("-inf"))
    return torch.softmax(logits, dim=-1).norm(dim=1)


def factor_values(c, layer):
    norms = torch.empty(c.n_heads, c.n, device=c.q.device)
    for head in range(c.n_heads):
        norms[head] = (c.v[layer][head // c.group] @ c.r[head].T).float().norm(dim=1)
    return norms


def tuned_attention(c, layer):
    q = c.q.view(c.n_kv, c.group * WINDOW, c.d) * c.d**-0.5
    logits = torch.bmm(q, c.k[layer].transpose(1, 2)).view(c.n_heads, WINDOW, c.n)
    logits[:, :, c.n - WINDOW :].masked_fill_(c.mask[:, c.n - WINDOW :], float("-inf"))
    return torch.softmax(logits, dim=-1, dtype=torch.float32).norm(dim=1)


def tuned_values(c, layer):
    # One product for all query heads of a KV head: [n, d] x [d, group d].
    r = c.r.view(c.n_kv, c.group, c.d, c.d).permute(0, 3, 1, 2).reshape(c.n_kv, c.d, c.group * c.d)
    projected = torch.bmm(c.v[layer], r).view(c.n_kv, c.n, c.group, c.d)
    return torch.linalg.vector_norm(projected, dim=3, dtype=torch.float32).transpose(1, 2).reshape(c.n_heads, c.n)


def combine(c, attention, values):
    scores = (attention * values).view(c.n_kv, c.group, c.n).mean(dim=1)[:, : c.n - WINDOW]
    pooled = F.avg_pool1d(scores.unsqueeze(1), POOL, 1, POOL // 2).squeeze(1)
    return pooled / pooled.sum()


def score(c, attention, values):
    return torch.stack([combine(c, attention(c, l), values(c, l)) for l in range(c.n_layers)])


def all_layers(c, function):
    for layer in range(c.n_layers):
        function(c, layer)


def gather(c, picked):
    """K and V of the picked candidates, in order, layer by layer."""
    candidates = c.n - WINDOW
    picked = picked.sort().values
    row = picked // candidates * c.n + picked % candidates
    layer = row // (c.n_kv * c.n)
    bounds = torch.searchsorted(layer, torch.arange(c.n_layers + 1, device=row.device)).tolist()
    kept = []
    for l in range(c.n_layers):
        own = row[bounds[l] : bounds[l + 1]] - l * c.n_kv * c.n
        kept.append((c.k[l].view(-1, c.d)[own], c.v[l].view(-1, c.d)[own]))
    return kept


def decode_forms(c, n):
    """Grouped heads as PyTorch knows them, and as rows of one head's query."""
    q = torch.randn(1, c.n_heads, 1, c.d, dtype=torch.float16, device=c.q.device)
    rows = q.view(1, c.n_kv, c.group, c.d)
    k = [x.unsqueeze(0)[:, :, :n].contiguous() if n < c.n else x.unsqueeze(0) for x in c.k]
    v = [x.unsqueeze(0)[:, :, :n].contiguous() if n < c.n else x.unsqueeze(0) for x in c.v]

    def grouped():
        for l in range(c.n_layers):
            F.scaled_dot_product_attention(q, k[l], v[l], enable_gqa=True)

    def as_rows():
        for l in range(c.n_layers):
            F.scaled_dot_product_attention(rows, k[l], v[l])

    return grouped, as_rows


def time_decode(c, clock, n):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if c.q.device.type == "cuda":
        backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    else:
        backends = {"math": SDPBackend.MATH}
    out = {}
    for name, backend in backends.items():
        for form in decode_forms(c, n):
            for timed in (clock.ms, clock.graph_ms):
                try:
                    with sdpa_kernel(backend):
                        ms = timed(form)
                except RuntimeError as error:
                    print(f"decode over {n}, {name}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
                    continue
                out[name] = min(ms, out.get(name, ms))
    return out


def time_prompt(c, clock):
    from torch.nn.attention.bias import causal_lower_right

    rows, width = min(PROMPT_ROWS, c.n), c.n_heads * c.d
    options = {"dtype": torch.float16, "device": c.q.device}
    x, w = torch.randn(rows, width, **options), torch.randn(4 * width, width, **options)
    out = {"prompt_product": clock.ms(lambda: x @ w.T), "token_product": clock.graph_ms(lambda: x[:1] @ w.T)}
    q = torch.randn(1, c.n_heads, rows, c.d, **options)
    k, v = (t[0].repeat_interleave(c.group, 0).unsqueeze(0) for t in (c.k, c.v))
    try:
        out["prompt_attention"] = clock.ms(
            lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(rows, c.n)))
    except RuntimeError as error:
        print(f"attention of a prompt: {str(error).splitlines()[0][:120]}", file=sys.stderr)
    return out


def time_copy(clock, device):
    n = 4 << 30 if device.type == "cuda" else 1 << 24
    source, to = (torch.zeros(n, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * n / clock.ms(lambda: to.copy_(source), warm=2) * 1e-6


def disagreement(c):
    """The largest difference of the formulations' scores of a layer, as a share of the largest score."""
    plain = combine(c, plain_attention(c, 0), plain_values(c, 0))
    others = [combine(c, factor_attention(c, 0), factor_values(c, 0)), combine(c, tuned_attention(c, 0), tuned_values(c, 0))]
    return max(((plain - other).abs().max() / plain.max()).item() for other in others)


def measure(args, device):
    say = lambda text: print(text, file=sys.stderr, flush=True)
    clock = Clock(device, args.repeats)
    say("copy")
    result = {"copy_gbps": time_copy(clock, device)}
    c = Cache(args, device)
    times = result["times_ms"] = {}
    result["disagreement"] = disagreement(c)
    formulations = {"tuned": (tuned_attention, tuned_values), "factor": (factor_attention, factor_values),
                    "plain": (plain_attention, plain_values)}
    for name, (attention, values) in formulations.items():
        say(name)
        few = 2 if name == "plain" else 0
        times[name + "_attention"] = clock.ms(lambda: all_layers(c, attention), repeats=few)
        times[name + "_values"] = clock.ms(lambda: all_layers(c, values), repeats=few)
        times[name + "_score"] = clock.ms(lambda: score(c, attention, values), repeats=few)
    say("topk")
    scores = score(c, tuned_attention, tuned_values).flatten()
    kept = c.n_layers * c.n_kv * (round(0.05 * c.n) - WINDOW)
    result["n_scores"], result["n_kept"] = scores.numel(), kept
    for name, is_sorted in (("topk_unsorted", False), ("topk_sorted", True)):
        times[name] = clock.ms(lambda: torch.topk(scores, kept, sorted=is_sorted))
    times["topk_gather"] = clock.ms(lambda: gather(c, torch.topk(scores, kept, sorted=False).indices))
    for name in formulations:
        times[name] = times[name + "_score"] + times["topk_gather"]
    del scores
    for name, n in (("decode_full", c.n), ("decode_dense_5", round(0.05 * c.n))):
        say(name)
        for backend, ms in time_decode(c, clock, n).items():
            times[f"{name}_{backend}"] = ms
    say("prompt")
    times.update(time_prompt(c, clock))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("compare_torch.py: PyTorch finds no CUDA device")
    device = torch.device(args.device)
    with torch.inference_mode():
        result = measure(args, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__, "n_tokens": args.tokens, "n_layers": args.layers,
                      **result}))


if __name__ == "__main__":
    main()
