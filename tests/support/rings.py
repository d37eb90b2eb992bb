"""A plain NumPy model of the memory bank."""

import jax
import jax.numpy as jnp
import numpy as np

from charm_jax.models import memory_bank as mb

SIZE, DIM, FINDINGS, BATCH = 5, 3, 2, 8  # a batch may hold more selected rows than the bank


FIELDS = ("features", "labels", "case_ids", "patient_ids")


write = jax.jit(mb.write)


class Ring:
    """The plain model: one row at a time into the slot under the cursor."""

    def __init__(self, size, dim, findings):
        self.features = np.zeros((size, dim), np.float32)
        self.labels = np.full((size, findings), -1, np.int8)
        self.case_ids = np.full(size, -1, np.int32)
        self.patient_ids = np.full(size, -1, np.int32)
        self.cursor = self.count = 0

    def write(self, rows, keep):
        for i in np.flatnonzero(keep):
            for name in FIELDS:
                getattr(self, name)[self.cursor] = rows[name][i]
            self.cursor = (self.cursor + 1) % len(self.case_ids)
            self.count = min(self.count + 1, len(self.case_ids))

    def retrieve(self, queries, k, case_ids, patient_ids=None):
        """Sorts all slots for each query, in float64."""
        result = np.zeros(queries.shape)
        for i, query in enumerate(queries.astype(np.float64)):
            cosines = []
            for j, row in enumerate(self.features.astype(np.float64)):
                own = self.case_ids[j] == case_ids[i]
                if patient_ids is not None:
                    own |= self.patient_ids[j] == patient_ids[i]
                scale = max(np.linalg.norm(query), 1e-12) * max(np.linalg.norm(row), 1e-12)
                cosines.append(0.0 if own or self.case_ids[j] < 0 else query @ row / scale)
            for j in np.argsort(np.negative(cosines), kind="stable")[:k]:
                result[i] += cosines[j] * self.features[j]
        return result


def draw_rows(rng, batch=BATCH):
    case_ids = rng.integers(0, 12, batch, dtype=np.int32)  # few, so cases repeat
    return {
        "features": rng.normal(size=(batch, DIM)).astype(np.float32),
        "labels": rng.integers(-1, 2, (batch, FINDINGS), dtype=np.int8),
        "case_ids": case_ids,
        "patient_ids": case_ids // 3,
    }


def put(bank, rows, keep):
    return write(bank, *(jnp.asarray(rows[name]) for name in FIELDS), jnp.asarray(keep))


def filled(seed, keeps):
    rng = np.random.default_rng(seed)
    bank, ring = mb.empty(SIZE, DIM, FINDINGS), Ring(SIZE, DIM, FINDINGS)
    for keep in keeps:
        rows = draw_rows(rng)
        bank = put(bank, rows, keep)
        ring.write(rows, keep)
    return bank, ring, rng
