"""Make the golden files of EfficientNet-Lite0 from its layers in PyTorch (see RECIPE.md)."""

import json
import sys
from pathlib import Path

import fill
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from torch_networks import Charm, EfficientNetLite, torch

from charm_jax.models.backbones import BACKBONES

ARCH, FOLDER = "efficientnet_lite0", Path(__file__).resolve().parent
STAGES = BACKBONES[ARCH].trunk.args[0]  # the rows of the paper's table
GRADIENTS = ("conv_stem.weight", "blocks.0.0.conv_dw.weight", "blocks.2.0.conv_dw.weight")
GRADIENTS += ("blocks.2.0.bn2.weight", "blocks.3.1.bn2.bias", "bn2.weight")
NORMS = ("bn1", "blocks.2.0.bn2", "bn2")


def network(dtype):
    net = EfficientNetLite(STAGES)
    net.classifier = torch.nn.Linear(net.dim, 1000)
    names = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    tensors = {n: torch.from_numpy(v) for n, v in fill.weights(ARCH, names).items()}
    net.load_state_dict(tensors, strict=True)
    return net.to(dtype).eval(), names


def stages(net, x):
    """Outputs by key, as the stored ones are named."""
    x = torch.nn.functional.relu6(net.bn1(net.conv_stem(x)))
    out = {"stage/stem": x}
    for i, stage in enumerate(net.blocks):
        x = out[f"stage/blocks.{i}"] = stage(x)
    x = torch.nn.functional.relu6(net.bn2(net.conv_head(x)))
    return out | {"stage/conv_head": x, "features": x, "logits": net.classifier(x.mean((2, 3)))}


def plain(size, dtype):
    net, _ = network(dtype)
    with torch.inference_mode():
        out = stages(net, torch.from_numpy(fill.image(2, size)).to(dtype))
    return {f"{size}/{key}": value.numpy() for key, value in out.items()}


def trained():
    """One pass in training mode, in float64: gradients of the mean squared features."""
    net, _ = network(torch.float64)
    net.train()
    features = stages(net, torch.from_numpy(fill.image(8, 64)).double())["features"]
    features.square().mean().backward()
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    out = {f"train64/grad/{name}": tensors[name].grad.numpy() for name in GRADIENTS}
    for norm in NORMS:
        for leaf in ("running_mean", "running_var"):
            out[f"train64/bn/{norm}.{leaf}"] = tensors[f"{norm}.{leaf}"].numpy()
    return out


def main():
    arrays, noise = trained(), {}
    for size in (128, 224):
        single, double = (plain(size, dtype) for dtype in (torch.float32, torch.float64))
        for key, value in single.items():
            name = key.partition("/")[2]
            exact = double[key]
            error = np.abs(value - exact).max() / np.sqrt(np.mean(exact**2))
            noise[f"plain/{key}"] = float(f"{error:.2g}")
            print(key, value.shape, fill.stats(value).round(3), noise[f"plain/{key}"])
            if name == "logits":
                arrays[key] = value
                continue
            arrays |= {f"{key}/stats": fill.stats(value), f"{key}/shape": np.array(value.shape)}
            if name != "features":
                arrays[f"{key}/sample"] = fill.sample(value, 2048)
            elif size == 224:
                arrays[f"{key}/sample"] = fill.sample(value, 8192)
            else:
                arrays[key] = value
    np.savez_compressed(FOLDER / f"plain_{ARCH}.npz", **arrays)
    _, names = network(torch.float32)
    with_charm = Charm(EfficientNetLite(STAGES), 512, 3).state_dict()
    own = {n: list(v.shape) for n, v in with_charm.items()}
    twice = ("base_model.", "backbone.", "final_block.", "memory_bank.")
    addresses = {v.data_ptr(): n for n, v in with_charm.items() if n.startswith("base_model.")}
    spec = {
        "arch": ARCH,
        "feature_dim": 1280,
        "network": {name: list(shape) for name, shape in names.items()},
        "charm_network": sorted(n for n in names if not n.startswith("classifier.")),
        "charm": {n: shape for n, shape in own.items() if not n.startswith(twice)},
        "charm_alias": {
            n: addresses[v.data_ptr()].removeprefix("base_model.")
            for n, v in with_charm.items()
            if n.startswith(("backbone.", "final_block."))
        },
        "float32_vs_float64": noise,
    }
    (FOLDER / f"{ARCH}.json").write_text(json.dumps(spec, indent=0) + "\n")


if __name__ == "__main__":
    main()
