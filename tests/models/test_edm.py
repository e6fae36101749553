"""EDM checkpoints: the networks against published ones, their preconditionings, and the family."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny_edm
from elsewhere import AWAY, elsewhere
from indis import Form, models, noise_from_seeds
from indis.denoise import ClassConditional, FeatureDenoiser, to_device_of
from indis.methods import AMED
from indis.models.edm import EDMModel, drawn_label
from indis.models.edm.layers import Conv, attend
from indis.models.edm.networks import NETWORKS
from indis.models.edm.preconditioning import (
    EDMPrecond,
    IDDPMPrecond,
    VEPrecond,
    VPPrecond,
    denoise,
    noise_prediction,
    schedule,
)
from indis.storage import load_tensors
from small_cases import sentence

SONG = {"in_channels": 3, "out_channels": 3, "augment_dim": 9}
CIFAR = SONG | {"img_resolution": 32, "channel_mult": [2, 2, 2]}
NCSN = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
ADM = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000}
PUBLISHED = {
    "cifar10-uncond-vp": ("SongUNet", CIFAR, 55_733_891, 425),
    "cifar10-cond-vp": ("SongUNet", CIFAR | {"label_dim": 10}, 55_735_299, 427),
    "cifar10-uncond-ve": ("SongUNet", CIFAR | NCSN, 56_397_827, 432),
    "ffhq-uncond-vp": ("SongUNet", SONG | {"img_resolution": 64}, 61_805_571, 553),
    "imagenet-cond-adm": ("DhariwalUNet", ADM, 295_899_267, 553),
}
# Outputs of NVlabs/edm at 008a4e5 on the weights of tiny_edm, every fifth pixel, float64.
REFERENCE = Path(__file__).parents[1] / "data" / "edm_networks.safetensors"
CASES = {
    "ddpm++": {"resolution": 32},
    "ddpm++ class": {"label_dim": 10},
    "ncsn++": {},
    "adm": {"label_dim": 20},
    "adm augment": {"augment_dim": 4},
}
PRECONDS = {"edm": EDMPrecond(), "vp": VPPrecond(), "ve": VEPrecond(), "iddpm": IDDPMPrecond()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint without classes, and one with ten."""
    place = tmp_path_factory.mktemp("edm")
    tiny_edm.write(place / "plain", resolution=32)
    tiny_edm.write(place / "classes", label_dim=10)
    return place


@pytest.fixture(scope="module")
def plain(folder):
    return models.load(f"edm:{folder}/plain")


@pytest.fixture(scope="module")
def classes(folder):
    return models.load(f"edm:{folder}/classes")


def network_and_inputs(case):
    """A small network in float64 and the arguments of a call, the last class being none."""
    kind, given = tiny_edm.arguments(case.split()[0], **CASES[case])
    generator = torch.Generator().manual_seed(2)
    size = given["img_resolution"]
    x = torch.randn(3, 3, size, size, generator=generator, dtype=torch.float64)
    labels, augment = None, None
    if dim := given["label_dim"]:
        labels = torch.eye(dim, dtype=torch.float64)[[2, 1, 0]]
        labels[2] = 0
    if dim := given.get("augment_dim"):
        augment = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    level = torch.tensor([-1.5, 0.1, 1.1], dtype=torch.float64)
    return tiny_edm.random_network(kind, given), (x, level, labels, augment)


def states(denoiser, sigmas=(0.01, 0.5, 60.0), dtype=torch.float32):
    t = torch.tensor(sigmas, dtype=dtype)
    noise = noise_from_seeds(range(len(sigmas)), denoiser.shape).to(dtype)
    return (0.25 + t**2).sqrt()[:, None, None, None] * noise, t


def refusal(spec, kind=ValueError):
    with pytest.raises(kind) as error:
        models.load(spec)
    return sentence(error)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_numbers_of_parameters_and_tensors(name):
    kind, given, parameters, tensors = PUBLISHED[name]
    with torch.device("meta"):
        network = NETWORKS[kind](**given)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


def test_tensors_have_the_published_names_and_shapes():
    with torch.device("meta"):
        song = NETWORKS["SongUNet"](**CIFAR | NCSN | {"label_dim": 10}).state_dict()
        adm = NETWORKS["DhariwalUNet"](**ADM).state_dict()
    shapes = {
        "map_noise.freqs": (128,),
        "map_label.bias": (256,),
        "map_augment.weight": (256, 9),
        "map_layer0.weight": (512, 256),
        "enc.32x32_conv.weight": (128, 3, 3, 3),
        "enc.16x16_down.skip.resample_filter": (1, 1, 4, 4),
        "enc.16x16_aux_residual.weight": (256, 3, 3, 3),
        "enc.16x16_block3.qkv.weight": (768, 256, 1, 1),
        "dec.8x8_in0.proj.bias": (256,),
        "dec.16x16_block4.norm2.weight": (256,),
        "dec.32x32_aux_norm.weight": (256,),
        "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    }
    assert {name: tuple(song[name].shape) for name in shapes} == shapes
    assert "enc.16x16_block3.qkv.weight" in song and "dec.16x16_block3.qkv.weight" not in song
    shapes = {
        "map_label.weight": (768, 1000),
        "map_layer0.weight": (768, 192),
        "enc.32x32_down.skip.resample_filter": (1, 1, 2, 2),
        "enc.32x32_block0.affine.weight": (768, 768),
        "dec.8x8_block0.skip.weight": (768, 1536, 1, 1),
        "out_conv.weight": (3, 192, 3, 3),
    }
    assert {name: tuple(adm[name].shape) for name in shapes} == shapes
    assert not {"map_label.bias", "enc.32x32_down.skip.weight"} & set(adm)


@pytest.mark.parametrize("case", CASES)
def test_networks_answer_as_the_published_ones(case):
    network, inputs = network_and_inputs(case)
    expected = load_tensors(REFERENCE)[0][case]
    with torch.no_grad():
        assert relative(network(*inputs)[..., ::5, ::5], expected) < 1e-12
        single = network.float()(*(None if v is None else v.float() for v in inputs))
    assert relative(single[..., ::5, ::5].double(), expected) < 1e-5


def test_queries_keys_and_values_lie_side_by_side_within_a_head():
    """By hand: with keys of zero every position gets the mean of the values."""
    qkv = torch.zeros(1, 2 * 3 * 3, 2, 2)  # two heads of three channels
    values = torch.randn(2, 3, 2, 2)
    qkv.view(2, 3, 3, 2, 2)[:, :, 2] = values
    expected = values.mean((2, 3), keepdim=True).expand(2, 3, 2, 2).reshape(1, 6, 2, 2)
    torch.testing.assert_close(attend(qkv, 2), expected)
    torch.testing.assert_close(attend(qkv.double(), 2), expected.double())


def test_attention_in_float64_agrees_with_torch_s_own():
    qkv = torch.randn(2, 24, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attend(qkv.double(), 2).float(), attend(qkv, 2))


def test_resampling_by_hand():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    box = {"taps": (1, 1)}
    down, up = (Conv(1, 1, 0, resample=way, **box) for way in ("down", "up"))
    assert down(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    wide = Conv(1, 1, 0, resample="down", taps=(1, 3, 3, 1))
    # Inside, a linear function keeps its value at the middle of two pixels.
    assert wide(torch.arange(8.0).expand(1, 1, 8, 8))[0, 0, 1, 1:-1].tolist() == [2.5, 4.5]


@pytest.mark.parametrize("name", PRECONDS)
def test_noise_prediction_is_the_slope_of_the_denoised_picture(name):
    sigma = torch.tensor([0.03, 1.0, 70.0], dtype=torch.float64)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(scaled, level):
        return torch.tanh(scaled) + level[:, None] / 1000

    slope = noise_prediction(network, x, sigma, PRECONDS[name])
    denoised = denoise(network, x, sigma, PRECONDS[name])
    torch.testing.assert_close(slope, (x - denoised) / sigma[:, None], rtol=1e-9, atol=1e-9)


def test_preconditionings_have_the_factors_of_the_table():
    sigma = torch.tensor([2.0], dtype=torch.float64)
    edm, vp, ve, iddpm = (PRECONDS[name].factors(sigma) for name in ("edm", "vp", "ve", "iddpm"))
    assert edm.c_in.item() == pytest.approx(4.25**-0.5)
    assert edm.c_noise.item() == pytest.approx(0.17328679513998632)
    assert edm.skip.item() == pytest.approx(0.25 / 4.25)
    assert edm.out.item() == pytest.approx(1 / 4.25**0.5)
    # At time 1/2 the integral of beta is 19.9 / 8 + 0.1 / 2.
    half = torch.tensor([2.5375], dtype=torch.float64).expm1().sqrt()
    assert PRECONDS["vp"].factors(half).c_noise.item() == pytest.approx(999 / 2)
    assert (vp.c_in.item(), vp.skip.item(), vp.out.item()) == pytest.approx((5**-0.5, 1, -2))
    assert (ve.c_in.item(), ve.c_noise.item(), ve.out.item()) == (1, 0, 2)
    assert iddpm.out.item() == -2


def test_iddpm_is_told_the_index_of_a_level_and_something_between_elsewhere():
    precond = IDDPMPrecond()
    index = torch.tensor([8, 500, 999])
    told = precond.factors(precond.levels[index]).c_noise
    torch.testing.assert_close(told, (999 - index).double(), rtol=0, atol=1e-9)
    # As published: the largest and the smallest level of all, in single precision.
    assert precond.sigma_range == pytest.approx((0.006422337, 20291.17), rel=1e-3)
    between = precond.levels[500:502].prod().sqrt()[None].requires_grad_()
    place = precond.factors(between).c_noise
    assert place.item() == pytest.approx(998.5 - 500)
    (slope,) = torch.autograd.grad(place.sum(), between)
    expected = 1 / (precond.levels[500] / precond.levels[501]).log() / between
    torch.testing.assert_close(slope, expected.detach())


def test_networks_are_sampled_where_both_they_and_edm_s_sampler_are():
    ranges = {name: schedule(p) for name, p in PRECONDS.items()}
    assert (ranges["edm"].t_min, ranges["edm"].t_max) == (0.002, 80)
    assert (ranges["ve"].t_min, ranges["ve"].t_max) == (0.02, 80)
    assert ranges["iddpm"].t_min == pytest.approx(0.00643, rel=1e-2)


@pytest.mark.parametrize("name", ["edm", "vp", "ve", "iddpm"])
def test_checkpoints_of_every_preconditioning_load(tmp_path, name):
    channels = {"out_channels": 6} if name == "iddpm" else {}
    infinite = {"sigma_min": 0, "sigma_max": "inf"} if name == "edm" else {}
    network = tiny_edm.write(
        tmp_path, "adm", precond=name, precond_args=infinite, label_dim=4, **channels
    )
    model = models.load(f"edm:{tmp_path}")
    assert isinstance(model.precond, type(PRECONDS[name]))
    x, t = states(model)
    condition = model.condition([0, 1, 2])
    labels = torch.eye(4)[condition.inputs["label"]]
    with torch.no_grad():
        expected = noise_prediction(
            lambda scaled, level: network(scaled, level, labels)[:, :3], x, t, PRECONDS[name]
        )
        torch.testing.assert_close(model(x, t, condition), expected)


def test_a_checkpoint_is_a_frozen_denoiser_in_noise_form(plain, classes):
    assert (plain.name, plain.native, plain.shape) == ("edm", Form.NOISE, (3, 32, 32))
    assert isinstance(plain, FeatureDenoiser) and not isinstance(plain, ClassConditional)
    assert isinstance(classes, ClassConditional)
    assert plain.condition([0, 1]).features is None
    assert not any(p.requires_grad for p in plain.network.parameters())
    x, t = states(plain, dtype=torch.float64)
    assert plain(x, t, plain.condition([0, 1, 2])).dtype == torch.float64


def test_each_sample_has_its_own_sigma_and_class(classes):
    x, t = states(classes)
    condition = classes.class_condition([3, 7, 10])
    with torch.no_grad():
        together = classes(x, t, condition)
        alone = torch.cat(
            [classes(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(3)]
        )
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        other = classes(x, t, classes.class_condition([3, 8, 10]))
    changed = (other - together).abs().amax((1, 2, 3)) > 1e-3
    assert changed.tolist() == [False, True, False]


def test_the_null_class_is_a_row_of_zeros(classes):
    x, t = states(classes)
    with torch.no_grad():
        named = classes(x, t, classes.class_condition([10, 10, 10]))
        unnamed = noise_prediction(classes.network, x, t, EDMPrecond())
    torch.testing.assert_close(named, unnamed, rtol=0, atol=0)


def test_answers_can_be_differentiated_in_sigma_and_samples(folder):
    model = models.load(f"edm:{folder}/plain")
    model.network.double()
    x, t = states(model, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    x.requires_grad_(), t.requires_grad_()
    condition = model.condition([0, 1, 2])

    def value(at, times):
        return (direction * model(at, times, condition)).sum((1, 2, 3))

    of_x, of_t = torch.autograd.grad(value(x, t).sum(), (x, t))
    # Attention's weights are of single precision, so steps must not be tiny.
    with torch.no_grad():
        step = 1e-3 * t
        slope = (value(x, t + step) - value(x, t - step)) / (2 * step)
        torch.testing.assert_close(of_t, slope, rtol=1e-3, atol=1e-3)
        step = 1e-3 * (1 + t)[:, None, None, None] * direction
        along = (value(x + step, t) - value(x - step, t)) / (2e-3 * (1 + t))
        torch.testing.assert_close((of_x * direction).sum((1, 2, 3)), along, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precond", ["edm", "iddpm"])
def test_on_another_device_nothing_stays_behind(tmp_path, precond):
    channels = 6 if precond == "iddpm" else 3
    tiny_edm.write(tmp_path, "ncsn++", precond=precond, label_dim=4, out_channels=channels)
    model = models.load(f"edm:{tmp_path}")
    x, t = states(model)
    condition = model.condition([0, 1, 2])
    with torch.no_grad():
        expected = model(x, t, condition)
        with elsewhere():
            away = to_device_of(condition, model.to(AWAY))
            found = model(x.to(AWAY), t.to(AWAY), away).cpu()
    torch.testing.assert_close(found, expected)


def test_features_are_the_channel_mean_of_the_encoder_s_last_block(plain):
    seen = []
    handle = plain.network.enc["8x8_block0"].register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    x, t = states(plain)
    condition = plain.condition([0, 1, 2])
    answer, features = plain.with_features(x.requires_grad_(), t, condition)
    handle.remove()
    assert features.shape == (3, 64) and not features.requires_grad and answer.requires_grad
    torch.testing.assert_close(features, seen[0].detach().mean(1).flatten(1))
    assert torch.equal(answer, plain(x, t, condition))
    assert AMED(steps=4).untrained(plain).policy.size == 64


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_half_precision_moves_the_answer_a_little(folder, classes, half):
    model = models.load(f"edm:{folder}/classes,{half}")
    assert model.network.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[half]
    assert model.network.map_layer0.weight.dtype == torch.float32
    assert model.fingerprint == f"{classes.fingerprint}+{half}"
    x, t = states(model)
    condition = model.condition([0, 1, 2])
    with torch.no_grad():
        answer, expected = model(x, t, condition), classes(x, t, condition)
    assert answer.dtype == torch.float32
    assert 0 < relative(answer, expected) < 0.05


@pytest.mark.parametrize("name", ["ddpm++", "ncsn++", "adm"])
def test_networks_compile_in_one_graph(name):
    kind, given = tiny_edm.arguments(name, label_dim=3)
    network = tiny_edm.random_network(kind, given).float().requires_grad_(False)
    torch._dynamo.reset()
    whole = torch.compile(network.with_features, backend="eager", fullgraph=True)
    x, level, labels = torch.randn(2, 3, 16, 16), torch.tensor([-1.0, 0.5]), torch.eye(3)[:2]
    for found, expected in zip(
        whole(x, level, labels), network.with_features(x, level, labels), strict=True
    ):
        assert torch.equal(found, expected)


def test_networks_run_on_channels_last_and_answer_as_on_contiguous_weights(plain):
    assert plain.network.enc["16x16_block0"].conv0.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    x, t = states(plain)
    condition = plain.condition([0, 1, 2])
    with torch.no_grad():
        found = plain(x.to(memory_format=torch.channels_last), t, condition)
        torch.testing.assert_close(found, plain(x, t, condition), rtol=1e-4, atol=1e-5)
        other = copy.deepcopy(plain.network).to(memory_format=torch.contiguous_format)
        expected = EDMModel(other, EDMPrecond(), 32)(x, t, condition)
    assert relative(found, expected) < 1e-5


def test_labels_are_those_that_edm_s_script_draws_after_the_noise(classes):
    # Of StackedRandomGenerator("cpu", range(12)): randn([12, 3, 16, 16]), then randint(10, [12]).
    labels = [7, 0, 7, 0, 8, 5, 3, 4, 5, 5, 3, 9]
    assert classes.condition(list(range(12))).inputs["label"].tolist() == labels
    assert [drawn_label(seed, (3, 16, 16), 10) for seed in (11, 0)] == [labels[11], labels[0]]


def test_labels_may_also_come_in_turn(folder, classes):
    model = models.load(f"edm:{folder}/classes,even")
    assert model.condition([0, 9, 10, 23]).inputs["label"].tolist() == [0, 9, 0, 3]
    assert model.fingerprint == f"{classes.fingerprint}+even"
    features = model.condition([1]).features
    assert features[0, 1].item() == pytest.approx(10**-0.5) and features.sum() == features[0, 1]


def test_what_is_no_checkpoint_is_refused_in_a_sentence(folder, tmp_path):
    convert = "indis convert edm"
    assert f"`{convert} x/net.pkl --out DIR`" in refusal("edm:x/net.pkl")
    assert convert in refusal("edm")
    assert convert in refusal(f"edm:{tmp_path}", FileNotFoundError)
    assert "options of model edm" in refusal(f"edm:{folder}/plain,half")
    assert "one of bf16 and fp16" in refusal(f"edm:{folder}/plain,bf16,fp16")
    with pytest.raises(ValueError, match=r"label must be 0 \.\.\. 9 or 10"):
        models.load(f"edm:{folder}/classes").class_condition([11])


def test_a_checkpoint_that_does_not_fit_its_config_is_refused(folder, tmp_path):
    shutil.copytree(folder / "plain", tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text())

    def changed(**changes):
        path.write_text(json.dumps(config | changes))
        return refusal(f"edm:{tmp_path}/copy")

    assert "not the file" in changed(tensors_sha256="0" * 64)
    wider = config["network_args"] | {"augment_dim": 8}
    assert "map_augment.weight must be (16, 8), got (16, 9)" in changed(network_args=wider)
    assert "does not describe" in changed(network="VisionTransformer")
    assert "does not describe" in changed(network_args=config["network_args"] | {"depth": 3})
    odd = config["network_args"] | {"encoder_type": "skip"}
    assert "encoder_type must be standard or residual, got 'skip'" in changed(network_args=odd)


def test_a_model_made_in_a_script_answers_like_one_from_a_folder(folder, plain):
    network = tiny_edm.random_network(*tiny_edm.arguments("ddpm++", resolution=32)).float()
    x, t = states(plain)
    with torch.no_grad():
        torch.testing.assert_close(
            EDMModel(network, EDMPrecond(), 32)(x, t, plain.condition([0, 1, 2])),
            plain(x, t, plain.condition([0, 1, 2])),
        )
