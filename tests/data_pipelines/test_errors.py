from data_pipelines.errors import did_you_mean


def test_the_nearest_name_is_suggested():
    assert did_you_mean("patients", ["official", "patient"]) == (
        "did you mean 'patient'? (known: official, patient)"
    )


def test_nothing_is_suggested_where_nothing_is_near():
    assert did_you_mean("xyz", ["official", "patient"]) == "choose one of official, patient."


def test_a_long_list_is_cut_short():
    text = did_you_mean("x", [f"{i:08d}_000.png" for i in range(1000)])
    assert text.endswith("00000004_000.png and 995 more.")
