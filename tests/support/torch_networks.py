"""The backbones and CHARM in torch.nn, with the names of torchvision and of the reference."""

import copy
import importlib
import os
from collections import OrderedDict

import pytest

torch = importlib.import_module("torch") if os.environ.get("CI") else pytest.importorskip("torch")
nn = torch.nn


def conv_norm_act(inputs, outputs, size, stride=1, groups=1, activate=True):
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs, eps=1e-3)
    return nn.Sequential(conv, norm, *([nn.SiLU()] if activate else []))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, squeeze):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)

    def forward(self, x):
        scale = nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(scale))


class InvertedBottleneck(nn.Module):
    def __init__(self, stage, inputs, stride):
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
                SqueezeExcite(hidden, inputs // 4),
                conv_norm_act(hidden, outputs, 1, activate=False),
            ]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class EfficientNetV2(nn.Module):
    def __init__(self, stem, stages, dim):
        super().__init__()
        parts, inputs = [conv_norm_act(3, stem, 3, 2)], stem
        for stage in stages:
            blocks = []
            for i in range(stage.blocks):
                stride = stage.strides if i == 0 else 1
                blocks.append(InvertedBottleneck(stage, inputs, stride))
                inputs = stage.features
            parts.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*parts, conv_norm_act(inputs, dim, 1))
        self.dim = dim
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(dim, 14))

    def halves(self):
        return self.features[:-1], nn.Sequential(self.features[-1])

    def drop_classifier(self):
        self.classifier = nn.Identity()

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class SameConv(nn.Conv2d):
    """TensorFlow's padding "SAME": what is uneven of it comes below and right."""

    def forward(self, x):
        step, size = self.stride[0], self.kernel_size[0]
        totals = [max(size - (side % step or step), 0) for side in x.shape[2:]]
        (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in totals)
        return super().forward(nn.functional.pad(x, (left, right, top, bottom)))


def lite_conv(inputs, outputs, size, stride=1, groups=1):
    return SameConv(inputs, outputs, size, stride, groups=groups, bias=False)


def lite_norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class LiteBlock(nn.Module):
    """With timm's names, under which the first stage's blocks have no hidden layer."""

    def __init__(self, stage, inputs, stride, expand):
        super().__init__()
        hidden, outputs, size = inputs * expand, stage.features, stage.kernel_size
        self.order = []
        if expand > 1:
            self.add("conv_pw", lite_conv(inputs, hidden, 1), hidden)
        self.add("conv_dw", lite_conv(hidden, hidden, size, stride, hidden), hidden)
        last = "conv_pwl" if expand > 1 else "conv_pw"
        self.add(last, lite_conv(hidden, outputs, 1), outputs)
        self.residual = stride == 1 and inputs == outputs

    def add(self, name, conv, channels):
        self.add_module(name, conv)
        norm = f"bn{len(self.order) + 1}"
        self.add_module(norm, lite_norm(channels))
        self.order.append((conv, getattr(self, norm)))

    def forward(self, x):
        *inner, (conv, norm) = self.order
        y = x
        for hidden_conv, hidden_norm in inner:
            y = nn.functional.relu6(hidden_norm(hidden_conv(y)))
        y = norm(conv(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    def __init__(self, stages):
        super().__init__()
        self.conv_stem, self.bn1 = lite_conv(3, 32, 3, 2), lite_norm(32)
        inputs, parts = 32, []
        for i, stage in enumerate(stages):
            blocks = []
            for j in range(stage.blocks):
                blocks.append(LiteBlock(stage, inputs, 1 if j else stage.strides, 6 if i else 1))
                inputs = stage.features
            parts.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*parts)
        self.conv_head, self.bn2 = lite_conv(inputs, 1280, 1), lite_norm(1280)
        self.dim = 1280
        self.classifier = nn.Linear(1280, 14)

    def halves(self):
        trunk = nn.Sequential(self.conv_stem, self.bn1, nn.ReLU6(), self.blocks)
        return trunk, nn.Sequential(self.conv_head, self.bn2, nn.ReLU6())

    def drop_classifier(self):
        self.classifier = nn.Identity()

    def forward(self, x):
        trunk, last = self.halves()
        return self.classifier(last(trunk(x)).mean((2, 3)))


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs, layers = 64, []
        for i, count in enumerate(blocks):
            width, bottlenecks = 64 * 2**i, []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                bottlenecks.append(Bottleneck(inputs, width, stride))
                inputs = 4 * width
            layers.append(nn.Sequential(*bottlenecks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.dim = inputs
        self.fc = nn.Linear(inputs, 14)

    def halves(self):
        stem = (self.conv1, self.bn1, self.relu, self.maxpool)
        return nn.Sequential(*stem, self.layer1, self.layer2, self.layer3), self.layer4

    def drop_classifier(self):
        self.fc = nn.Identity()

    def forward(self, x):
        trunk, last = self.halves()
        return self.fc(last(trunk(x)).mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x):
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    def __init__(self, layers, growth):
        super().__init__()
        width = 2 * growth
        parts = OrderedDict(
            conv0=nn.Conv2d(3, width, 7, 2, 3, bias=False),
            norm0=nn.BatchNorm2d(width),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, 2, 1),
        )
        for i, count in enumerate(layers, start=1):
            block = OrderedDict()
            for j in range(1, count + 1):
                block[f"denselayer{j}"] = DenseLayer(width, growth)
                width += growth
            parts[f"denseblock{i}"] = nn.Sequential(block)
            if i < len(layers):
                parts[f"transition{i}"] = nn.Sequential(
                    OrderedDict(
                        norm=nn.BatchNorm2d(width),
                        relu=nn.ReLU(),
                        conv=nn.Conv2d(width, width // 2, 1, bias=False),
                        pool=nn.AvgPool2d(2, 2),
                    )
                )
                width //= 2
        self.features = nn.Sequential(parts | {"norm5": nn.BatchNorm2d(width)})
        self.dim = width
        self.classifier = nn.Linear(width, 14)

    def halves(self):
        *trunk, norm = self.features
        return nn.Sequential(*trunk), nn.Sequential(norm)

    def drop_classifier(self):
        self.classifier = nn.Identity()

    def forward(self, x):
        return self.classifier(torch.relu(self.features(x)).mean((2, 3)))


class LargeKernelAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dw_conv1 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.dw_conv2 = nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
        self.pw_conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        return x * self.pw_conv(self.dw_conv2(self.dw_conv1(x)))


def vgg_block(inputs, outputs, convs):
    layers = []
    for _ in range(convs):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers)


class VggLka(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        inputs = 3
        for i, (outputs, convs) in enumerate(blocks, start=1):
            self.add_module(f"block{i}", vgg_block(inputs, outputs, convs))
            if i >= 3:
                self.add_module(f"lka{i}", LargeKernelAttention(outputs))
            inputs = outputs
        self.pool = nn.MaxPool2d(2, 2)
        self.dim = inputs
        self.classifier = nn.Linear(inputs, 14)

    def halves(self):
        p = self.pool
        early = (self.block1, p, self.block2, p, self.block3, self.lka3, p)
        trunk = nn.Sequential(*early, self.block4, self.lka4, p)
        return trunk, nn.Sequential(self.block5, self.lka5, p)

    def drop_classifier(self):
        self.classifier = nn.Identity()

    def forward(self, x):
        trunk, last = self.halves()
        return self.classifier(last(trunk(x)).mean((2, 3)))


class SpatialAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        width = max(dim // 8, 8)
        self.conv1 = nn.Conv2d(dim, width, 1)
        self.conv3 = nn.Conv2d(dim, width, 3, padding=1)
        self.conv5 = nn.Conv2d(dim, width, 5, padding=2)
        self.spatial_att = nn.Sequential(nn.Conv2d(3 * width, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return self.spatial_att(torch.cat([self.conv1(x), self.conv3(x), self.conv5(x)], 1))


class MomentumBlock(nn.Module):
    def __init__(self, final_block):
        super().__init__()
        self.final_block = copy.deepcopy(final_block)


class Bank(nn.Module):
    def __init__(self, slots, dim):
        super().__init__()
        self.register_buffer("memory", torch.zeros(slots, dim))
        self.register_buffer("index", torch.zeros((), dtype=torch.long))

    def forward(self, queries, k):
        normal = nn.functional.normalize
        similarity, nearest = (normal(queries) @ normal(self.memory).T).topk(k)
        return (similarity[..., None] * self.memory[nearest]).sum(1)


class Charm(nn.Module):
    """The reference's network in evaluation; it holds trunk and last block under two names."""

    def __init__(self, base_model, slots, k):
        super().__init__()
        dim = base_model.dim
        base_model.drop_classifier()
        self.base_model = base_model
        self.backbone, self.final_block = base_model.halves()
        self.momentum_final_block = MomentumBlock(self.final_block)
        self.spatial_attention = SpatialAttention(dim)
        self.memory_bank = Bank(slots, dim)
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(dim),
            nn.Linear(dim, 512),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(512, 14),
        )
        self.k = k

    def forward(self, x):
        trunk = self.backbone(x)
        main = self.final_block(trunk)
        anchor = self.momentum_final_block.final_block(trunk)
        pooled = (main * self.spatial_attention(main)).mean((2, 3))
        fused = pooled + anchor.mean((2, 3))
        return self.classifier(fused + self.memory_bank(fused, self.k))


def randomised(network):
    """The network in eval mode, with statistics and bank as if it had been trained."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.uniform_(0.5, 1.5)
                module.running_var.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
            elif isinstance(module, Bank):
                filled = len(module.memory) * 3 // 4
                module.memory[:filled].normal_(0.5, 0.5)
                module.index.fill_(filled)
    return network.eval()


def save(path, tensors):
    """Saves a state dict by torch's own means, as the suffix says."""
    import safetensors.torch

    if path.suffix == ".safetensors":
        # It refuses tensors that share memory, as the reference's two names of one tensor do.
        safetensors.torch.save_file({n: value.clone() for n, value in tensors.items()}, path)
    else:
        torch.save(tensors, path)


def load(path):
    import safetensors.torch

    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)
