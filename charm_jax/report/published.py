"""Published AUROCs on ChestX-ray14, each with the split that it was taken on."""

import dataclasses

from data_pipelines.tables.findings import NIH_FINDINGS

SPLITS = {
    "official": "official test list",
    "random": "random patients",
    "leaking": "random patients, leaks between stages",
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A macro AUROC.

    Attributes:
        macro: mean over the 14 findings, with the digits of the source.
        model: name, and what it was pre-trained on where that matters.
        split: key of ``SPLITS``.
        selected_on: part that the model was chosen on; empty where the source does not say.
        source: where the number is printed.
        note: what else is said of it.
    """

    macro: str
    model: str
    split: str
    selected_on: str
    source: str
    note: str = ""


RESULTS = (
    Published(
        "0.835",
        "EVA-X-B",
        "official",
        "test",
        "hustvl/EVA-X README",
        "520k chest X-rays, unlabelled",
    ),
    Published(
        "0.8305",
        "Ark-6 Swin-B",
        "official",
        "validation",
        "jlianglab/Ark poster",
        "± 0.0009; 704k labelled chest X-rays",
    ),
    Published("0.830", "Medical-MAE ViT-B", "official", "test", "lambert-x/medical_mae README"),
    Published(
        "0.8195",
        "Swin-B, SimMIM on ImageNet",
        "official",
        "validation",
        "jlianglab/Ark poster",
        "ten crops",
    ),
    Published(
        "0.8173", "Swin-B, ImageNet", "official", "validation", "jlianglab/Ark poster", "ten crops"
    ),
    Published(
        "0.7704",
        "Swin-B, random weights",
        "official",
        "validation",
        "jlianglab/Ark poster",
        "ten crops",
    ),
    Published("0.810", "SwinCheX", "official", "", "arXiv 2206.04246"),
    Published("0.807", "DNetLoc", "official", "", "arXiv 1803.04565"),
    Published("0.7451", "Wang et al., v5", "official", "", "ekagra-ranjan/AE-CNN README"),
    Published(
        "0.8752",
        "CHARM-Xray",
        "leaking",
        "test",
        "its train.ipynb",
        "2,794 of the test images; best of 26 runs",
    ),
    Published(
        "0.8695",
        "VGG-CBAM",
        "leaking",
        "",
        "NNNguyenDuyyy/FETC_CBAM_Enhanced_CNN",
        "all 22,356 test images",
    ),
    Published("0.8682", "Momentum-anchored fusion", "random", "", "arXiv 2605.02292"),
    Published("0.8543", "SynthEnsemble", "random", "", "arXiv 2311.07750"),
    Published("0.8508", "zoogzog/chexnet", "random", "", "its README"),
    Published("0.847", "arnoweng/CheXNet, improved", "random", "", "its README"),
    Published("0.8414", "CheXNet", "random", "", "arXiv 1711.05225"),
    Published(
        "0.811",
        "TorchXRayVision resnet50-res512-all",
        "random",
        "",
        "its BENCHMARKS.md",
        "random 20 %",
    ),
    Published(
        "0.774",
        "TorchXRayVision densenet121-res224-all",
        "random",
        "",
        "its BENCHMARKS.md",
        "random 20 %",
    ),
)

# The order in which the papers print the findings.
_PRINTED = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
_BY_FINDING = {
    ("DNetLoc", "official"): (
        *("0.767", "0.883", "0.828", "0.709", "0.821", "0.758", "0.731"),
        *("0.846", "0.745", "0.835", "0.895", "0.818", "0.761", "0.896"),
    ),
    ("CheXNet", "random"): (
        *("0.8094", "0.9248", "0.8638", "0.7345", "0.8676", "0.7802", "0.7680"),
        *("0.8887", "0.7901", "0.8878", "0.9371", "0.8047", "0.8062", "0.9164"),
    ),
    ("CHARM-Xray", "leaking"): (
        *("0.8334", "0.9315", "0.9170", "0.7393", "0.9090", "0.8301", "0.7758"),
        *("0.9082", "0.8194", "0.9185", "0.9456", "0.8609", "0.8782", "0.9854"),
    ),
}
# (model, split) -> finding -> AUROC.
BY_FINDING = {
    paper: dict(sorted(zip(_PRINTED, values, strict=True), key=lambda f: NIH_FINDINGS.index(f[0])))
    for paper, values in _BY_FINDING.items()
}
