"""A PyTorch decoder that `rfq bench train --peer` times; a process of its own.

The first line on stdin is JSON with the sizes. The answer is a line about PyTorch and
its rate of matrix products. Each further line names a call: "forward", "gradients" or
"step". It is made once, and the seconds that it took are the answer. The compiled model
is made by `torch.compile`, which needs a C++ compiler.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, mlp_width: int):
        super().__init__()
        self.num_heads = num_heads
        self.attn_norm = nn.RMSNorm(width, eps=1e-6)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        # One product for queries, keys and values, as a fast decoder has it.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        heads = self.qkv(self.attn_norm(x)).view(batch, length, 3, self.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        q, k = (turned(y, cos, sin) for y in (q, k))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


def turned(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Decoder(nn.Module):
    def __init__(self, sizes: dict):
        super().__init__()
        width, length = sizes["width"], sizes["seq_len"]
        self.embedding = nn.Embedding(sizes["vocab_size"], width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        one = (width, sizes["num_heads"], sizes["mlp_width"])
        self.blocks = nn.ModuleList(Block(*one) for _ in range(sizes["num_layers"]))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        half = width // sizes["num_heads"] // 2
        rates = sizes["rope_base"] ** (-torch.arange(half) / half)
        angles = torch.arange(length)[:, None] * rates
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, batch):
        x = self.embedding(batch[:, :-1])
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def product_rate(rows: int, width: int, mlp_width: int) -> float:
    """GFLOP/s of the MLP's first product, the best of ten."""
    x, w = torch.randn(rows, width), torch.randn(width, mlp_width)
    best = min(seconds(lambda: x @ w) for _ in range(10))
    return 2 * rows * width * mlp_width / best / 1e9


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    sizes = json.loads(sys.stdin.readline())
    torch.set_num_threads(sizes["num_threads"])
    torch.manual_seed(0)
    model = Decoder(sizes)
    run = torch.compile(model) if sizes["compiled"] else model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    rows, length = sizes["batch_size"], sizes["seq_len"]
    batch = torch.randint(sizes["vocab_size"], (rows, length + 1))

    def forward():
        with torch.no_grad():
            run(batch)

    def gradients():
        optimizer.zero_grad(set_to_none=True)
        run(batch).backward()

    def step():
        gradients()
        nn.utils.clip_grad_norm_(parameters, sizes["clip_norm"])
        optimizer.step()

    calls = {"forward": forward, "gradients": gradients, "step": step}
    for call in calls.values():
        call()
    rate = product_rate(rows * length, sizes["width"], sizes["mlp_width"])
    told = {
        "torch": torch.__version__,
        "gemm_gflops_per_second": rate,
        "num_parameters": sum(parameter.numel() for parameter in parameters),
    }
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        print(seconds(calls[line.strip()]), flush=True)


if __name__ == "__main__":
    main()
