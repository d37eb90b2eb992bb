"""Compare remedies for rare findings, and augmentations, over three seeds, on SIMULATED images.

    charm-jax phantom --out data/tail --train_images 2400 --test_images 1600 --image_size 32 \
        --min_train_positives 12 --min_test_positives 20
    charm-jax sweep tail
    charm-jax sweep report tail
    python benchmarks/tail.py runs/tail

Findings are as frequent as in ChestX-ray14, but for the rarest, which the options above raise to 12
and 20 images.
"""

_STAGES = ("bce", "focal")


def get_sweep() -> dict:
    """Return the rows; the first one is compared with all others."""
    return {
        "config": "demo",
        "keys": {
            "data.source": "nih_chest_xray14",
            "data.dir": "data/tail",
            "data.image_size": 32,
        },
        "rows": [
            {"title": "default"},
            *(
                {"title": title, "keys": {f"stages.{stage}.{key}": value for stage in _STAGES}}
                for title, key, value in (
                    ("class-balanced sampling", "sampling", "class_balanced"),
                    ("class-aware sampling", "sampling", "class_aware"),
                    ("effective-number weights", "class_weights", "effective"),
                    ("positive weights", "class_weights", "positive"),
                    ("logit adjustment", "loss", "logit_adjusted"),
                    ("label smoothing", "label_smoothing", 0.1),
                    ("mixup", "mixup", 0.2),
                )
            ),
            {
                "title": "LDAM-DRW",
                "keys": {
                    "stages.bce.loss": "ldam",
                    "stages.focal.loss": "ldam",
                    "stages.focal.class_weights": "effective",
                },
            },
            {"title": "no flip", "keys": {"augment.flip": False}},
            {
                "title": "scale and translate",
                "keys": {"augment.scale": 0.1, "augment.translate": 0.05},
            },
            {
                "title": "brightness and contrast",
                "keys": {"augment.brightness": 0.1, "augment.contrast": 0.2},
            },
            {"title": "Gaussian noise", "keys": {"augment.noise": 0.02}},
            {"title": "random erasing", "keys": {"augment.erase": 0.5}},
        ],
        "seeds": [0, 1, 2],
    }
