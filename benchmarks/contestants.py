"""The two sides of a benchmark, each behind the same four methods; every side has its own process.

A case is a dict: ``kind`` (train, eval or bank), ``net``, ``side``, ``batch``, ``loss``, ``memory``
(published, vote or none), ``slots``, ``channels_last``, ``frozen``, ``resident`` (how many images
lie on the device; each step draws a batch of them, with 0 every step gets the same batch),
``xla_flags`` (of its process). Inputs are random; what is timed is one call of ``step``, to its end
on the device.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

DEFAULTS = {
    "net": "efficientnet_v2_s",
    "batch": 16,
    "loss": "bce",
    "memory": "published",
    "slots": 512,
    "channels_last": False,
    "frozen": False,
    "resident": 0,
}
DIM = 1280


def make(who: str, case: dict[str, Any]) -> "Ours | Theirs":
    return {"ours": Ours, "peer": Theirs}[who](DEFAULTS | case)


def peak_mb() -> float:
    """Largest resident set of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1e3


class Ours:
    """The jitted steps of charm_jax; those of training augment their images, too."""

    def __init__(self, case: dict[str, Any]):
        import jax

        self.case, self.jax = case, jax
        jax.config.update("jax_compilation_cache_dir", os.environ.get("SPEED_CACHE"))
        self.step = getattr(self, f"_{case['kind']}")()

    def _network(self) -> tuple[Any, Any]:
        import jax.numpy as jnp

        from charm_jax.distributed import device
        from charm_jax.models import state
        from charm_jax.models.create import Voting, compute_type, create_network, empty_bank
        from charm_jax.train import optim

        jax, case = self.jax, self.case
        votes = case["memory"] == "vote"
        model = create_network(
            case["net"],
            num_classes=14,
            charm=case["memory"] != "none",
            fusion=not votes,
            retrieval_k=100 if votes else 5,
            voting=Voting() if votes else None,
            dtype=compute_type(*device.target()),
        ).clone(freeze_trunk=case["frozen"])
        self.optimizer = optim.adamw_one_cycle(optim.geometric(1e-4, 1e-4), 1000)

        def create() -> state.TrainState:
            bank = empty_bank(model, case["net"], case["slots"])
            images = jnp.zeros((1, case["side"], case["side"], 3))
            new = state.create(model, jax.random.key(0), images, bank)
            key = jax.random.key(1)
            return state.begin_stage(new, self.optimizer, key, freeze_trunk=case["frozen"])

        options = {"xla_backend_optimization_level": 0}
        return model, jax.jit(create, compiler_options=options)()

    def _batch(self) -> dict[str, Any]:
        rng, case = np.random.default_rng(0), self.case
        shape = (case["batch"], case["side"], case["side"], 1)
        ids = np.arange(case["batch"], dtype=np.int32)
        return self.jax.device_put(
            {
                "image": rng.integers(0, 256, shape, np.uint8),
                "labels": (rng.random((case["batch"], 14)) < 0.1).astype(np.int8),
                "case_id": ids,
                "patient_id": ids,
            }
        )

    def _train(self) -> Any:
        from charm_jax.models.losses import LOSSES
        from charm_jax.train.step import jit_train_step
        from data_pipelines.loading.augment import training_images

        model, state = self._network()
        cases = self._resident() if self.case["resident"] else None
        jitted = jit_train_step(
            cases,
            model=model,
            optimizer=self.optimizer,
            loss=LOSSES[self.case["loss"]],
            augment=training_images,
            momentum_step=1 - 0.99,
        )
        batch, holder = self._batch(), [state]
        self.compiled = jitted.lower(state, batch).compile()

        rng = np.random.default_rng(1)

        def step() -> None:
            given = (batch,)
            if cases is not None:
                ids = rng.integers(self.case["resident"], size=self.case["batch"], dtype=np.int32)
                given = ({"case_id": ids}, cases)
            holder[0], metrics = self.compiled(holder[0], *given)
            self.jax.block_until_ready((holder[0], metrics))

        return step

    def _resident(self) -> Any:
        from data_pipelines.loading.resident import ResidentCases

        rng, count, side = np.random.default_rng(2), self.case["resident"], self.case["side"]
        images = rng.integers(0, 256, (count, side, side, 1), np.uint8)
        labels = (rng.random((count, 14)) < 0.1).astype(np.int8)
        ids = np.arange(count, dtype=np.int32)
        return self.jax.device_put(ResidentCases(images, labels, ids, ids))

    def _eval(self) -> Any:
        from charm_jax.inference.steps import jit_eval_step
        from data_pipelines.loading.augment import evaluation_images

        model, state = self._network()
        jitted, batch = jit_eval_step(model=model, prepare=evaluation_images), self._batch()
        self.compiled = jitted.lower(state, batch).compile()
        return lambda: self.jax.block_until_ready(self.compiled(state, batch))

    def _bank(self) -> Any:
        """Write, retrieve and the gradient that reaches the queries; the bank is full."""
        import jax.numpy as jnp

        from charm_jax.models import memory_bank, selection

        jax, case = self.jax, self.case
        keys = jax.random.split(jax.random.key(0), 2)
        queries = jax.random.normal(keys[0], (case["batch"], DIM)) + 0.5
        ids = jnp.arange(case["batch"], dtype=jnp.int32)
        labels = jnp.zeros((case["batch"], 14), jnp.int8)

        @jax.jit
        def full() -> memory_bank.MemoryBank:
            empty = memory_bank.empty(case["slots"], DIM, 14)
            features = jax.random.normal(keys[1], empty.features.shape) + 0.5
            cases = jnp.arange(case["slots"], dtype=jnp.int32) + 10_000
            return empty.replace(
                features=features, case_ids=cases, patient_ids=cases, count=jnp.int32(case["slots"])
            )

        def write_and_read(bank: Any, queries: Any) -> Any:
            rule = {"rule": "norm_inlier", "threshold": 0.2, "prevalence": (0.1,) * 14}
            keep = selection.select(queries, labels, **rule)
            bank = memory_bank.write(bank, queries, labels, ids, ids, keep)

            def total(queries: Any) -> Any:
                read = memory_bank.retrieve(bank, queries, 5, exclude_case_ids=ids)
                return jnp.sum(read.features)

            return bank, jax.grad(total)(queries)

        holder = [full()]
        jitted = jax.jit(write_and_read, donate_argnums=0)
        self.compiled = jitted.lower(holder[0], queries).compile()

        def step() -> None:
            holder[0], grad = self.compiled(holder[0], queries)
            jax.block_until_ready((holder[0], grad))

        return step

    def facts(self) -> dict[str, Any]:
        """Report XLA's analysis of the compiled program, and the peak memory."""
        device = self.jax.devices()[0]
        memory, cost = self.compiled.memory_analysis(), self.compiled.cost_analysis()
        facts = {
            "device": device.device_kind,
            "peak_mb": peak_mb(),
            "temporary_mb": memory.temp_size_in_bytes / 1e6,
            "gflops": cost.get("flops", 0) / 1e9,
            "gbytes": cost.get("bytes accessed", 0) / 1e9,
        }
        stats = device.memory_stats()
        return facts | ({"device_peak_mb": stats["peak_bytes_in_use"] / 1e6} if stats else {})

    def rates(self) -> dict[str, float]:
        """Matrix products and copies of this device at their best: 10⁹ FLOP/s and bytes/s."""
        import timeit

        import jax.numpy as jnp

        from charm_jax.distributed import device
        from charm_jax.models.create import compute_type

        jax = self.jax
        gpu = jax.default_backend() == "gpu"
        n, words = (8192, 1 << 28) if gpu else (2048, 1 << 26)
        a, v = jnp.ones((n, n), compute_type(*device.target())), jnp.ones(words, jnp.float32)
        product = jax.jit(lambda a: a @ a)
        copy = jax.jit(lambda v: v + 1, donate_argnums=0)
        holder = [v]

        def move() -> None:
            holder[0] = copy(holder[0]).block_until_ready()

        def best(f: Any) -> float:
            f()
            return min(timeit.repeat(f, number=1, repeat=10))

        multiply = best(lambda: product(a).block_until_ready())
        return {"gflop_s": 2e-9 * n**3 / multiply, "gbyte_s": 8e-9 * words / best(move)}


class Theirs:
    """The peer in PyTorch; its images are normalised and augmented before they come."""

    def __init__(self, case: dict[str, Any]):
        import peer
        import torch

        self.case, self.torch = case, torch
        if case["kind"] == "bank":
            self.step = self._bank(peer)
            return
        keys = ("loss", "slots", "channels_last", "frozen")
        charm = case["memory"] != "none"
        self.peer = peer.Peer(case["net"], charm=charm, **{key: case[key] for key in keys})
        images = torch.randn(case["batch"], 3, case["side"], case["side"])
        labels = (torch.rand(case["batch"], 14) < 0.1).float()
        self.data = self.peer.to_device(images, labels)
        self.step = self._train if case["kind"] == "train" else self._eval

    def _train(self) -> None:
        self.peer.train_step(*self.data).item()

    def _eval(self) -> None:
        self.peer.eval_step(self.data[0])
        self.peer.wait()

    def _bank(self, peer: Any) -> Any:
        torch, case = self.torch, self.case
        device = "cuda" if torch.cuda.is_available() else "cpu"
        bank = peer.Bank(case["slots"], DIM).to(device)
        bank.memory.normal_().add_(0.5)
        queries = (torch.randn(case["batch"], DIM, device=device) + 0.5).requires_grad_()

        def step() -> None:
            queries.grad = None
            bank.write(queries.detach())
            bank.read(queries).sum().backward()
            if device == "cuda":
                torch.cuda.synchronize()

        return step

    def facts(self) -> dict[str, Any]:
        facts = {"peak_mb": peak_mb(), "threads": self.torch.get_num_threads()}
        if self.torch.cuda.is_available():
            facts["device_peak_mb"] = self.torch.cuda.max_memory_allocated() / 1e6
        return facts
