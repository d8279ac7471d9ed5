"""The recipe of the bundled small teacher: one encoder with two heads.

An XLM-R-shaped encoder with its own unigram vocabulary learns two things at once from the same
batches of AfriSenti's training tweets: to fill in masked pieces, and to tell sentiment, from
labels and from cross-fitted TF-IDF soft targets, on real and on spliced tweets. Both heads are
stored in one file, so ``AutoModelForMaskedLM`` and ``AutoModelForSequenceClassification`` both
load it. It uses no other text, which keeps the weights' licence (CC BY 4.0) clear.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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
from comet_lib.batches import SentimentCollator, tokenise
from comet_lib.data import load_sentiment, unseen
from comet_lib.files import claim, read_json, whole_folder, write_json
from comet_lib.loading import save_tokenizer
from comet_lib.losses import hybrid_loss, soft_target_loss_from_probs
from comet_lib.models import count_parameters, xlmr_config
from comet_lib.objectives import hard_labels
from comet_lib.profiles import Profile, Stage, shape
from comet_lib.recipe import soft_targets
from comet_lib.training import DistillationTrainer, last_checkpoint, training_arguments

VOCABULARY = 24_000
SIZES = shape(160, 4, 5, 640)
STAGE = Stage(epochs=4, learning_rate=1.5e-3, batch_size=64, temperature=1.0, alpha=0.75)
SPLICES = 2.0  # spliced tweets for each real one
MLM_WEIGHT = 0.1
MASKED = 0.1  # share of pieces hidden
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
    """The training's terms over masked tweets: sentiment from <s>, masked-LM at masked positions.

    In evaluation nothing is masked, and there are only sentiment logits.
    """

    mask_id: int
    stage: Stage = STAGE
    mlm_weight: float = MLM_WEIGHT

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        ids, labels = batch["input_ids"], batch["labels"]
        inputs, masked = ids, torch.zeros_like(ids, dtype=torch.bool)
        if model.training:
            masked = (torch.rand(ids.shape, device=ids.device) < MASKED) & (ids >= len(SPECIALS))
            inputs = ids.masked_fill(masked, self.mask_id)
        hidden = model.roberta(inputs, attention_mask=batch["attention_mask"]).last_hidden_state
        logits = model.classifier(hidden).float()
        hard = hard_labels(logits, labels, labels != -100)
        if not model.training:
            return {"loss": hard, "logits": logits}
        soft = soft_target_loss_from_probs(logits, batch["teacher_probs"], self.stage.temperature)
        mlm = F.cross_entropy(model.lm_head(hidden[masked]).float(), ids[masked])
        return {
            "loss": hybrid_loss(soft, hard, self.stage.alpha) + self.mlm_weight * mlm,
            "soft_targets": soft.detach(),
            "hard_labels": hard.detach(),
            "masked_lm": mlm.detach(),
        }


def build(profile: Profile, output: str | Path, say: Callable[[str], None] = print) -> None:
    """Train the tokenizer and the teacher on ``profile``'s AfriSenti and save them to ``output``.

    The last epoch is kept; dev (without the rows seen in train) is only reported. Weights are
    stored in fp16. Called again, it resumes from the last checkpoint.

    Raises:
        CometError: ``output`` holds a run of another seed or other data.
    """
    output = Path(output)
    claim(output / "work" / "settings.json", profile.as_dict(), write=False)
    data = load_sentiment(profile, splits=["train", "dev"])
    claim(output / "work" / "settings.json", profile.as_dict())
    train, dev = data["train"], unseen(data["dev"])
    say(f"tokenizer: {VOCABULARY:,} pieces from {len(train):,} tweets")
    tokenizer = train_tokenizer(train["text"][:])
    set_seed(profile.seed)
    model = TwoHeads(xlmr_config(SIZES, len(tokenizer), max_length=128))
    say("soft targets: TF-IDF, out of fold")
    # At weight 0 the model, which knows nothing yet, is not asked.
    soft = profile.with_(splices=SPLICES, teacher_weight=0.0)
    train = soft_targets(train, model, tokenizer, soft)
    columns = {"labels": train["label"][:], "teacher_probs": train["teacher_probs"][:]}
    table = tokenise(train["text"][:], tokenizer, profile.max_length, **columns)
    dev_table = tokenise(dev["text"][:], tokenizer, profile.max_length, labels=dev["label"][:])
    say(f"training on {len(table):,} tweets")
    languages = np.asarray(dev["language"][:])

    def metrics(prediction: Any) -> dict[str, float]:
        guess = np.asarray(prediction.predictions).argmax(-1)
        return evaluation.mean_weighted_f1(np.asarray(prediction.label_ids), guess, languages)

    trainer = DistillationTrainer(
        model=model,
        args=training_arguments(output / "work", STAGE, profile.seed, eval_strategy="epoch"),
        train_dataset=table,
        eval_dataset=dev_table,
        data_collator=SentimentCollator(tokenizer),
        terms_of=BothTasks(tokenizer.mask_token_id),
        compute_metrics=metrics,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(output / "work"))
    log = trainer.state.log_history
    save(model, tokenizer, output / "teacher")
    write_json(output / "log.json", log)
    scores = [f"{row['eval_mean']:.2f} mean weighted F1" for row in log if "eval_mean" in row]
    last = scores[-1] if scores else "not measured"
    say(f"{count_parameters(model):,} parameters; dev after the last epoch: {last}")


def save(model: TwoHeads, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Stock XLM-R files: config.json, fp16 model.safetensors with both heads, tokenizer."""
    with whole_folder(folder) as temporary:
        model.half().save_pretrained(temporary)
        config = read_json(temporary / "config.json")
        config["architectures"] = ["XLMRobertaForSequenceClassification"]
        write_json(temporary / "config.json", config)
        save_tokenizer(tokenizer, model, temporary)
    model.float()
