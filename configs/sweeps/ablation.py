"""Leave out or replace each part of CHARM and of its recipe, over three seeds, on SIMULATED images.

    charm-jax phantom --out data/ablation --test_images 1600 --min_test_positives 50
    charm-jax sweep ablation
    charm-jax sweep report ablation

The test images are sampled by finding, so that their prevalence is not that of ChestX-ray14.
"""


def get_sweep() -> dict:
    """Return the rows; the first one is compared with all others."""
    return {
        "config": "demo",
        "keys": {
            "preset": "published",
            "data.source": "nih_chest_xray14",
            "data.dir": "data/ablation",
        },
        "rows": [
            {"title": "published"},
            {"title": "vote", "keys": {"preset": "vote"}},
            {"title": "plain backbone", "keys": {"model.charm": False}},
            {"title": "without memory", "keys": {"model.retrieval_k": 0}},
            {"title": "without momentum branch", "keys": {"model.momentum_branch": False}},
            {"title": "without fusion", "keys": {"model.fusion": False}},
            # As many images as both stages see, at the rate of the first.
            {
                "title": "one stage",
                "keys": {
                    "stages.bce.epochs": 0,
                    "stages.focal.epochs": 8,
                    "stages.focal.peak_lr": 2e-3,
                },
            },
            *(
                {"title": f"stored: {rule}", "keys": {"model.rarity": rule}}
                for rule in ("norm_outlier", "angle_outlier", "rare_finding")
            ),
            *(
                {"title": f"stage 2: {loss}", "keys": {"stages.focal.loss": loss}}
                for loss in ("bce", "asymmetric")
            ),
        ],
        "seeds": [0, 1, 2],
    }
