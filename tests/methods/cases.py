"""A small instance of every method, tuned on the toy in a second or two."""

from indis.methods import METHODS, Method
from indis.training import FitConfig

SMALL = FitConfig(iterations=40, batch=32, lr=0.05, holdout=32, validate_every=10)
TOY = {"solver": "euler", "grid": "uniform", "loss": "squared", "fit": SMALL}

CASES: dict[str, Method] = {
    "indis": METHODS["indis"](steps=3, width=16, depth=2, **TOY),
    "god": METHODS["god"](steps=3, **TOY),
    "gits": METHODS["gits"](steps=3, samples=128, **TOY),
    # Its bound is that of a multistep method of the data prediction.
    "dmn": METHODS["dmn"](steps=4, **(TOY | {"solver": "unipc:3"})),
    "ays": METHODS["ays"](steps=3, samples=128, fine=120, **TOY),
}
