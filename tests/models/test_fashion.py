"""The Fashion-MNIST model: its formulas with random weights, its training, and what ships."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")

from indis import Form, models  # noqa: E402
from indis.bench.train_fashion import TrainConfig, Trainer  # noqa: E402
from indis.denoise import FeatureDenoiser  # noqa: E402
from indis.models import fashion  # noqa: E402
from indis.models.edm import preconditioning  # noqa: E402
from indis.models.fashion import PRECOND, Fashion, FashionNetwork, class_condition  # noqa: E402
from indis.models.fashion_data import DEBIAN_FOLDER, read  # noqa: E402
from indis.pixels import to_pixels  # noqa: E402
from indis.storage import load_tensors, save_tensors  # noqa: E402
from small_cases import contents, same_tensors, sentence  # noqa: E402

TIMES = [0.002, 0.05, 0.6, 9.0, 80.0]
LABELS = [3, 0, 9, 10, 7]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Fashion(FashionNetwork())


@pytest.fixture(scope="module")
def precise(model):
    """The same weights in float64, behind the label."""
    network = FashionNetwork()
    network.load_state_dict(model.network.state_dict())
    network = network.double().eval().requires_grad_(False)
    return lambda scaled, level: network(scaled, level, torch.tensor(LABELS))


def noisy(dtype=torch.float32):
    """Images of the model's own scale at every one of :data:`TIMES`."""
    generator = torch.Generator().manual_seed(1)
    image, noise = torch.randn(2, len(TIMES), 1, 28, 28, generator=generator, dtype=torch.float64)
    t = torch.tensor(TIMES, dtype=torch.float64)
    return (0.7 * image + t[:, None, None, None] * noise).to(dtype), t


def test_the_answer_is_the_slope_of_the_denoised_image(precise):
    x, t = noisy(torch.float64)
    with torch.no_grad():
        slope = preconditioning.noise_prediction(precise, x, t, PRECOND)
        denoised = preconditioning.denoise(precise, x, t, PRECOND)
    torch.testing.assert_close(slope, (x - denoised) / t[:, None, None, None], rtol=1e-9, atol=1e-9)
    assert (denoised - x).abs().amax((1, 2, 3)).min() > 1e-3


def test_the_model_answers_in_noise_form_and_in_the_dtype_of_the_samples(model, precise):
    assert model.native is Form.NOISE
    x, t = noisy()
    with torch.no_grad():
        answer = model(x, t, class_condition(torch.tensor(LABELS)))
        expected = preconditioning.noise_prediction(precise, x.double(), t, PRECOND)
        double = model(x.double(), t, class_condition(torch.tensor(LABELS)))
    assert (answer.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(answer.double(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(double.float(), answer)


def test_bfloat16_moves_the_answer_a_little(model):
    x, t = noisy()
    condition = class_condition(torch.tensor(LABELS))
    with torch.no_grad():
        plain, half = model(x, t, condition), model.in_bf16()(x, t, condition)
    error = (plain - half).square().mean().sqrt() / plain.square().mean().sqrt()
    assert 0 < error < 0.05
    assert half.dtype == torch.float32


def test_preconditioning_by_hand():
    """A network that echoes its first input, at sigma = 0.7 sqrt(3): the total deviation is 1.4."""
    x, sigma = (
        torch.tensor([[2.8]], dtype=torch.float64),
        torch.tensor([0.7 * 3**0.5], dtype=torch.float64),
    )
    levels = []

    def network(scaled, level):
        levels.append(level.item())
        return scaled

    denoised = preconditioning.denoise(network, x, sigma, PRECOND)
    assert levels == pytest.approx([sigma.log().item() / 4])
    assert denoised.item() == pytest.approx(0.25 * 2.8 + 0.7 * 3**0.5 / 2 * 2.0)


def test_each_row_has_its_own_time_and_label(model):
    x, t = noisy()
    together = model(x, t, class_condition(torch.tensor(LABELS)))
    for i, label in enumerate(LABELS):
        alone = model(x[i : i + 1], t[i : i + 1], class_condition(torch.tensor([label])))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-4)
    others = model(x, t, class_condition(torch.tensor(LABELS).flip(0)))
    assert (others - together).abs().amax((1, 2, 3))[[0, 1, 3, 4]].min() > 1e-4


def test_its_features_are_the_channel_mean_of_the_middle_block(model):
    assert isinstance(model, FeatureDenoiser)
    x, t = noisy()
    condition, seen = class_condition(torch.tensor(LABELS)), []
    handle = model.network.unet.mid_block.register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    answer, features = model.with_features(x.requires_grad_(), t, condition)
    handle.remove()
    assert seen[0].shape == (5, 96, 7, 7) and seen[0].requires_grad
    torch.testing.assert_close(features, seen[0].detach().mean(1).reshape(5, 49))
    assert answer.requires_grad and not features.requires_grad
    torch.testing.assert_close(answer, model(x, t, condition), rtol=0, atol=0)
    with torch.inference_mode():
        half = Fashion(copy.deepcopy(model.network)).in_bf16()
        other = half.with_features(x, t, condition)[1]
        assert other.dtype == torch.float32
        assert not torch.equal(other, features)


def test_its_features_are_those_of_the_caller_s_answer_in_every_thread(model):
    def features(scale):
        x, t = noisy()
        with torch.inference_mode():
            return model.with_features(scale * x, t, class_condition(torch.tensor(LABELS)))[1]

    scales = [0.5 + i / 8 for i in range(8)]
    expected = [features(scale) for scale in scales]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for here, there in zip(expected, pool.map(features, scales), strict=True):
                torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)


def test_the_gradient_in_time_is_that_of_the_differences(precise):
    x, t = noisy(torch.float64)
    t.requires_grad_()
    pull = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def value(times):
        return (pull * preconditioning.noise_prediction(precise, x, times, PRECOND)).sum((1, 2, 3))

    (gradient,) = torch.autograd.grad(value(t).sum(), t)
    # The embedding of time is float32 inside whatever the weights are, so the step must not be
    # tiny.
    step = 1e-3 * t.detach()
    with torch.no_grad():
        difference = (value(t + step) - value(t - step)) / (2 * step)
    torch.testing.assert_close(gradient, difference, rtol=5e-3, atol=0)


def test_the_gradient_reaches_the_times_and_samples_and_no_weight(model):
    x, t = noisy()
    x.requires_grad_(), t.requires_grad_()
    model(x, t, class_condition(torch.tensor(LABELS))).square().sum().backward()
    for gradient in (t.grad, x.grad.abs().amax((1, 2, 3))):
        assert gradient.isfinite().all() and (gradient != 0).all()
    assert t.grad.dtype == torch.float64
    assert all(p.grad is None for p in model.network.parameters())


def test_a_class_is_a_unit_over_the_root_of_ten_and_no_label_is_zero():
    condition = class_condition(torch.tensor([2, 10, 9]))
    assert condition.inputs["label"].tolist() == [2, 10, 9]
    expected = torch.zeros(3, 10)
    expected[0, 2] = expected[2, 9] = 10**-0.5
    torch.testing.assert_close(condition.features, expected)


def test_ten_consecutive_seeds_show_every_class_once(model):
    assert model.condition(list(range(1_000_007, 1_000_017))).inputs["label"].tolist() == [
        7,
        8,
        9,
        0,
        1,
        2,
        3,
        4,
        5,
        6,
    ]


@pytest.mark.parametrize("bad", [-1, 11])
def test_a_label_out_of_range_is_named(bad):
    with pytest.raises(ValueError) as error:
        class_condition(torch.tensor([0, bad]))
    assert "label must be 0 ... 9 or 10 for no label" in sentence(error) and str(bad) in sentence(
        error
    )


TRAINING = TrainConfig(images=32, batch=4, lr=1e-2, warmup=2, label_dropout=0.3, bf16=False)


def batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return images, torch.arange(12) % 10


def advance(trainer, steps):
    run = trainer.run(*batches())
    return [next(run).loss for _ in range(steps)]


def weights(trainer):
    return {k: v.clone() for k, v in trainer.network.state_dict().items()}


@pytest.fixture(scope="module")
def straight():
    """Three uninterrupted steps: their losses, and the trainer."""
    trainer = Trainer(TRAINING)
    return advance(trainer, 3), trainer


def test_a_file_that_something_else_wrote_is_no_checkpoint(tmp_path):
    save_file({"network.x": torch.zeros(1)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(
        ValueError,
        match=r"is no checkpoint of this version: .*config, step missing from its header",
    ):
        Trainer(TRAINING).resume(tmp_path / "checkpoint.safetensors")


def test_training_is_a_function_of_its_seed(straight):
    losses, trainer = straight
    torch.manual_seed(99)
    again = Trainer(TRAINING)
    assert advance(again, 3) == losses
    assert same_tensors(weights(again), weights(trainer))
    other = Trainer(TrainConfig(**{**vars(TRAINING), "seed": 1}))
    assert advance(other, 1)[0] != losses[0]


def test_training_goes_on_bit_for_bit_after_an_interrupt(straight, tmp_path):
    losses, trainer = straight
    first = Trainer(TRAINING)
    begun = advance(first, 2)
    first.save(tmp_path / "checkpoint.safetensors")
    second = Trainer(TRAINING)
    second.resume(tmp_path / "checkpoint.safetensors")
    assert second.step == 2
    assert begun + advance(second, 1) == losses
    assert same_tensors(weights(second), weights(trainer))
    assert same_tensors(second.average, trainer.average)


def test_a_checkpoint_of_another_config_is_refused(straight, tmp_path):
    straight[1].save(tmp_path / "checkpoint.safetensors")
    other = Trainer(TrainConfig(**{**vars(TRAINING), "lr": 1e-3}))
    with pytest.raises(ValueError, match="another config"):
        other.resume(tmp_path / "checkpoint.safetensors")
    assert other.step == 0


def test_the_average_starts_with_a_short_memory():
    trainer = Trainer(TRAINING)
    start = weights(trainer)
    advance(trainer, 1)
    now = weights(trainer)
    name = "unet.conv_in.weight"
    expected = start[name] + (1 - 2 / 11) * (now[name] - start[name])
    torch.testing.assert_close(trainer.average[name], expected)
    assert (now[name] - start[name]).abs().max() > 1e-3


def test_the_loss_is_the_error_of_the_network_against_its_unit_target():
    """EDM's weight cancels the output scale: the weighted error is that of F against (x - c_skip
    noisy) / c_out."""
    trainer = Trainer(TRAINING)
    generator = torch.Generator().manual_seed(3)
    x, noise = torch.randn(2, 4, 1, 28, 28, generator=generator)
    sigma, labels = torch.tensor([0.05, 0.3, 1.0, 5.0]), torch.tensor([0, 1, 10, 3])
    s, sd = sigma[:, None, None, None], PRECOND.sigma_data
    total = (s**2 + sd**2).sqrt()
    with torch.no_grad():
        answer = trainer.network((x + s * noise) / total, sigma.log() / 4, labels)
        target = (x - sd**2 / total**2 * (x + s * noise)) / (s * sd / total)
        expected = (answer - target).square().mean()
        assert trainer._loss(x, labels, sigma, noise).item() == pytest.approx(
            expected.item(), rel=1e-4
        )


def test_a_loss_that_is_not_finite_stops_before_it_does_harm():
    trainer = Trainer(TrainConfig(images=32, batch=4, log_sigma_mean=1000, bf16=False))
    before = weights(trainer)
    with pytest.raises(FloatingPointError) as error:
        advance(trainer, 1)
    assert "at step 1" in sentence(error)
    assert trainer.step == 0 and same_tensors(weights(trainer), before)


def test_exported_weights_are_the_average_in_half_precision(straight, tmp_path):
    _, trainer = straight
    trainer.export(tmp_path / "fashion.safetensors")
    loaded = fashion.load(tmp_path / "fashion.safetensors")
    expected = {k: v.half().float() for k, v in trainer.average.items()}
    assert same_tensors(dict(loaded.network.state_dict()), expected)
    assert not same_tensors(dict(loaded.network.state_dict()), weights(trainer))
    assert load_tensors(tmp_path / "fashion.safetensors")[1] == {"images": 3 * 4}
    started = Trainer(TRAINING, init=tmp_path / "fashion.safetensors")
    assert same_tensors(weights(started), expected)
    assert list(contents(tmp_path)) == ["fashion.safetensors"]


def test_the_fingerprint_of_a_model_follows_its_weights(straight, tmp_path):
    trainer = straight[1]
    trainer.export(tmp_path / "a.safetensors")
    trainer.export(tmp_path / "b.safetensors")
    trainer.average = {k: v + 1e-2 for k, v in trainer.average.items()}
    trainer.export(tmp_path / "c.safetensors")
    prints = [fashion.load(tmp_path / f"{name}.safetensors").fingerprint for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_weights_that_are_missing_damaged_or_anothers_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match=r"w.safetensors"):
        fashion.load(path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError) as error:
        fashion.load(path)
    assert f"{path} is damaged" in sentence(error)
    save_tensors(path, {"x": torch.ones(1)})
    for call in (lambda: fashion.load(path), lambda: Trainer(TRAINING, init=path)):
        with pytest.raises(ValueError) as error:
            call()
        assert f"{path} does not hold the weights" in sentence(error)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    config = TrainConfig(images=1000, batch=1, lr=0.5, warmup=10)
    assert config.steps == 1000
    assert [config.lr_at(s) for s in (0, 4, 9)] == pytest.approx([0.05, 0.25, 0.5])
    assert [config.lr_at(s) for s in (500, 1000)] == pytest.approx([0.25, 0], abs=1e-12)


@pytest.mark.parametrize("field", ["images", "batch"])
def test_sizes_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        TrainConfig(**{field: 0})


@pytest.mark.skipif(not fashion.WEIGHTS.exists(), reason="no weights are shipped")
@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason=f"{DEBIAN_FOLDER} is missing")
@pytest.mark.parametrize(("sigma", "factor"), [(0.5, 8.0), (2.0, 20.0)])
def test_the_shipped_model_removes_most_of_the_noise(sigma, factor):
    images, labels = read("t10k")
    x = to_pixels(images[:64])
    noise = sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    model, t = fashion.load(), torch.full((64,), sigma)
    with torch.no_grad():
        denoised = x + noise - sigma * model(x + noise, t, class_condition(labels[:64]))
        wrong = x + noise - sigma * model(x + noise, t, class_condition((labels[:64] + 5) % 10))
    error = (denoised - x).square().mean()
    assert factor * error < noise.square().mean()
    assert error < (wrong - x).square().mean()


def test_a_pickle_of_weights_is_named_and_not_executed(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "network.pkl")
    with pytest.raises(ValueError, match="is a pickle, which is never executed") as error:
        models.load(f"fashion:{tmp_path / 'network.pkl'}")
    sentence(error)
