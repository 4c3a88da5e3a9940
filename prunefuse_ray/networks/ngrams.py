"""The network of texts: hashed n-grams of words, embedded as the unlabeled pool has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

HASHES = 2**20
"""What the hashes of n-grams (`data.texts`) are folded to."""
ROWS = 2**16
"""Rows of the embeddings: the most frequent n-grams of the pool have one each, all others share the first, which counts
nothing. So the table is bounded, whatever the pool: 42 MB with its 160 numbers a row."""
CLASSES_AT_ONCE = 64
TOPICS, HIDDEN, WORDS = 128, 64, 32
TOPIC_SCALE, WORD_SCALE = 15.0, 5.0
"""Lengths of the two kinds of features, found on a validation split of IMDb: under SGD they stand for the strength of
the penalty on what reads them."""


class TextNgrams(nn.Module):
    """fastText's bag of n-grams (Joulin et al., arXiv 1607.01759) beside latent semantics (Deerwester et al. 1990).

    A text is the vector of its n-grams, weighted by (1 + ln count) idf and of length 1 (Salton and Buckley 1988). Two
    embeddings read it: `topics`, the truncated SVD of the pool's vectors, is fixed, so that a few labels reach words of
    unlabeled texts; `words` begins at zero and is trained, each n-gram as strongly as the labeled texts tell classes by
    it (`gain`: Wang and Manning 2012, "Baselines and Bigrams"). A hidden layer reads the topics, the classifier all
    three. Nothing mixes their channels but linear layers, so that pruning and fusion are exact.

    Until it has taken the pool's statistics (`take`), n-grams have rows by chance, and topics are random.
    (N, L, 2) int64, hash and count of each of L n-grams, count 0 where there is none -> logits (N, classes).
    """

    rows: Tensor
    idf: Tensor
    gain: Tensor

    def __init__(self, *, classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("rows", (torch.arange(HASHES) % ROWS).to(torch.int32))
        self.register_buffer("idf", torch.ones(ROWS))
        self.register_buffer("gain", torch.ones(ROWS))
        self.topics = nn.Embedding(ROWS, TOPICS)
        self.words = nn.Embedding(ROWS, WORDS)
        self.hidden = nn.Linear(TOPICS, HIDDEN)
        self.classifier = nn.Linear(TOPICS + HIDDEN + WORDS, classes)
        self.topics.weight.requires_grad_(False)
        nn.init.zeros_(self.words.weight)

    def forward(self, x: Tensor) -> Tensor:
        row_NL, weight_NL = self._weighted(x)
        # What follows channels or exports the network knows no bags; without padding they take a fraction of the time.
        traced = torch.is_grad_enabled() and not self.training
        traced = traced or torch.jit.is_tracing() or torch.compiler.is_compiling()
        summed = _summed if traced else _summed_bags
        topics_NE = TOPIC_SCALE * summed(self.topics, row_NL, weight_NL)
        words_NE = WORD_SCALE * summed(self.words, row_NL, weight_NL * self.gain[row_NL])
        return self.classifier(torch.cat([topics_NE, torch.relu(self.hidden(topics_NE)), words_NE], 1))

    def _weighted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The row (N, L) of each n-gram, and its weight (N, L)."""
        row_NL, count_NL = self.rows[x[..., 0] % HASHES].long(), x[..., 1].to(self.idf.dtype)
        weight_NL = (1 + torch.log(count_NL.clamp(min=1))) * self.idf[row_NL] * (count_NL > 0)
        return row_NL, nn.functional.normalize(weight_NL, dim=1)

    def take(self, statistics: Mapping[str, Tensor]) -> None:
        """What `statistics` found in a pool. Topics of larger singular values begin with more weight, so that pruning
        by magnitude keeps them."""
        self.rows.copy_(statistics["rows"])
        self.idf.copy_(statistics["idf"])
        values = statistics["singular_values"]
        with torch.no_grad():
            self.topics.weight.copy_(statistics["topics"])
            norms = self.hidden.weight.norm(dim=0)
            self.hidden.weight *= (values / values[0]).sqrt() * norms.mean() / norms

    @torch.no_grad()
    def meet(self, labeled: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set `gain` by labeled texts, batches of inputs and of which classes each is (N, C): the mean over the
        classes of |ln (p / q)|, where p is the n-gram's share among those of texts of a class, and q among those of the
        others."""
        counts_CR, all_R = torch.zeros(self.classes, ROWS), torch.zeros(ROWS)
        for x, is_NC in labeled:
            row_NL, weight_NL = self._weighted(x)
            present_NL = (weight_NL > 0).cpu()
            all_R += torch.bincount(row_NL.cpu()[present_NL], minlength=ROWS)
            for c in is_NC.any(0).nonzero().flatten().tolist():
                of_c = is_NC[:, c].cpu()
                counts_CR[c] += torch.bincount(row_NL.cpu()[of_c][present_NL[of_c]], minlength=ROWS)
        total_R = torch.zeros(ROWS)
        for some_CR in counts_CR.split(CLASSES_AT_ONCE):  # all of them would take several times the counts' own memory
            p, q = some_CR + 1, all_R - some_CR + 1
            total_R += torch.log((p / p.sum(1, keepdim=True)) / (q / q.sum(1, keepdim=True))).abs().sum(0)
        self.gain.copy_(total_R / self.classes)


def _summed(table: nn.Embedding, row_NL: Tensor, weight_NL: Tensor) -> Tensor:
    """The weighted sum (N, E) of rows of a table."""
    return (weight_NL.unsqueeze(1) @ table(row_NL)).squeeze(1)


def _summed_bags(table: nn.Embedding, row_NL: Tensor, weight_NL: Tensor) -> Tensor:
    """The same, of rows with a weight alone."""
    weighted_NL = weight_NL != 0
    sizes_N = weighted_NL.sum(1)
    return nn.functional.embedding_bag(
        row_NL[weighted_NL],
        table.weight,
        sizes_N.cumsum(0) - sizes_N,
        mode="sum",
        per_sample_weights=weight_NL[weighted_NL],
    )


def statistics(ngrams_NL2: Tensor) -> dict[str, Tensor]:
    """What `TextNgrams.take` takes from texts of a pool, as the network reads them: which n-grams have rows, their
    inverse document frequencies, and the leading right singular vectors of the texts' vectors. The first one is the
    mean text, by which no two texts differ, and is left out. A minute of one core and 1 GB for 20,000 long texts."""
    from scipy import sparse
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    texts, hash_NL, count_NL = len(ngrams_NL2), *(ngrams_NL2[..., i].numpy() for i in (0, 1))
    text_M, place_M = np.nonzero(count_NL)
    hash_M, count_M = hash_NL[text_M, place_M] % HASHES, count_NL[text_M, place_M]
    frequency = np.bincount(np.unique(text_M * HASHES + hash_M) % HASHES, minlength=HASHES)
    frequent = np.argsort(-frequency, kind="stable")[: ROWS - 1]
    frequent = frequent[frequency[frequent] > 1]  # what one text alone has tells nothing of others
    rows = np.zeros(HASHES, np.int32)
    rows[frequent] = np.arange(1, len(frequent) + 1)
    idf = np.zeros(ROWS, np.float32)
    idf[1 : len(frequent) + 1] = np.log((1 + texts) / (1 + frequency[frequent])) + 1
    row_M = rows[hash_M]
    weights = sparse.csr_matrix(
        (((1 + np.log(count_M)) * idf[row_M]).astype(np.float32), (text_M, row_M)), shape=(texts, ROWS)
    )
    found = min(TOPICS + 1, texts - 1, len(frequent) - 1)
    topics, values = np.zeros((ROWS, TOPICS), np.float32), np.full(TOPICS, 1e-3, np.float32)
    if found > 1:
        _, singular, vectors = randomized_svd(normalize(weights), found, n_iter=2, random_state=0)
        topics[:, : found - 1], values[: found - 1] = vectors[1:].T, np.maximum(singular[1:], 1e-3)
    return {
        "rows": torch.from_numpy(rows),
        "idf": torch.from_numpy(idf),
        "topics": torch.from_numpy(topics),
        "singular_values": torch.from_numpy(values),
    }
