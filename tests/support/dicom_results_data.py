"""A prediction that DICOM results are written of."""

import numpy as np

LIMITS = {"Effusion": 0.3, "Mass": 0.5, "Hernia": None, "Rippenbruch (älter), " + "x" * 60: 0.2}
OWN = list(LIMITS)[-1]
RECORD = {
    "file": "in/Doe_Jane_1970.dcm",
    "findings": ["Effusion"],
    "unfamiliar": False,
    "unfamiliar_in": [],
    "seen_in_training": False,
    "scores": {"Effusion": 0.75, "Mass": 0.123457, "Hernia": 0.4, OWN: 0.01},
    "evidence": [{"case": "someone_else.png", "patient": "someone else", "labels": ["Mass"]}],
    "run": "/home/somebody/runs/demo",
    "checkpoint": "focal/120",
    "memory": "trained",
    "trained_on_simulated": True,
    "uncalibrated": ["Hernia"],
}
HEATS = {name: np.eye(7, dtype=np.float32) for name in ("attention", "Effusion")}
