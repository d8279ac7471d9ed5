"""The recipe of the bundled small teacher: one encoder with two heads.

An XLM-R-shaped encoder with its own unigram vocabulary learns two things at once from the same
batches: to fill in masked pieces, and to tell sentiment, from labels and from cross-fitted n-gram
soft targets. The texts are AfriSenti's training tweets, tweets spliced from them, and the transfer
text, each as it is and in the cleaned form of AfriSenti's Hausa, Igbo and Yoruba test splits. Both
heads are stored in one file, so ``AutoModelForMaskedLM`` and
``AutoModelForSequenceClassification`` both load it. All of its text is CC BY 4.0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, XLMRobertaForMaskedLM, set_seed
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaClassificationHead

from comet_lib import evaluation
from comet_lib.batches import MaskingCollator, SentimentCollator, tokenize
from comet_lib.data import both_forms, cleaned, load_sentiment, unseen
from comet_lib.errors import CometError
from comet_lib.files import claim, read_json, whole_folder, write_json
from comet_lib.lab.muon import Muon
from comet_lib.loading import save_tokenizer
from comet_lib.losses import hybrid_loss, soft_target_loss_from_probs
from comet_lib.models import count_parameters, xlmr_config
from comet_lib.objectives import hard_labels
from comet_lib.profiles import Profile, Stage, shape
from comet_lib.recipe import soft_targets
from comet_lib.text import load_transfer
from comet_lib.training import DistillationTrainer, last_checkpoint, training_arguments

VOCABULARY = 16_000
SIZES = {
    **shape(192, 4, 3, 768),
    "initializer_range": 0.05,
    "hidden_dropout_prob": 0.05,
    "attention_probs_dropout_prob": 0.0,  # with it, a CPU leaves its fused attention
}
STAGE = Stage(1, learning_rate=2e-3, batch_size=64, temperature=1.0, alpha=0.75, max_steps=9000)
DECAY = 0.3  # share of the steps over which the learning rate falls to 0
SPLICES = 1.0  # spliced tweets for each real one
FOLDS = 5
SENTIMENT_WEIGHT = 3.0  # beside masked-LM
MASKED = 0.15  # share of pieces hidden
WHOLE = 0.25  # share of texts in which none is
HELD_OUT = 20  # each 20th line of the transfer text is only measured on
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A lower-casing unigram tokenizer (Kudo 2018) in XLM-R's format; tone marks are kept (NFC).

    The same texts give the same tokenizer. The trainer adds counts up in a random order, so its
    scores, which order the ids, vary in their last digits; its set of pieces does not. Three rounds
    of counting (hard EM) score the pieces again.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), digits]
    )
    trainer = UnigramTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    texts = sorted(texts)
    tokenizer.train_from_iterator(texts, trainer)
    scores = dict.fromkeys(tokenizer.get_vocab().keys() - set(SPECIALS), -10.0)
    for _ in range(3):
        tokenizer.model = _unigram(scores)
        rows = tokenizer.encode_batch(texts, add_special_tokens=False)
        counts = Counter(piece for row in rows for piece in row.tokens)
        total = sum(counts[piece] for piece in scores) + len(scores)
        scores = {piece: math.log((counts[piece] + 1) / total) for piece in scores}
    tokenizer.model = _unigram(scores)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict.fromkeys(("bos_token", "cls_token"), "<s>"),
        **dict.fromkeys(("eos_token", "sep_token"), "</s>"),
        **{f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")},
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )


def _unigram(scores: Mapping[str, float]) -> models.Unigram:
    """The special pieces, then the others from the likeliest on."""
    order = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return models.Unigram([*((name, 0.0) for name in SPECIALS), *order], SPECIALS.index("<unk>"))


class TwoHeads(XLMRobertaForMaskedLM):
    """The masked-LM model, its decoder tied to the embedding, with a sentiment head beside it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.classifier = XLMRobertaClassificationHead(config)
        self.post_init()


@dataclass
class BothTasks:
    """The training's terms over masked texts: sentiment from <s>, masked-LM at chosen positions,
    of which 80 % become the mask, 10 % another piece, and 10 % stay.

    In evaluation nothing is masked, and there are only sentiment logits.
    """

    mask_id: int
    stage: Stage = STAGE
    sentiment_weight: float = SENTIMENT_WEIGHT

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        ids, labels = batch["input_ids"], batch["labels"]
        inputs, chosen = ids, torch.zeros_like(ids, dtype=torch.bool)
        if model.training:
            chosen = (torch.rand(ids.shape) < MASKED) & (ids >= len(SPECIALS))
            chosen &= torch.rand(len(ids), 1) >= WHOLE
            fate = torch.rand(ids.shape)
            inputs = ids.masked_fill(chosen & (fate < 0.8), self.mask_id)
            other = torch.randint_like(ids, len(SPECIALS), model.config.vocab_size)
            inputs = torch.where(chosen & (fate >= 0.9), other, inputs)
        hidden = model.roberta(inputs, attention_mask=batch["attention_mask"]).last_hidden_state
        logits = model.classifier(hidden).float()
        hard = hard_labels(logits, labels, labels != -100)
        if not model.training:
            return {"loss": hard, "logits": logits}
        soft = soft_target_loss_from_probs(logits, batch["teacher_probs"], self.stage.temperature)
        mlm = F.cross_entropy(model.lm_head(hidden[chosen]).float(), ids[chosen])
        return {
            "loss": mlm + self.sentiment_weight * hybrid_loss(soft, hard, self.stage.alpha),
            "soft_targets": soft.detach(),
            "hard_labels": hard.detach(),
            "masked_lm": mlm.detach(),
        }


def learning_rate(step: int, steps: int) -> float:
    """The share of the peak: a short rise, a plateau, a straight line to 0."""
    return min(1.0, (step + 1) / 100, (steps - step) / (DECAY * steps))


def build(profile: Profile, output: str | Path, say: Callable[[str], None] = print) -> None:
    """Train the tokenizer and the teacher on ``profile``'s AfriSenti and transfer text and save
    them to ``output``.

    The last step is kept; dev (without the rows seen in train) and the held-out transfer text are
    only reported. Weights are stored in fp16. Called again, it resumes from the last checkpoint.

    Raises:
        CometError: no transfer text, or ``output`` holds a run of another seed or other data.
    """
    output = Path(output)
    claim(output / "work" / "settings.json", profile.as_dict(), write=False)
    data, transfer = load_sentiment(profile, splits=["train", "dev"]), load_transfer(profile)
    if not transfer:
        raise CometError(f"{profile.data}: has no transfer/ folder; docs/command-line.md says more")
    claim(output / "work" / "settings.json", profile.as_dict())
    held_out = [line for lines in transfer.values() for line in lines[::HELD_OUT]]
    transfer = {
        code: [line for n, line in enumerate(lines) if n % HELD_OUT]
        for code, lines in transfer.items()
    }
    texts = [*data["train"]["text"][:], *(line for lines in transfer.values() for line in lines)]
    say(f"tokenizer: {VOCABULARY:,} pieces from {len(texts):,} texts in both forms")
    tokenizer = train_tokenizer([*texts, *map(cleaned, texts)])
    set_seed(profile.seed)
    model = TwoHeads(xlmr_config(SIZES, len(tokenizer), max_length=128))
    say("soft targets: n-grams, out of fold")
    # At weight 0 the model, which knows nothing yet, is not asked.
    soft = profile.with_(splices=SPLICES, folds=FOLDS, teacher_weight=0.0, prior=0.0)
    train = both_forms(soft_targets(data["train"], model, tokenizer, soft, transfer))
    columns = {"labels": train["label"][:], "teacher_probs": train["teacher_probs"][:]}
    table = tokenize(train["text"][:], tokenizer, profile.max_length, **columns)
    dev = both_forms(unseen(data["dev"]))
    dev_table = tokenize(dev["text"][:], tokenizer, profile.max_length, labels=dev["label"][:])
    steps = STAGE.max_steps
    say(f"{count_parameters(model):,} parameters, {len(table):,} texts, {steps:,} steps")
    languages = np.asarray(dev["language"][:])

    def metrics(prediction: Any) -> dict[str, float]:
        guess = np.asarray(prediction.predictions).argmax(-1)
        return evaluation.mean_weighted_f1(np.asarray(prediction.label_ids), guess, languages)

    often = {"save_strategy": "steps", "save_steps": max(1, steps // 36), "logging_steps": 50}
    optimizer = Muon(model, STAGE.learning_rate)
    trainer = DistillationTrainer(
        model=model,
        args=training_arguments(
            output / "work",
            STAGE,
            profile.seed,
            eval_strategy="steps",
            eval_steps=max(1, steps // 9),
            **often,
        ),
        train_dataset=table,
        eval_dataset=dev_table,
        data_collator=SentimentCollator(tokenizer),
        terms_of=BothTasks(tokenizer.mask_token_id),
        compute_metrics=metrics,
        optimizers=(
            optimizer,
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps)),
        ),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(output / "work"))
    log = trainer.state.log_history
    save(model, tokenizer, output / "teacher")
    write_json(output / "log.json", log)
    scores = [f"{row['eval_mean']:.2f} mean weighted F1" for row in log if "eval_mean" in row]
    say(f"dev in both forms: {scores[-1] if scores else 'not measured'}")
    for name, lines in (("dev tweets", unseen(data["dev"])["text"][:]), ("transfer", held_out)):
        loss, counting = below_counting(model, tokenizer, lines, texts, profile.max_length)
        say(f"masked-LM, {name}: {loss:.2f} nats, counting {counting:.2f}")


@torch.inference_mode()
def below_counting(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    known: Sequence[str],
    max_length: int = 64,
) -> tuple[float, float]:
    """Masked-LM loss of ``model`` on ``texts``, and that of the piece counts (plus one) of
    ``known`` on the same positions, in nats per chosen piece."""
    pieces = tokenize(known, tokenizer, 512)["input_ids"][:]
    counts = torch.from_numpy(1.0 + np.bincount(np.concatenate(pieces), minlength=len(tokenizer)))
    logs, losses, floor = counts.div(counts.sum()).log(), [], []
    rows = tokenize(texts, tokenizer, max_length).sort("length")
    for start in range(0, len(rows), 128):
        batch = MaskingCollator(tokenizer)(rows.select(range(start, min(start + 128, len(rows)))))
        chosen = batch["labels"] != -100
        inputs = batch["input_ids"].masked_fill(chosen, tokenizer.mask_token_id)  # all are hidden
        hidden = model.roberta(inputs, attention_mask=batch["attention_mask"]).last_hidden_state
        truth = batch["labels"][chosen]
        losses.append(F.cross_entropy(model.lm_head(hidden[chosen]), truth, reduction="none"))
        floor.append(-logs[truth])
    return float(torch.cat(losses).mean()), float(torch.cat(floor).mean())


def save(model: TwoHeads, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Stock XLM-R files: config.json, fp16 model.safetensors with both heads, tokenizer."""
    with whole_folder(folder) as temporary:
        model.half().save_pretrained(temporary)
        config = read_json(temporary / "config.json")
        config["architectures"] = ["XLMRobertaForSequenceClassification"]
        write_json(temporary / "config.json", config)
        save_tokenizer(tokenizer, model, temporary)
    model.float()
