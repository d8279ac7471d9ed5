"""Latency of one text at a time on one core: the model and its exported forms.

    python tools/benchmark_export.py runs/distill/student runs/student-onnx runs/student-int8

A folder holds a model or an exported form. The timing runs from text to probabilities and includes
the tokenizer. It uses the sentences of the bundled sample; ``--data DIR`` takes AfriSenti's dev
tweets instead. The models take turns, so that a busy moment hits all of them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from comet_lib.data import load_sentiment
from comet_lib.evaluation import predict_probabilities
from comet_lib.models import load_tokenizer
from comet_lib.profiles import get_profile
from comet_lib.ship.onnx import classifier_size, load_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--data", help="folder with afrisenti/ (default: the bundled sample)")
    parser.add_argument("--texts", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    profile = get_profile("laptop" if arguments.data else "tiny", arguments.data)
    data = load_sentiment(profile.with_(train_limit=1000))
    texts = data["dev"].shuffle(seed=0)["text"][: arguments.texts]
    if not arguments.data:
        texts = data["train"].shuffle(seed=0)["text"][: arguments.texts]
    models = {name: (load_classifier(name), load_tokenizer(name)) for name in arguments.folders}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn, text in enumerate([*texts[:20], *texts]):  # the first 20 warm up
        for name, (model, tokenizer) in models.items():
            start = time.perf_counter()
            predict_probabilities(model, tokenizer, [text])
            if turn >= 20:
                seconds[name].append(time.perf_counter() - start)
    print(f"{len(texts)} texts, one at a time, one thread, tokenizer included")
    print(f"{'folder':<40} {'MB':>7} {'p50 ms':>7} {'p95 ms':>7}")
    for name, values in seconds.items():
        p50, p95 = 1000 * np.percentile(values, (50, 95))
        megabytes = classifier_size(models[name][0])[1]
        print(f"{name[-40:]:<40} {megabytes:7.2f} {p50:7.2f} {p95:7.2f}")


if __name__ == "__main__":
    main()
