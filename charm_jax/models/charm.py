"""Define CHARM's forward pass.

| symbol | name in the code | computed by |
| --- | --- | --- |
| t | ``trunk`` output | ``backbones/`` |
| f | ``main`` | ``backbones/``: the expansion block with θ |
| f̄ | ``momentum_features`` | ``momentum.py``: the expansion block with θ̄ |
| a | ``attention`` | ``attention.py`` |
| q | ``fused`` | ``Charm.__call__`` |
| r | ``retrieved.features`` | ``memory_bank.py`` |
| h | ``enhanced`` | ``Charm.__call__`` |

``selection.py`` chooses the rows of q that ``memory_bank.write`` stores.
"""

import typing
from collections.abc import Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int8, Int32

from charm_jax.models import memory_bank
from charm_jax.models import momentum as momentum_branch
from charm_jax.models.layers.batch_norm import BatchNorm, at_least_float32
from charm_jax.models.layers.conv import torch_bias_init, torch_kernel_init
from charm_jax.models.memory_bank import MemoryBank, Retrieved
from charm_jax.models.momentum import Momentum
from charm_jax.models.shapes import Features, Logits, Maps, Scalar, Vectors

_HIDDEN = 512


@typing.no_type_check  # JAX rebuilds it with leaves of other types
@flax.struct.dataclass
class Cases:
    """Hold labels and ids of the images of a batch.

    Attributes:
        labels: 1 present, 0 absent, -1 unknown.
        case_ids: rank of the image's name in its source's full table; -1 outside any table.
        patient_ids: patient number; -1 for unknown.
    """

    labels: Int8[Array, "batch findings"]
    case_ids: Int32[Array, " batch"]
    patient_ids: Int32[Array, " batch"]


@typing.no_type_check  # JAX rebuilds it with leaves of other types
@flax.struct.dataclass
class Output:
    """Hold every named value of a forward pass; None where a network has no such part.

    Attributes:
        logits: float32.
        main: f, the expansion block's features.
        momentum_features: f̄.
        attention: a, in (0, 1).
        fused: q.
        key: what a bank of labels stores (``vote.py``), where that is not q.
        retrieved: r, its slots and similarities.
        enhanced: h = q + r.
        shares: share of each read case in the vote of labels.
        voted: whether the label of any read case is known, so that there is a vote.
        vote_logits: logits of that vote in training, with a loss of their own.
        vote_loss_share: factor of that loss.
        selected: whether each row was written to the bank (none in evaluation).
        memory: the bank after this pass.
        momentum: the momentum branch with its running statistics updated, parameters not.
    """

    logits: Float[Array, "batch findings"]
    main: Float[Array, "batch height width dim"]
    momentum_features: Float[Array, "batch height width dim"] | None = None
    attention: Float[Array, "batch height width 1"] | None = None
    fused: Float[Array, "batch dim"] | None = None
    key: Float[Array, "batch dim"] | None = None
    retrieved: Retrieved | None = None
    enhanced: Float[Array, "batch dim"] | None = None
    shares: Float[Array, "batch k findings"] | None = None
    voted: Bool[Array, "batch findings"] | None = None
    vote_logits: Float[Array, "batch findings"] | None = None
    vote_loss_share: Float[Array, ""] | None = None
    selected: Bool[Array, " batch"] | None = None
    memory: MemoryBank | None = None
    momentum: Momentum | None = None

    def scalars(self) -> dict[str, Scalar]:
        """Return the scalars to log.

        ``selected`` is the share of the batch that was written, ``bank_count`` the filled slots,
        ``similarity`` the mean cosine of the retrieved cases.
        """
        if self.memory is None:
            return {}
        scalars = {
            "selected": self.selected.mean(),
            "bank_count": self.memory.count.astype(jnp.float32),
        }
        if self.retrieved is not None:
            valid = self.retrieved.valid
            total = (self.retrieved.similarities * valid).sum()
            scalars["similarity"] = total / jnp.maximum(valid.sum(), 1)
        return scalars

    def evidence(self) -> dict[str, Array]:
        """Return what an evaluation keeps beside the logits.

        ``attention`` is the map ``[B, h, w]``; ``slots``, ``similarities`` and ``valid`` ``[B, k]``
        describe the retrieved cases, best match first (see ``Retrieved``); ``disagreement`` ``[B]``
        is 1 - cosine of the pooled features of main and momentum branch, 0 ... 2. Keys of parts
        that the network lacks are absent.
        """
        if self.retrieved is None:
            return {}
        kept = {
            "slots": self.retrieved.indices,
            "similarities": self.retrieved.similarities,
            "valid": self.retrieved.valid,
        }
        if self.attention is not None:
            kept["attention"] = self.attention[..., 0]
        if self.momentum_features is not None:
            main = at_least_float32(self.main).mean((1, 2))
            average = at_least_float32(self.momentum_features).mean((1, 2))
            cosine = optax.losses.cosine_similarity(main, average, epsilon=1e-12)
            kept["disagreement"] = 1 - cosine
        return kept


class Head(nn.Module):
    """Apply batch norm, a hidden layer of 512, dropout and a linear layer, in float32.

    Source: the reference's ``classifier``.
    """

    num_findings: int
    dropout: float = 0.3

    @nn.compact
    def __call__(self, enhanced: Vectors, *, train: bool) -> Logits:
        """Map enhanced features to logits."""
        x = BatchNorm(dtype=enhanced.dtype, name="norm")(enhanced, train=train)
        x = nn.relu(_dense(_HIDDEN, x.shape[-1], "hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return _dense(self.num_findings, _HIDDEN, "logits")(x)


def _dense(features: int, fan_in: int, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        kernel_init=torch_kernel_init,
        bias_init=torch_bias_init(fan_in),
        precision=jax.lax.Precision.HIGHEST,  # not TF32, a GPU's default
        name=name,
    )


class Charm(nn.Module):
    """Map images, momentum branch and memory bank to logits: the network of CHARM-Xray.

    Attributes:
        trunk: the backbone up to its last block.
        expansion: the backbone's last block.
        fusion: the attention over its features; None gives all positions the same weight.
        head: from enhanced features to logits.
        retrieval_k: number of stored cases to read; with 0 the bank is written but has no effect.
        select: rule for the rows to write: ``(features, labels) -> bool[batch]``.
        freeze_trunk: whether the trunk runs as in evaluation while the rest trains.
    """

    trunk: nn.Module
    expansion: nn.Module
    fusion: nn.Module | None
    head: nn.Module
    retrieval_k: int
    select: Callable[[Array, Array], Array]
    freeze_trunk: bool = False

    @property
    def num_findings(self) -> int:
        """Number of outputs."""
        return self.head.num_findings

    def __call__(
        self,
        images: Maps,
        cases: Cases,
        momentum: Momentum | None,
        memory: MemoryBank,
        *,
        train: bool,
    ) -> Output:
        """Run the network on normalised images; without ``momentum``, q = GAP(f ⊙ a).

        With ``train`` the batch norms use and update batch statistics, dropout draws from the
        random stream ``dropout``, and selected rows are written to the bank before it is read. A
        query never reads its own case, nor, outside training, any case of its own patient. A frozen
        trunk uses and keeps its running statistics, and drops nothing.

        Differs: the reference masks stored rows whose float32 cosine with the query is exactly 1,
        which depends on rounding; here the own case is excluded by its id.
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

        stored = jax.lax.stop_gradient(fused)
        if train:
            selected = self.select(stored, cases.labels)
            memory = memory_bank.write(
                memory, stored, cases.labels, cases.case_ids, cases.patient_ids, selected
            )
        else:
            selected = jnp.zeros(images.shape[0], bool)
        retrieved, enhanced, logits = self.read(fused, cases, memory, train=train)
        return Output(
            logits=logits,
            main=main,
            momentum_features=momentum_features,
            attention=attention,
            fused=fused,
            retrieved=retrieved,
            enhanced=enhanced,
            selected=selected,
            memory=memory,
            momentum=momentum,
        )

    def fuse(
        self, main: Features, momentum_features: Features | None
    ) -> tuple[Float[Array, "batch height width 1"] | None, Vectors]:
        """Compute a (None without fusion) and q = GAP(f ⊙ a) + GAP(f̄)."""
        attention, weighted = None, at_least_float32(main)
        if self.fusion is not None:
            attention = self.fusion(main)
            weighted = weighted * attention
        fused = weighted.mean((1, 2))
        if momentum_features is not None:
            fused = fused + at_least_float32(momentum_features).mean((1, 2))
        return attention, fused

    def read(
        self, fused: Vectors, cases: Cases, memory: MemoryBank, *, train: bool
    ) -> tuple[Retrieved, Vectors, Logits]:
        """Compute r, h = q + r and the logits; cheap beside the backbone.

        Exclude the same cases as ``__call__``.
        """
        retrieved = memory_bank.retrieve(
            memory,
            fused,
            self.retrieval_k,
            exclude_case_ids=cases.case_ids,
            exclude_patient_ids=None if train else cases.patient_ids,
        )
        enhanced = fused + retrieved.features
        return retrieved, enhanced, self.head(enhanced, train=train)

    def classify(
        self, main: Features, momentum_features: Features | None, cases: Cases, memory: MemoryBank
    ) -> Logits:
        """Compute the logits of an evaluation from f and f̄."""
        _, fused = self.fuse(main, momentum_features)
        return self.read(fused, cases, memory, train=False)[-1]

    def initialise(self, images: Maps) -> None:
        """Create every parameter, before there is a momentum branch to run."""
        main = self.expansion(self.trunk(images, train=False), train=False)
        if self.fusion is not None:
            self.fusion(main)
        self.head(at_least_float32(main.mean((1, 2))), train=False)
