"""What is drawn for a report: plans of open loops alone, which cost no evaluation."""

from indis import INDIS, Counted, Fixed, Sampler
from indis.bench.pictures import Picture, write_plans
from indis.methods import GOD, Look
from indis.storage import load_tensors
from small_cases import toy, toy_pairs


def test_plans_are_drawn_without_asking_the_denoiser(tmp_path):
    methods = {"base": INDIS(3), "indis": INDIS(3), "global": GOD(3), "look": Look(3)}
    samplers = {name: method.untrained(toy()) for name, method in methods.items()}
    samplers["base"] = Sampler(Fixed(samplers["indis"].policy.base), samplers["indis"].solver)
    assert samplers["indis"].policy.reads == "noise" and (
        samplers["global"].policy.reads == "nothing"
    )
    counter = Counted(toy())
    pictures = [
        Picture("teacher", 100, None),
        *(Picture(name, 3, sampler) for name, sampler in samplers.items()),
    ]
    write_plans(counter, toy_pairs(8), pictures, tmp_path)
    assert counter.calls == 0
    tensors, shared = load_tensors(tmp_path / "plans.safetensors")
    assert tensors["tau N=3"].shape == (8, 4) and set(shared) == {"base N=3", "global N=3"}
