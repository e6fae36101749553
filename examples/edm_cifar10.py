"""Fit a plan for all samples and one for each, of three calls, to EDM's CIFAR-10 network.

indis convert edm edm-cifar10-32x32-uncond-vp.pkl --out edm-cifar10
python examples/edm_cifar10.py --checkpoint edm-cifar10
python examples/edm_cifar10.py --tiny      # random weights and few of everything, seconds on a CPU
"""

import argparse
from pathlib import Path

import torch

import indis
from indis.cli.pictures import Strip, save_sheet
from indis.models.edm import EDMModel
from indis.models.edm.networks import SongUNet
from indis.models.edm.preconditioning import EDMPrecond


def tiny_model():
    """CIFAR-10's network with narrow layers and random weights."""
    torch.manual_seed(0)
    network = SongUNet(32, 3, 3, model_channels=4, channel_mult=(1, 1, 1), num_blocks=1)
    return EDMModel(network, EDMPrecond(), 32)


parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true")
parser.add_argument("--checkpoint", default="edm-cifar10")
args = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
if args.tiny:
    model, loss, count = tiny_model(), indis.losses.named("mse"), 24
    recipe = {"iterations": 4, "batch": 4, "holdout": 8}
else:
    model, count = indis.models.load(f"edm:{args.checkpoint}", device), 10_000
    loss, recipe = indis.losses.named("lpips"), {"iterations": 1000, "batch": 48}

paper = {"solver": "ipndm:4", "grid": "polynomial:7"}
teacher = indis.heuristic(model, steps=30, **paper)
data = indis.teach(model, teacher, seeds=range(count))
unseen = indis.teach(model, teacher, seeds=range(1_000_000, 1_000_008))
samplers = {"plain": indis.heuristic(model, steps=3, **paper)}
for method in (indis.GOD(steps=3, **paper), indis.INDIS(steps=3, **paper)):
    fit = method.with_recipe(**recipe).tuning(model, data, loss)
    for state in fit.run():
        print(f"{method.name} {state.step}/{state.iterations} {state.loss:.5f}", end="\r")
    print()
    samplers[method.name] = fit.sampler
    indis.artifact.save(fit.sampler, f"cifar10-n3-{method.name}")

strips = [Strip(unseen.target, "teacher, 30 calls")]
for name, sampler in samplers.items():
    score = indis.evaluate.score_pairs(model, sampler, unseen, loss)
    print(f"{name:6} {score.heldout_loss:.5f} from the teacher on {score.pairs} unseen seeds")
    (pictures,) = indis.evaluate.sample_batches(model, sampler, unseen.seeds.tolist())
    strips.append(Strip(pictures.cpu(), f"{name}, 3 calls"))
save_sheet(strips, [str(int(seed)) for seed in unseen.seeds], Path("cifar10-n3.png"))
