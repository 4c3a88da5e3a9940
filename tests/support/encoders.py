"""Small encoders of texts in folders as transformers has them: `python -m tests.support.encoders FOLDER TEXTS.parquet`
makes one that has learned to fill gaps in some texts."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

KINDS: dict[str, dict[str, Any]] = {
    "bert": {}, "electra": {"embedding_size": 24}, "roberta": {}, "xlm-roberta": {}, "camembert": {},
    "distilbert": {},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "local_attention": 8,
                   "global_attn_every_n_layers": 2},
}  # fmt: skip
"""What their configurations need beside `sizes`."""


def tokenizer(texts, vocabulary: int):
    """A WordPiece tokenizer learned on texts, which frames them by [CLS] and [SEP]; [PAD] is 0."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return made


def config(kind: str, *, vocabulary: int, width: int = 32, heads: int = 4, units: int = 48, layers: int = 2,
           length: int = 40) -> Any:  # fmt: skip
    import transformers

    sizes = {"vocab_size": vocabulary, "max_position_embeddings": length, "pad_token_id": 0}
    if kind == "distilbert":
        sizes |= {"dim": width, "n_heads": heads, "hidden_dim": units, "n_layers": layers}
    else:
        sizes |= {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": units,
                  "num_hidden_layers": layers}  # fmt: skip
    return transformers.CONFIG_MAPPING[kind](**sizes, **KINDS[kind])


def folder(
    where: Path, texts, kind: str = "bert", *, vocabulary: int = 200, weights: bool = True, **sizes: int
) -> Path:
    """A folder with config.json, tokenizer.json, and the random weights of a model that fills gaps."""
    import torch
    import transformers

    made = tokenizer(texts, vocabulary)
    where.mkdir(parents=True, exist_ok=True)
    made.save(str(where / "tokenizer.json"))
    settings = config(kind, vocabulary=made.get_vocab_size(), **sizes)
    settings.save_pretrained(where)
    if weights:
        torch.manual_seed(0)
        transformers.AutoModelForMaskedLM.from_config(settings).save_pretrained(where)
    return where


def learn(where: Path, texts: list[str], *, minutes: float, length: int = 64, batch: int = 32, seed: int = 0) -> None:
    """Let the BERT in a folder learn to fill gaps: of 15 % of the tokens eight tenths are masked, one tenth is another
    token (Devlin et al., arXiv 1810.04805, section 3.1)."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    torch.manual_seed(seed)
    made = Tokenizer.from_file(str(where / "tokenizer.json"))
    made.enable_truncation(length)
    made.enable_padding(length=length)
    tokens = torch.tensor([found.ids for found in made.encode_batch([text[: 8 * length] for text in texts])])
    network = transformers.AutoModelForMaskedLM.from_pretrained(where).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    started, step, mean = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, done / 0.05, (1 - done) / 0.5)
        x = tokens[torch.randint(len(tokens), (batch,))]
        chosen = (torch.rand(x.shape) < 0.15) & (x > 4)
        how = torch.rand(x.shape)
        shown = torch.where(chosen & (how < 0.8), 4, x)
        shown = torch.where(chosen & (how > 0.9), torch.randint(5, made.get_vocab_size(), x.shape), shown)
        read = network.bert(input_ids=shown, attention_mask=(x > 0).long()).last_hidden_state
        loss = torch.nn.functional.cross_entropy(network.cls(read[chosen]), x[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, mean = step + 1, 0.98 * mean + 0.02 * loss.item() if step else loss.item()
        if step % 200 == 0:
            print(json.dumps({"step": step, "loss": round(mean, 3), "seconds": round(time.monotonic() - started)}))
    network.save_pretrained(where)


def main() -> None:
    import pyarrow.parquet as pq

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", nargs="+", type=Path, help="Parquet files with a column text")
    parser.add_argument("--minutes", type=float, default=3.0, help="of learning")
    parser.add_argument("--some", type=int, default=10_000, help="texts to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with what is in the folder")
    arguments = parser.parse_args()
    texts = [text for file in arguments.texts for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]
    if not arguments.resume:
        sizes = {"vocabulary": 4000, "width": 64, "heads": 4, "units": 256, "length": 512}
        folder(arguments.folder, texts[:5000], **sizes)
    learn(arguments.folder, texts[: arguments.some], minutes=arguments.minutes, seed=arguments.seed)


if __name__ == "__main__":
    main()
