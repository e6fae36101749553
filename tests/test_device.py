"""A model on another device: nothing stays behind, and the numbers are the CPU's."""

from dataclasses import replace

import pytest
import torch

from elsewhere import AWAY, Away, elsewhere
from indis import (
    EDM,
    INDIS,
    Counted,
    Form,
    Guided,
    Recipe,
    Wrapped,
    artifact,
    load_endpoints,
    losses,
    models,
    noise_from_seeds,
    teach_folder,
)
from indis.bench import budget
from indis.bench import foresight as sight
from indis.bench.pictures import Picture, write_plans, write_samples
from indis.bench.suite import ToyBench
from indis.denoise import device_of, to_device_of
from indis.endpoints import TeachConfig
from indis.evaluate import counted_nfe, frechet_of_seeds, sample_batches, score_pairs
from indis.methods import METHODS, heuristic
from indis.models.fashion import class_condition
from indis.models.fashion_features import frechet_judge
from indis.models.toy import load
from indis.solvers import SOLVERS
from methods.cases import CASES
from small_cases import (
    TinyClasses,
    contents,
    same_tensors,
    tiny_teacher,
    toy,
    toy_pairs,
    toy_teacher,
)

SHORT = Recipe(iterations=3, batch=32, lr=0.05, holdout=32, validate_every=2)
# Every registered one as it is by default, and variants that take other branches.
EVERY_SOLVER = (
    *SOLVERS,
    "ipndm:4",
    "adams_bashforth:3",
    "deis:3",
    "dpmpp:3",
    "unipc:3:bh1",
    "unipc:3:bh2",
    "midpoint:2:2",
)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class TinyThere(TinyClasses):
    """Images with conditions, on a device that is not the CPU."""

    device = AWAY


def run_of(case, denoiser):
    """Fit, judge, sample; everything that comes out, on the CPU."""
    method = replace(case, recipe=SHORT)
    process = method.tuning(denoiser, toy_pairs(96), models.loss(method.loss))
    states = list(process.run())
    scores = score_pairs(
        denoiser, process.sampler, toy_pairs(32, first=5000), models.loss(method.loss)
    )
    samples = torch.cat(list(sample_batches(denoiser, process.sampler, range(9), batch=5)))
    return process, states, scores, counted_nfe(denoiser, process.sampler), samples.cpu()


@pytest.mark.parametrize("name", list(METHODS))
def test_a_fit_elsewhere_gives_the_same_bits(name):
    process, *here = run_of(CASES[name], load())
    with elsewhere() as mode:
        moved, *there = run_of(CASES[name], load().to(AWAY))
        state = {k: v.cpu() for k, v in moved.sampler.policy.state_dict().items()}
    assert mode.asked > 1000
    # Times stay in double precision on the CPU, wherever the networks go.
    for value in moved.sampler.policy.state_dict().values():
        assert isinstance(value, Away) is not (value.dtype == torch.float64)
    assert here[:-1] == there[:-1] and torch.equal(here[-1], there[-1])
    assert same_tensors(state, dict(process.sampler.policy.state_dict()))


@pytest.mark.parametrize("analytic_first", [False, True])
@pytest.mark.parametrize("solver", EVERY_SOLVER)
def test_every_solver_samples_elsewhere(solver, analytic_first):
    sampler = heuristic(
        load(), solver=solver, grid="uniform", steps=6, analytic_first=analytic_first
    )
    noise = noise_from_seeds(range(4), (2,))
    with torch.no_grad():
        here = sampler(load(), noise)
        with elsewhere():
            there = to_device_of(sampler, load().to(AWAY))(load().to(AWAY), noise.to(AWAY))
            assert isinstance(there, Away)
            assert torch.equal(there.cpu(), here)


def test_a_guided_model_elsewhere_is_given_the_absent_condition_there():
    def without(condition):
        return class_condition(torch.full((len(condition.features),), 10))

    noise, asked = noise_from_seeds(range(4), TinyClasses.shape), TinyClasses().condition(range(4))
    with torch.no_grad():
        here = tiny_teacher()(Guided(TinyClasses(), 2.0, without), noise, asked)
        with elsewhere():
            there = to_device_of(tiny_teacher(), TinyThere())(
                Guided(TinyThere(), 2.0, without), noise.to(AWAY), asked.to(AWAY)
            )
            assert isinstance(there, Away) and torch.equal(there.cpu(), here)


def test_the_device_that_is_not_there_refuses_what_was_not_brought():
    sampler, noise = toy_teacher(3), noise_from_seeds([0, 1], (2,))
    with elsewhere():  # a plan's times are on the CPU wherever the samples are
        assert sampler(load().to(AWAY), noise.to(AWAY)).device == AWAY
    phi = INDIS(steps=2, width=8).untrained(load())  # whose network must be brought too
    with elsewhere(), pytest.raises(RuntimeError, match="on one device"):
        phi(load().to(AWAY), noise.to(AWAY))
    with elsewhere(), pytest.raises(RuntimeError, match="on one device"):
        phi.to(AWAY)(load().to(AWAY), noise)


def test_end_points_made_elsewhere_are_kept_on_the_cpu(tmp_path):
    config = TeachConfig(count=6, shard=4, batch=3)
    list(teach_folder(config, TinyClasses(), tiny_teacher(), tmp_path / "here", provenance={}))
    with elsewhere() as mode:
        list(teach_folder(config, TinyThere(), tiny_teacher(), tmp_path / "there", provenance={}))
    assert mode.asked > 20
    assert (tmp_path / "here" / "meta.json").read_bytes() == (
        tmp_path / "there" / "meta.json"
    ).read_bytes()
    data, _ = load_endpoints(tmp_path / "there")
    assert not isinstance(data.target, Away) and data.target.device.type == "cpu"


@pytest.mark.filterwarnings(
    "ignore:.*to a meta parameter"
)  # true of torch's meta tensors, not of these
def test_pictures_with_conditions_are_fitted_elsewhere_and_stored_from_there(tmp_path):
    def fitted(denoiser, folder):
        data = toy_images()
        method = INDIS(
            steps=3,
            width=8,
            reads="answers",
            weights=0.5,
            recipe=replace(SHORT, holdout=8, batch=8),
        )
        process = method.tuning(denoiser, data, losses.named("mse"))
        list(process.run())
        process.save(tmp_path / f"{folder}.checkpoint")
        again = method.tuning(denoiser, data, losses.named("mse"))
        again.resume(tmp_path / f"{folder}.checkpoint")
        artifact.save(again.sampler, tmp_path / folder)
        return (tmp_path / folder / "policy.safetensors").read_bytes()

    here = fitted(TinyClasses(), "here")
    with elsewhere():
        assert fitted(TinyThere(), "there") == here


def toy_images():
    from indis import endpoint_batches, gather

    return gather(list(endpoint_batches(TinyClasses(), tiny_teacher(), range(24))))


def test_budgets_are_measured_and_spent_elsewhere():
    def spent(denoiser):
        sampler, data = CASES["every-n"].untrained(denoiser), toy_pairs(96)
        table = torch.stack(
            [v for _, v in budget.measure(sampler, denoiser, data, losses.named("squared"))], dim=1
        )
        predictor = budget.foresee(
            sampler, data, table, budget.BudgetConfig(iterations=5, batch=16)
        )
        with torch.no_grad():
            price = budget.price_for(predictor(data.noise), predictor.counts, 3.5)
        own, counter = budget.BudgetSampler(sampler, predictor, price, 3.5), Counted(denoiser)
        return price, score_pairs(counter, own, data, losses.named("squared")), counter.samples

    here = spent(load())
    with elsewhere():
        assert spent(load().to(AWAY)) == here


def test_a_bench_judges_elsewhere():
    def judged(device):
        bench = ToyBench(device=device)
        sampler, data = bench.grid_sampler("uniform", 3, analytic_first=False), toy_pairs(64)
        return bench.judge(sampler, data, 64)["heldout_loss"]

    here = judged("cpu")
    with elsewhere():
        assert judged(AWAY) == here


def test_pictures_and_plans_are_drawn_elsewhere(tmp_path):
    pictures = [Picture("teacher", 4, None), Picture("student", 2, tiny_teacher(2))]
    write_samples(TinyClasses(), toy_images(), pictures, tmp_path / "here", count=5)
    write_plans(TinyClasses(), toy_images(), pictures, tmp_path / "here", count=5)
    with elsewhere():
        write_samples(TinyThere(), toy_images(), pictures, tmp_path / "there", count=5)
        write_plans(TinyThere(), toy_images(), pictures, tmp_path / "there", count=5)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_what_could_be_foreseen_is_observed_elsewhere_and_kept_on_the_cpu():
    def seen(denoiser):
        sampler = CASES["god"].untrained(denoiser)
        return sight.gathered(
            list(sight.observe(sampler, denoiser, toy_pairs(96), losses.named("squared")))
        )

    here = seen(load())
    with elsewhere():
        there = seen(load().to(AWAY))
    assert torch.equal(here.gradients, there.gradients) and same_tensors(here.views, there.views)


def test_the_feature_network_follows_the_images():
    function = Wrapped(lambda x, t, c: x.tanh(), EDM(), (1, 28, 28), Form.NOISE)
    sampler = heuristic(function, solver="euler", grid="polynomial:7", steps=2)
    pair = noise_from_seeds([0, 1], function.shape)
    here = (
        frechet_of_seeds(function, sampler, range(4), *frechet_judge()),
        models.loss("fashion")(*pair[:, None]),
    )
    with elsewhere():
        there = replace(function, device="meta")
        loss = to_device_of(models.loss("fashion"), there)
        assert frechet_of_seeds(there, sampler, range(4), *frechet_judge()) == pytest.approx(
            here[0], rel=1e-6
        )
        assert torch.equal(loss(*pair.to(AWAY)[:, None]).cpu(), here[1])


def test_a_denoiser_says_where_it_is_and_is_on_the_cpu_if_it_does_not():
    assert device_of(TinyClasses()) == torch.device("cpu")
    wrapped = Wrapped(lambda x, t, c: x, EDM(), (2,), Form.NOISE, device="meta")
    assert device_of(wrapped) == device_of(Counted(wrapped)) == AWAY
    model = load()
    counted = Counted(model)
    assert model.to(AWAY) is model
    assert device_of(counted) == AWAY


def test_the_image_model_is_where_its_network_is():
    pytest.importorskip("diffusers")
    model = models.load("fashion")
    twin = model.in_bf16()
    assert device_of(model) == torch.device("cpu")
    assert model.to("meta") is model
    assert device_of(model) == device_of(twin) == torch.device("meta")


@cuda
@pytest.mark.parametrize("name", list(METHODS))
def test_a_fit_on_cuda_ends_where_the_cpu_does(name):
    process, _, here, nfe, samples = run_of(CASES[name], load())
    moved, _, there, counted, drawn = run_of(CASES[name], load().to("cuda"))
    assert all(v.is_cuda for v in moved.sampler.policy.state_dict().values())
    assert counted == nfe
    assert there.heldout_loss == pytest.approx(here.heldout_loss, rel=0.02)
    assert (drawn - samples).abs().median() < 0.02


@cuda
def test_the_image_model_teaches_fits_and_samples_on_cuda(tmp_path):
    pytest.importorskip("diffusers")

    def end_levels(device):
        model, folder = models.load("fashion", device), tmp_path / str(device)
        teacher = heuristic(model, solver="ipndm:3", grid="polynomial:7", steps=6)
        list(
            teach_folder(
                TeachConfig(count=24, shard=12, batch=12), model, teacher, folder, provenance={}
            )
        )
        data, _ = load_endpoints(folder)
        fit = Recipe(iterations=2, batch=8, holdout=8)
        process = INDIS(steps=3, recipe=fit).tuning(model, data, models.loss("fashion"))
        list(process.run())
        artifact.save(process.sampler, folder / "artifact")
        sampler = artifact.load(folder / "artifact")
        return data.target, torch.cat(list(sample_batches(model, sampler, range(100, 104)))).cpu()

    for here, there in zip(end_levels("cpu"), end_levels("cuda"), strict=True):
        assert (here - there).abs().mean() < 0.01


def test_the_shared_toy_was_left_on_the_cpu():
    assert device_of(toy()) == torch.device("cpu")
