"""A small instance of every method, tuned on the toy in a second or two."""

from indis.methods import METHODS, Method
from indis.recipe import Recipe

SMALL = Recipe(iterations=40, batch=32, lr=0.05, holdout=32, validate_every=10)
TOY = {"solver": "euler", "grid": "uniform", "loss": "squared", "recipe": SMALL}

UNIPC = TOY | {"solver": "unipc:3:bh1"}

CASES: dict[str, Method] = {
    "indis": METHODS["indis"](steps=3, width=16, depth=2, **TOY),
    "god": METHODS["god"](steps=3, **TOY),
    "look": METHODS["look"](steps=3, width=16, depth=2, **TOY),
    "local": METHODS["local"](steps=3, width=16, depth=2, **TOY),
    "spanlift": METHODS["spanlift"](steps=3, **TOY),
    "every-n": METHODS["every-n"](steps=4, fewest=3, width=16, depth=2, **TOY),
    "ld3": METHODS["ld3"](steps=3, pairs=224, **UNIPC),
    "dyweight": METHODS["dyweight"](steps=3, analytic_first=False, **TOY | {"solver": "ipndm:3"}),
    "ald3": METHODS["ald3"](steps=3, width=16, depth=2, **UNIPC),
    "amed": METHODS["amed"](steps=2, **TOY | {"solver": "midpoint"}),
    "amed-plugin": METHODS["amed-plugin"](steps=2, **TOY | {"solver": "ipndm:4"}),
    "epd": METHODS["epd"](steps=2, **TOY | {"solver": "midpoint:2"}),
    "epd-plugin": METHODS["epd-plugin"](steps=2, **TOY | {"solver": "midpoint:2:4"}),
    "adasde": METHODS["adasde"](steps=2, **TOY | {"solver": "midpoint"}),
    "gits": METHODS["gits"](steps=3, samples=128, **TOY),
    # Its bound is that of a multistep method of the data prediction.
    "dmn": METHODS["dmn"](steps=4, **(TOY | {"solver": "unipc:3"})),
    "ays": METHODS["ays"](steps=3, samples=128, fine=120, **TOY),
}
