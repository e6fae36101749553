"""Command lines that the tests of the command line share, and what a refusal must look like."""

from pathlib import Path

from small_cases import contents, folders

TEACH = "teach --model toy --solver euler --grid uniform --steps 12 --shard 16"
STUDENT = "--steps 3 --solver euler --grid uniform --loss squared --width 8 --depth 1"
FIT = f"{STUDENT} --iterations 8 --batch 16 --holdout 16 --validate-every 2 --lr 0.1"


def refused(indis, line):
    """The sentence of a command that must fail without leaving any file or folder."""
    before = contents(Path.cwd()), folders(Path.cwd())
    code, said = indis(line)
    assert code == 2
    assert (contents(Path.cwd()), folders(Path.cwd())) == before
    assert said.startswith("indis: error: ") and said.count("\n") == 1 and len(said) < 400
    assert "Traceback" not in said
    return said
