"""CHARM as a PyTorch user would write it: the peer that ours is measured against.

Written from the equations of the network (README, "What it computes") with PyTorch's own layers and
the reference's loop over the rows of a batch where it reads its bank. On a GPU the backbone is
torchvision's, in channels_last, autocast bfloat16 and ``torch.compile``; on a CPU it is built here
of the same layers, in float32, as the original runs.
"""

import copy
import dataclasses

import torch
from torch import nn
from torch.nn import functional

from charm_jax.models.backbones import efficientnet_lite
from charm_jax.models.backbones.efficientnet_v2 import MEMBERS, Stage

FINDINGS = 14
K, THRESHOLD, DECAY = 5, 0.2, 0.99


def conv_norm_act(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, activate: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs, eps=1e-3)
    return nn.Sequential(conv, norm, *([nn.SiLU(inplace=True)] if activate else []))


class SqueezeExcite(nn.Module):
    """Channel attention."""

    def __init__(self, channels: int, squeeze: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = functional.silu(self.fc1(functional.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.fc2(scale))


class Block(nn.Module):
    """MBConv or Fused-MBConv, with stochastic depth by rows."""

    def __init__(self, stage: Stage, inputs: int, stride: int, drop_rate: float):
        super().__init__()
        hidden, outputs = inputs * stage.expand, stage.features
        if stage.fused and stage.expand == 1:
            layers = [conv_norm_act(inputs, outputs, 3, stride)]
        elif stage.fused:
            layers = [
                conv_norm_act(inputs, hidden, 3, stride),
                conv_norm_act(hidden, outputs, 1, activate=False),
            ]
        else:
            layers = [
                conv_norm_act(inputs, hidden, 1),
                conv_norm_act(hidden, hidden, 3, stride, groups=hidden),
                SqueezeExcite(hidden, max(1, inputs // 4)),
                conv_norm_act(hidden, outputs, 1, activate=False),
            ]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs
        self.drop_rate = drop_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(x)
        if not self.residual:
            return y
        if self.training and self.drop_rate > 0:
            keep = torch.empty(len(x), 1, 1, 1, dtype=y.dtype, device=y.device)
            y = y * keep.bernoulli_(1 - self.drop_rate).div_(1 - self.drop_rate)
        return x + y


class SameConv(nn.Conv2d):
    """Convolve with stride 2 and TensorFlow's padding, a copy, as PyTorch's users do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = self.kernel_size[0]
        rows, columns = (max(size - (side % 2 or 2), 0) for side in x.shape[2:])
        pads = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return super().forward(functional.pad(x, pads))


def lite_layer(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, activate: bool = True
) -> nn.Sequential:
    make, padding = (SameConv, 0) if stride == 2 else (nn.Conv2d, size // 2)
    conv = make(inputs, outputs, size, stride, padding, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
    return nn.Sequential(conv, norm, *([nn.ReLU6(inplace=True)] if activate else []))


class LiteBlock(Block):
    """MBConv without squeeze-and-excitation."""

    def __init__(self, inputs: int, outputs: int, expand: int, size: int, stride: int, drop: float):
        nn.Module.__init__(self)
        hidden = inputs * expand
        self.block = nn.Sequential(
            *([lite_layer(inputs, hidden, 1)] if expand > 1 else []),
            lite_layer(hidden, hidden, size, stride, groups=hidden),
            lite_layer(hidden, outputs, 1, activate=False),
        )
        self.residual, self.drop_rate = stride == 1 and inputs == outputs, drop


def lite_backbone(name: str) -> tuple[nn.Sequential, nn.Sequential, int]:
    (stages,) = efficientnet_lite.MEMBERS[name].trunk.args
    total, done = sum(stage.blocks for stage in stages), 0
    parts, inputs = [lite_layer(3, 32, 3, 2)], 32
    for stage in stages:
        for i in range(stage.blocks):
            expand, stride = (6 if stage is not stages[0] else 1), (1 if i else stage.strides)
            shape = (inputs, stage.features, expand, stage.kernel_size, stride)
            parts.append(LiteBlock(*shape, 0.2 * done / total))
            inputs, done = stage.features, done + 1
    return nn.Sequential(*parts), lite_layer(inputs, 1280, 1), 1280


def own_backbone(name: str) -> tuple[nn.Sequential, nn.Sequential, int]:
    """Trunk, last block and feature dimension, of plain layers."""
    if name in efficientnet_lite.MEMBERS:
        return lite_backbone(name)
    stem, stages = MEMBERS[name].trunk.args
    total, done = sum(stage.blocks for stage in stages), 0
    parts, inputs = [conv_norm_act(3, stem, 3, 2)], stem
    for stage in stages:
        for i in range(stage.blocks):
            stride = stage.strides if i == 0 else 1
            parts.append(Block(stage, inputs, stride, 0.2 * done / total))
            inputs, done = stage.features, done + 1
    dim = MEMBERS[name].feature_dim
    return nn.Sequential(*parts), conv_norm_act(inputs, dim, 1), dim


def torchvision_backbone(name: str) -> tuple[nn.Sequential, nn.Sequential, int]:
    import torchvision

    features = torchvision.models.get_model(name).features
    return features[:-1], features[-1], MEMBERS[name].feature_dim


class Attention(nn.Module):
    """Multi-scale spatial attention."""

    def __init__(self, dim: int):
        super().__init__()
        width = max(dim // 8, 8)
        self.branches = nn.ModuleList(nn.Conv2d(dim, width, k, padding=k // 2) for k in (1, 3, 5))
        self.merge = nn.Conv2d(3 * width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.merge(torch.cat([conv(x) for conv in self.branches], 1)))


class Bank(nn.Module):
    """A ring of features, written by selected rows and read row by row, as the reference does."""

    def __init__(self, slots: int, dim: int):
        super().__init__()
        self.register_buffer("memory", torch.zeros(slots, dim))
        self.index = 0

    @torch.no_grad()
    def write(self, features: torch.Tensor) -> None:
        norms = features.norm(dim=1)
        rarity = (norms - norms.mean()).abs() / norms.mean()
        chosen = features[rarity < THRESHOLD][: len(self.memory)]
        places = (self.index + torch.arange(len(chosen), device=chosen.device)) % len(self.memory)
        self.memory[places] = chosen.to(self.memory.dtype)
        self.index = (self.index + len(chosen)) % len(self.memory)

    def read(self, queries: torch.Tensor) -> torch.Tensor:
        # The reference normalises row by row and masks by comparing the cosine with 1.
        stored = functional.normalize(self.memory, dim=1)
        rows = []
        for query in queries:
            similarity = stored @ functional.normalize(query, dim=0)
            similarity = torch.where(similarity != 1.0, similarity, 0.0)
            weights, nearest = similarity.topk(min(K, len(stored)))
            rows.append((weights[:, None] * self.memory[nearest]).sum(0))
        return torch.stack(rows)


class Charm(nn.Module):
    """The whole network; ``charm=False`` is the backbone with a linear classifier."""

    def __init__(self, name: str, slots: int = 512, *, charm: bool = True, torchvision: bool):
        super().__init__()
        make = torchvision_backbone if torchvision else own_backbone
        self.trunk, self.expansion, dim = make(name)
        self.charm = charm
        if not charm:
            self.classifier = nn.Linear(dim, FINDINGS)
            return
        self.momentum = copy.deepcopy(self.expansion).requires_grad_(False)
        self.attention, self.bank = Attention(dim), Bank(slots, dim)
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(dim),
            nn.Linear(dim, 512),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(512, FINDINGS),
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the fused feature q, or the mean of a bare backbone's features."""
        trunk = self.trunk(x)
        main = self.expansion(trunk)
        if not self.charm:
            return main.float().mean((2, 3))
        fused = (main * self.attention(main)).float().mean((2, 3))
        with torch.no_grad():
            anchor = self.momentum(trunk).float().mean((2, 3))
        return fused + anchor

    def logits(self, fused: torch.Tensor) -> torch.Tensor:
        if self.charm:
            if self.training:
                self.bank.write(fused.detach())
            fused = fused + self.bank.read(fused)
        return self.classifier(fused)

    @torch.no_grad()
    def follow(self) -> None:
        pairs = zip(self.momentum.parameters(), self.expansion.parameters(), strict=True)
        for ours, theirs in pairs:
            ours.lerp_(theirs, 1 - DECAY)


def focal(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    ce = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


LOSSES = {"bce": functional.binary_cross_entropy_with_logits, "focal": focal}


@dataclasses.dataclass
class Peer:
    """A network with its optimizer, ready to take steps.

    Attributes:
        name: of the backbone.
        loss: bce or focal.
        charm: False for the bare backbone.
        slots: of the bank.
        channels_last: memory format; a GPU always has it.
        frozen: trunk in evaluation mode and without gradients.
    """

    name: str
    loss: str = "bce"
    charm: bool = True
    slots: int = 512
    channels_last: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        paper = self.name in MEMBERS and not self.name.endswith("nano")
        net = Charm(self.name, self.slots, charm=self.charm, torchvision=gpu and paper)
        layout = torch.channels_last if gpu or self.channels_last else torch.contiguous_format
        self.net, self.layout = net.to(self.device, memory_format=layout), layout
        if self.frozen:
            self.net.trunk.requires_grad_(False)
        learned = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            learned, 1e-4, (0.9, 0.99), 1e-5, weight_decay=0.01, fused=gpu
        )
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=gpu)
        self.features = torch.compile(net.features) if gpu else net.features

    def to_device(self, images: object, labels: object) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.as_tensor(images).to(self.device, memory_format=self.layout)
        return x, torch.as_tensor(labels, dtype=torch.float32).to(self.device)

    def train_step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One step on normalised images ``[B, 3, S, S]``; the loss, not read."""
        self.net.train()
        if self.frozen:
            self.net.trunk.eval()
        with self.autocast:
            fused = self.features(x)
        loss = LOSSES[self.loss](self.net.logits(fused.float()), y)
        if self.charm:
            self.net.follow()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def eval_step(self, x: torch.Tensor) -> torch.Tensor:
        self.net.eval()
        with self.autocast:
            fused = self.features(x)
        return self.net.logits(fused.float())

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
