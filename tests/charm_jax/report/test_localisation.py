"""Pictures of where a network looks beside the boxes."""

import report_data

from charm_jax.report import localisation


def test_a_map_without_heat_has_no_peak():
    evaluated = report_data.evaluated()
    found = report_data.localisation(evaluated)
    found.maps["grad_cam"][:] = 0
    for tile in localisation.tiles(found, evaluated, report_data.read):
        assert tile.facts[0] == "Grad-CAM: 0 everywhere"
        assert tile.facts[1] in (
            "Finer Grad-CAM: peak inside",
            "Finer Grad-CAM: peak outside",
        )
