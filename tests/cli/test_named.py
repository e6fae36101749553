"""A refusal names the option that is to be changed, and comes before any work."""

import shutil

from cli.lines import FIT, refused
from indis.cli.bench import overhead

GOD = FIT.replace("--width 8 --depth 1", "")


def test_a_loss_of_images_is_named_where_points_are_judged(indis, work):
    assert indis(f"fit --data data --out every {FIT.replace('--steps 3', '--steps 2-3')}")[0] == 0
    assert indis(f"fit --method god --data data --out god {GOD}")[0] == 0
    for line in (
        "bench budget --artifact every --heldout test --out x --mean 3",
        "bench foresight --artifact god",
    ):
        assert "loss must suit model toy, got fashion" in refused(
            indis, f"{line} --data data --loss fashion"
        )


def test_of_a_folder_of_artifacts_those_in_it_are_named(indis, work):
    for name in ("mean4", "mean5"):
        shutil.copytree("fitted", f"bought/{name}")
    told = (
        "artifact must be one folder, got bought, which holds several: bought/mean4, bought/mean5"
    )
    for line in (
        "sample --model toy --out s.safetensors",
        "evaluate --heldout test --loss mse",
        "bench overhead --model toy",
    ):
        assert refused(indis, f"{line} --artifact bought") == f"indis: error: {told}\n"


def test_all_artifacts_are_read_before_one_is_timed(indis, work, monkeypatch):
    monkeypatch.setattr(overhead, "pairs", None)
    said = refused(indis, "bench overhead --model toy --artifact fitted nowhere")
    assert "artifact must be a folder or one of" in said and "got 'nowhere'" in said
