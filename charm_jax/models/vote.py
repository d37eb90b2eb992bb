"""Define the network whose stored cases vote with their labels.

| symbol | name in the code | computed by |
| --- | --- | --- |
| q | ``fused`` | ``Vote.__call__``: the pooled features |
| z₀ | ``classifier`` | W q + b |
| key | ``key`` | ``Vote.__call__``: the pooled features of the momentum branch |
| c | ``cosines`` | cos(q - μ, key - μ), μ the mean of the stored keys |
| w | ``weights`` | softmax of c / temperature over the cases that may be read |
| v | ``shares`` | Σ w y / Σ w over the known labels y |
| π | ``prevalence`` | share of the stored cases with a finding |
| p | ``log_odds`` | (v + ε π) / (1 + ε) |

Training reads every case and minimises loss(z₀) + share · loss(logit p). Evaluation reads the k
nearest and gives z₀ + λ (logit p - logit π); with λ = 0 it is the plain network.

Differs: the published network adds stored *features* to q (``charm.py``). This form is not
published; docs/METHOD.md says why it is here.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from charm_jax.models import memory_bank
from charm_jax.models import momentum as momentum_branch
from charm_jax.models.charm import Cases, Output
from charm_jax.models.layers.batch_norm import at_least_float32
from charm_jax.models.memory_bank import MemoryBank, Retrieved, may_read, normalise
from charm_jax.models.momentum import Momentum
from charm_jax.models.shapes import Features, Logits, Maps, Vectors

_EPSILON = 0.05  # ε, the weight of the prior beside a vote of 1
_ENOUGH = 300  # filled slots from which on training reads the bank
_EXACT = jax.lax.Precision.HIGHEST  # TF32 is off by about 1e-3, enough to swap neighbours

Prior = Float[Array, "1 findings"]
Shares = Float[Array, "batch k findings"]
Voted = Bool[Array, "batch findings"]


class Vote(nn.Module):
    """Map images, momentum branch and memory bank to logits; called like ``Charm``.

    Attributes:
        trunk: the backbone up to its last block.
        expansion: the backbone's last block.
        final: applied between the last block and pooling.
        fusion: weights over space of mean 1 for the pooling; None for the plain mean.
        classifier: from q to z₀.
        retrieval_k: number of stored cases that an evaluation reads; with 0 it gives z₀.
        weight: λ.
        temperature: of the softmax in evaluation.
        training_temperature: of the softmax in training.
        loss_share: of the loss on the vote.
        freeze_trunk: whether the trunk runs as in evaluation while the rest trains.
    """

    trunk: nn.Module
    expansion: nn.Module
    final: Callable[[Array], Array]
    fusion: nn.Module | None
    classifier: nn.Dense
    retrieval_k: int
    weight: float
    temperature: float
    training_temperature: float
    loss_share: float
    freeze_trunk: bool = False

    @property
    def num_findings(self) -> int:
        """Number of outputs."""
        return self.classifier.features

    def __call__(
        self,
        images: Maps,
        cases: Cases,
        momentum: Momentum | None,
        memory: MemoryBank,
        *,
        train: bool,
    ) -> Output:
        """Run the network on normalised images; without ``momentum`` the key is q.

        A query never reads its own case, nor any of its own patient. With ``train`` every row is
        written to the bank before it is read, the logits are z₀, and the vote has logits and a
        share of the loss of its own, 0 until 300 slots (or all) are filled.
        """
        main, momentum_features, momentum = momentum_branch.both_branches(
            self.trunk,
            self.expansion,
            images,
            momentum,
            train=train,
            freeze_trunk=self.freeze_trunk,
        )
        attention, fused = self.fuse(main, momentum_features)
        key = fused if momentum_features is None else self._pool(momentum_features, attention)
        output = Output(
            logits=None,
            main=main,
            momentum_features=momentum_features,
            attention=attention,
            fused=fused,
            key=jax.lax.stop_gradient(key),
            selected=jnp.zeros(images.shape[0], bool) | train,
            memory=memory,
            momentum=momentum,
        )
        if not train:
            retrieved, (shares, voted), logits = self.read(fused, cases, memory, train=False)
            return output.replace(logits=logits, retrieved=retrieved, shares=shares, voted=voted)
        memory = memory_bank.refresh(
            memory, output.key, cases.labels, cases.case_ids, cases.patient_ids
        )
        vote = vote_of_all(memory, fused, cases, self.training_temperature)
        enough = memory.count >= min(_ENOUGH, len(memory.case_ids))
        return output.replace(
            logits=self.classifier(fused),
            vote_logits=log_odds(vote, prevalence(memory)),
            vote_loss_share=jnp.where(enough, self.loss_share, 0.0),
            memory=memory,
        )

    def fuse(
        self, main: Features, momentum_features: Features | None
    ) -> tuple[Float[Array, "batch height width 1"] | None, Vectors]:
        """Compute the weights over space (None without fusion) and q; called like ``Charm``'s."""
        attention = None if self.fusion is None else self.fusion(main)
        return attention, self._pool(main, attention)

    def _pool(self, features: Features, attention: Array | None) -> Vectors:
        features = at_least_float32(self.final(features))
        return (features if attention is None else features * attention).mean((1, 2))

    def read(
        self, fused: Vectors, cases: Cases, memory: MemoryBank, *, train: bool
    ) -> tuple[Retrieved, tuple[Shares, Voted], Logits]:
        """Compute the cases that are read, the share of each in the vote, and the logits.

        Shares add up to the vote v; with them comes whether any case votes on a finding. An
        evaluation only: ``train`` has to be False.
        """
        retrieved, shares, voted = nearest(memory, fused, cases, self.retrieval_k, self.temperature)
        plain, prior = self.classifier(fused), prevalence(memory)
        shift = log_odds(jnp.minimum(shares.sum(1), 1.0), prior) - log_odds(prior, prior)
        return retrieved, (shares, voted), plain + self.weight * jnp.where(voted, shift, 0.0)

    def classify(
        self, main: Features, momentum_features: Features | None, cases: Cases, memory: MemoryBank
    ) -> Logits:
        """Compute the logits of an evaluation from f; f̄ has no effect."""
        _, fused = self.fuse(main, momentum_features)
        return self.read(fused, cases, memory, train=False)[-1]

    def initialise(self, images: Maps) -> None:
        """Create every parameter, before there is a momentum branch to run."""
        _, fused = self.fuse(self.expansion(self.trunk(images, train=False), train=False), None)
        self.classifier(fused)


def nearest(
    memory: MemoryBank, queries: Vectors, cases: Cases, k: int, temperature: float
) -> tuple[Retrieved, Shares, Voted]:
    """Read the min(k, N) usable cases with the highest cosine, best first.

    Returns:
        The cases, without features, and the share w y of each in the vote on each finding; 0
        where its label is unknown or the finding absent. Last, whether any case votes on a finding.
    """
    similarity, readable = cosines(memory, queries, cases)
    k = min(k, len(memory.case_ids))
    best, slots = jax.lax.top_k(jnp.where(readable, similarity, -jnp.inf), k)
    valid = jnp.take_along_axis(readable, slots, axis=1)
    similarity = jnp.where(valid, best, 0.0)
    retrieved = Retrieved(features=None, indices=slots, similarities=similarity, valid=valid)
    labels = memory.labels[retrieved.indices]
    weights = _weights(similarity, valid, temperature)[..., None] * (labels >= 0)
    total = weights.sum(1, keepdims=True)
    shares = weights * (labels == 1) / jnp.where(total > 0, total, 1.0)
    return retrieved, shares, total[:, 0] > 0


def _weights(
    similarity: Float[Array, "batch n"], readable: Bool[Array, "batch n"], temperature: float
) -> Float[Array, "batch n"]:
    """Compute exp(c / temperature) up to a factor; 0 where nothing may be read."""
    highest = jnp.where(readable, similarity, -1.0).max(1, keepdims=True, initial=-1.0)
    scaled = (similarity - jax.lax.stop_gradient(highest)) / temperature
    return jnp.where(readable, jnp.exp(jnp.where(readable, scaled, 0.0)), 0.0)


# The backward pass computes the [batch, N] cosines again rather than keep them.
@partial(jax.checkpoint, static_argnums=3)
def vote_of_all(
    memory: MemoryBank, queries: Vectors, cases: Cases, temperature: float
) -> Float[Array, "batch findings"]:
    """Compute the vote of every usable case; the prevalence where none has a known label.

    Gradients reach ``queries`` alone.
    """
    weights = _weights(*cosines(memory, queries, cases), temperature)
    positive = jnp.matmul(weights, (memory.labels == 1).astype(weights.dtype), precision=_EXACT)
    known = jnp.matmul(weights, (memory.labels >= 0).astype(weights.dtype), precision=_EXACT)
    return jnp.where(known > 0, positive / jnp.where(known > 0, known, 1.0), prevalence(memory))


def cosines(
    memory: MemoryBank, queries: Vectors, cases: Cases
) -> tuple[Float[Array, "batch slots"], Bool[Array, "batch slots"]]:
    """Compute each query's cosine to each stored key, both from the mean of the stored keys.

    Returns:
        Cosines, -1 ... 1, and whether the slot may be read: filled, of another case and of another
        patient. An id of -1 excludes nothing.
    """
    keys = jax.lax.stop_gradient(memory.features)
    filled = (memory.case_ids >= 0)[:, None]
    mean = jnp.where(filled, keys, 0.0).sum(0, keepdims=True) / jnp.maximum(memory.count, 1)
    unit = normalise(queries.astype(keys.dtype) - mean)
    similarity = jnp.matmul(unit, normalise(keys - mean).T, precision=_EXACT)
    return similarity, may_read(memory, cases.case_ids, cases.patient_ids)


def prevalence(memory: MemoryBank) -> Prior:
    """Compute π, the share of the stored cases with each finding, among known labels.

    Half a case with and half a case without are added, so that it is never 0 or 1.
    """
    filled = (memory.case_ids >= 0)[:, None]
    positive = jnp.sum(filled & (memory.labels == 1), axis=0, keepdims=True)
    known = jnp.sum(filled & (memory.labels >= 0), axis=0, keepdims=True)
    return (positive + 0.5) / (known + 1.0)


def log_odds(vote: Float[Array, "*batch findings"], prior: Prior) -> Float[Array, "..."]:
    """Compute logit p, p = (v + ε π) / (1 + ε); logit π for a vote of π."""
    return jnp.log(vote + _EPSILON * prior) - jnp.log(1 - vote + _EPSILON * (1 - prior))
