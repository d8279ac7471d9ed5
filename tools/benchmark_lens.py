"""Sizes of the attention lens, and the memory that its capture takes.

    python tools/benchmark_lens.py [--tokens 128]

Maps and models are random, at the paper's depths (24 layers of 16 heads, 6 of 8). The memory is how
far the process's peak resident size rises above that of a plain forward pass of the teacher (Linux;
see proc(5) on clear_refs and VmHWM).
"""

from __future__ import annotations

import gc
import json
import os
import re
import statistics
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import XLMRobertaConfig, XLMRobertaModel

from comet_lib.attention import capture_maps
from comet_lib.lens.data import from_arrays
from comet_lib.lens.export import page
from comet_lib.lens.payload import payload

WAYS = ("plain", "lean", "eager")
#: Large blocks go back to the system when freed, so that the resident size follows the tensors.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STATUS = Path("/proc/self/status")


def teacher() -> XLMRobertaModel:
    """24 layers of 16 heads, like the paper's teacher, but narrow: the maps have the same size."""
    config = XLMRobertaConfig(
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=1024,
        max_position_embeddings=514,
    )
    return XLMRobertaModel(config).eval()


def peak(model: XLMRobertaModel, way: str, tokens: int) -> int:
    """Bytes by which one forward pass raises the process's peak resident size."""
    model.set_attn_implementation("eager" if way == "eager" else "sdpa")
    ids = torch.arange(tokens)[None] % 900 + 5
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    if way == "lean":
        kept = capture_maps(model, inputs, small=True)
        assert len(kept) == 24
    else:
        with torch.no_grad():
            out = model(**inputs, output_attentions=way == "eager")
        assert way == "plain" or len(out.attentions) == 24
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def main(
    tokens: Annotated[int, typer.Option(help="Length of the text.")] = 128,
    repeats: Annotated[int, typer.Option(help="Passes of each way; the median counts.")] = 3,
) -> None:
    """Sizes of the attention lens, and the memory that its capture takes."""
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    rng = np.random.default_rng(0)
    data = from_arrays(
        [f"▁ẹ̀{i}" for i in range(tokens)],
        rng.dirichlet(np.full(tokens, 0.3), (24, tokens)),
        rng.dirichlet(np.full(tokens, 0.3), (6, tokens)),
    )
    header, codes = payload(data)
    size = len(codes) + len(json.dumps(header, ensure_ascii=False).encode())
    typer.echo(f"24 and 6 layers, {tokens} tokens")
    typer.echo(f"payload      {size:>12,} bytes ({len(codes):,} of them maps)")
    typer.echo(f"HTML page    {len(page(data).encode()):>12,} bytes")
    if not STATUS.exists():
        typer.echo("memory       measured on Linux alone")
        return
    model = teacher()
    runs = {one: [peak(model, one, tokens) for _ in range(repeats + 1)] for one in WAYS}
    found = {one: statistics.median(several[1:]) for one, several in runs.items()}
    for one in WAYS:
        more = "" if one == "plain" else f", {found[one] - found['plain']:>11,.0f} over plain"
        typer.echo(f"peak, {one:<7}{found[one]:>12,.0f} bytes{more}")
    share = (found["lean"] - found["plain"]) / (found["eager"] - found["plain"])
    typer.echo(f"the capture's extra peak is {100 * share:.1f} % of eager's")


if __name__ == "__main__":
    typer.run(main)
